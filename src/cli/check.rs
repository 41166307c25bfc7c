//! `preheat check`: checks the settings, the job files and, if it may use the servers, the queries.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use indicatif::MultiProgress;
use serde::Serialize;

use super::load::{LoadProblems, Loaded, Servers};
use super::{Exit, Failure, Global, output};
use crate::adapter::postgres::{PostgresSource, RelationKind};
use crate::app::{self, QueryProblems, Unwatched};
use crate::config::{self, ChangesMode, ConfigError, RowSecurity, Settings};
use crate::definition::{JobFiles, Problem, Problems};
use crate::domain::job::JobName;
use crate::domain::spelling;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Check files only, without the database and the cache
    #[arg(long)]
    offline: bool,
    /// Only prepare the queries; do not try them on a few tenants
    #[arg(long, conflicts_with = "offline")]
    no_data: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// How far a check with the database goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// Queries are prepared and planned.
    Queries,
    /// They are tried on a few tenants, too.
    Rows,
}

/// What was checked, and what the check found.
#[derive(Default)]
pub(super) struct Report {
    checked: Checked,
    jobs: usize,
    settings: Vec<config::Problem>,
    problems: Problems,
    warnings: Problems,
    unwatched: Unwatched,
    row_security: RowSecurity,
    /// The address of the cache's primary, if Sentinels name it.
    primary: Option<Arc<str>>,
    /// Why not everything could be checked.
    unreachable: Option<Failure>,
}

pub(super) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    let servers = if options.offline { Servers::AsNeeded } else { Servers::Both };
    let report = match global.try_load(&MultiProgress::new(), servers)? {
        Ok(loaded) if options.offline => Report::of_files(&loaded.files),
        Ok(loaded) => with_servers(&loaded, &options).await?,
        Err(LoadProblems { settings, files: problems }) => {
            let settings = settings.map(|error| error.problems).unwrap_or_default();
            Report { settings, problems, ..Report::default() }
        }
    };
    if options.json {
        output::json(&report.as_json())?;
    } else {
        report.show()?;
    }
    report.end()
}

/// If one server is away, everything that does not need it is checked all the same.
async fn with_servers(loaded: &Loaded, options: &Options) -> Result<Report, Failure> {
    let Loaded { settings, files } = loaded;
    let (source, cache) = tokio::join!(app::connect_source(settings), app::try_cache(settings));
    let (primary, cache) = match cache {
        Ok(primary) => (primary, None),
        Err(error) => (None, Some(Failure::from(error))),
    };
    let depth = if options.no_data { Depth::Queries } else { Depth::Rows };
    let mut report = match source {
        Ok(source) => queries(&source, settings, files, depth).await?,
        Err(error) => {
            let database = Failure::from(error);
            let unreachable = match cache {
                Some(cache) => database.and("\n", &cache),
                None => database,
            };
            let unreachable = Some(unreachable);
            return Ok(Report { primary, unreachable, ..Report::of_files(files) });
        }
    };
    report.unreachable = cache;
    report.primary = primary;
    report.row_security = settings.database.row_security;
    Ok(report)
}

/// Runs every check that needs the database. A job whose query does not work is left out of the
/// later checks.
pub(super) async fn queries(
    source: &PostgresSource,
    settings: &Settings,
    files: &JobFiles,
    depth: Depth,
) -> Result<Report, Failure> {
    let mut found = app::check_queries(source, files).await?;
    let broken: BTreeSet<JobName> = if found.tenants.is_empty() {
        found.jobs.keys().cloned().collect()
    } else {
        files.jobs().keys().cloned().collect()
    };
    if found.tenants.is_empty() {
        found.extend(app::check_keys(source, files));
    }
    let mut unwatched = Unwatched::default();
    if settings.changes.enabled != ChangesMode::Off {
        found.extend(app::check_tables(source, files).await?);
        found.warnings.extend(app::check_log(source, settings, files).await?);
        unwatched = app::unwatched(source, files, &broken).await?;
        found.warnings.append(&mut unwatched.warnings);
    }
    if depth == Depth::Rows && found.tenants.is_empty() {
        found.extend(app::check_rows(source, files, &broken).await?);
    }
    let QueryProblems { tenants, jobs, warnings } = found;
    let problems = Problems::new(tenants.into_iter().chain(jobs.into_values().flatten()));
    let warnings = Problems::new(warnings);
    let checked = match depth {
        Depth::Queries => Checked::Queries,
        Depth::Rows => Checked::Rows,
    };
    Ok(Report { checked, problems, warnings, unwatched, ..Report::of_files(files) })
}

impl Report {
    fn of_files(files: &JobFiles) -> Self {
        let warnings = files.possible_conflicts();
        Self { jobs: files.jobs().len(), warnings, ..Self::default() }
    }

    fn is_good(&self) -> bool {
        self.settings.is_empty() && self.problems.is_empty()
    }

    /// Prints the report for people: problems to stderr, good news to stdout.
    pub(super) fn show(&self) -> Result<(), Failure> {
        let settings = self.settings.clone();
        let settings =
            (!settings.is_empty()).then(|| Failure::settings(&ConfigError { problems: settings }));
        let of_files = [&self.problems, &self.warnings].into_iter();
        let of_files = of_files.filter(|problems| !problems.is_empty()).map(Failure::problems);
        let blocks = settings.into_iter().chain(of_files);
        if let Some(all) = blocks.reduce(|one, next| one.and("\n\n", &next)) {
            all.print();
        }
        if self.is_good() && self.unreachable.is_none() {
            output::result(&self.result())?;
        }
        Ok(())
    }

