//! `preheat changes`: installs, removes or prints the triggers of the change feed.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use indicatif::MultiProgress;

use super::check::not_watched;
use super::load::Loaded;
use super::{Exit, Failure, Global, output};
use crate::adapter::postgres::{
    ChangesError, Database, Done, Installed, Removed, Security, TableProblem, Wanted,
    could_read_log, install, install_sql, look, uninstall, uninstall_sql,
};
use crate::app;
use crate::config::{ChangesVia, Settings};
use crate::definition::{JobFiles, Place, Problem, Problems};
use crate::domain::change::{ChangeSource, TouchedTenants, Via, change_sources};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Install the triggers that the jobs' `tables` need, in one transaction; repeating it is harmless
    Install(Wish),
    /// Remove every trigger and function of the change feed, and nothing else
    Uninstall,
    /// Print what `install` would run, for a migration tool; needs no database
    ///
    /// It cannot see how triggers in the database speak: unless `--via` or `changes.via` says `wal`, it prints
    /// triggers that notify.
    Sql {
        /// Print what `uninstall` would run
        #[arg(long, conflicts_with_all = ["security_definer", "via"])]
        uninstall: bool,
        #[command(flatten)]
        wish: Wish,
    },
}

#[derive(Debug, clap::Args)]
struct Wish {
    /// Let triggers whose `sql` reads tables with row-level security run with the rights of the role
    /// that installs them, which has to see every row
    #[arg(long)]
    security_definer: bool,
    /// How the triggers speak, in place of `changes.via`
    #[arg(long, value_enum)]
    via: Option<ChangesVia>,
}

impl Wish {
    fn wanted(&self, settings: &Settings) -> Wanted {
        let security = if self.security_definer { Security::Definer } else { Security::Invoker };
        let via = match self.via.unwrap_or(settings.changes.via) {
            ChangesVia::Auto => None,
            ChangesVia::Notify => Some(Via::Notify),
            ChangesVia::Wal => Some(Via::Wal),
        };
        Wanted { security, via }
    }
}

pub(super) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    match options.action {
        Action::Install(wish) => run_install(global, &wish).await?,
        Action::Uninstall => run_uninstall(global).await?,
        Action::Sql { uninstall: true, .. } => output::result(&uninstall_sql())?,
        Action::Sql { uninstall: false, wish } => {
            let loaded = global.load(&MultiProgress::new())?;
            let Wanted { security, via } = wish.wanted(&loaded.settings);
            let via = via.unwrap_or(Via::Notify);
            output::result(&install_sql(&sources(&loaded), security, via))?;
        }
    }
    Ok(Exit::Ok)
}

fn sources(loaded: &Loaded) -> Vec<ChangeSource> {
    change_sources(loaded.files.jobs(), &loaded.settings.tenants.column)
}

async fn run_install(global: &Global, wish: &Wish) -> Result<(), Failure> {
    let loaded = global.load(&MultiProgress::new())?;
    let sources = sources(&loaded);
    let Loaded { settings, files } = &loaded;
    let database = Arc::new(app::connect_database(settings).await?);
    let wanted = wish.wanted(settings);
    let installed = install(&database, &sources, &settings.tenants.sql, wanted).await;
    let (installed, removed) = match installed {
        Ok(installed) => installed,
        Err(error @ ChangesError::NotAllowed(_)) => {
            let sql = same_as_sql(wish, wanted, &database, &sources).await;
            return Err(failure(error, &settings.jobs, &sql));
        }
        Err(error) => return Err(failure(error, &settings.jobs, "preheat changes sql")),
    };
    output::result(&shown(&installed, &removed))?;
    suggest_log(&database, wanted, &installed).await;
    let mut warnings = unwatched(&installed, files);
    let source = app::source_on(settings, &database);
    match app::unwatched(&source, files, &BTreeSet::new()).await {
        Ok(mut found) => {
            warnings.append(&mut found.warnings);
            output::result(&not_watched(&found))?;
        }
        Err(error) => output::problem(&format!("warning: {error}")),
    }
    if !warnings.is_empty() {
        output::problem(&Problems::new(warnings).render(output::is_coloured()));
    }
    Ok(())
}

