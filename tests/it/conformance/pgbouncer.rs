//! Behind `PgBouncer` in transaction mode, where no session outlives a transaction.

use std::num::NonZeroU32;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use preheat::adapter::ConnectErrorKind;
use preheat::adapter::postgres::{Database, DatabaseSettings, Findings, PostgresHistory, migrate};
use preheat::engine::port::{History, Source, SourceErrorKind};
use tempfile::TempDir;

use super::postgres::{among, settings, source};
use super::{batch, job, read};
use crate::support::{self, LONG, eventually};

/// A `PgBouncer` with two connections to the server.
pub(crate) struct Bouncer {
    child: Child,
    folder: TempDir,
}

/// Nobody: `PgBouncer` refuses to run as root.
const NOBODY: u32 = 65534;

impl Bouncer {
    /// `None` where the program is not installed: then there is nothing to test.
    pub(crate) async fn start() -> Option<Self> {
        let programs = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].map(Path::new);
        let Some(program) = programs.into_iter().find(|path| path.exists()) else {
            support::skipped("pgbouncer is not installed");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("preheat-bouncer-").tempdir().unwrap();
        let path = folder.path();
        let server = support::postgres();
        let (host, port) = (server.socket(), server.tcp_port().unwrap());
        let host = host.parent().unwrap().display().to_string();
        std::fs::write(path.join("users"), "\"postgres\" \"\"\n").unwrap();
        let config = format!(
            "[databases]\n* = host={host} port={port}\n[pgbouncer]\npool_mode = transaction\n\
             default_pool_size = 2\nlisten_port = 6432\nlisten_addr =\nunix_socket_dir = {0}\n\
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
            bouncer.folder.path().join(".s.PGSQL.6432").exists()
        })
        .await;
        Some(bouncer)
    }

    /// The URL of one of the server's databases through it.
    pub(crate) fn url(&self, database: &str) -> String {
        let folder = self.folder.path().display();
        format!("postgres:///{database}?host={folder}&port=6432&user=postgres")
    }

    pub(crate) fn settings(&self, database: &str) -> DatabaseSettings {
        DatabaseSettings { pgbouncer: true, ..settings(&self.url(database)) }
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[tokio::test]
async fn everything_works_behind_pgbouncer_in_transaction_mode() {
    let Some(bouncer) = Bouncer::start().await else { return };
    let server = support::clinic().await;
    server.execute("create type mood as enum ('sad', 'happy')").await;
    let tenants = "select id, timezone from tenants order by id";
    let mut sources = Vec::new();
    for _ in 0..2 {
        let database = Database::connect(bouncer.settings(server.name())).await.unwrap();
        sources.push(source(Arc::new(database), tenants));
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

    // More clients than connections, whose statements meet in the same sessions.
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
    // The query for some tenants is another one on each connection, and may break in its transaction.
    let whole = source(
        Arc::new(Database::connect(bouncer.settings(server.name())).await.unwrap()),
        "select id, '; -- ' as timezone from tenants order by id",
    );
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

    // Nothing of ours stays in a session that others get.
    let plain =
        DatabaseSettings { max_connections: NonZeroU32::MIN, ..bouncer.settings(server.name()) };
    let left = source(Arc::new(Database::connect(plain).await.unwrap()), "select 1");
    let sql = "select id as tenant_id, (select count(*)::int from pg_prepared_statements) as n, \
               current_setting('statement_timeout') as t from unnest($1) id";
    let found = read(&left, &job(sql, &["k:{tenant_id}"]), &batch(&["1"]), &[]).await.unwrap();
    assert_eq!(found[0].1, "{\"n\":1,\"t\":\"30s\"}", "only the one that asks");
}

#[tokio::test]
async fn a_statement_timeout_and_the_history_work_behind_pgbouncer() {
    let Some(bouncer) = Bouncer::start().await else { return };
    let server = support::database().await;
    let short = Duration::from_millis(300);
    let bounded = DatabaseSettings { statement_timeout: short, ..bouncer.settings(server.name()) };
    let database = Arc::new(Database::connect(bounded).await.unwrap());
    let source = source(Arc::clone(&database), "select 1");
    let sleep =
        job("select id as tenant_id, pg_sleep(3000)::text from unnest($1) id", &["k:{tenant_id}"]);
    let error = read(&source, &sleep, &batch(&["1"]), &[]).await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Timeout, "{error}");

    assert_eq!(migrate(&database).await.unwrap(), 1);
    assert_eq!(migrate(&database).await.unwrap(), 0);
    let history = PostgresHistory::new(database);
    assert_eq!(history.recent(None, 5).await.unwrap().len(), 0);

    let unset = DatabaseSettings { pgbouncer: false, ..bouncer.settings(server.name()) };
    let error = Database::connect(unset).await.unwrap_err();
    assert_eq!(error.kind, ConnectErrorKind::Refused);
    assert!(error.message.contains("database.pgbouncer"), "{error}");
}
