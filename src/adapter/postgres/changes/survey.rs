//! Compares the change feed's objects in the database with those that the jobs need.

use sqlx::postgres::PgRow;
use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

use crate::domain::change::{ChangeSource, ChangeSourceId, TouchedTenants, Via};
use crate::domain::job::JobName;

use super::super::error;
use super::log;
use super::rights::{self, Reads, Rights};
use super::sql::{self, Event, Security};
use super::{Refused, TableProblem, Wanted};

/// The first server version that can replace triggers.
const LEAST_VERSION: i32 = 140_000;

/// The findings, in the order of the sources.
pub(super) struct Survey<'s> {
    pub(super) sources: Vec<Surveyed<'s>>,
    pub(super) has_schema: bool,
    /// Triggers that call one of our functions and that no source needs.
    pub(super) spare_triggers: Vec<SpareTrigger>,
    /// Our functions that no source needs.
    pub(super) spare_functions: Vec<SpareFunction>,
    /// Why some sources cannot work.
    pub(super) problems: Vec<TableProblem>,
    /// How the functions must speak.
    pub(super) via: Via,
    pub(super) has_publication: bool,
}

/// One source, and its objects.
pub(super) struct Surveyed<'s> {
    pub(super) triggers: Triggers<'s>,
    pub(super) function: FunctionState,
    /// With whose rights its function must run.
    pub(super) security: Security,
    /// Whether its function speaks another way than it must.
    pub(super) is_switched: bool,
    /// Whether nobody can read its messages, because the publication is missing.
    pub(super) lacks_publication: bool,
    /// The tables that its query reads and that one of its jobs does not watch.
    pub(super) unwatched: Vec<(JobName, String)>,
}

/// The triggers of a source.
pub(super) struct Triggers<'s> {
    pub(super) source: &'s ChangeSource,
    /// Its table, first, and all partitions or children; empty if there is no such table.
    pub(super) relations: Vec<Relation>,
    /// Whether its function names the shared keys that are gone; true if there are none to name.
    pub(super) names_keys: bool,
    /// How its function speaks, if a trigger calls it.
    pub(super) via: Option<Via>,
}

/// The state of a source's function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FunctionState {
    Missing,
    /// It does not do what a new one would do.
    Different,
    /// It speaks another way than it must, and is otherwise as it must be.
    Switched,
    AsItMustBe,
}

/// A relation that must have triggers.
pub(super) struct Relation {
    pub(super) oid: Oid,
    /// In SQL's spelling.
    pub(super) name: String,
    kind: String,
    pub(super) lacking: Vec<(Event, Lack)>,
    /// The versions of the source's triggers on it.
    pub(super) versions: Vec<TriggerVersion>,
}

/// The version of a trigger and of its function, by `oid` and `xmin` of both; it changes with each `alter
/// table … disable trigger` or `enable trigger`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TriggerVersion {
    trigger: (u32, String),
    function: (u32, String),
}

/// What is wrong with a trigger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// It does not exist, or is not what it must be.
    Trigger,
    /// It exists, and somebody has disabled it.
    Switch,
}

/// A trigger that no source needs.
pub(super) struct SpareTrigger {
    pub(super) name: String,
    /// In SQL's spelling.
    pub(super) relation: String,
}

/// A function that no source needs.
pub(super) struct SpareFunction {
    pub(super) name: String,
    /// Its comment.
    pub(super) comment: Option<String>,
}

impl<'s> Triggers<'s> {
    fn missing(source: &'s ChangeSource) -> Self {
        Self { source, relations: Vec::new(), names_keys: true, via: None }
    }

    /// Whether the feed receives changes of the table itself; those of a partition may be missing.
    pub(super) fn is_installed(&self) -> bool {
        self.relations.first().is_some_and(|table| table.lacking.is_empty())
    }

    /// Whether the feed receives changes of its partitions or children too, even if they are written
    /// directly.
    pub(super) fn has_all_triggers(&self) -> bool {
        self.relations.iter().all(|relation| relation.lacking.is_empty())
    }
}

