//! Translates sqlx's types into the encoder's.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{
    PgArgumentBuffer, PgArguments, PgColumn, PgConnection, PgRow, PgTypeInfo, PgTypeKind,
};
use sqlx::{Arguments, Column as _, Encode, Executor, Postgres, Row, Type, TypeInfo, ValueRef};
use tokio::time::Instant;

use super::wire::Described;
use crate::domain::json::{Column, ColumnType};

/// The columns of a row.
pub(super) fn columns(columns: &[PgColumn]) -> Vec<Column> {
    let column = |column: &PgColumn| Column {
        name: column.name().to_owned(),
        ty: column_type(column.type_info()),
    };
    columns.iter().map(column).collect()
}

/// The same with the OIDs of their types; 0 if the driver does not know a type's OID.
pub(super) fn described(found: &[PgColumn]) -> Vec<Described> {
    let oid = |column: &PgColumn| column.type_info().oid().map_or(0, |oid| oid.0);
    let oids = found.iter().map(oid);
    let described = |(column, oid)| Described { column, oid };
    columns(found).into_iter().zip(oids).map(described).collect()
}

/// A column by its name. If several columns have the name, the last one counts, as in a row of
/// node-postgres.
pub(super) fn named<'c>(columns: &'c [Column], name: &str) -> Option<(usize, &'c Column)> {
    columns.iter().enumerate().rev().find(|(_, column)| column.name == name)
}

fn column_type(ty: &PgTypeInfo) -> ColumnType {
    /// sqlx's name for a type that the server did not describe. Such a type has no kind.
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
            // An extension's type may be in any schema, and then its name is qualified.
            match ty.name().rsplit('.').next() {
                Some("citext") => ColumnType::Citext,
                // sqlx writes the names of the types that it knows in capitals.
                _ if is_shouted => ColumnType::Unsupported(ty.name().to_lowercase()),
                _ => ColumnType::Unsupported(ty.name().to_owned()),
            }
        }
    }
}

/// A column's bytes in the wire format; `None` for NULL.
///
/// It does not move the driver's value, and does not ask it for the bytes of a NULL, which would be an
/// error on the heap: either would take longer than to write the value.
pub(super) fn value(row: &PgRow, index: usize) -> Option<&[u8]> {
    let value = row.try_get_raw(index);
    let value = value.as_ref().ok().filter(|value| !value.is_null())?;
    value.as_bytes().ok()
}

/// The database's own types, and `xml` if a table or view has a column of it: of the built-in types,
/// it is the one that the driver does not know. A connection learns up to 500 of them when it begins;
/// the driver learns the others when a query uses them.
///
/// Composite types are left out, and so are enums with labels that the driver may be unable to
/// read.
const TYPES: &str = "select type.oid::regtype::text from pg_catalog.pg_type type \
     left join pg_catalog.pg_type element on element.oid = type.typelem \
     where (type.oid >= 16384 or type.oid in (142, 143) and exists (\
         select from pg_catalog.pg_attribute where attrelid >= 16384 and atttypid in (142, 143))) \
       and type.typtype in ('b', 'd', 'e', 'r') and element.typtype is distinct from 'c' \
       and not exists (select from pg_catalog.pg_enum \
         where enumtypid in (type.oid, type.typelem, type.typbasetype) \
           and (enumlabel !~ '^[[:alnum:]_ -]+$' or upper(enumlabel) = 'NULL')) \
     order by type.oid limit 500";

/// The names of the database's own types are looked up again after this time.
const LOOK_EVERY: Duration = Duration::from_mins(1);

/// The names of the database's own types, and when they were looked up. Most databases have none, so
/// most connections need no look-up at all.
#[derive(Debug, Default)]
pub(super) struct OwnTypes(Mutex<Option<(Instant, Vec<&'static str>)>>);

impl OwnTypes {
    /// Makes the driver look up the database's own types (enums, ranges, types of extensions).
    ///
    /// Otherwise the driver would look a type up between preparing a statement and running it. The
    /// server forgets an unnamed statement at such a look-up, so the first query of each connection
    /// would fail. A type that is created later is learnt through that failure: see
    /// [`super::Transaction::begin_again`]. The same happens if this look-up fails.
    pub(super) async fn teach(&self, connection: &mut PgConnection) {
        let Ok(names) = self.names(connection).await else { return };
        let mut types = PgArguments::default();
        for name in &names {
            if types.add(NullOf(PgTypeInfo::with_name(name))).is_err() {
                return;
            }
        }
        if !names.is_empty() {
            let learn = sqlx::query_with("select", types).persistent(false);
            drop(connection.execute(learn).await);
        }
    }

    async fn names(&self, connection: &mut PgConnection) -> Result<Vec<&'static str>, sqlx::Error> {
        let known = self.known().clone().filter(|(at, _)| at.elapsed() < LOOK_EVERY);
        if let Some((_, names)) = known {
            return Ok(names);
        }
        let rows = connection.fetch_all(sqlx::raw_sql(TYPES)).await?;
        let name = |row: &PgRow| row.try_get::<&str, _>(0).map(lasting);
        let names = rows.iter().map(name).collect::<Result<Vec<_>, _>>()?;
        #[expect(clippy::disallowed_methods, reason = "only compared with another such look")]
        let now = Instant::now();
        *self.known() = Some((now, names.clone()));
        Ok(names)
    }

    fn known(&self) -> MutexGuard<'_, Option<(Instant, Vec<&'static str>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The driver wants type names that live as long as the program, so each name is leaked once.
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

/// NULL of a given type.
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
