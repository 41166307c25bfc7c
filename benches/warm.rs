//! How fast the program warms, against the floor that the two servers set: `scripts/bench`.
//!
//! What is measured is the program itself, as a process: cold (the cache is empty) and refresh (it
//! holds the same keys). The floor is what the servers alone need on this machine, measured in the
//! same rounds: Postgres' CPU time to send the same rows by binary `COPY`, unsorted, and Redis' CPU
//! time to take the same entries from `redis-cli --pipe`, divided by the cores.
//!
//! Postgres' CPU time has a yardstick of its own, nearer to what a warm asks of it: the same rows in
//! the same batches over as many connections, each batch read by one plain query that neither sorts
//! nor computes dates.
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

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use futures::{StreamExt, TryStreamExt, stream};
use preheat_sandbox::{
    Clinic, Options, PostgresOptions, Redis, RedisCluster, RedisOptions, Sandbox,
};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use sqlx::postgres::{PgConnectOptions, PgPoolCopyExt, PgPoolOptions};
use sqlx::types::Uuid;
use sqlx::{AssertSqlSafe, Executor, PgPool, Row};

/// The four jobs that list a tenant's data.
const JOBS: [&str; 4] = ["services", "products", "staff", "slots"];

/// What each of them reads.
const READS: [JobRows; 4] = [
    JobRows {
        columns: "tenant_id, id, name, description, duration_minutes, price, updated_at",
        table: "services",
        condition: "active",
    },
    JobRows {
        columns: "tenant_id, id, category, sku, name, description, price, stock, updated_at",
        table: "products",
        condition: "active",
    },
    JobRows {
        columns: "tenant_id, id, name, role, email, bio, working_hours, updated_at",
        table: "staff",
        condition: "active",
    },
    JobRows {
        columns: "tenant_id, id, staff_id, starts_at, ends_at",
        table: "slots",
        condition: "rows.status = 'open'",
    },
];

/// The tenants in the order of the default tenant query.
const TENANTS: &str = "select id from tenants where status = 'active' order by created_at, id";

/// The tenants in a batch, unless the job's file says how many.
const BATCH: usize = 100;

/// `/proc` counts CPU time in these, on every Linux.
const TICKS_A_SECOND: f64 = 100.0;

/// How often the memory of the running program is looked at; its peak never goes down.
const LOOK_EVERY: Duration = Duration::from_millis(5);

#[derive(Parser)]
#[command(name = "scripts/bench", about = "Measures `preheat warm` against the servers' floor")]
struct Arguments {
    /// How many tenants the sample clinic has.
    #[arg(long, default_value_t = 2000)]
    tenants: u32,
    /// How many rounds the medians are of.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Batches in flight.
    #[arg(long, default_value_t = 4)]
    concurrency: u32,
    /// Database connections.
    #[arg(long, default_value_t = 4)]
    connections: u32,
    /// How the tenants' rows lie on disk.
    #[arg(long, value_enum, default_value_t = Order::Insertion)]
    order: Order,
    /// The folder of job files.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/jobs"))]
    jobs: PathBuf,
    /// The program to measure, for comparing two builds.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_preheat"))]
    program: PathBuf,
    /// Another build to measure in the same rounds, in turn.
    #[arg(long)]
    against: Option<PathBuf>,
    /// Warm a Redis Cluster of three nodes on this machine in the same rounds, too.
    #[arg(long)]
    cluster: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// How the tenants' rows lie on disk.
#[derive(Clone, Copy, ValueEnum)]
enum Order {
    /// Tenant by tenant, as the tenant query lists them.
    Insertion,
    /// Tenant by tenant, but the tenant query lists the tenants in another order.
    Shuffled,
    /// The rows of all tenants mixed, and the tenants listed in another order, too.
    Random,
}

impl Order {
    /// Brings the sample clinic into this order. The ids look random, and so does their order.
    fn sql(self) -> String {
        const LIST: &str = "update tenants set created_at = timestamptz '2000-01-01'
            + (hashtext(id::text) & 1073741823) * interval '1 second'; cluster tenants using tenants_pkey;";
        match self {
            Self::Insertion => String::new(),
            Self::Shuffled => LIST.to_owned(),
            Self::Random => {
                let mix = JOBS.map(|table| format!("cluster {table} using {table}_pkey;"));
                format!("{LIST}{}", mix.concat())
            }
        }
    }
}

/// The rows that a job reads.
struct JobRows {
    columns: &'static str,
    table: &'static str,
    condition: &'static str,
}

impl JobRows {
    /// The rows of all active tenants, in the order they lie on disk.
    fn of_all(&self) -> String {
        let Self { columns, table, condition } = self;
        let columns = columns.split(", ").map(|column| format!("rows.{column}"));
        let columns = columns.collect::<Vec<_>>().join(", ");
        format!(
            "select {columns} from {table} rows join tenants on tenants.id = rows.tenant_id
              where tenants.status = 'active' and {condition}"
        )
    }

