//! The conformance suite of relays.

use preheat::adapter::redis::{RELAY_RIGHTS, RIGHTS, RedisCache};
use preheat::domain::change::{Change, ChangeSourceId, GoneValues};
use preheat::engine::ports::{PASSED_AT_ONCE, Passed, RELAY_KEY, RELAY_TTL, Relay};

use super::cache::{Past, on_redis};
use super::redis::settings;
use crate::support;
use crate::support::memory::MemoryRelay;

fn entry(reader: u64, number: u64, changes: Vec<Change>) -> Passed {
    Passed { id: String::new(), reader, number, changes }
}

/// Entries without the ids that the relay gave them.
fn passed(entries: Vec<Passed>) -> Vec<Passed> {
    entries.into_iter().map(|one| Passed { id: String::new(), ..one }).collect()
}

pub(crate) async fn conforms(relay: &dyn Relay) {
    assert_eq!(relay.last().await.unwrap(), None);
    assert!(relay.after(None).await.unwrap().is_empty());
    let source = || ChangeSourceId::new("24f02fc823f398ad");
    let ids = vec!["7".to_owned(), "ä'\u{1f43e}\n".to_owned()];
    let gone = GoneValues::from([("i\"d".to_owned(), vec!["7".to_owned()])]);
    let all = [
        entry(u64::MAX >> 11, 0, Vec::new()),
        entry(
            u64::MAX >> 11,
            1,
            vec![
                Change { is_fenced: true, ..Change::new(source(), Some(ids)) },
                Change::new(source(), None),
            ],
        ),
        entry(7, 0, vec![Change { gone, ..Change::new(source(), Some(Vec::new())) }]),
    ];
    for one in &all {
        relay.pass(one).await.unwrap();
    }
    let found = relay.after(None).await.unwrap();
    assert_eq!(passed(found.clone()), all);
    assert_eq!(relay.last().await.unwrap().as_ref(), found.last());
    for place in 0..3 {
        let after = relay.after(Some(&found[place].id)).await.unwrap();
        assert_eq!(after, found[place + 1..]);
    }
    for number in 1..=u64::try_from(PASSED_AT_ONCE).unwrap() + 1 {
        relay.pass(&entry(7, number, Vec::new())).await.unwrap();
    }
    let some = relay.after(Some(&found[2].id)).await.unwrap();
    assert_eq!(some.len(), PASSED_AT_ONCE, "a look is bounded");
    let rest = relay.after(Some(&some[PASSED_AT_ONCE - 1].id)).await.unwrap();
    assert_eq!(rest.len(), 1);
}

#[tokio::test]
async fn the_relay_in_memory_conforms() {
    conforms(&MemoryRelay::default()).await;
}

#[tokio::test]
async fn the_relay_on_redis_conforms_and_does_not_outlive_its_fleet() {
    let server = support::redis();
    let (cache, connection) = on_redis(&server, &format!("{}?db=3", server.url())).await;
    conforms(&cache).await;
    Past::lives(Past::Redis(vec![connection]).ttl(RELAY_KEY).await, RELAY_TTL);
}

#[tokio::test]
async fn the_rights_of_a_relay_are_enough() {
    let server = support::redis();
    let mut connection = support::redis_connection(&server).await;
    let mut user = redis::cmd("ACL");
    user.arg("SETUSER").arg("preheat").arg("on").arg(">secret");
    user.arg(RIGHTS.split_whitespace().collect::<Vec<_>>());
    user.arg(RELAY_RIGHTS.split_whitespace().collect::<Vec<_>>());
    let () = user.query_async(&mut connection).await.unwrap();
    let url = server.url().replace("redis://", "redis://preheat:secret@");
    let cache = RedisCache::connect(settings(&url)).await.unwrap();
    conforms(&cache).await;
}
