//! Who loads, and who waits: in one process and over several.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use preheat_client::{Cache, Error, Fill, Key};
use tokio::task::JoinSet;

use crate::support::{
    HOUR, LONG, Loader, builder, cache, eventually, eye, list, redis, services, services_of,
};

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

#[tokio::test(flavor = "multi_thread")]
async fn in_a_stampede_over_four_processes_each_key_is_loaded_once() {
    let redis = redis();
    let loaders: Vec<Loader> = (0..8).map(|_| Loader::waiting()).collect();
    let mut callers = JoinSet::new();
    let mut caches = Vec::new();
    for _ in 0..4 {
        let cache = cache(&redis).await; // a process as far as the cache knows: nothing is shared
        caches.push(cache.clone());
        for caller in 0..250 {
            let (cache, tenant) = (cache.clone(), caller % loaders.len());
            let loader = loaders[tenant].clone();
            callers.spawn(async move {
                let key = services_of(&tenant.to_string());
                loader.read(&cache, key, &["X-ray"]).await
            });
        }
    }
    for loader in &loaders {
        loader.has_begun(1).await;
        loader.go();
    }
    let answers = callers.join_all().await;
    assert_eq!(answers.len(), 1000);
    assert!(answers.iter().all(|answer| *answer == ["X-ray"]));
    assert!(loaders.iter().all(|loader| loader.calls() == 1));
    let reads: u64 = caches
        .iter()
        .map(|cache| cache.stats().reads["services"])
        .map(|reads| reads.hit + reads.miss + reads.joined + reads.bypass)
        .sum();
    assert_eq!(reads, 1000, "each read is counted once");
    let misses: u64 = caches.iter().map(|cache| cache.stats().reads["services"].miss).sum();
    assert_eq!(misses, 8);
}

#[tokio::test]
async fn callers_that_wait_for_a_load_are_counted_as_joined() {
    let redis = redis();
    let cache = cache(&redis).await;
    let loader = Loader::waiting();
    let first = loader.spawn_read(&cache, services(), &["X-ray"]);
    loader.has_begun(1).await;
    let others: Vec<_> =
        (0..9).map(|_| loader.spawn_read(&cache, services(), &["other"])).collect();
    eye(&redis).await.ask::<()>(&["PING"]).await;
    // Each has looked for the value, and so waits for the load.
    let looked = async || eye(&redis).await.calls("get").await >= 10 + 2;
    eventually("all have looked", looked).await;
    tokio::task::yield_now().await;
    loader.go();
    assert_eq!(first.await.unwrap(), ["X-ray"]);
    for other in others {
        assert_eq!(other.await.unwrap(), ["X-ray"]);
    }
    let reads = cache.stats().reads["services"];
    assert_eq!((reads.miss, reads.joined + reads.hit), (1, 9), "{reads:?}");
    assert_eq!(loader.calls(), 1);
}

#[tokio::test]
async fn a_load_of_a_process_that_died_is_waited_for_at_most_a_second() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    let lease = "preheat:lease:{services:42}services:42";
    eye.ask::<()>(&["SET", lease, "a process that died", "PX", "60000"]).await;
    let loader = Loader::new();
    let asked_at = Instant::now();
    assert_eq!(loader.read(&cache, services(), &["X-ray"]).await, ["X-ray"]);
    assert!(asked_at.elapsed() >= Duration::from_millis(900), "{:?}", asked_at.elapsed());
    assert_eq!(cache.stats().lease_timeouts, 1);
    assert_eq!(eye.get("services:42").await.unwrap(), r#"["X-ray"]"#, "it is filled");
    assert_eq!(eye.get(lease).await.unwrap(), "a process that died", "its lease is not ours");
}

