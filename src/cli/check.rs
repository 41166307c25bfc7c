//! `preheat check`: the settings, the job files and, with the database, the queries.

use indicatif::MultiProgress;

use super::load::Loaded;
use super::{Exit, Failure, Global, output};
use crate::app;
use crate::definition::Problems;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Check files only, without the database
    #[arg(long)]
    offline: bool,
}

pub(super) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    let Loaded { settings, files } = global.load(&MultiProgress::new())?;
    let jobs = output::counted(files.jobs().len() as u64, "job", "jobs");
    if options.offline {
        output::result(&format!("{jobs}, no problems; queries were not checked\n"))?;
        return Ok(Exit::Ok);
    }
    let source = app::connect_source(&settings).await?;
    let problems = Problems::new(app::check_queries(&source, &files).await?.into_all());
    if !problems.is_empty() {
        return Err(Failure::problems(&problems));
    }
    output::result(&format!("{jobs}, no problems; every query was prepared\n"))?;
    Ok(Exit::Ok)
}
