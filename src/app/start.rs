//! The worker's start: its servers may come up after it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::{App, AppError, Around, Servers, Stores};
use crate::adapter::postgres::{Database, MigrateError};
use crate::adapter::{ConnectError, ConnectErrorKind};
use crate::config::{FleetShares, HistoryMode, Settings};
use crate::domain::job::Jobs;
use crate::domain::pause::Pauses;
use crate::domain::retry;
use crate::engine::ports::PauseStoreError;
use crate::engine::schedule::status::{NeededServer, ServerState, Starting};
use crate::http::Waiting;
use crate::observe::event::{self, Server};

/// The longest pause between two attempts to reach a server.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The shortest pause.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// How long a new member of a fleet waits for its part of the connections without a word.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many different reasons are logged, each once, while one server is away.
const MAX_REASONS: usize = 20;

/// Waits for what the worker needs before it can begin, and shows the progress.
pub(super) struct Start {
    around: Around,
    starting: watch::Sender<Starting>,
}

/// A server that the worker waits for.
struct Needed {
    role: &'static str,
    server: Option<Server>,
    address: String,
}

impl Start {
    pub(super) fn new(servers: &Servers, around: Around) -> Self {
        let start = Self { around, starting: watch::Sender::default() };
        for needed in [Needed::database(servers), Needed::cache(servers)] {
            start.note(&needed, ServerState::Unknown);
        }
        start
    }

    /// What HTTP shows while the worker waits.
    pub(super) fn waiting(&self) -> Waiting {
        let metrics = Arc::clone(&self.around.metrics);
        Waiting { starting: self.starting.subscribe(), metrics }
    }

    /// Waits for both servers, and builds what runs need.
    pub(super) async fn connect(
        &self,
        settings: &Settings,
        jobs: Jobs,
        mut servers: Servers,
    ) -> Result<App, AppError> {
        let needs = (Needed::database(&servers), Needed::cache(&servers));
        let Servers { database, cache } = &mut servers;
        let cache: &_ = cache;
        let began_at = self.around.clock.monotonic();
        let reach_database = async || {
            self.has_connections(database, began_at).await?;
            database.reach().await
        };
        let leases = settings.fleet.shares == FleetShares::Leased;
        let reach_cache = async || {
            cache.reach().await?;
            if leases { cache.can_lease().await } else { Ok(()) }
        };
        tokio::try_join!(
            self.until_it_is_there(&needs.0, reach_database),
            self.until_it_is_there(&needs.1, reach_cache),
        )?;
        Ok(App::build(settings, jobs, servers, self.around.clone()))
    }

    /// Waits until the fleet leaves connections to this worker; an error after [`PATIENCE`], which says what it waits for.
    async fn has_connections(
        &self,
        database: &Database,
        began_at: Duration,
    ) -> Result<(), ConnectError> {
        let clock = &self.around.clock;
        while database.most_connections() == 0 {
            if clock.monotonic().saturating_sub(began_at) > PATIENCE {
                let message = "the worker waits for database connections: those of the fleet \
                               (`fleet.database_connections`) are divided among older members";
                return Err(unreachable(message.to_owned()));
            }
            clock.sleep(SHORTEST_PAUSE).await;
        }
        Ok(())
    }

    /// Where run records and pauses are kept, and the pauses in effect. If the settings require a
    /// history in a database, the worker waits for that database. It always waits until it knows the
    /// pauses: a paused job must not run.
    pub(super) async fn stores(
        &self,
        settings: &Settings,
        app: &App,
    ) -> Result<(Stores, Pauses), AppError> {
        let read = async |stores: Stores| match stores.pauses.pauses().await {
            Ok(pauses) => Ok((stores, pauses.unwrap_or_default())),
            Err(PauseStoreError(message)) => Err(unreachable(message)),
        };
        if settings.history.enabled == HistoryMode::Off {
            let address = app.cache.server().to_owned();
            let needed = Needed { role: "cache", server: Some(Server::Cache), address };
            let open = async || read(app.stores_without_history()).await;
            return Ok(self.until_it_is_there(&needed, open).await?);
        }
        let database = app.history_database(settings)?;
        let address = database.server().to_owned();
        let needed = Needed { role: "history", server: None, address };
        let open = async || match app.stores(settings, &database).await {
            Ok(stores) => read(stores).await.map(Ok),
            Err(MigrateError::Failed(message)) => Err(unreachable(message)),
            Err(refused) => Ok(Err(refused)),
        };
        Ok(self.until_it_is_there(&needed, open).await??)
    }

    /// Tries until the server is reached, or until the settings turn out to be wrong.
    async fn until_it_is_there<T>(
        &self,
        needed: &Needed,
        mut reach: impl AsyncFnMut() -> Result<T, ConnectError>,
    ) -> Result<T, ConnectError> {
        let Needed { role, server, address } = needed;
        let mut told = BTreeSet::new();
        let mut retry = 0;
        loop {
            let ConnectError { kind, message } = match reach().await {
                Ok(reached) => {
                    if !told.is_empty() {
                        event::ServerReached { role, server: *server, address }
                            .emit(&self.around.metrics);
                    }
                    self.note(needed, ServerState::Connected);
                    return Ok(reached);
                }
                Err(error) => error,
            };
            match kind {
                ConnectErrorKind::Settings => return Err(ConnectError { kind, message }),
                // Somebody may change the password, renew the certificate or create the database.
                ConnectErrorKind::Unreachable | ConnectErrorKind::Refused => {}
            }
            self.note(needed, ServerState::Away { message: message.clone() });
            if told.len() < MAX_REASONS && !told.contains(&message) {
                event::ServerAwaited { role, server: *server, message: &message }
                    .emit(&self.around.metrics);
                told.insert(message);
            }
            let pause = retry::backoff(retry, self.around.clock.random());
            self.around.clock.sleep(pause.clamp(SHORTEST_PAUSE, LONGEST_PAUSE)).await;
            retry = u32::saturating_add(retry, 1);
        }
    }

    /// Ends when `wait` has passed and a server is away. Without `wait` it never ends.
    pub(super) async fn gives_up(&self, wait: Option<Duration>) -> AppError {
        let Some(wait) = wait else { return std::future::pending().await };
        self.around.clock.sleep(wait).await;
        let mut starting = self.starting.subscribe();
        let away = starting.wait_for(|starting| starting.away().next().is_some()).await;
        let away = away.map(|starting| starting.clone()).unwrap_or_default();
        let away = away.away().map(|(_, message)| message.to_owned()).collect();
        AppError::GaveUp { wait, away }
    }

    fn note(&self, needed: &Needed, state: ServerState) {
        let Needed { role, address, .. } = needed;
        self.starting.send_modify(|starting| {
            let known = starting.servers.iter_mut().find(|server| server.role == *role);
            if let Some(server) = known {
                server.state = state;
            } else {
                let address = address.clone();
                starting.servers.push(NeededServer { role, address, state });
            }
        });
    }
}

impl Needed {
    fn database(servers: &Servers) -> Self {
        let address = servers.database.server().to_owned();
        Self { role: "database", server: Some(Server::Database), address }
    }

    fn cache(servers: &Servers) -> Self {
        let address = servers.cache.server().to_owned();
        Self { role: "cache", server: Some(Server::Cache), address }
    }
}

fn unreachable(message: String) -> ConnectError {
    ConnectError { kind: ConnectErrorKind::Unreachable, message }
}
