//! How much faster a fleet of replicas warms than one, where the database is slow: `scripts/bench fleet 1 2 4`.
//!
//! Each query takes 50 ms in the database, whatever it reads, and a replica has one query under way. So one replica is
//! bound by the time of its queries, and replicas beside each other wait at the same time. All of them are due at the same
//! moment; a run of the fleet has ended when its last part has. The figures are those of the run history.
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

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use preheat_sandbox::{Options, Sandbox};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::PgPool;

/// How long the replicas may take to divide the shares, or to end a run.
const LONGEST: Duration = Duration::from_mins(5);

#[derive(Parser)]
#[command(
    name = "scripts/bench fleet",
    about = "Measures how a fleet scales where the database is slow"
)]
struct Arguments {
    /// How many replicas, one measurement each.
    #[arg(default_values_t = [1, 2, 4])]
    replicas: Vec<usize>,
    /// How many tenants there are.
    #[arg(long, default_value_t = 20_000)]
    tenants: u32,
    /// How long each query takes, in milliseconds.
    #[arg(long, default_value_t = 50)]
    delay: u32,
    /// How many runs the medians are of.
    #[arg(long, default_value_t = 3)]
    runs: i64,
    /// Another build of the program.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// One number of replicas, measured.
struct Measured {
    replicas: usize,
    /// From the due time until the last part ended, in seconds; the median.
    took: f64,
    /// How many tenants a run was for, all parts together.
    tenants: i64,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let program = arguments.program.clone();
    let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_preheat").into());
    let sandbox = Sandbox::start(Options::default()).await.expect("servers");
    let pool = PgPool::connect(&sandbox.postgres().url("postgres")).await.unwrap();
    load(&pool, arguments.tenants).await;
    let mut all = Vec::new();
    for replicas in &arguments.replicas {
        eprintln!("{replicas} replicas");
        all.push(measure(&arguments, &program, &sandbox, &pool, *replicas).await);
    }
    println!(
        "{} tenants, batches of 100, {} ms a query, one query a replica; median of {}",
        arguments.tenants, arguments.delay, arguments.runs
    );
    for Measured { replicas, took, tenants } in &all {
        let speed = all[0].took / took * all[0].replicas as f64;
        println!("{replicas} replicas: {took:.2} s for {tenants} tenants, {speed:.2} times one");
    }
}

async fn load(pool: &PgPool, tenants: u32) {
    let sql = "create table tenants (id int primary key, status text not null default 'active', \
               timezone text not null default 'UTC', created_at timestamptz not null default now()); \
               create table items (tenant_id int not null, name text not null); \
               create index on items (tenant_id);";
    sqlx::raw_sql(sql).execute(pool).await.unwrap();
    for fill in [
        "insert into tenants (id) select generate_series(1, $1)",
        "insert into items select n, 'item of ' || n from generate_series(1, $1) n",
    ] {
        sqlx::query(fill).bind(i32::try_from(tenants).unwrap()).execute(pool).await.unwrap();
    }
    sqlx::raw_sql("analyze").execute(pool).await.unwrap();
}

async fn measure(
    arguments: &Arguments,
    program: &Path,
    sandbox: &Sandbox,
    pool: &PgPool,
    replicas: usize,
) -> Measured {
    let folder = tempfile::tempdir().unwrap();
    // Each run has ended before the next one is due.
    let expected = f64::from(arguments.tenants) / 100.0 * f64::from(arguments.delay) / 1e3;
    let interval = (expected * 1.5 / replicas as f64 + 3.0).ceil();
    fs::create_dir(folder.path().join("jobs")).unwrap();
    let job = format!(
        "schedule = \"every {interval}s\"\nttl = \"1h\"\nbatch = 100\non_start = false\n[query]\n\
         sql = \"\"\"\nwith slow as materialized (select pg_sleep({}))\n\
         select i.tenant_id, i.name from slow, items i where i.tenant_id = any($1)\"\"\"\n\
         [[keys]]\nkey = \"items:{{tenant_id}}\"\n",
        f64::from(arguments.delay) / 1e3
    );
    fs::write(folder.path().join("jobs/items.toml"), job).unwrap();
    empty_history(pool).await;
    let workers: Vec<_> =
        (0..replicas).map(|number| serve(program, sandbox, folder.path(), number)).collect();
    let measured = figures(arguments, pool, replicas).await;
    for mut worker in workers {
        let id = Pid::from_raw(worker.id().try_into().unwrap()).unwrap();
        kill_process(id, Signal::TERM).unwrap();
        worker.wait().unwrap();
    }
    measured
}

/// Empties the history, if a worker has made one.
async fn empty_history(pool: &PgPool) {
    let sql = "select to_regclass('preheat.runs') is not null";
    if sqlx::query_scalar(sql).fetch_one(pool).await.unwrap() {
        sqlx::raw_sql("truncate preheat.runs").execute(pool).await.unwrap();
    }
}

fn serve(program: &Path, sandbox: &Sandbox, folder: &Path, number: usize) -> Child {
    Command::new(program)
        .arg("serve")
        .current_dir(folder)
        .env("DATABASE_URL", sandbox.postgres().url("postgres"))
        .env("REDIS_URL", sandbox.redis().url())
        .env("HOSTNAME", format!("replica-{number}"))
        .env("PREHEAT_HTTP__LISTEN", "127.0.0.1:0")
        .env("PREHEAT_FLEET__ENABLED", "true")
        .env("PREHEAT_RUNNER__CONCURRENCY", "1")
        .env("RUST_LOG", "error")
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Waits until enough runs with as many parts as replicas have ended.
async fn figures(arguments: &Arguments, pool: &PgPool, replicas: usize) -> Measured {
    let sql = "select percentile_disc(0.5) within group (order by took), count(*), max(tenants) from ( \
               select extract(epoch from max(finished_at) - due_at)::float8 as took, \
               sum((report -> 'tenants' ->> 'total')::int8)::int8 as tenants from preheat.runs \
               where trigger = 'schedule' and outcome = 'ok' group by due_at \
               having count(*) = $1 and sum((report -> 'tenants' ->> 'total')::int8) = $2) whole";
    let began = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(began.elapsed() < LONGEST, "{replicas} replicas do not end their runs");
        let found = sqlx::query_as(sql)
            .bind(i64::try_from(replicas).unwrap())
            .bind(i64::from(arguments.tenants))
            .fetch_one(pool);
        let Ok((took, runs, tenants)): Result<(Option<f64>, i64, Option<i64>), _> = found.await
        else {
            continue;
        };
        if let (Some(took), Some(tenants)) = (took, tenants)
            && runs >= arguments.runs
        {
            return Measured { replicas, took, tenants };
        }
    }
}
