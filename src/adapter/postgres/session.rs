//! The settings of each transaction.
//!
//! We never change settings of a session: one pooler would drop them, another would pass them on to
//! its next client. `set local` holds for one transaction, on whatever connection it runs.

use std::fmt::Write;
use std::time::Duration;

use tokio::time::Instant;

use super::DatabaseSettings;
use super::client::Client;

/// The settings of the role and the database are looked up again after this time.
const LOOK_EVERY: Duration = Duration::from_mins(1);

/// How long a statement waits for a lock. Without this limit, a client that holds a lock for long
/// (a migration) would block all our connections, although jobs that read other tables could use
/// them.
pub(super) const LOCK_WAIT: Duration = Duration::from_secs(2);

/// Looks up the settings that change what a query computes or how it writes text. The driver sets
/// some of them when it connects, which overrides those of the role and the database.
const LOOK: &str = "select name, value from (
  select distinct on (name) name, value from pg_catalog.pg_db_role_setting setting,
    unnest(setconfig) entry,
    lateral (select lower(split_part(entry, '=', 1)), substr(entry, strpos(entry, '=') + 1))
      as pair (name, value)
  where name in ('timezone', 'datestyle', 'intervalstyle', 'extra_float_digits')
    and setdatabase in (0, (select oid from pg_catalog.pg_database where datname = current_database()))
    and setrole in (0, (select oid from pg_catalog.pg_roles where rolname = session_user))
  order by name, setrole <> 0 desc, setdatabase <> 0 desc
) said
union all
select 'client_connection_check_interval', '1s' where version() ~ 'linux'
  and current_setting('client_connection_check_interval', true) is not null";

/// How long a transaction's statements may run, and how long they may wait for locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// The longest time of a statement.
    pub(super) statement: Duration,
    /// The longest wait for a lock; it counts towards the statement's time.
    pub(super) lock: Duration,
}

/// The settings of a transaction apart from its bounds, and when they were looked up.
#[derive(Clone, Debug)]
pub(super) struct Session {
    locals: String,
    is_zone_said: bool,
    looked_at: Instant,
}

impl Session {
    /// Looks up the settings of the role and the database.
    ///
    /// The settings of the role in this database come first, then those of the role, then those of
    /// the database. The server's configuration file cannot be looked up: the driver sets UTC when
    /// it connects, and `reset` goes back to that.
    pub(super) async fn look<C: Client>(
        client: &mut C,
        settings: &DatabaseSettings,
        of_url: &[Local],
    ) -> Result<Self, sqlx::Error> {
        let mut said = Vec::new();
        for row in client.ask(LOOK).await? {
            if let [Some(name), Some(value)] = row.as_slice() {
                said.push(Local::new(name, value));
            }
        }
        #[expect(clippy::disallowed_methods, reason = "only compared with another such look")]
        let looked_at = Instant::now();
        Ok(Self::new(&said, settings, of_url, looked_at))
    }

    fn new(
        said: &[Local],
        settings: &DatabaseSettings,
        of_url: &[Local],
        looked_at: Instant,
    ) -> Self {
        // JIT compilation takes longer than a batch's query, and happens anew for each.
        let mut locals = "set local jit = off".to_owned();
        let ours = settings.time_zone.map(|zone| Local::new("timezone", zone.name()));
        let is_ours = |local: &&Local| ours.is_some() && local.name == "timezone";
        let said = said.iter().filter(|local| !is_ours(local)).chain(&ours);
        let mut is_zone_said = false;
        for local in said.chain(of_url) {
            is_zone_said |= local.name == "timezone";
            local.write(&mut locals);
        }
        Self { locals, is_zone_said, looked_at }
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.looked_at.elapsed() < LOOK_EVERY
    }

    /// Whether neither the settings nor the URL nor the role nor the database define a time zone.
    pub(super) fn is_zone_unsaid(&self) -> bool {
        !self.is_zone_said
    }

    /// The settings, as statements of a transaction.
    pub(super) fn locals(&self, bounds: Bounds) -> String {
        let statement = milliseconds(bounds.statement);
        let lock = milliseconds(bounds.lock.min(bounds.statement));
        let Self { locals, .. } = self;
        format!(
            "set local statement_timeout = {statement}; set local lock_timeout = {lock}; {locals}"
        )
    }
}

/// A setting of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Local {
    name: String,
    value: String,
}

impl Local {
    pub(super) fn new(name: &str, value: &str) -> Self {
        Self { name: name.to_owned(), value: value.to_owned() }
    }

    /// Writes a call of `set_config`, because it takes a list as one text.
    fn write(&self, sql: &mut String) {
        let (name, value) = (literal(&self.name), literal(&self.value));
        let _a_string_takes_all = write!(sql, "; select set_config({name}, {value}, true)");
    }
}

/// A text as an SQL literal, whatever `standard_conforming_strings` is.
fn literal(text: &str) -> String {
    let text = text.replace('\'', "''");
    if text.contains('\\') {
        format!("E'{}'", text.replace('\\', "\\\\"))
    } else {
        format!("'{text}'")
    }
}

/// At least 1: for Postgres 0 means no timeout at all.
fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX).max(1)
}
