//! Runs that are requested of a fleet: each member does the part of its shares, and who asked is answered with one run.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::FutureExt;
use preheat::domain::job::{Job, JobName, Scope};
use preheat::domain::run::{Outcome, RunId, RunRecord, Trigger};
use preheat::domain::schedule::Schedule;
use preheat::domain::share::Shares;
use preheat::domain::tenant::TenantId;
use preheat::engine::ports::{SheetKind, Sheets};
use preheat::engine::run::ownership::Ownership;
use preheat::engine::schedule::handle::{
    Handle, JobSelection, RequestError, RunRequest, RunView, Ticket,
};
use preheat::engine::tasks::requests::{LOOK_EVERY, Requests, RequestsParts};
use tokio_util::sync::CancellationToken;

use super::fleet::{TENANTS, of, shares};
use super::{MINUTE, SECOND, Setup, World, a_row_each, job, key, many, slow_reads, start, tenants};
use crate::support::memory::MemorySheets;
use crate::support::virtual_clock::VirtualClock;

/// A worker of a fleet.
struct Member {
    world: World,
    /// The handle whose requests go to the fleet.
    handle: Handle,
    stop: CancellationToken,
}

/// Some workers with the same clock and the same sheets.
struct Fleet {
    clock: VirtualClock,
    sheets: MemorySheets,
    members: Vec<Member>,
}

fn rarely(job: Job) -> Job {
    Job { schedule: Schedule::Every(24 * 60 * MINUTE), ..job }
}

impl Fleet {
    fn new() -> Self {
        let clock = VirtualClock::new(start(), 1);
        let sheets = MemorySheets::new(Arc::new(clock.clone()));
        Self { clock, sheets, members: Vec::new() }
    }

    /// Three workers that hold all shares, with these jobs.
    fn of_three(jobs: &[Job]) -> Self {
        let mut fleet = Self::new();
        for own in [0..20, 20..40, 40..64] {
            fleet.join(shares(own), jobs.iter().cloned());
        }
        fleet
    }

    fn join(&mut self, held: Shares, jobs: impl IntoIterator<Item = Job>) {
        let setup = Setup::new(jobs.into_iter().map(rarely), tenants(TENANTS));
        let ownership = Ownership::of(held);
        let world = Setup { clock: self.clock.clone(), ownership, ..setup }.start();
        for name in world.runner.jobs.get().keys() {
            world.set_rows(name.as_str(), a_row_each(TENANTS));
        }
        let (mut requests, runs) = Requests::new(RequestsParts {
            sheets: Arc::new(self.sheets.clone()),
            ownership: Arc::clone(&world.runner.ownership),
            engine: world.handle.clone(),
            replica: "test".to_owned(),
        });
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move { requests.run(stopped).await });
        let handle = world.handle.clone().in_fleet(Some(runs));
        self.members.push(Member { world, handle, stop });
    }

    /// Asks the first worker for a run.
    async fn ask(&self, jobs: JobSelection, tenants: Option<&[&str]>) -> Vec<Ticket> {
        let tenants = tenants.map(|some| some.iter().map(TenantId::new).collect());
        self.members[0].handle.request(RunRequest { jobs, tenants }).await.unwrap()
    }

    async fn ask_one(&self, job: &str, tenants: Option<&[&str]>) -> Ticket {
        let one = JobSelection::One(JobName::parse(job).unwrap());
        self.ask(one, tenants).await.remove(0)
    }

    /// The run of a ticket, if it has ended.
    fn ended(ticket: &Ticket) -> Option<Arc<RunRecord>> {
        ticket.clone().finished().now_or_never().flatten()
    }

    /// The state of a run as each worker shows it: its outcome once it has ended.
    async fn shown(&self, id: RunId) -> Vec<Option<Option<Outcome>>> {
        let mut shown = Vec::new();
        for member in &self.members {
            let view = member.handle.run(id).await.unwrap();
            shown.push(view.map(|view| match view {
                RunView::Active(_) => None,
                RunView::Finished(record) => Some(record.outcome),
            }));
        }
        shown
    }

    /// The tenants that each worker has read.
    fn read(&self) -> Vec<BTreeSet<String>> {
        let read = |member: &Member| member.world.reads().into_iter().flatten().collect();
        self.members.iter().map(read).collect()
    }

    async fn open(&self) -> usize {
        self.sheets.read(SheetKind::Request).await.unwrap().len()
    }
}

