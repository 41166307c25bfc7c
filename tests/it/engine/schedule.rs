//! When runs start, when they do not, and how the engine stops.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::TimeDelta;
use chrono_tz::Tz;
use futures::FutureExt;
use preheat::domain::job::{Job, JobName, Overlap, Scope};
use preheat::domain::report::FailureKind;
use preheat::domain::run::{Outcome, RunFilter, RunId, Trigger};
use preheat::domain::schedule::Schedule;
use preheat::engine::ports::{Clock, SourceErrorKind};
use preheat::engine::schedule::handle::{JobSelection, RequestError, RunRequest, RunView, Ticket};
use preheat::engine::schedule::status::{Phase, Readiness};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Count, MINUTE, SECOND, Setup, World, a_row_each, at, ids, job, many, ready, refused, request,
    slow_reads, start, tenants,
};

fn world(jobs: impl IntoIterator<Item = Job>) -> World {
    Setup::new(jobs, tenants(4)).start()
}

fn runs_of(world: &World, job: &str, trigger: Trigger) -> usize {
    let job = name(job);
    let history =
        world.handle.runs(&RunFilter::newest(Some(&job), 1_000)).now_or_never().unwrap().unwrap();
    history.runs.iter().filter(|record| record.trigger == trigger).count()
}

fn name(text: &str) -> JobName {
    JobName::parse(text).unwrap()
}

#[tokio::test]
async fn a_job_runs_at_its_start_where_it_says_so_and_then_when_it_is_due() {
    let world = world([
        Job { on_start: true, ..job("eager") },
        job("patient"),
        Job { on_start: true, enabled: false, ..job("off") },
    ]);
    world.settle().await;
    let eager = world.status("eager");
    let first = eager.last_run.unwrap();
    assert_eq!((first.trigger, first.outcome), (Trigger::Startup, Outcome::Ok));
    assert!(world.status("patient").last_run.is_none());
    assert_eq!(eager.next_due_at, Some(at("2026-03-01T00:10:00Z")));

    world.clock.advance(10 * MINUTE + SECOND).await;
    for name in ["eager", "patient"] {
        let status = world.status(name);
        let last = status.last_run.unwrap();
        assert_eq!((last.trigger, last.outcome), (Trigger::Schedule, Outcome::Ok), "{name}");
        assert_eq!(last.due_at, at("2026-03-01T00:10:00Z"), "{name}");
        assert_eq!(status.next_due_at, Some(at("2026-03-01T00:20:00Z")), "{name}");
        assert_eq!(status.last_success_at, Some(last.finished_at), "{name}");
        assert!(world.shows(&format!("preheat_fire_lag_seconds_count{{job_name=\"{name}\"}} 1")));
    }
    let off = world.status("off");
    assert!(off.last_run.is_none() && off.next_due_at.is_none());
}

#[tokio::test]
async fn a_cron_job_is_due_by_the_clock_of_its_zone() {
    let schedule = Schedule::parse("0 30 9 * * *", Tz::Asia__Tokyo).unwrap();
    let world = world([Job { schedule, ..job("morning") }]);
    world.clock.advance(31 * MINUTE).await;
    let status = world.status("morning");
    assert_eq!(status.last_run.unwrap().due_at, at("2026-03-01T00:30:00Z"));
    assert_eq!(status.next_due_at, Some(at("2026-03-02T00:30:00Z")));
}

#[tokio::test]
async fn the_lag_of_a_run_is_the_time_from_when_it_was_due() {
    let world = world([job("list")]);
    world.clock.advance(9 * MINUTE).await;
    world.clock.stall(3 * MINUTE).await;
    world.until("it ran", |world| world.status("list").last_run.is_some()).await;
    assert!(
        world.shows("preheat_fire_lag_seconds_sum{job_name=\"list\"} 120.0"),
        "due at ten past"
    );
}

