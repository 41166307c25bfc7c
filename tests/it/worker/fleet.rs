//! Several workers that share the tenants.

use std::time::{Duration, Instant};

use preheat_sandbox::RedisOptions;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::program::Running;
use crate::support::shop::{Shop, items};
use crate::support::{LONG, eventually, preheat};

const TENANTS: u32 = 200;
const FLEET: &str = "[fleet]\nenabled = true\n";
/// A lease and two seconds, and what the machine takes beside other tests.
const TAKEN_OVER: Duration = Duration::from_secs(30);

fn start(shop: &Shop) -> Running {
    shop.serve().settings(FLEET).job("items", &items("")).start()
}

async fn shares(worker: &Running) -> usize {
    let shares = worker.metric("preheat_fleet_shares").await.unwrap_or_default();
    format!("{shares:.0}").parse().unwrap()
}

/// Waits until these workers hold all shares in even parts.
async fn is_shared(workers: &[&Running]) {
    let few = 64 / workers.len();
    let what = format!("{} workers share the tenants", workers.len());
    eventually(&what, LONG, async || {
        let mut all = Vec::new();
        for worker in workers {
            all.push(shares(worker).await);
        }
        all.iter().sum::<usize>() == 64 && all.iter().all(|shares| *shares >= few)
    })
    .await;
}

#[tokio::test]
async fn workers_share_the_tenants_and_take_over_from_those_that_die_stop_or_hang() {
    let shop = Shop::open(TENANTS).await;
    let mut workers = vec![start(&shop), start(&shop), start(&shop)];
    for worker in &workers {
        worker.works().await;
    }
    is_shared(&workers.iter().collect::<Vec<_>>()).await;
    eventually("all is warm", LONG, async || shop.is_warm().await).await;

    // One is killed: its tenants are warm again soon.
    let killed = workers.remove(0);
    killed.signal(Signal::KILL);
    let at = Instant::now();
    eventually("the others took over", TAKEN_OVER, async || {
        shares(&workers[0]).await + shares(&workers[1]).await == 64
    })
    .await;
    #[expect(clippy::print_stdout, reason = "the figure is for who reads the test's output")]
    {
        println!("a killed worker's shares were taken over after {:?}", at.elapsed());
    }
    is_shared(&workers.iter().collect::<Vec<_>>()).await;

    // One hangs for longer than its lease, and begins again as a member when it goes on.
    let hung = workers.remove(0);
    hung.signal(Signal::STOP);
    eventually("the last one took over", TAKEN_OVER, async || shares(&workers[0]).await == 64)
        .await;
    hung.signal(Signal::CONT);
    eventually("it noticed that its leases were over", LONG, async || {
        hung.stderr().contains("could not renew the leases of the shares")
    })
    .await;
    is_shared(&[&hung, &workers[0]]).await;

    // One is stopped, and hands its shares over.
    hung.signal(Signal::TERM);
    let stopped = hung.ended().await;
    assert_eq!(stopped.code(), Some(0));
    assert!(stopped.stderr.contains("left the fleet"), "{stopped:?}");
    is_shared(&[&workers[0]]).await;
    eventually("all is warm", LONG, async || shop.is_warm().await).await;
}

#[tokio::test]
async fn a_worker_with_a_fixed_part_warms_its_part_alone() {
    let shop = Shop::open(TENANTS).await;
    let part = |share: &str| {
        let settings = format!("[fleet]\nshare = \"{share}\"\n");
        shop.serve().settings(&settings).job("items", &items("required = true")).start()
    };
    let first = part("0/2");
    first.answers("/readyz", 200).await;
    let warm = shop.cached().await.len();
    assert!((50..=150).contains(&warm), "{warm}");
    assert_eq!(first.metric("preheat_fleet_shares").await, None, "nothing is leased");
    let overview = first.get("/api/v1/overview").await.json();
    let sentence = format!("All {warm} tenants of this worker's part are warm.");
    assert_eq!(overview["verdict"]["sentence"], sentence);
    assert_eq!(overview["figures"]["coverage"]["tenants"], warm);
    let fleet = first.get("/api/v1/fleet").await.json();
    assert_eq!((&fleet["enabled"], &fleet["vacant"]), (&json!(false), &Value::Null));
    assert_eq!(fleet["members"][0]["share_count"], 32);
    let run = first.warm("items").await;
    assert_eq!(run["report"]["tenants"]["total"], warm, "a requested run is for the part, too");
    let second = part("1/2");
    second.answers("/readyz", 200).await;
    shop.assert_warm().await;
}

#[tokio::test]
async fn a_worker_that_the_fleets_connections_do_not_reach_waits_and_says_so_until_another_leaves()
{
    const BOUNDED: &str = "[fleet]\nenabled = true\ndatabase_connections = 5\n";
    let shop = Shop::open(20).await;
    let start = || shop.serve().settings(BOUNDED).job("items", &items("")).start();
    let (first, second) = (start(), start());
    first.works().await;
    second.works().await;
    is_shared(&[&first, &second]).await;
    let mut third = start();
    third.says("the worker waits for database connections").await;
    let ready = third.get("/readyz").await;
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("waits for database connections"), "{}", ready.body);
    first.signal(Signal::TERM);
    assert_eq!(first.ended().await.code(), Some(0));
    third.works().await;
    is_shared(&[&second, &third]).await;
}

#[tokio::test]
async fn a_worker_of_a_fleet_refuses_a_cache_without_scripts() {
    let shop = Shop::open(1).await;
    let options = RedisOptions {
        settings: vec![("rename-command".to_owned(), "EVAL \"\"".to_owned())],
        ..RedisOptions::default()
    };
    let redis = preheat_sandbox::Redis::start(&options).unwrap();
    let program = preheat(["serve"]).database(shop.url()).cache(redis.url());
    let refused = program.settings(FLEET).job("items", &items("")).run().await;
    assert!(refused.stderr.contains("a fleet needs a cache that runs Lua scripts"), "{refused:?}");
    assert_ne!(refused.code(), Some(0));
}
