//! Finds the primary of a service through the Sentinels that watch it.
//!
//! The Sentinels are asked in turn which server is the primary, and that server is asked for its role before
//! the connection is used: a Sentinel that has not heard of a failover yet names the former primary. A server
//! that was the primary may stay one for some ten seconds after the Sentinels have promoted another one, and
//! it accepts writes that will be lost. So the same two questions are asked again: every [`CHECK_EVERY`], and
//! whenever the engine asks for the stats, by which it tells one server's process from another's (see
//! [`Link::confirm`]).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use redis::{RedisError, RedisResult};
use tokio::time::sleep;

use crate::adapter::ConnectError;
use crate::domain::server_url::{CacheUrl, Endpoint};
use crate::engine::ports::{CacheError, CacheErrorKind};

use super::connection::Connection;
use super::link::{Access, Door, Link, Made, Primary, SENTINEL_LOGIN, Tasks, is_refusal, spawn};
use super::reply;

/// The longest wait for one Sentinel. The next one is asked then.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// How often a connection's server is asked whether it is still the primary.
const CHECK_EVERY: Duration = Duration::from_secs(10);

/// The Sentinels that watch a service.
pub(super) struct Sentinels {
    service: String,
    sentinels: Vec<Link>,
    /// The position of the Sentinel that answered last. It is asked first.
    first: AtomicUsize,
    /// How to log in to the primary.
    access: Access,
    /// The address of the primary that was found last.
    primary: Mutex<Option<Arc<str>>>,
}

/// Why the Sentinels did not lead to a primary.
#[derive(Default)]
struct InVain {
    /// The servers that they named.
    named: Vec<Endpoint>,
    /// What is wrong with these servers.
    unfit: Vec<String>,
    /// The Sentinels that do not know the service.
    ignorant: Vec<String>,
    /// Why other Sentinels did not answer.
    silent: Vec<CacheError>,
}

impl Sentinels {
    /// Connects to nothing yet.
    pub(super) fn new(
        access: &Access,
        url: &CacheUrl,
        sentinels: &[Endpoint],
        service: &str,
    ) -> Result<Self, ConnectError> {
        let to_sentinels = access.to_sentinels(url, ANSWERS_WITHIN);
        let sentinels = sentinels.iter().map(|sentinel| Link::to(&to_sentinels, sentinel));
        Ok(Self {
            service: service.to_owned(),
            sentinels: sentinels.collect::<Result<_, _>>()?,
            first: AtomicUsize::new(0),
            access: access.clone(),
            primary: Mutex::default(),
        })
    }

    /// Finds the primary and connects to it.
    async fn find(self: Arc<Self>, tasks: &Tasks) -> Result<Made, CacheError> {
        let mut in_vain = InVain::default();
        for sentinel in self.in_turn() {
            let named = match self.ask(sentinel).await {
                Ok(Some(named)) => named,
                Ok(None) => {
                    in_vain.ignorant.push(sentinel.server().to_owned());
                    continue;
                }
                Err(error) => {
                    in_vain.silent.push(error);
                    continue;
                }
            };
            if in_vain.named.contains(&named) {
                continue;
            }
            match self.open(&named, tasks).await {
                Ok(connection) => return Ok(self.keep(&named, connection, tasks)),
                // Every other Sentinel leads to a server with the same users.
                Err(error) if error.kind == CacheErrorKind::Permission => return Err(error),
                Err(error) => {
                    let (sentinel, problem) = (sentinel.server(), error.message);
                    in_vain.unfit.push(format!("Sentinel `{sentinel}` names `{named}`: {problem}"));
                }
            }
            in_vain.named.push(named);
        }
        Err(in_vain.error(&self.service))
    }

    /// All Sentinels, the one that answered last before the others.
    fn in_turn(&self) -> impl Iterator<Item = &Link> {
        let first = self.first.load(Ordering::Relaxed);
        self.sentinels.iter().cycle().skip(first).take(self.sentinels.len())
    }

    /// Which server a Sentinel names; `None` if it does not know the service. A connection that broke
    /// meanwhile is replaced once.
    async fn ask(&self, sentinel: &Link) -> Result<Option<Endpoint>, CacheError> {
        let mut question = redis::cmd("SENTINEL");
        question.arg("get-master-addr-by-name").arg(&self.service);
        let mut broken_before = false;
        loop {
            let lent = sentinel.connection().await?;
            let named: RedisResult<Option<(String, u16)>> = lent.connection.ask(&question).await;
            let error = match named {
                Ok(named) => {
                    self.answered(sentinel);
                    return Ok(named.map(|(host, port)| Endpoint { host, port }));
                }
                Err(error) => error,
            };
            if is_refusal(&error) {
                return Err(refused(sentinel, &error));
            }
            sentinel.forget(&lent);
            if error.is_timeout() || broken_before {
                return Err(sentinel.lost(&error));
            }
            broken_before = true;
        }
    }

    fn answered(&self, sentinel: &Link) {
        let position = self.sentinels.iter().position(|one| std::ptr::eq(one, sentinel));
        self.first.store(position.unwrap_or_default(), Ordering::Relaxed);
    }

    /// Connects to the server that a Sentinel named, if that is a primary.
    async fn open(&self, named: &Endpoint, tasks: &Tasks) -> Result<Connection, CacheError> {
        let away = |message| CacheError { kind: CacheErrorKind::Unavailable, message };
        let door = Door::to(&self.access, named).map_err(|error| away(error.message))?;
        let connection = door.connect(tasks).await?;
        match is_primary(&connection).await {
            Ok(true) => Ok(connection),
            Ok(false) => Err(away("it is a replica".to_owned())),
            Err(error) => Err(away(format!("it does not tell its role: {error}"))),
        }
    }

