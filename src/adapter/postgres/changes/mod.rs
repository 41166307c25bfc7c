//! The change feed's triggers in Postgres: which ones there must be, which ones there are, and the
//! statements that lead from these to those.

mod listen;
mod log;
mod look;
mod notify;
mod payload;
mod rights;
mod sql;
mod survey;
mod wal;

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor};
use tokio::time::{sleep, timeout};

use crate::domain::change::{ChangeSource, TouchedTenants, Via};
use crate::domain::job::JobName;
use crate::engine::ports::{FeedError, SourceError};

use self::survey::{FunctionState, Lack, Survey, Surveyed, Triggers, survey};
use super::{ANSWER_GRACE, Access, Begin, Database, Transaction, error};

pub use self::listen::{PostgresFeedSource, TroubleNote};
pub use self::log::LogProblem;
pub use self::log::could_read_log;
pub(super) use self::log::{LOG_SETTINGS_HINT, log_problem};
pub use self::look::{Looked, Standing, Versions, Ways, look, table_problems};
pub(super) use self::sql::table as quoted_table;
pub use self::sql::{Security, install_sql, uninstall_sql};
pub use self::wal::WaitNote;

/// How long a statement waits for a table that others write to. While it waits, it holds up all
/// later statements on that table, and all on the tables that it has locked already.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// How often the whole is tried if a table is locked.
const LOCK_TRIES: u32 = 5;
/// How long it leaves the tables to others between two tries.
const LOCK_PAUSE: Duration = Duration::from_secs(1);

/// The longest wait of a feed for any answer; a server that is up needs milliseconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How many messages a feed hands on at once.
const AT_ONCE: usize = 1_000;

/// The advisory lock that one `install` holds while others wait: a number that another program
/// hardly uses.
const LOCK: i64 = 0x7072_6568_6561_7402;

/// The triggers could not be installed, removed or read. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangesError {
    /// Some tables cannot have triggers.
    #[error("{}", listed(.0))]
    Tables(Vec<TableProblem>),
    /// The role lacks a right, or the server accepts no writes.
    #[error("{0}")]
    NotAllowed(String),
    /// The server is too old.
    #[error("{0}")]
    Version(String),
    /// Messages through the write-ahead log were asked for, and the server's settings rule them out.
    #[error("{0}; hint: {hint}", hint = LOG_SETTINGS_HINT)]
    Log(String),
    /// Anything else.
    #[error(transparent)]
    Failed(#[from] SourceError),
}

/// Why a table cannot be watched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}; hint: {hint}")]
pub struct TableProblem {
    /// The jobs that watch the table; empty if the problem concerns all jobs.
    pub jobs: Vec<JobName>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

impl TableProblem {
    fn new(source: &ChangeSource, message: String, hint: &str) -> Self {
        Self { jobs: source.jobs.clone(), message, hint: hint.to_owned() }
    }

    fn of_all(message: String, hint: &str) -> Self {
        Self { jobs: Vec::new(), message, hint: hint.to_owned() }
    }
}

fn listed(problems: &[TableProblem]) -> String {
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// The result for one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The table, as the job files write it.
    pub table: String,
    /// How the tenants of its rows are found.
    pub tenants: TouchedTenants,
    /// The columns whose values are in shared keys.
    pub keys: Vec<String>,
    /// How many relations have triggers: the table, and its partitions or children.
    pub relations: usize,
    /// With whose rights its function runs.
    pub security: Security,
    /// How its messages travel.
    pub via: Via,
    /// The tables that its query reads and that a job does not watch, with that job. If a row of
    /// such a table is deleted first, the query no longer finds the tenant.
    pub unwatched: Vec<(JobName, String)>,
    /// What was done.
    pub done: Done,
}

/// What was done for a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// The source was new.
    New,
    /// It existed, but not as it must be now: its version was another one, or triggers were
    /// missing.
    Mended,
    /// Its messages travelled another way, and nothing else was wrong.
    Switched,
    /// It was as it must be, except that the publication was missing which reading its messages needs.
    Published,
    /// Nothing.
    AsItWas,
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// How many triggers.
    pub triggers: usize,
    /// The functions, each by its comment.
    pub functions: Vec<String>,
}

/// Brings the database's triggers into the state that these sources need, in one transaction: it
/// creates what is missing, mends what is different, and removes what no source needs. `tenants` is
/// the tenant query. It locks no table that is already in order.
///
/// A function that reads tables with row-level security gets the rights that `wanted` says; one
/// that is [`Security::Definer`] already stays so.
pub async fn install(
    database: &Database,
    sources: &[ChangeSource],
    tenants: &str,
    wanted: Wanted,
) -> Result<(Vec<Installed>, Removed), ChangesError> {
    let survey = change_triggers(database, sources, tenants, wanted).await?;
    let installed = |surveyed| installed(surveyed, survey.via);
    Ok((survey.sources.iter().map(installed).collect(), removed(&survey)))
}

