//! A feed that starts, breaks, reconnects and outlives a reload.

use std::sync::Arc;

use preheat::domain::change::ResyncCause;
use preheat::domain::fence::{GLOBAL, fence_key};
use preheat::domain::job::{Job, Jobs, Scope};
use preheat::domain::run::{Outcome, Trigger};

use super::{Fed, Notifier, watching};
use crate::engine::{MINUTE, SECOND, Setup, job, slow_reads, tenants};

#[tokio::test]
async fn a_worker_that_starts_runs_every_job_with_tables_once() {
    let on_start = Job { on_start: true, ..watching("first") };
    let off = Job { enabled: false, ..watching("off") };
    let jobs = [on_start, watching("list"), off, job("without")];
    let fed = Fed::begin(Setup::new(jobs, tenants(2)), Arc::default()).await;
    fed.clock.advance(MINUTE).await;
    assert_eq!(fed.history("first").await, [(Trigger::Startup, Outcome::Ok)], "that one will do");
    assert_eq!(fed.history("list").await, [(Trigger::Change, Outcome::Ok)]);
    assert!(fed.history("off").await.is_empty() && fed.history("without").await.is_empty());
    assert!(fed.shows("preheat_change_feed_connected 1"));
}

#[tokio::test]
async fn after_a_reconnect_every_job_with_tables_runs_once_and_nothing_before_has_the_last_word() {
    let jobs = [watching("list"), watching("other"), job("without")];
    let world = Fed::of(Setup::new(jobs, tenants(2))).await;
    let fences = [world.fence(&fence_key("t0")).await, world.fence(GLOBAL).await];
    world.notifier.set_away(true);
    world.notifier.break_off();
    world.clock.advance(SECOND * 20).await;
    assert!(world.shows("preheat_change_feed_connected 0"));
    let tries = world.notifier.connects.now();
    assert!((5..20).contains(&tries), "{tries} tries");
    world.commit("list", 2, &["t0"]);
    world.commit("other", 3, &["t1"]);
    world.clock.advance(SECOND).await;
    assert!(!world.is("list:t0", "[2]"), "nobody heard of it");
    world.notifier.set_away(false);
    world.clock.advance(SECOND * 6).await;
    assert!(world.shows("preheat_change_feed_connected 1"));
    assert!(world.is("list:t0", "[2]") && world.is("other:t1", "[3]"));
    assert_ne!(world.fence(&fence_key("t0")).await, fences[0]);
    assert_ne!(world.fence(GLOBAL).await, fences[1]);
    for name in ["list", "other"] {
        assert_eq!(world.history(name).await, [(Trigger::Change, Outcome::Ok); 2]);
    }
    assert!(world.history("without").await.is_empty());
    world.commit("list", 4, &["t0"]);
    world.tell("list", &["t0"]);
    world.rests().await;
    assert!(world.is("list:t0", "[4]"), "and the feed goes on");
}

#[tokio::test]
async fn a_feed_that_breaks_as_soon_as_it_is_there_does_not_keep_the_jobs_running() {
    let world = Fed::of(Setup::new([watching("list")], tenants(2))).await;
    for _ in 0..600 {
        world.notifier.break_off();
        world.clock.advance(SECOND / 10).await;
    }
    let connects = world.notifier.connects.now();
    assert!(connects < 60, "{connects} connects in a minute");
    let runs = world.history("list").await.len();
    assert!((2..=13).contains(&runs), "{runs} runs in a minute");
}

#[tokio::test]
async fn a_worker_starts_without_its_feed_and_gets_it_later() {
    let notifier = Arc::new(Notifier::default());
    notifier.set_away(true);
    let jobs = [watching("list"), Job { on_start: true, ..job("without") }];
    let fed = Fed::begin(Setup::new(jobs, tenants(2)), notifier).await;
    fed.rests().await;
    assert!(fed.value("without:t0").is_some() && fed.value("list:t0").is_none());
    assert!(fed.shows("preheat_change_feed_connected 0"));
    fed.notifier.set_away(false);
    fed.clock.advance(SECOND * 6).await;
    assert!(fed.value("list:t0").is_some());
}

#[tokio::test]
async fn a_worker_that_drains_begins_nothing_for_changes() {
    let world = Fed::of(Setup::new([watching("list")], tenants(2))).await;
    slow_reads(&world, SECOND);
    world.commit("list", 2, &["t0", "t1"]);
    world.tell("list", &["t0"]);
    world.rests().await;
    world.tell("list", &["t1"]);
    world.rests().await;
    let reads = world.reads().len();
    world.stops.drain.cancel();
    world.rests().await;
    world.tell("list", &["t1"]);
    world.ended().await;
    assert_eq!(world.reads().len(), reads, "nothing new begins");
    assert!(world.is("list:t0", "[2]"), "what was under way is finished");
}

#[tokio::test]
async fn a_reload_keeps_what_is_pending_of_a_changed_job_and_drops_that_of_one_that_is_gone() {
    let world = Fed::of(Setup::new([watching("list"), watching("gone")], tenants(2))).await;
    slow_reads(&world, SECOND);
    for name in ["list", "gone"] {
        world.commit(name, 2, &["t0", "t1"]);
        world.tell(name, &["t0"]);
    }
    world.rests().await;
    for name in ["list", "gone"] {
        world.tell(name, &["t1"]);
    }
    world.rests().await;
    let changed = Job { ttl: 20 * MINUTE, ..watching("list") };
    world.handle.replace(Jobs::from([(changed.name.clone(), Arc::new(changed))])).await;
    world.clock.advance(SECOND * 3).await;
    assert!(world.is("list:t1", "[2]"));
    assert_eq!(world.cache.ttl("list:t1"), Some(20 * MINUTE), "as the job is now");
    assert!(world.is("gone:t0", "[2]"), "a run that was under way ends");
    assert!(!world.is("gone:t1", "[2]"));

    let disabled = Job { enabled: false, ..watching("list") };
    world.handle.replace(Jobs::from([(disabled.name.clone(), Arc::new(disabled))])).await;
    let reads = world.reads().len();
    world.tell("list", &["t1"]);
    world.clock.advance(MINUTE).await;
    assert_eq!(world.reads().len(), reads, "a job that is disabled has no changes");
}

#[tokio::test]
async fn it_is_known_which_tables_changed_and_why_all_tenants_were_last_warmed() {
    let fleet = Job { scope: Scope::Global, ..watching("fleet") };
    let jobs = [watching("list"), watching("other"), fleet, job("without")];
    let world = Fed::of(Setup::new(jobs, tenants(3))).await;
    let resync = || {
        let resync = world.metrics.figures().last_resync().unwrap();
        (resync.cause, resync.jobs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    };
    let connected = (ResyncCause::FeedConnected, "fleet list other".to_owned());
    assert_eq!(resync(), connected);
    world.tell("list", &["t0"]);
    world.tell("list", &["t1"]);
    world.tell_all("fleet", None);
    world.rests().await;
    assert_eq!(resync(), connected, "a change of a job without tenants is nothing special");
    world.tell_all("other", None);
    world.rests().await;
    assert_eq!(resync(), (ResyncCause::AnyTenant, "other".to_owned()));
    world.cache.restart();
    world.clock.advance(MINUTE).await;
    assert_eq!(resync(), (ResyncCause::CacheLost, "fleet list other without".to_owned()));
    let heard = world.metrics.figures().tables();
    let heard: Vec<_> =
        heard.iter().map(|(table, heard)| (table.as_str(), heard.notifications)).collect();
    assert_eq!(heard, [("fleet", 1), ("list", 2), ("other", 1)]);
}
