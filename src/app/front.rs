//! The worker's HTTP listeners, which answer from its first moment to its last.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::AppError;
use crate::config::Settings;
use crate::http::{self, Control, Routes, Waiting};

/// The listeners, and the routes that they serve.
pub(super) struct Front {
    /// The address of the main listener.
    pub(super) listen: SocketAddr,
    /// Stops the listeners and the worker's background tasks.
    pub(super) shutdown: CancellationToken,
    routes: Routes,
    /// The routes of the separate listener for probes, if there is one.
    probes: Option<Routes>,
    tasks: JoinSet<()>,
}

impl Front {
    /// Starts to listen. Until [`Self::works`], the answers say that the worker waits for its
    /// servers.
    pub(super) fn open(settings: &Settings, waiting: Waiting) -> Result<Self, AppError> {
        let listener = bind(settings.http.listen)?;
        let listen = listener.local_addr().context("could not tell the address of HTTP")?;
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let mut probes = None;
        if let Some(address) = settings.http.probes {
            let listener = bind(address)?;
            let routes = Routes::from(http::starting_probes(waiting.clone()));
            tasks.spawn(http::serve(listener, routes.clone(), shutdown.clone()));
            probes = Some(routes);
        }
        let starting = http::mounted(http::starting(waiting), &settings.http.base_path);
        let routes = Routes::from(starting);
        tasks.spawn(http::serve(listener, routes.clone(), shutdown.clone()));
        Ok(Self { listen, shutdown, routes, probes, tasks })
    }

    /// From now on the listeners answer with the routes of a working worker.
    pub(super) fn works(&self, control: Control) {
        if let Some(probes) = &self.probes {
            probes.replace(http::probes(control.clone()));
        }
        self.routes.replace(http::router(control));
    }

    /// Stops the listeners. Requests under way get the time `within` to finish, and are dropped
    /// after it.
    pub(super) async fn close(mut self, within: Duration) {
        self.shutdown.cancel();
        let all_ended = async { while self.tasks.join_next().await.is_some() {} };
        drop(tokio::time::timeout(within, all_ended).await);
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener, AppError> {
    Ok(http::listen(address).with_context(|| format!("could not listen on `{address}`"))?)
}
