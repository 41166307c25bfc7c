//! sqlx's types in the encoder's words.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{
    PgArgumentBuffer, PgArguments, PgColumn, PgConnection, PgTypeInfo, PgTypeKind,
};
use sqlx::{Arguments, Column as _, Encode, Executor, Postgres, Row, Type, TypeInfo};

use crate::domain::json::{Column, ColumnType};

use super::id::IdType;

/// The columns of a row.
pub(super) fn columns(columns: &[PgColumn]) -> Vec<Column> {
    let column = |column: &PgColumn| Column {
        name: column.name().to_owned(),
        ty: column_type(column.type_info()),
    };
    columns.iter().map(column).collect()
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

/// The most types that a connection learns when it begins; those beyond are learnt by use.
///
/// Those of composite types are left out, and enums whose labels the driver may not be able to read.
const TYPES: &str = "select type.oid::regtype::text from pg_catalog.pg_type type \
     left join pg_catalog.pg_type element on element.oid = type.typelem \
     where (type.oid >= 16384 or type.typname in ('xml', '_xml')) \
       and type.typtype in ('b', 'd', 'e', 'r') and element.typtype is distinct from 'c' \
       and not exists (select from pg_catalog.pg_enum \
         where enumtypid in (type.oid, type.typelem, type.typbasetype) \
           and (enumlabel !~ '^[[:alnum:]_ -]+$' or upper(enumlabel) = 'NULL')) \
     order by type.oid limit 500";

/// Lets the driver look up the database's own types (enums, ranges, those of extensions).
///
/// It would do so between preparing a statement and running it, and the server forgets an unnamed
/// statement at the look-up: the first query of each connection would fail. A type that is made
/// later is learnt by such a failure: see [`super::Transaction::begin_again`]. That is also what
/// happens where this one fails.
pub(super) async fn learn_types(connection: &mut PgConnection) {
    let Ok(rows) = connection.fetch_all(sqlx::raw_sql(TYPES)).await else { return };
    let mut types = PgArguments::default();
    for row in &rows {
        let Ok(name) = row.try_get::<&str, _>(0) else { return };
        if types.add(NullOf(PgTypeInfo::with_name(lasting(name)))).is_err() {
            return;
        }
    }
    if !rows.is_empty() {
        let learn = sqlx::query_with("select", types).persistent(false);
        drop(connection.execute(learn).await);
    }
}

/// The driver takes names of types that last as long as the program: each is kept once.
fn lasting(name: &str) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.get(name) {
        return known;
    }
    let name: &'static str = Box::leak(Box::from(name));
    names.insert(name);
    name
}

/// NULL as a value of some type.
struct NullOf(PgTypeInfo);

impl Type<Postgres> for NullOf {
    fn type_info() -> PgTypeInfo {
        <String as Type<Postgres>>::type_info()
    }
}

impl Encode<'_, Postgres> for NullOf {
    fn encode_by_ref(&self, _buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        Ok(IsNull::Yes)
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(self.0.clone())
    }
}