#[tokio::test]
async fn hazard_24_a_due_time_is_skipped_while_a_run_goes_on_and_is_counted() {
    let world = world([Job { timeout: 60 * MINUTE, ..job("slow") }]);
    slow_reads(&world, 25 * MINUTE);
    world.clock.advance(39 * MINUTE).await;
    assert_eq!(runs_of(&world, "slow", Trigger::Schedule), 1);
    assert!(world.shows("preheat_runs_skipped_total{job_name=\"slow\",reason=\"overlap\"} 2"));
    let next = world.status("slow").next_due_at;
    assert_eq!(next, Some(at("2026-03-01T00:40:00Z")));
    world.clock.advance(2 * MINUTE).await;
    assert!(world.status("slow").running.is_some());
}

#[tokio::test]
async fn of_a_job_that_queues_one_run_waits_however_many_due_times_pass() {
    let world = world([Job { overlap: Overlap::Queue, timeout: 60 * MINUTE, ..job("slow") }]);
    slow_reads(&world, 25 * MINUTE);
    world.clock.advance(34 * MINUTE).await;
    let status = world.status("slow");
    assert!(status.running.is_some());
    let waiting: Vec<_> = status.queued.iter().map(|run| run.due_at).collect();
    assert_eq!(waiting, [at("2026-03-01T00:20:00Z")]);
    assert!(world.shows("preheat_runs_skipped_total{job_name=\"slow\",reason=\"overlap\"} 1"));
    world
        .until("the one that waited runs", |world| runs_of(world, "slow", Trigger::Schedule) == 2)
        .await;
}

#[tokio::test]
async fn a_run_for_some_tenants_does_not_take_the_place_of_the_one_that_is_due() {
    let world = world([Job { timeout: 60 * MINUTE, ..job("slow") }]);
    slow_reads(&world, 15 * MINUTE);
    let some = world.ask_for("slow", Some(&["t1"])).await;
    world.clock.advance(11 * MINUTE).await;
    assert_eq!(world.status("slow").queued.len(), 1);
    assert_eq!(world.finish(some).await.report.tenants.total, 1);
    world.until("the due one ran", |world| runs_of(world, "slow", Trigger::Schedule) == 1).await;
    assert_eq!(world.status("slow").last_run.unwrap().report.tenants.total, 4);
}

#[tokio::test]
async fn hazard_23_any_number_of_missed_due_times_is_one_run() {
    let world = world([job("list"), Job { overlap: Overlap::Queue, ..job("queues") }]);
    world.clock.advance(5 * MINUTE).await;
    world.clock.stall(Duration::from_hours(3)).await;
    world.clock.advance(4 * MINUTE).await;
    for name in ["list", "queues"] {
        assert_eq!(runs_of(&world, name, Trigger::Schedule), 1, "{name}");
        let status = world.status(name);
        assert_eq!(status.last_run.unwrap().due_at, at("2026-03-01T00:10:00Z"), "{name}");
        assert_eq!(status.next_due_at, Some(at("2026-03-01T03:10:00Z")), "{name}");
    }
}

#[tokio::test]
async fn hazard_22_jobs_run_without_the_bell_and_health_says_that_it_is_silent() {
    let world = world([job("list")]);
    world.clock.advance(5 * SECOND).await;
    assert!(world.handle.health().is_alive());
    world.rings.store(false, Ordering::Relaxed);
    world.clock.advance(12 * SECOND).await;
    let health = world.handle.health();
    assert!(!health.scheduler.is_alive() && health.engine.is_alive() && !health.is_alive());
    assert!(world.shows("preheat_scheduler_silent 1"));
    world.clock.advance(Duration::from_hours(1)).await;
    assert_eq!(runs_of(&world, "list", Trigger::Schedule), 6);
    world.rings.store(true, Ordering::Relaxed);
    world.clock.advance(3 * SECOND).await;
    assert!(world.handle.health().is_alive());
    assert!(world.shows("preheat_scheduler_silent 0"));
}