/// A trigger in the database.
pub(super) struct FoundTrigger {
    relation: Oid,
    relation_name: String,
    name: String,
    function: String,
    is_on: bool,
    ty: i16,
    tables: (Option<String>, Option<String>),
    via: Via,
    version: TriggerVersion,
}

/// A function in the database.
pub(super) struct FoundFunction {
    name: String,
    body: String,
    /// Its settings, in the catalogue's form.
    settings: Vec<String>,
    pub(super) security: Security,
    pub(super) owner: Oid,
    comment: Option<String>,
}

impl FoundFunction {
    fn via(&self) -> Via {
        via(self.body.contains(sql::WRITES_TO_LOG))
    }
}

fn via(writes_to_log: bool) -> Via {
    if writes_to_log { Via::Wal } else { Via::Notify }
}

/// Surveys all sources, within an open transaction that may write; `tenants` is the tenant query.
pub(super) async fn survey<'s>(
    connection: &mut PgConnection,
    sources: &'s [ChangeSource],
    tenants: &str,
    Wanted { security, via }: Wanted,
) -> Result<Survey<'s>, Refused> {
    let has_schema = scalar(connection, "select to_regnamespace('preheat') is not null").await?;
    let has_publication = log::first(connection, log::PUBLICATION).await?.is_none();
    let all = found_triggers(connection).await?;
    let functions = found_functions(connection).await?;
    let via = via.unwrap_or_else(|| as_they_speak(&functions));
    if via == Via::Wal && !sources.is_empty() {
        log::require(connection).await?;
    }
    let found = triggers(connection, sources, &all).await?;
    let mut problems = problems(connection, &found, tenants).await?;
    let mut examined = Vec::new();
    // The server can only say what a query reads if it accepts the query.
    let is_sound = problems.is_empty();
    for Triggers { source, .. } in &found {
        let function = function_of(source, &functions);
        let owner = function.map(|function| function.owner);
        let reads = if is_sound { rights::reads(connection, source, owner).await? } else { None };
        let now = function.map_or(Security::Invoker, |function| function.security);
        let security = match &reads {
            Some(reads) => {
                let rights = Rights { now, wanted: security };
                rights::security(connection, source, reads, rights).await?
            }
            None => Ok(Security::Invoker),
        };
        let security = security.unwrap_or_else(|problem| {
            problems.push(problem);
            now
        });
        let unwatched = reads.map(|reads| unwatched(source, &reads, &found));
        let state = function_state(source, function, security, via);
        let is_switched = function.is_some_and(|function| function.via() != via);
        examined.push((state, security, is_switched, unwatched.unwrap_or_default()));
    }
    let (spare_triggers, spare_functions) = spare(&found, all, functions);
    let surveyed = |(triggers, (function, security, is_switched, unwatched))| Surveyed {
        triggers,
        function,
        security,
        is_switched,
        lacks_publication: via == Via::Wal && !has_publication,
        unwatched,
    };
    let sources = found.into_iter().zip(examined).map(surveyed).collect();
    Ok(Survey {
        sources,
        has_schema,
        spare_triggers,
        spare_functions,
        problems,
        via,
        has_publication,
    })
}

/// How the functions of an `install` speak that is not told how: as those that are there, and where they
/// differ, through the log.
fn as_they_speak(functions: &[FoundFunction]) -> Via {
    functions.iter().map(FoundFunction::via).max().unwrap_or(Via::Notify)
}

/// The tables that the query of a source reads and that one of its jobs does not watch.
fn unwatched(source: &ChangeSource, reads: &Reads, all: &[Triggers<'_>]) -> Vec<(JobName, String)> {
    let of_job = |job: &JobName| {
        let watched = all.iter().filter(|triggers| triggers.source.jobs.contains(job));
        let watched = watched.flat_map(|triggers| &triggers.relations);
        let watched: Vec<_> = watched.map(|relation| relation.oid).collect();
        let named = |table| (job.clone(), table);
        reads.outside(&watched).into_iter().map(named).collect::<Vec<_>>()
    };
    source.jobs.iter().flat_map(of_job).collect()
}

/// The triggers of these sources; locks no table.
pub(super) async fn look<'s>(
    connection: &mut PgConnection,
    sources: &'s [ChangeSource],
) -> Result<Vec<Triggers<'s>>, sqlx::Error> {
    let all = found_triggers(connection).await?;
    let mut found = triggers(connection, sources, &all).await?;
    let mut with_keys: Vec<_> =
        found.iter_mut().filter(|triggers| !triggers.source.keys.is_empty()).collect();
    if !with_keys.is_empty() {
        let sources: Vec<_> = with_keys.iter().map(|triggers| triggers.source).collect();
        let as_they_must_be = functions_as_they_must_be(connection, &sources).await?;
        for triggers in &mut with_keys {
            let name = sql::function_name(&triggers.source.id);
            triggers.names_keys = as_they_must_be.contains(&name);
        }
    }
    Ok(found)
}

