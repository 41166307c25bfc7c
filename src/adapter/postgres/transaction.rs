//! Transactions: how they begin and how they end.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::timeout;

use super::ANSWER_GRACE;
use super::client::{Client, Link};
use super::pool::Place;
use super::session::{Bounds, LOCK_WAIT};
use super::wire::Session;

/// What a transaction may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// It only reads, whatever the settings say.
    ReadOnly,
    /// It only reads, and all its statements see the data of one moment.
    Snapshot,
    /// It may write, unless `database.read_only` forbids it.
    AsSet,
    /// It may write, whatever the settings say: to our own tables and triggers.
    Write,
}

/// How a transaction begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begin {
    pub(super) access: Access,
    pub(super) bounds: Bounds,
}

impl Begin {
    /// Each statement takes at most `longest`, and never longer than the settings allow.
    pub(super) fn reading(access: Access, longest: Duration) -> Self {
        let bounds = Bounds { statement: longest, lock: LOCK_WAIT };
        Self { access, bounds }
    }

    /// No statement waits for a lock longer than `lock`.
    pub(super) fn writing(lock: Duration) -> Self {
        let bounds = Bounds { statement: Duration::MAX, lock };
        Self { access: Access::Write, bounds }
    }
}

/// A transaction. It has a connection of its own until it ends.
///
/// If it is dropped before its end, the connection is closed. A query's future may be dropped at
/// any await, but the query goes on in the server, and the connection's next user would wait behind
/// it.
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are facts that do not depend on each other"
)]
pub(super) struct Transaction<C: Client = PgConnection> {
    held: Option<(C, Place<Link>)>,
    /// The SQL that began it.
    begin: String,
    may_write: bool,
    has_begun_again: bool,
    ends_with_rows: bool,
    is_whole: bool,
}

impl<C: Client> Transaction<C> {
    /// A transaction that has yet to begin: see [`Self::begun`].
    pub(super) fn new(client: C, place: Place<Link>, may_write: bool) -> Self {
        let held = Some((client, place));
        Self {
            held,
            begin: String::new(),
            may_write,
            has_begun_again: false,
            ends_with_rows: false,
            is_whole: false,
        }
    }

    /// Records the SQL that began it.
    pub(super) fn begun(&mut self, sql: String) {
        self.begin = sql;
    }

    /// Ends the transaction after a statement whose rows were all read.
    pub(super) async fn end(mut self) -> Result<(), sqlx::Error> {
        if self.may_write {
            return self.commit().await;
        }
        if !self.has_ended() {
            self.ask("rollback").await?;
        }
        self.is_whole = true;
        Ok(())
    }

    pub(super) async fn commit(mut self) -> Result<(), sqlx::Error> {
        self.ask("commit").await?;
        self.is_whole = true;
        Ok(())
    }

    /// Rolls back after an error of the server.
    pub(super) async fn undo(mut self) {
        if self.has_ended() {
            self.is_whole = true;
            return;
        }
        let undone = timeout(ANSWER_GRACE, self.ask("rollback")).await;
        self.is_whole = matches!(undone, Ok(Ok(_)));
    }

    /// Restarts the transaction, but only once; returns whether it did.
    pub(super) async fn begin_again(&mut self) -> Result<bool, sqlx::Error> {
        if self.has_begun_again {
            return Ok(false);
        }
        self.has_begun_again = true;
        self.begin_anew().await?;
        Ok(true)
    }

    /// Rolls back and begins again with the same SQL.
    pub(super) async fn begin_anew(&mut self) -> Result<(), sqlx::Error> {
        let begin = format!("rollback; {}", self.begin);
        self.ask(&begin).await?;
        Ok(())
    }
}

impl Transaction<Session> {
    /// The query whose rows are read next is the last statement.
    pub(super) fn end_with_rows(&mut self) {
        self.ends_with_rows = true;
    }

    /// What is sent together with a query, to end the transaction without a round trip of its own: a read-only
    /// transaction has nothing to commit.
    pub(super) fn ending(&self) -> Option<&'static str> {
        (self.ends_with_rows && !self.may_write).then_some("rollback")
    }
}

impl<C: Client> Deref for Transaction<C> {
    type Target = C;

    fn deref(&self) -> &C {
        match &self.held {
            Some((client, _)) => client,
            None => unreachable!("only the end of the transaction takes it out"),
        }
    }
}

impl<C: Client> DerefMut for Transaction<C> {
    fn deref_mut(&mut self) -> &mut C {
        match &mut self.held {
            Some((client, _)) => client,
            None => unreachable!("only the end of the transaction takes it out"),
        }
    }
}

impl<C: Client> Drop for Transaction<C> {
    fn drop(&mut self) {
        let Some((client, place)) = self.held.take() else { return };
        if self.is_whole && client.is_at_rest() {
            // If the pool has closed, the connection closes here.
            drop(place.give_back(client.into_link()));
        } else {
            client.abandon();
        }
    }
}