/// How the functions of an `install` must be.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// With whose rights those run that read tables with row-level security.
    pub security: Security,
    /// How their messages travel; `None` leaves that as it is, and is `NOTIFY` in a new database.
    pub via: Option<Via>,
}

/// Removes every trigger and function of the change feed, in one transaction, and nothing else.
pub async fn uninstall(database: &Database) -> Result<Removed, ChangesError> {
    let wanted = Wanted { security: Security::Invoker, via: Some(Via::Notify) };
    let survey = change_triggers(database, &[], "", wanted).await?;
    Ok(removed(&survey))
}

/// Lets a transaction read the catalogue of every table: it reads no rows, so policies do not
/// matter.
const ALL_TABLES: &str = "set local row_security = on";

/// Begins a look, which only reads and never waits long for a lock.
async fn begin_look(database: &Database) -> Result<Transaction, Refused> {
    let longest = database.settings.statement_timeout;
    let begin = Begin::reading(Access::ReadOnly, longest);
    let mut transaction = database.begin(begin).await.map_err(Refused::Source)?;
    transaction.execute(sqlx::raw_sql(ALL_TABLES)).await?;
    Ok(transaction)
}

const LOOKING: &str = "could not look for the triggers of the change feed";

/// Ends a look; waits a little longer than the server's own timeout.
async fn in_time<T>(
    database: &Database,
    looking: impl Future<Output = Result<T, Refused>>,
) -> Result<T, ChangesError> {
    let longest = database.settings.statement_timeout;
    match timeout(longest + ANSWER_GRACE, looking).await {
        Ok(found) => found.map_err(|refused| refused.into_error(LOOKING)),
        Err(_elapsed) => {
            Err(error::unavailable(format!("{LOOKING}: no answer within {longest:?}")).into())
        }
    }
}

/// An answer to a feed, which waits for it no longer than [`ANSWER_WITHIN`]; `text` says why there is none.
async fn answered<T, E>(
    server: &str,
    call: impl Future<Output = Result<T, E>>,
    text: impl FnOnce(&E) -> String,
) -> Result<T, FeedError> {
    match timeout(ANSWER_WITHIN, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(not_listening(server, &text(&error))),
        Err(_elapsed) => Err(not_listening(server, &format!("no answer within {ANSWER_WITHIN:?}"))),
    }
}

fn not_listening(server: &str, reason: &str) -> FeedError {
    FeedError(format!("could not listen to database `{server}`: {reason}"))
}

fn lost(server: &str, reason: &str) -> FeedError {
    FeedError(format!("lost the connection that listens to database `{server}`: {reason}"))
}

/// Why a transaction ended.
enum Refused {
    Sql(sqlx::Error),
    /// No connection was available to begin it.
    Source(SourceError),
    Tables(Vec<TableProblem>),
    Version(String),
    Log(String),
}

impl From<sqlx::Error> for Refused {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl Refused {
    fn is_locked(&self) -> bool {
        const LOCK_NOT_AVAILABLE: &str = "55P03";
        const DEADLOCK: &str = "40P01";
        match self {
            Self::Sql(error) => {
                matches!(error::code(error), Some(LOCK_NOT_AVAILABLE | DEADLOCK))
            }
            Self::Source(_) | Self::Tables(_) | Self::Version(_) | Self::Log(_) => false,
        }
    }

    fn into_error(self, doing: &str) -> ChangesError {
        match self {
            Self::Sql(error) if is_not_allowed(&error) => {
                ChangesError::NotAllowed(format!("{doing}: {}", error::text(&error)))
            }
            Self::Sql(error) => error::source_error(doing, &error).into(),
            Self::Source(error) => error.into(),
            Self::Tables(problems) => ChangesError::Tables(problems),
            Self::Version(message) => ChangesError::Version(message),
            Self::Log(message) => ChangesError::Log(message),
        }
    }
}

/// The role lacks the right or does not own the table (42501), or the server accepts no writes
/// (25006).
fn is_not_allowed(error: &sqlx::Error) -> bool {
    matches!(error::code(error), Some("42501" | "25006"))
}

/// Looks, decides and changes, in one transaction; it tries again while others hold a table.
async fn change_triggers<'s>(
    database: &Database,
    sources: &'s [ChangeSource],
    tenants: &str,
    wanted: Wanted,
) -> Result<Survey<'s>, ChangesError> {
    let doing = "cannot change the triggers of the change feed";
    let mut tries = 1;
    loop {
        let transaction = database.begin(Begin::writing(LOCK_WAIT)).await?;
        match change_once(transaction, sources, tenants, wanted).await {
            Ok(survey) => return Ok(survey),
            Err(refused) if refused.is_locked() && tries < LOCK_TRIES => {}
            Err(refused) if refused.is_locked() => {
                let doing = "could not lock the tables for the triggers of the change feed, which \
                             somebody else writes to in a long transaction";
                return Err(refused.into_error(doing));
            }
            Err(refused) => return Err(refused.into_error(doing)),
        }
        tries += 1;
        sleep(LOCK_PAUSE).await;
    }
}

