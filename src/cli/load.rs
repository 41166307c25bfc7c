//! The first steps of most commands: settings, logs, job files.

use std::path::PathBuf;
use std::sync::Arc;

use indicatif::MultiProgress;

use super::{Exit, Failure, Global, output};
use crate::app::job_defaults;
use crate::config::{ConfigError, Environment, LogFormat, Overrides, Settings};
use crate::definition::{self, JobFiles, Problems};
use crate::domain::job::{Job, JobName};
use crate::domain::spelling;
use crate::observe::event;
use crate::telemetry;

/// The checked settings and jobs.
pub(super) struct Loaded {
    pub(super) settings: Settings,
    pub(super) files: JobFiles,
}

impl Global {
    /// Reads the settings and starts to log. Log lines do not tear the progress bars.
    pub(super) fn settings(&self, bars: &MultiProgress) -> Result<Settings, Failure> {
        let (settings, error) = self.examine()?;
        error.map_or(Ok(()), |error| Err(Failure::settings(&error)))?;
        Self::begin_to_log(&settings, bars)?;
        Ok(settings)
    }

    fn overrides(&self) -> Overrides {
        Overrides {
            config: self.config.clone(),
            jobs: self.jobs.clone(),
            log_format: self.log_format,
            verbosity: self.verbose,
        }
    }

    /// Prints why the command failed: as text, or as a JSON line if the log is in JSON.
    pub(super) fn tell(&self, failure: &Failure) {
        match LogFormat::of(&self.overrides(), &Environment::of_process()) {
            LogFormat::Text => failure.print(),
            LogFormat::Json => output::problem_as_json(&failure.text),
        }
    }

    /// The folder of the job files, even if other settings are wrong.
    pub(super) fn jobs_folder(&self) -> Result<PathBuf, Failure> {
        Ok(self.examine()?.0.jobs)
    }

    /// Reads the settings, and collects what is wrong with them.
    fn examine(&self) -> Result<(Settings, Option<ConfigError>), Failure> {
        self.examined().map_err(|error| Failure::settings(&error))
    }

    fn examined(&self) -> Result<(Settings, Option<ConfigError>), ConfigError> {
        Settings::examine(&self.overrides(), Environment::of_process())
    }

    fn begin_to_log(settings: &Settings, bars: &MultiProgress) -> Result<(), Failure> {
        let writer = telemetry::init(&settings.log).map_err(Failure::usage)?;
        let bars = bars.clone();
        writer.write_within(Box::new(move |write| bars.suspend(&mut *write)));
        if !settings.from_env_file.is_empty() {
            event::EnvFileRead { variables: &settings.from_env_file }.log();
        }
        for text in settings.notices() {
            event::SettingsNotice { text: &text }.log();
        }
        Ok(())
    }

    /// Reads the settings and the job files, and starts to log. Problems of both are reported
    /// together.
    pub(super) fn load(&self, bars: &MultiProgress) -> Result<Loaded, Failure> {
        self.try_load(bars, Servers::AsNeeded)?.map_err(Failure::from)
    }

    /// Reads the settings and the job files once more, after this command has written some.
    pub(super) fn load_again(&self) -> Result<Loaded, Failure> {
        let (settings, error) = self.examine()?;
        error.map_or(Ok(()), |error| Err(Failure::settings(&error)))?;
        let files = definition::load(&settings.jobs, &job_defaults(&settings));
        let files = files.map_err(|problems| Failure::problems(&problems))?;
        Ok(Loaded { settings, files })
    }

