//! Whose rights a trigger's query needs. If a policy of row-level security filters the query, it
//! finds no tenant and reports no error.

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Executor, PgConnection};

use crate::domain::change::ChangeSource;
use crate::domain::spelling::listed;

use super::TableProblem;
use super::sql::{self, Security};

/// What a source's query reads.
pub(super) struct Reads {
    tables: Vec<Read>,
    /// The owner of its function, present or future.
    owner: String,
}

struct Read {
    oid: Oid,
    /// In SQL's spelling.
    name: String,
    /// Whether a policy may hide rows from the writing role.
    may_hide: bool,
    /// Whether a policy hides them from the function's owner.
    hides_from_owner: bool,
}

impl Reads {
    /// The tables that are not in `watched`.
    pub(super) fn outside(&self, watched: &[Oid]) -> Vec<String> {
        let outside = self.tables.iter().filter(|read| !watched.contains(&read.oid));
        outside.map(|read| read.name.clone()).collect()
    }

    fn named(&self, is_it: impl Fn(&Read) -> bool) -> Option<String> {
        let names: Vec<_> =
            self.tables.iter().filter(|read| is_it(read)).map(|read| read.name.as_str()).collect();
        (!names.is_empty()).then(|| listed(names, "and"))
    }
}

/// The tables that the query of a source reads, including those of its views; nothing for a source
/// without a query. `owner` owns the source's function, if there is one. The server itself answers this about a view that is dropped before anybody can
/// see it. A plan would not do: it may lack a table that the planner does not need today.
pub(super) async fn reads(
    connection: &mut PgConnection,
    source: &ChangeSource,
    owner: Option<Oid>,
) -> Result<Option<Reads>, sqlx::Error> {
    let Some(view) = sql::reading_view(source) else { return Ok(None) };
    connection.execute(sqlx::raw_sql("savepoint preheat_reads")).await?;
    connection.execute(sqlx::raw_sql(AssertSqlSafe(view))).await?;
    let rows: Vec<(Oid, String, bool, bool)> = sqlx::query_as(AssertSqlSafe(sql::reads("$1")))
        .bind(owner)
        .persistent(false)
        .fetch_all(&mut *connection)
        .await?;
    let owner = sqlx::query_scalar("select coalesce(pg_get_userbyid($1), current_user)::text")
        .bind(owner)
        .persistent(false)
        .fetch_one(&mut *connection)
        .await?;
    connection.execute(sqlx::raw_sql("rollback to savepoint preheat_reads")).await?;
    let read =
        |(oid, name, may_hide, hides_from_owner)| Read { oid, name, may_hide, hides_from_owner };
    Ok(Some(Reads { tables: rows.into_iter().map(read).collect(), owner }))
}

/// The rights of a source's function.
#[derive(Clone, Copy)]
pub(super) struct Rights {
    /// What it has.
    pub(super) now: Security,
    /// What functions get that need a change.
    pub(super) wanted: Security,
}

/// Which rights the function of a source must have, or why it cannot work.
pub(super) async fn security(
    connection: &mut PgConnection,
    source: &ChangeSource,
    reads: &Reads,
    rights: Rights,
) -> Result<Result<Security, TableProblem>, sqlx::Error> {
    let hidden = reads.named(|read| read.may_hide);
    let security = match (rights.now, rights.wanted, &hidden) {
        (Security::Definer, _, _) | (Security::Invoker, Security::Definer, Some(_)) => {
            Security::Definer
        }
        (Security::Invoker, _, _) => Security::Invoker,
    };
    let problem = |message: String, hint: &str| Ok(Err(TableProblem::new(source, message, hint)));
    let (table, owner) = (&source.table, &reads.owner);
    let hidden_from_owner = reads.named(|read| read.hides_from_owner);
    match (security, hidden, hidden_from_owner) {
        (Security::Invoker, None, _) => Ok(Ok(Security::Invoker)),
        (Security::Invoker, Some(hidden), None) => {
            let message = format!(
                "the query that finds the tenants of table `{table}` reads {hidden} with row-level \
                 security, and runs as the role that writes: it would miss changes"
            );
            let hint = format!(
                "`preheat changes install --security-definer` lets the trigger's function run as \
                 role `{owner}`, which sees every row; or have the tenant's id in the table itself"
            );
            problem(message, &hint)
        }
        (Security::Invoker | Security::Definer, _, Some(hidden)) => {
            let message = format!(
                "the query that finds the tenants of table `{table}` reads {hidden} with row-level \
                 security, which hides rows from role `{owner}` as well"
            );
            let hint = "let a role with BYPASSRLS, or the owner of the tables where row-level \
                        security is not forced, run `preheat changes install --security-definer`";
            problem(message, hint)
        }
        (Security::Definer, _, None) => match open_schemas(connection).await? {
            None => Ok(Ok(Security::Definer)),
            Some(open) => {
                let message = format!(
                    "the function of table `{table}` cannot be `security definer`: anybody may \
                     create objects in schema `{open}` of the search path, and with them run \
                     statements as role `{owner}`"
                );
                let hint = format!("`revoke create on schema {open} from public`");
                problem(message, &hint)
            }
        },
    }
}

/// The schemas of the search path in which every role may create objects.
async fn open_schemas(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar(sql::OPEN_SCHEMAS).persistent(false).fetch_one(connection).await
}
