//! The protocol: which commands a read and its fill send.
//!
//! A hit is one `GET`. A miss is one script, [`BEGIN`], that reads the fence and takes the lease, then the load,
//! then one script, [`FILL`], that writes the value unless the fence has moved. Where scripts cannot be used,
//! a fill is brief: it never overwrites, lives for ten seconds at most and goes if the fence moved.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use redis::{
    Cmd, FromRedisValue, RedisError, RedisResult, ServerErrorKind, Value, cmd, from_redis_value,
};
use tokio::time::timeout;

use crate::breaker::Breaker;
use crate::connection::Connection;
use crate::counts::Growth;
use crate::key::{Fill, Key};
use crate::names::{BRIEF, FENCE_TTL, LEASE, Names, READS_TTL, fence_start, token};
use crate::problem::{Failure, Problem, Problems, is_lost};
use crate::scripts::{BEGIN, FILL, Script};

/// When those who wait for another process' load look again; afterwards at the last of these intervals.
const LEASE_WAITS: [Duration; 3] =
    [Duration::from_millis(25), Duration::from_millis(50), Duration::from_millis(100)];
/// How long they wait in all.
const LEASE_WAIT_TOTAL: Duration = Duration::from_secs(1);

/// What no fence is: a `FILL` that saw it gives the lease back and writes nothing.
const NO_FENCE: &[u8] = b"-";

/// A key as it is in Redis, and how it may be filled.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: Arc<str>,
    /// The key of its fence.
    pub(crate) fence: Option<Arc<str>>,
    pub(crate) family: &'static str,
    /// How long a fill lives; none if there is to be no fill.
    fill_ttl: Option<Duration>,
}

impl Entry {
    pub(crate) fn new<T>(names: &Names, key: &Key<T>) -> Self {
        let fence = names.fence(key.fence());
        let ttl = key.ttl().max(Duration::from_millis(1));
        let fill_ttl = match key.fill() {
            Fill::Never => None,
            Fill::Brief => Some(ttl.min(BRIEF)),
            Fill::Full if fence.is_none() => Some(ttl.min(BRIEF)),
            Fill::Full => Some(ttl),
        };
        let fence = fence.map(Into::into);
        Self { key: names.key(key.key()).into(), fence, family: key.family(), fill_ttl }
    }
}

/// Who loads.
pub(crate) enum Begun {
    /// Nobody: the value is there.
    Found(Bytes),
    /// This reader.
    Load(Ticket),
    /// Another process, but perhaps it never ends.
    Wait(Ticket),
}

/// What a fill needs of the time before the load.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    token: String,
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    /// The fence that the script saw.
    Script { fence: Bytes },
    /// The fence that `GET` saw.
    Brief { fence: Seen },
}

#[derive(Clone, Debug, PartialEq)]
enum Seen {
    /// The key has no fence.
    Unfenced,
    /// The fence is missing: it may move unseen.
    Missing,
    At(Bytes),
}

/// What became of a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    Written,
    /// Another reader or the worker had written a value.
    ThereAlready,
    /// The fence had moved.
    Refused,
    /// Redis failed, or the fill was not allowed to begin with.
    Failed,
}

/// How long those who wait for another process' load wait before each further look.
pub(crate) fn lease_waits() -> impl Iterator<Item = Duration> {
    let [.., last] = LEASE_WAITS;
    let mut total = Duration::ZERO;
    LEASE_WAITS.into_iter().chain(std::iter::repeat(last)).take_while(move |wait| {
        total += *wait;
        total <= LEASE_WAIT_TOTAL
    })
}

/// Speaks the protocol over one connection.
#[derive(Debug)]
pub(crate) struct Protocol {
    pub(crate) connection: Connection,
    pub(crate) names: Names,
    pub(crate) deadline: Duration,
    pub(crate) breaker: Breaker,
    pub(crate) problems: Problems,
    /// Scripts cannot be used.
    is_brief: AtomicBool,
    /// One command cannot have keys of several slots.
    is_cluster: AtomicBool,
}

impl Protocol {
    pub(crate) fn new(
        connection: Connection,
        names: Names,
        deadline: Duration,
        problems: Problems,
    ) -> Self {
        let (is_brief, is_cluster) = (AtomicBool::new(false), AtomicBool::new(false));
        let breaker = Breaker::default();
        Self { connection, names, deadline, breaker, problems, is_brief, is_cluster }
    }

    pub(crate) fn entry<T>(&self, key: &Key<T>) -> Entry {
        Entry::new(&self.names, key)
    }

