//! A query's plan for any tenants: what the query reads, whether it writes, and whether a limit
//! cuts its rows off.

use std::borrow::Borrow;
use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::value::RawValue;
use sqlx::postgres::PgColumn;
use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Executor, Row};
use uuid::Uuid;

use crate::engine::ports::SourceErrorKind;

use super::super::Transaction;
use super::super::column::value;
use super::super::describe;
use super::super::read_error::ReadError;

/// What a plan says about its query.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// The schema and name of each relation that the query reads. Views are expanded, and a
    /// partitioned table is replaced by its partitions.
    pub(super) reads: BTreeSet<(String, String)>,
    /// How the query writes, as in `delete` or `select … for update`.
    pub(super) writes: Option<String>,
    /// Whether `limit` or `offset` cuts the rows of the whole batch.
    pub(super) is_cut: bool,
    /// Whether the server sorts all rows of the result.
    pub(super) sorts: bool,
}

/// Settings for a plan that names every relation. Otherwise the planner would leave out partitions
/// that it prunes, and tables whose constraints match nothing.
const WHOLE_PLAN: &str = "set local plan_cache_mode = force_generic_plan; \
                          set local enable_partition_pruning = off; \
                          set local constraint_exclusion = off";

/// Plans a query with parameters of these types. Only a prepared statement can have a plan that
/// does not depend on the parameters' values.
pub(super) async fn explain(
    transaction: &mut Transaction,
    sql: &str,
    types: &[Oid],
) -> Result<Plan, ReadError> {
    transaction.execute(sqlx::raw_sql(WHOLE_PLAN)).await?;
    let statement = Statement::prepare(transaction, sql, types).await?;
    transaction.execute(sqlx::raw_sql("savepoint explain")).await?;
    let explain = format!("explain (verbose, format json) execute {}", statement.call());
    let explained = sqlx::query(AssertSqlSafe(explain)).persistent(false);
    let explained = explained.fetch_one(&mut **transaction).await;
    transaction.execute(sqlx::raw_sql("rollback to explain")).await?;
    statement.deallocate(transaction).await?;
    let row = explained?;
    read(value(&row, 0).unwrap_or_default()).map_err(|error| {
        let message = format!("the plan of the query could not be read: {error}");
        ReadError::Other(SourceErrorKind::Definition, message)
    })
}

/// A statement that SQL's `prepare` made, for as long as we ask about it.
///
/// It outlives its transaction, but must not stay in a session that a pooler gives to other
/// clients. If it cannot be deallocated, the connection is lost, or we close it while its
/// transaction is open. Then a pooler closes the session too.
pub(super) struct Statement {
    name: String,
    parameters: usize,
}

impl Statement {
    /// Prepares a query with parameters of these types.
    pub(super) async fn prepare(
        transaction: &mut Transaction,
        sql: &str,
        types: &[Oid],
    ) -> Result<Self, ReadError> {
        let statement = Self::prepare_with(transaction, sql, types).await?;
        match statement.types(transaction).await?.len() {
            wanted if wanted > types.len() => {
                statement.deallocate(transaction).await?;
                Err(ReadError::Parameters { wanted, given: types.len() })
            }
            _as_many_or_fewer => Ok(statement),
        }
    }

    /// Prepares a query whose first parameters have these types. The server infers the types of others.
    async fn prepare_with(
        transaction: &mut Transaction,
        sql: &str,
        types: &[Oid],
    ) -> Result<Self, ReadError> {
        let name = format!("preheat_{}", Uuid::now_v7().simple());
        let declared = listed(&type_names(transaction, types).await?);
        let before = format!("prepare {name}{declared} as\n");
        let prepared = execute(transaction, format!("{before}{sql}")).await;
        prepared.map_err(|error| ReadError::from(error).after(before.chars().count()))?;
        Ok(Self { name, parameters: types.len() })
    }

    /// The types of the statement's parameters: of declared ones, and of those that its text adds.
    async fn types(&self, transaction: &mut Transaction) -> Result<Vec<Oid>, sqlx::Error> {
        let sql = "select parameter_types::oid[] from pg_prepared_statements where name = $1";
        let types = sqlx::query_scalar(sql).bind(&self.name).persistent(false);
        types.fetch_one(&mut **transaction).await
    }

    /// The statement's name, with a NULL for each parameter.
    pub(super) fn call(&self) -> String {
        format!("{}{}", self.name, listed(&vec!["null"; self.parameters]))
    }

    pub(super) async fn deallocate(self, transaction: &mut Transaction) -> Result<(), sqlx::Error> {
        execute(transaction, format!("deallocate {}", self.name)).await
    }
}

