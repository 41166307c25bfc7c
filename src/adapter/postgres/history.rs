//! Run records in schema `preheat`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::domain::job::JobName;
use crate::domain::run::{Outcome, RunFilter, RunId, RunRecord, Trigger};
use crate::engine::ports::{Beside, History, HistoryError};

use super::client::Client;
use super::wire::{Parameter, Session};
use super::{ANSWER_GRACE, Begin, Database, LOCK_WAIT, Transaction, error};

/// The migrations of schema `preheat`. We only ever add to them.
static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// The table that records which migrations a database has. It is in our own schema, like everything
/// else.
const MIGRATIONS_TABLE: &str = "create schema if not exists preheat;
create table if not exists preheat.migrations (
  version     bigint primary key,
  description text not null,
  checksum    bytea not null,
  applied_at  timestamptz not null default now()
);
";

/// The advisory lock of migrations: one process migrates, the others wait. The number is one that
/// other programs are unlikely to use.
const LOCK: i64 = 0x7072_6568_6561_7401;

/// The schema could not be brought up to date.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MigrateError {
    /// The role lacks the rights, or the server takes no writes. An administrator may run the SQL.
    #[error("{message}")]
    NotAllowed {
        /// What the server refused.
        message: String,
        /// The SQL that an administrator has to run.
        sql: String,
    },
    /// This migration was changed after it was applied.
    #[error("cannot migrate: migration {0} differs from the one that was applied")]
    Changed(i64),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// Brings schema `preheat` up to date; returns how many migrations it applied.
///
/// It does so in one transaction, under a lock: a second process waits, and then finds nothing left
/// to do.
pub async fn migrate(database: &Database) -> Result<usize, MigrateError> {
    let begin = Begin::writing(Duration::MAX);
    let transaction = database.begin(begin).await;
    let transaction = transaction.map_err(|error| MigrateError::Failed(error.message))?;
    let not_allowed = |reason: &str| MigrateError::NotAllowed {
        message: format!("cannot keep run records in `{}`: {reason}", database.server()),
        sql: administrator_sql(database.route.first().get_username()),
    };
    match migrate_in(transaction).await {
        Ok(count) => Ok(count),
        Err(Refused::Sql(error)) if is_not_allowed(&error) => {
            Err(not_allowed(&error::text(&error)))
        }
        Err(Refused::Sql(error)) => Err(failed(&error)),
        Err(Refused::Rights) => Err(not_allowed("no rights on `preheat.runs` or `preheat.pauses`")),
        Err(Refused::Changed(version)) => Err(MigrateError::Changed(version)),
    }
}

/// Why a migration failed.
enum Refused {
    Sql(sqlx::Error),
    /// The tables exist, but the role lacks the rights to use them.
    Rights,
    /// This migration was changed after it was applied.
    Changed(i64),
}

