//! The command line: one file for each command.

mod audit;
mod bars;
mod changes;
mod check;
mod complete;
mod completions;
#[cfg(feature = "demo")]
mod demo;
mod health;
mod init;
mod invalidate;
mod keys;
mod load;
mod migrate;
mod output;
mod plan;
mod preview;
mod schema;
mod serve;
mod signal;
mod warm;
mod warm_fleet;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::adapter::postgres::MigrateError;
use crate::adapter::{ConnectError, ConnectErrorKind};
use crate::app::AppError;
use crate::config::{ConfigError, LogFormat};
use crate::engine::ports::{SourceError, SourceErrorKind};

/// Keeps every active tenant's Redis keys warm from Postgres.
#[derive(Debug, Parser)]
#[command(name = "preheat", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// The options that every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
struct Global {
    #[arg(long, global = true, value_name = "FILE")]
    #[arg(help = "The settings file [env: PREHEAT_CONFIG] [default: preheat.toml]")]
    config: Option<PathBuf>,
    #[arg(long, global = true, value_name = "DIR")]
    #[arg(help = "The folder of job files [env: PREHEAT_JOBS] [default: jobs]")]
    jobs: Option<PathBuf>,
    /// Log more: -v what preheat does in detail, -vv its libraries as well
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[arg(long, global = true, value_name = "FORMAT", hide_possible_values = true)]
    #[arg(help = "Logs as text or json [env: PREHEAT_LOG_FORMAT] [default: text]")]
    log_format: Option<LogFormat>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the worker: schedules, triggers, HTTP; until SIGTERM or SIGINT
    Serve(serve::Options),
    /// Warm now, once: for release commands and post-deploy hooks
    Warm(warm::Options),
    /// Write the first settings and a job file, proposed from the database's tables
    Init(init::Options),
    /// Check the settings and every job file; with the database, every query too
    Check(check::Options),
    /// Show what would happen: due times, tenants, keys, bytes; write nothing
    Plan(plan::Options),
    /// Show the keys, TTLs and values of one tenant as a run would write them; write nothing
    Preview(preview::Options),
    /// Remove keys safely: by name, tenant, job or pattern
    Invalidate(invalidate::Options),
    /// Compare the cache with the database, key for key; write nothing
    Audit(audit::Options),
    /// Write typed key builders for an application, from the job files
    Keys(keys::Options),
    /// Install, remove or print the triggers that tell the worker at once what changed
    Changes(changes::Options),
    /// Ask a running worker whether the cache is warm, and what is wrong
    Status(worker::status::Options),
    /// List the newest runs of a running worker
    Runs(worker::runs::Options),
    /// List the tenants that are not warm, and why
    Tenants(worker::tenants::Options),
    /// Have a running worker run jobs now
    Run(worker::run::Options),
    /// Pause jobs of a running worker: until they are resumed, only people start their runs
    Pause(worker::pause::PauseOptions),
    /// Resume paused jobs
    Resume(worker::pause::ResumeOptions),
    /// Apply preheat's own migrations (the run history in schema `preheat`)
    Migrate,
    /// Show everything on a sample clinic with private, throw-away servers
    #[cfg(feature = "demo")]
    Demo(demo::Options),
    /// Print the JSON Schema of a job file, or write it where editors find it
    Schema(schema::Options),
    /// Print shell completions, of jobs' names too
    Completions(completions::Options),
    /// Ask a running worker for its health: for a container's health check
    Health,
}

/// How a command ended; it becomes the process's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All is well.
    Ok,
    /// Something failed.
    Failed,
    /// Bad usage, settings or job file.
    Usage,
    /// The database or the cache could not be reached.
    Unreachable,
    /// The deadline passed.
    Deadline,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Unreachable => 3,
            Exit::Deadline => 4,
        })
    }
}

/// Why a command could not do its work: an exit code and the text to print.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    text: String,
    /// Whether the text contains colour codes.
    is_coloured: bool,
}

impl Failure {
    fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self::shown(exit, output::chain(&error.into()))
    }

    /// A failure whose text is ready to print.
    fn shown(exit: Exit, text: String) -> Self {
        Self { exit, text, is_coloured: false }
    }

    /// The text without the word that says how bad it is.
    fn message(&self) -> &str {
        self.text.strip_prefix("error: ").unwrap_or(&self.text)
    }

    fn print(&self) {
        if self.is_coloured {
            output::coloured_problem(&self.text);
        } else {
            output::problem(&self.text);
        }
    }

    /// The failure for all problems of the settings.
    fn settings(error: &ConfigError) -> Self {
        let lines: Vec<_> =
            error.problems.iter().map(|problem| format!("error: {problem}")).collect();
        Self::shown(Exit::Usage, lines.join("\n"))
    }

    fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self::new(Exit::Usage, error)
    }

    fn unreachable(error: impl Into<anyhow::Error>) -> Self {
        Self::new(Exit::Unreachable, error)
    }
}

