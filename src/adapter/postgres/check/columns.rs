//! Compares a query's columns with what its job expects, and with what keys and values can contain.

use sqlx::postgres::PgRow;
use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Column as _, Executor, Row};

use crate::domain::day::MomentType;
use crate::domain::job::{DATE_COLUMN, DateZone, Job, Key, Scope};
use crate::domain::json::{Column, ColumnProblem, ColumnType};
use crate::domain::key::Placeholder;
use crate::domain::order::{Comparison, OrderColumn};
use crate::domain::spelling;

use super::super::id::IdType;
use super::super::moment::no_moment;
use super::super::read_error::ReadError;
use super::super::source::TenantsShape;
use super::super::{Transaction, column, describe, error};
use super::{QueryPlace, QueryProblem, plan, problem};

/// Checks the tenant query's columns that a job uses besides the id.
pub(super) fn tenant_columns(job: &Job, shape: &TenantsShape, problems: &mut Vec<QueryProblem>) {
    let columns = shape.columns.get(1..).unwrap_or_default();
    let mut need = |place: QueryPlace, name: &str| {
        if column::named(columns, name).is_none() {
            let message = format!("the tenant query returns no column `{name}` after the id");
            let hint =
                did_you_mean(name, columns).unwrap_or_else(|| "add it to `tenants.sql`".to_owned());
            problems.push(problem(place, message, Some(hint)));
        }
    };
    for (index, key) in job.keys.iter().enumerate() {
        for placeholder in key.template.placeholders() {
            if let Placeholder::TenantColumn(name) = placeholder {
                need(QueryPlace::Key(index), name);
            }
        }
    }
    if let Some(DateZone::TenantColumn(name)) = job.dates.as_ref().map(|dates| &dates.zone) {
        need(QueryPlace::Timezone, name);
    }
}

pub(super) fn key_columns(
    job: &Job,
    (index, key): (usize, &Key),
    columns: &[Column],
    problems: &mut Vec<QueryProblem>,
) {
    let mut need = |place: QueryPlace, name: &str| match column::named(columns, name) {
        Some((_, column)) if column.ty.is_supported() => Some(column),
        Some((_, Column { ty, .. })) => {
            let found = unreadable(name, ty, "which no key can have");
            problems.push(QueryProblem { place, ..found });
            None
        }
        None => {
            let message = format!("the query returns no column `{name}`");
            problems.push(problem(place, message, did_you_mean(name, columns)));
            None
        }
    };
    for name in key.template.columns() {
        need(QueryPlace::Key(index), name);
    }
    if let Some(name) = key.unique.as_ref().filter(|name| !name.starts_with("tenant.")) {
        need(QueryPlace::Unique(index), name);
    }
    if !key.template.has_date() || job.moment_column().is_some() {
        return;
    }
    let Some(Column { ty, .. }) = need(QueryPlace::Key(index), DATE_COLUMN) else { return };
    if !matches!(ty.base(), ColumnType::Date | ColumnType::Text | ColumnType::Varchar) {
        let message =
            format!("the column `{DATE_COLUMN}` is {ty}, and a key's date is date or text");
        let hint = format!(
            "for a moment: `(starts_at at time zone …)::date as {DATE_COLUMN}`; or write \
             `column = \"{DATE_COLUMN}\"` in `[dates]`"
        );
        problems.push(problem(QueryPlace::Key(index), message, Some(hint)));
    }
}

/// Checks that the query returns a column of `query.order`, and that its type has an order.
pub(super) fn order_column(
    index: usize,
    entry: &OrderColumn,
    columns: &[Column],
    problems: &mut Vec<QueryProblem>,
) {
    let place = QueryPlace::Order(index);
    let name = entry.name();
    let Some((_, column)) = column::named(columns, name) else {
        let message = format!("the query returns no column `{name}`");
        let of_expression = "`order` names columns of the query's result, without their table; for an \
                             expression, let the query return a column with its value, and name it in \
                             `encode.omit`";
        let hint = did_you_mean(name, columns)
            .or_else(|| (!entry.is_plain_name()).then(|| of_expression.to_owned()));
        problems.push(problem(place, message, hint));
        return;
    };
    if let Err(found) = Comparison::new(entry, &column.ty) {
        problems.push(problem(place, found.to_string(), Some(found.hint())));
    }
}

