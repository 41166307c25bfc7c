//! What of the change feed is in the database, against what the jobs need.

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Executor, PgConnection};

use crate::domain::change::{ChangeSource, ChangeSourceId, TouchedTenants};

use super::super::error;
use super::sql::{self, Event};
use super::{Refused, TableProblem};

/// The first version whose triggers can be replaced.
const LEAST_VERSION: i32 = 140_000;

/// Everything that was found, in the order of the sources.
pub(super) struct Survey<'s> {
    pub(super) sources: Vec<Surveyed<'s>>,
    pub(super) has_schema: bool,
    /// Triggers that call a function of ours and that no source needs.
    pub(super) spare_triggers: Vec<SpareTrigger>,
    /// Functions of ours that no source needs.
    pub(super) spare_functions: Vec<SpareFunction>,
    /// Why some sources cannot work.
    pub(super) problems: Vec<TableProblem>,
}

/// One source, and what it has.
pub(super) struct Surveyed<'s> {
    pub(super) source: &'s ChangeSource,
    pub(super) function: FunctionState,
    /// Its table, first, and all partitions or children; none where there is no such table.
    pub(super) relations: Vec<Relation>,
}

/// What a source has of its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FunctionState {
    Missing,
    /// It does not do what it would if it were made now.
    Different,
    AsItMustBe,
}

/// A relation on which there have to be triggers.
pub(super) struct Relation {
    oid: Oid,
    /// As SQL has it.
    pub(super) name: String,
    kind: String,
    pub(super) lacking: Vec<(Event, Lack)>,
}

/// What is wrong with a trigger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// It is not there, or is not what it must be.
    Trigger,
    /// It is there, and somebody switched it off.
    Switch,
}

/// A trigger that no source needs.
pub(super) struct SpareTrigger {
    pub(super) name: String,
    /// As SQL has it.
    pub(super) relation: String,
}

/// A function that no source needs.
pub(super) struct SpareFunction {
    pub(super) name: String,
    /// Its comment.
    pub(super) comment: Option<String>,
}

impl Surveyed<'_> {
    /// Whether changes of its table itself are told; those of a partition may not be.
    pub(super) fn is_installed(&self) -> bool {
        let is_whole = |table: &Relation| table.lacking.is_empty();
        self.function != FunctionState::Missing && self.relations.first().is_some_and(is_whole)
    }

    /// Whether changes of its partitions or children are told too, whoever writes to them.
    pub(super) fn has_all_triggers(&self) -> bool {
        self.relations.iter().all(|relation| relation.lacking.is_empty())
    }
}

/// A trigger as it was found.
struct FoundTrigger {
    relation: Oid,
    relation_name: String,
    name: String,
    function: String,
    is_on: bool,
    ty: i16,
    tables: (Option<String>, Option<String>),
}

/// A function as it was found.
struct FoundFunction {
    name: String,
    body: String,
    is_as_made: bool,
    comment: Option<String>,
}

/// Looks at everything, within an open transaction; `tenants` is the query of the tenants.
pub(super) async fn survey<'s>(
    connection: &mut PgConnection,
    sources: &'s [ChangeSource],
    tenants: &str,
) -> Result<Survey<'s>, Refused> {
    require_version(connection).await?;
    let has_schema = scalar(connection, "select to_regnamespace('preheat') is not null").await?;
    let triggers = found_triggers(connection).await?;
    let functions = found_functions(connection).await?;
    let mut problems = Vec::new();
    let by_id = sources.iter().any(|source| source.tenants != TouchedTenants::Fleet);
    let id = if by_id { tenants_id(connection, tenants, &mut problems).await? } else { None };
    let mut surveyed = Vec::new();
    for source in sources {
        let found = problems.len();
        let mut relations = relations(connection, &source.table).await?;
        check_relations(source, &relations, &mut problems);
        if problems.len() == found {
            check_tenants(connection, source, id.as_ref(), &mut problems).await?;
        }
        for relation in &mut relations {
            relation.lacking = lacking(&source.id, relation.oid, &triggers);
        }
        let function = function_state(source, &functions);
        surveyed.push(Surveyed { source, function, relations });
    }
    let (spare_triggers, spare_functions) = spare(&surveyed, triggers, functions);
    Ok(Survey { sources: surveyed, has_schema, spare_triggers, spare_functions, problems })
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
    type Row = (Oid, String, String, String, bool, i16, Option<String>, Option<String>);
    let sql = "select t.tgrelid, t.tgrelid::regclass::text, t.tgname, f.proname, \
                 t.tgenabled in ('O', 'A'), t.tgtype, t.tgoldtable, t.tgnewtable \
               from pg_trigger t join pg_proc f on f.oid = t.tgfoid \
               where f.pronamespace = to_regnamespace('preheat') and f.proname ~ $1 \
                 and f.prorettype = 'trigger'::regtype and not t.tgisinternal \
               order by 2, 3";
    let rows: Vec<Row> =
        sqlx::query_as(sql).bind(sql::FUNCTIONS).persistent(false).fetch_all(connection).await?;
    let found = |(relation, relation_name, name, function, is_on, ty, old, new): Row| {
        let tables = (old, new);
        FoundTrigger { relation, relation_name, name, function, is_on, ty, tables }
    };
    Ok(rows.into_iter().map(found).collect())
}

