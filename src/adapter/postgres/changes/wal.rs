//! Reading the messages of triggers from the write-ahead log.
//!
//! The replication slot is temporary: the server drops it with its session, so it keeps no log for a worker
//! that is gone. A lost session means, as with `NOTIFY`, that anything may have changed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use sqlx::{Executor, Row};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};

use crate::engine::ports::FeedError;

use super::super::connect::Route;
use super::super::replication::{Content, Frame, Session};
use super::super::{Access, Begin, Database, error};
use super::log::{LOG_SETTINGS, LOG_SETTINGS_HINT, PUBLICATION, PUBLICATION_HINT};
use super::notify::{not_heard, speak};
use super::sql::CHANNEL;
use super::{AT_ONCE, not_listening};

/// How often the reader says how far it is, so that the server keeps little of its log, and asks for an
/// answer: a connection that died silently brings no error.
const ACKNOWLEDGE_EVERY: Duration = Duration::from_secs(10);
/// With so many questions unanswered, the connection counts as lost. A server that decodes one large
/// transaction answers each time that half of [`SERVER_PATIENCE`] has passed.
const MOST_UNANSWERED: u32 = 2;
/// After this time without a word from us, the server ends the session, and drops the slot.
const SERVER_PATIENCE: Duration = Duration::from_secs(30);
/// How long our own message may take: it may have to wait behind a large transaction.
const HEARD_WITHIN: Duration = Duration::from_secs(30);
/// How often we look what the server waits for before it makes the slot ready: until we have said what, and
/// from then on.
const FIRST_LOOKS: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long a look may take: the jobs may use all connections.
const LOOK_WITHIN: Duration = Duration::from_secs(1);
/// After so many looks that found nothing, we say that the slot is not ready all the same.
const LOOKS_IN_VAIN: u32 = 3;
const UNKNOWN: &str =
    "a transaction that could not be found out (see pg_stat_activity and pg_prepared_xacts)";

/// The sessions that keep the process waiting that makes a slot. The process is found by the slot, because a
/// pooler tells its clients other process ids. A prepared transaction has no session.
const BLOCKERS: &str = "select string_agg(case
      when blocker.pid = 0 then 'a prepared transaction (see pg_prepared_xacts)'
      else format('session %s of application `%s` in database `%s`, whose transaction is open since %s',
        blocker.pid, other.application_name, other.datname,
        coalesce(to_char(other.xact_start, 'YYYY-MM-DD HH24:MI:SS TZ'),
          'a time that only a role with pg_read_all_stats may see')) end, ', ')
    from pg_replication_slots slot
      cross join unnest(pg_blocking_pids(slot.active_pid)) as blocker (pid)
      left join pg_stat_activity other on other.pid = blocker.pid
    where slot.slot_name = $1";

/// Called when the feed waits for other sessions, with what it waits for.
pub type WaitNote = Arc<dyn Fn(&str) + Send + Sync>;

/// A session that streams the log from its own slot.
pub(super) struct LogReader {
    session: Session,
    server: String,
    /// How far the server has read.
    position: u64,
    check: Interval,
    unanswered: u32,
    piece: Piece,
    /// Whether a transaction has begun whose end has not come yet.
    is_open: bool,
    /// The prefix of our own message, until it was heard.
    probe: Option<String>,
}

/// Payloads that are handed on together, each once: many statements of one transaction send the same.
#[derive(Default)]
struct Piece {
    payloads: Vec<String>,
    seen: HashSet<String>,
}

impl Piece {
    /// Adds a payload, or returns the piece if it is full, and begins the next one with the payload. The keys
    /// that are gone stay with the tenants they have gone from, which come before them.
    fn add(&mut self, payload: &str) -> Option<Vec<String>> {
        if self.seen.contains(payload) {
            return None;
        }
        let belongs_to_last = payload.contains("\"gone\":") && self.payloads.len() < 2 * AT_ONCE;
        let is_full = self.payloads.len() >= AT_ONCE && !belongs_to_last;
        let full = is_full.then(|| self.take());
        self.seen.insert(payload.to_owned());
        self.payloads.push(payload.to_owned());
        full
    }

    fn take(&mut self) -> Vec<String> {
        self.seen.clear();
        std::mem::take(&mut self.payloads)
    }
}