/// Checks the column of the moments that decide on which day a row is.
pub(super) fn moment_column(job: &Job, columns: &[Column], problems: &mut Vec<QueryProblem>) {
    let Some(name) = job.moment_column() else { return };
    match column::named(columns, name) {
        Some((_, column)) if MomentType::of(&column.ty).is_some() => {}
        Some((_, column)) => {
            problems.push(of_other_type(column));
        }
        None => {
            let message = format!("the query returns no column `{name}`");
            let hint = did_you_mean(name, columns).unwrap_or_else(|| {
                "return it with each row; `encode.omit` keeps it out of the value".to_owned()
            });
            problems.push(problem(QueryPlace::DateColumn, message, Some(hint)));
        }
    }
}

/// The problem with a `dates.column` that holds no moments.
fn of_other_type(column: &Column) -> QueryProblem {
    let name = &column.name;
    let is_text = matches!(
        column.ty.base(),
        ColumnType::Text | ColumnType::Varchar | ColumnType::Bpchar | ColumnType::Citext
    );
    let hint = if is_text {
        format!(
            "name another column, or cast it where the query returns it and where it compares it: \
             `{name}::timestamptz`"
        )
    } else {
        "name a column of one of these types".to_owned()
    };
    problem(QueryPlace::DateColumn, no_moment(column), Some(hint))
}

/// The problem with `dates.column` in a query that the server refuses for it: the query compares a
/// column of another type with the moments. `None` if that is not the reason.
///
/// The types of the moments stay undeclared, so that the server takes them for the column's.
pub(super) async fn moment_column_of_other_type(
    transaction: &mut Transaction,
    job: &Job,
    id: Option<IdType>,
) -> Result<Option<QueryProblem>, ReadError> {
    let Some(name) = job.moment_column() else { return Ok(None) };
    let declared: Vec<Oid> = id.into_iter().map(|id| Oid(id.array_oid())).collect();
    let columns = plan::inferred_columns(transaction, &job.query.sql, &declared).await?;
    let named = columns.iter().find(|column| column.name() == name);
    let ty = named.and_then(|column| ColumnType::from_oid(column.type_info().oid()?.0));
    let column = ty.map(|ty| Column { name: name.to_owned(), ty });
    let other = column.filter(|column| MomentType::of(&column.ty).is_none());
    Ok(other.map(|column| of_other_type(&column)))
}

/// A warning if the query does not bound the days whose rows it reads.
pub(super) fn all_days(job: &Job) -> Option<QueryProblem> {
    let name = job.moment_column()?;
    let first = match job.scope {
        Scope::Tenants => 2,
        Scope::Global => 1,
    };
    let after = first + 1;
    let is_used = |number| describe::place_of_parameter(&job.query.sql, number).is_some();
    let (unused, which) = match (is_used(first), is_used(after)) {
        (true, true) => return None,
        (true, false) => (format!("`${after}`"), "all later"),
        (false, true) => (format!("`${first}`"), "all earlier"),
        (false, false) => (format!("`${first}` and `${after}`"), "all"),
    };
    let message = format!("the query does not use {unused}, and so reads the rows of {which} days");
    let hint = format!("compare: `{name} >= ${first} and {name} < ${after}`");
    Some(problem(QueryPlace::Query { at: None }, message, Some(hint)))
}

fn did_you_mean(name: &str, columns: &[Column]) -> Option<String> {
    let nearest = spelling::nearest(name, columns.iter().map(|column| column.name.as_str()))?;
    Some(format!("did you mean `{nearest}`?"))
}

pub(super) fn encoding_problem(found: &ColumnProblem) -> QueryProblem {
    let place = match found {
        ColumnProblem::UnknownOmit { column, .. } => QueryPlace::Omit(column.clone()),
        ColumnProblem::UnknownOverride { column, .. } | ColumnProblem::Override { column, .. } => {
            QueryPlace::Columns(column.clone())
        }
        ColumnProblem::NoCodec { .. }
        | ColumnProblem::SameMember { .. }
        | ColumnProblem::NoColumns => QueryPlace::Query { at: None },
    };
    problem(place, found.to_string(), Some(found.hint()))
}

