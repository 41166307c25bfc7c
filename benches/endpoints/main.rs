//! What warm keys are worth to an application: `scripts/bench endpoints`.
//!
//! The example service answers the same requests at the same moments in three settings: without a cache, with a
//! cache that only its readers fill, and with preheat beside it. Four processes of the service, preheat (the
//! shipped jobs and the change feed), Postgres and Redis run as processes of their own, with the settings that they
//! have by default. This process sends the requests (see `load.rs`) and only reads counters besides. Each setting
//! begins with a fresh copy of the same data.
//!
//! Hits are what the service's clients counted, not the server's `keyspace_hits`: preheat reads as well. The
//! database's work is what `pg_stat_statements` says, by role. preheat's part has three sources: what the change
//! feed asks for and the checks of its triggers are measured in the phase; the schedule's part is the measured cost
//! of a run of each job over its interval, since a phase is shorter than an interval. A scheduled run that falls
//! into a phase counts in addition.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a benchmark stops where it cannot go on, reads the real clock and prints figures"
)]

mod cost;
mod load;
mod mix;
mod phases;
mod report;
mod service;
mod world;

use std::time::Duration;

use clap::Parser;

use load::milliseconds;
use mix::Mix;
use phases::{Plan, Results};
use world::{Setting, World};

/// Requests a second: 60 % of what the setting without a cache bears, and a fifth of that. `--calibrate` found 2,863
/// a second on a machine of two cores (p95 8 ms; the next step, 3,292, had 87 ms). One that bears less needs `--rate`.
const RATE: f64 = 1700.0;
const LOW_PART: f64 = 0.2;

/// The steps of `--calibrate`.
const FIRST_RATE: f64 = 200.0;
const STEP: f64 = 1.15;
/// A rate is borne if 95 of 100 reads are answered within this.
const BORNE: f64 = 50.0;

#[derive(Parser)]
#[command(
    name = "scripts/bench endpoints",
    about = "Measures what warm keys are worth to an application"
)]
struct Arguments {
    /// How many tenants the sample clinic has.
    #[arg(long, default_value_t = 500)]
    tenants: u32,
    /// How many rounds the medians are of.
    #[arg(long, default_value_t = 5)]
    rounds: u64,
    /// How long each phase is.
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,
    /// Requests a second at the higher rate.
    #[arg(long, default_value_t = RATE)]
    rate: f64,
    /// Only finds out what the setting without a cache bears.
    #[arg(long)]
    calibrate: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() {
    if std::env::args().nth(1).as_deref() == Some(service::NAME) {
        return service::serve().await;
    }
    let arguments = Arguments::parse();
    eprintln!("loading {} tenants", arguments.tenants);
    let world = World::new(arguments.tenants).await;
    if arguments.calibrate {
        return calibrate(&world, Duration::from_secs_f64(arguments.seconds)).await;
    }
    let mut results = Results::default();
    for round in 0..arguments.rounds {
        eprintln!("round {} of {}", round + 1, arguments.rounds);
        let mut settings = Setting::ALL;
        settings.rotate_left(usize::try_from(round % 3).unwrap());
        for setting in settings {
            results.round(&world, setting, plan(&arguments, round)).await;
        }
    }
    let head = report::Head {
        tenants: arguments.tenants,
        active: world.site.clinics.len(),
        rounds: arguments.rounds,
        plan: plan(&arguments, 0),
    };
    println!("{}", report::text(&head, &results));
}

fn plan(arguments: &Arguments, round: u64) -> Plan {
    Plan {
        high: arguments.rate,
        low: arguments.rate * LOW_PART,
        length: Duration::from_secs_f64(arguments.seconds),
        round,
    }
}

/// Raises the rate until the service without a cache does not bear it any more.
async fn calibrate(world: &World, length: Duration) {
    let mut stage = world.begin(Setting::NoCache).await;
    let (mut rate, mut borne) = (FIRST_RATE, 0.0);
    loop {
        let arrivals = stage.site.plan(1, (rate, length), Mix::All);
        let outcome = load::run(stage.services.addresses.clone(), arrivals).await;
        let latencies = outcome.latencies(|sample| mix::is_read(sample.endpoint));
        let (p95, lag) = (milliseconds(&latencies, 95.0), milliseconds(&outcome.lags(), 99.0));
        println!(
            "{rate:.0} a second: p50 {:.1} ms, p95 {p95:.1} ms, {} failed; sent late by {lag:.2} ms (p99)",
            milliseconds(&latencies, 50.0),
            outcome.failed()
        );
        if p95 > BORNE || outcome.failed() > 0 {
            break;
        }
        borne = rate;
        rate *= STEP;
    }
    stage.end().await;
    println!("borne: {borne:.0} a second; 60 % of that: {:.0}", borne * 0.6);
}
