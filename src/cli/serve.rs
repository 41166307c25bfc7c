//! `preheat serve`: the worker.

use indicatif::MultiProgress;
use tokio::sync::Notify;

use super::signal::{ReloadSignal, StopSignals};
use super::{Exit, Failure, Global};
use crate::app::App;
use crate::engine::run::Stops;

pub(super) async fn run(global: &Global) -> Result<Exit, Failure> {
    let (signals, hangup) = (StopSignals::listen()?, ReloadSignal::listen()?);
    let loaded = global.load(&MultiProgress::new())?;
    let app = App::connect(&loaded.settings, loaded.files.jobs().clone()).await?;
    let (stops, reload) = (Stops::default(), Notify::new());
    tokio::select! {
        served = app.serve(&loaded.settings, stops.clone(), &reload) => served?,
        // The worker says in its log that it stops.
        never = signals.stop(&stops, || {}) => match never {},
        never = hangup.pass_on(&reload) => match never {},
    }
    Ok(Exit::Ok)
}