#[tokio::test]
async fn a_request_is_one_run_in_which_each_worker_does_its_part() {
    let fleet = Fleet::of_three(&[job("list")]);
    let ticket = fleet.ask_one("list", None).await;
    let id = ticket.run.id;
    assert_eq!(fleet.shown(id).await[0], Some(None), "it goes on");
    fleet.clock.advance(LOOK_EVERY + SECOND).await;
    fleet.clock.advance(LOOK_EVERY).await;
    let run = Fleet::ended(&ticket).expect("all workers have done their parts");
    assert_eq!((run.id, run.outcome, run.trigger), (id, Outcome::Ok, Trigger::Request));
    assert_eq!((run.parts.len(), run.shares), (3, Some(Shares::ALL)));
    assert_eq!(run.report.tenants.ok, TENANTS as u64);
    let parts = [0..20, 20..40, 40..64].map(|own| of(shares(own)));
    assert_eq!(fleet.read(), parts);
    assert_eq!(fleet.shown(id).await, [Some(Some(Outcome::Ok)); 3], "whichever is asked");
    let kept = fleet.members[0].world.records.get(id).await.unwrap().unwrap();
    assert_eq!(kept.parts.len(), 1, "of the history of one worker");
    assert_eq!(fleet.open().await, 1);
    fleet.clock.advance(15 * SECOND).await;
    assert_eq!(fleet.open().await, 0);
    assert_eq!(fleet.shown(id).await[0], Some(Some(Outcome::Ok)));
}

#[tokio::test]
async fn the_part_of_a_worker_that_is_gone_is_done_by_who_takes_its_shares() {
    let fleet = Fleet::of_three(&[job("list")]);
    let gone = &fleet.members[2];
    gone.stop.cancel();
    gone.world.runner.ownership.lose_all();
    fleet.clock.advance(SECOND).await;
    let ticket = fleet.ask_one("list", None).await;
    fleet.clock.advance(MINUTE).await;
    assert!(Fleet::ended(&ticket).is_none(), "nobody holds the last shares");
    assert_eq!(fleet.shown(ticket.run.id).await[..2], [Some(None); 2]);
    fleet.members[1].world.runner.ownership.take(shares(40..64));
    fleet.clock.advance(2 * LOOK_EVERY).await;
    let run = Fleet::ended(&ticket).unwrap();
    assert_eq!((run.outcome, run.parts.len(), run.shares), (Outcome::Ok, 3, Some(Shares::ALL)));
    assert_eq!(fleet.read()[2], BTreeSet::new());
}

#[tokio::test]
async fn shares_that_go_during_a_part_are_done_by_their_new_holder() {
    let slow = Job { batch: many(1), concurrency: Some(many(1)), ..job("list") };
    let fleet = Fleet::of_three(&[slow]);
    let first = &fleet.members[0].world;
    slow_reads(first, SECOND);
    let ticket = fleet.ask_one("list", None).await;
    fleet.clock.advance(5 * SECOND).await;
    first.runner.ownership.give_back(shares(10..20));
    fleet.members[1].world.runner.ownership.take(shares(10..20));
    fleet.clock.advance(MINUTE).await;
    let run = Fleet::ended(&ticket).unwrap();
    assert_eq!((run.outcome, run.shares), (Outcome::Ok, Some(Shares::ALL)));
    assert!(of(shares(10..20)).is_subset(&fleet.read()[1]), "they were not done");
}

