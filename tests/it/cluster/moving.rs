//! Slots that move between nodes, and nodes that are restarted, emptied, cut off or replaced.

use super::*;

/// Keys of one slot.
fn of_one_slot(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("k:{{one}}:{number}")).collect()
}

/// Every command on keys and fences of a slot, half of which has moved; what it reads was written before.
async fn all_commands_work(cache: &RedisCache, keys: &[String]) {
    assert!(values(cache, keys).await.iter().all(Option::is_some));
    write(cache, keys, "2").await;
    assert_eq!(values(cache, keys).await, vec![Some("2".to_owned()); keys.len()]);
    assert_eq!(cache.exist(keys).await, Ok(keys.len() as u64));
    let lives: Vec<_> = keys.iter().map(|key| (key.clone(), Duration::from_hours(1))).collect();
    cache.expire(&lives).await.unwrap();
    let fences: Vec<String> = keys.iter().map(|key| format!("fence:{key}")).collect();
    let before = cache.fences(&fences).await.unwrap();
    cache.move_fences(&fences, 1 << 41).await.unwrap();
    let after = cache.fences(&fences).await.unwrap();
    for (before, after) in before.iter().zip(&after) {
        match (before, after) {
            (Fence::Missing, Fence::At(after)) => assert_eq!(*after, (1 << 41) + 1),
            (Fence::At(before), Fence::At(after)) => assert_eq!(*after, before + 1, "moved once"),
            (_, Fence::Missing) => panic!("the fence was not moved"),
        }
    }
}

#[tokio::test]
async fn commands_follow_a_slot_that_is_moving_and_one_that_has_moved() {
    let cluster = cluster(false).await;
    let cache = connect(&cluster).await;
    let keys = of_one_slot(40);
    all_written(&cache, &keys).await;
    let slot = cluster.slot(&keys[0]).await;
    let owner = cluster.owner(slot).await;
    let target = (owner + 1) % 3;

    cluster.begin_to_move(slot, target).await;
    assert_eq!(cluster.move_keys(slot, target, 35).await, 35);
    all_commands_work(&cache, &keys).await;
    assert!(cluster.errors("ASK").await > 20);
    assert_eq!(cluster.errors("MOVED").await, 0);

    while cluster.move_keys(slot, target, 100).await > 0 {}
    cluster.end_move(slot, target).await;
    all_commands_work(&cache, &keys).await;
    assert!(cluster.errors("MOVED").await > 0);
    let moved = cluster.errors("MOVED").await;
    all_commands_work(&cache, &keys).await;
    assert_eq!(cluster.errors("MOVED").await, moved, "the new owner is known");
    assert_eq!(cluster.errors("TRYAGAIN").await, 0, "no command names several keys");
}

async fn all_written(cache: &RedisCache, keys: &[String]) {
    write(cache, keys, "1").await;
    let fences: Vec<String> = keys.iter().map(|key| format!("fence:{key}")).collect();
    cache.move_fences(&fences, 1 << 41).await.unwrap();
}

#[tokio::test]
async fn a_slot_that_moves_is_no_restart_and_a_node_that_is_restarted_is_one() {
    let cluster = cluster(false).await;
    let cache = connect(&cluster).await;
    let keys = keys(300);
    write(&cache, &keys, "1").await;
    let first = cache.stats().await.unwrap();
    assert!(first.process.is_some());
    let slot = cluster.slot(&keys[0]).await;
    let target = (cluster.owner(slot).await + 1) % 3;
    cluster.move_slot(slot, target).await;
    assert!(values(&cache, &keys).await.iter().all(Option::is_some));
    assert_eq!(cache.stats().await.unwrap().process, first.process);

    cluster.node(2).restart().unwrap();
    let stats = async || cache.stats().await.ok().and_then(|stats| stats.process);
    eventually("the restart shows", LONGER, async || {
        stats().await.is_some_and(|process| Some(process) != first.process)
    })
    .await;
    let second = stats().await;
    eventually("every slot is served", LONGER, async || {
        cache.look(&keys).await.is_ok_and(|found| found.len() == keys.len())
    })
    .await;
    assert_eq!(stats().await, second);
}

#[tokio::test]
async fn a_replica_that_takes_over_is_found_and_is_another_process() {
    let cluster = cluster(true).await;
    let cache = connect(&cluster).await;
    let keys = keys(300);
    write(&cache, &keys, "1").await;
    let first = cache.stats().await.unwrap().process;
    cluster.fail_over(0).await;
    // The first call finds a dead node; a later one finds the new primary.
    eventually("all keys are there", LONGER, async || {
        cache.look(&keys).await.is_ok_and(|found| found.iter().all(Option::is_some))
    })
    .await;
    write(&cache, &keys, "2").await;
    assert_eq!(values(&cache, &keys).await, vec![Some("2".to_owned()); keys.len()]);
    assert_ne!(cache.stats().await.unwrap().process, first);
    assert_eq!(scan(&cache, "k:*").await.0.len(), keys.len());
}