/// The names of those functions of these sources that do what new ones would do.
async fn functions_as_they_must_be(
    connection: &mut PgConnection,
    sources: &[&ChangeSource],
) -> Result<Vec<String>, sqlx::Error> {
    let sql = "select f.proname::text from pg_proc f \
                 join unnest($1::text[], $2::text[]) as wanted (name, body) \
                   on f.proname = wanted.name and f.prosrc = wanted.body \
               where f.pronamespace = to_regnamespace('preheat')";
    let names: Vec<_> = sources.iter().map(|source| sql::function_name(&source.id)).collect();
    let (ways, both) = ([Via::Notify, Via::Wal], [&names, &names]);
    let names: Vec<_> = both.into_iter().flatten().collect();
    let bodies = |via| sources.iter().map(move |source| sql::body(source, via));
    let bodies: Vec<_> = ways.into_iter().flat_map(bodies).collect();
    sqlx::query_scalar(sql).bind(names).bind(bodies).persistent(false).fetch_all(connection).await
}

async fn triggers<'s>(
    connection: &mut PgConnection,
    sources: &'s [ChangeSource],
    all: &[FoundTrigger],
) -> Result<Vec<Triggers<'s>>, sqlx::Error> {
    let mut found: Vec<_> = sources.iter().map(Triggers::missing).collect();
    for (place, mut relation) in relations(connection, sources).await? {
        let Some(triggers) = found.get_mut(place) else { continue };
        relation.lacking = lacking(&triggers.source.id, relation.oid, all);
        let function = sql::function_name(&triggers.source.id);
        let of_source = all
            .iter()
            .filter(|trigger| trigger.relation == relation.oid && trigger.function == function);
        relation.versions = of_source.clone().map(|trigger| trigger.version.clone()).collect();
        triggers.via = triggers.via.or(of_source.map(|trigger| trigger.via).next());
        triggers.relations.push(relation);
    }
    Ok(found)
}

