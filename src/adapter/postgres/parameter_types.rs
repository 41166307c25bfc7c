//! Learns the types of the parameters of a job's query.

use crate::domain::day::MomentType;
use crate::domain::job::{Job, Scope};
use crate::engine::ports::Read;

use super::client::Client;
use super::id::IdType;
use super::moment::{ParameterTypes, moment_type_of};
use super::parameters::{Asked, no_tenant};
use super::read_error::ReadError;
use super::source::PostgresSource;
use super::transaction::Transaction;

impl PostgresSource {
    /// The read, with the types of its parameters, as far as they are known or as the query is described.
    pub(super) async fn ask<'r, C: Client>(
        &self,
        transaction: &mut Transaction<C>,
        job: &'r Job,
        read: Read<'r>,
    ) -> Result<Asked<'r>, ReadError> {
        let id = match job.scope {
            Scope::Tenants => Some(self.id_type(transaction).await?),
            Scope::Global => None,
        };
        let moment = self.moment_type(transaction, job, id).await?;
        Ok(Asked { job, types: ParameterTypes { id, moment }, read })
    }

    /// The type of the job's `dates.column`, as far as known; otherwise the query is described.
    pub(super) async fn moment_type<C: Client>(
        &self,
        transaction: &mut Transaction<C>,
        job: &Job,
        id: Option<IdType>,
    ) -> Result<Option<MomentType>, ReadError> {
        let known = job.moment_column().and_then(|column| self.moments.of(job, column));
        match known {
            Some(ty) => Ok(Some(ty)),
            None => self.learn_moment_type(transaction, job, id).await,
        }
    }

    /// The type of the job's `dates.column`, as the server describes the query.
    ///
    /// To describe it, the server needs the types of the parameters, one of which is the type in question.
    /// Most queries only compare them, which works between all types of moments. Others, such as one with
    /// `tstzrange($2, $3)`, take one type only. So we try one type after the other.
    pub(super) async fn learn_moment_type<C: Client>(
        &self,
        transaction: &mut Transaction<C>,
        job: &Job,
        id: Option<IdType>,
    ) -> Result<Option<MomentType>, ReadError> {
        let Some(name) = job.moment_column() else { return Ok(None) };
        let mut refusal = None;
        for ty in MomentType::ALL {
            let none = no_tenant(job, ParameterTypes { id, moment: Some(ty) })?;
            transaction.ask("savepoint moment").await?;
            match Client::describe(&mut **transaction, &job.query.sql, &none).await {
                Ok(described) => {
                    let columns: Vec<_> = described.into_iter().map(|one| one.column).collect();
                    let ty = moment_type_of(&columns, name)?;
                    self.moments.note(job, ty);
                    return Ok(Some(ty));
                }
                Err(error) if error.is_refusal() => {
                    transaction.ask("rollback to moment").await?;
                    refusal.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        refusal.map_or(Ok(None), Err)
    }

    /// The same for a check. If the server refuses the query, or if it returns no moments, the check has
    /// yet to say so, and goes on with instants.
    pub(super) async fn moment_type_to_check<C: Client>(
        &self,
        transaction: &mut Transaction<C>,
        job: &Job,
        id: Option<IdType>,
    ) -> Result<Option<MomentType>, ReadError> {
        moment_to_check(self.learn_moment_type(transaction, job, id).await)
    }
}

/// The type of moments with which a check goes on.
pub(super) fn moment_to_check(
    learnt: Result<Option<MomentType>, ReadError>,
) -> Result<Option<MomentType>, ReadError> {
    match learnt {
        Err(error) if error.is_refusal() => Ok(Some(MomentType::Instant)),
        learnt => learnt,
    }
}