async fn found_functions(connection: &mut PgConnection) -> Result<Vec<FoundFunction>, sqlx::Error> {
    type Row = (String, String, bool, Option<String>);
    let sql = "select f.proname, f.prosrc, \
                 not f.prosecdef and coalesce(array_to_string(f.proconfig, ','), '') ~ '^search_path=', \
                 obj_description(f.oid, 'pg_proc') \
               from pg_proc f \
               where f.pronamespace = to_regnamespace('preheat') and f.proname ~ $1 \
                 and f.prorettype = 'trigger'::regtype \
               order by 1";
    let rows: Vec<Row> =
        sqlx::query_as(sql).bind(sql::FUNCTIONS).persistent(false).fetch_all(connection).await?;
    let found =
        |(name, body, is_as_made, comment): Row| FoundFunction { name, body, is_as_made, comment };
    Ok(rows.into_iter().map(found).collect())
}

/// A table and everything below it, the table first.
async fn relations(
    connection: &mut PgConnection,
    table: &str,
) -> Result<Vec<Relation>, sqlx::Error> {
    let sql = "with recursive below as ( \
                 select to_regclass($1)::oid as oid, 0 as depth \
                 union \
                 select i.inhrelid, depth + 1 from pg_inherits i join below b on i.inhparent = b.oid) \
               select c.oid, c.oid::regclass::text, c.relkind::text \
               from (select oid, min(depth) as depth from below group by oid) b \
                 join pg_class c on c.oid = b.oid \
               order by b.depth, 2";
    let rows: Vec<(Oid, String, String)> =
        sqlx::query_as(sql).bind(sql::table(table)).persistent(false).fetch_all(connection).await?;
    let relation = |(oid, name, kind)| Relation { oid, name, kind, lacking: Vec::new() };
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

/// The type of an expression, in the words of the catalog.
struct IdColumn {
    /// As people write it.
    name: String,
    class: Option<IdClass>,
}

/// Types whose ids are the same text where they are the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IdClass {
    Uuid,
    Integer,
    Text,
    /// With blanks at the end.
    Char,
}

/// The type of the tenants' ids. One that is not to be had is a problem of every source.
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

/// Whether the tenants of changed rows can be told.
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
        // Of a type whose ids have several texts only the tenants' own will do.
        (None, None) => matches!(source.tenants, TouchedTenants::Sql(_)) && found.name == id.name,
        (Some(_), None) | (None, Some(_)) => false,
    };
    if !is_same_text {
        problems.push(other_text(source, &found, id));
    }
    Ok(())
}

fn other_text(source: &ChangeSource, found: &IdColumn, id: &IdColumn) -> TableProblem {
    let (table, ty) = (&source.table, &id.name);
    let what = match &source.tenants {
        TouchedTenants::Column(column) => format!("`{column}` of table `{table}`"),
        TouchedTenants::Sql(_) | TouchedTenants::Fleet => {
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

fn unreadable(source: &ChangeSource, error: &sqlx::Error) -> TableProblem {
    const UNDEFINED_COLUMN: &str = "42703";
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
        TouchedTenants::Column(_) | TouchedTenants::Sql(_) | TouchedTenants::Fleet => {
            let message = format!("cannot tell the tenants of table `{table}`: {}", words(error));
            let hint = "`sql` is a query over the relation `changed`, which has the columns of the \
                        table; its first column is the tenant's id";
            TableProblem::new(source, message, hint)
        }
    }
}

/// What the server has against a query, without the place: that is one of the query around it.
fn words(error: &sqlx::Error) -> String {
    const PROTOCOL_VIOLATION: &str = "08P01";
    match error::database(error) {
        Some(error) if error.code() == PROTOCOL_VIOLATION => {
            "it has a parameter, and nothing is given to it".to_owned()
        }
        Some(error) => format!("{} ({})", error.message(), error.code()),
        None => error::text(error),
    }
}

/// The type of a query's only column, without a row of it; or what the server has against it, which
/// leaves the transaction as it was. A right that is missing is no fault of the query.
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
         select oid::regtype::text, typname::text, typtype = 'd' from types"
    );
    connection.execute(sqlx::raw_sql("savepoint preheat_probe")).await?;
    let asked: Result<Vec<(String, String, bool)>, sqlx::Error> =
        sqlx::query_as(AssertSqlSafe(sql)).persistent(false).fetch_all(&mut *connection).await;
    let rows = match asked {
        Ok(rows) => rows,
        Err(error) if error::database(&error).is_some() => {
            connection.execute(sqlx::raw_sql("rollback to savepoint preheat_probe")).await?;
            if error::code(&error) == Some(NOT_ALLOWED) {
                return Err(error.into());
            }
            return Ok(Err(error));
        }
        Err(error) => return Err(error.into()),
    };
    let name = rows.first().map(|(name, ..)| name.clone()).unwrap_or_default();
    let base = rows.iter().find(|(_, _, is_domain)| !is_domain).map(|(_, base, _)| base.as_str());
    let class = match base {
        Some("uuid") => Some(IdClass::Uuid),
        Some("int2" | "int4" | "int8") => Some(IdClass::Integer),
        Some("text" | "varchar") => Some(IdClass::Text),
        Some("bpchar") => Some(IdClass::Char),
        _ => None,
    };
    Ok(Ok(IdColumn { name, class }))
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

fn function_state(source: &ChangeSource, functions: &[FoundFunction]) -> FunctionState {
    let name = sql::function_name(&source.id);
    match functions.iter().find(|found| found.name == name) {
        None => FunctionState::Missing,
        Some(found) if found.is_as_made && found.body == sql::body(source) => {
            FunctionState::AsItMustBe
        }
        Some(_) => FunctionState::Different,
    }
}

/// What of all that was found belongs to no source.
fn spare(
    sources: &[Surveyed<'_>],
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