impl From<sqlx::Error> for Refused {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

async fn migrate_in(mut transaction: Transaction) -> Result<usize, Refused> {
    let lock = format!("select pg_advisory_xact_lock({LOCK})");
    transaction.execute(sqlx::raw_sql(AssertSqlSafe(lock))).await?;
    let applied = applied(&mut transaction).await?;
    let mut count = 0;
    for migration in MIGRATIONS.iter() {
        match applied.get(&migration.version) {
            Some(checksum) if *checksum == *migration.checksum => continue,
            Some(_) => return Err(Refused::Changed(migration.version)),
            None => {}
        }
        if count == 0 {
            transaction.execute(sqlx::raw_sql(MIGRATIONS_TABLE)).await?;
        }
        transaction.execute(sqlx::raw_sql(migration.sql.clone())).await?;
        transaction.execute(sqlx::raw_sql(AssertSqlSafe(note(migration)))).await?;
        count += 1;
    }
    if !may_use(&mut transaction).await? {
        return Err(Refused::Rights);
    }
    transaction.commit().await?;
    Ok(count)
}

/// The migrations that the database has. Some may be newer than this program, when a newer version
/// runs beside it. That is harmless, because migrations only add.
async fn applied(connection: &mut PgConnection) -> Result<BTreeMap<i64, Vec<u8>>, sqlx::Error> {
    let is_there: bool = sqlx::query_scalar("select to_regclass('preheat.migrations') is not null")
        .persistent(false)
        .fetch_one(&mut *connection)
        .await?;
    if !is_there {
        return Ok(BTreeMap::new());
    }
    let rows: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("select version, checksum from preheat.migrations")
            .persistent(false)
            .fetch_all(connection)
            .await?;
    Ok(rows.into_iter().collect())
}

async fn may_use(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let sql = "select has_table_privilege('preheat.runs', 'select') \
               and has_table_privilege('preheat.runs', 'insert') \
               and has_table_privilege('preheat.runs', 'delete') \
               and has_table_privilege('preheat.pauses', 'select') \
               and has_table_privilege('preheat.pauses', 'insert') \
               and has_table_privilege('preheat.pauses', 'update') \
               and has_table_privilege('preheat.pauses', 'delete')";
    sqlx::query_scalar(sql).persistent(false).fetch_one(connection).await
}

/// The SQL that an administrator runs if the role itself lacks the rights: the missing migrations,
/// and the grants on the schema. It can be run more than once.
pub fn administrator_sql(role: &str) -> String {
    let mut sql = format!("begin;\n{MIGRATIONS_TABLE}");
    for migration in MIGRATIONS.iter() {
        let (version, text, note) = (migration.version, migration.sql.as_str(), note(migration));
        let _a_string_takes_all = write!(
            sql,
            "do $preheat_migration$ begin\n\
             if not exists (select from preheat.migrations where version = {version}) then\n\
             {text}{note}\
             end if;\n\
             end $preheat_migration$;\n"
        );
    }
    let role = role.replace('"', "\"\"");
    let _a_string_takes_all = write!(
        sql,
        "grant usage on schema preheat to \"{role}\";\n\
         grant select on preheat.migrations to \"{role}\";\n\
         grant select, insert, delete on preheat.runs to \"{role}\";\n\
         grant select, insert, update, delete on preheat.pauses to \"{role}\";\n\
         commit;\n"
    );
    sql
}

/// The SQL that records a migration as applied.
fn note(migration: &sqlx::migrate::Migration) -> String {
    let (version, description) = (migration.version, &migration.description);
    let mut checksum = String::new();
    for byte in migration.checksum.iter() {
        let _a_string_takes_all = write!(checksum, "{byte:02x}");
    }
    format!(
        "insert into preheat.migrations (version, description, checksum) \
         values ({version}, '{description}', '\\x{checksum}');\n"
    )
}

/// No right to it (42501), or a server that takes no writes (25006; 0A000 from a server that
/// follows another one).
fn is_not_allowed(error: &sqlx::Error) -> bool {
    matches!(error::code(error), Some("42501" | "25006" | "0A000"))
}

fn failed(error: &sqlx::Error) -> MigrateError {
    MigrateError::Failed(format!("could not migrate schema `preheat`: {}", error::text(error)))
}

/// Run records in `preheat.runs`; [`migrate`] makes it.
#[derive(Clone, Debug)]
pub struct PostgresHistory {
    database: Arc<Database>,
    /// One permit: however many requests read a slow history, runs keep the other connections.
    turns: Arc<Semaphore>,
}

impl PostgresHistory {
    /// The history in this database.
    pub fn new(database: Arc<Database>) -> Self {
        Self { database, turns: Arc::new(Semaphore::new(1)) }
    }

    /// Runs a transaction of sqlx's within the same limits as every other statement.
    pub(super) async fn run<T>(
        &self,
        doing: &str,
        statement: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>>,
    ) -> Result<T, HistoryError> {
        self.run_by(doing, statement).await
    }

    /// Runs a transaction of either client.
    async fn run_by<C: Client, T>(
        &self,
        doing: &str,
        statement: impl for<'c> FnOnce(&'c mut C) -> BoxFuture<'c, Result<T, sqlx::Error>>,
    ) -> Result<T, HistoryError> {
        let run = async {
            let Ok(_turn) = self.turns.acquire().await else {
                unreachable!("the semaphore is never closed")
            };
            let begun = self.database.begin_with::<C>(Begin::writing(LOCK_WAIT)).await;
            let mut transaction = begun.map_err(|error| error.message)?;
            let ran = async {
                let answer = statement(&mut transaction).await?;
                transaction.commit().await?;
                Ok(answer)
            };
            ran.await.map_err(|error: sqlx::Error| error::text(&error))
        };
        let longest = self.database.settings.statement_timeout + ANSWER_GRACE;
        let ran: Result<T, String> = timeout(longest, run)
            .await
            .unwrap_or_else(|_elapsed| Err(format!("no answer within {longest:?}")));
        ran.map_err(|why| HistoryError(format!("could not {doing}: {why}")))
    }
}

