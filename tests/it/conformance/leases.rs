//! The conformance suite of what keeps leases.

use std::sync::Arc;
use std::time::Duration;

use preheat::adapter::ConnectErrorKind;
use preheat::adapter::redis::RedisCache;
use preheat::domain::fleet::{Beat, LEASE, Lease, Member, Release, Standing, View, Wanted};
use preheat::domain::member::MemberId;
use preheat::domain::share::{Share, Shares};
use preheat::engine::ports::{CacheErrorKind, LEASES_KEY, Leases, MEMBERS_KEY};
use redis::aio::MultiplexedConnection;

use super::cache::{PREFIX, Past, on_redis};
use super::redis::settings;
use crate::support;
use crate::support::memory::MemoryLeases;
use crate::support::virtual_clock::VirtualClock;

const SECOND: Duration = Duration::from_secs(1);
/// A lease without its last four seconds.
const MOST_OF_A_LEASE: Duration = Duration::from_secs(6);
/// Longer than a test's questions take.
const SOON: Duration = Duration::from_secs(5);

/// How a test makes time pass for the server.
enum Time<'c> {
    Virtual(&'c VirtualClock),
    /// What is in Redis becomes older.
    Redis(MultiplexedConnection),
}

impl Time<'_> {
    async fn pass(&mut self, time: Duration) {
        match self {
            Self::Virtual(clock) => clock.stall(time).await,
            Self::Redis(connection) => {
                for (key, times) in [(MEMBERS_KEY, 2), (LEASES_KEY, 1)] {
                    let key = format!("{PREFIX}{key}");
                    let fields: Vec<(String, String)> =
                        redis::cmd("HGETALL").arg(&key).query_async(connection).await.unwrap();
                    for (field, text) in fields {
                        let older = |(place, part): (usize, &str)| {
                            let is_time = place < times;
                            let age = |part: &str| {
                                let at: u128 = part.parse().unwrap();
                                at.saturating_sub(time.as_millis())
                            };
                            if is_time { age(part).to_string() } else { part.to_owned() }
                        };
                        let text: Vec<String> = text.split(':').enumerate().map(older).collect();
                        let mut command = redis::cmd("HSET");
                        command.arg(&key).arg(field).arg(text.join(":"));
                        let () = command.query_async(connection).await.unwrap();
                    }
                }
            }
        }
    }
}

fn id(name: &str) -> MemberId {
    MemberId::parse(name).unwrap()
}

fn shares(numbers: &[u8]) -> Shares {
    numbers.iter().map(|number| Share::new(*number).unwrap()).collect()
}

fn of(name: &str, number: u64, claims: &[u8]) -> Beat {
    Beat {
        id: id(name),
        number,
        standing: Standing::Works,
        claims: shares(claims),
        connections: None,
    }
}

async fn beat(leases: &dyn Leases, name: &str, number: u64, claims: &[u8]) -> View {
    leases.beat(&of(name, number, claims)).await.unwrap()
}

fn release(name: &str, number: u64, shares: &[(u8, Option<&str>)]) -> Release {
    let shares = shares.iter().map(|(share, to)| (Share::new(*share).unwrap(), to.map(id)));
    Release { id: id(name), number, shares: shares.collect(), leaves: false }
}

fn member<'v>(view: &'v View, name: &str) -> &'v Member {
    view.member(&id(name)).unwrap()
}

fn lease(view: &View, share: u8) -> &Lease {
    &view.leases[usize::from(share)]
}

fn left(view: &View, share: u8) -> Duration {
    match lease(view, share) {
        Lease::Held { left, .. } => *left,
        Lease::Free(since) => panic!("free for {since:?}"),
    }
}

fn is_about(found: Duration, expected: Duration) -> bool {
    found <= expected + SOON && found + SOON >= expected
}

