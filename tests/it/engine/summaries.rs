//! The fleet, seen as one: whichever worker is asked tells of all of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use preheat::domain::job::{Job, JobName};
use preheat::domain::member::MemberId;
use preheat::domain::run::{Outcome, RunId, Trigger};
use preheat::domain::share::Shares;
use preheat::domain::tenant::TenantId;
use preheat::engine::ports::SourceErrorKind;
use preheat::engine::run::ownership::Ownership;
use preheat::overview::{Board, FleetMember, JobState, NotWarmTenant, Wanted, WarmState};
use tokio_util::sync::CancellationToken;

use super::fleet::{TENANTS, of, shares};
use super::{MINUTE, SECOND, Setup, World, a_row_each, job, refused, slow_reads, start, tenants};
use crate::support::memory::MemorySheets;
use crate::support::virtual_clock::VirtualClock;

struct Member {
    world: World,
    board: Arc<Board>,
    stop: CancellationToken,
}

struct Fleet {
    clock: VirtualClock,
    sheets: MemorySheets,
    members: Vec<Member>,
}

impl Fleet {
    /// Workers that hold these shares.
    fn new(held: impl IntoIterator<Item = std::ops::Range<u8>>) -> Self {
        let clock = VirtualClock::new(start(), 1);
        let sheets = MemorySheets::new(Arc::new(clock.clone()));
        let mut fleet = Self { clock, sheets, members: Vec::new() };
        for (number, own) in held.into_iter().enumerate() {
            fleet.join(&format!("m{number}"), shares(own), job("list"));
        }
        fleet
    }

    fn join(&mut self, id: &str, held: Shares, job: Job) {
        let setup = Setup::new([job], tenants(TENANTS));
        let ownership = Ownership::of(held);
        let mut world = Setup { clock: self.clock.clone(), ownership, ..setup }.start();
        world.set_rows("list", a_row_each(TENANTS));
        world.tasks.spawn(Arc::clone(&world.runner).watch_coverage(world.stops.clone()));
        let member = FleetMember {
            id: MemberId::parse(id).unwrap(),
            address: format!("{id}.example:9464"),
            ownership: Arc::clone(&world.runner.ownership),
            sheets: Arc::new(self.sheets.clone()),
        };
        let runner = Arc::clone(&world.runner);
        let board = Board::of_member(runner, world.handle.clone(), Some(member));
        let stop = CancellationToken::new();
        tokio::spawn(Arc::clone(&board).keep_fleet(stop.clone()));
        self.members.push(Member { world, board, stop });
    }

    /// Every read of this worker that has this tenant fails.
    fn fail(&self, member: usize, tenant: &str) {
        let tenant = tenant.to_owned();
        self.members[member].world.on_read(move |read| {
            if read.contains(&tenant) {
                return Err(refused(SourceErrorKind::Data));
            }
            Ok(())
        });
    }

    /// What every worker says, asked one after the other, which is the same.
    async fn all_say<T: PartialEq + std::fmt::Debug>(&self, ask: impl AsyncFn(&Board) -> T) -> T {
        let first = ask(&self.members[0].board).await;
        for member in &self.members[1..] {
            assert_eq!(ask(&member.board).await, first);
        }
        first
    }
}

fn wanted(limit: usize) -> Wanted {
    Wanted { limit, ..Wanted::default() }
}

#[tokio::test]
async fn every_worker_tells_of_the_whole_fleet() {
    let fleet = Fleet::new([0..32, 32..64]);
    let cold = of(shares(32..64)).pop_first().unwrap();
    fleet.fail(1, &cold);
    fleet.clock.advance(10 * MINUTE + 40 * SECOND).await;
    let coverage = fleet
        .all_say(async |board| {
            let overview = board.overview().await;
            let line = &overview.jobs[0];
            let figures = overview.figures.coverage;
            (figures.tenants_warm, figures.tenants_not_warm, line.not_warm, line.next_due_at)
        })
        .await;
    assert_eq!((coverage.0, coverage.1, coverage.2), (Some(TENANTS as u64 - 1), 1, 1));
    assert_eq!(coverage.3.unwrap().0, start() + 20 * MINUTE);
    let ratio = fleet.all_say(async |board| board.overview().await.jobs[0].coverage).await;
    assert!(ratio.unwrap() > 0.9 && ratio.unwrap() < 1.0, "{ratio:?}");
    let listed = fleet.all_say(async |board| board.not_warm(&wanted(10)).await.tenants).await;
    let names: Vec<_> = listed.iter().map(|one| one.tenant.as_deref()).collect();
    assert_eq!(names, [Some(cold.as_str())]);
    let state = fleet
        .all_say(async |board| board.tenant(&TenantId::new(&cold)).await.unwrap().jobs[0].state)
        .await;
    assert_eq!(state, WarmState::NotWarm);

    // The parts of a run are one bar, whose outcome is the worst.
    let bars = fleet.all_say(async |board| board.overview().await.jobs[0].runs.clone()).await;
    assert_eq!(bars.len(), 1);
    let name = JobName::parse("list").unwrap();
    assert_eq!(bars[0].id, RunId::of_fleet("", &name, Trigger::Schedule, start() + 10 * MINUTE));
    assert_eq!((bars[0].outcome, bars[0].keys), (Outcome::Partial, TENANTS as u64 - 1));
    fleet.members[1].world.on_read(|_| Ok(()));
    fleet.clock.advance(10 * MINUTE).await;
    let line = fleet.all_say(async |board| board.overview().await.jobs[0].clone()).await;
    assert_eq!((line.runs.len(), line.runs[1].outcome), (2, Outcome::Ok));
    assert!(line.last_success_at.unwrap().0 >= start() + 20 * MINUTE);
    assert_eq!((line.not_warm, line.first_failure), (0, None));
}

