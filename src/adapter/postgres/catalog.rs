//! The tables of a database, for a person who begins to write job files: `preheat init` proposes a first one.

use serde::Deserialize;
use sqlx::AssertSqlSafe;

use crate::domain::json::ColumnType;
use crate::engine::ports::{SourceError, SourceErrorKind};

use super::read_error::{ReadError, in_time};
use super::source::{PostgresSource, finish};
use super::{Access, Transaction};

/// A table that the role may read.
#[derive(Clone, Debug, Deserialize)]
pub struct CatalogTable {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Whether the search path finds it by its name alone.
    pub is_visible: bool,
    /// Its name as SQL writes it, with its schema where the search path does not contain that.
    pub sql: String,
    /// The planner's estimate of its rows; 0 if it was never analyzed.
    pub rows: f64,
    /// Its columns, in their order.
    pub columns: Vec<CatalogColumn>,
    /// The columns of its primary key.
    pub primary_key: Vec<String>,
    /// Its foreign keys of one column.
    pub references: Vec<CatalogReference>,
}

/// A column of a table.
#[derive(Clone, Debug, Deserialize)]
pub struct CatalogColumn {
    /// Its name.
    pub name: String,
    /// Its name as SQL writes it.
    pub sql: String,
    /// The OID of its type; of the base type for a domain.
    oid: u32,
    /// That type's name, its kind (`pg_type.typtype`) and that of its elements.
    type_name: String,
    kind: String,
    element_kind: Option<String>,
    /// Values that it may have: the labels of an enum, and the texts in the column's default and in its
    /// `check` constraints.
    pub labels: Vec<String>,
    /// Whether an index begins with it.
    pub is_indexed: bool,
}

/// A foreign key of one column.
#[derive(Clone, Debug, Deserialize)]
pub struct CatalogReference {
    /// The column.
    pub column: String,
    /// The schema of the table that it refers to.
    pub schema: String,
    /// The name of that table.
    pub table: String,
}

impl CatalogTable {
    /// A column by its name.
    pub fn column(&self, name: &str) -> Option<&CatalogColumn> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Its name as `tables` of a job file writes it: without quotes, and with the schema where SQL
    /// needs that.
    pub fn plain_name(&self) -> String {
        if self.is_visible { self.name.clone() } else { format!("{}.{}", self.schema, self.name) }
    }
}

impl CatalogColumn {
    /// Its type.
    pub fn ty(&self) -> ColumnType {
        if let Some(known) = ColumnType::from_oid(self.oid) {
            return known;
        }
        match (self.kind.as_str(), self.element_kind.as_deref(), self.type_name.as_str()) {
            ("e", ..) => ColumnType::Enum,
            (_, Some("e"), _) => ColumnType::Array(Box::new(ColumnType::Enum)),
            (_, _, "citext") => ColumnType::Citext,
            (_, _, other) => ColumnType::Unsupported(other.to_owned()),
        }
    }

    /// Whether its type is an array.
    pub fn is_array(&self) -> bool {
        self.element_kind.is_some()
    }
}