async fn leases_shares(leases: &dyn Leases, time: &mut Time<'_>) {
    let view = beat(leases, "a", 1, &[]).await;
    assert_eq!(view.leases, View::of(Vec::new()).leases);
    assert_eq!(view.members.len(), 1);
    let view = beat(leases, "a", 2, &[0, 1, 63]).await;
    assert_eq!(view.held_by(&id("a")), shares(&[0, 1, 63]));
    assert!(left(&view, 63) <= LEASE && is_about(left(&view, 63), LEASE));
    // Nobody gets what another has; both are members.
    let view = beat(leases, "b", 1, &[1, 2]).await;
    assert_eq!(view.held_by(&id("b")), shares(&[2]));
    assert_eq!(view.held_by(&id("a")), shares(&[0, 1, 63]));
    assert_eq!(view.members.len(), 2);

    // Each beat renews what the member has, whether or not it claims that.
    time.pass(MOST_OF_A_LEASE).await;
    let view = beat(leases, "a", 3, &[]).await;
    assert!(is_about(left(&view, 0), LEASE) && left(&view, 2) <= SECOND * 4);
    assert!(member(&view, "b").silent_for >= MOST_OF_A_LEASE);
    assert!(member(&view, "a").silent_for < SOON && member(&view, "a").age >= MOST_OF_A_LEASE);

    // A member that is silent for as long as a lease is gone, and its shares are free.
    time.pass(SECOND * 5).await;
    let view = beat(leases, "a", 4, &[]).await;
    assert_eq!(view.members.len(), 1);
    assert!(matches!(lease(&view, 2), Lease::Free(since) if *since > Duration::ZERO));
    let view = beat(leases, "a", 5, &[2]).await;
    assert_eq!(view.held_by(&id("a")), shares(&[0, 1, 2, 63]));
    // It comes back as a young member.
    let view = beat(leases, "b", 2, &[2, 3]).await;
    assert_eq!(view.held_by(&id("b")), shares(&[3]));
    assert!(member(&view, "b").age < SOON);

    // A member that comes late leases again what nobody has taken, if it claims it.
    time.pass(LEASE * 2).await;
    let view = beat(leases, "a", 6, &[0, 1]).await;
    assert_eq!(view.held_by(&id("a")), shares(&[0, 1]));
    assert!(matches!(lease(&view, 2), Lease::Free(since) if *since >= LEASE / 2));
}

async fn hands_shares_over(leases: &dyn Leases, time: &mut Time<'_>) {
    time.pass(LEASE * 3).await;
    beat(leases, "a", 10, &[0, 1, 2, 3]).await;
    beat(leases, "b", 10, &[4]).await;
    let given = release("a", 10, &[(0, Some("b")), (1, None), (4, None), (3, Some("nobody"))]);
    assert!(leases.release(&given).await.unwrap());
    let view = beat(leases, "c", 1, &[]).await;
    assert_eq!(view.held_by(&id("a")), shares(&[2]));
    assert_eq!(view.held_by(&id("b")), shares(&[0, 4]), "the last is not of `a` to give");
    assert!(is_about(left(&view, 0), LEASE));
    assert!(matches!(lease(&view, 1), Lease::Free(since) if *since < SOON));
    assert!(matches!(lease(&view, 3), Lease::Free(_)));

    // After a later beat, an earlier release changes nothing, and neither does an earlier beat.
    beat(leases, "a", 11, &[]).await;
    assert!(!leases.release(&release("a", 10, &[(2, None)])).await.unwrap());
    assert!(!leases.release(&release("nobody", 10, &[(2, None)])).await.unwrap());
    let late = leases.beat(&of("a", 10, &[1])).await.unwrap_err();
    assert_eq!(late.kind, CacheErrorKind::Refused);
    let view = beat(leases, "a", 11, &[]).await;
    assert_eq!(view.held_by(&id("a")), shares(&[2]), "the same beat again is harmless");

    let departs = Release { leaves: true, ..release("a", 11, &[(2, Some("b"))]) };
    assert!(leases.release(&departs).await.unwrap());
    let view = beat(leases, "b", 11, &[]).await;
    assert_eq!(view.member(&id("a")), None);
    assert_eq!(view.held_by(&id("b")), shares(&[0, 2, 4]));
}

async fn divides_connections(leases: &dyn Leases, time: &mut Time<'_>) {
    time.pass(LEASE * 3).await;
    let wants = async |name: &str, number: u64, connections: u32| {
        let wanted = Some(Wanted { connections, of: 12 });
        let beat = Beat { connections: wanted, ..of(name, number, &[]) };
        member(&leases.beat(&beat).await.unwrap(), name).connections
    };
    assert_eq!(wants("a", 20, 12).await, 12);
    assert_eq!(wants("b", 20, 6).await, 0, "`a` has all");
    assert_eq!(wants("a", 21, 8).await, 8);
    assert_eq!(wants("b", 21, 6).await, 4);
    assert_eq!(wants("b", 22, 6).await, 4);
    assert_eq!(wants("a", 22, 6).await, 6);
    assert_eq!(wants("b", 23, 6).await, 6);
    assert_eq!(wants("a", 23, 9).await, 6, "there are no more, and it keeps what it has");
    time.pass(LEASE * 2).await;
    assert_eq!(wants("a", 24, 12).await, 12, "the others are gone");
}