    /// Keeps a primary that was found, and watches over it.
    fn keep(self: &Arc<Self>, primary: &Endpoint, connection: Connection, tasks: &Tasks) -> Made {
        let primary: Arc<str> = primary.to_string().into();
        *self.locked() = Some(primary.as_ref().into());
        // The link alone holds the connection's address, and drops it together with the connection.
        let held = Arc::downgrade(&primary);
        spawn(tasks, Arc::clone(self).watch(connection.clone(), held));
        Made { connection, primary: Some(primary) }
    }

    /// Asks again and again whether a connection still leads to the primary, for as long as the link holds it
    /// and it works.
    async fn watch(self: Arc<Self>, connection: Connection, primary: Weak<str>) {
        loop {
            sleep(CHECK_EVERY).await;
            let Some(primary) = primary.upgrade() else { return };
            if self.confirm(&connection, &primary).await.is_err() {
                return;
            }
        }
    }

    /// Whether the Sentinels name this server, and it says that it is a primary. If no Sentinel answers, its own
    /// word suffices: the loss of the Sentinels is not the loss of the cache.
    async fn is_still(&self, primary: &str, connection: &Connection) -> Result<bool, RedisError> {
        let is_named = self.named().await.is_none_or(|named| named.to_string() == primary);
        Ok(is_named && is_primary(connection).await?)
    }

    /// The server that the first Sentinel names that names one.
    async fn named(&self) -> Option<Endpoint> {
        for sentinel in self.in_turn() {
            if let Ok(Some(named)) = self.ask(sentinel).await {
                return Some(named);
            }
        }
        None
    }

    fn locked(&self) -> MutexGuard<'_, Option<Arc<str>>> {
        self.primary.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Primary for Sentinels {
    fn connect(self: Arc<Self>, tasks: Tasks) -> BoxFuture<'static, Result<Made, CacheError>> {
        Box::pin(async move { self.find(&tasks).await })
    }

    fn found(&self) -> Option<Arc<str>> {
        self.locked().clone()
    }

    fn forget(&self, primary: &str) {
        self.locked().take_if(|found| **found == *primary);
    }

    fn confirm<'a>(
        &'a self,
        connection: &'a Connection,
        primary: &'a str,
    ) -> BoxFuture<'a, Result<(), RedisError>> {
        Box::pin(async move {
            if !self.is_still(primary, connection).await? {
                self.forget(primary);
            }
            Ok(())
        })
    }
}

/// Whether the server is a primary by its own word. `INFO` says what `ROLE` does, and a user with the rights
/// that preheat needs may ask for it. A user who may not is taken at the Sentinel's word: a replica refuses
/// writes.
async fn is_primary(connection: &Connection) -> RedisResult<bool> {
    let mut question = redis::cmd("INFO");
    question.arg("replication");
    match connection.ask::<String>(&question).await {
        Ok(text) => Ok(text.lines().any(|line| line.trim_end() == "role:master")),
        Err(error) if error.code() == Some("NOPERM") => Ok(true),
        Err(error) => Err(error),
    }
}

/// The error for a Sentinel that refused to name the primary.
fn refused(sentinel: &Link, error: &RedisError) -> CacheError {
    let (server, refused) = (sentinel.server(), reply::refused(error));
    let message = if reply::is_unknown(error) {
        format!("`{server}` is a Redis server, and no Sentinel")
    } else if refused.kind == CacheErrorKind::Permission {
        format!("Sentinel `{server}` refuses: {SENTINEL_LOGIN}")
    } else {
        format!("Sentinel `{server}` does not tell: {}", refused.message)
    };
    CacheError { kind: refused.kind, message }
}

impl InVain {
    /// The error that names who was asked and what to do.
    fn error(self, service: &str) -> CacheError {
        let Self { named: _, unfit, ignorant, silent } = self;
        let is_login = |error: &CacheError| error.kind == CacheErrorKind::Permission;
        let is_login = unfit.is_empty() && ignorant.is_empty() && silent.iter().all(is_login);
        let kind = if is_login { CacheErrorKind::Permission } else { CacheErrorKind::Unavailable };
        let and_silent = |told: Vec<String>| {
            let silent = silent.into_iter().map(|error| error.message);
            told.into_iter().chain(silent).collect::<Vec<_>>().join("; ")
        };
        let message = if !unfit.is_empty() {
            let all = and_silent(unfit);
            format!(
                "found no primary of `{service}`: {all}; hint: a failover may be under way: see which server is \
                 the primary with `SENTINEL get-master-addr-by-name {service}` and `ROLE`"
            )
        } else if !ignorant.is_empty() {
            let is_one = ignorant.len() == 1;
            let ignorant = ignorant.iter().map(|sentinel| format!("Sentinel `{sentinel}`"));
            let ignorant = ignorant.collect::<Vec<_>>().join(" and ");
            let watch = if is_one { "watches" } else { "watch" };
            let all = and_silent(vec![format!("{ignorant} {watch} no service `{service}`")]);
            format!(
                "{all}; hint: the last part of the URL is the name after `sentinel monitor` in the Sentinels' \
                 configuration; `SENTINEL MASTERS` lists the names"
            )
        } else {
            let all = and_silent(Vec::new());
            format!(
                "no Sentinel of `{service}` answered: {all}; hint: the URL names Sentinels, usually at port \
                 26379, as in `redis+sentinel://h1,h2,h3/{service}`"
            )
        };
        CacheError { kind, message }
    }
}