/// Tables of extensions, of preheat and of the server are left out, and so are partitions, which are read
/// through their table.
const TABLES: &str = "select coalesce(json_agg(found), '[]')::text from ( \
   select n.nspname as schema, c.relname as name, \
     pg_catalog.pg_table_is_visible(c.oid) as is_visible, \
     case when pg_catalog.pg_table_is_visible(c.oid) then quote_ident(c.relname) \
          else format('%I.%I', n.nspname, c.relname) end as sql, \
     greatest(c.reltuples, 0)::float8 as rows, \
     (select coalesce(json_agg(json_build_object( \
          'name', a.attname, 'sql', quote_ident(a.attname), 'oid', base.oid::bigint, \
          'type_name', base.typname, 'kind', base.typtype, \
          'element_kind', (select e.typtype from pg_catalog.pg_type e \
             where e.oid = base.typelem and base.typcategory = 'A'), \
          'labels', (select coalesce(json_agg(label), '[]') from ( \
             select enumlabel from pg_catalog.pg_enum where enumtypid = base.oid \
             union select found[1] from pg_catalog.pg_constraint k, \
               regexp_matches(pg_get_constraintdef(k.oid), '''([^'']*)''', 'g') found \
               where k.conrelid = c.oid and k.contype = 'c' and k.conkey = array[a.attnum] \
             union select found[1] from pg_catalog.pg_attrdef d, \
               regexp_matches(pg_get_expr(d.adbin, d.adrelid), '''([^'']*)''', 'g') found \
               where d.adrelid = c.oid and d.adnum = a.attnum) as labels (label)), \
          'is_indexed', exists (select from pg_catalog.pg_index i \
             where i.indrelid = c.oid and i.indisvalid and i.indkey[0] = a.attnum) \
        ) order by a.attnum), '[]') \
      from pg_catalog.pg_attribute a \
        join pg_catalog.pg_type t on t.oid = a.atttypid \
        join pg_catalog.pg_type base on base.oid = coalesce(nullif(t.typbasetype, 0), t.oid) \
      where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns, \
     (select coalesce(json_agg(a.attname order by place), '[]') \
      from pg_catalog.pg_index i, \
        unnest(i.indkey::int2[]) with ordinality as key (number, place) \
        join pg_catalog.pg_attribute a on a.attnum = key.number \
      where i.indrelid = c.oid and i.indisprimary and a.attrelid = c.oid) as primary_key, \
     (select coalesce(json_agg(json_build_object( \
          'column', a.attname, 'schema', rn.nspname, 'table', r.relname) order by k.oid), '[]') \
      from pg_catalog.pg_constraint k \
        join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = k.conkey[1] \
        join pg_catalog.pg_class r on r.oid = k.confrelid \
        join pg_catalog.pg_namespace rn on rn.oid = r.relnamespace \
      where k.conrelid = c.oid and k.contype = 'f' and cardinality(k.conkey) = 1) as references \
   from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
   where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence <> 't' \
     and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'preheat') \
     and has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select') \
     and not exists (select from pg_catalog.pg_depend d \
       where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e') \
   order by n.nspname, c.relname limit 5000) found";

/// A column with more values than this is no status.
const MOST_VALUES: u32 = 20;
/// So many rows show which values there are.
const ROWS_LOOKED_AT: u32 = 10_000;

impl PostgresSource {
    /// The tables that the role may read.
    pub async fn catalog(&self) -> Result<Vec<CatalogTable>, SourceError> {
        let text =
            self.read_text("could not read the database's tables", TABLES.to_owned()).await?;
        serde_json::from_str(&text).map_err(|error| SourceError {
            kind: SourceErrorKind::Definition,
            message: format!("could not read the database's tables: {error}"),
        })
    }

    /// The different values of a column, as texts, among some of the rows.
    pub async fn some_values(
        &self,
        table: &CatalogTable,
        column: &CatalogColumn,
    ) -> Result<Vec<String>, SourceError> {
        let (table, column) = (&table.sql, &column.sql);
        let sql = format!(
            "select coalesce(json_agg(value), '[]')::text from (select distinct value from \
               (select {column}::text as value from {table} limit {ROWS_LOOKED_AT}) some_rows \
             where value is not null limit {MOST_VALUES}) found"
        );
        let text = self.read_text(&format!("could not read `{table}`"), sql).await?;
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }

    /// The one text that a query returns.
    async fn read_text(&self, doing: &str, sql: String) -> Result<String, SourceError> {
        let longest = self.database.settings.statement_timeout;
        let mut transaction = self.begin(Access::ReadOnly, longest).await?;
        let read = in_time(longest, text(&mut transaction, sql)).await;
        finish(transaction, read).await.map_err(|error| error.into_source_error(doing))
    }
}

async fn text(transaction: &mut Transaction, sql: String) -> Result<String, ReadError> {
    let query = sqlx::query_scalar(AssertSqlSafe(sql)).persistent(false);
    Ok(query.fetch_one(&mut **transaction).await?)
}
