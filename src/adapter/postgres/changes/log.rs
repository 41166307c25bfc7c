//! What a server and a role need, so that a worker can read messages in the write-ahead log.

use sqlx::PgConnection;

use super::super::{Database, DatabaseSettings, error};
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

/// Whether the publication is missing that a session names which reads the log.
pub(super) const PUBLICATION: &str = "select case when not exists (select from pg_publication
      where pubname = 'preheat_changes')
    then 'the publication `preheat_changes` is missing' end";

/// What to do about a publication that is missing.
pub(super) const PUBLICATION_HINT: &str = "run `preheat changes install`, which creates it";

/// What to do about settings that keep a worker from reading the log.
pub(in super::super) const LOG_SETTINGS_HINT: &str = "messages through the write-ahead log need `wal_level = logical`, \
    a replication slot and a WAL sender for each worker (`max_replication_slots`, `max_wal_senders`; all three \
    settings take a restart of the server), and a role with REPLICATION for the worker; `preheat changes install --via notify` needs none of them";

/// Fails if no worker could read messages in the log of this server.
pub(super) async fn require(connection: &mut PgConnection) -> Result<(), Refused> {
    first(connection, LOG_SETTINGS).await?.map_or(Ok(()), |wrong| Err(Refused::Log(wrong)))
}

/// Whether the settings of the server let a worker read messages in its log.
pub async fn could_read_log(database: &Database) -> Result<bool, ChangesError> {
    Ok(wrong(database, &[(LOG_SETTINGS, LOG_SETTINGS_HINT)]).await?.is_none())
}

/// Why a worker cannot read messages in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogProblem {
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: &'static str,
}

/// What keeps a worker from reading messages in the log, with the role that it listens as: that of `direct`,
/// or else that of `database`. If triggers write to the log already, it needs the publication.
pub(in super::super) async fn log_problem(
    database: &Database,
    direct: Option<DatabaseSettings>,
    are_installed: bool,
) -> Result<Option<LogProblem>, ChangesError> {
    const RIGHTS_HINT: &str = "`alter role … replication` (on Amazon RDS `grant rds_replication to …`), or \
        set `[changes] url` to an address with a role that has it; `preheat changes install --via notify` \
        does without";
    let direct = direct.map(Database::lazy).transpose();
    let direct = direct.map_err(|failed| error::unavailable(failed.to_string()))?;
    let database = direct.as_ref().unwrap_or(database);
    let mut queries = vec![(LOG_SETTINGS, LOG_SETTINGS_HINT), (LOG_RIGHTS, RIGHTS_HINT)];
    if are_installed {
        queries.push((PUBLICATION, PUBLICATION_HINT));
    }
    wrong(database, &queries).await
}

/// The first problem that one of these queries finds, each with what to do about it.
async fn wrong(
    database: &Database,
    queries: &[(&'static str, &'static str)],
) -> Result<Option<LogProblem>, ChangesError> {
    let looking = async {
        let mut transaction = begin_look(database).await?;
        let mut wrong = None;
        for (query, hint) in queries {
            if wrong.is_none() {
                let found = first(&mut transaction, query).await?;
                wrong = found.map(|message| LogProblem { message, hint });
            }
        }
        transaction.end().await?;
        Ok(wrong)
    };
    in_time(database, looking).await
}

/// What one of these queries finds wrong.
pub(super) async fn first(
    connection: &mut PgConnection,
    query: &'static str,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar(query).persistent(false).fetch_one(connection).await
}