async fn knows_standings(leases: &dyn Leases) {
    for (number, standing) in (30..).zip(Standing::ALL) {
        let view = leases.beat(&Beat { standing, ..of("a", number, &[]) }).await.unwrap();
        assert_eq!(member(&view, "a").standing, standing);
    }
}

async fn conforms(leases: &dyn Leases, time: &mut Time<'_>) {
    leases_shares(leases, time).await;
    hands_shares_over(leases, time).await;
    divides_connections(leases, time).await;
    knows_standings(leases).await;
}

#[tokio::test]
async fn the_leases_in_memory_conform() {
    let clock = VirtualClock::new("2026-03-01T00:00:00Z".parse().unwrap(), 7);
    let leases = MemoryLeases::new(Arc::new(clock.clone()));
    conforms(&leases, &mut Time::Virtual(&clock)).await;
}

#[tokio::test]
async fn the_leases_in_redis_conform_and_expire_with_their_fleet() {
    let server = support::redis();
    let (cache, connection) = on_redis(&server, &format!("{}?db=3", server.url())).await;
    conforms(&cache, &mut Time::Redis(connection.clone())).await;
    cache.can_lease().await.unwrap();
    let mut past = Past::Redis(vec![connection]);
    for key in [MEMBERS_KEY, LEASES_KEY] {
        Past::lives(past.ttl(key).await, LEASE * 10);
    }
}

/// The server's clock was set back: leases end a lease from now at the latest.
#[tokio::test]
async fn a_lease_in_redis_ends_even_if_the_servers_clock_was_set_back() {
    let server = support::redis();
    let (cache, mut connection) = on_redis(&server, &format!("{}?db=3", server.url())).await;
    beat(&cache, "a", 1, &[]).await;
    let in_an_hour = format!("{}:b", chrono::Utc::now().timestamp_millis() + 3_600_000);
    let mut command = redis::cmd("HSET");
    command.arg(format!("{PREFIX}{LEASES_KEY}")).arg(7).arg(in_an_hour);
    let () = command.query_async(&mut connection).await.unwrap();
    let member = format!("1:{}:9:0:works", chrono::Utc::now().timestamp_millis() + 3_600_000);
    let mut command = redis::cmd("HSET");
    command.arg(format!("{PREFIX}{MEMBERS_KEY}")).arg("b").arg(member);
    let () = command.query_async(&mut connection).await.unwrap();
    let view = beat(&cache, "a", 2, &[7]).await;
    assert!(left(&view, 7) <= LEASE);
    Time::Redis(connection).pass(LEASE).await;
    let view = beat(&cache, "a", 3, &[7]).await;
    assert_eq!(view.held_by(&id("a")), shares(&[7]));
    assert_eq!(view.member(&id("b")), None);
}

#[tokio::test]
async fn a_server_without_scripts_and_a_user_without_rights_are_told() {
    let server = support::redis();
    let mut admin = support::redis_connection(&server).await;
    let mut command = redis::cmd("ACL");
    command.arg("SETUSER").arg("warmer").arg("on").arg(">hush");
    command.arg(preheat::adapter::redis::RIGHTS.split_whitespace().collect::<Vec<_>>());
    let () = command.query_async(&mut admin).await.unwrap();
    let url = server.tcp_url().unwrap().replace("redis://", "redis://warmer:hush@");
    let cache = RedisCache::connect(settings(&url)).await.unwrap();
    let error = cache.can_lease().await.unwrap_err();
    assert_eq!(error.kind, ConnectErrorKind::Refused);
    assert!(error.message.contains("; for a fleet, it also needs `+eval +time`, and"), "{error}");

    let mut command = redis::cmd("ACL");
    command.arg("SETUSER").arg("warmer");
    command.arg(preheat::adapter::redis::FLEET_RIGHTS.split_whitespace().collect::<Vec<_>>());
    let () = command.query_async(&mut admin).await.unwrap();
    cache.can_lease().await.unwrap();
    beat(&cache, "a", 1, &[0]).await;
    assert!(cache.release(&release("a", 1, &[(0, None)])).await.unwrap());

    let server = support::redis_with(&[("rename-command", "EVAL \"\"")]);
    let cache = RedisCache::connect(settings(&server.url())).await.unwrap();
    let error = cache.can_lease().await.unwrap_err();
    assert_eq!(error.kind, ConnectErrorKind::Settings);
    assert!(error.message.contains("a fleet needs a cache that runs Lua scripts"), "{error}");
}