/// Why the notifications of these sources are, or would be, useless. It waits for locked tables.
pub(super) async fn problems(
    connection: &mut PgConnection,
    found: &[Triggers<'_>],
    tenants: &str,
) -> Result<Vec<TableProblem>, Refused> {
    require_version(connection).await?;
    let mut problems = Vec::new();
    let by_id = found.iter().any(|triggers| triggers.source.tenants != TouchedTenants::Global);
    let id = if by_id { tenants_id(connection, tenants, &mut problems).await? } else { None };
    for Triggers { source, relations, .. } in found {
        let before = problems.len();
        check_relations(source, relations, &mut problems);
        if problems.len() == before {
            check_tenants(connection, source, id.as_ref(), &mut problems).await?;
            check_keys(connection, source, &mut problems).await?;
        }
    }
    Ok(problems)
}

async fn scalar<T>(connection: &mut PgConnection, sql: &'static str) -> Result<T, sqlx::Error>
where
    T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    sqlx::query_scalar(sql).persistent(false).fetch_one(connection).await
}

async fn require_version(connection: &mut PgConnection) -> Result<(), Refused> {
    let version: i32 =
        scalar(connection, "select current_setting('server_version_num')::int").await?;
    if version < LEAST_VERSION {
        let (has, least) = (version / 10_000, LEAST_VERSION / 10_000);
        return Err(Refused::Version(format!(
            "the change feed needs Postgres {least} or newer, and this is {has}"
        )));
    }
    Ok(())
}

async fn found_triggers(connection: &mut PgConnection) -> Result<Vec<FoundTrigger>, sqlx::Error> {
    let sql = "select t.tgrelid as relation, t.tgrelid::regclass::text as relation_name, \
                 t.tgname as name, f.proname as function, t.tgenabled in ('O', 'A') as is_on, \
                 t.tgtype as ty, t.tgoldtable as old, t.tgnewtable as new, \
                 strpos(f.prosrc, $2) > 0 as writes_to_log, \
                 t.oid as trigger_oid, t.xmin::text as trigger_xmin, \
                 f.oid as function_oid, f.xmin::text as function_xmin \
               from pg_trigger t join pg_proc f on f.oid = t.tgfoid \
               where f.pronamespace = to_regnamespace('preheat') and f.proname ~ $1 \
                 and f.prorettype = 'trigger'::regtype and not t.tgisinternal \
               order by 2, 3";
    let query = sqlx::query(sql).bind(sql::FUNCTIONS).bind(sql::WRITES_TO_LOG);
    let rows = query.persistent(false).fetch_all(connection).await?;
    rows.iter().map(found_trigger).collect()
}

fn found_trigger(row: &PgRow) -> Result<FoundTrigger, sqlx::Error> {
    let oid = |column: &str| row.try_get(column).map(|Oid(oid)| oid);
    Ok(FoundTrigger {
        relation: row.try_get("relation")?,
        relation_name: row.try_get("relation_name")?,
        name: row.try_get("name")?,
        function: row.try_get("function")?,
        is_on: row.try_get("is_on")?,
        ty: row.try_get("ty")?,
        tables: (row.try_get("old")?, row.try_get("new")?),
        via: via(row.try_get("writes_to_log")?),
        version: TriggerVersion {
            trigger: (oid("trigger_oid")?, row.try_get("trigger_xmin")?),
            function: (oid("function_oid")?, row.try_get("function_xmin")?),
        },
    })
}

async fn found_functions(connection: &mut PgConnection) -> Result<Vec<FoundFunction>, sqlx::Error> {
    type Row = (String, String, Option<Vec<String>>, bool, Oid, Option<String>);
    let sql = "select f.proname, f.prosrc, f.proconfig, f.prosecdef, f.proowner, \
                 obj_description(f.oid, 'pg_proc') \
               from pg_proc f \
               where f.pronamespace = to_regnamespace('preheat') and f.proname ~ $1 \
                 and f.prorettype = 'trigger'::regtype \
               order by 1";
    let rows: Vec<Row> =
        sqlx::query_as(sql).bind(sql::FUNCTIONS).persistent(false).fetch_all(connection).await?;
    let found = |(name, body, settings, is_definer, owner, comment): Row| {
        let settings = settings.unwrap_or_default();
        let security = if is_definer { Security::Definer } else { Security::Invoker };
        FoundFunction { name, body, settings, security, owner, comment }
    };
    Ok(rows.into_iter().map(found).collect())
}

/// The table of each source and all its partitions or children, the table first, with the source's position.
async fn relations(
    connection: &mut PgConnection,
    sources: &[ChangeSource],
) -> Result<Vec<(usize, Relation)>, sqlx::Error> {
    let sql = "with recursive below as ( \
                 select place, to_regclass(name)::oid as oid, 0 as depth \
                 from unnest($1::text[]) with ordinality as source (name, place) \
                 union \
                 select b.place, i.inhrelid, depth + 1 \
                 from pg_inherits i join below b on i.inhparent = b.oid) \
               select b.place, c.oid, c.oid::regclass::text, c.relkind::text \
               from (select place, oid, min(depth) as depth from below group by 1, 2) b \
                 join pg_class c on c.oid = b.oid \
               order by b.place, b.depth, 3";
    let tables: Vec<_> = sources.iter().map(|source| sql::table(&source.table)).collect();
    let rows: Vec<(i64, Oid, String, String)> =
        sqlx::query_as(sql).bind(tables).persistent(false).fetch_all(connection).await?;
    let relation = |(place, oid, name, kind)| {
        let place = usize::try_from(place - 1).unwrap_or(usize::MAX);
        (place, Relation { oid, name, kind, lacking: Vec::new(), versions: Vec::new() })
    };
    Ok(rows.into_iter().map(relation).collect())
}

fn check_relations(
    source: &ChangeSource,
    relations: &[Relation],
    problems: &mut Vec<TableProblem>,
) {
    let problem = |message: String, hint: &str| TableProblem::new(source, message, hint);
    let table = &source.table;
    let Some(first) = relations.first() else {
        let hint = "write the name as it is in the database, capitals and schema too, or create the \
                    table first";
        problems.push(problem(format!("there is no table `{table}`"), hint));
        return;
    };
    match first.kind.as_str() {
        "r" | "p" => {}
        "v" | "m" => {
            let hint = "name the tables that it reads, with `tenant` or `sql`";
            let message = format!("`{table}` is a view, whose rows change without a trigger");
            problems.push(problem(message, hint));
        }
        "f" => {
            let hint = "take it out of `tables`; the schedule keeps its keys fresh";
            let message = format!("`{table}` is a foreign table, which changes on another server");
            problems.push(problem(message, hint));
        }
        _ => problems.push(problem(format!("`{table}` is no table"), "name a table")),
    }
    let below = relations.iter().skip(1).find(|relation| relation.kind == "f");
    if let Some(below) = below {
        let message = format!(
            "the table `{table}` has the foreign table `{}` below it, on which there can be no trigger",
            below.name
        );
        let hint = "name the partitions that are tables here, or take it out of `tables`";
        problems.push(problem(message, hint));
    }
}

/// The type of an expression, in the catalogue's terms.
struct IdColumn {
    /// Its usual spelling.
    name: String,
    class: Option<IdClass>,
    /// Whether a value's text is the same in every session.
    has_one_text: bool,
}

/// Types for which equal ids have equal texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IdClass {
    Uuid,
    Integer,
    Text,
    /// With trailing blanks.
    Char,
}

