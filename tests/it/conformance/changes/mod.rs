//! The change feed on a real server: its triggers, and the listener.

mod install;
mod listening;
mod told;
mod wal;

use std::sync::{Arc, Mutex};

use preheat::adapter::postgres::{
    self, ChangesError, Database, DatabaseSettings, Installed, PostgresFeedSource, Removed,
    Security, Standing, TroubleNote, Wanted, Ways, look,
};
use preheat::domain::change::{Change, ChangeSource, ChangeSourceId, Via, change_sources};
use preheat::domain::job::{Job, Jobs, Table};
use preheat::engine::ports::{Feed, FeedSource};
use tokio::time::timeout;

use super::postgres::settings;
use super::{job, name};
use crate::support::{self, LONG};

/// Makes two tests of each of these functions, one for each way on which triggers speak.
macro_rules! both_ways {
    ($($test:ident),+ $(,)?) => {
        mod by_notify {
            $(#[tokio::test]
            async fn $test() {
                super::$test(preheat::domain::change::Via::Notify).await;
            })+
        }
        mod by_wal {
            $(#[tokio::test]
            async fn $test() {
                super::$test(preheat::domain::change::Via::Wal).await;
            })+
        }
    };
}
pub(super) use both_ways;

/// Installs triggers that speak as the present ones do.
pub(super) async fn install(
    database: &Database,
    sources: &[ChangeSource],
    tenants: &str,
) -> Result<(Vec<Installed>, Removed), ChangesError> {
    postgres::install(database, sources, tenants, invoker(None)).await
}

pub(super) fn invoker(via: Option<Via>) -> Wanted {
    Wanted { security: Security::Invoker, via }
}

pub(super) fn install_sql(via: Via, sources: &[ChangeSource]) -> String {
    postgres::install_sql(sources, Security::Invoker, via)
}

/// A new database on a server that has this way.
pub(super) async fn database(via: Via) -> support::Database {
    match via {
        Via::Notify => support::database().await,
        Via::Wal => support::logical_database().await,
    }
}

/// A feed that listens as triggers speak.
pub(super) fn feed_source(
    via: Via,
    database: &Arc<Database>,
    direct: Option<DatabaseSettings>,
) -> PostgresFeedSource {
    let note: TroubleNote = Arc::new(|_, _| {});
    let source = PostgresFeedSource::new(Arc::clone(database), direct, note).unwrap();
    source.follow(ways(via));
    source
}

fn ways(via: Via) -> Ways {
    Ways { notify: via == Via::Notify, wal: via == Via::Wal }
}

/// Ends the listener's session.
pub(super) fn end_of_listener(via: Via) -> &'static str {
    match via {
        Via::Notify => {
            "select pg_terminate_backend(pid) from pg_stat_activity where query ilike '%listen%' \
             and datname = current_database() and pid <> pg_backend_pid()"
        }
        Via::Wal => {
            "select pg_terminate_backend(pid) from pg_stat_activity \
             where backend_type = 'walsender' and datname = current_database()"
        }
    }
}

pub(super) async fn standing(database: &Database, sources: &[ChangeSource]) -> Standing {
    look(database, sources).await.unwrap().standing
}

/// The tenants of most tests: their ids are numbers.
pub(super) const TENANTS: &str = "select id from tenants";

pub(super) const TABLES: &str = "
  create table tenants (id bigint primary key);
  create table items (id int primary key, tenant_id bigint, n int not null default 0);
";

/// The sources of one job for each of these watched tables.
pub(super) fn sources(tables: &[Table]) -> Vec<ChangeSource> {
    sources_of(tables.iter().map(|table| job_with(table.clone())))
}

pub(super) fn job_with(table: Table) -> Job {
    Job { tables: vec![table], ..job("", &["{tenant_id}"]) }
}

pub(super) fn sources_of(jobs: impl IntoIterator<Item = Job>) -> Vec<ChangeSource> {
    let jobs: Jobs = (0..)
        .zip(jobs)
        .map(|(number, job)| {
            let name = name(&format!("job-{number}"));
            (name.clone(), Arc::new(Job { name, ..job }))
        })
        .collect();
    change_sources(&jobs, "tenant_id")
}

pub(super) fn plain(name: &str) -> Table {
    Table::named(name)
}

pub(super) fn by_column(name: &str, column: &str) -> Table {
    Table { tenant: Some(column.to_owned()), ..plain(name) }
}

pub(super) fn by_sql(name: &str, sql: &str) -> Table {
    Table { sql: Some(sql.to_owned()), ..plain(name) }
}

/// A database with triggers for some tables, and a connected feed.
pub(super) struct Watch {
    pub(super) via: Via,
    pub(super) server: support::Database,
    pub(super) database: Arc<Database>,
    pub(super) sources: Vec<ChangeSource>,
    pub(super) source: PostgresFeedSource,
    pub(super) feed: Box<dyn Feed>,
    pub(super) troubles: Arc<Mutex<Vec<(ChangeSourceId, String)>>>,
}

