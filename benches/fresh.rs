//! How long after a commit the fresh value is in the cache: `scripts/bench fresh`.
//!
//! The program serves the shipped jobs with the change feed installed. Without `--rate`, one row after the
//! other is updated, each of another tenant than the one before and each once the last one is fresh. With
//! `--rate`, updates are committed at that rate, whether earlier ones are fresh or not, of tenants drawn at
//! random, so that tenants repeat. The tenant's key is read again and again until it holds the update. What is
//! measured is from the return of the `COMMIT` to the end of the first read that finds it.
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

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use preheat_sandbox::{Clinic, Options, Sandbox};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use sqlx::{Connection, PgConnection};
use tokio::sync::mpsc;

/// An update that is not in the cache by then never will be.
const LOST_AFTER: Duration = Duration::from_secs(10);
/// Between two updates, so that each finds an idle worker.
const PAUSE: Duration = Duration::from_millis(5);
/// Between two looks at the keys that are not fresh yet.
const BETWEEN_READS: Duration = Duration::from_millis(1);

#[derive(Parser)]
#[command(name = "scripts/bench fresh", about = "Measures from a commit to the fresh value")]
struct Arguments {
    /// How many tenants the sample clinic has.
    #[arg(long, default_value_t = 200)]
    tenants: u32,
    /// How many rows are updated.
    #[arg(long, default_value_t = 1000)]
    updates: usize,
    /// How many tenants the updated rows belong to; all of them unless it is said.
    #[arg(long)]
    spread: Option<usize>,
    /// How many updates are committed in a second; without it, each waits until the last one is fresh.
    #[arg(long)]
    rate: Option<u32>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let sandbox = Sandbox::start(Options::default()).await.expect("servers");
    let url = sandbox.postgres().url("postgres");
    Clinic::bench(arguments.tenants).load(&url).await.expect("the sample clinic");
    let folder = tempfile::tempdir().unwrap();
    run(&sandbox, folder.path(), &["changes", "install"]);
    let mut worker = serve(&sandbox, folder.path()).await;

    let database = PgConnection::connect(&url).await.unwrap();
    let client = redis::Client::open(sandbox.redis().url()).unwrap();
    let cache = client.get_multiplexed_async_connection().await.unwrap();
    let mut lags = measure(&arguments, database, cache).await;
    worker.kill().unwrap();
    worker.wait().unwrap();
    lags.sort();
    let at = |share: usize| lags[(lags.len() - 1) * share / 100].as_secs_f64() * 1e3;
    let rate = arguments.rate.map(|rate| format!(" at {rate} a second")).unwrap_or_default();
    println!(
        "{} single-row updates{rate}, {} tenants: from COMMIT to the fresh value p50 {:.1} ms, \
         p90 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
        lags.len(),
        arguments.spread.unwrap_or(arguments.tenants as usize),
        at(50),
        at(90),
        at(99),
        at(100),
    );
}

/// A committed update that was not seen in the cache yet.
struct Waiting {
    number: usize,
    key: String,
    committed: Instant,
}

async fn measure(
    arguments: &Arguments,
    mut database: PgConnection,
    cache: MultiplexedConnection,
) -> Vec<Duration> {
    let rows = rows(&mut database, arguments).await;
    let (committed, waiting) = mpsc::channel(arguments.updates);
    let (fresh, mut is_fresh) = mpsc::channel(arguments.updates);
    let watcher = tokio::task::spawn(watch(cache, waiting, fresh));
    let (mut random, start) = (1_u64, Instant::now());
    for number in 0..arguments.updates {
        let place = if let Some(rate) = arguments.rate {
            let due = Duration::from_secs(number as u64) / rate;
            tokio::time::sleep(due.saturating_sub(start.elapsed())).await;
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) as usize
        } else {
            number
        };
        let (row, tenant) = &rows[place % rows.len()];
        sqlx::query("update services set name = $1 where id = $2::uuid")
            .bind(marker(number))
            .bind(row)
            .execute(&mut database)
            .await
            .unwrap();
        let key = format!("services:{tenant}");
        let waiting = Waiting { number, key, committed: Instant::now() };
        committed.send(waiting).await.expect("the watcher");
        if arguments.rate.is_none() {
            is_fresh.recv().await.expect("the watcher");
            tokio::time::sleep(PAUSE).await;
        }
    }
    drop(committed);
    watcher.await.unwrap()
}

