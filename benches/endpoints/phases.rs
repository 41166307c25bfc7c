//! What is measured in each setting, phase by phase.

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use redis::aio::PubSub;
use rustix::process::Signal;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::cost::{self, Cost, Statements};
use crate::load::{self, Arrival, Outcome};
use crate::mix::Mix;
use crate::service::Counts;
use crate::world::{JOBS, Setting, Stage, World};

/// Before the first phase that counts: connections are opened and the database's buffers filled.
const WARM_UP: Duration = Duration::from_secs(3);
/// Brief fills live for ten seconds; a phase in which no key is loaded twice is shorter.
const LONGEST_EXPIRY: Duration = Duration::from_secs(8);
/// Callers of a stampede, and the time in which they come.
pub(crate) const CALLERS: usize = 1000;
const STAMPEDE: Duration = Duration::from_millis(300);
/// How long the load takes for which they wait.
const SLOW_LOAD: Duration = Duration::from_millis(600);

/// A phase, by its name in the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Steady,
    SteadyLow,
    /// The cache was emptied, and nothing warms it.
    Deploy,
    /// The cache was emptied and warmed.
    DeployWarmed,
    /// The cache was emptied, and is being warmed.
    DeployWarming,
    /// All keys expired at once.
    Expiry,
    Stampede,
    /// Redis is suspended.
    Frozen,
    /// Redis is killed.
    Killed,
}

impl Phase {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::SteadyLow => "steady, low rate",
            Self::Deploy => "deploy, nothing warms",
            Self::DeployWarmed => "deploy, warmed first",
            Self::DeployWarming => "deploy, while warming",
            Self::Expiry => "all keys expired",
            Self::Stampede => "stampede",
            Self::Frozen => "Redis suspended",
            Self::Killed => "Redis killed",
        }
    }
}

/// The rates and the length of phases.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) high: f64,
    pub(crate) low: f64,
    pub(crate) length: Duration,
    pub(crate) round: u64,
}

/// What a phase showed.
pub(crate) struct Measured {
    pub(crate) outcome: Outcome,
    pub(crate) seconds: f64,
    pub(crate) counts: Counts,
    /// The counts of each second.
    pub(crate) by_second: Vec<Counts>,
    pub(crate) cost: Cost,
    /// How many times each key was filled; only where that was asked for.
    pub(crate) fills: HashMap<String, u64>,
}

/// What all rounds showed.
#[derive(Default)]
pub(crate) struct Results {
    pub(crate) phases: BTreeMap<(Setting, Phase), Vec<Measured>>,
    /// The cost of a run of each job.
    pub(crate) runs: BTreeMap<&'static str, Vec<Statements>>,
    pub(crate) keys: usize,
}

impl Results {
    /// Measures all phases of a setting.
    pub(crate) async fn round(&mut self, world: &World, setting: Setting, plan: Plan) {
        let stage = world.begin(setting).await;
        let mut run = Run { stage, plan, results: self };
        match setting {
            Setting::NoCache => run.without_cache().await,
            Setting::ReadThrough => run.read_through().await,
            Setting::Preheat => run.with_preheat().await,
        }
        run.stage.end().await;
    }
}

struct Run<'a> {
    stage: Stage<'a>,
    plan: Plan,
    results: &'a mut Results,
}