const APPEND: &str = "insert into preheat.runs (id, job, trigger, outcome, due_at, started_at, \
     finished_at, replica, version, report, requested_by, all_tenants, shares, fleet) \
     select id, job, trigger, outcome, due_at, started_at, finished_at, replica, version, report, \
     requested_by, all_tenants, shares, fleet \
     from jsonb_to_recordset($1::jsonb) as r(id uuid, job text, trigger text, outcome text, \
     due_at timestamptz, started_at timestamptz, finished_at timestamptz, replica text, \
     version text, report jsonb, requested_by text, all_tenants boolean, shares text, fleet text) \
     on conflict (id) do nothing";

/// Filters that are not given are null. The plan is made with their values, so that an index serves those that
/// are.
const FIND: &str = "select to_json(r)::text from preheat.runs r \
     where ($1::text is null or job = $1) \
     and ($2::text is null or outcome = $2) \
     and ($3::text is null or trigger = $3) \
     and ($4::timestamptz is null or started_at >= $4) \
     and ($5::timestamptz is null or started_at < $5) \
     and ($6::timestamptz is null or (started_at, id) < ($6, $7::uuid)) \
     order by started_at desc, id desc limit $8";

/// For each job: its newest runs, its last run that came to every tenant, and the last of these that was `ok`. The
/// condition on `all_tenants` is that of index `runs_over_all_tenants`.
const RECALL: &str = "select json_build_object('id', id, 'job', job, 'trigger', trigger, \
     'outcome', outcome, 'due_at', due_at, 'started_at', started_at, 'finished_at', finished_at, \
     'replica', replica, 'version', version, 'all_tenants', all_tenants, 'shares', shares, \
     'fleet', fleet, 'report', \
     json_build_object('tenants', report -> 'tenants', 'keys', report -> 'keys', \
     'bytes', report -> 'bytes', 'queries', report -> 'queries', \
     'database_ms', coalesce(report -> 'database_ms', '0'), \
     'failures', coalesce(jsonb_path_query_array(report, '$.failures[0]'), '[]')))::text \
     from unnest($1::text[]) as wanted (name) cross join lateral ( \
     (select * from preheat.runs where job = name \
     order by started_at desc, id desc limit $2) \
     union all (select * from preheat.runs where job = name and outcome in ('ok', 'partial') \
     and coalesce(all_tenants, trigger in ('schedule', 'startup')) \
     order by started_at desc, id desc limit 1) \
     union all (select * from preheat.runs where job = name and outcome = 'ok' \
     and outcome in ('ok', 'partial') \
     and coalesce(all_tenants, trigger in ('schedule', 'startup')) \
     order by started_at desc, id desc limit 1)) found";

/// Which records belong to other runs of the job: the parts of one run were due at the same moment.
macro_rules! of_other_runs {
    () => {
        "job = $1 and id <> $3 \
         and not ($5::boolean and shares is not null and trigger = $6 and due_at = $7 \
         and fleet is not distinct from $8)"
    };
}

const BESIDE: &str = concat!(
    "select (select to_json(r)::text from preheat.runs r where ",
    of_other_runs!(),
    " and (started_at, id) < ($2, $3) order by started_at desc, id desc limit 1), \
     (select to_json(r)::text from preheat.runs r where ",
    of_other_runs!(),
    " and (started_at, id) > ($2, $3) order by started_at, id limit 1), \
     (select to_json(r)::text from preheat.runs r where ",
    of_other_runs!(),
    " and (started_at, id) < ($2, $3) \
     and outcome = 'ok' and coalesce(all_tenants, trigger in ('schedule', 'startup')) = $4 \
     order by started_at desc, id desc limit 1)"
);

const PARTS: &str = "select to_json(r)::text from unnest($1::timestamptz[]) as moment (due) \
     join preheat.runs r on r.due_at >= due and r.due_at < due + interval '1 ms' \
     where r.shares is not null order by r.started_at, r.id";

const GET: &str = "select to_json(r)::text from preheat.runs r where id = $1";

const PRUNE: &str = "delete from preheat.runs where finished_at < $1";

/// A record that a newer version wrote, and this one cannot read, does not hide the others.
fn read_all(found: &[String]) -> Vec<RunRecord> {
    found.iter().filter_map(|text| serde_json::from_str(text).ok()).collect()
}

impl History for PostgresHistory {
    fn append<'a>(&'a self, records: &'a [RunRecord]) -> BoxFuture<'a, Result<(), HistoryError>> {
        Box::pin(async move {
            let doing = "keep run records";
            let records = serde_json::to_string(records)
                .map_err(|error| HistoryError(format!("could not {doing}: {error}")))?;
            // On a connection of the runs: where they use all that are allowed, one of sqlx's would take the place of
            // one of theirs, which costs more than the statement itself.
            self.run_by(doing, |session: &mut Session| {
                let parameters = [Parameter::text(records)];
                Box::pin(async move { session.execute(APPEND, &parameters).await })
            })
            .await
        })
    }