/// The rows to update, each with its tenant. Where updates come at a rate, one row of each tenant, so that a
/// later update stands for the earlier ones; else several rows a tenant, and tenants in turn.
async fn rows(database: &mut PgConnection, arguments: &Arguments) -> Vec<(String, String)> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "select s.id::text, s.tenant_id::text from services s join tenants t on t.id = s.tenant_id \
         where t.status = 'active' and s.active \
         order by row_number() over (partition by s.tenant_id order by s.id), s.tenant_id",
    )
    .fetch_all(database)
    .await
    .unwrap();
    let tenants: BTreeSet<_> = rows.iter().map(|(_, tenant)| tenant.clone()).collect();
    let spread = arguments.spread.unwrap_or(tenants.len());
    let tenants: BTreeSet<_> = tenants.into_iter().take(spread).collect();
    let rows = rows.into_iter().filter(|(_, tenant)| tenants.contains(tenant));
    if arguments.rate.is_some() { rows.take(tenants.len()).collect() } else { rows.collect() }
}

fn marker(number: usize) -> String {
    format!("update {number} of the benchmark")
}

/// Reads the keys of committed updates until each is fresh; answers how long that took.
async fn watch(
    mut cache: MultiplexedConnection,
    mut committed: mpsc::Receiver<Waiting>,
    fresh: mpsc::Sender<()>,
) -> Vec<Duration> {
    let (mut waiting, mut lags) = (Vec::new(), Vec::new());
    loop {
        if waiting.is_empty() {
            let Some(next) = committed.recv().await else { return lags };
            waiting.push(next);
        }
        while let Ok(next) = committed.try_recv() {
            waiting.push(next);
        }
        for one in std::mem::take(&mut waiting) {
            let value: Option<String> = cache.get(&one.key).await.unwrap();
            if value.is_some_and(|value| holds(&value, one.number)) {
                lags.push(one.committed.elapsed());
                fresh.send(()).await.unwrap();
            } else {
                let Waiting { number, key, .. } = &one;
                assert!(one.committed.elapsed() < LOST_AFTER, "update {number} is not in `{key}`");
                waiting.push(one);
            }
        }
        // The reader leaves the processors to the worker and the servers.
        tokio::time::sleep(BETWEEN_READS).await;
    }
}

/// Whether a value holds that update or a later one.
fn holds(value: &str, number: usize) -> bool {
    let texts = value.split("\"update ").skip(1);
    let mut numbers = texts.filter_map(|text| text.split(' ').next()?.parse::<usize>().ok());
    numbers.any(|held| held >= number)
}

fn preheat(sandbox: &Sandbox, folder: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_preheat"));
    command
        .args(words)
        .current_dir(folder)
        .env("DATABASE_URL", sandbox.postgres().url("postgres"))
        .env("REDIS_URL", sandbox.redis().url())
        .env("PREHEAT_JOBS", concat!(env!("CARGO_MANIFEST_DIR"), "/jobs"))
        .stdin(Stdio::null());
    command
}

fn run(sandbox: &Sandbox, folder: &Path, words: &[&str]) {
    let output = preheat(sandbox, folder, words).output().expect("the program");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The worker, once every job has run.
async fn serve(sandbox: &Sandbox, folder: &Path) -> Child {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let log = std::fs::File::create(folder.join("log")).unwrap();
    let mut worker = preheat(sandbox, folder, &["serve"])
        .env("PREHEAT_HTTP__LISTEN", format!("127.0.0.1:{port}"))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("the program");
    let start = Instant::now();
    while !is_ready(port).await {
        let log = || std::fs::read_to_string(folder.join("log")).unwrap();
        assert!(worker.try_wait().unwrap().is_none(), "the worker ended:\n{}", log());
        assert!(start.elapsed() < Duration::from_mins(2), "the worker is not ready:\n{}", log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The runs of jobs that nobody waits for end as well.
    tokio::time::sleep(Duration::from_secs(2)).await;
    worker
}

async fn is_ready(port: u16) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let Ok(mut stream) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else {
        return false;
    };
    let request = b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let mut answer = String::new();
    stream.write_all(request).await.is_ok()
        && stream.read_to_string(&mut answer).await.is_ok()
        && answer.starts_with("HTTP/1.1 200")
}