/// The command that prints what this `install` would have run.
async fn same_as_sql(
    wish: &Wish,
    wanted: Wanted,
    database: &Database,
    sources: &[ChangeSource],
) -> String {
    let definer = if wish.security_definer { " --security-definer" } else { "" };
    // Without the database, the command cannot find out how the triggers speak.
    let speaks = wanted.via.is_none() && look(database, sources).await.is_ok_and(|it| it.ways.wal);
    let via = match wish.via {
        Some(ChangesVia::Wal) => " --via wal",
        Some(ChangesVia::Notify) => " --via notify",
        Some(ChangesVia::Auto) | None if speaks => " --via wal",
        Some(ChangesVia::Auto) => " --via auto",
        None => "",
    };
    format!("preheat changes sql{definer}{via}")
}

/// Says that the triggers could speak through the write-ahead log, if nobody has decided how they speak.
async fn suggest_log(database: &Database, wanted: Wanted, installed: &[Installed]) {
    let notifies = installed.iter().any(|installed| installed.via == Via::Notify);
    if wanted.via.is_none() && notifies && could_read_log(database).await.unwrap_or(false) {
        output::problem(
            "hint: this server has `wal_level = logical`: with `preheat changes install --via wal` \
             triggers do not hold up the commits of other writers, as NOTIFY does; it needs a role \
             with REPLICATION for the worker (see docs/changes.md)",
        );
    }
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
    for Installed { table, tenants, keys, relations, security, via, unwatched: _, done } in
        installed
    {
        let is_published = *done == Done::Published;
        let done = match done {
            Done::New => "installed",
            Done::Mended | Done::Published => "mended",
            Done::Switched => "switched",
            Done::AsItWas => "unchanged",
        };
        let tenants = match tenants {
            TouchedTenants::Column(column) => format!("tenants by `{column}`"),
            TouchedTenants::Sql(_) => match security {
                Security::Invoker => "tenants by a query".to_owned(),
                Security::Definer => "tenants by a query, as the function's owner".to_owned(),
            },
            TouchedTenants::Global => "all tenants together".to_owned(),
        };
        let keys: String =
            keys.iter().flat_map(|column| [", keys by `", column.as_str(), "`"]).collect();
        let below = match relations.saturating_sub(1) {
            0 => String::new(),
            below => format!(", with {}", output::counted(below as u64, "partition", "partitions")),
        };
        let via = match via {
            Via::Notify => ", by NOTIFY",
            Via::Wal if is_published => {
                ", through the write-ahead log, whose publication was missing"
            }
            Via::Wal => ", through the write-ahead log",
        };
        let _a_string_takes_all = writeln!(text, "{done} `{table}`: {tenants}{keys}{below}{via}");
    }
    if installed.is_empty() {
        text.push_str("no job has `tables`: there is nothing to install\n");
    }
    text + &shown_removed(removed)
}

/// For each job, the relations that the triggers' own queries read, but that no entry of `tables`
/// lists.
fn unwatched(installed: &[Installed], files: &JobFiles) -> Vec<Problem> {
    let mut warnings = Vec::new();
    for Installed { table, unwatched, .. } in installed {
        for (job, read) in unwatched {
            let message = format!(
                "the query that finds the tenants of `{table}` reads `{read}`, which `tables` does not \
                 name: the change feed misses rows of `{table}` that are deleted together with their \
                 row of `{read}` (`on delete cascade`)"
            );
            let hint = format!("add `{read}` to `tables`, and say how to find its own tenants");
            let problem = files.problem_at(job, Place::Field("tables"), message, Some(hint));
            warnings.push(problem.into_warning());
        }
    }
    warnings
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

/// The failure for an error. If this role lacks rights, `sql` is the command whose output the
/// tables' owner can run.
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
        error @ (ChangesError::Version(_) | ChangesError::Log(_)) => Failure::usage(error),
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