#[tokio::test]
async fn hazard_22_after_the_process_was_stopped_every_job_goes_on_and_no_alarm_is_raised() {
    let every = |name, interval| Job { schedule: Schedule::Every(interval), ..job(name) };
    let world = world([every("a", SECOND), every("b", MINUTE), every("c", 10 * MINUTE)]);
    let runs = || ["a", "b", "c"].map(|name| runs_of(&world, name, Trigger::Schedule));
    world.clock.advance(2 * MINUTE + SECOND / 2).await;
    assert_eq!(runs(), [120, 2, 0]);
    world.clock.stall(Duration::from_hours(2)).await;
    world.settle().await;
    assert_eq!(runs(), [121, 3, 1], "one to catch up");
    world.clock.advance(8 * MINUTE).await;
    assert_eq!(runs(), [121 + 480, 3 + 8, 1 + 1], "then each when it is due");
}

#[tokio::test]
async fn the_silence_of_a_process_that_was_stopped_is_not_that_of_the_scheduler() {
    let world = world([job("list")]);
    world.clock.advance(5 * SECOND).await;
    world.rings.store(false, Ordering::Relaxed);
    world.clock.stall(Duration::from_hours(2)).await;
    assert!(world.handle.health().is_alive(), "{:?}", world.handle.health());
    assert!(world.shows("preheat_scheduler_silent 0"));
    world.clock.advance(12 * SECOND).await;
    assert!(!world.handle.health().is_alive(), "if it stays silent, it is");
}

#[tokio::test]
async fn a_wall_clock_that_is_set_back_loses_no_due_time() {
    let world = world([job("list")]);
    world.clock.advance(11 * MINUTE).await;
    assert_eq!(runs_of(&world, "list", Trigger::Schedule), 1);
    world.clock.set_by(TimeDelta::hours(-5));
    world.clock.advance(2 * SECOND).await;
    assert_eq!(world.status("list").next_due_at, Some(at("2026-02-28T19:20:00Z")));
    world.clock.advance(10 * MINUTE).await;
    assert_eq!(runs_of(&world, "list", Trigger::Schedule), 2);
    assert!(world.handle.health().is_alive());
}

#[tokio::test]
async fn a_wall_clock_that_is_set_forward_is_one_run() {
    let world = world([job("list")]);
    world.clock.advance(MINUTE).await;
    world.clock.set_by(TimeDelta::days(3));
    world.clock.advance(5 * MINUTE).await;
    assert_eq!(runs_of(&world, "list", Trigger::Schedule), 1);
    assert!(!world.status("list").last_run.unwrap().report.late, "no key grew older by that");
}