    /// Like [`Self::load`], but returns the problems for the caller to report.
    pub(super) fn try_load(
        &self,
        bars: &MultiProgress,
        servers: Servers,
    ) -> Result<Result<Loaded, LoadProblems>, Failure> {
        let (settings, error) = match self.examined() {
            Ok(examined) => examined,
            // Where the job files are is not known.
            Err(error) => {
                let settings = Some(error);
                return Ok(Err(LoadProblems { settings, files: Problems::default() }));
            }
        };
        let error = match servers {
            Servers::AsNeeded => error,
            // A wrong URL also counts as missing, and its problem is in `error` already.
            Servers::Both => error.or_else(|| settings.servers().err()),
        };
        let (files, problems) = match definition::load(&settings.jobs, &job_defaults(&settings)) {
            Ok(files) => (Some(files), Problems::default()),
            Err(problems) => (None, problems),
        };
        Ok(match (error, files) {
            (None, Some(files)) => {
                Self::begin_to_log(&settings, bars)?;
                Ok(Loaded { settings, files })
            }
            (settings, _) => Err(LoadProblems { settings, files: problems }),
        })
    }
}

/// Which servers' URLs the settings must contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Servers {
    /// None yet: the command asks for a URL when it needs one.
    AsNeeded,
    /// Both the database's and the cache's.
    Both,
}

/// The problems of the settings and of the job files.
pub(super) struct LoadProblems {
    pub(super) settings: Option<ConfigError>,
    pub(super) files: Problems,
}

impl From<LoadProblems> for Failure {
    fn from(LoadProblems { settings, files }: LoadProblems) -> Self {
        let settings = settings.map(|error| Self::settings(&error));
        match (settings, files.is_empty()) {
            (None, _) => Self::problems(&files),
            (Some(settings), true) => settings,
            (Some(settings), false) => settings.and("\n\n", &Self::problems(&files)),
        }
    }
}

impl Failure {
    /// A failure that shows the problems of job files.
    pub(super) fn problems(problems: &Problems) -> Self {
        let is_coloured = output::is_coloured();
        Self { exit: Exit::Usage, text: problems.render(is_coloured), is_coloured }
    }

    /// Joins two failures. Problems of files and settings outweigh a server that is away.
    pub(super) fn and(self, between: &str, other: &Self) -> Self {
        let exit = if self.exit == Exit::Usage { self.exit } else { other.exit };
        let is_coloured = self.is_coloured || other.is_coloured;
        Self { exit, text: self.text + between + &other.text, is_coloured }
    }
}

impl Loaded {
    /// The jobs with these names; all enabled jobs if `names` is empty.
    pub(super) fn select(&self, names: &[String]) -> Result<Vec<Arc<Job>>, Failure> {
        let jobs = self.select_any(names)?;
        if names.is_empty() {
            return Ok(jobs.into_iter().filter(|job| job.enabled).collect());
        }
        if let Some(job) = jobs.iter().find(|job| !job.enabled) {
            let name = &job.name;
            return Err(Failure::usage(anyhow::anyhow!(
                "job `{name}` is disabled: its file says `enabled = false`"
            )));
        }
        Ok(jobs)
    }

    /// The jobs with these names, each once, enabled or not; all jobs if `names` is empty.
    pub(super) fn select_any(&self, names: &[String]) -> Result<Vec<Arc<Job>>, Failure> {
        let jobs = self.files.jobs();
        if names.is_empty() {
            return Ok(jobs.values().cloned().collect());
        }
        let mut selected: Vec<Arc<Job>> = Vec::new();
        for name in names {
            let found = JobName::parse(name).ok().and_then(|name| jobs.get(&name));
            let job = found.ok_or_else(|| self.no_such_job(name))?;
            if !selected.iter().any(|other| other.name == job.name) {
                selected.push(Arc::clone(job));
            }
        }
        Ok(selected)
    }

    fn no_such_job(&self, name: &str) -> Failure {
        let known = || self.files.jobs().keys().map(JobName::as_str);
        let (shown, folder) = (output::shown(name), self.settings.jobs.display());
        let hint = match spelling::nearest(name, known()) {
            Some(nearest) => format!("did you mean `{nearest}`?"),
            None => format!("the jobs are {}", spelling::listed(known(), "and")),
        };
        Failure::usage(anyhow::anyhow!("there is no job `{shown}` in `{folder}`\n  hint: {hint}"))
    }
}