/// The type of the tenants' ids. If it cannot be found out, that is a problem of every source.
async fn tenants_id(
    connection: &mut PgConnection,
    tenants: &str,
    problems: &mut Vec<TableProblem>,
) -> Result<Option<IdColumn>, Refused> {
    let query =
        format!("select found.id from (\n{}\n) as found (id) limit 0", sql::nested(tenants));
    match first_column(connection, &query).await? {
        Ok(id) => Ok(Some(id)),
        Err(error) => {
            let message = format!("cannot read the tenant query: {}", words(&error));
            problems.push(TableProblem::of_all(message, "see `preheat check`"));
            Ok(None)
        }
    }
}

/// Checks that the tenants of changed rows can be found.
async fn check_tenants(
    connection: &mut PgConnection,
    source: &ChangeSource,
    id: Option<&IdColumn>,
    problems: &mut Vec<TableProblem>,
) -> Result<(), Refused> {
    let Some(probe) = sql::probe(source) else { return Ok(()) };
    let found = match first_column(connection, &probe).await? {
        Ok(found) => found,
        Err(error) => {
            problems.push(unreadable(source, &error));
            return Ok(());
        }
    };
    let Some(id) = id else { return Ok(()) };
    let is_same_text = match (found.class, id.class) {
        (Some(found), Some(id)) => found == id,
        // If a type has several texts for one id, the source's type must be that of the tenants' ids.
        (None, None) => matches!(source.tenants, TouchedTenants::Sql(_)) && found.name == id.name,
        (Some(_), None) | (None, Some(_)) => false,
    };
    if !is_same_text {
        problems.push(other_text(source, &found, id));
    }
    Ok(())
}

