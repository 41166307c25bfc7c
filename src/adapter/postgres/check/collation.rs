//! Compares the collations of the text columns in `query.order` with the order of bytes, by which
//! preheat sorts text.

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Row};

use crate::domain::job::Job;
use crate::domain::json::Column;
use crate::domain::order::{Comparison, OrderColumn};

use super::super::read_error::ReadError;
use super::super::wire::Parameter;
use super::super::{Transaction, column, describe};
use super::{QueryPlace, QueryProblem, problem};

/// How a collation sorts text: its name, its provider, its locale, and the server's encoding. The
/// collation `default` is that of the database.
///
/// `to_jsonb` reads columns that only newer servers have: `datlocprovider` (15), and the locale of the
/// providers other than libc, which is called `daticulocale` (15) and `datlocale` (17), or
/// `colliculocale` and `colllocale`.
const COLLATION: &str = "select own.collname::text, \
       coalesce(case own.collprovider when 'd' then base ->> 'datlocprovider' \
         else own.collprovider::text end, 'c'), \
       case own.collprovider \
         when 'd' then coalesce(base ->> 'datlocale', base ->> 'daticulocale', base ->> 'datcollate') \
         else coalesce(fields ->> 'colllocale', fields ->> 'colliculocale', fields ->> 'collcollate') \
       end, \
       current_setting('server_encoding') \
     from pg_catalog.pg_collation own \
     join pg_catalog.pg_database database on database.datname = current_database() \
     cross join lateral (select to_jsonb(own), to_jsonb(database)) as texts (fields, base) \
     where own.oid = $1";

/// A collation, as the server describes it.
struct Collation {
    name: String,
    provider: String,
    locale: String,
    encoding: String,
}

/// A problem for each entry of `query.order` whose column's collation does not sort by bytes.
pub(super) async fn problems(
    transaction: &mut Transaction,
    job: &Job,
    columns: &[Column],
    parameters: &[Parameter],
) -> Result<Vec<QueryProblem>, ReadError> {
    let is_text = |entry: &OrderColumn, column: &Column| {
        Comparison::new(entry, &column.ty).is_ok_and(|comparison| comparison.is_of_text())
    };
    let entries = job.query.order.iter().enumerate().filter(|(_, entry)| !entry.is_by_bytes());
    let texts: Vec<(usize, &OrderColumn, usize)> = entries
        .filter_map(|(index, entry)| {
            let (position, column) = column::named(columns, entry.name())?;
            is_text(entry, column).then_some((index, entry, position))
        })
        .collect();
    if texts.is_empty() {
        return Ok(Vec::new());
    }
    let positions = texts.iter().map(|(.., position)| *position);
    let sql = describe::collations(&job.query.sql, columns.len(), positions);
    let arguments = Parameter::arguments(parameters)?;
    let query = sqlx::query_with(AssertSqlSafe(sql), arguments).persistent(false);
    let row = query.fetch_one(&mut **transaction).await?;
    let mut problems = Vec::new();
    for (answer, (index, entry, _)) in texts.into_iter().enumerate() {
        let problem = match row.try_get::<Option<Oid>, _>(answer)? {
            None => Some(undetermined(entry)),
            Some(oid) => Collation::read(transaction, oid).await?.problem(entry),
        };
        let at = QueryPlace::Order(index);
        problems.extend(problem.map(|(message, hint)| self::problem(at, message, Some(hint))));
    }
    Ok(problems)
}

/// The message and the hint for a column without a collation: several collations meet in it, and the
/// server could not sort by it either.
fn undetermined(entry: &OrderColumn) -> (String, String) {
    let message =
        format!("the column `{}` is text of several collations, and so has no order", entry.name());
    (message, hint(entry))
}

fn hint(entry: &OrderColumn) -> String {
    format!(
        "write `{}` if the order of bytes is meant, or leave out `order` and sort in the SQL",
        entry.by_bytes()
    )
}

impl Collation {
    async fn read(transaction: &mut Transaction, oid: Oid) -> Result<Self, ReadError> {
        let query = sqlx::query(COLLATION).bind(oid).persistent(false);
        let row = query.fetch_one(&mut **transaction).await?;
        Ok(Self {
            name: row.try_get(0)?,
            provider: row.try_get(1)?,
            locale: row.try_get::<Option<String>, _>(2)?.unwrap_or_default(),
            encoding: row.try_get(3)?,
        })
    }

    /// Whether it sorts text by its bytes in the server's encoding. The built-in provider has no other
    /// collations.
    fn is_by_bytes(&self) -> bool {
        const BUILT_IN: &str = "b";
        const LIBC: &str = "c";
        let by_bytes = ["C", "POSIX", "C.UTF-8", "C.UTF8"];
        self.provider == BUILT_IN
            || self.provider == LIBC
                && by_bytes.iter().any(|locale| locale.eq_ignore_ascii_case(&self.locale))
    }

    /// Whether a text's bytes in the server's encoding sort like its bytes in UTF-8, which preheat gets.
    fn sorts_like_utf8(&self) -> bool {
        ["UTF8", "SQL_ASCII", "LATIN1"].contains(&self.encoding.as_str())
    }

    /// The message and the hint, if it does not sort a column as preheat does.
    fn problem(&self, entry: &OrderColumn) -> Option<(String, String)> {
        let Self { name, locale, encoding, .. } = self;
        let column = entry.name();
        let theirs = if !self.is_by_bytes() {
            let locale = Some(locale).filter(|locale| !locale.is_empty() && *locale != name);
            let locale = locale.map(|locale| format!(", which is `{locale}`")).unwrap_or_default();
            format!("has the collation `{name}`{locale}")
        } else if !self.sorts_like_utf8() {
            format!("is stored in the encoding `{encoding}`")
        } else {
            return None;
        };
        let message =
            format!("the column `{column}` {theirs}, and preheat sorts text by its bytes in UTF-8");
        Some((message, hint(entry)))
    }
}
