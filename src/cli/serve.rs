//! `preheat serve`: the worker.

use std::time::Duration;

use indicatif::MultiProgress;
use tokio::sync::Notify;

use super::signal::{ReloadSignal, StopSignals};
use super::{Exit, Failure, Global};
use crate::app::{self, Orders};
use crate::domain::duration;
use crate::engine::run::Stops;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// At the start, wait at most this long (as in 60s) for servers that are away, then exit with
    /// code 3. Without this option, the worker waits for ever
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    wait: Option<Duration>,
}

pub(super) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    let (signals, hangup) = (StopSignals::listen()?, ReloadSignal::listen()?);
    let loaded = global.load(&MultiProgress::new())?;
    let (stops, reload) = (Stops::default(), Notify::new());
    let orders = Orders { stops: stops.clone(), reload: &reload, wait: options.wait };
    tokio::select! {
        served = app::serve(&loaded.settings, loaded.files, orders) => served?,
        // The worker's log says that it stops, so nothing is printed here.
        never = signals.stop(&stops, || {}) => match never {},
        never = hangup.pass_on(&reload) => match never {},
    }
    Ok(Exit::Ok)
}