    pub(crate) async fn get(&self, key: &str) -> Result<Option<Bytes>, Failure> {
        self.noted(self.ask(cmd("GET").arg(key).take()).await)
    }

    /// Many values with one command, except on a cluster.
    pub(crate) async fn get_many(
        self: &Arc<Self>,
        keys: &[Arc<str>],
    ) -> Result<Vec<Option<Bytes>>, Failure> {
        if !self.is_cluster.load(Ordering::Relaxed) {
            let mut command = cmd("MGET");
            for key in keys {
                command.arg(&**key);
            }
            match self.ask(command).await {
                Err(Failure::Redis(error)) if is_cross_slot(&error) => {
                    self.is_cluster.store(true, Ordering::Relaxed);
                }
                answer => return self.noted(answer),
            }
        }
        let get = |key: &Arc<str>| {
            let (this, key) = (Arc::clone(self), Arc::clone(key));
            tokio::spawn(async move { this.get(&key).await })
        };
        let gets: Vec<_> = keys.iter().map(get).collect();
        let mut values = Vec::with_capacity(gets.len());
        for get in gets {
            values.push(get.await.map_err(|_ended| Failure::Timeout)??);
        }
        Ok(values)
    }

    /// Before a load. A key that is never filled needs neither fence nor lease.
    pub(crate) async fn begin(&self, entry: &Entry) -> Result<Option<Begun>, Failure> {
        if entry.fill_ttl.is_none() {
            return Ok(None);
        }
        let answer = match &entry.fence {
            Some(fence) if !self.is_brief.load(Ordering::Relaxed) => {
                match self.begin_by_script(entry, fence).await {
                    Err(Failure::Redis(error)) if self.are_scripts_refused(&error) => {
                        self.begin_brief(entry).await
                    }
                    answer => answer,
                }
            }
            Some(_) | None => self.begin_brief(entry).await,
        };
        self.noted(answer).map(Some)
    }

    async fn begin_by_script(&self, entry: &Entry, fence: &str) -> Result<Begun, Failure> {
        let (lease, token) = (self.names.lease(&entry.key), token());
        let arguments = |command: &mut Cmd| {
            command.arg(3).arg(&*entry.key).arg(fence).arg(&lease);
            command.arg(fence_start()).arg(&token).arg(millis(LEASE));
        };
        let answer: Vec<Value> = self.script(&BEGIN, arguments).await?;
        match <[Value; 3]>::try_from(answer) {
            Ok([_, fence, leased]) => {
                let fence = from_redis_value(fence).map_err(unexpected)?;
                let is_leased = from_redis_value::<i64>(leased).map_err(unexpected)? == 1;
                let ticket = Ticket { token, form: Form::Script { fence } };
                Ok(if is_leased { Begun::Load(ticket) } else { Begun::Wait(ticket) })
            }
            Err(answer) => {
                let value = answer.into_iter().nth(1).unwrap_or(Value::Nil);
                from_redis_value(value).map(Begun::Found).map_err(unexpected)
            }
        }
    }

    /// Takes the lease first, then reads the key. In the other order, a reader could miss the value of the reader
    /// that has just given the lease back.
    async fn begin_brief(&self, entry: &Entry) -> Result<Begun, Failure> {
        let (lease, token) = (self.names.lease(&entry.key), token());
        let set = cmd("SET").arg(&lease).arg(&token).arg("NX").arg("PX").arg(millis(LEASE)).take();
        let is_leased = self.ask::<Option<Value>>(set).await?.is_some();
        let get = self.ask(cmd("GET").arg(&*entry.key).take());
        let (value, fence): (Result<Option<Bytes>, _>, _) = tokio::join!(get, self.look(entry));
        let mut ticket = Ticket { token, form: Form::Brief { fence: fence? } };
        if let Some(value) = value? {
            if is_leased {
                self.release(entry, &ticket).await;
            }
            return Ok(Begun::Found(value));
        }
        if let (Form::Brief { fence: fence @ Seen::Missing }, Some(key)) =
            (&mut ticket.form, &entry.fence)
        {
            *fence = self.start(key).await?;
        }
        Ok(if is_leased { Begun::Load(ticket) } else { Begun::Wait(ticket) })
    }