/// The types of a query's parameters if only the first ones are declared; nothing if the server cannot infer
/// the others.
pub(super) async fn inferred_types(
    transaction: &mut Transaction,
    sql: &str,
    declared: &[Oid],
) -> Result<Vec<Oid>, ReadError> {
    let Some((statement, types)) = inferred(transaction, sql, declared).await? else {
        return Ok(Vec::new());
    };
    statement.deallocate(transaction).await?;
    Ok(types)
}

/// The columns of a query if only its first parameters are declared; none if the server cannot infer the
/// types of the others.
pub(super) async fn inferred_columns(
    transaction: &mut Transaction,
    sql: &str,
    declared: &[Oid],
) -> Result<Vec<PgColumn>, ReadError> {
    let sql = describe::one_row_of_nulls(sql);
    let Some((statement, _)) = inferred(transaction, &sql, declared).await? else {
        return Ok(Vec::new());
    };
    // By the simple protocol, the driver looks up no type.
    let row = sqlx::raw_sql(AssertSqlSafe(format!("execute {}", statement.call())));
    let row = transaction.fetch_one(row).await;
    transaction.execute(sqlx::raw_sql("rollback to inferred")).await?;
    statement.deallocate(transaction).await?;
    Ok(row?.columns().to_vec())
}

/// Prepares a query of whose parameters only the first ones are declared, after a savepoint `inferred`;
/// `None` if the server refuses it.
async fn inferred(
    transaction: &mut Transaction,
    sql: &str,
    declared: &[Oid],
) -> Result<Option<(Statement, Vec<Oid>)>, ReadError> {
    transaction.execute(sqlx::raw_sql("savepoint inferred")).await?;
    match Statement::prepare_with(transaction, sql, declared).await {
        Ok(statement) => {
            let types = statement.types(transaction).await?;
            Ok(Some((Statement { parameters: types.len(), ..statement }, types)))
        }
        Err(error) if error.is_refusal() => {
            transaction.execute(sqlx::raw_sql("rollback to inferred")).await?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The words in parentheses; nothing if there are none.
fn listed<S: Borrow<str>>(words: &[S]) -> String {
    if words.is_empty() { String::new() } else { format!(" ({})", words.join(", ")) }
}

/// Executes a single statement: the server refuses a text that contains a second one.
async fn execute(transaction: &mut Transaction, sql: String) -> Result<(), sqlx::Error> {
    sqlx::query(AssertSqlSafe(sql)).persistent(false).execute(&mut **transaction).await?;
    Ok(())
}

/// The types' names in SQL.
pub(super) async fn type_names(
    transaction: &mut Transaction,
    types: &[Oid],
) -> Result<Vec<String>, sqlx::Error> {
    let sql = "select format_type(oid, null) from unnest($1) with ordinality as given (oid, place) \
               order by place";
    let names = sqlx::query_scalar(sql).bind(types).persistent(false);
    names.fetch_all(&mut **transaction).await
}

#[derive(Deserialize)]
struct Explained<'j> {
    #[serde(borrow, rename = "Plan")]
    plan: &'j RawValue,
}

/// One node of a plan. Its children are parsed one level at a time, because a recursive parser
/// gives up on deep plans.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node<'j> {
    #[serde(rename = "Node Type")]
    kind: String,
    operation: Option<String>,
    #[serde(rename = "Parent Relationship")]
    relationship: Option<String>,
    schema: Option<String>,
    #[serde(rename = "Relation Name")]
    relation: Option<String>,
    #[serde(borrow, default)]
    plans: Vec<&'j RawValue>,
}

impl Node<'_> {
    /// Whether the node passes its rows to the node above, unlike one that is computed once or for
    /// each row.
    fn is_input(&self) -> bool {
        !matches!(self.relationship.as_deref(), Some("InitPlan" | "SubPlan"))
    }
}

/// Reads the JSON of `explain`.
fn read(json: &[u8]) -> Result<Plan, serde_json::Error> {
    let explained: Vec<Explained<'_>> = serde_json::from_slice(json)?;
    let mut plan = Plan::default();
    // Each node comes with whether it is on the trunk: the path that all rows of the result take.
    let mut to_note = Vec::new();
    for Explained { plan: root } in explained {
        let root: Node<'_> = serde_json::from_str(root.get())?;
        plan.sorts |= matches!(root.kind.as_str(), "Sort" | "Incremental Sort" | "Gather Merge");
        to_note.push((root, true));
    }
    while let Some((node, is_on_trunk)) = to_note.pop() {
        plan.note(&node, is_on_trunk);
        let children = node.plans.iter().map(|child| serde_json::from_str(child.get()));
        let children: Vec<Node<'_>> = children.collect::<Result<_, _>>()?;
        let is_trunk = is_on_trunk && children.iter().filter(|child| child.is_input()).count() == 1;
        to_note.extend(children.into_iter().map(|child| {
            let is_on_trunk = is_trunk && child.is_input();
            (child, is_on_trunk)
        }));
    }
    Ok(plan)
}