/// Checks that the columns in shared keys exist, and that their types have the same text in every session.
async fn check_keys(
    connection: &mut PgConnection,
    source: &ChangeSource,
    problems: &mut Vec<TableProblem>,
) -> Result<(), Refused> {
    let table = &source.table;
    for (column, probe) in sql::key_probes(source) {
        let (message, hint) = match first_column(connection, &probe).await? {
            Ok(found) if found.has_one_text => continue,
            Ok(found) => (
                format!(
                    "`{column}` of table `{table}` is {}, whose text depends on the session that writes: \
                     a key that is gone would not be found by it",
                    found.name
                ),
                "take `key` out; these keys live until their TTL then".to_owned(),
            ),
            Err(error) if error::code(&error) == Some(UNDEFINED_COLUMN) => (
                format!("the table `{table}` has no column `{column}`"),
                format!(
                    "say which column's value stands in the shared key: \
                     `{{ name = \"{table}\", key = \"…\" }}`"
                ),
            ),
            Err(error) => (
                format!("cannot read `{column}` of table `{table}`: {}", words(&error)),
                "`key` is a column of the table whose value stands in the shared key".to_owned(),
            ),
        };
        let jobs = source.keys.get(column).cloned().unwrap_or_default();
        problems.push(TableProblem { jobs, message, hint });
    }
    Ok(())
}

fn other_text(source: &ChangeSource, found: &IdColumn, id: &IdColumn) -> TableProblem {
    let (table, ty) = (&source.table, &id.name);
    let what = match &source.tenants {
        TouchedTenants::Column(column) => format!("`{column}` of table `{table}`"),
        TouchedTenants::Sql(_) | TouchedTenants::Global => {
            format!("what `sql` returns for table `{table}`")
        }
    };
    let hint = format!(
        "return the tenants' own ids, with a cast or a join: \
         `{{ name = \"{table}\", sql = \"select …::{ty} from changed\" }}`"
    );
    let message = format!(
        "{what} is {}, and the tenants' ids are {ty}: the same id may be another text",
        found.name
    );
    TableProblem::new(source, message, &hint)
}

const UNDEFINED_COLUMN: &str = "42703";

fn unreadable(source: &ChangeSource, error: &sqlx::Error) -> TableProblem {
    let table = &source.table;
    match &source.tenants {
        TouchedTenants::Column(column) if error::code(error) == Some(UNDEFINED_COLUMN) => {
            let message = format!("the table `{table}` has no column `{column}`");
            let hint = format!(
                "say which column holds the tenant's id: `{{ name = \"{table}\", tenant = \"…\" }}`; \
                 or with a query: `{{ name = \"{table}\", sql = \"…\" }}`"
            );
            TableProblem::new(source, message, &hint)
        }
        TouchedTenants::Column(_) | TouchedTenants::Sql(_) | TouchedTenants::Global => {
            let message = format!("cannot tell the tenants of table `{table}`: {}", words(error));
            let hint = "`sql` is a query over the relation `changed`, which has the columns of the \
                        table; its first column is the tenant's id";
            TableProblem::new(source, message, hint)
        }
    }
}

/// The server's message about a query, without the position, which is that in a larger query.
fn words(error: &sqlx::Error) -> String {
    const PROTOCOL_VIOLATION: &str = "08P01";
    match error::database(error) {
        Some(refusal) if refusal.code == PROTOCOL_VIOLATION => {
            "it has a parameter, and nothing is given to it".to_owned()
        }
        Some(refusal) => format!("{} ({})", refusal.message, refusal.code),
        None => error::text(error),
    }
}