impl LogReader {
    /// Begins to read, when all transactions that are open have ended: the slot is not ready before that.
    pub(super) async fn connect(
        database: Arc<Database>,
        url: SecretString,
        waits: WaitNote,
    ) -> Result<Self, FeedError> {
        let route = Route::new(&url).map_err(|error| FeedError(error.to_string()))?;
        let connected = Box::pin(route.replicate()).await;
        let mut session = connected.map_err(|failed| FeedError(failed.message()))?;
        let server = route.server().to_owned();
        require(&server, &mut session).await?;
        let slot = format!("preheat_{}", uuid::Uuid::now_v7().simple());
        let created = create_slot(&database, &waits, &mut session, &slot).await;
        created.map_err(|error| not_listening(&server, &with_hint(&error)))?;
        let start = format!(
            "START_REPLICATION SLOT \"{slot}\" LOGICAL 0/0 \
             (proto_version '1', publication_names '\"{CHANNEL}\"', messages 'true')"
        );
        answered(&server, session.start(&start)).await?;
        let mut check = interval(ACKNOWLEDGE_EVERY);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        check.reset();
        Ok(Self {
            session,
            server,
            position: 0,
            check,
            unanswered: 0,
            piece: Piece::default(),
            is_open: false,
            probe: None,
        })
    }

    /// Writes a message on the same way as every other statement. A reader of another database's log would
    /// otherwise receive nothing for ever.
    pub(super) async fn hear_ourselves(&mut self, database: &Database) -> Result<(), FeedError> {
        let prefix = format!("preheat_probe_{}", uuid::Uuid::now_v7().simple());
        let emit = format!("select pg_logical_emit_message(true, '{prefix}', '')");
        self.probe = Some(prefix);
        speak(database, &emit).await?;
        let heard = timeout(HEARD_WITHIN, async {
            while self.probe.is_some() {
                let frame = self.next().await?;
                // A new connection counts as a change of everything, so nobody misses these messages.
                drop(self.take_in(&frame)?);
            }
            Ok(())
        });
        match heard.await {
            Ok(heard) => heard,
            Err(_elapsed) => Err(not_heard(database, &self.server)),
        }
    }

    /// Waits for messages, and returns those of whole transactions; of a large one, a piece. A caller may
    /// give up at any time, and loses nothing.
    pub(super) async fn hear(&mut self) -> Result<Vec<String>, FeedError> {
        loop {
            let frame = match self.session.received().map_err(|error| self.lost(&error))? {
                Some(frame) => frame,
                None if !self.is_open && !self.piece.payloads.is_empty() => {
                    return Ok(self.piece.take());
                }
                None => self.next().await?,
            };
            if let Some(full) = self.take_in(&frame)? {
                return Ok(full);
            }
        }
    }

    async fn next(&mut self) -> Result<Frame, FeedError> {
        loop {
            tokio::select! {
                biased;
                frame = self.session.receive() => {
                    self.unanswered = 0;
                    return frame.map_err(|error| self.lost(&error));
                }
                _ = self.check.tick() => {
                    if self.unanswered == MOST_UNANSWERED {
                        let silence = ACKNOWLEDGE_EVERY * MOST_UNANSWERED;
                        let reason = format!("no answer within {silence:?}");
                        return Err(super::lost(&self.server, &reason));
                    }
                    self.unanswered += 1;
                    self.acknowledge(true)?;
                }
            }
        }
    }

    /// Returns a piece that has become full.
    fn take_in(&mut self, frame: &Frame) -> Result<Option<Vec<String>>, FeedError> {
        self.position = self.position.max(frame.position);
        if frame.wants_answer {
            self.acknowledge(false)?;
        }
        match &frame.content {
            Content::Begin => self.is_open = true,
            Content::Commit => self.is_open = false,
            Content::Message { prefix, content } if prefix == CHANNEL => {
                return Ok(self.piece.add(&String::from_utf8_lossy(content)));
            }
            Content::Message { prefix, .. } => {
                self.probe.take_if(|probe| prefix == probe);
            }
            Content::Other => {}
        }
        Ok(None)
    }

    /// What was received need not be kept, whether or not it was handed on: with the session, everything
    /// counts as changed.
    fn acknowledge(&mut self, wants_answer: bool) -> Result<(), FeedError> {
        let written = self.session.acknowledge(self.position, wants_answer);
        written.map_err(|error| self.lost(&error))
    }

    fn lost(&self, error: &sqlx::Error) -> FeedError {
        super::lost(&self.server, &with_hint(error))
    }
}