#[tokio::test]
async fn a_request_that_cannot_be_taken_on_says_why() {
    let fleet = Job { scope: Scope::Global, ..job("fleet") };
    let world = world([job("list"), Job { enabled: false, ..job("off") }, fleet]);
    let cases = [
        (request("nothing", None), "there is no job `nothing`"),
        (request("off", None), "job `off` is disabled: its file says `enabled = false`"),
        (
            request("fleet", Some(&["t1"])),
            "job `fleet` warms all tenants together: it takes no tenants",
        ),
    ];
    for (request, expected) in cases {
        let error = world.handle.request(request).await.unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    let all = |tenants: Option<&[&str]>| RunRequest {
        jobs: JobSelection::All,
        ..request("list", tenants)
    };
    let names = |tickets: Vec<Ticket>| {
        tickets.iter().map(|ticket| ticket.run.job.to_string()).collect::<Vec<_>>()
    };
    let tickets = world.handle.request(all(None)).await.unwrap();
    assert_eq!(names(tickets), ["fleet", "list"]);
    let tickets = world.handle.request(all(Some(&["t1"]))).await.unwrap();
    assert_eq!(names(tickets), ["list"]);
}

#[tokio::test]
async fn requests_for_the_same_share_the_run_that_waits() {
    let world = world([job("list")]);
    slow_reads(&world, SECOND);
    let running = world.ask("list").await;
    assert!(running.run.started_at.is_none(), "as it was when it was taken on");
    assert!(world.status("list").running.is_some());
    let (first, twin) = (world.ask("list").await, world.ask("list").await);
    let other = world.ask_for("list", Some(&["t1"])).await;
    let other_twin = world.ask_for("list", Some(&["t1"])).await;
    assert_ne!(running.run.id, first.run.id, "the one under way has read already");
    assert_eq!(first.run.id, twin.run.id);
    assert_ne!(first.run.id, other.run.id);
    assert_eq!(other.run.id, other_twin.run.id);
    let mut ended = HashSet::new();
    for ticket in [running, first, twin, other, other_twin] {
        let id = ticket.run.id;
        assert_eq!(world.finish(ticket).await.id, id);
        ended.insert(id);
    }
    assert_eq!(ended.len(), 3);
}

#[tokio::test]
async fn a_full_queue_refuses_a_request_whole() {
    let world = world([job("list"), job("other")]);
    slow_reads(&world, MINUTE);
    world.ask("list").await;
    for id in ids(0..16) {
        world.ask_for("list", Some(&[&id])).await;
    }
    let one_more = request("list", Some(&["t99"]));
    let full = RequestError::QueueFull(name("list"));
    assert_eq!(world.handle.request(one_more).await.unwrap_err(), full);
    assert!(world.shows("preheat_runs_skipped_total{job_name=\"list\",reason=\"queue_full\"} 1"));
    let all = RunRequest { jobs: JobSelection::All, tenants: None };
    assert_eq!(world.handle.request(all).await.unwrap_err(), full);
    let other = world.status("other");
    assert!(other.running.is_none() && other.queued.is_empty(), "nothing of it was taken on");
    let twin = world.ask_for("list", Some(&["t3"])).await;
    assert_eq!(world.finish(twin).await.report.tenants.total, 1);
}

#[tokio::test]
async fn more_requests_at_once_than_the_loop_can_hold_are_told_to_come_back() {
    let (world, engine) = Setup::new([job("list")], tenants(1)).build();
    let mut waiting = Vec::new();
    for _ in 0..64 {
        let handle = world.handle.clone();
        let mut asked = Box::pin(async move { handle.request(request("list", None)).await });
        assert!(asked.as_mut().now_or_never().is_none());
        waiting.push(asked);
    }
    let refused = world.handle.request(request("list", None)).await;
    assert_eq!(refused.unwrap_err(), RequestError::Busy);
    drop(engine);
    for asked in waiting {
        assert_eq!(asked.await.unwrap_err(), RequestError::Draining);
    }
    let refused = world.handle.request(request("list", None)).await;
    assert_eq!(refused.unwrap_err(), RequestError::Draining);
}

#[tokio::test]
async fn a_ticket_of_an_engine_that_is_gone_ends_without_a_record() {
    let (world, engine) = Setup::new([job("list")], tenants(1)).build();
    slow_reads(&world, SECOND);
    let running = tokio::task::JoinSet::from_iter([engine.run()]);
    let ticket = world.ask("list").await;
    drop(running);
    assert!(ticket.finished().await.is_none());
}

#[tokio::test]
async fn a_run_is_found_by_its_id_through_its_whole_life() {
    let world = world([job("list")]);
    slow_reads(&world, SECOND);
    let (first, second) = (world.ask("list").await, world.ask("list").await);
    let (first_id, second_id) = (first.run.id, second.run.id);
    let view = |id| world.handle.run(id).now_or_never().unwrap().unwrap();
    assert!(matches!(view(first_id), Some(RunView::Active(run)) if run.started_at.is_some()));
    assert!(matches!(view(second_id), Some(RunView::Active(run)) if run.started_at.is_none()));
    world.finish(first).await;
    assert!(matches!(view(first_id), Some(RunView::Finished(record)) if record.id == first_id));
    world.finish(second).await;
    for id in [first_id, second_id] {
        assert!(matches!(view(id), Some(RunView::Finished(record)) if record.id == id));
    }
    assert!(view(RunId(Uuid::nil())).is_none());
}

#[tokio::test]
async fn the_status_is_published_when_something_changed_and_only_then() {
    let world = world([job("list")]);
    world.settle().await;
    let mut status = world.handle.subscribe();
    status.mark_unchanged();
    world.clock.advance(5 * MINUTE).await;
    assert!(!status.has_changed().unwrap(), "five minutes in which nothing happened");
    let record = world.warm("list").await;
    assert!(status.has_changed().unwrap());
    let seen = status.borrow_and_update().clone();
    let last = seen.jobs[&name("list")].last_run.clone();
    assert_eq!(last.unwrap().id, record.id, "whoever waited for the run finds it");
}

#[tokio::test]
async fn hazard_30_draining_finishes_the_batches_in_flight_and_begins_no_more() {
    let list = Job { batch: many(1), concurrency: Some(many(2)), ..job("list") };
    let world = Setup::new([list, job("idle")], tenants(10)).start();
    world.set_rows("list", a_row_each(10));
    slow_reads(&world, MINUTE);
    let (running, waiting) = (world.ask("list").await, world.ask("list").await);
    world.clock.advance(90 * SECOND).await;
    world.stops.drain.cancel();
    world.settle().await;

    assert_eq!(world.handle.status().phase, Phase::Draining);
    let waiting = waiting.finished().await.unwrap();
    assert_eq!(waiting.outcome, Outcome::Cancelled);
    assert_eq!(waiting.report.failures[0].message, "the worker stopped before the run began");
    let refused = world.handle.request(request("idle", None)).await;
    assert_eq!(refused.unwrap_err(), RequestError::Draining);
    assert!(world.shows("preheat_runs_skipped_total{job_name=\"idle\",reason=\"draining\"} 1"));
    let readiness = world.handle.status().readiness(world.handle.now(), MINUTE);
    assert_eq!(readiness, Readiness::Draining);

    let running = world.finish(running).await;
    assert_eq!(running.outcome, Outcome::Cancelled);
    assert_eq!(running.duration(), 2 * MINUTE, "the batches in flight ended, and no more began");
    assert_eq!((running.report.tenants.ok, running.report.tenants.left()), (4, 6));
    let [failure] = running.report.failures.as_slice() else { panic!("{running:?}") };
    assert_eq!(failure.kind, FailureKind::Cancelled);
    assert_eq!(failure.message, "the run was stopped: 6 tenants were left");
    assert_eq!(world.cache.keys().len(), 4);
    world.ended().await;
    assert_eq!(world.handle.runs(&RunFilter::newest(None, 10)).await.unwrap().runs.len(), 2);
}

#[tokio::test]
async fn a_run_whose_last_batches_are_in_flight_is_not_cancelled_by_draining() {
    let world = world([job("list")]);
    slow_reads(&world, MINUTE);
    let ticket = world.ask("list").await;
    world.clock.advance(SECOND).await;
    world.stops.drain.cancel();
    assert_eq!(world.finish(ticket).await.outcome, Outcome::Ok);
    world.ended().await;
}

#[tokio::test]
async fn an_idle_engine_ends_at_once() {
    let world = world([job("list")]);
    world.clock.advance(MINUTE).await;
    world.stops.drain.cancel();
    world.settle().await;
    assert!(world.has_ended());
}

#[tokio::test]
async fn hazard_30_an_aborted_run_is_recorded_and_its_keys_are_whole() {
    for also_drain in [true, false] {
        let list = Job { batch: many(1), concurrency: Some(many(1)), ..job("list") };
        let world = Setup::new([list], tenants(10)).start();
        world.set_rows("list", a_row_each(10));
        slow_reads(&world, MINUTE);
        let (ticket, waiting) = (world.ask("list").await, world.ask("list").await);
        world.clock.advance(150 * SECOND).await;
        if also_drain {
            world.stops.drain.cancel();
        }
        world.stops.abort.cancel();
        world.settle().await;
        assert!(world.has_ended());
        let record = ticket.finished().await.unwrap();
        assert_eq!((record.outcome, record.duration()), (Outcome::Cancelled, 150 * SECOND));
        assert_eq!((record.report.tenants.ok, record.report.keys.written), (2, 2));
        assert_eq!(world.value("list:t1").as_deref(), Some("[1]"));
        assert_eq!(world.cache.keys().len(), 2);
        assert_eq!(waiting.finished().await.unwrap().outcome, Outcome::Cancelled);
    }
}

#[tokio::test]
async fn draining_while_the_tenant_list_is_read_cancels_the_run() {
    let world = world([job("list")]);
    world.source.before_tenants(|| Box::pin(std::future::pending()));
    let ticket = world.ask("list").await;
    world.clock.advance(SECOND).await;
    world.stops.drain.cancel();
    world.settle().await;
    assert!(world.has_ended());
    assert_eq!(ticket.finished().await.unwrap().outcome, Outcome::Cancelled);
}

#[tokio::test]
async fn hazard_28_readiness_comes_from_what_happened() {
    let required = |name| Job { required: true, on_start: true, ..job(name) };
    let world = world([
        required("bad"),
        required("good"),
        Job { enabled: false, ..required("off") },
        job("extra"),
    ]);
    world.source.before_read(|seen| {
        let bad = seen.job.as_str() == "bad";
        ready(if bad { Err(refused(SourceErrorKind::Definition)) } else { Ok(()) })
    });
    let readiness = || world.handle.status().readiness(world.handle.now(), 2 * MINUTE);
    let both = vec![name("bad"), name("good")];
    assert_eq!(readiness(), Readiness::Waiting { jobs: both });
    world.clock.advance(2 * MINUTE).await;
    let bad = || vec![name("bad")];
    assert_eq!(readiness(), Readiness::Waiting { jobs: bad() });
    world.clock.advance(SECOND).await;
    assert_eq!(readiness(), Readiness::GaveUp { jobs: bad() });
    world.source.before_read(|_| ready(Ok(())));
    world.warm_some("bad", &["t1"]).await;
    assert_eq!(readiness(), Readiness::GaveUp { jobs: bad() }, "one tenant is not the job");
    world.warm("bad").await;
    assert_eq!(readiness(), Readiness::Ready);
    world.stops.drain.cancel();
    world.settle().await;
    assert_eq!(readiness(), Readiness::Draining);
}

#[tokio::test]
async fn a_worker_without_required_jobs_is_ready_at_once() {
    let world = world([job("list")]);
    let status = world.handle.status();
    assert_eq!(status.readiness(start(), MINUTE), Readiness::Unasked);
    assert_eq!(status.started_at, start());
}

#[tokio::test]
async fn a_flood_of_requests_keeps_no_run_from_ending() {
    let world = world([job("list")]);
    let stop = CancellationToken::new();
    let (stopped, handle) = (stop.clone(), world.handle.clone());
    let asked = Count::default();
    let counted = asked.clone();
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let (stopped, handle, counted) = (stopped.clone(), handle.clone(), counted.clone());
        flood.spawn(async move {
            while !stopped.is_cancelled() {
                drop(handle.request(request("list", Some(&["t1"]))).await);
                counted.up();
            }
        });
    }
    let record = world.warm("list").await;
    assert_eq!(record.outcome, Outcome::Ok);
    assert!(asked.now() > 64);
    assert_eq!(world.clock.monotonic(), Duration::ZERO, "no time passed by that");
    stop.cancel();
    flood.join_all().await;
}

