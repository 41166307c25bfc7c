//! The columns of a job's result, with what their tables say of them.

use sqlx::Row;
use sqlx::postgres::PgColumn;
use sqlx::postgres::types::Oid;

use super::super::moment::ParameterTypes;
use super::super::parameters::no_tenant;
use super::super::read_error::{ReadError, in_time};
use super::super::source::{PostgresSource, finish, learns_types};
use super::super::wire::Parameter;
use super::super::{Access, Transaction, column, describe};
use super::nulls::Nulled;
use crate::domain::job::{Job, Scope};
use crate::domain::json::ResultColumn;
use crate::engine::ports::SourceError;

/// For each of some columns of tables: the table's name, whether it and all tables that inherit from it refuse
/// NULL, and the dimensions of an array. A foreign table's NOT NULL is a promise of another server, and one
/// that was never validated says nothing of older rows.
const ORIGINS: &str = "with recursive origin as ( \
      select place, relation, attribute from unnest($1::oid[], $2::int2[]) with ordinality \
        as given (relation, attribute, place) where attribute > 0), \
    heirs as ( \
      select relation as root, relation from origin \
      union select heirs.root, i.inhrelid from heirs join pg_catalog.pg_inherits i \
        on i.inhparent = heirs.relation) \
    select origin.place, root.relname::text, top.attndims::int4, ( \
      select bool_and(c.relkind in ('r', 'p') and coalesce(a.attnotnull, false) \
          and not exists (select from pg_catalog.pg_constraint n where n.conrelid = c.oid \
            and n.contype = 'n' and not n.convalidated and a.attnum = any(n.conkey))) \
      from heirs join pg_catalog.pg_class c on c.oid = heirs.relation \
        left join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attname = top.attname \
      where heirs.root = origin.relation) \
    from origin join pg_catalog.pg_class root on root.oid = origin.relation \
      join pg_catalog.pg_attribute top on top.attrelid = root.oid and top.attnum = origin.attribute \
    order by origin.place";

impl PostgresSource {
    /// The columns of a job's result. A query that does not work is an error; [`Self::describe`] says more
    /// of it.
    pub async fn result_columns(&self, job: &Job) -> Result<Vec<ResultColumn>, SourceError> {
        let longest = self.database.settings.statement_timeout;
        let mut transaction = self.begin(Access::ReadOnly, longest).await?;
        let described = async {
            loop {
                let described = self.result_columns_in(&mut transaction, job).await;
                if !learns_types(&mut transaction, &described).await? {
                    return described;
                }
            }
        };
        let described = in_time(longest, described).await;
        finish(transaction, described).await.map_err(|error| {
            let doing = format!("could not describe the result of job `{}`", job.name);
            error.into_source_error(&doing)
        })
    }

    async fn result_columns_in(
        &self,
        transaction: &mut Transaction,
        job: &Job,
    ) -> Result<Vec<ResultColumn>, ReadError> {
        let id = match job.scope {
            Scope::Tenants => Some(self.tenants_shape(transaction).await?.id),
            Scope::Global => None,
        };
        let moment = self.moment_type(transaction, job, id).await?;
        let parameters = no_tenant(job, ParameterTypes { id, moment })?;
        let arguments = Parameter::arguments(&parameters)?;
        let found = describe::columns(transaction, &job.query.sql, arguments).await?;
        let origins = origins(transaction, &found).await?;
        let nulled = Nulled::of(&job.query.sql);
        let columns = column::columns(&found).into_iter().enumerate();
        Ok(columns
            .map(|(place, column)| {
                let origin = origins.iter().find(|origin| origin.place == place);
                ResultColumn {
                    column,
                    is_never_null: origin
                        .is_some_and(|origin| origin.is_not_null && !nulled.has(&origin.table)),
                    dimensions: origin.and_then(|origin| origin.dimensions),
                }
            })
            .collect())
    }
}

/// The column of a table that a column of a result is.
struct Origin {
    /// The position of the result's column.
    place: usize,
    /// The table's name, without its schema.
    table: String,
    is_not_null: bool,
    /// `None` if the column is no array, or a domain over one.
    dimensions: Option<u8>,
}

async fn origins(
    transaction: &mut Transaction,
    columns: &[PgColumn],
) -> Result<Vec<Origin>, ReadError> {
    let relations: Vec<Oid> =
        columns.iter().map(|column| column.relation_id().unwrap_or(Oid(0))).collect();
    let attributes: Vec<i16> =
        columns.iter().map(|column| column.relation_attribute_no().unwrap_or(0)).collect();
    let query = sqlx::query(ORIGINS).bind(relations).bind(attributes).persistent(false);
    let rows = query.fetch_all(&mut **transaction).await?;
    let origin = |row: &sqlx::postgres::PgRow| -> Result<Origin, sqlx::Error> {
        let place: i64 = row.try_get(0)?;
        let dimensions: i32 = row.try_get(2)?;
        Ok(Origin {
            place: usize::try_from(place - 1).unwrap_or(usize::MAX),
            table: row.try_get(1)?,
            is_not_null: row.try_get::<Option<bool>, _>(3)?.unwrap_or(false),
            dimensions: u8::try_from(dimensions).ok().filter(|count| *count > 0),
        })
    };
    Ok(rows.iter().map(origin).collect::<Result<_, _>>()?)
}