/// Checks what the server lacks before it says so in its own words, and sets up the session.
async fn require(server: &str, session: &mut Session) -> Result<(), FeedError> {
    for (query, hint) in [(LOG_SETTINGS, LOG_SETTINGS_HINT), (PUBLICATION, PUBLICATION_HINT)] {
        let found = answered(server, session.query(query)).await?;
        if let Some(wrong) = found.into_iter().flatten().flatten().next() {
            return Err(FeedError(format!(
                "cannot read the write-ahead log of database `{server}`: {wrong}; hint: {hint}"
            )));
        }
    }
    // A role may have limits that would end the wait for other transactions.
    let patience = SERVER_PATIENCE.as_millis();
    let set = format!(
        "set lock_timeout = 0; set statement_timeout = 0; set wal_sender_timeout = {patience}"
    );
    answered(server, session.query(&set)).await.map(drop)
}

/// Creates the slot, which waits until all transactions that are open have ended, and meanwhile says for which
/// ones it waits.
async fn create_slot(
    database: &Database,
    waits: &WaitNote,
    session: &mut Session,
    slot: &str,
) -> Result<(), sqlx::Error> {
    let create =
        format!("CREATE_REPLICATION_SLOT \"{slot}\" TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT");
    let created = session.query(&create);
    tokio::pin!(created);
    let (mut said, mut looks) = (None, 0);
    loop {
        let pause = if said.is_none() { FIRST_LOOKS } else { LOOK_EVERY };
        tokio::select! {
            biased;
            created = &mut created => return created.map(drop),
            () = sleep(pause) => {}
        }
        let found = tokio::select! {
            biased;
            created = &mut created => return created.map(drop),
            found = blockers(database, slot) => found,
        };
        looks += 1;
        let is_due = said.is_none() && looks >= LOOKS_IN_VAIN;
        let found = found.or_else(|| is_due.then(|| UNKNOWN.to_owned()));
        if let Some(found) = found.filter(|found| said.as_ref() != Some(found)) {
            waits(&found);
            said = Some(found);
        }
    }
}

/// What the server waits for before a slot is ready; `None` if it waits for nothing, or that cannot be found
/// out.
async fn blockers(database: &Database, slot: &str) -> Option<String> {
    let looking = async {
        let begin = Begin::reading(Access::ReadOnly, LOOK_WITHIN);
        let mut transaction = database.begin(begin).await.ok()?;
        let asked = sqlx::query(BLOCKERS).bind(slot).persistent(false);
        let row = transaction.fetch_one(asked).await.ok()?;
        let found = row.try_get(0).ok()?;
        transaction.end().await.ok()?;
        found
    };
    timeout(LOOK_WITHIN, looking).await.ok().flatten()
}

async fn answered<T>(
    server: &str,
    call: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, FeedError> {
    super::answered(server, call, with_hint).await
}

fn with_hint(error: &sqlx::Error) -> String {
    error::words(error) + hint(error)
}

fn hint(error: &sqlx::Error) -> &'static str {
    const CONFIGURATION_LIMIT_EXCEEDED: &str = "53400";
    // The publication is the only object that a session names.
    const UNDEFINED_OBJECT: &str = "42704";
    match error::code(error) {
        Some(CONFIGURATION_LIMIT_EXCEEDED) => {
            "; hint: every worker takes one replication slot: raise `max_replication_slots`, or drop slots \
             that nobody uses (see pg_replication_slots)"
        }
        Some(UNDEFINED_OBJECT) => "; hint: run `preheat changes install`",
        Some(_) | None => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_has_each_payload_once_and_is_bounded() {
        let mut piece = Piece::default();
        for number in 0..AT_ONCE {
            assert_eq!(piece.add(&number.to_string()), None);
            assert_eq!(piece.add("0"), None);
        }
        // What is gone stays with its tenants.
        assert_eq!(piece.add(r#"{"gone":{}}"#), None);
        let full = piece.add("next").unwrap();
        assert_eq!(full.len(), AT_ONCE + 1);
        assert_eq!(piece.take(), ["next"]);
        assert_eq!(piece.add("next"), None);
        let gone = (0..3 * AT_ONCE).filter_map(|number| piece.add(&format!("\"gone\":{number}")));
        assert_eq!(gone.map(|full| full.len()).max(), Some(2 * AT_ONCE));
    }
}
