//! sqlx's types in the encoder's words.

use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgConnection, PgStatement, PgTypeInfo, PgTypeKind};
use sqlx::{Column as _, Statement, TypeInfo};

use crate::domain::json::{Column, ColumnType};

use super::id::IdType;

/// The columns that a statement returns.
pub(super) fn columns(statement: &PgStatement) -> Vec<Column> {
    let column = |column: &sqlx::postgres::PgColumn| Column {
        name: column.name().to_owned(),
        ty: column_type(column.type_info()),
    };
    statement.columns().iter().map(column).collect()
}

/// A column by its name. Of several the last, which is the one that a row of node-postgres has.
pub(super) fn named<'c>(columns: &'c [Column], name: &str) -> Option<(usize, &'c Column)> {
    columns.iter().enumerate().rev().find(|(_, column)| column.name == name)
}

fn column_type(ty: &PgTypeInfo) -> ColumnType {
    /// What sqlx calls a type that the server did not describe; it has no kind to ask for.
    const UNRESOLVED: &str = "?";
    if let Some(known) = ty.oid().and_then(|oid| ColumnType::from_oid(oid.0)) {
        return known;
    }
    if ty.name() == UNRESOLVED {
        return ColumnType::Unsupported("unknown".to_owned());
    }
    let is_shouted = !ty.name().contains(char::is_lowercase);
    match ty.kind() {
        PgTypeKind::Enum(_) => ColumnType::Enum,
        PgTypeKind::Array(element) => ColumnType::Array(Box::new(column_type(element))),
        PgTypeKind::Domain(base) => ColumnType::Domain(Box::new(column_type(base))),
        PgTypeKind::Range(subtype) => ColumnType::Range(Box::new(column_type(subtype))),
        PgTypeKind::Simple | PgTypeKind::Composite(_) | PgTypeKind::Pseudo => {
            // An extension may stand in any schema, and its name is then qualified.
            match ty.name().rsplit('.').next() {
                Some("citext") => ColumnType::Citext,
                // sqlx shouts the names of those it knows.
                _ if is_shouted => ColumnType::Unsupported(ty.name().to_lowercase()),
                _ => ColumnType::Unsupported(ty.name().to_owned()),
            }
        }
    }
}

/// The type of ids by that of their column; `None` for one that no id has.
pub(super) async fn id_type(
    connection: &mut PgConnection,
    raw: &PgTypeInfo,
    ty: &ColumnType,
) -> Result<Option<IdType>, sqlx::Error> {
    let Some(element) = raw.oid() else { return Ok(None) };
    let mut array = None;
    if *ty == ColumnType::Citext {
        let sql = "select typarray from pg_type where oid = $1";
        let found: Oid =
            sqlx::query_scalar(sql).bind(element).persistent(false).fetch_one(connection).await?;
        array = Some(found);
    }
    Ok(IdType::new(ty, element, array))
}
