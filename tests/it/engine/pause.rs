//! Paused jobs: only people start their runs, and nothing that happened meanwhile is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use preheat::domain::change::{Changed, Touched};
use preheat::domain::job::{Job, JobName, Jobs, Table};
use preheat::domain::pause::{Note, Pause, Pauses};
use preheat::domain::run::{Outcome, Trigger};
use preheat::domain::share::{Share, Shares};
use preheat::domain::tenant::TenantId;
use preheat::domain::who::Who;
use preheat::engine::ports::{Clock, PauseStore};
use preheat::engine::run::ownership::Ownership;
use preheat::engine::schedule::handle::JobSelection;
use preheat::engine::schedule::pauses::{PauseBook, PauseError, READ_EVERY};
use preheat::engine::schedule::status::Readiness;
use tokio_util::sync::CancellationToken;

use super::{MINUTE, SECOND, Said, Setup, World, a_row_each, job, slow_reads, start, tenants};
use crate::support::memory::MemoryPauses;

fn name(text: &str) -> JobName {
    JobName::parse(text).unwrap()
}

fn one(text: &str) -> JobSelection {
    JobSelection::One(name(text))
}

fn ann() -> Who {
    Who::named("Ann").unwrap()
}

fn pause(world: &World, note: &str, length: Option<Duration>) -> Pause {
    let since = world.clock.now();
    let until = length.map(|length| since + length);
    Pause { note: Note::parse(note).unwrap(), by: ann(), since, until }
}

/// A world whose pauses are kept in this store.
struct Paused {
    world: World,
    book: Arc<PauseBook>,
}

impl Paused {
    fn start(setup: Setup, store: &MemoryPauses) -> Self {
        let mut world = setup.start();
        let store: Arc<dyn PauseStore> = Arc::new(store.clone());
        let metrics = Arc::clone(&world.metrics);
        let book = PauseBook::new(store, world.handle.clone(), Pauses::new(), metrics, READ_EVERY);
        world.tasks.spawn(Arc::clone(&book).run(CancellationToken::new()));
        Self { world, book }
    }

    async fn pause(&self, jobs: JobSelection, note: &str, length: Option<Duration>) -> bool {
        let pause = pause(&self.world, note, length);
        self.book.pause(jobs, pause).await.unwrap().is_kept
    }

    async fn resume(&self, jobs: JobSelection) {
        self.book.resume(jobs, ann()).await.unwrap();
        self.world.settle().await;
    }

    fn note(&self, job: &str) -> Option<String> {
        self.world.status(job).pause.map(|pause| pause.note.to_string())
    }
}

fn setup(jobs: impl IntoIterator<Item = Job>) -> Setup {
    Setup::new(jobs, tenants(4))
}

fn watched(name: &str) -> Job {
    let tables = vec![Table::named("items")];
    Job { tables, ..job(name) }
}

async fn change(world: &World, job: &str, tenant: &str) {
    let touched = Touched::Tenants(BTreeSet::from([TenantId::new(tenant)]));
    let jobs = BTreeMap::from([(name(job), touched)]);
    world.handle.changed(Changed::Jobs { jobs, heard_at: world.clock.monotonic() }).await;
    world.settle().await;
}