impl Run<'_> {
    async fn without_cache(&mut self) {
        self.warm_up().await;
        self.steady().await;
    }

    async fn read_through(&mut self) {
        self.warm_up().await;
        self.stage.empty_cache().await;
        self.phase(Phase::Deploy, self.plan.high).await;
        self.steady().await;
        self.expiry().await;
        self.stampede().await;
    }

    async fn with_preheat(&mut self) {
        self.price_of_runs().await;
        self.stage.start_worker().await;
        self.results.keys = self.stage.keys().await.len();
        self.warm_up().await;
        self.steady().await;

        let before = self.stage.cost().await;
        self.stage.empty_cache().await;
        self.stage.warm().await;
        self.phase_since(Phase::DeployWarmed, before).await;
        self.stage.quiet().await;

        let before = self.stage.cost().await;
        self.stage.empty_cache().await;
        let warm = self.stage.preheat(cost::PREHEAT, &["warm"]);
        let mut warm = tokio::process::Command::from(warm).spawn().expect("the program");
        self.phase_since(Phase::DeployWarming, before).await;
        assert!(warm.wait().await.unwrap().success(), "preheat warm");
        self.stage.quiet().await;

        // Without the worker, so that only readers fill.
        self.stage.hold_worker(Signal::STOP);
        self.expiry().await;
        self.stage.hold_worker(Signal::CONT);
        self.stage.warm().await;
        self.stage.quiet().await;

        let redis = self.stage.world.sandbox.redis();
        redis.freeze();
        self.phase(Phase::Frozen, self.plan.high).await;
        redis.thaw();
        self.stage.quiet().await;
        redis.kill();
        self.phase(Phase::Killed, self.plan.high).await;
    }

    /// The cost of a run of each job, of all tenants.
    async fn price_of_runs(&mut self) {
        self.stage.warm().await; // the first reads of the database's buffers
        for job in JOBS {
            let before = self.stage.cost().await;
            self.stage.run(cost::PREHEAT, &["warm", job]).await;
            let run = self.stage.cost().await.since(before).preheat;
            self.results.runs.entry(job).or_default().push(run);
        }
    }

    async fn warm_up(&mut self) {
        let arrivals = self.arrivals(0, (self.plan.high, WARM_UP), Mix::All);
        load::run(self.stage.services.addresses.clone(), arrivals).await;
    }

    async fn steady(&mut self) {
        self.phase(Phase::Steady, self.plan.high).await;
        self.phase(Phase::SteadyLow, self.plan.low).await;
    }

    /// The same requests in each setting.
    fn arrivals(&mut self, phase: u64, load: (f64, Duration), mix: Mix) -> Vec<Arrival> {
        self.stage.site.plan(self.plan.round << 8 | phase, load, mix)
    }

    async fn phase(&mut self, phase: Phase, rate: f64) {
        let before = self.stage.cost().await;
        let arrivals = self.arrivals(phase as u64 + 1, (rate, self.plan.length), Mix::All);
        let measured = self.measure(arrivals, before).await;
        self.keep(phase, measured);
    }

    /// With what the database did before the traffic.
    async fn phase_since(&mut self, phase: Phase, before: Cost) {
        let load = (self.plan.high, self.plan.length);
        let arrivals = self.arrivals(phase as u64 + 1, load, Mix::All);
        let measured = self.measure(arrivals, before).await;
        self.keep(phase, measured);
    }

    fn keep(&mut self, phase: Phase, measured: Measured) {
        for failure in &measured.outcome.failures {
            eprintln!("{}, {}: {failure}", self.stage.setting.name(), phase.name());
        }
        self.results.phases.entry((self.stage.setting, phase)).or_default().push(measured);
    }

    async fn measure(&mut self, arrivals: Vec<Arrival>, before: Cost) -> Measured {
        let stage = &self.stage;
        let counted = stage.services.counts().await;
        let seconds = arrivals.last().map_or(0.0, |last| last.at.as_secs_f64());
        let mut load = pin!(load::run(stage.services.addresses.clone(), arrivals));
        let mut ticks = interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        let mut so_far = vec![counted];
        let outcome = loop {
            tokio::select! {
                outcome = &mut load => break outcome,
                _ = ticks.tick() => so_far.push(stage.services.counts().await),
            }
        };
        let counts = stage.services.counts().await;
        so_far.push(counts);
        let by_second = so_far.windows(2).map(|pair| pair[1].since(pair[0])).collect();
        Measured {
            outcome,
            seconds,
            counts: counts.since(counted),
            by_second,
            cost: stage.cost().await.since(before),
            fills: HashMap::new(),
        }
    }

    /// Lets every key expire at once, and reads on.
    async fn expiry(&mut self) {
        let fills = self.fills().await;
        let mut expire = redis::pipe();
        for key in self.stage.keys().await {
            expire.cmd("PEXPIRE").arg(key).arg(1).ignore();
        }
        let load = (self.plan.high, self.plan.length.min(LONGEST_EXPIRY));
        let arrivals = self.arrivals(Phase::Expiry as u64 + 1, load, Mix::WarmReads);
        let before = self.stage.cost().await;
        let () = expire.query_async(&mut self.stage.cache).await.unwrap();
        let measured = self.measure(arrivals, before).await;
        self.keep(Phase::Expiry, Measured { fills: counted(fills).await, ..measured });
    }

    /// Many callers want a value whose load takes long.
    async fn stampede(&mut self) {
        let tenant = Arc::clone(&self.stage.site.clinics[0].id);
        let arrivals = (0..CALLERS).map(|number| Arrival {
            at: STAMPEDE.mul_f64(number as f64 / CALLERS as f64),
            endpoint: 0,
            method: "GET",
            path: "/products".to_owned(),
            tenant: Arc::clone(&tenant),
            body: String::new(),
            expects: 200,
        });
        let arrivals = arrivals.collect();
        let database = self.stage.database().await;
        let fills = self.fills().await;
        let mut lock = database.begin().await.unwrap();
        let statement = "lock table products in access exclusive mode";
        sqlx::query(statement).execute(&mut *lock).await.unwrap();
        let key = format!("products:{tenant}:all");
        let () = redis::cmd("DEL").arg(key).query_async(&mut self.stage.cache).await.unwrap();
        let before = self.stage.cost().await;
        let unlock = async {
            sleep(SLOW_LOAD).await;
            lock.commit().await.unwrap();
        };
        let (measured, ()) = tokio::join!(self.measure(arrivals, before), unlock);
        database.close().await;
        self.keep(Phase::Stampede, Measured { fills: counted(fills).await, ..measured });
    }

    /// Listens to what is written to the cache.
    async fn fills(&mut self) -> PubSub {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("notify-keyspace-events").arg("E$");
        let () = set.query_async(&mut self.stage.cache).await.unwrap();
        let client = redis::Client::open(self.stage.world.sandbox.redis().url()).unwrap();
        let mut fills = client.get_async_pubsub().await.unwrap();
        fills.subscribe("__keyevent@0__:set").await.unwrap();
        fills
    }
}

/// The keys that were written, and how many times each.
async fn counted(mut fills: PubSub) -> HashMap<String, u64> {
    let mut times = HashMap::new();
    let mut messages = fills.on_message();
    while let Ok(Some(message)) = timeout(Duration::from_millis(300), messages.next()).await {
        let key: String = message.get_payload().unwrap();
        if !key.starts_with("preheat:") {
            *times.entry(key).or_insert(0) += 1;
        }
    }
    times
}
