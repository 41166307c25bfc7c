//! `preheat health`: asks the worker in this container whether it works.

use indicatif::MultiProgress;

use super::{Exit, Failure, Global};
use crate::http;

pub(super) async fn run(global: &Global) -> Result<Exit, Failure> {
    let settings = global.settings(&MultiProgress::new())?;
    http::health(settings.http.probes.unwrap_or(settings.http.listen))
        .await
        .map_err(|error| Failure::new(Exit::Failed, error))?;
    Ok(Exit::Ok)
}