/// The type of a query's only column, without reading a row, or the server's message about the query; such an
/// error leaves the transaction as it was. A missing right is no fault of the query.
async fn first_column(
    connection: &mut PgConnection,
    query: &str,
) -> Result<Result<IdColumn, sqlx::Error>, Refused> {
    const NOT_ALLOWED: &str = "42501";
    let sql = format!(
        "with recursive types as ( \
           select oid, typname, typtype, typbasetype from pg_type \
           where oid = (select pg_typeof((\n{query}\n))) \
           union all \
           select t.oid, t.typname, t.typtype, t.typbasetype from pg_type t \
             join types d on d.typtype = 'd' and t.oid = d.typbasetype) \
         select oid::regtype::text, typname::text, typtype::text from types"
    );
    connection.execute(sqlx::raw_sql("savepoint preheat_probe")).await?;
    let asked: Result<Vec<(String, String, String)>, sqlx::Error> =
        sqlx::query_as(AssertSqlSafe(sql)).persistent(false).fetch_all(&mut *connection).await;
    let rows = match asked {
        Ok(rows) => rows,
        Err(error) if error::database(&error).is_some() => {
            connection.execute(sqlx::raw_sql("rollback to savepoint preheat_probe")).await?;
            // Neither is a locked table or a slow server.
            if matches!(error::code(&error), Some(NOT_ALLOWED | "55P03" | "40P01" | "57014")) {
                return Err(error.into());
            }
            return Ok(Err(error));
        }
        Err(error) => return Err(error.into()),
    };
    let name = rows.first().map(|(name, ..)| name.clone()).unwrap_or_default();
    let base = rows.iter().find(|(_, _, kind)| kind != "d");
    let is_enum = base.is_some_and(|(_, _, kind)| kind == "e");
    let base = base.map(|(_, base, _)| base.as_str());
    let class = match base {
        Some("uuid") => Some(IdClass::Uuid),
        Some("int2" | "int4" | "int8") => Some(IdClass::Integer),
        Some("text" | "varchar") => Some(IdClass::Text),
        Some("bpchar") => Some(IdClass::Char),
        _ => None,
    };
    let is_plain = matches!(base, Some("bool" | "citext" | "name" | "numeric" | "oid"));
    Ok(Ok(IdColumn { name, class, has_one_text: class.is_some() || is_enum || is_plain }))
}

fn lacking(id: &ChangeSourceId, relation: Oid, triggers: &[FoundTrigger]) -> Vec<(Event, Lack)> {
    let function = sql::function_name(id);
    let lack = |event: Event| {
        let name = sql::trigger_name(id, event);
        let (old, new) = event.transition_tables();
        let found = triggers.iter().find(|found| {
            found.relation == relation && found.name == name && found.function == function
        });
        match found {
            Some(found)
                if found.ty == event.catalog_type()
                    && found.tables.0.as_deref() == old
                    && found.tables.1.as_deref() == new =>
            {
                (!found.is_on).then_some((event, Lack::Switch))
            }
            Some(_) | None => Some((event, Lack::Trigger)),
        }
    };
    Event::ALL.into_iter().filter_map(lack).collect()
}

fn function_of<'f>(
    source: &ChangeSource,
    functions: &'f [FoundFunction],
) -> Option<&'f FoundFunction> {
    let name = sql::function_name(&source.id);
    functions.iter().find(|function| function.name == name)
}

fn function_state(
    source: &ChangeSource,
    function: Option<&FoundFunction>,
    security: Security,
    via: Via,
) -> FunctionState {
    let Some(found) = function else { return FunctionState::Missing };
    let body = sql::body(source, found.via());
    let has = |setting: &str| found.settings.iter().any(|found| found.starts_with(setting));
    let sees_all_or_fails = has("row_security=off") == sql::reads_tables(source);
    let is_right = found.body == body
        && found.security == security
        && has("search_path=")
        && sees_all_or_fails;
    match (is_right, found.via() == via) {
        (true, true) => FunctionState::AsItMustBe,
        (true, false) => FunctionState::Switched,
        (false, _) => FunctionState::Different,
    }
}

/// The objects that belong to no source.
fn spare(
    sources: &[Triggers<'_>],
    triggers: Vec<FoundTrigger>,
    functions: Vec<FoundFunction>,
) -> (Vec<SpareTrigger>, Vec<SpareFunction>) {
    let is_needed = |found: &FoundTrigger| {
        sources.iter().any(|surveyed| {
            let id = &surveyed.source.id;
            found.function == sql::function_name(id)
                && surveyed.relations.iter().any(|relation| relation.oid == found.relation)
                && Event::ALL.iter().any(|event| found.name == sql::trigger_name(id, *event))
        })
    };
    let is_wanted = |found: &FoundFunction| {
        sources.iter().any(|surveyed| found.name == sql::function_name(&surveyed.source.id))
    };
    let triggers = triggers.into_iter().filter(|found| !is_needed(found));
    let functions = functions.into_iter().filter(|found| !is_wanted(found));
    (
        triggers
            .map(|found| SpareTrigger { name: found.name, relation: found.relation_name })
            .collect(),
        functions.map(|found| SpareFunction { name: found.name, comment: found.comment }).collect(),
    )
}
