//! A reader of the change feed, for `scripts/bench-changes`: it listens as the worker does, and counts.
//!
//! With `--rate`, it also writes messages itself, and measures how long after the `COMMIT` each one is heard.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a benchmark stops where it cannot go on, reads the real clock and prints figures"
)]

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use preheat::adapter::postgres::{
    Database, DatabaseSettings, PostgresFeedSource, RowSecurity, Ways,
};
use preheat::engine::ports::FeedSource;
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::sync::mpsc;

/// A message that is not heard by then never will be.
const LOST_AFTER: Duration = Duration::from_mins(5);

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    url: String,
    /// How the triggers speak: `notify` or `wal`.
    #[arg(long)]
    via: String,
    /// How long it listens.
    #[arg(long)]
    seconds: u64,
    /// How many messages a second it writes.
    #[arg(long)]
    rate: Option<u32>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    rustls::crypto::ring::default_provider().install_default().unwrap();
    let settings = DatabaseSettings {
        url: SecretString::from(arguments.url.clone()),
        max_connections: NonZeroU32::new(4).unwrap(),
        statement_timeout: Duration::from_secs(30),
        read_only: true,
        row_security: RowSecurity::Refuse,
        time_zone: None,
    };
    let database = Arc::new(Database::connect(settings).await.unwrap());
    let source = PostgresFeedSource::new(database, None, Arc::new(|_, _| {})).unwrap();
    let wal = arguments.via == "wal";
    source.follow(Ways { notify: !wal, wal });
    let mut feed = source.connect().await.unwrap();
    println!("listening");
    let (sent, mut probes) = mpsc::channel(1_000_000);
    let reading = tokio::spawn(async move {
        let mut count = 0_usize;
        while let Ok(changes) = feed.next().await {
            let now = Instant::now();
            count += changes.len();
            for change in changes {
                if change.source.as_str().starts_with("probe-") {
                    sent.send((change.source, now)).await.unwrap();
                }
            }
            if sent.is_closed() {
                break;
            }
        }
        count
    });
    let (start, length) = (Instant::now(), Duration::from_secs(arguments.seconds));
    match arguments.rate {
        None => tokio::time::sleep(length).await,
        Some(rate) => {
            let mut delays = delays(&arguments, rate, &mut probes).await;
            delays.sort_unstable();
            let at = |part: usize| delays.get((delays.len() - 1) * part / 100).unwrap();
            println!(
                "{} messages, from commit to message: p50 {:?}, p99 {:?}, longest {:?}",
                delays.len(),
                at(50),
                at(99),
                at(100)
            );
        }
    }
    let cpu = cpu();
    reading.abort();
    println!(
        "reader's CPU: {:.1} % of one core",
        cpu.as_secs_f64() / start.elapsed().as_secs_f64() * 100.0
    );
}

/// Writes messages at a rate; the delay of each, from the return of its `COMMIT`.
async fn delays(
    arguments: &Arguments,
    rate: u32,
    probes: &mut mpsc::Receiver<(preheat::domain::change::ChangeSourceId, Instant)>,
) -> Vec<Duration> {
    let mut writer = PgConnection::connect(&arguments.url).await.unwrap();
    let total = u64::from(rate) * arguments.seconds;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
    let mut written = Vec::new();
    for number in 0..total {
        ticks.tick().await;
        let payload = format!("{{\"source\":\"probe-{number}\"}}");
        let sql = if arguments.via == "wal" {
            format!("select pg_logical_emit_message(true, 'preheat_changes', '{payload}')")
        } else {
            format!("select pg_notify('preheat_changes', '{payload}')")
        };
        writer.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap();
        written.push(Instant::now());
    }
    let mut delays = Vec::new();
    while delays.len() < written.len() {
        let (source, at) = tokio::time::timeout(LOST_AFTER, probes.recv()).await.unwrap().unwrap();
        let number: usize = source.as_str().trim_start_matches("probe-").parse().unwrap();
        delays.push(at.saturating_duration_since(*written.get(number).unwrap()));
    }
    delays
}

/// The CPU time of this process so far.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let ticks = stat.rsplit(')').next().unwrap().split(' ').skip(12).take(2);
    let ticks: u64 = ticks.map(|part| part.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}
