//! What fences cost a warm: `scripts/bench fences`.
//!
//! The same warm, in one process and in turn, with the cache's fences and without: without, they are
//! answered at once, always the same, and nobody asks the cache. All else is as in the program:
//! manifests, the registry, values.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a benchmark stops where it cannot go on, reads the real clock and prints figures"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use clap::Parser;
use futures::future::{BoxFuture, join_all, ready};
use preheat::app::{App, job_defaults};
use preheat::config::{Overrides, Settings};
use preheat::definition;
use preheat::domain::fence::Fence;
use preheat::domain::job::Job;
use preheat::domain::manifest::ManifestEntry;
use preheat::domain::run::Outcome;
use preheat::engine::ports::{CacheError, Ledger, ManifestEntries};
use preheat::engine::run::{RunSpec, Stops};
use preheat_sandbox::{Clinic, Options, Sandbox};

/// The four jobs that list a tenant's data.
const JOBS: [&str; 4] = ["services", "products", "staff", "slots"];

/// A fence that has its start.
const STEADY: Fence = Fence::At(1 << 41);

#[derive(Parser)]
#[command(name = "scripts/bench fences", about = "Measures what fences cost a warm")]
struct Arguments {
    /// How many tenants the sample clinic has.
    #[arg(long, default_value_t = 2000)]
    tenants: u32,
    /// How many rounds the medians are of.
    #[arg(long, default_value_t = 25)]
    runs: usize,
    /// Batches in flight, and database connections.
    #[arg(long, default_value_t = 4)]
    concurrency: u32,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Where the fences of a warm are.
#[derive(Clone, Copy)]
enum Fences {
    Kept,
    Absent,
}

/// A ledger whose fences stand still and cost nothing.
struct NoFences(Arc<dyn Ledger>);

/// How many seconds warms took, round by round.
#[derive(Default)]
struct Warms {
    cold: Vec<f64>,
    refresh: Vec<f64>,
}

struct Bench {
    sandbox: Sandbox,
    settings: Settings,
    jobs: Vec<Arc<Job>>,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let bench = Bench::start(&arguments).await;
    // A round that does not count: it fills the database's buffers.
    bench.flush().await;
    bench.warm(Fences::Kept).await;
    let (mut kept, mut absent) = (Warms::default(), Warms::default());
    for round in 1..=arguments.runs {
        eprintln!("round {round} of {}", arguments.runs);
        let mut in_turn = [(Fences::Kept, &mut kept), (Fences::Absent, &mut absent)];
        if round.is_multiple_of(2) {
            in_turn.reverse();
        }
        for (fences, warms) in in_turn {
            bench.flush().await;
            warms.cold.push(bench.warm(fences).await);
            warms.refresh.push(bench.warm(fences).await);
        }
    }
    println!(
        "{} tenants, concurrency {}, median of {}\n\n{:<24}{:>12}{:>12}",
        arguments.tenants, arguments.concurrency, arguments.runs, "", "cold", "refresh"
    );
    line("with fences, s", median, [&kept.cold, &kept.refresh]);
    line("without, s", median, [&absent.cold, &absent.refresh]);
    // The two of a round are compared with each other: what else the machine did then, it did to both.
    let ratios = |kept: &[f64], absent: &[f64]| -> Vec<f64> {
        kept.iter().zip(absent).map(|(kept, absent)| kept / absent).collect()
    };
    let cold = ratios(&kept.cold, &absent.cold);
    let refresh = ratios(&kept.refresh, &absent.refresh);
    for (name, share) in
        [("with / without", 50), ("  lower quartile", 25), ("  upper quartile", 75)]
    {
        line(name, |ratios| at(ratios, share), [&cold, &refresh]);
    }
}

fn line(name: &str, figure: impl Fn(&[f64]) -> f64, [cold, refresh]: [&[f64]; 2]) {
    println!("{name:<24}{:>12.3}{:>12.3}", figure(cold), figure(refresh));
}

impl Bench {
    async fn start(arguments: &Arguments) -> Self {
        let sandbox = Sandbox::start(Options::default()).await.expect("servers");
        eprintln!("loading {} tenants", arguments.tenants);
        let url = sandbox.postgres().url("postgres");
        Clinic::bench(arguments.tenants).load(&url).await.expect("the sample clinic");
        let environment = [
            ("DATABASE_URL", url),
            ("REDIS_URL", sandbox.redis().url()),
            ("PREHEAT_JOBS", concat!(env!("CARGO_MANIFEST_DIR"), "/jobs").to_owned()),
            ("PREHEAT_RUNNER__CONCURRENCY", arguments.concurrency.to_string()),
            ("PREHEAT_DATABASE__MAX_CONNECTIONS", arguments.concurrency.to_string()),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value)).to_vec();
        let settings = Settings::load(&Overrides::default(), environment).unwrap();
        let files = definition::load(Path::new(&settings.jobs), &job_defaults(&settings));
        let files = files.unwrap_or_else(|problems| panic!("{}", problems.render(false)));
        let is_wanted = |job: &&Arc<Job>| JOBS.contains(&job.name.as_str());
        let jobs = files.jobs().values().filter(is_wanted).cloned().collect();
        Self { sandbox, settings, jobs }
    }

