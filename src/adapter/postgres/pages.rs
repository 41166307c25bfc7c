//! How many pages of its tables and indexes a batch's query touches, as the server counts them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sqlx::{Arguments, AssertSqlSafe, Row};

use crate::domain::job::Job;
use crate::engine::ports::{Read, SourceError, SourceErrorKind};

use super::column::value;
use super::read_error::{ReadError, in_time, refused};
use super::source::{PostgresSource, finish, learns_types};
use super::wire::Parameter;
use super::{Access, Transaction};

/// Runs the query, keeps its rows in the server and reports its plan. The time of each node would
/// cost more than the query.
const EXPLAIN: &str = "explain (analyze, verbose, buffers, timing off, format json)\n";

/// The pages that one look-up costs besides those that its rows fill: two or three of an index, and
/// the page in which the first row lies, which other tenants' rows may share.
const PAGES_A_LOOKUP: f64 = 3.0;

/// If a query touches more than this many times the pages that its rows need, they lie scattered.
const SCATTERED: u64 = 2;

/// The pages of 8 KiB that the queries of some batches touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pages {
    /// The rows of the results.
    pub rows: u64,
    /// Pages that were in the server's own memory (`shared_buffers`).
    pub hit: u64,
    /// Pages that the server read from the operating system or the disk.
    pub read: u64,
    /// About how many pages it would have been if each tenant's rows lay next to each other. The
    /// error is the name of a table without the statistics for that, as SQL writes it.
    pub packed: Result<u64, String>,
}

impl Default for Pages {
    fn default() -> Self {
        Self { rows: 0, hit: 0, read: 0, packed: Ok(0) }
    }
}

impl Pages {
    /// The pages that were touched. A page counts again each time that the server looks it up.
    pub fn touched(&self) -> u64 {
        self.hit + self.read
    }

    /// The pages that a thousand rows of the result take; `None` without rows.
    pub fn a_thousand_rows(&self) -> Option<u64> {
        (self.touched() * 1000).checked_div(self.rows)
    }

    /// Whether the rows lie scattered over their tables, or in another order than the query reads them.
    pub fn is_scattered(&self) -> bool {
        self.packed.as_ref().is_ok_and(|packed| self.touched() > SCATTERED * packed)
    }

    /// These pages and those of another batch.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            rows: self.rows + other.rows,
            hit: self.hit + other.hit,
            read: self.read + other.read,
            packed: self.packed.and_then(|one| other.packed.map(|other| one + other)),
        }
    }
}

impl PostgresSource {
    /// Runs a job's query for a batch under `EXPLAIN ANALYZE`, in a read-only transaction, and
    /// counts the pages that it touches. Large values that the server stores outside of their rows
    /// (TOAST) do not count, because the rows are not sent.
    pub async fn pages(&self, job: &Job, read: Read<'_>) -> Result<Pages, SourceError> {
        let longest = self.database.settings.statement_timeout.min(read.timeout);
        let mut transaction = self.begin(Access::ReadOnly, longest).await?;
        let counted = async {
            loop {
                let counted = self.pages_in(&mut transaction, job, read).await;
                if !learns_types(&mut transaction, &counted).await? {
                    return counted;
                }
            }
        };
        let counted = in_time(longest, counted).await;
        finish(transaction, counted).await.map_err(|error| {
            let doing = format!("could not explain the query of job `{}`", job.name);
            error.into_source_error(&doing)
        })
    }

    async fn pages_in(
        &self,
        transaction: &mut Transaction,
        job: &Job,
        read: Read<'_>,
    ) -> Result<Pages, ReadError> {
        let asked = self.ask(transaction, job, read).await?;
        let arguments = Parameter::arguments(&asked.parameters(asked.days().as_ref())?)?;
        let given = arguments.len();
        let explain = AssertSqlSafe(format!("{EXPLAIN}{}", job.query.sql));
        let explain = sqlx::query_with(explain, arguments).persistent(false);
        let row = explain.fetch_one(&mut **transaction).await;
        let row = row.map_err(|error| refused(error, given).after(EXPLAIN.len()))?;
        let explained = Explained::parse(value(&row, 0).unwrap_or_default())?;
        let statistics = statistics(transaction, explained.tables()).await?;
        Ok(explained.pages(&statistics, read.batch.len().max(1)))
    }
}