    /// The rows of some tenants, in no order.
    fn of_batch(&self) -> String {
        let Self { columns, table, condition } = self;
        format!("select {columns} from {table} rows where tenant_id = any($1) and {condition}")
    }
}

/// A program's warms, round by round.
#[derive(Default)]
struct Warms {
    cold: Vec<Warm>,
    refresh: Vec<Warm>,
}

/// What one warm took.
#[derive(Clone, Copy)]
struct Warm {
    wall: f64,
    peak_rss: f64,
    program_cpu: f64,
    postgres_cpu: f64,
    redis_cpu: f64,
}

/// What the servers alone take.
#[derive(Clone, Copy)]
struct Floor {
    postgres_cpu: f64,
    redis_cpu: f64,
    /// Postgres' CPU time to send the same rows in the same batches, unsorted and undated.
    plain_cpu: f64,
}

/// The CPU time of the two servers so far.
struct ServerCpu {
    postgres: f64,
    redis: f64,
}

/// What is in the cache after a warm.
struct Entries {
    keys: usize,
    bytes: usize,
    /// The same entries as commands.
    commands: PathBuf,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    // The planner and the compiler of queries are as they come: what they do to a batch's plan counts.
    let settings = [("autovacuum", "off"), ("shared_buffers", "512MB"), ("jit", "on")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let postgres = PostgresOptions { settings, ..PostgresOptions::default() };
    let sandbox =
        Sandbox::start(Options { postgres, ..Options::default() }).await.expect("servers");
    eprintln!("loading {} tenants", arguments.tenants);
    let url = sandbox.postgres().url("postgres");
    Clinic::bench(arguments.tenants).load(&url).await.expect("the sample clinic");
    lay_out(arguments.order, &url).await;

    let folder = tempfile::tempdir().unwrap();
    let cluster = || RedisCluster::start(3, false, &RedisOptions::default()).expect("a cluster");
    let cluster = arguments.cluster.then(cluster);
    let bench = Bench { arguments, sandbox, cluster, folder: folder.path().to_owned() };
    bench.run().await;
}

async fn lay_out(order: Order, url: &str) {
    let pool = PgPool::connect(url).await.unwrap();
    let sql = order.sql();
    for statement in sql.split_inclusive(';').chain(["vacuum analyze"]) {
        pool.execute(AssertSqlSafe(statement)).await.unwrap();
    }
    pool.close().await;
}

struct Bench {
    arguments: Arguments,
    sandbox: Sandbox,
    cluster: Option<RedisCluster>,
    folder: PathBuf,
}

impl Bench {
    async fn run(&self) {
        // One round that does not count: it fills the database's buffers and gives the entries.
        self.flush().await;
        let url = self.sandbox.redis().url();
        self.warm(&self.arguments.program, &url);
        let queries = self.queries();
        let entries = self.entries().await;
        let (mut warms, mut others, mut floors) = (Warms::default(), Warms::default(), Vec::new());
        let mut on_cluster = Warms::default();
        for round in 1..=self.arguments.runs {
            eprintln!("round {round} of {}", self.arguments.runs);
            let program = &self.arguments.program;
            let mut in_turn = vec![(program, url.clone(), &mut warms)];
            let other = self.arguments.against.as_ref();
            in_turn.extend(other.map(|other| (other, url.clone(), &mut others)));
            let cluster = self.cluster.as_ref();
            in_turn.extend(cluster.map(|cluster| (program, cluster.url(), &mut on_cluster)));
            if round.is_multiple_of(2) {
                in_turn.reverse();
            }
            for (program, url, warms) in in_turn {
                self.flush().await;
                warms.cold.push(self.warm(program, &url));
                warms.refresh.push(self.warm(program, &url));
            }
            floors.push(self.floor(&entries).await);
        }
        let active = self.count_active().await;
        let header = format!(
            "{} tenants, {active} active, {} order; {} keys, {:.1} MB; {} cores; concurrency {}, \
             {} connections; median of {}",
            self.arguments.tenants,
            self.arguments.order.to_possible_value().unwrap().get_name(),
            entries.keys,
            entries.bytes as f64 / 1e6,
            cores(),
            self.arguments.concurrency,
            self.arguments.connections,
            self.arguments.runs,
        );
        let Warms { cold, refresh } = &warms;
        println!("{header}\n{}{queries}", table(&entries, [cold, refresh], &floors));
        if let Some(other) = &self.arguments.against {
            println!("\n{}", comparison(&other.display().to_string(), &warms, &others));
        }
        if self.cluster.is_some() {
            let title = "a Redis Cluster of three nodes on this machine";
            println!("\n{title}\n{}", comparison("one Redis", &on_cluster, &warms));
        }
    }

