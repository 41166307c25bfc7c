//! The change feed's triggers in Postgres: what they must be, what is there, and the way between.

mod listen;
mod look;
mod rights;
mod sql;
mod survey;

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor};
use tokio::time::sleep;

use crate::domain::change::{ChangeSource, TouchedTenants};
use crate::domain::job::JobName;
use crate::engine::ports::SourceError;

use self::survey::{FunctionState, Lack, Survey, Surveyed, Triggers, survey};
use super::{Access, Begin, Database, Transaction, error};

pub use self::listen::{PostgresFeedSource, TroubleNote};
pub use self::look::{Looked, Standing, Versions, look, table_problems};
pub use self::rights::Security;
pub(super) use self::sql::table as quoted_table;
pub use self::sql::{install_sql, uninstall_sql};

/// How long a statement waits for a table that somebody writes to. While it waits, it holds up all
/// that want the table after it, and all that want the tables that it has already.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// How often everything is tried when a table was not to be had.
const LOCK_TRIES: u32 = 5;
/// How long others have the tables in between.
const LOCK_PAUSE: Duration = Duration::from_secs(1);

/// One installs, the others wait for it: any number that is not likely another program's.
const LOCK: i64 = 0x7072_6568_6561_7402;

/// The triggers could not be installed, removed or looked at. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangesError {
    /// Some tables cannot have them.
    #[error("{}", listed(.0))]
    Tables(Vec<TableProblem>),
    /// The role may not, or the server takes no writes.
    #[error("{0}")]
    NotAllowed(String),
    /// The server is too old.
    #[error("{0}")]
    Version(String),
    /// Anything else.
    #[error(transparent)]
    Failed(#[from] SourceError),
}

/// Why a table cannot be watched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}; hint: {hint}")]
pub struct TableProblem {
    /// The jobs that want it; none where it is about all of them.
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

/// What became of one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The table, as the job files have it.
    pub table: String,
    /// How the tenants of its rows are found.
    pub tenants: TouchedTenants,
    /// The columns that stand in shared keys.
    pub keys: Vec<String>,
    /// On how many relations there are triggers: the table, and its partitions or children.
    pub relations: usize,
    /// Whose rights its function has.
    pub security: Security,
    /// The tables that its query reads and that a job does not watch: rows that are deleted after
    /// theirs are not found.
    pub unwatched: Vec<(JobName, String)>,
    /// What was done.
    pub done: Done,
}

/// What was done for a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was not there.
    New,
    /// It was there, and not as it must be now: of another version, or without some triggers.
    Mended,
    /// Nothing.
    AsItWas,
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// How many triggers.
    pub triggers: usize,
    /// The functions, each by what it said of itself.
    pub functions: Vec<String>,
}

/// Makes the triggers of the database those that these sources need, in one transaction: makes what
/// is missing, mends what is different, removes what no source needs. `tenants` is the query of the
/// tenants. Tables that are as they must be are not locked.
///
/// A function that reads tables with row-level security becomes what `security` says; one that is
/// [`Security::Definer`] stays it.
pub async fn install(
    database: &Database,
    sources: &[ChangeSource],
    tenants: &str,
    security: Security,
) -> Result<(Vec<Installed>, Removed), ChangesError> {
    let survey = change_triggers(database, sources, tenants, security).await?;
    Ok((survey.sources.iter().map(installed).collect(), removed(&survey)))
}

/// Removes every trigger and function of the change feed, in one transaction, and nothing else.
pub async fn uninstall(database: &Database) -> Result<Removed, ChangesError> {
    let survey = change_triggers(database, &[], "", Security::Invoker).await?;
    Ok(removed(&survey))
}

/// Lets a transaction see every table: it reads no row, so that policies do not matter.
const ALL_TABLES: &str = "set local row_security = on";

/// Begins a look: it reads, and waits for no lock for long.
async fn begin_look(database: &Database) -> Result<Transaction, Refused> {
    let longest = database.settings.statement_timeout;
    let begin = Begin::reading(Access::ReadOnly, longest);
    let mut transaction = database.begin(begin).await.map_err(Refused::Source)?;
    transaction.execute(sqlx::raw_sql(ALL_TABLES)).await?;
    Ok(transaction)
}

/// Why a transaction ended.
enum Refused {
    Sql(sqlx::Error),
    /// There was no connection to begin it on.
    Source(SourceError),
    Tables(Vec<TableProblem>),
    Version(String),
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
            Self::Source(_) | Self::Tables(_) | Self::Version(_) => false,
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
        }
    }
}

/// No right to it or not the owner (42501), or a server that takes no writes (25006).
fn is_not_allowed(error: &sqlx::Error) -> bool {
    matches!(error::code(error), Some("42501" | "25006"))
}

/// Looks, decides and changes, in one transaction; tries again while somebody holds a table.
async fn change_triggers<'s>(
    database: &Database,
    sources: &'s [ChangeSource],
    tenants: &str,
    security: Security,
) -> Result<Survey<'s>, ChangesError> {
    let doing = "cannot change the triggers of the change feed";
    let mut tries = 1;
    loop {
        let transaction = database.begin(Begin::writing(LOCK_WAIT)).await?;
        match change_once(transaction, (sources, tenants), security).await {
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
    (sources, tenants): (&'s [ChangeSource], &str),
    security: Security,
) -> Result<Survey<'s>, Refused> {
    let lock = format!("select pg_advisory_xact_lock({LOCK})");
    transaction.execute(sqlx::raw_sql(ALL_TABLES)).await?;
    transaction.execute(sqlx::raw_sql(AssertSqlSafe(lock))).await?;
    let mut survey = survey(&mut transaction, sources, tenants, security).await?;
    if !survey.problems.is_empty() {
        return Err(Refused::Tables(std::mem::take(&mut survey.problems)));
    }
    for statement in statements(&survey) {
        transaction.execute(sqlx::raw_sql(AssertSqlSafe(statement))).await?;
    }
    transaction.commit().await?;
    Ok(survey)
}

/// What leads from what was found to what must be.
fn statements(survey: &Survey<'_>) -> Vec<String> {
    let mut statements = Vec::new();
    if !survey.has_schema && !survey.sources.is_empty() {
        statements.push("create schema preheat".to_owned());
    }
    for surveyed in &survey.sources {
        let Triggers { source, relations, .. } = &surveyed.triggers;
        match surveyed.function {
            FunctionState::Missing | FunctionState::Different => {
                statements.push(sql::create_function(source, surveyed.security));
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
    match surveyed.function {
        FunctionState::Missing => Done::New,
        FunctionState::AsItMustBe if surveyed.triggers.has_all_triggers() => Done::AsItWas,
        FunctionState::Different | FunctionState::AsItMustBe => Done::Mended,
    }
}

fn installed(surveyed: &Surveyed<'_>) -> Installed {
    let Triggers { source, relations, .. } = &surveyed.triggers;
    let (table, tenants) = (source.table.clone(), source.tenants.clone());
    Installed {
        table,
        tenants,
        keys: source.keys.keys().cloned().collect(),
        relations: relations.len(),
        security: surveyed.security,
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