/// Replaces the jobs.
async fn reload(world: &World, jobs: impl IntoIterator<Item = Job>) {
    let jobs = jobs.into_iter().map(|job| (job.name.clone(), Arc::new(job))).collect();
    world.handle.replace(jobs).await;
    world.settle().await;
}

#[tokio::test]
async fn jobs_that_stay_the_same_go_on_as_if_nothing_had_happened() {
    let same = || Job { on_start: true, ..job("same") };
    let world = world([same(), job("gone")]);
    world.clock.advance(11 * MINUTE).await;
    reload(&world, [same(), Job { on_start: true, ..job("new") }]).await;
    assert_eq!(runs_of(&world, "same", Trigger::Startup), 1, "that of the worker's start");
    assert_eq!(runs_of(&world, "new", Trigger::Startup), 1);
    assert!(world.status("same").last_success_at.is_some());
    let status = world.handle.status();
    assert_eq!(status.jobs.keys().map(JobName::as_str).collect::<Vec<_>>(), ["new", "same"]);
    world.clock.advance(10 * MINUTE).await;
    assert_eq!(
        ["gone", "same", "new"].map(|name| runs_of(&world, name, Trigger::Schedule)),
        [1, 2, 1]
    );
}

#[tokio::test]
async fn a_changed_job_is_due_by_its_new_schedule_and_runs_by_its_new_definition() {
    let world = world([job("list")]);
    slow_reads(&world, MINUTE);
    let (running, waiting) = (world.ask("list").await, world.ask("list").await);
    world.clock.advance(SECOND).await;
    let schedule = Schedule::Every(4 * MINUTE);
    let ttl = Duration::from_hours(2);
    reload(&world, [Job { schedule, ttl, ..job("list") }]).await;
    assert_eq!(world.status("list").next_due_at, Some(at("2026-03-01T00:04:00Z")));
    assert_eq!(world.finish(running).await.outcome, Outcome::Ok);
    assert_eq!(world.cache.ttl("list:t1"), Some(30 * MINUTE), "it ended as it began");
    assert_eq!(world.finish(waiting).await.outcome, Outcome::Ok);
    assert_eq!(world.cache.ttl("list:t1"), Some(ttl));
}