/// A warning for each key column whose text differs from what an application would write there.
pub(super) fn key_texts(job: &Job, columns: &[Column]) -> Vec<QueryProblem> {
    let mut warnings = Vec::new();
    for (index, key) in job.keys.iter().enumerate() {
        for name in key.template.columns() {
            let Some((_, column)) = column::named(columns, name) else { continue };
            let Some((text, cast)) = unlike_an_application(&column.ty) else { continue };
            let message = format!(
                "the column `{name}` is {} and stands in the key as Postgres writes it: {text}",
                column.ty
            );
            let cast = cast.replace("{}", name);
            let hint = format!(
                "an application seldom writes it so: add `{cast} as {name}_key` to the query, \
                 write `{{{name}_key}}`, and name the column in `encode.omit`"
            );
            warnings.push(problem(QueryPlace::Key(index), message, Some(hint)));
        }
    }
    warnings
}

/// The text that Postgres writes for a type, if an application most likely writes another one, and
/// an expression that returns the application's text.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a text is taken as an application's unless its type is named here"
)]
fn unlike_an_application(ty: &ColumnType) -> Option<(&'static str, &'static str)> {
    Some(match ty {
        ColumnType::Bool => ("`t` or `f`", "{}::text"),
        ColumnType::Bpchar => ("with blanks at its end", "{}::text"),
        ColumnType::Timestamp => {
            ("`2026-01-31 08:00:00`", "to_char({}, 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')")
        }
        ColumnType::Timestamptz => (
            "`2026-01-31 08:00:00+00`",
            "to_char({} at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')",
        ),
        ColumnType::Json | ColumnType::Jsonb => ("the whole JSON text", "{}->>'id'"),
        ColumnType::Bytea => ("`\\x0123abcd`", "encode({}, 'hex')"),
        ColumnType::Interval => ("`1 day 02:00:00`", "extract(epoch from {})::text"),
        ColumnType::Array(_) => ("`{a,b}`", "array_to_string({}, ',')"),
        ColumnType::Range(_) => ("`[a,b)`", "lower({})::text"),
        ColumnType::Domain(base) => return unlike_an_application(base),
        _ => return None,
    })
}

/// The problem for a column whose type makes the query unreadable.
pub(super) fn unreadable(name: &str, ty: &dyn std::fmt::Display, why: &str) -> QueryProblem {
    let message = format!("the column `{name}` is {ty}, {why}");
    let hint = format!("cast it to text in the query: `{name}::text as {name}`");
    problem(QueryPlace::Query { at: None }, message, Some(hint))
}

/// Finds the columns that make the driver refuse a query. The driver does not say which they are:
/// their types, such as multiranges and enums with commas in their labels, are ones it cannot
/// describe.
///
/// The server describes the columns with the one row of NULLs that it returns for a join that
/// matches nothing. Sent by the simple protocol, the query makes the driver look up no type.
pub(super) async fn undescribed(
    transaction: &mut Transaction,
    sql: &str,
    types: &[Oid],
) -> Result<Vec<QueryProblem>, ReadError> {
    let sql = describe::one_row_of_nulls(sql);
    let statement = plan::Statement::prepare(transaction, &sql, types).await?;
    let row = sqlx::raw_sql(AssertSqlSafe(format!("execute {}", statement.call())));
    let row: PgRow = transaction.fetch_one(row).await?;
    statement.deallocate(transaction).await?;
    let mut problems = Vec::new();
    for column in row.columns() {
        let Some(oid) = column.type_info().oid() else { continue };
        if ColumnType::from_oid(oid.0).is_some() {
            continue;
        }
        for ty in plan::type_names(transaction, &[oid]).await? {
            if !is_readable(transaction, &ty).await? {
                problems.push(unreadable(column.name(), &ty, "which the driver cannot read"));
            }
        }
    }
    Ok(problems)
}

/// Whether the driver can read a value of this type. If it looks the type up, the server forgets
/// the statement. That error means that the look-up worked.
async fn is_readable(transaction: &mut Transaction, ty: &str) -> Result<bool, ReadError> {
    transaction.execute(sqlx::raw_sql("savepoint one_type")).await?;
    let null = sqlx::query(AssertSqlSafe(format!("select null::{ty}"))).persistent(false);
    let read = null.fetch_one(&mut **transaction).await;
    transaction.execute(sqlx::raw_sql("rollback to one_type")).await?;
    match read {
        Ok(_) => Ok(true),
        Err(error) if error::is_of_driver(&error) => Ok(false),
        Err(error) if error::code(&error) == Some(error::UNKNOWN_STATEMENT) => Ok(true),
        Err(error) => Err(error.into()),
    }
}