    /// A missing fence could come and go unseen, so it is started.
    async fn start(&self, fence: &str) -> Result<Seen, Failure> {
        let mut set = cmd("SET");
        set.arg(fence).arg(fence_start()).arg("NX").arg("EX").arg(FENCE_TTL.as_secs());
        self.ask::<Option<Value>>(set).await?;
        let seen: Option<Bytes> = self.ask(cmd("GET").arg(fence).take()).await?;
        Ok(seen.map_or(Seen::Missing, Seen::At))
    }

    async fn look(&self, entry: &Entry) -> Result<Seen, Failure> {
        let Some(fence) = &entry.fence else { return Ok(Seen::Unfenced) };
        let seen: Option<Bytes> = self.ask(cmd("GET").arg(&**fence).take()).await?;
        Ok(seen.map_or(Seen::Missing, Seen::At))
    }

    /// After a load: writes the value if it is not older than the data, and gives the lease back.
    pub(crate) async fn fill(&self, entry: &Entry, ticket: &Ticket, value: &Bytes) -> Filled {
        let Some(ttl) = entry.fill_ttl else { return Filled::Failed };
        let filled = match (&ticket.form, &entry.fence) {
            (Form::Script { fence }, Some(key)) => {
                self.fill_by_script(entry, (key, fence), ticket, (value, ttl)).await
            }
            (Form::Script { .. }, None) => Ok(Filled::Failed),
            (Form::Brief { fence }, _) => {
                let filled = self.fill_brief(entry, fence, value, ttl.min(BRIEF)).await;
                self.release(entry, ticket).await;
                filled
            }
        };
        self.noted(filled).unwrap_or(Filled::Failed)
    }

    async fn fill_by_script(
        &self,
        entry: &Entry,
        (fence, seen): (&str, &[u8]),
        ticket: &Ticket,
        (value, ttl): (&[u8], Duration),
    ) -> Result<Filled, Failure> {
        let lease = self.names.lease(&entry.key);
        let arguments = |command: &mut Cmd| {
            command.arg(3).arg(&*entry.key).arg(fence).arg(&lease);
            command.arg(seen).arg(value).arg(millis(ttl)).arg(&ticket.token);
        };
        let answer: i64 = self.script(&FILL, arguments).await?;
        Ok(match answer {
            1 => Filled::Written,
            2 => Filled::ThereAlready,
            _ => Filled::Refused,
        })
    }

    /// A reader that dies after its `SET` leaves a value that may be old, for ten seconds at most. Nobody
    /// extends it.
    async fn fill_brief(
        &self,
        entry: &Entry,
        fence: &Seen,
        value: &[u8],
        ttl: Duration,
    ) -> Result<Filled, Failure> {
        if *fence == Seen::Missing {
            return Ok(Filled::Failed);
        }
        let set =
            cmd("SET").arg(&*entry.key).arg(value).arg("NX").arg("PX").arg(millis(ttl)).take();
        if self.ask::<Option<Value>>(set).await?.is_none() {
            return Ok(Filled::ThereAlready);
        }
        let now = self.look(entry).await;
        if now.as_ref().is_ok_and(|now| now == fence) {
            return Ok(Filled::Written);
        }
        self.ask::<Value>(cmd("DEL").arg(&*entry.key).take()).await?;
        now.map(|_moved| Filled::Refused)
    }

    /// Gives the lease back without a fill, so that others need not wait for it.
    pub(crate) async fn give_back(&self, entry: &Entry, ticket: &Ticket) {
        match (&ticket.form, &entry.fence) {
            (Form::Script { .. }, Some(fence)) => {
                let nothing = (b"".as_slice(), Duration::from_millis(1));
                let filled = self.fill_by_script(entry, (fence, NO_FENCE), ticket, nothing).await;
                self.noted(filled).ok();
            }
            (Form::Script { .. } | Form::Brief { .. }, _) => self.release(entry, ticket).await,
        }
    }

    /// Between look and `DEL` the lease may have passed to another reader. Then one more reader loads, no harm.
    async fn release(&self, entry: &Entry, ticket: &Ticket) {
        let lease = self.names.lease(&entry.key);
        let held: Result<Option<Bytes>, _> = self.ask(cmd("GET").arg(&lease).take()).await;
        let is_ours = |held: &Option<Bytes>| {
            held.as_ref().is_some_and(|held| held == ticket.token.as_bytes())
        };
        if held.as_ref().is_ok_and(is_ours) {
            self.ask::<Value>(cmd("DEL").arg(&lease).take()).await.ok();
        }
    }