    fn command(&self, program: &Path, cache: &str) -> Command {
        let mut command = Command::new(program);
        command
            .arg("warm")
            .args(JOBS)
            .arg("--json")
            .current_dir(&self.folder)
            .env("DATABASE_URL", self.sandbox.postgres().url("postgres"))
            .env("REDIS_URL", cache)
            .env("PREHEAT_JOBS", &self.arguments.jobs)
            .env("PREHEAT_RUNNER__CONCURRENCY", self.arguments.concurrency.to_string())
            .env("PREHEAT_DATABASE__MAX_CONNECTIONS", self.arguments.connections.to_string())
            .stdin(Stdio::null());
        command
    }

    /// Runs the program once with this cache and measures it.
    fn warm(&self, program: &Path, cache: &str) -> Warm {
        let report = File::create(self.report()).unwrap();
        let log = File::create(self.folder.join("log")).unwrap();
        let before = self.server_cpu();
        let start = Instant::now();
        let mut child =
            self.command(program, cache).stdout(report).stderr(log).spawn().expect("the program");
        let id = child.id();
        let pid = Pid::from_raw(id.try_into().unwrap()).unwrap();
        let mut peak_rss = 0.0;
        // It is looked at, not waited for: of a process that has ended but was not waited for, the
        // system still tells the CPU time.
        let watch = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        while waitid(WaitId::Pid(pid), watch).unwrap().is_none() {
            peak_rss = peak_memory(id).unwrap_or(peak_rss);
            std::thread::sleep(LOOK_EVERY);
        }
        let wall = start.elapsed().as_secs_f64();
        let program_cpu = cpu(id, Own).unwrap();
        let status = child.wait().unwrap();
        let after = self.server_cpu();
        if !status.success() {
            let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
            panic!("{status}\n{}\n{}", read(self.folder.join("log")), read(self.report()));
        }
        Warm {
            wall,
            peak_rss,
            program_cpu,
            postgres_cpu: after.postgres - before.postgres,
            redis_cpu: after.redis - before.redis,
        }
    }