#[tokio::test]
async fn only_people_start_the_runs_of_a_paused_job() {
    let said = Said::default();
    let _heard = said.hear();
    let paused = Paused::start(setup([job("list"), job("other")]), &MemoryPauses::default());
    let world = &paused.world;
    world.settle().await;
    assert!(paused.pause(one("list"), "vet migration", None).await);
    let status = world.status("list");
    assert_eq!(status.next_due_at, None);
    assert_eq!(status.pause.unwrap(), pause(world, "vet migration", None));
    assert!(said.text().contains("job `list` is paused by Ann until resumed: vet migration"));
    let since = f64::from(i32::try_from(start().timestamp()).unwrap());
    let metric = "preheat_job_paused_since_timestamp_seconds";
    assert!(world.shows(&format!("{metric}{{job_name=\"list\"}} {since:.1}")));

    world.clock.advance(31 * MINUTE).await;
    assert!(world.status("list").last_run.is_none());
    assert_eq!(world.status("other").last_run.unwrap().trigger, Trigger::Schedule);
    let skipped = "preheat_runs_skipped_total{job_name=\"list\",reason=\"paused\"} 3";
    assert!(world.shows(skipped), "{}", world.metrics.encode());

    let run = world.warm("list").await;
    assert_eq!((run.trigger, run.outcome), (Trigger::Request, Outcome::Ok));
    assert_eq!(paused.note("list").as_deref(), Some("vet migration"));

    world.clock.advance(MINUTE).await;
    paused.resume(one("list")).await;
    let last = world.status("list").last_run.unwrap();
    assert_eq!(last.trigger, Trigger::Schedule, "one run makes up for the three");
    assert_eq!(last.due_at, world.clock.now());
    assert_eq!(paused.note("list"), None);
    assert!(world.status("list").next_due_at.is_some());
    assert!(!world.metrics.encode().contains("preheat_job_paused_since_timestamp_seconds{"));
    assert!(said.text().contains("job `list` is resumed by Ann"), "{}", said.text());
    let reads = world.reads().len();
    world.clock.advance(MINUTE).await;
    assert_eq!(world.reads().len(), reads);
}

#[tokio::test]
async fn a_short_pause_that_held_nothing_back_starts_nothing() {
    let paused = Paused::start(setup([job("list")]), &MemoryPauses::default());
    paused.world.settle().await;
    paused.pause(one("list"), "look", None).await;
    paused.world.clock.advance(MINUTE).await;
    paused.resume(one("list")).await;
    assert!(paused.world.status("list").last_run.is_none());
}

#[tokio::test]
async fn changes_wait_for_the_end_of_the_pause_and_their_wait_is_no_lag() {
    let paused = Paused::start(setup([watched("list")]), &MemoryPauses::default());
    let world = &paused.world;
    world.set_rows("list", a_row_each(4));
    world.warm("list").await;
    paused.pause(one("list"), "import", None).await;
    let before = world.reads().len();
    for _ in 0..3 {
        change(world, "list", "t2").await;
    }
    world.clock.advance(5 * MINUTE).await;
    assert_eq!(world.reads().len(), before);

    paused.resume(one("list")).await;
    world.clock.advance(SECOND).await;
    assert_eq!(world.reads()[before..], [vec!["t2".to_owned()]]);
    assert!(world.shows("preheat_change_lag_seconds_bucket{le=\"1.0\"} 1"));
}

#[tokio::test]
async fn a_cache_that_everything_may_have_left_is_warmed_after_the_pause() {
    let paused = Paused::start(setup([watched("list")]), &MemoryPauses::default());
    let world = &paused.world;
    world.settle().await;
    paused.pause(one("list"), "import", None).await;
    let moved_at = world.clock.monotonic();
    world.handle.changed(Changed::Everything { moved_at }).await;
    world.clock.advance(MINUTE).await;
    assert!(world.reads().is_empty());
    paused.resume(one("list")).await;
    world.clock.advance(SECOND).await;
    let last = world.status("list").last_run.unwrap();
    assert_eq!((last.trigger, last.report.tenants.ok), (Trigger::Change, 4));
}

#[tokio::test]
async fn a_pause_ends_by_itself_when_it_says_so() {
    let said = Said::default();
    let _heard = said.hear();
    let store = MemoryPauses::default();
    let paused = Paused::start(setup([job("list")]), &store);
    let world = &paused.world;
    world.settle().await;
    paused.pause(one("list"), "for a moment", Some(15 * MINUTE)).await;
    world.clock.advance(14 * MINUTE).await;
    assert!(world.status("list").last_run.is_none());
    world.clock.advance(MINUTE + SECOND).await;
    assert_eq!(paused.note("list"), None);
    let last = world.status("list").last_run.unwrap();
    assert_eq!(last.trigger, Trigger::Schedule);
    assert!(last.started_at - start() < TimeDelta::minutes(16));
    assert!(said.text().contains("the pause of job `list` is over"), "{}", said.text());

    // What the store still has of it does not come back.
    world.clock.advance(3 * READ_EVERY).await;
    assert_eq!(paused.note("list"), None);
    let over = Pause { until: Some(world.clock.now()), ..pause(world, "late", None) };
    assert_eq!(paused.book.pause(one("list"), over).await.unwrap_err(), PauseError::Over);
}