impl Watch {
    /// Creates these tables, and triggers for one job for each of the watched ones.
    pub(super) async fn new(via: Via, tables: &str, watched: &[Table]) -> Self {
        Self::of(via, tables, sources(watched), TENANTS).await
    }

    pub(super) async fn of(
        via: Via,
        tables: &str,
        sources: Vec<ChangeSource>,
        tenants: &str,
    ) -> Self {
        Self::installed(via, tables, sources, tenants, Security::Invoker).await
    }

    pub(super) async fn installed(
        via: Via,
        tables: &str,
        sources: Vec<ChangeSource>,
        tenants: &str,
        security: Security,
    ) -> Self {
        let server = database(via).await;
        server.execute(tables).await;
        let database = Arc::new(Database::connect(settings(&server.url())).await.unwrap());
        let wanted = Wanted { security, via: Some(via) };
        postgres::install(&database, &sources, tenants, wanted).await.unwrap();
        let troubles = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&troubles);
        let note: TroubleNote = Arc::new(move |source, code| {
            noted.lock().unwrap().push((source.clone(), code.to_owned()));
        });
        let source = PostgresFeedSource::new(Arc::clone(&database), None, note).unwrap();
        source.follow(look(&database, &sources).await.unwrap().ways);
        source.watch(sources.iter().map(|source| source.id.clone()));
        let feed = source.connect().await.unwrap();
        Self { via, server, database, sources, source, feed, troubles }
    }

    pub(super) fn id(&self, table: &str) -> ChangeSourceId {
        let mut found = self.sources.iter().filter(|source| source.table == table);
        let source = found.next().unwrap();
        assert!(found.next().is_none(), "{table} is watched in several ways");
        source.id.clone()
    }

    pub(super) async fn execute(&self, sql: &str) {
        self.server.execute(sql).await;
    }

    /// The statement that sends a payload as a trigger would.
    pub(super) fn emit(&self, payload: &str) -> String {
        match self.via {
            Via::Notify => format!("select pg_notify('preheat_changes', '{payload}')"),
            Via::Wal => {
                format!("select pg_logical_emit_message(true, 'preheat_changes', '{payload}')")
            }
        }
    }

    /// All messages up to a final one of our own, in order.
    pub(super) async fn told(&mut self) -> Vec<Change> {
        const LAST: &str = r#"{"source":"last-word"}"#;
        self.execute(&self.emit(LAST)).await;
        let mut told = Vec::new();
        loop {
            let some = timeout(LONG, self.feed.next()).await.unwrap().unwrap();
            assert!(!some.is_empty());
            for change in some {
                if change.source.as_str() == "last-word" {
                    return told;
                }
                told.push(change);
            }
        }
    }

    /// The notifications of a statement, or of several in one transaction.
    pub(super) async fn tells(&mut self, sql: &str) -> Vec<Change> {
        self.execute(sql).await;
        self.told().await
    }

    /// The ids in a statement's notifications, for the only watched table; each list is sorted.
    pub(super) async fn ids(&mut self, sql: &str) -> Vec<Option<Vec<String>>> {
        let source = self.sources[0].id.clone();
        let told = self.tells(sql).await;
        let of = |change: Change| {
            assert_eq!(change.source, source);
            change.tenants
        };
        told.into_iter().map(of).collect()
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as a change has them")]
pub(super) fn of(ids: &[&str]) -> Option<Vec<String>> {
    Some(ids.iter().map(|id| (*id).to_owned()).collect())
}

pub(super) fn whole(table: &str) -> Standing {
    Standing { whole: vec![table.to_owned()], ..Standing::default() }
}

const STAFF: &str = "
  create table tenants (id bigint primary key);
  create table staff (id int primary key, tenant_id bigint);
  create table slots (id int, staff_id int);
  insert into staff values (1, 10), (2, 20), (3, null);
";
const BY_STAFF: &str = "select staff.tenant_id, 'more' from changed join staff \
                        on staff.id = changed.staff_id;\n-- the tenants of slots";

/// A role with no right but to write to the tables, like an application's.
pub(super) async fn writer(server: &support::Database, tables: &str) -> String {
    let role = format!("writer_of_{}", server.name());
    server
        .execute(&format!(
            "create role {role}; grant insert, update, delete, truncate, select on {tables} to {role}; \
             revoke all on schema preheat from public"
        ))
        .await;
    role
}

const EVENTS: &str = "
  create table tenants (id bigint primary key);
  create table events (tenant_id bigint, day int) partition by range (day);
  create table events_1 partition of events for values from (0) to (10);
  create table events_2 partition of events for values from (10) to (20) partition by list (day);
  create table events_2_10 partition of events_2 for values in (10);
";