    fn report(&self) -> PathBuf {
        self.folder.join("report.json")
    }

    /// From the report of the last warm: the queries of each job, one line.
    fn queries(&self) -> String {
        let report = std::fs::read(self.report()).unwrap();
        let report: serde_json::Value = serde_json::from_slice(&report).expect("a JSON report");
        let mut line = "queries a run:".to_owned();
        for job in report["jobs"].as_array().expect("jobs in the report") {
            let name = job["job"].as_str().expect("the job's name");
            assert_eq!(job["outcome"], "ok", "{name}");
            write!(line, " {name} {}", job["report"]["queries"]).unwrap();
        }
        line
    }

    async fn floor(&self, entries: &Entries) -> Floor {
        let start = self.server_cpu();
        self.read_batches().await;
        let before = self.server_cpu();
        self.copy_rows().await;
        self.flush().await;
        let between = self.server_cpu();
        let status = Command::new("redis-cli")
            .arg("-s")
            .arg(self.sandbox.redis().socket())
            .arg("--pipe")
            .stdin(File::open(&entries.commands).unwrap())
            .stdout(Stdio::null())
            .status()
            .expect("redis-cli");
        assert!(status.success(), "redis-cli: {status}");
        let after = self.server_cpu();
        Floor {
            postgres_cpu: between.postgres - before.postgres,
            redis_cpu: after.redis - between.redis,
            plain_cpu: before.postgres - start.postgres,
        }
    }

    /// Reads the rows of all jobs by plain queries, with the batches and the connections of a warm,
    /// and throws them away.
    async fn read_batches(&self) {
        let options: PgConnectOptions =
            self.sandbox.postgres().url("postgres").parse().expect("a URL");
        let connections = self.arguments.connections;
        let pool = PgPoolOptions::new().max_connections(connections).connect_with(options);
        let pool = pool.await.unwrap();
        let tenants: Vec<Uuid> = sqlx::query_scalar(TENANTS).fetch_all(&pool).await.unwrap();
        let batches = READS.iter().flat_map(|job| {
            let batches = tenants.chunks(self.batch(job.table));
            batches.map(|batch| (job.of_batch(), batch))
        });
        let read = |(sql, batch): (String, &[Uuid])| {
            let query = sqlx::query(AssertSqlSafe(sql)).bind(batch.to_vec()).persistent(false);
            let pool = pool.clone();
            async move {
                let mut rows = query.fetch(&pool);
                while rows.try_next().await.unwrap().is_some() {}
            }
        };
        stream::iter(batches).for_each_concurrent(connections as usize, read).await;
        pool.close().await;
    }

    /// How many tenants a batch of the job has.
    fn batch(&self, job: &str) -> usize {
        let file = self.arguments.jobs.join(format!("{job}.toml"));
        let file = std::fs::read_to_string(file).expect("the job's file");
        let file: toml::Table = file.parse().expect("a job file");
        let said = file.get("batch").and_then(toml::Value::as_integer);
        said.map_or(BATCH, |said| said.try_into().unwrap())
    }

    async fn copy_rows(&self) {
        let pool = self.pool().await;
        for job in READS {
            let copy = format!("copy ({}) to stdout (format binary)", job.of_all());
            let mut stream = pool.copy_out_raw(&copy).await.unwrap();
            while stream.try_next().await.unwrap().is_some() {}
        }
        pool.close().await;
    }

    async fn pool(&self) -> PgPool {
        PgPool::connect(&self.sandbox.postgres().url("postgres")).await.unwrap()
    }

    async fn count_active(&self) -> i64 {
        let sql = "select count(*) from tenants where status = 'active'";
        let pool = self.pool().await;
        sqlx::query(sql).fetch_one(&pool).await.unwrap().get(0)
    }