#[tokio::test]
async fn the_members_are_listed_with_their_shares_and_who_is_gone_is_not() {
    let mut fleet = Fleet::new([0..20, 20..40]);
    fleet.clock.advance(3 * SECOND).await;
    let said = async |member: &Member| {
        let view = member.board.fleet().await;
        let names = view.members.iter().map(|one| format!("{}: {}", one.id, one.shares));
        let this: Vec<_> = view.members.iter().filter(|one| one.is_this).collect();
        assert!(view.enabled && this.len() == 1);
        (names.collect::<Vec<_>>(), view.vacant)
    };
    let vacant = Some("40-63".to_owned());
    for member in &fleet.members {
        assert_eq!(
            said(member).await,
            (vec!["m0: 0-19".into(), "m1: 20-39".into()], vacant.clone())
        );
    }
    fleet.join("m2", shares(40..64), job("list"));
    fleet.clock.advance(3 * SECOND).await;
    assert_eq!(said(&fleet.members[0]).await.1, None);
    // It ends in order, and takes its summary along.
    fleet.members[2].stop.cancel();
    fleet.clock.advance(3 * SECOND).await;
    assert_eq!(said(&fleet.members[0]).await.1, vacant);
    // It does not, and its summary expires.
    fleet.members[1].world.runner.ownership.lose_all();
    fleet.clock.advance(3 * SECOND).await;
    let alone = vec!["m0: 0-19".to_owned(), "m1: ".to_owned()];
    assert_eq!(said(&fleet.members[0]).await.0, alone, "it stands by");
    fleet.sheets.set_away(true);
    fleet.clock.advance(MINUTE).await;
    assert_eq!(said(&fleet.members[0]).await.0, alone, "what was known is shown meanwhile");
    fleet.sheets.set_away(false);
    fleet.clock.advance(5 * SECOND).await;
    assert_eq!(said(&fleet.members[0]).await.0, alone);
}

#[tokio::test]
async fn a_list_of_tenants_that_are_not_warm_has_those_of_all_members_page_by_page() {
    let fleet = Fleet::new([0..20, 20..40, 40..64]);
    for member in 0..3 {
        fleet.members[member].world.on_read(|_| Err(refused(SourceErrorKind::Definition)));
    }
    fleet.clock.advance(10 * MINUTE + 5 * SECOND).await;
    for member in &fleet.members {
        let mut found: Vec<NotWarmTenant> = Vec::new();
        let mut wanted = wanted(7);
        loop {
            let page = member.board.not_warm(&wanted).await;
            assert_eq!((page.total, page.more), (TENANTS as u64, 0));
            found.extend(page.tenants);
            let Some(next) = page.next else { break };
            wanted.after = preheat::overview::read_cursor(&next);
        }
        let names: BTreeSet<_> = found.iter().filter_map(|one| one.tenant.clone()).collect();
        assert_eq!((found.len(), names), (TENANTS, of(Shares::ALL)), "each once");
    }
}

#[tokio::test]
async fn a_run_of_the_fleet_is_seen_while_it_goes_on() {
    let fleet = Fleet::new([0..32, 32..64]);
    fleet.members.iter().for_each(|member| slow_reads(&member.world, MINUTE));
    fleet.clock.advance(10 * MINUTE + 5 * SECOND).await;
    let line = fleet.all_say(async |board| board.overview().await.jobs[0].clone()).await;
    assert_eq!(line.state, JobState::Running);
    let running = line.running.unwrap();
    assert_eq!((running.tenants_total, running.tenants_done), (TENANTS as u64, 0));
    for member in &fleet.members {
        let run = member.board.run_under_way(running.id).unwrap();
        assert_eq!((run.progress.now().tenants_total, run.job.as_str()), (TENANTS as u64, "list"));
        assert!(member.board.run_under_way(RunId::new(start())).is_none());
    }
}