/// What an explained query did.
#[derive(Debug, Default, PartialEq)]
struct Explained {
    rows: f64,
    hit: u64,
    read: u64,
    scans: Vec<Scan>,
}

/// A part of the plan that reads a table.
#[derive(Debug, PartialEq)]
struct Scan {
    table: Table,
    /// The rows that it read, those that a filter dropped among them.
    rows: f64,
    /// How often it began.
    loops: f64,
}

/// A table's schema and name.
type Table = (String, String);

/// What the server knows of a table since it was last analyzed or vacuumed.
struct Statistics {
    /// The table's name, as SQL writes it.
    name: String,
    /// How many pages it has a row; `None` if it had no rows, or was never analyzed.
    pages_a_row: Option<f64>,
}

impl Explained {
    /// Reads the JSON of `explain`.
    fn parse(json: &[u8]) -> Result<Self, ReadError> {
        let unreadable = || {
            let message = "the server's answer is not the plan of the query".to_owned();
            ReadError::Other(SourceErrorKind::Definition, message)
        };
        let plans: Value = serde_json::from_slice(json).map_err(|_not_json| unreadable())?;
        let top = plans.pointer("/0/Plan").ok_or_else(unreadable)?;
        let blocks = |name: &str| top.get(name).and_then(Value::as_u64).ok_or_else(unreadable);
        let mut explained = Self {
            rows: number(top, "Actual Rows") * number(top, "Actual Loops"),
            hit: blocks("Shared Hit Blocks")?,
            read: blocks("Shared Read Blocks")?,
            scans: Vec::new(),
        };
        let mut nodes = vec![top];
        while let Some(node) = nodes.pop() {
            explained.scans.extend(Scan::of(node));
            nodes.extend(node.get("Plans").and_then(Value::as_array).into_iter().flatten());
        }
        Ok(explained)
    }

    fn tables(&self) -> BTreeSet<&Table> {
        self.scans.iter().map(|scan| &scan.table).collect()
    }

    /// The pages, given the tables' statistics. Each tenant costs a look-up in each scan, whether the
    /// server begins the scan anew for it or not.
    fn pages(&self, statistics: &BTreeMap<Table, Statistics>, tenants: usize) -> Pages {
        let tenants = f64::from(u32::try_from(tenants).unwrap_or(u32::MAX));
        let packed = |scan: &Scan| {
            let lookups = scan.loops.max(tenants) * PAGES_A_LOOKUP;
            if scan.rows == 0.0 {
                return Ok(lookups);
            }
            let of_table = statistics.get(&scan.table);
            let pages_a_row = of_table.and_then(|statistics| statistics.pages_a_row);
            let name = || of_table.map_or(&scan.table.1, |statistics| &statistics.name).clone();
            Ok(lookups + scan.rows * pages_a_row.ok_or_else(name)?)
        };
        let packed: Result<f64, String> = self.scans.iter().map(packed).sum();
        let Self { rows, hit, read, .. } = *self;
        Pages { rows: whole(rows), hit, read, packed: packed.map(whole) }
    }
}

impl Scan {
    /// The scan of a node; `None` if the node reads no table.
    fn of(node: &Value) -> Option<Self> {
        let text = |name: &str| Some(node.get(name)?.as_str()?.to_owned());
        let table = (text("Schema")?, text("Relation Name")?);
        let loops = number(node, "Actual Loops");
        let a_loop = ["Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck"];
        let rows: f64 = a_loop.iter().map(|name| number(node, name)).sum();
        Some(Self { table, rows: rows * loops, loops })
    }
}

fn number(node: &Value, name: &str) -> f64 {
    node.get(name).and_then(Value::as_f64).unwrap_or_default()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count of rows or pages, rounded"
)]
fn whole(count: f64) -> u64 {
    count.round() as u64
}

