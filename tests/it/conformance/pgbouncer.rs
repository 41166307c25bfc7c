//! Behind `PgBouncer`, where each transaction may run in another session, and another client may use the
//! session next.

use std::num::NonZeroU32;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use preheat::adapter::postgres::{Database, DatabaseSettings, Findings, PostgresHistory, migrate};
use preheat::domain::tenant::Batch;
use preheat::engine::ports::{History, Source, SourceErrorKind};
use preheat_sandbox::Postgres;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection, Row};
use tempfile::TempDir;
use tokio::net::UnixStream;

use super::postgres::{among, settings, source};
use super::{batch, job, read};
use crate::support::{self, LONG, eventually};

/// A `PgBouncer` in front of the server.
pub(crate) struct Bouncer {
    child: Child,
    folder: TempDir,
}

/// Its configuration.
#[derive(Clone, Copy, Debug)]
struct Setup {
    mode: &'static str,
    /// How many connections to the server there are for one database.
    connections: u32,
    /// Which parameters it ignores; it refuses unknown ones.
    drops: &'static str,
}

/// The default configuration, with two connections to the server.
const PLAIN: Setup = Setup { mode: "transaction", connections: 2, drops: "" };

/// What people configure when a driver is refused.
const DROPS: &str = "extra_float_digits,options";

/// Both modes, with so few connections that clients share sessions.
const POOLERS: [Setup; 2] = [
    Setup { mode: "transaction", connections: 3, drops: DROPS },
    Setup { mode: "session", connections: 20, drops: DROPS },
];

/// The user `nobody`: `PgBouncer` refuses to run as root.
const NOBODY: u32 = 65534;

impl Bouncer {
    /// `None` if the program is not installed: then the test is skipped.
    pub(crate) async fn start() -> Option<Self> {
        Self::with(PLAIN).await
    }

    /// The same in front of another server.
    pub(crate) async fn start_before(server: &Postgres) -> Option<Self> {
        Self::with_server(PLAIN, server).await
    }

    async fn with(setup: Setup) -> Option<Self> {
        Self::with_server(setup, support::postgres()).await
    }