    /// All jobs once, as `preheat warm` has them, by a worker that knows nothing of the one before.
    async fn warm(&self, fences: Fences) -> f64 {
        let jobs = self.jobs.iter().map(|job| (job.name.clone(), Arc::clone(job))).collect();
        let app = App::connect(&self.settings, jobs).await.expect("both servers");
        let runner = match fences {
            Fences::Kept => app.runner,
            Fences::Absent => {
                let mut runner = Arc::into_inner(app.runner).expect("nobody else has it");
                runner.ports.ledger = Arc::new(NoFences(Arc::clone(&runner.ports.ledger)));
                Arc::new(runner)
            }
        };
        let began = Instant::now();
        let runs = self.jobs.iter().map(|job| {
            Arc::clone(&runner)
                .run(RunSpec::on_request(runner.clock.as_ref(), job, None), Stops::default())
        });
        let ended = join_all(runs).await;
        let took = began.elapsed();
        for run in ended {
            assert_eq!(run.record.outcome, Outcome::Ok, "{:?}", run.record);
            assert_eq!(run.record.report.tenants.fenced, 0, "{:?}", run.record);
        }
        took.as_secs_f64()
    }

    async fn flush(&self) {
        let client = redis::Client::open(self.sandbox.redis().url()).unwrap();
        let mut cache = client.get_multiplexed_async_connection().await.unwrap();
        let () = redis::cmd("FLUSHALL").query_async(&mut cache).await.unwrap();
    }
}

fn median(numbers: &[f64]) -> f64 {
    at(numbers, 50)
}

/// The number below which so many per cent of them are.
fn at(numbers: &[f64], percent: usize) -> f64 {
    let mut numbers = numbers.to_vec();
    numbers.sort_by(f64::total_cmp);
    numbers[(numbers.len() - 1) * percent / 100]
}

impl Ledger for NoFences {
    fn fences<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<Vec<Fence>, CacheError>> {
        Box::pin(ready(Ok(vec![STEADY; keys.len()])))
    }

    fn start_fences<'a>(
        &'a self,
        keys: &'a [(String, Fence)],
        _number: i64,
    ) -> BoxFuture<'a, Result<Vec<Fence>, CacheError>> {
        Box::pin(ready(Ok(vec![STEADY; keys.len()])))
    }

    fn move_fences<'a>(
        &'a self,
        _keys: &'a [String],
        _number: i64,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(ready(Ok(())))
    }

    fn manifests<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Vec<ManifestEntry>>, CacheError>> {
        self.0.manifests(keys)
    }

    fn add_entries<'a>(
        &'a self,
        manifests: &'a [ManifestEntries],
        now: DateTime<Utc>,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        self.0.add_entries(manifests, now, ttl)
    }

    fn prune<'a>(
        &'a self,
        manifests: &'a [String],
        before: DateTime<Utc>,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        self.0.prune(manifests, before)
    }

    fn registry(&self) -> BoxFuture<'_, Result<Vec<(String, String)>, CacheError>> {
        self.0.registry()
    }

    fn register<'a>(
        &'a self,
        entries: &'a [(String, String)],
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        self.0.register(entries)
    }

    fn deregister<'a>(&'a self, tenants: &'a [String]) -> BoxFuture<'a, Result<(), CacheError>> {
        self.0.deregister(tenants)
    }

    fn reads<'a>(&'a self, fields: &'a [String]) -> BoxFuture<'a, Result<Vec<u64>, CacheError>> {
        self.0.reads(fields)
    }
}