#[tokio::test]
async fn a_pause_outlives_the_worker_its_job_files_and_the_job_itself() {
    let list = || Job { on_start: true, required: true, ..job("list") };
    let (mut world, engine) = setup([list()]).build();
    let pauses = Pauses::from([(name("list"), pause(&world, "migration", None))]);
    let engine = engine.with_pauses(pauses);
    world.tasks.spawn(engine.run());
    world.clock.advance(21 * MINUTE).await;
    assert!(world.status("list").last_run.is_none(), "neither at the start nor when it is due");
    let readiness = world.handle.status().readiness(world.clock.now(), MINUTE);
    assert_eq!(readiness, Readiness::Ready, "nobody waits for a paused job");

    let files = |jobs: Vec<Job>| -> Jobs {
        jobs.into_iter().map(|job| (job.name.clone(), Arc::new(job))).collect()
    };
    let changed = Job { ttl: 40 * MINUTE, ..list() };
    for jobs in [vec![changed.clone()], vec![job("other")], vec![changed]] {
        world.handle.replace(files(jobs)).await;
        world.clock.advance(MINUTE).await;
    }
    let status = world.status("list");
    assert_eq!(status.pause.unwrap().note.as_str(), "migration");
    assert!(status.last_run.is_none());
    assert!(world.metrics.encode().contains("paused_since_timestamp_seconds{job_name=\"list\"}"));
}

#[tokio::test]
async fn runs_that_wait_are_given_up_unless_a_person_asked_for_them() {
    let paused = Paused::start(setup([job("list")]), &MemoryPauses::default());
    let world = &paused.world;
    slow_reads(world, MINUTE);
    world.clock.advance((10 * MINUTE).checked_sub(30 * SECOND).unwrap()).await;
    // One under way, one of the schedule that waits for it, one that a person asked for.
    let going = world.ask_for("list", Some(&["t1"])).await;
    world.clock.advance(31 * SECOND).await;
    let person = world.ask_for("list", Some(&["t3"])).await;
    assert_eq!(world.status("list").queued.len(), 2);
    paused.pause(one("list"), "stop", None).await;
    let queued = world.status("list").queued;
    assert_eq!(queued.iter().map(|run| run.trigger).collect::<Vec<_>>(), [Trigger::Request]);
    assert_eq!(world.finish(going).await.outcome, Outcome::Ok, "it ends as it began");
    assert_eq!(world.finish(person).await.outcome, Outcome::Ok);
    paused.resume(one("list")).await;
    let running = world.status("list").running.unwrap();
    assert_eq!(running.trigger, Trigger::Schedule, "it makes up for the one that was given up");
}

#[tokio::test]
async fn pausing_all_leaves_the_pauses_of_others_alone() {
    let jobs = ["a", "b", "c"].map(job);
    let paused = Paused::start(setup(jobs), &MemoryPauses::default());
    paused.world.settle().await;
    paused.pause(one("b"), "own", None).await;
    let of_all = pause(&paused.world, "all", Some(MINUTE));
    let answer = paused.book.pause(JobSelection::All, of_all).await.unwrap();
    assert_eq!(answer.jobs.len(), 3);
    let notes = || ["a", "b", "c"].map(|job| paused.note(job).unwrap_or_default());
    assert_eq!(notes(), ["all", "own", "all"]);
    paused.world.clock.advance(MINUTE + SECOND).await;
    assert_eq!(notes(), ["", "own", ""]);

    // A new note for the same pause; it goes on since the same moment.
    let since = paused.world.status("b").pause.unwrap().since;
    paused.pause(one("b"), "still", None).await;
    let changed = paused.world.status("b").pause.unwrap();
    assert_eq!((changed.note.as_str(), changed.since), ("still", since));
    for _twice in 0..2 {
        paused.resume(JobSelection::All).await;
        assert_eq!(notes(), ["", "", ""]);
    }
    let unknown = paused.book.resume(one("zzz"), ann()).await.unwrap_err();
    assert_eq!(unknown, PauseError::UnknownJob(name("zzz")));
}