    /// CPU time of the two servers so far, once no connection to Postgres is left.
    fn server_cpu(&self) -> ServerCpu {
        let postgres = self.sandbox.postgres().pid().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while children(postgres).iter().any(|child| is_client(*child)) {
            assert!(Instant::now() < deadline, "a connection to Postgres does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
        let background = loop {
            // A background process may end between the list and the look; then it is its parent's.
            let all: Option<f64> = children(postgres).iter().map(|child| cpu(*child, Own)).sum();
            if let Some(all) = all {
                break all;
            }
        };
        ServerCpu {
            postgres: cpu(postgres, WithChildren).unwrap() + background,
            redis: self.redis_servers().map(|redis| cpu(redis.pid().unwrap(), Own).unwrap()).sum(),
        }
    }

    /// The one Redis, and the nodes of the cluster.
    fn redis_servers(&self) -> impl Iterator<Item = &Redis> {
        let nodes = self.cluster.as_ref().map(RedisCluster::nodes).unwrap_or_default();
        std::iter::once(self.sandbox.redis()).chain(nodes)
    }

    async fn flush(&self) {
        for server in self.redis_servers() {
            let mut cache = connect(server).await;
            let () = redis::cmd("FLUSHALL").query_async(&mut cache).await.unwrap();
        }
    }

    async fn cache(&self) -> redis::aio::MultiplexedConnection {
        connect(self.sandbox.redis()).await
    }

    /// Writes the warmed keys down as commands.
    async fn entries(&self) -> Entries {
        let commands = self.folder.join("commands");
        let mut file = BufWriter::new(File::create(&commands).unwrap());
        let mut cache = self.cache().await;
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut cache).await.unwrap();
        let mut entries = Entries { keys: 0, bytes: 0, commands };
        let keys: Vec<&String> = keys.iter().filter(|key| !key.starts_with("preheat:")).collect();
        for keys in keys.chunks(1000) {
            let mut reads = redis::pipe();
            for key in keys {
                reads.get(key).pttl(key);
            }
            let read: Vec<(Vec<u8>, i64)> = reads.query_async(&mut cache).await.unwrap();
            for (key, (value, ttl)) in keys.iter().zip(read) {
                assert!(ttl > 0, "{key} has expired, or never will: its TTL is {ttl} ms");
                entries.keys += 1;
                entries.bytes += value.len();
                let ttl = ttl.to_string();
                write_command(&mut file, &[b"SET", key.as_bytes(), &value, b"PX", ttl.as_bytes()]);
            }
        }
        file.flush().unwrap();
        assert!(entries.keys > 0, "nothing was warmed");
        entries
    }
}

fn write_command(file: &mut BufWriter<File>, words: &[&[u8]]) {
    write!(file, "*{}\r\n", words.len()).unwrap();
    for word in words {
        write!(file, "${}\r\n", word.len()).unwrap();
        file.write_all(word).unwrap();
        file.write_all(b"\r\n").unwrap();
    }
}

async fn connect(server: &Redis) -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(server.url()).unwrap();
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    client.get_multiplexed_async_connection_with_config(&config).await.unwrap()
}

/// A line of the table: its name, its digits, and how to get it from the rounds.
type Figure<'a> = (&'a str, usize, Box<dyn Fn(&[Warm]) -> f64 + 'a>);

fn table(entries: &Entries, warms: [&[Warm]; 2], floors: &[Floor]) -> String {
    let postgres = median(floors, |floor| floor.postgres_cpu);
    let redis = median(floors, |floor| floor.redis_cpu);
    let floor = (postgres + redis) / cores() as f64;
    let plain = median(floors, |floor| floor.plain_cpu);
    let (keys, megabytes) = (entries.keys as f64, entries.bytes as f64 / 1e6);
    let wall = |warms: &[Warm]| median(warms, |warm| warm.wall);
    let postgres_cpu = |warms: &[Warm]| median(warms, |warm| warm.postgres_cpu);
    let figures: [Figure<'_>; 10] = [
        ("wall, s", 3, Box::new(wall)),
        ("wall / floor", 2, Box::new(move |warms| wall(warms) / floor)),
        ("keys/s", 0, Box::new(move |warms| keys / wall(warms))),
        ("MB/s", 1, Box::new(move |warms| megabytes / wall(warms))),
        ("peak RSS, MB", 1, Box::new(|warms| median(warms, |warm| warm.peak_rss))),
        ("CPU preheat, s", 2, Box::new(|warms| median(warms, |warm| warm.program_cpu))),
        (
            "CPU preheat, µs a key",
            1,
            Box::new(move |warms| median(warms, |warm| warm.program_cpu) / keys * 1e6),
        ),
        ("CPU Postgres, s", 2, Box::new(postgres_cpu)),
        ("CPU Postgres / plain", 2, Box::new(move |warms| postgres_cpu(warms) / plain)),
        ("CPU Redis, s", 2, Box::new(|warms| median(warms, |warm| warm.redis_cpu))),
    ];
    let mut text = format!("\n{:<24}{:>12}{:>12}\n", "", "cold", "refresh");
    for (name, digits, figure) in figures {
        let [cold, refresh] = warms.map(&figure);
        writeln!(text, "{name:<24}{cold:>12.digits$}{refresh:>12.digits$}").unwrap();
    }
    writeln!(
        text,
        "\nfloor: (Postgres {postgres:.2} s + Redis {redis:.2} s) / {} cores = {floor:.3} s\n\
         plain: Postgres {plain:.2} s for the same batches, unsorted and undated",
        cores(),
    )
    .unwrap();
    text
}

/// What this build takes for each second that the other one takes.
fn comparison(other: &str, warms: &Warms, others: &Warms) -> String {
    type Of = fn(&Warm) -> f64;
    let figures: [(&str, Of); 4] = [
        ("wall", |warm| warm.wall),
        ("CPU preheat", |warm| warm.program_cpu),
        ("CPU Postgres", |warm| warm.postgres_cpu),
        ("CPU Redis", |warm| warm.redis_cpu),
    ];
    let mut text = format!("{:<24}{:>12}{:>12}\n", format!("/ {other}"), "cold", "refresh");
    for (name, figure) in figures {
        let ratio = |ours: &[Warm], theirs: &[Warm]| median(ours, figure) / median(theirs, figure);
        let cold = ratio(&warms.cold, &others.cold);
        let refresh = ratio(&warms.refresh, &others.refresh);
        writeln!(text, "{name:<24}{cold:>12.3}{refresh:>12.3}").unwrap();
    }
    text
}

fn median<T>(measured: &[T], figure: impl Fn(&T) -> f64) -> f64 {
    let mut figures: Vec<f64> = measured.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn cores() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

use Whose::{Own, WithChildren};

/// Whose CPU time.
#[derive(Clone, Copy)]
enum Whose {
    Own,
    /// And that of its children that have ended.
    WithChildren,
}

/// CPU seconds of a process so far; none where it has ended.
fn cpu(id: u32, whose: Whose) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name, in parentheses, may hold spaces; utime is the 14th field of all, so the 12th after it.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let last = match whose {
        Own => 13,
        WithChildren => 15,
    };
    let ticks: u64 = fields[11..last].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Some(ticks as f64 / TICKS_A_SECOND)
}

/// The most memory that a process has had resident so far, in MB; none once it has ended.
fn peak_memory(id: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kilobytes * 1024.0 / 1e6)
}

fn children(id: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    children.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

/// Whether a child of Postgres serves a connection: its title says whose and from where.
fn is_client(id: u32) -> bool {
    let title = std::fs::read(Path::new("/proc").join(id.to_string()).join("cmdline"));
    title.is_ok_and(|title| title.windows(7).any(|window| window == b"[local]"))
}
