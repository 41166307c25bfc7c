//! The model with which `preheat plan` computes memory, compared with a real server.

use preheat::estimate::footprint;
use preheat_sandbox::Redis;
use redis::Cmd;

use super::plan::info;
use crate::support::{self, LONG, eventually};

/// So many that the server's other allocations do not matter.
const KEYS: usize = 20_000;
const BYTES: usize = 20_000_000;

/// Fails the test if commands on an empty cache take over a twelfth more or less memory than planned: a table
/// has one to two buckets an entry, and the model assumes one and a half.
async fn check(redis: &Redis, what: &str, planned: u64, fill: Vec<Cmd>) {
    let mut cache = support::redis_connection(redis).await;
    let () = redis::cmd("FLUSHALL").arg("SYNC").query_async(&mut cache).await.unwrap();
    let before = info(&mut cache, "used_memory").await;
    let mut filling = support::redis_connection(redis).await;
    for some in fill.chunks(200) {
        let mut pipeline = redis::pipe();
        for command in some {
            pipeline.add_command(command.clone()).ignore();
        }
        let () = pipeline.query_async(&mut filling).await.unwrap();
    }
    drop(filling);
    // Its buffers use memory too.
    eventually("the other connection is gone", LONG, async || {
        info(&mut cache, "connected_clients").await == 1
    })
    .await;
    let taken = info(&mut cache, "used_memory").await - before;
    assert!(planned.abs_diff(taken) * 12 < taken, "{what}: {planned} for {taken}");
}

/// A command, and one that sets its key's TTL.
fn expiring(command: Cmd, key: &str) -> [Cmd; 2] {
    [command, redis::cmd("PEXPIRE").arg(key).arg(1_000_000).to_owned()]
}

#[tokio::test]
async fn hazard_21_texts_and_numbers_take_the_memory_that_the_model_says() {
    let redis = support::redis();
    for (name, value) in [(8, 2), (20, 44), (40, 45), (40, 300), (60, 4_000), (200, 40_000)] {
        let keys = KEYS.min(BYTES / value);
        let fill = (0..keys).map(|key| {
            let mut set = redis::cmd("SET");
            set.arg(format!("{key:0name$}")).arg("x".repeat(value)).arg("PX").arg(1_000_000);
            set
        });
        let planned = footprint::string(name as u64, value as u64) * keys as u64;
        check(&redis, &format!("texts of {value} bytes"), planned, fill.collect()).await;
    }
    let fill = (0..KEYS).map(|key| {
        let mut set = redis::cmd("SET");
        set.arg(format!("preheat:fence:{key:036}")).arg(1_i64 << 45).arg("EX").arg(1_000);
        set
    });
    check(&redis, "fences", footprint::number(50) * KEYS as u64, fill.collect()).await;
}

#[tokio::test]
async fn hazard_21_manifests_and_registries_take_the_memory_that_the_model_says() {
    const SETS: usize = 2_000;
    const HASHES: usize = 100;
    let redis = support::redis();
    for (members, length) in [(3, 50), (30, 20), (100, 80), (300, 50)] {
        let fill = (0..SETS).flat_map(|set| {
            let key = format!("manifest:{set:04}");
            let mut add = redis::cmd("ZADD");
            add.arg(&key);
            for member in 0..members {
                add.arg(1_764_115_200_000_i64).arg(format!("{member:0length$}"));
            }
            expiring(add, &key)
        });
        let planned = footprint::sorted_set(13, &vec![length as u64; members]) * SETS as u64;
        check(&redis, &format!("sorted sets of {members}"), planned, fill.collect()).await;
    }
    for (fields, value) in [(100, 20), (1_000, 41)] {
        let fill = (0..HASHES).flat_map(|hash| {
            let key = format!("book:{hash:03}");
            let mut set = redis::cmd("HSET");
            set.arg(&key);
            for field in 0..fields {
                set.arg(format!("{field:036}")).arg("x".repeat(value));
            }
            expiring(set, &key)
        });
        let planned = footprint::hash(8, &vec![(36, value as u64); fields]) * HASHES as u64;
        check(&redis, &format!("hashes of {fields}"), planned, fill.collect()).await;
    }
}
