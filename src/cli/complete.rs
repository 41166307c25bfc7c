//! What a shell completes: commands, options, and the names of jobs.
//!
//! The script of `preheat completions` calls preheat itself with the words so far, because only preheat knows
//! which jobs there are.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory, ValueEnum};
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};

use super::Cli;
use crate::config::{Environment, LogFormat, Overrides, Settings};
use crate::definition;

/// The variable in which the script names its shell.
const VARIABLE: &str = "_PREHEAT_COMPLETE";
const PROGRAM: &str = "preheat";

/// The completion of an argument that is a job's name.
pub(super) fn jobs() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(&std::env::args_os().collect::<Vec<_>>()))
}

/// Answers a script that asks for completions; `false` if this is another call.
pub(super) fn answer() -> clap::error::Result<bool> {
    let folder = std::env::current_dir().ok();
    let complete = CompleteEnv::with_factory(Cli::command).var(VARIABLE).bin(PROGRAM);
    complete.try_complete(std::env::args_os(), folder.as_deref())
}

/// The format of the log by the words of a command line that cannot be parsed, and by the environment.
pub(super) fn log_format() -> LogFormat {
    let words: Vec<_> = std::env::args_os().collect();
    let word = option(&words, "--log-format");
    let named = word.and_then(|word| LogFormat::from_str(word.to_str()?, true).ok());
    let overrides = Overrides { log_format: named, ..Overrides::default() };
    LogFormat::of(&overrides, &Environment::of_process())
}

/// The script that asks; `None` for a shell that has none.
pub(super) fn script(shell: &str) -> Option<std::io::Result<String>> {
    let shells = Shells::builtins();
    let shell = shells.completer(shell)?;
    let mut script = Vec::new();
    let written = shell.write_registration(VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut script);
    Some(written.map(|()| String::from_utf8_lossy(&script).into_owned()))
}

/// The jobs of the folder that the words so far mean, each with its description. There are none if the
/// folder or the settings cannot be read: a shell has no place for an error.
fn candidates(words: &[OsString]) -> Vec<CompletionCandidate> {
    let (config, jobs) = (option(words, "--config"), option(words, "--jobs"));
    let overrides = Overrides { config, jobs, ..Overrides::default() };
    let Ok((settings, _)) = Settings::examine(&overrides, Environment::of_process()) else {
        return Vec::new();
    };
    let candidate = |(name, description): (_, Option<String>)| {
        CompletionCandidate::new(name).help(description.map(Into::into))
    };
    definition::names(&settings.jobs).into_iter().map(candidate).collect()
}

/// The value of an option among the words.
fn option(words: &[OsString], name: &str) -> Option<PathBuf> {
    words.iter().enumerate().find_map(|(index, word)| {
        let word = word.to_str()?;
        match word.strip_prefix(name)? {
            "" => words.get(index + 1).map(PathBuf::from),
            rest => rest.strip_prefix('=').map(PathBuf::from),
        }
    })
}