#[tokio::test]
async fn the_run_of_a_job_that_is_gone_ends_and_one_that_waits_is_cancelled() {
    let world = world([job("list"), job("other")]);
    slow_reads(&world, MINUTE);
    let (running, waiting) = (world.ask("list").await, world.ask("list").await);
    world.clock.advance(SECOND).await;
    reload(&world, [job("other")]).await;
    let waiting = waiting.finished().await.unwrap();
    assert_eq!(waiting.outcome, Outcome::Cancelled);
    let reason = "the job's file was gone before the run began";
    assert_eq!(waiting.report.failures[0].message, reason);
    let view = world.handle.run(running.run.id).await.unwrap();
    assert!(matches!(view, Some(RunView::Active(_))));
    assert_eq!(world.finish(running).await.outcome, Outcome::Ok);
    assert!(world.handle.status().leaving.is_empty());
    let error = world.handle.request(request("list", None)).await.unwrap_err();
    assert_eq!(error, RequestError::UnknownJob(name("list")));
}

#[tokio::test]
async fn a_job_that_comes_back_does_not_run_beside_the_run_it_left() {
    let world = world([job("list")]);
    slow_reads(&world, MINUTE);
    let left = world.ask("list").await;
    world.clock.advance(SECOND).await;
    reload(&world, []).await;
    reload(&world, [Job { on_start: true, ..job("list") }]).await;
    let status = world.status("list");
    assert_eq!(status.running.unwrap().id, left.run.id);
    assert_eq!(status.queued.len(), 1);
    assert_eq!(world.finish(left).await.outcome, Outcome::Ok);
    world.clock.advance(2 * MINUTE).await;
    assert_eq!(runs_of(&world, "list", Trigger::Startup), 1);
}

#[tokio::test]
async fn a_disabled_job_neither_runs_nor_waits() {
    let world = world([job("list")]);
    slow_reads(&world, MINUTE);
    let (running, waiting) = (world.ask("list").await, world.ask("list").await);
    world.clock.advance(SECOND).await;
    reload(&world, [Job { enabled: false, ..job("list") }]).await;
    assert_eq!(waiting.finished().await.unwrap().outcome, Outcome::Cancelled);
    assert_eq!(world.finish(running).await.outcome, Outcome::Ok);
    world.clock.advance(30 * MINUTE).await;
    assert_eq!(runs_of(&world, "list", Trigger::Schedule), 0);
    assert_eq!(world.status("list").next_due_at, None);
}
