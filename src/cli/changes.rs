//! `preheat changes`: the triggers of the change feed.

use std::fmt::Write;
use std::path::Path;

use indicatif::MultiProgress;

use super::load::Loaded;
use super::{Exit, Failure, Global, output};
use crate::adapter::postgres::{
    ChangesError, Done, Installed, Removed, TableProblem, install, install_sql, uninstall,
    uninstall_sql,
};
use crate::app;
use crate::domain::change::{ChangeSource, TouchedTenants, change_sources};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make the triggers those that the jobs' `tables` need, in one transaction; again changes nothing
    Install,
    /// Remove every trigger and function of the change feed, and nothing else
    Uninstall,
    /// Print what `install` would run, for a migration tool; needs no database
    Sql {
        /// Print what `uninstall` would run
        #[arg(long)]
        uninstall: bool,
    },
}

pub(super) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    match options.action {
        Action::Install => run_install(global).await?,
        Action::Uninstall => run_uninstall(global).await?,
        Action::Sql { uninstall: true } => output::result(&uninstall_sql())?,
        Action::Sql { uninstall: false } => {
            let sources = sources(&global.load(&MultiProgress::new())?);
            output::result(&install_sql(&sources))?;
        }
    }
    Ok(Exit::Ok)
}

fn sources(loaded: &Loaded) -> Vec<ChangeSource> {
    change_sources(loaded.files.jobs(), &loaded.settings.tenants.column)
}

async fn run_install(global: &Global) -> Result<(), Failure> {
    let loaded = global.load(&MultiProgress::new())?;
    let sources = sources(&loaded);
    let database = app::connect_database(&loaded.settings).await?;
    let installed = install(&database, &sources, &loaded.settings.tenants.sql).await;
    let (installed, removed) =
        installed.map_err(|error| failure(error, &loaded.settings.jobs, "preheat changes sql"))?;
    output::result(&shown(&installed, &removed))?;
    Ok(())
}

async fn run_uninstall(global: &Global) -> Result<(), Failure> {
    let settings = global.settings(&MultiProgress::new())?;
    let database = app::connect_database(&settings).await?;
    let removed = uninstall(&database)
        .await
        .map_err(|error| failure(error, &settings.jobs, "preheat changes sql --uninstall"))?;
    output::result(&if removed.functions.is_empty() && removed.triggers == 0 {
        "there was nothing to remove\n".to_owned()
    } else {
        shown_removed(&removed)
    })?;
    Ok(())
}

fn shown(installed: &[Installed], removed: &Removed) -> String {
    let mut text = String::new();
    for Installed { table, tenants, relations, done } in installed {
        let done = match done {
            Done::New => "installed",
            Done::Mended => "mended",
            Done::AsItWas => "unchanged",
        };
        let tenants = match tenants {
            TouchedTenants::Column(column) => format!("tenants by `{column}`"),
            TouchedTenants::Sql(_) => "tenants by a query".to_owned(),
            TouchedTenants::Fleet => "the whole fleet".to_owned(),
        };
        let below = match relations.saturating_sub(1) {
            0 => String::new(),
            below => format!(", with {}", output::counted(below as u64, "partition", "partitions")),
        };
        let _a_string_takes_all = writeln!(text, "{done} `{table}`: {tenants}{below}");
    }
    if installed.is_empty() {
        text.push_str("no job has `tables`: there is nothing to install\n");
    }
    text + &shown_removed(removed)
}

fn shown_removed(removed: &Removed) -> String {
    let mut text = String::new();
    for function in &removed.functions {
        let _a_string_takes_all = writeln!(text, "removed {function}");
    }
    if removed.functions.is_empty() && removed.triggers > 0 {
        let triggers = output::counted(removed.triggers as u64, "trigger", "triggers");
        let _a_string_takes_all = writeln!(text, "removed {triggers} that nothing needed");
    }
    text
}

/// What is wrong, and with what an owner of the tables can do what this role may not.
fn failure(error: ChangesError, jobs: &Path, sql: &str) -> Failure {
    match error {
        ChangesError::Tables(problems) => {
            let shown: Vec<_> =
                problems.iter().map(|problem| shown_problem(problem, jobs)).collect();
            Failure::shown(Exit::Usage, shown.join("\n"))
        }
        ChangesError::NotAllowed(message) => Failure::shown(
            Exit::Usage,
            format!(
                "error: {message}\n  hint: let the owner of the tables do it: \
                 `{sql} | psql -v ON_ERROR_STOP=1 --single-transaction`"
            ),
        ),
        error @ ChangesError::Version(_) => Failure::usage(error),
        ChangesError::Failed(error) => error.into(),
    }
}

fn shown_problem(problem: &TableProblem, jobs: &Path) -> String {
    let TableProblem { jobs: names, message, hint } = problem;
    let files: Vec<_> =
        names.iter().map(|name| jobs.join(format!("{name}.toml")).display().to_string()).collect();
    let place = if files.is_empty() { String::new() } else { files.join(", ") + ": " };
    format!("error: {place}{message}\n  hint: {hint}")
}
