//! `preheat completions SHELL`.

use super::{Exit, Failure, output};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The shell
    shell: clap_complete::Shell,
}

pub(super) fn run(options: &Options, command: &mut clap::Command) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, command, "preheat", &mut script);
    output::result(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}
