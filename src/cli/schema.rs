//! `preheat schema`.

use super::{Exit, Failure, Global, output};
use crate::definition;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Write it to `job.schema.json` in the jobs folder, where the line `#:schema ./job.schema.json` of
    /// a job file lets editors find it
    #[arg(long)]
    write: bool,
}

pub(super) fn run(global: &Global, options: &Options) -> Result<Exit, Failure> {
    if !options.write {
        output::json(&definition::schema())?;
        return Ok(Exit::Ok);
    }
    let path = global.jobs_folder()?.join(definition::SCHEMA_FILE);
    std::fs::write(&path, definition::schema_text()).map_err(|error| {
        let path = path.display();
        Failure::shown(Exit::Failed, format!("error: could not write `{path}`: {error}"))
    })?;
    output::result(&format!("wrote {}\n", path.display()))?;
    Ok(Exit::Ok)
}