#[tokio::test]
async fn a_request_for_some_tenants_is_for_who_holds_them() {
    let global = Job { scope: Scope::Global, keys: vec![key("all")], ..job("all") };
    let fleet = Fleet::of_three(&[job("list"), global]);
    let own = of(shares(20..40)).pop_first().unwrap();
    let ticket = fleet.ask_one("list", Some(&[&own])).await;
    fleet.clock.advance(2 * LOOK_EVERY).await;
    let run = Fleet::ended(&ticket).unwrap();
    assert_eq!((run.parts.len(), run.report.tenants.ok, run.is_for_all()), (1, 1, false));
    assert_eq!(fleet.read(), [BTreeSet::new(), BTreeSet::from([own]), BTreeSet::new()]);

    // A job without tenants is one worker's, and all enabled jobs are asked at once.
    let tickets = fleet.ask(JobSelection::All, None).await;
    assert_eq!(tickets.len(), 2);
    fleet.clock.advance(3 * LOOK_EVERY).await;
    for ticket in &tickets {
        let run = Fleet::ended(ticket).unwrap();
        assert_eq!((run.id, run.outcome), (ticket.run.id, Outcome::Ok));
        assert_eq!(run.parts.len(), if run.job.as_str() == "all" { 1 } else { 3 });
    }
}

#[tokio::test]
async fn a_worker_that_lacks_the_job_fails_its_part() {
    let mut fleet = Fleet::new();
    fleet.join(shares(0..32), [job("list")]);
    fleet.join(shares(32..64), [job("other")]);
    let ticket = fleet.ask_one("list", None).await;
    fleet.clock.advance(2 * LOOK_EVERY).await;
    let run = Fleet::ended(&ticket).unwrap();
    assert_eq!(run.outcome, Outcome::Failed);
    assert_eq!(run.report.failures[0].message, "there is no job `list`");
    assert_eq!(run.report.tenants.ok, of(shares(0..32)).len() as u64);
    let unknown = JobSelection::One(JobName::parse("other").unwrap());
    let request = RunRequest { jobs: unknown.clone(), tenants: None };
    let refused = fleet.members[0].handle.request(request).await.unwrap_err();
    assert_eq!(refused, RequestError::UnknownJob(JobName::parse("other").unwrap()));
}

#[tokio::test]
async fn a_request_outlives_a_cache_that_is_away_or_emptied() {
    let slow = Job { batch: many(1), concurrency: Some(many(1)), ..job("list") };
    let fleet = Fleet::of_three(&[slow]);
    fleet.sheets.set_away(true);
    let one = JobSelection::One(JobName::parse("list").unwrap());
    let request = RunRequest { jobs: one, tenants: None };
    let refused = fleet.members[0].handle.request(request).await.unwrap_err();
    assert!(matches!(refused, RequestError::FleetAway(_)), "{refused:?}");
    fleet.sheets.set_away(false);

    fleet.members.iter().for_each(|member| slow_reads(&member.world, SECOND));
    let ticket = fleet.ask_one("list", None).await;
    fleet.clock.advance(2 * LOOK_EVERY).await;
    fleet.sheets.lose();
    fleet.sheets.set_away(true);
    fleet.clock.advance(MINUTE).await;
    assert!(Fleet::ended(&ticket).is_none());
    fleet.sheets.set_away(false);
    fleet.clock.advance(2 * LOOK_EVERY).await;
    let run = Fleet::ended(&ticket).unwrap();
    assert_eq!((run.outcome, run.shares), (Outcome::Ok, Some(Shares::ALL)));
    let read: Vec<usize> = fleet.members.iter().map(|one| one.world.reads().len()).collect();
    assert_eq!(read.iter().sum::<usize>(), TENANTS, "nothing was done twice");
}

#[tokio::test]
async fn a_worker_that_stops_hands_its_part_over() {
    let slow = Job { batch: many(1), concurrency: Some(many(1)), ..job("list") };
    let fleet = Fleet::of_three(&[slow]);
    let last = &fleet.members[2];
    slow_reads(&last.world, SECOND);
    let ticket = fleet.ask_one("list", None).await;
    fleet.clock.advance(2 * LOOK_EVERY).await;
    last.world.stops.drain.cancel();
    fleet.clock.advance(2 * LOOK_EVERY).await;
    last.stop.cancel();
    last.world.runner.ownership.give_back(shares(40..64));
    fleet.members[0].world.runner.ownership.take(shares(40..64));
    fleet.clock.advance(2 * LOOK_EVERY).await;
    let run = Fleet::ended(&ticket).unwrap();
    assert_eq!((run.outcome, run.shares), (Outcome::Ok, Some(Shares::ALL)));
    assert!(of(shares(40..64)).is_subset(&fleet.read()[0]));
}