impl From<AppError> for Failure {
    fn from(error: AppError) -> Self {
        let exit = match &error {
            AppError::Settings(error) => return Self::settings(error),
            AppError::History(MigrateError::NotAllowed { message, sql }) => {
                let text = format!("error: {message}\n  hint: let an administrator run\n\n{sql}");
                return Self::shown(Exit::Usage, text);
            }
            AppError::Connect(error) => exit_of(error),
            AppError::ConnectBoth { database, cache } => {
                let database = exit_of(database);
                if database == Exit::Unreachable { exit_of(cache) } else { database }
            }
            AppError::History(MigrateError::Changed(_)) | AppError::NoFeed(_) => Exit::Usage,
            AppError::GaveUp { .. } | AppError::History(MigrateError::Failed(_)) => {
                Exit::Unreachable
            }
            AppError::Start(_) => Exit::Failed,
        };
        Self::new(exit, error)
    }
}

fn exit_of(error: &ConnectError) -> Exit {
    match error.kind {
        ConnectErrorKind::Settings => Exit::Usage,
        ConnectErrorKind::Unreachable | ConnectErrorKind::Refused => Exit::Unreachable,
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        let exit = match error.kind {
            SourceErrorKind::LeftAlone
            | SourceErrorKind::Unavailable
            | SourceErrorKind::Transient
            | SourceErrorKind::Locked
            | SourceErrorKind::Timeout => Exit::Unreachable,
            SourceErrorKind::Data
            | SourceErrorKind::Encoding
            | SourceErrorKind::TooLarge
            | SourceErrorKind::Foreign
            | SourceErrorKind::Definition => Exit::Usage,
        };
        Self::shown(exit, format!("error: {}", output::shown(&error.message)))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(Exit::Failed, error)
    }
}

/// Parses the command line, runs the command and returns the exit code.
pub fn main() -> ExitCode {
    match complete::answer() {
        Ok(false) => {}
        Ok(true) => return Exit::Ok.into(),
        Err(error) => return refused(&error),
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refused(&error),
    };
    if matches!(cli.command, Command::Warm(_)) {
        give_way();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::problem(&format!("error: could not start the runtime: {error}"));
            return Exit::Failed.into();
        }
    };
    let done = runtime.block_on(cli.command.run(&cli.global));
    // A task that hangs in a system call must not keep a finished command from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match done {
        Ok(exit) => exit.into(),
        Err(failure) => {
            cli.global.tell(&failure);
            failure.exit.into()
        }
    }
}

/// Tells Linux' scheduler that this thread, and the threads that it starts, do batch work: when data arrives for them, they
/// do not interrupt a program that is running. So a server on the same machine goes on sending, and preheat wakes less
/// often and reads more data each time.
fn give_way() {
    #[cfg(target_os = "linux")]
    {
        use scheduler::{Policy, set_self_policy};
        // If the system refuses, the command does the same work with more CPU.
        let _refused = set_self_policy(Policy::Batch, 0);
    }
}

/// Prints the help or the version that was asked for, or what is wrong with the command line: as a JSON line
/// where the log is in JSON.
fn refused(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // If stdout is gone, there is nobody to tell.
        drop(error.print());
        return Exit::Ok.into();
    }
    match complete::log_format() {
        LogFormat::Text => drop(error.print()),
        LogFormat::Json => output::problem_as_json(error.to_string().trim_end()),
    }
    Exit::Usage.into()
}

impl Command {
    async fn run(self, global: &Global) -> Result<Exit, Failure> {
        match self {
            Self::Serve(options) => serve::run(global, options).await,
            Self::Warm(options) => warm::run(global, options).await,
            Self::Init(options) => init::run(global, options).await,
            Self::Check(options) => check::run(global, options).await,
            Self::Plan(options) => plan::run(global, options).await,
            Self::Preview(options) => preview::run(global, options).await,
            Self::Invalidate(options) => invalidate::run(global, options).await,
            Self::Audit(options) => audit::run(global, options).await,
            Self::Keys(options) => keys::run(global, options).await,
            Self::Changes(options) => changes::run(global, options).await,
            Self::Status(options) => worker::status::run(global, options).await,
            Self::Runs(options) => worker::runs::run(global, options).await,
            Self::Tenants(options) => worker::tenants::run(global, options).await,
            Self::Run(options) => worker::run::run(global, options).await,
            Self::Pause(options) => worker::pause::pause(global, options).await,
            Self::Resume(options) => worker::pause::resume(global, options).await,
            Self::Migrate => migrate::run(global).await,
            #[cfg(feature = "demo")]
            Self::Demo(options) => Box::pin(demo::run(global, options)).await,
            Self::Schema(options) => schema::run(global, &options),
            Self::Completions(options) => completions::run(&options),
            Self::Health => health::run(global).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn demo_is_a_command_where_the_program_is_built_with_it() {
        let is_known = Cli::try_parse_from(["preheat", "demo", "--once"]).is_ok();
        assert_eq!(is_known, cfg!(feature = "demo"));
        let is_listed = Cli::command().find_subcommand("demo").is_some();
        assert_eq!(is_listed, cfg!(feature = "demo"));
    }

    #[test]
    fn jobs_that_are_named_and_the_folder_of_job_files_do_not_meet() {
        for command in ["warm", "plan", "audit", "keys --lang rust"] {
            let words = ["preheat", "--jobs", "elsewhere"].into_iter().chain(command.split(' '));
            let cli = Cli::try_parse_from(words.chain(["services", "staff"])).unwrap();
            assert_eq!(cli.global.jobs, Some(PathBuf::from("elsewhere")));
        }
    }
}