    async fn with_server(setup: Setup, server: &Postgres) -> Option<Self> {
        let programs = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].map(Path::new);
        let Some(program) = programs.into_iter().find(|path| path.exists()) else {
            support::skipped("pgbouncer is not installed");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("preheat-bouncer-").tempdir().unwrap();
        let path = folder.path();
        let (host, port) = (server.socket(), server.tcp_port().unwrap());
        let host = host.parent().unwrap().display().to_string();
        std::fs::write(path.join("users"), "\"postgres\" \"\"\n").unwrap();
        let Setup { mode, connections, drops } = setup;
        let config = format!(
            "[databases]\n* = host={host} port={port}\n[pgbouncer]\npool_mode = {mode}\n\
             default_pool_size = {connections}\nignore_startup_parameters = {drops}\n\
             listen_port = 6432\nlisten_addr =\nunix_socket_dir = {0}\n\
             auth_type = trust\nauth_file = {0}/users\nlogfile = {0}/log\n",
            path.display()
        );
        std::fs::write(path.join("config"), config).unwrap();
        let mut command = Command::new(program);
        command.arg(path.join("config")).stdout(Stdio::null()).stderr(Stdio::null());
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            command.uid(NOBODY).gid(NOBODY);
        }
        let bouncer = Self { child: command.spawn().unwrap(), folder };
        eventually("pgbouncer listens", LONG, async || {
            UnixStream::connect(bouncer.folder.path().join(".s.PGSQL.6432")).await.is_ok()
        })
        .await;
        Some(bouncer)
    }

    /// The URL of one of the server's databases through it.
    pub(crate) fn url(&self, database: &str) -> String {
        let folder = self.folder.path().display();
        format!("postgres:///{database}?host={folder}&port=6432&user=postgres")
    }

    /// A client that belongs to another program.
    pub(crate) async fn neighbour(&self, database: &str) -> PgConnection {
        let options: PgConnectOptions = self.url(database).parse().unwrap();
        PgConnection::connect_with(&options.extra_float_digits(None)).await.unwrap()
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// What a session has, and what one of our transactions would leave in it.
const SESSION: &str = "select concat_ws(' ', current_setting('statement_timeout'), \
     current_setting('lock_timeout'), current_setting('row_security'), current_setting('jit'), \
     current_setting('default_transaction_read_only'), current_setting('TimeZone'), \
     current_setting('work_mem'))";

const TABLES: [&str; 3] = ["products", "services", "staff"];

#[tokio::test]
async fn hazard_34_no_job_gets_the_rows_of_another_one_behind_a_pooler() {
    let server = support::clinic().await;
    for setup in POOLERS {
        let Some(bouncer) = Bouncer::with(setup).await else { return };
        let mut sources = Vec::new();
        for _ in 0..2 {
            let settings = settings(&bouncer.url(server.name()));
            let database = Arc::new(Database::connect(settings).await.unwrap());
            sources.push(source(database, "select id from tenants order by id"));
        }
        let list = Arc::new(sources[0].tenants().await.unwrap());
        let all = &Batch::new(list, (0..10).collect());
        // All tables have the same column types, so that only the values would show a mix-up.
        let jobs = TABLES.map(|table| {
            let sql = "select tenant_id, 'TABLE' as name from TABLE where tenant_id = any($1)";
            (
                job(&sql.replace("TABLE", table), &["k:{tenant_id}"]),
                format!("{{\"name\":\"{table}\"}}"),
            )
        });
        // Each client has named statements like those of a driver.
        let mut neighbours = Vec::new();
        for _ in 0..2 {
            let mut neighbour = bouncer.neighbour(server.name()).await;
            let kept: Result<i32, _> =
                sqlx::query_scalar("select 7").fetch_one(&mut neighbour).await;
            neighbours.push((neighbour, kept));
        }
        for _ in 0..10 {
            let reads = sources.iter().flat_map(|source| {
                let each = jobs.iter().flat_map(|job| [job; 3]);
                each.map(move |(job, own)| async move {
                    (read(source, job, all, &[]).await.unwrap(), own)
                })
            });
            for (found, own) in futures::future::join_all(reads).await {
                assert!(!found.is_empty());
                assert!(found.iter().all(|(_, json, _)| json == own), "{setup:?}");
            }
        }
    }
}

#[tokio::test]
async fn hazard_34_a_transactions_settings_hold_behind_a_pooler_and_reach_no_neighbour() {
    let server = support::clinic().await;
    server.execute("create type mood as enum ('sad', 'happy'); create table notes (n int)").await;
    for setup in POOLERS {
        let Some(bouncer) = Bouncer::with(setup).await else { return };
        let mut neighbour = bouncer.neighbour(server.name()).await;
        let mut past = server.connect().await;
        let before: String = sqlx::raw_sql(SESSION).fetch_one(&mut neighbour).await.unwrap().get(0);
        let url = bouncer.url(server.name());
        let bounded = DatabaseSettings {
            statement_timeout: Duration::from_millis(2500),
            time_zone: Some(chrono_tz::Asia::Tokyo),
            ..settings(&format!("{url}&options=-c%20work_mem=7MB"))
        };
        let database = Arc::new(Database::connect(bounded).await.unwrap());
        let source = source(Arc::clone(&database), "select id from tenants order by id");
        let list = Arc::new(source.tenants().await.unwrap());
        let all = Batch::new(list, (0..10).collect());
        let fails = async |sql: &str| {
            read(&source, &job(sql, &["k:{tenant_id}"]), &all, &[]).await.unwrap_err()
        };

        let each = job(
            &format!(
                "select id as tenant_id, 'sad'::mood as mood, ({SESSION}) as session from unnest($1) id"
            ),
            &["k:{tenant_id}"],
        );
        for found in
            futures::future::join_all((0..9).map(|_| read(&source, &each, &all, &[]))).await
        {
            let expected =
                "{\"mood\":\"sad\",\"session\":\"2500ms 2s off off off Asia/Tokyo 7MB\"}";
            assert_eq!(found.unwrap()[0].1, expected, "{setup:?}");
        }
        let error =
            fails("delete from products where tenant_id = any($1) returning tenant_id").await;
        assert_eq!(error.kind, SourceErrorKind::Definition, "{error}");
        assert!(error.message.contains("(25006); hint: "), "{error}");
        assert!(error.message.contains("`database.read_only = false`"), "{error}");
        let left: i64 =
            sqlx::query_scalar("select count(*) from products").fetch_one(&mut past).await.unwrap();
        assert!(left > 0);
        let error = fails("select id as tenant_id, pg_sleep(60)::text from unnest($1) id").await;
        assert_eq!(error.kind, SourceErrorKind::Timeout, "{error}");

        let mut writer = past.begin().await.unwrap();
        sqlx::query("lock table products").execute(&mut *writer).await.unwrap();
        let error = fails("select tenant_id from products where tenant_id = any($1)").await;
        assert_eq!(error.kind, SourceErrorKind::Locked, "{error}");
        assert!(error.message.contains("hint: somebody holds a lock on a table"), "{error}");
        writer.rollback().await.unwrap();

        // The neighbour has used every session, and its settings are unchanged.
        for _ in 0..20 {
            let now: String =
                sqlx::raw_sql(SESSION).fetch_one(&mut neighbour).await.unwrap().get(0);
            assert_eq!(now, before, "{setup:?}");
            sqlx::raw_sql("insert into notes values (1)").execute(&mut neighbour).await.unwrap();
            let kept = sqlx::raw_sql("select count(*)::text from pg_prepared_statements");
            let kept: String = kept.fetch_one(&mut neighbour).await.unwrap().get(0);
            assert_eq!(kept, "0", "{setup:?}");
        }
    }
}

#[tokio::test]
async fn everything_works_behind_pgbouncer_in_transaction_mode() {
    let Some(bouncer) = Bouncer::start().await else { return };
    let server = support::clinic().await;
    server.execute("create type mood as enum ('sad', 'happy')").await;
    let tenants = "select id, timezone from tenants order by id";
    let behind =
        async || Arc::new(Database::connect(settings(&bouncer.url(server.name()))).await.unwrap());
    let mut sources = Vec::new();
    for _ in 0..2 {
        sources.push(source(behind().await, tenants));
    }
    let list = Arc::new(sources[0].tenants().await.unwrap());
    let all = preheat::domain::tenant::Batch::new(Arc::clone(&list), (0..10).collect());
    let jobs = ["products", "services", "staff"].map(|table| {
        let sql = format!(
            "select tenant_id, name, 'happy'::mood as mood, current_setting('transaction_read_only') \
             as ro, current_setting('jit') as jit from {table} where tenant_id = any($1)"
        );
        job(&sql, &["k:{tenant_id}"])
    });
    let broken = job(
        "select tenant_id, 1 / (stock - stock) from products where tenant_id = any($1)",
        &["k:{tenant_id}"],
    );

    // More clients than connections, whose statements use the same sessions.
    for _ in 0..3 {
        let reads = sources.iter().flat_map(|source| {
            jobs.iter().flat_map(|job| [job; 3]).map(|job| read(source, job, &all, &[]))
        });
        for found in futures::future::join_all(reads).await {
            let found = found.unwrap();
            assert!(
                found[0].1.ends_with("\"mood\":\"happy\",\"ro\":\"on\",\"jit\":\"off\"}"),
                "{}",
                found[0].1
            );
        }
        let error = read(&sources[0], &broken, &all, &[]).await.unwrap_err();
        assert_eq!(error.kind, SourceErrorKind::Data, "{error}");
    }
    // The query for some tenants differs on each connection, and may fail within its transaction.
    let whole = source(behind().await, "select id, '; -- ' as timezone from tenants order by id");
    let ids: Vec<_> = [2, 0].map(|position| list.get(position).unwrap().id()).into();
    for source in [&sources[0], &whole, &sources[1], &whole, &sources[0]] {
        assert_eq!(among(source, &[ids[0], "7", ids[1]]).await, [ids[1], ids[0]]);
    }
    assert_eq!(sources[1].describe_tenants().await, Ok(Findings::default()));
    for job in &jobs {
        assert_eq!(sources[1].describe(job).await, Ok(Findings::default()));
    }
    assert_eq!(
        sources[1].describe(&job("select nothing", &["k"])).await.unwrap().problems.len(),
        1
    );
}

#[tokio::test]
async fn a_statement_timeout_and_the_history_work_behind_pgbouncer() {
    let Some(bouncer) = Bouncer::start().await else { return };
    let server = support::database().await;
    let short = Duration::from_millis(300);
    let bounded = DatabaseSettings {
        statement_timeout: short,
        max_connections: NonZeroU32::MIN,
        ..settings(&bouncer.url(server.name()))
    };
    let database = Arc::new(Database::connect(bounded).await.unwrap());
    let source = source(Arc::clone(&database), "select 1");
    let sleep =
        job("select id as tenant_id, pg_sleep(3000)::text from unnest($1) id", &["k:{tenant_id}"]);
    let error = read(&source, &sleep, &batch(&["1"]), &[]).await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Timeout, "{error}");

    assert_eq!(migrate(&database).await.unwrap(), 5);
    assert_eq!(migrate(&database).await.unwrap(), 0);
    let history = PostgresHistory::new(database);
    assert_eq!(history.recent(None, 5).await.unwrap().len(), 0);
}