    /// Adds the growth of the counts with one round trip.
    pub(crate) async fn add_reads(&self, growth: &Growth) -> Result<(), Failure> {
        let reads = self.names.reads();
        let mut commands = redis::pipe();
        for (field, growth) in &growth.fields {
            commands.cmd("HINCRBY").arg(&reads).arg(field).arg(growth);
        }
        commands.cmd("EXPIRE").arg(&reads).arg(READS_TTL.as_secs());
        let answer = self.judged(self.connection.send_all(commands), self.deadline).await;
        self.noted(answer.map(drop))
    }

    /// Runs a script by its SHA-1; a server that does not know it gets its text.
    async fn script<V: FromRedisValue>(
        &self,
        script: &Script,
        arguments: impl Fn(&mut Cmd),
    ) -> Result<V, Failure> {
        let mut by_sha = cmd("EVALSHA");
        by_sha.arg(script.sha1);
        arguments(&mut by_sha);
        match self.ask(by_sha).await {
            Err(Failure::Redis(error)) if error.kind() == ServerErrorKind::NoScript.into() => {
                let mut by_text = cmd("EVAL");
                by_text.arg(script.text);
                arguments(&mut by_text);
                self.ask(by_text).await
            }
            answer => answer,
        }
    }

    /// Sends a command, unless Redis is left alone.
    async fn ask<V: FromRedisValue>(&self, command: Cmd) -> Result<V, Failure> {
        if self.breaker.is_open() {
            return Err(Failure::LeftAlone);
        }
        let value = self.judged(self.connection.send(command), self.deadline).await?;
        from_redis_value(value).map_err(unexpected)
    }

    /// Waits for an answer until the deadline, and counts the result in the breaker.
    pub(crate) async fn judged(
        &self,
        answer: impl Future<Output = RedisResult<Value>>,
        deadline: Duration,
    ) -> Result<Value, Failure> {
        let answer = match timeout(deadline, answer).await {
            Ok(answer) => answer.map_err(Failure::Redis),
            Err(_elapsed) => Err(Failure::Timeout),
        };
        match &answer {
            Err(Failure::Redis(error)) if is_lost(error) || Self::is_not_serving(error) => {
                self.count_failure();
            }
            Err(Failure::Timeout) => self.count_failure(),
            Ok(_) | Err(Failure::Redis(_) | Failure::LeftAlone) => self.breaker.answered(),
        }
        answer
    }

    /// Counts and reports a failure.
    pub(crate) fn noted<V>(&self, answer: Result<V, Failure>) -> Result<V, Failure> {
        answer.inspect_err(|failure| self.problems.note_failure(failure))
    }

    /// Whether the error says that scripts cannot be used here. The first such error is reported.
    fn are_scripts_refused(&self, error: &RedisError) -> bool {
        let is_no_permission = error.kind() == ServerErrorKind::NoPerm.into();
        let is_refused = is_no_permission
            || is_cross_slot(error)
            || error.to_string().to_ascii_lowercase().contains("unknown command");
        if is_refused && !self.is_brief.swap(true, Ordering::Relaxed) {
            self.problems.note(Problem::Scripts, error);
        }
        is_refused
    }

    /// Whether the server says that it serves nothing at present.
    pub(crate) fn is_not_serving(error: &RedisError) -> bool {
        let kinds = [
            ServerErrorKind::BusyLoading,
            ServerErrorKind::MasterDown,
            ServerErrorKind::ClusterDown,
        ];
        kinds.into_iter().any(|kind| error.kind() == kind.into())
    }

    /// Asks Redis again, as before.
    pub(crate) fn close_breaker(&self) {
        self.breaker.close();
        #[cfg(feature = "metrics")]
        metrics::gauge!("preheat_client_breaker_open").set(0.0);
    }

    fn count_failure(&self) {
        if self.breaker.failed() {
            #[cfg(feature = "metrics")]
            metrics::gauge!("preheat_client_breaker_open").set(1.0);
        }
    }

    /// Whether one command or transaction may have keys of several slots, as far as is known.
    pub(crate) fn is_cluster(&self) -> bool {
        self.is_cluster.load(Ordering::Relaxed)
    }

    /// Notes that it may not.
    pub(crate) fn note_cluster(&self) {
        self.is_cluster.store(true, Ordering::Relaxed);
    }
}

/// Whether the error says that a command's keys lie in several slots of a cluster.
pub(crate) fn is_cross_slot(error: &RedisError) -> bool {
    error.kind() == ServerErrorKind::CrossSlot.into() || error.to_string().contains("CROSSSLOT")
}

fn unexpected(error: impl Into<RedisError>) -> Failure {
    Failure::Redis(error.into())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