async fn change_once<'s>(
    mut transaction: Transaction,
    sources: &'s [ChangeSource],
    tenants: &str,
    wanted: Wanted,
) -> Result<Survey<'s>, Refused> {
    let lock = format!("select pg_advisory_xact_lock({LOCK})");
    transaction.execute(sqlx::raw_sql(ALL_TABLES)).await?;
    transaction.execute(sqlx::raw_sql(AssertSqlSafe(lock))).await?;
    let mut survey = survey(&mut transaction, sources, tenants, wanted).await?;
    if !survey.problems.is_empty() {
        return Err(Refused::Tables(std::mem::take(&mut survey.problems)));
    }
    for statement in statements(&survey) {
        transaction.execute(sqlx::raw_sql(AssertSqlSafe(statement))).await?;
    }
    transaction.commit().await?;
    Ok(survey)
}

/// The statements that lead from the present state to the needed one.
fn statements(survey: &Survey<'_>) -> Vec<String> {
    let mut statements = Vec::new();
    if !survey.has_schema && !survey.sources.is_empty() {
        statements.push("create schema preheat".to_owned());
    }
    match (survey.via, survey.has_publication) {
        (Via::Wal, false) if !survey.sources.is_empty() => {
            statements.push(sql::create_publication());
        }
        (Via::Notify, true) => statements.push(sql::drop_publication()),
        (Via::Wal, _) | (Via::Notify, false) => {}
    }
    for surveyed in &survey.sources {
        let Triggers { source, relations, .. } = &surveyed.triggers;
        if surveyed.is_switched {
            statements.extend(relations.iter().map(|relation| sql::await_writers(&relation.name)));
        }
        match surveyed.function {
            FunctionState::Missing | FunctionState::Different | FunctionState::Switched => {
                statements.push(sql::create_function(source, surveyed.security, survey.via));
            }
            FunctionState::AsItMustBe => {}
        }
        for relation in relations {
            for (event, lack) in &relation.lacking {
                let (name, on) = (sql::trigger_name(&source.id, *event), &relation.name);
                statements.push(match lack {
                    Lack::Trigger => sql::create_trigger(&source.id, *event, on),
                    Lack::Switch => format!("alter table {on} enable trigger {name}"),
                });
            }
        }
    }
    let is_changed = |surveyed: &&Surveyed<'_>| done(surveyed) != Done::AsItWas;
    for surveyed in survey.sources.iter().filter(is_changed) {
        statements.push(sql::tell_installed(&surveyed.triggers.source.id));
    }
    for trigger in &survey.spare_triggers {
        let (name, on) = (sql::quoted(&trigger.name), &trigger.relation);
        statements.push(format!("drop trigger {name} on {on}"));
    }
    for function in &survey.spare_functions {
        statements.push(format!("drop function preheat.{}()", function.name));
    }
    statements
}

fn done(surveyed: &Surveyed<'_>) -> Done {
    let has_all = surveyed.triggers.has_all_triggers();
    match surveyed.function {
        FunctionState::Missing => Done::New,
        FunctionState::Switched if has_all => Done::Switched,
        FunctionState::AsItMustBe if !has_all => Done::Mended,
        FunctionState::Switched | FunctionState::Different => Done::Mended,
        FunctionState::AsItMustBe if surveyed.lacks_publication => Done::Published,
        FunctionState::AsItMustBe => Done::AsItWas,
    }
}

fn installed(surveyed: &Surveyed<'_>, via: Via) -> Installed {
    let Triggers { source, relations, .. } = &surveyed.triggers;
    let (table, tenants) = (source.table.clone(), source.tenants.clone());
    Installed {
        table,
        tenants,
        keys: source.keys.keys().cloned().collect(),
        relations: relations.len(),
        security: surveyed.security,
        via,
        unwatched: surveyed.unwatched.clone(),
        done: done(surveyed),
    }
}

fn removed(survey: &Survey<'_>) -> Removed {
    let said = |function: &survey::SpareFunction| {
        let said = function.comment.as_deref().and_then(|said| said.strip_prefix(sql::COMMENT));
        said.unwrap_or(&function.name).to_owned()
    };
    let mut functions: Vec<_> = survey.spare_functions.iter().map(said).collect();
    functions.sort();
    Removed { triggers: survey.spare_triggers.len(), functions }
}