impl Plan {
    fn note(&mut self, node: &Node<'_>, is_on_trunk: bool) {
        match node.kind.as_str() {
            "ModifyTable" => {
                let operation = node.operation.as_deref().unwrap_or("write");
                self.writes.get_or_insert_with(|| operation.to_lowercase());
            }
            "LockRows" => {
                self.writes.get_or_insert_with(|| "select … for update".to_owned());
            }
            "Limit" if is_on_trunk => self.is_cut = true,
            _ => {}
        }
        if let (Some(schema), Some(relation)) = (&node.schema, &node.relation) {
            self.reads.insert((schema.clone(), relation.clone()));
        }
    }
}

/// A relation that a query reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRelation {
    /// Its name, with its schema if the search path does not contain that. For a partition it is
    /// the name of its parent.
    pub name: String,
    /// Its kind.
    pub kind: RelationKind,
    /// Whether it has a column with the name of the tenant's id in job queries.
    pub has_tenant_column: bool,
    /// Whether the job's `tables` contain it, or the partition that the query reads.
    pub is_watched: bool,
}

/// The kinds of relations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelationKind {
    /// A table.
    Table,
    /// A materialized view. It changes without firing triggers.
    MaterializedView,
    /// A foreign table. It changes on another server.
    ForeignTable,
}

/// The relations of a plan, sorted by name, without the server's own; `watched` are the names in a
/// job's `tables`.
pub(super) async fn relations(
    transaction: &mut Transaction,
    plan: &Plan,
    watched: &[String],
    tenant_column: &str,
) -> Result<Vec<ReadRelation>, sqlx::Error> {
    let (schemas, names): (Vec<&str>, Vec<&str>) =
        plan.reads.iter().map(|(schema, name)| (schema.as_str(), name.as_str())).unzip();
    // Each relation with all its ancestors, and how far above they are; here a parent may have
    // several children.
    let sql = "with recursive above as ( \
                 select c.oid as relation, c.oid as parent, 0 as height \
                 from unnest($1::text[], $2::text[]) as read (schema, name) \
                   join pg_namespace n on n.nspname = read.schema \
                   join pg_class c on c.relnamespace = n.oid and c.relname = read.name \
                 where n.nspname not in ('pg_catalog', 'information_schema') \
                   and c.relkind in ('r', 'p', 'm', 'f') \
                 union \
                 select a.relation, i.inhparent, height + 1 \
                 from above a join pg_inherits i on i.inhrelid = a.parent), \
               watched as (select to_regclass(name)::oid as oid from unnest($3::text[]) as named (name)), \
               tops as ( \
                 select distinct on (relation) relation, parent, \
                   exists (select from above a join watched w on w.oid = a.parent \
                           where a.relation = above.relation) as is_watched \
                 from above order by relation, height desc, parent) \
               select case when pg_table_is_visible(c.oid) then c.relname \
                      else n.nspname || '.' || c.relname end::text, \
                 c.relkind::text, \
                 exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = $4 \
                         and not a.attisdropped), \
                 bool_and(tops.is_watched) \
               from tops join pg_class c on c.oid = tops.parent \
                 join pg_namespace n on n.oid = c.relnamespace \
               group by c.oid, c.relname, c.relkind, n.nspname order by 1";
    let rows = sqlx::query(sql)
        .bind(schemas)
        .bind(names)
        .bind(watched)
        .bind(tenant_column)
        .persistent(false)
        .fetch_all(&mut **transaction)
        .await?;
    let relation = |row: &sqlx::postgres::PgRow| {
        let kind = match row.try_get(1)? {
            "m" => RelationKind::MaterializedView,
            "f" => RelationKind::ForeignTable,
            _ => RelationKind::Table,
        };
        let (name, has_tenant_column, is_watched) =
            (row.try_get(0)?, row.try_get(2)?, row.try_get(3)?);
        Ok(ReadRelation { name, kind, has_tenant_column, is_watched })
    };
    rows.iter().map(relation).collect()
}