    fn find<'a>(
        &'a self,
        filter: &'a RunFilter,
    ) -> BoxFuture<'a, Result<Vec<RunRecord>, HistoryError>> {
        Box::pin(async move {
            let RunFilter { job, outcome, trigger, since, until, after, limit } = filter.clone();
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let found: Vec<String> = self
                .run("read run records", |connection| {
                    let find = sqlx::query_scalar(FIND)
                        .bind(job.map(|job| job.as_str().to_owned()))
                        .bind(outcome.map(Outcome::as_str))
                        .bind(trigger.map(Trigger::as_str))
                        .bind(since)
                        .bind(until)
                        .bind(after.map(|after| after.started_at))
                        .bind(after.map(|after| after.id.0))
                        .bind(limit);
                    Box::pin(find.persistent(false).fetch_all(connection))
                })
                .await?;
            Ok(read_all(&found))
        })
    }

    fn recall<'a>(
        &'a self,
        jobs: &'a [JobName],
        newest: usize,
    ) -> BoxFuture<'a, Result<Vec<RunRecord>, HistoryError>> {
        Box::pin(async move {
            let jobs: Vec<String> = jobs.iter().map(|job| job.as_str().to_owned()).collect();
            let newest = i64::try_from(newest).unwrap_or(i64::MAX);
            let found: Vec<String> = self
                .run("recall the last runs", |connection| {
                    let recall = sqlx::query_scalar(RECALL).bind(jobs).bind(newest);
                    Box::pin(recall.persistent(false).fetch_all(connection))
                })
                .await?;
            Ok(read_all(&found))
        })
    }

    fn beside<'a>(&'a self, run: &'a RunRecord) -> BoxFuture<'a, Result<Beside, HistoryError>> {
        Box::pin(async move {
            let job = run.job.as_str().to_owned();
            let (started_at, id, for_all) = (run.started_at, run.id.0, run.is_for_all());
            let (is_part, due_at, fleet) = (run.part_of().is_some(), run.due_at, run.fleet.clone());
            let found: (Option<String>, Option<String>, Option<String>) = self
                .run("compare a run record", |connection| {
                    let beside = sqlx::query_as(BESIDE).bind(job).bind(started_at).bind(id);
                    let beside = beside.bind(for_all).bind(is_part).bind(run.trigger.as_str());
                    let beside = beside.bind(due_at).bind(fleet);
                    Box::pin(beside.persistent(false).fetch_one(connection))
                })
                .await?;
            let (earlier, later, last_ok) = found;
            let read = |found: Option<String>| read_all(found.as_slice()).pop();
            Ok(Beside {
                earlier: read(earlier).map(|record| record.listed_id()),
                later: read(later).map(|record| record.listed_id()),
                last_ok: read(last_ok),
            })
        })
    }

    fn parts<'a>(
        &'a self,
        due: &'a [DateTime<Utc>],
    ) -> BoxFuture<'a, Result<Vec<RunRecord>, HistoryError>> {
        Box::pin(async move {
            let millis = due.iter().map(DateTime::timestamp_millis).collect::<BTreeSet<_>>();
            let due = millis.into_iter().filter_map(DateTime::from_timestamp_millis);
            let due: Vec<DateTime<Utc>> = due.collect();
            let found: Vec<String> = self
                .run("read the parts of runs", |connection| {
                    let parts = sqlx::query_scalar(PARTS).bind(due).persistent(false);
                    Box::pin(parts.fetch_all(connection))
                })
                .await?;
            Ok(read_all(&found))
        })
    }

    fn get(&self, id: RunId) -> BoxFuture<'_, Result<Option<RunRecord>, HistoryError>> {
        Box::pin(async move {
            let found: Option<String> = self
                .run("read a run record", |connection| {
                    let get = sqlx::query_scalar(GET).bind(id.0);
                    Box::pin(get.persistent(false).fetch_optional(connection))
                })
                .await?;
            let read = |text: String| {
                serde_json::from_str(&text).map_err(|error| {
                    HistoryError(format!("cannot read run record `{id}`: {error}"))
                })
            };
            found.map(read).transpose()
        })
    }

    fn prune(&self, before: DateTime<Utc>) -> BoxFuture<'_, Result<u64, HistoryError>> {
        Box::pin(async move {
            self.run("remove old run records", |connection| {
                Box::pin(async move {
                    let prune = sqlx::query(PRUNE).bind(before).persistent(false);
                    Ok(prune.execute(connection).await?.rows_affected())
                })
            })
            .await
        })
    }
}
