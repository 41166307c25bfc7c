//! What a server and a role need, so that a worker can read messages in the write-ahead log.

use sqlx::PgConnection;

use super::super::Database;
use super::{ChangesError, Refused, begin_look, in_time};

/// Whether the server's settings let a worker read messages in the log, and what is wrong with them
/// otherwise.
pub(super) const LOG_SETTINGS: &str = "select case
    when current_setting('wal_level') <> 'logical' then 'wal_level is ' || current_setting('wal_level')
    when current_setting('max_replication_slots')::int = 0 then 'max_replication_slots is 0'
    when current_setting('max_wal_senders')::int = 0 then 'max_wal_senders is 0' end";

/// Whether the role may read the log, and what is wrong otherwise. On Amazon RDS a group stands for the right.
const LOG_RIGHTS: &str = "select case when not exists (select from pg_roles
      where rolname = current_user and (rolsuper or rolreplication)
        or rolname = 'rds_replication' and pg_has_role(oid, 'member'))
    then 'the role ' || current_user || ' lacks REPLICATION' end";

/// What to do about settings that keep a worker from reading the log.
pub(in super::super) const LOG_SETTINGS_HINT: &str = "messages through the write-ahead log need `wal_level = logical`, \
    a replication slot and a WAL sender for each worker (settings that take a restart of the server), and a \
    role with REPLICATION for the worker; `preheat changes install --via notify` needs none of them";

/// Fails if no worker could read messages in the log of this server.
pub(super) async fn require(connection: &mut PgConnection) -> Result<(), Refused> {
    first(connection, LOG_SETTINGS).await?.map_or(Ok(()), |wrong| Err(Refused::Log(wrong)))
}

/// Whether the settings of the server let a worker read messages in its log.
pub async fn could_read_log(database: &Database) -> Result<bool, ChangesError> {
    Ok(wrong(database, &[LOG_SETTINGS]).await?.is_none())
}

/// What keeps this role from reading messages in the server's log.
pub(in super::super) async fn log_problem(
    database: &Database,
) -> Result<Option<String>, ChangesError> {
    wrong(database, &[LOG_SETTINGS, LOG_RIGHTS]).await
}

/// The first problem that one of these queries finds.
async fn wrong(
    database: &Database,
    queries: &[&'static str],
) -> Result<Option<String>, ChangesError> {
    let looking = async {
        let mut transaction = begin_look(database).await?;
        let mut wrong = None;
        for query in queries {
            if wrong.is_none() {
                wrong = first(&mut transaction, query).await?;
            }
        }
        transaction.end().await?;
        Ok(wrong)
    };
    in_time(database, looking).await
}

async fn first(
    connection: &mut PgConnection,
    query: &'static str,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar(query).persistent(false).fetch_one(connection).await
}