/// The statistics of these tables.
async fn statistics(
    transaction: &mut Transaction,
    tables: BTreeSet<&Table>,
) -> Result<BTreeMap<Table, Statistics>, ReadError> {
    let (schemas, names): (Vec<&str>, Vec<&str>) =
        tables.into_iter().map(|(schema, name)| (schema.as_str(), name.as_str())).unzip();
    let sql = "select n.nspname::text, c.relname::text, \
                 case when pg_catalog.pg_table_is_visible(c.oid) then quote_ident(c.relname) \
                      else format('%I.%I', n.nspname, c.relname) end, \
                 case when c.reltuples > 0 then c.relpages / c.reltuples::float8 end \
               from unnest($1::text[], $2::text[]) as scanned (schema, name) \
                 join pg_catalog.pg_namespace n on n.nspname = scanned.schema \
                 join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = scanned.name";
    let rows = sqlx::query(sql).bind(schemas).bind(names).persistent(false);
    let rows = rows.fetch_all(&mut **transaction).await?;
    let of_table = |row: &sqlx::postgres::PgRow| {
        let statistics = Statistics { name: row.try_get(2)?, pages_a_row: row.try_get(3)? };
        Ok(((row.try_get(0)?, row.try_get(1)?), statistics))
    };
    rows.iter().map(of_table).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch of two tenants, whose rows are found by an index, as Postgres 18 explains it.
    const NESTED: &str = r#"[{"Plan": {
        "Node Type": "Nested Loop", "Actual Rows": 200.00, "Actual Loops": 1,
        "Shared Hit Blocks": 190, "Shared Read Blocks": 20,
        "Plans": [
            {"Node Type": "Function Scan", "Schema": "pg_catalog", "Function Name": "unnest",
             "Actual Rows": 2.00, "Actual Loops": 1},
            {"Node Type": "Index Scan", "Schema": "public", "Relation Name": "products",
             "Actual Rows": 100.00, "Actual Loops": 2, "Rows Removed by Filter": 10}
        ]
    }, "Planning": {"Shared Hit Blocks": 99}}]"#;

    fn pages(rows_a_page: f64) -> Pages {
        let explained = Explained::parse(NESTED.as_bytes()).ok().unwrap();
        let table = ("public".to_owned(), "products".to_owned());
        let statistics = Statistics { name: table.1.clone(), pages_a_row: Some(1.0 / rows_a_page) };
        explained.pages(&BTreeMap::from([(table, statistics)]), 2)
    }

    #[test]
    fn pages_are_those_of_the_query_and_not_those_of_planning_it() {
        let pages = pages(10.0);
        assert_eq!((pages.rows, pages.hit, pages.read), (200, 190, 20));
        assert_eq!((pages.touched(), pages.a_thousand_rows()), (210, Some(1050)));
        assert_eq!(Pages::default().a_thousand_rows(), None);
    }

    #[test]
    fn rows_are_scattered_if_they_take_more_than_twice_the_pages_they_fill() {
        // 220 rows fill 22 pages, and two look-ups take six.
        assert_eq!(pages(10.0).packed, Ok(28));
        assert!(pages(10.0).is_scattered());
        // A row fills most of a page.
        assert_eq!(pages(1.1).packed, Ok(206));
        assert!(!pages(1.1).is_scattered());
    }

    #[test]
    fn a_table_that_was_never_analyzed_is_named() {
        let explained = Explained::parse(NESTED.as_bytes()).ok().unwrap();
        let pages = explained.pages(&BTreeMap::new(), 2);
        assert_eq!(pages.packed, Err("products".to_owned()));
        assert!(!pages.is_scattered());
        assert_eq!(pages.plus(self::pages(10.0)).packed, Err("products".to_owned()));
        assert_eq!(self::pages(10.0).plus(self::pages(10.0)).packed, Ok(56));
    }

    #[test]
    fn a_table_of_which_no_row_was_read_needs_no_statistics() {
        let empty = NESTED.replace("100.00", "0.00").replace("Filter\": 10", "Filter\": 0");
        let explained = Explained::parse(empty.as_bytes()).ok().unwrap();
        assert_eq!(explained.pages(&BTreeMap::new(), 2).packed, Ok(6));
    }

    #[test]
    fn an_answer_that_is_no_plan_is_an_error() {
        for answer in ["", "[]", "{}", r#"[{"Plan": {"Node Type": "Result"}}]"#] {
            assert!(Explained::parse(answer.as_bytes()).is_err(), "{answer}");
        }
    }
}