    /// The exit code. Problems outweigh a server that is away, but both are printed.
    pub(super) fn end(self) -> Result<Exit, Failure> {
        match (self.is_good(), self.unreachable) {
            (true, None) => Ok(Exit::Ok),
            (true, Some(unreachable)) => Err(unreachable),
            (false, None) => Ok(Exit::Usage),
            (false, Some(unreachable)) => {
                output::problem("");
                unreachable.print();
                Ok(Exit::Usage)
            }
        }
    }

    fn result(&self) -> String {
        let jobs = output::counted(self.jobs as u64, "job", "jobs");
        let warnings = match self.warnings.len() as u64 {
            0 => String::new(),
            count => format!(", {}", output::counted(count, "warning", "warnings")),
        };
        let how = match self.checked {
            Checked::Files => "queries were not checked",
            Checked::Queries => "every query was prepared",
            Checked::Rows => "every query was prepared and tried on a few tenants",
        };
        let hidden = match self.row_security {
            RowSecurity::Refuse => "",
            RowSecurity::Accept => {
                "`database.row_security` is `accept`: rows that a policy hides from the role are \
                 missing from the cache\n"
            }
        };
        let primary = self.primary.as_deref().map_or_else(String::new, |primary| {
            format!("the Sentinels name `{primary}` as the cache's primary\n")
        });
        let unwatched = not_watched(&self.unwatched);
        format!("{jobs}, no problems{warnings}; {how}\n{hidden}{primary}{unwatched}")
    }

    fn as_json(&self) -> Json<'_> {
        let of_settings = self.settings.iter().map(JsonProblem::of_setting);
        let problems = of_settings.chain(self.problems.iter().map(JsonProblem::OfFile)).collect();
        let relations = self.unwatched.relations.iter();
        Json {
            jobs: self.jobs,
            checked: self.checked,
            problems,
            warnings: &self.warnings,
            without_tables: self.unwatched.jobs.iter().map(JobName::as_str).collect(),
            unwatchable: relations
                .map(|(relation, job)| (job.as_str(), relation.name.as_str()))
                .map(|(job, relation)| JsonRelation { job, relation })
                .collect(),
            primary: self.primary.as_deref(),
            unreachable: self.unreachable.as_ref().map(Failure::message),
        }
    }
}

/// How much was checked.
#[derive(Clone, Copy, Default, Serialize)]
#[serde(rename_all = "lowercase")]
enum Checked {
    /// The files alone, without the servers.
    #[default]
    Files,
    /// The queries too: the database prepared and planned them.
    Queries,
    /// The rows too: the queries were tried on a few tenants.
    Rows,
}

#[derive(Serialize)]
struct Json<'r> {
    jobs: usize,
    checked: Checked,
    problems: Vec<JsonProblem<'r>>,
    warnings: &'r Problems,
    without_tables: Vec<&'r str>,
    unwatchable: Vec<JsonRelation<'r>>,
    /// The address of the cache's primary, if Sentinels name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    primary: Option<&'r str>,
    /// Why not everything could be checked.
    unreachable: Option<&'r str>,
}

#[derive(Serialize)]
struct JsonRelation<'r> {
    job: &'r str,
    relation: &'r str,
}

#[derive(Serialize)]
#[serde(untagged)]
enum JsonProblem<'r> {
    OfFile(&'r Problem),
    OfSetting {
        severity: &'static str,
        file: Option<&'r Path>,
        line: Option<usize>,
        variable: Option<&'r str>,
        message: &'r str,
        hint: Option<&'r str>,
    },
}

impl<'r> JsonProblem<'r> {
    fn of_setting(problem: &'r config::Problem) -> Self {
        let config::Problem { origin, message, hint } = problem;
        let (file, line, variable) = match origin {
            config::Origin::File { path, line } => (Some(path.as_path()), *line, None),
            config::Origin::EnvFile { line, name } => {
                (Some(Path::new(".env")), Some(*line), Some(name.as_str()))
            }
            config::Origin::Variable(name) => (None, None, Some(name.as_str())),
            config::Origin::Unset => (None, None, None),
        };
        let (message, hint) = (message.as_str(), hint.as_deref());
        Self::OfSetting { severity: "error", file, line, variable, message, hint }
    }
}

/// The jobs without `tables`, and the relations that `tables` cannot list, so that no change feed
/// covers them.
pub(super) fn not_watched(unwatched: &Unwatched) -> String {
    let mut text = String::new();
    if !unwatched.jobs.is_empty() {
        let names = spelling::listed(unwatched.jobs.iter().map(JobName::as_str), "and");
        text = format!("without `tables`, so that no change feed warms them: {names}\n");
    }
    for (relation, job) in &unwatched.relations {
        let kind = match relation.kind {
            RelationKind::Table => "table",
            RelationKind::MaterializedView => "materialized view",
            RelationKind::ForeignTable => "foreign table",
        };
        let name = &relation.name;
        let _a_string_takes_all =
            writeln!(text, "`{job}` reads the {kind} `{name}`, which no change feed can watch");
    }
    text
}
