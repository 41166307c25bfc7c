//! `preheat serve`: the worker.

use indicatif::MultiProgress;

use super::signal::StopSignals;
use super::{Exit, Failure, Global};
use crate::app::App;
use crate::engine::run::Stops;

pub(super) async fn run(global: &Global) -> Result<Exit, Failure> {
    let signals = StopSignals::listen()?;
    let loaded = global.load(&MultiProgress::new())?;
    let app = App::connect(&loaded.settings, loaded.files.jobs().clone()).await?;
    let stops = Stops::default();
    tokio::select! {
        served = app.serve(&loaded.settings, stops.clone()) => served?,
        // The worker says in its log that it stops.
        never = signals.stop(&stops, || {}) => match never {},
    }
    Ok(Exit::Ok)
}
