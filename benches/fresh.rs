//! How long after a commit the fresh value is in the cache: `scripts/bench fresh`.
//!
//! The program serves the shipped jobs with the change feed installed; one row after the other is
//! updated, each of another tenant than the one before, and the tenant's key is read again and again
//! until it holds the update. What is measured is from the return of the `COMMIT` to the end of the
//! first read that finds it.
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

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use preheat_sandbox::{Clinic, Options, Sandbox};
use redis::AsyncCommands;
use sqlx::{Connection, PgConnection};

/// An update that is not in the cache by then never will be.
const LOST_AFTER: Duration = Duration::from_secs(10);
/// Between two updates, so that each finds an idle worker.
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Parser)]
#[command(name = "scripts/bench fresh", about = "Measures from a commit to the fresh value")]
struct Arguments {
    /// How many tenants the sample clinic has.
    #[arg(long, default_value_t = 200)]
    tenants: u32,
    /// How many rows are updated, one after the other.
    #[arg(long, default_value_t = 1000)]
    updates: usize,
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

    let mut database = PgConnection::connect(&url).await.unwrap();
    let client = redis::Client::open(sandbox.redis().url()).unwrap();
    let mut cache = client.get_multiplexed_async_connection().await.unwrap();
    // Several rows a tenant, and tenants in turn.
    let rows: Vec<(String, String)> = sqlx::query_as(
        "select s.id::text, s.tenant_id::text from services s join tenants t on t.id = s.tenant_id \
         where t.status = 'active' and s.active \
         order by row_number() over (partition by s.tenant_id order by s.id), s.tenant_id",
    )
    .fetch_all(&mut database)
    .await
    .unwrap();

    let mut lags = Vec::with_capacity(arguments.updates);
    for (number, (row, tenant)) in rows.iter().cycle().take(arguments.updates).enumerate() {
        let marker = format!("update {number} of the benchmark");
        let (key, quoted) = (format!("services:{tenant}"), format!("\"{marker}\""));
        sqlx::query("update services set name = $1 where id = $2::uuid")
            .bind(&marker)
            .bind(row)
            .execute(&mut database)
            .await
            .unwrap();
        let committed = Instant::now();
        loop {
            let value: Option<String> = cache.get(&key).await.unwrap();
            if value.is_some_and(|value| value.contains(&quoted)) {
                break;
            }
            assert!(committed.elapsed() < LOST_AFTER, "update {number} is not in `{key}`");
        }
        lags.push(committed.elapsed());
        tokio::time::sleep(PAUSE).await;
    }
    worker.kill().unwrap();
    worker.wait().unwrap();
    lags.sort();
    let at = |share: usize| lags[(lags.len() - 1) * share / 100].as_secs_f64() * 1e3;
    println!(
        "{} single-row updates, {} tenants: from COMMIT to the fresh value p50 {:.1} ms, \
         p90 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
        lags.len(),
        arguments.tenants,
        at(50),
        at(90),
        at(99),
        at(100),
    );
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