#[tokio::test]
async fn a_primary_that_became_a_replica_is_left_for_the_new_one_also_where_only_figures_are_asked()
{
    let cluster = cluster(true).await;
    let cache = connect(&cluster).await;
    let first = cache.stats().await.unwrap();
    let () = cluster.ask(3, "CLUSTER FAILOVER").await;
    eventually("the roles have changed", LONGER, async || {
        let text: String = cluster.ask(0, "INFO replication").await;
        text.contains("role:slave")
    })
    .await;
    eventually("the new primary is asked", LONGER, async || {
        cache.stats().await.is_ok_and(|stats| stats.process != first.process)
    })
    .await;
}

#[tokio::test]
async fn while_one_node_is_away_the_keys_of_the_others_are_written() {
    let cluster = cluster(false).await;
    for node in 0..3 {
        let () = cluster.ask(node, "CONFIG SET cluster-require-full-coverage no").await;
    }
    let cache = connect(&cluster).await;
    let keys = keys(300);
    write(&cache, &keys, "1").await;
    let servers = cache.servers(&keys);
    cluster.node(1).kill();
    let values = Values::new(keys.iter().map(|key| (key.as_str(), "2")));
    let results = cache.write(&values.entries()).await.unwrap();
    let away = results.iter().filter(|result| result.is_err()).count();
    assert_eq!(away, servers.iter().filter(|server| **server == 1).count());
    for result in results {
        let kind = result.err().map(|error| error.kind);
        assert!(kind.is_none_or(CacheErrorKind::is_transient), "{kind:?}");
    }
    let fences: Vec<String> = (0..50).map(|tenant| format!("preheat:fence:{tenant}")).collect();
    let error = cache.fences(&fences).await.unwrap_err();
    assert!(error.kind.is_transient(), "{error}");
}

#[tokio::test]
async fn a_scan_during_which_slots_move_ends_with_an_error() {
    let cluster = cluster(false).await;
    let cache = connect(&cluster).await;
    let keys = keys(5_000);
    write(&cache, &keys, "1").await;
    let first = cache.scan("k:*", 0).await.unwrap();
    assert_ne!(first.next, 0);
    let slot = cluster.slot(&keys[0]).await;
    let target = (cluster.owner(slot).await + 1) % 3;
    cluster.move_slot(slot, target).await;
    let mut cursor = first.next;
    let error = loop {
        match cache.scan("k:*", cursor).await {
            Ok(slice) => cursor = slice.next,
            Err(error) => break error,
        }
        assert_ne!(cursor, 0, "the scan missed keys and said nothing");
    };
    assert!(error.message.contains("start it again"), "{error}");
    assert_eq!(scan(&cache, "k:*").await.0.len(), keys.len());
}

#[tokio::test]
async fn a_registry_that_moves_while_it_is_read_is_read_whole() {
    let cluster = cluster(false).await;
    let cache = connect(&cluster).await;
    let entries: Vec<_> = (0..20_000).map(|number| (number.to_string(), "x".repeat(50))).collect();
    cache.register(&entries).await.unwrap();
    let slot = cluster.slot("preheat:tenants").await;
    for _ in 0..4 {
        let target = (cluster.owner(slot).await + 1) % 3;
        let (read, ()) = tokio::join!(cache.registry(), cluster.move_slot(slot, target));
        let read = match read {
            Ok(read) => read,
            Err(error) => {
                assert!(error.kind.is_transient(), "{error}");
                cache.registry().await.unwrap()
            }
        };
        assert_eq!(read.len(), entries.len());
    }
}

/// What a call did before its connection broke is not known, and a fence that moves once more than its caller
/// knows would be taken for somebody's change.
#[tokio::test]
async fn fences_are_not_moved_twice_by_a_connection_that_breaks() {
    let cluster = cluster(false).await;
    let cache = connect(&cluster).await;
    let fences: Vec<String> = (0..50).map(|tenant| format!("preheat:fence:{tenant}")).collect();
    cache.move_fences(&fences, 1 << 41).await.unwrap();
    for node in 0..3 {
        let _count: u64 = cluster.ask(node, "CLIENT KILL TYPE normal SKIPME yes").await;
    }
    let mut moves = 1;
    while let Err(error) = cache.move_fences(&fences, 1 << 41).await {
        assert_eq!(error.kind, CacheErrorKind::Unavailable, "{error}");
        moves += 1;
        assert!(moves < 10);
    }
    moves += 1;
    for fence in cache.fences(&fences).await.unwrap() {
        let Fence::At(at) = fence else { panic!("a fence is missing") };
        assert!(at <= (1 << 41) + moves, "{at}");
    }
}
