//! Several keys at once.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use preheat_client::{Cache, Error, Fill, Key};

use crate::support::{HOUR, Loader, cache, eventually, eye, list, redis, services_of};

fn day(day: u32) -> (u32, Key<Vec<String>>) {
    let key = format!("slots:42:2026-03-{day:02}");
    (day, Key::new(key, Some("42".to_owned()), HOUR, "slots", Fill::Full))
}

/// Notes for which days it was called.
#[derive(Clone, Default)]
struct Days(Arc<Mutex<Vec<Vec<u32>>>>);

impl Days {
    async fn read(&self, cache: &Cache, days: &[u32]) -> Vec<Vec<String>> {
        let asked = self.clone();
        let load = move |days: Vec<u32>| {
            asked.0.lock().unwrap().push(days.clone());
            async move { Ok::<_, Infallible>(days.iter().map(|day| vec![day.to_string()]).collect()) }
        };
        cache.many(days.iter().map(|number| day(*number)), load).await.unwrap()
    }

    fn calls(&self) -> Vec<Vec<u32>> {
        self.0.lock().unwrap().clone()
    }
}

fn values(days: &[u32]) -> Vec<Vec<String>> {
    days.iter().map(|day| vec![day.to_string()]).collect()
}

#[tokio::test]
async fn all_hits_are_one_command_and_all_misses_one_load() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    let days = Days::default();
    assert_eq!(days.read(&cache, &[3, 5]).await, values(&[3, 5]));
    let week = [1, 2, 3, 4, 5, 6, 7];
    assert_eq!(days.read(&cache, &week).await, values(&week), "in the order of the keys");
    assert_eq!(days.calls(), [vec![3, 5], vec![1, 2, 4, 6, 7]]);

    let filled = async || eye.clone().keys().await.len() == 8;
    eventually("the week is filled", filled).await;
    eye.ask::<()>(&["CONFIG", "RESETSTAT"]).await;
    assert_eq!(days.read(&cache, &week).await, values(&week));
    assert_eq!((eye.calls("mget").await, eye.calls("get").await), (1, 0));
    assert_eq!(days.calls().len(), 2);
    let reads = cache.stats().reads["slots"];
    assert_eq!((reads.hit, reads.miss), (9, 7));
}

#[tokio::test]
async fn no_keys_are_no_command_and_a_key_may_come_twice() {
    let redis = redis();
    let cache = cache(&redis).await;
    let days = Days::default();
    assert_eq!(days.read(&cache, &[]).await, values(&[]));
    assert_eq!(days.read(&cache, &[1, 2, 1]).await, values(&[1, 2, 1]));
    assert_eq!(days.calls(), [[1, 2]]);
}

#[tokio::test]
async fn a_key_that_another_caller_loads_is_waited_for() {
    let redis = redis();
    let cache = cache(&redis).await;
    let loader = Loader::waiting();
    let single = loader.spawn_read(&cache, day(1).1, &["the single reader's"]);
    loader.has_begun(1).await;
    let days = Days::default();
    let several = {
        let (days, cache) = (days.clone(), cache.clone());
        tokio::spawn(async move { days.read(&cache, &[1, 2]).await })
    };
    eventually("the other key is loaded", async || days.calls() == [[2]]).await;
    loader.go();
    single.await.unwrap();
    assert_eq!(several.await.unwrap(), [list(&["the single reader's"]), list(&["2"])]);
}

#[tokio::test]
async fn what_another_process_does_not_finish_is_loaded_with_a_second_call() {
    let redis = redis();
    let (cache, mut eye) = (cache(&redis).await, eye(&redis).await);
    let key = "slots:42:2026-03-01";
    let lease = format!("preheat:lease:{{{key}}}{key}");
    eye.ask::<()>(&["SET", &lease, "a process that died", "PX", "60000"]).await;
    let days = Days::default();
    assert_eq!(days.read(&cache, &[1, 2]).await, values(&[1, 2]));
    assert_eq!(days.calls(), [[2], [1]]);
    assert_eq!(cache.stats().lease_timeouts, 1);
}

#[tokio::test]
async fn a_failure_of_the_load_is_that_of_all_its_keys() {
    let redis = redis();
    let cache = cache(&redis).await;
    let load = |_days| async { Err::<Vec<Vec<String>>, _>("no database") };
    let read = cache.many([day(1), day(2)], load).await;
    assert!(matches!(read, Err(Error::Load(error)) if *error == "no database"));
    let load = |_days| async { Ok::<_, Infallible>(values(&[1])) };
    let read = cache.many([day(1), day(2)], load).await;
    assert!(matches!(read, Err(Error::Count { expected: 2, found: 1 })), "{read:?}");
}

#[tokio::test]
async fn keys_of_several_types_are_read_as_json() {
    let redis = redis();
    let cache = cache(&redis).await;
    let keys = [
        ("list", services_of("42").any()),
        ("number", Key::<u32>::plain("n", HOUR).of_tenant("42").any()),
    ];
    let load = |parts: Vec<&'static str>| async move {
        Ok::<_, Infallible>(parts.into_iter().map(serde_json::Value::from).collect())
    };
    assert_eq!(cache.many(keys, load).await.unwrap(), ["list", "number"]);
}
