//! `preheat migrate`.

use indicatif::MultiProgress;

use super::{Exit, Failure, Global, output};
use crate::app;

pub(super) async fn run(global: &Global) -> Result<Exit, Failure> {
    let settings = global.settings(&MultiProgress::new())?;
    let applied = app::migrate(&settings).await?;
    output::result(&match applied {
        0 => "schema `preheat` is up to date\n".to_owned(),
        1 => "applied 1 migration to schema `preheat`\n".to_owned(),
        more => format!("applied {more} migrations to schema `preheat`\n"),
    })?;
    Ok(Exit::Ok)
}