#[tokio::test]
async fn a_load_of_another_process_that_fails_is_taken_over() {
    let redis = redis();
    let (one, two) = (cache(&redis).await, cache(&redis).await);
    let loader = Loader::waiting();
    let failing = {
        let loader = loader.clone();
        tokio::spawn(async move {
            let load = || async {
                loader.load(()).await.unwrap();
                Err::<Vec<String>, _>("no database")
            };
            one.get_or_load(services(), load).await
        })
    };
    loader.has_begun(1).await;
    let second = Loader::new();
    let waiting = second.spawn_read(&two, services(), &["X-ray"]);
    loader.go();
    assert!(failing.await.unwrap().is_err());
    assert_eq!(waiting.await.unwrap(), ["X-ray"]);
    assert_eq!((second.calls(), two.stats().lease_timeouts), (1, 0));
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_end_the_load() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    let loader = Loader::waiting();
    let first = loader.spawn_read(&cache, services(), &["X-ray"]);
    loader.has_begun(1).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let second = loader.spawn_read(&cache, services(), &["other"]);
    loader.go();
    assert_eq!(second.await.unwrap(), ["X-ray"]);
    assert_eq!(loader.calls(), 1);
    assert_eq!(eye.get("services:42").await.unwrap(), r#"["X-ray"]"#);
}

#[tokio::test]
async fn a_value_that_nobody_waits_for_any_more_is_filled() {
    let redis = redis();
    let (cache, eye) = (cache(&redis).await, eye(&redis).await);
    let loader = Loader::waiting();
    let only = loader.spawn_read(&cache, services(), &["X-ray"]);
    loader.has_begun(1).await;
    only.abort();
    loader.go();
    let is_filled = async || eye.clone().get("services:42").await.is_some();
    eventually("it is filled", is_filled).await;
    assert_eq!(cache.stats().reads["services"].miss, 1);
}

#[tokio::test]
async fn a_panic_of_the_loader_is_an_error_to_all_who_wait_and_to_nobody_else() {
    let redis = redis();
    let cache = cache(&redis).await;
    let loader = Loader::waiting();
    let read = || {
        let (cache, loader) = (cache.clone(), loader.clone());
        tokio::spawn(async move {
            let load = || async move {
                loader.load(()).await?;
                panic!("a fault of the loader, on purpose")
            };
            cache.get_or_load::<_, Infallible, _, _>(services(), load).await
        })
    };
    let first = read();
    loader.has_begun(1).await;
    let second = read();
    let gets = async || eye(&redis).await.calls("get").await >= 4;
    eventually("the second has looked", gets).await;
    loader.go();
    loader.go();
    assert!(matches!(first.await.unwrap(), Err(Error::Panicked)));
    assert!(matches!(second.await.unwrap(), Err(Error::Panicked)));
    let next = Loader::new();
    assert_eq!(next.read(&cache, services(), &["X-ray"]).await, ["X-ray"]);
}

#[tokio::test]
async fn a_loader_that_asks_for_its_own_key_gets_an_error() {
    let redis = redis();
    let cache = cache(&redis).await;
    let inner = cache.clone();
    let read = cache.get_or_load(services(), || async move {
        inner.get_or_load(services(), || async { Ok::<_, Infallible>(list(&[])) }).await
    });
    let Err(Error::Load(error)) = read.await else { panic!() };
    assert!(matches!(*error, Error::Recursive), "{error:?}");
}

/// Reads a number whose loader reads the number below it.
fn tower(cache: Cache, floor: u32) -> BoxFuture<Result<u32, Arc<str>>> {
    let key = Key::plain(format!("floor:{floor}"), HOUR).of_tenant("42");
    let below = cache.clone();
    let load = move || async move {
        if floor == 0 { Ok(0) } else { tower(below, floor - 1).await.map(|number| number + 1) }
    };
    Box::pin(
        async move { cache.get_or_load(key, load).await.map_err(|error| error.to_string().into()) },
    )
}

#[tokio::test]
async fn a_loader_may_ask_for_other_keys_and_needs_one_permit_for_all() {
    let redis = redis();
    let cache = builder(&redis).await.loads(1).build();
    assert_eq!(tower(cache, 20).await.unwrap(), 20);
}

#[tokio::test]
async fn a_load_that_waits_for_one_without_a_permit_does_not_keep_it_from_running() {
    let redis = redis();
    let cache = builder(&redis).await.loads(1).build();
    let outer = Loader::waiting();
    // It has the only permit.
    let first = {
        let (cache, inner, outer) = (cache.clone(), cache.clone(), outer.clone());
        tokio::spawn(async move {
            let load = || async move {
                outer.load(()).await.unwrap();
                Loader::new().read(&inner, services_of("2"), &["not this"]).await;
                Ok::<_, Infallible>(list(&["outer"]))
            };
            cache.get_or_load(services_of("1"), load).await.unwrap()
        })
    };
    outer.has_begun(1).await;
    // This one waits for the permit, and the first is about to wait for this one.
    let queued = Loader::new();
    let second = queued.spawn_read(&cache, services_of("2"), &["inner"]);
    let leased =
        async || eye(&redis).await.get("preheat:lease:{services:2}services:2").await.is_some();
    eventually("the second is about to load", leased).await;
    outer.go();
    let first = tokio::time::timeout(LONG, first).await.expect("they do not wait for each other");
    assert_eq!(first.unwrap(), ["outer"]);
    assert_eq!(second.await.unwrap(), ["inner"]);
    assert_eq!(queued.calls(), 1);
}

#[tokio::test]
async fn at_most_so_many_load_and_so_many_wait() {
    let redis = redis();
    let cache = builder(&redis).await.loads(1).build();
    let loader = Loader::waiting();
    let running = loader.spawn_read(&cache, services_of("first"), &["X-ray"]);
    loader.has_begun(1).await;
    let mut readers = JoinSet::new();
    for tenant in 0..65 {
        let (cache, loader) = (cache.clone(), loader.clone());
        readers.spawn(async move {
            let key = services_of(&tenant.to_string());
            cache.get_or_load(key, || loader.load(list(&["X-ray"]))).await
        });
    }
    let refused = readers.join_next().await.unwrap().unwrap();
    assert!(matches!(refused, Err(Error::Exhausted)), "{refused:?}");
    assert_eq!((loader.calls(), cache.stats().exhausted), (1, 1), "the others still wait");
    for _ in 0..65 {
        let calls = loader.calls();
        loader.go();
        eventually("the next begins", async || loader.calls() > calls || calls == 65).await;
    }
    loader.go();
    assert_eq!(running.await.unwrap(), ["X-ray"]);
    assert!(readers.join_all().await.iter().all(Result::is_ok));
    assert_eq!(loader.calls(), 65);
}

/// A loader finds what its tenant may see, so nobody joins the load of another tenant.
#[tokio::test]
async fn callers_for_another_tenant_do_not_join_the_load_of_a_shared_key() {
    let redis = redis();
    let cache = cache(&redis).await;
    let pet = |tenant: &str| {
        Key::<String>::new("pet:7", Some(tenant.to_owned()), HOUR, "pets", Fill::Brief)
    };
    let stranger = Loader::waiting();
    let not_found = {
        let (cache, stranger) = (cache.clone(), stranger.clone());
        tokio::spawn(async move {
            cache.find_or_load(pet("43"), || stranger.load(None::<String>)).await.unwrap()
        })
    };
    stranger.has_begun(1).await;
    // It waits for the stranger's lease, and not for what the stranger finds.
    let load = || Loader::new().load(Some("Rex".to_owned()));
    let found = tokio::time::timeout(LONG, cache.find_or_load(pet("42"), load)).await;
    assert_eq!(found.unwrap().unwrap().as_deref(), Some("Rex"));
    stranger.go();
    assert_eq!(not_found.await.unwrap(), None);
}
