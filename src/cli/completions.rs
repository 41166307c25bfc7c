//! `preheat completions SHELL`.

use super::{Exit, Failure, complete, output};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The shell
    shell: clap_complete::Shell,
}

pub(super) fn run(options: &Options) -> Result<Exit, Failure> {
    let shell = options.shell.to_string();
    match complete::script(&shell) {
        Some(script) => output::result(&script?)?,
        None => return Err(Failure::usage(anyhow::anyhow!("`{shell}` has no completions"))),
    }
    Ok(Exit::Ok)
}