#[tokio::test]
async fn replicas_follow_the_last_change_and_do_not_fight() {
    let store = MemoryPauses::default();
    let clock = setup([]).clock;
    let replica = || Setup { clock: clock.clone(), ..setup([job("list")]) };
    let (one_world, other) = (Paused::start(replica(), &store), Paused::start(replica(), &store));
    one_world.world.settle().await;
    one_world.pause(one("list"), "first", None).await;
    clock.advance(READ_EVERY + SECOND).await;
    assert_eq!(other.note("list").as_deref(), Some("first"));
    other.pause(one("list"), "second", Some(MINUTE)).await;
    clock.advance(READ_EVERY + SECOND).await;
    assert_eq!(one_world.note("list").as_deref(), Some("second"));
    clock.advance(MINUTE).await;
    assert_eq!((one_world.note("list"), other.note("list")), (None, None));
    one_world.pause(one("list"), "third", None).await;
    clock.advance(READ_EVERY + SECOND).await;
    other.resume(one("list")).await;
    for _ in 0..5 {
        clock.advance(READ_EVERY).await;
        assert_eq!(other.note("list"), None);
    }
    assert_eq!(one_world.note("list"), None);
    assert!(store.names().is_empty());
}

#[tokio::test]
async fn a_pause_is_in_effect_while_its_store_is_away_and_kept_when_it_is_back() {
    let said = Said::default();
    let _heard = said.hear();
    let store = MemoryPauses::default();
    let paused = Paused::start(setup([job("list")]), &store);
    paused.world.settle().await;
    store.set_away(true);
    assert!(!paused.pause(one("list"), "the database is down", None).await);
    paused.world.clock.advance(15 * MINUTE).await;
    assert!(paused.world.status("list").last_run.is_none());
    assert!(store.names().is_empty());
    store.set_away(false);
    paused.world.clock.advance(READ_EVERY + SECOND).await;
    assert_eq!(store.names(), ["list"]);
    assert_eq!(paused.note("list").as_deref(), Some("the database is down"));
    let text = said.text();
    assert_eq!(text.matches("could not read or keep the pauses").count(), 1, "{text}");
    assert_eq!(text.matches("can be read and kept again").count(), 1, "{text}");

    // An emptied cache takes the pauses with it, and gets them back.
    store.lose();
    paused.world.clock.advance(READ_EVERY + SECOND).await;
    assert_eq!(store.names(), ["list"]);
    assert_eq!(paused.note("list").as_deref(), Some("the database is down"));
}

#[tokio::test]
async fn a_paused_job_starts_for_shares_that_were_taken_when_it_is_resumed() {
    let first = Share::of_tenant("t0");
    let list = Job { on_start: true, ..job("list") };
    let ownership = Ownership::of(first.into());
    let paused = Paused::start(Setup { ownership, ..setup([list]) }, &MemoryPauses::default());
    let world = &paused.world;
    world.clock.advance(SECOND).await;
    assert!(paused.pause(one("list"), "migration", None).await);
    world.runner.ownership.take(Shares::ALL);
    world.clock.advance(SECOND).await;
    let read = || world.reads().into_iter().flatten().collect::<BTreeSet<_>>();
    assert!(!read().contains("t1"));
    paused.resume(one("list")).await;
    world.clock.advance(SECOND).await;
    assert_eq!(read().len(), 4);
}
