//! Job files → checked jobs, or every problem in them.
//!
//! Two stages for what a person writes: `file` mirrors the text, field by field, and `check` makes
//! the [`Job`](crate::domain::job::Job) that it means. Neither stops at its first problem, and
//! neither touches the disk: `disk` does, and nothing else here.
//!
//! What only the database can know (whether a query's columns exist, say) is found later by others;
//! [`JobFiles`] keeps the texts, so that those problems can be shown in them as well.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::DeTable;

use crate::domain::job::{JobName, Jobs};
use crate::domain::tenant::IdClass;

mod check;
mod default;
mod disk;
mod file;
mod limit;
mod place;
mod problem;
mod raw;
mod read;
mod reference;
mod value;

pub use place::{Place, problem_in};
pub use problem::{Problem, Problems};
pub use reference::{EXAMPLE, reference, schema};

use check::{Check, Checked, Templates};
use file::JobFile;
use problem::Source;
use read::{Fields, Reader, Spans};

/// What the settings say for jobs that don't.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// `runner.batch`.
    pub batch: NonZeroUsize,
    /// `runner.concurrency`, the bound on what a job's file may say.
    pub concurrency: NonZeroUsize,
    /// `tenants.column`.
    pub tenant_column: String,
    /// Whether there is a settings file: where there is none, that may be what is wrong.
    pub has_settings_file: bool,
}

/// A job file.
#[derive(Clone, Debug)]
pub struct JobText {
    /// Its path; the name without the ending is the job's.
    pub path: PathBuf,
    /// What stands in it.
    pub text: String,
}

/// The text of a file that a `query.file` names, by its path in the jobs folder, or why there is
/// none.
pub type SqlFiles<'a> = dyn Fn(&Path) -> Result<String, String> + 'a;

/// The checked jobs and the texts that they came from.
#[derive(Debug)]
pub struct JobFiles {
    jobs: Jobs,
    origins: BTreeMap<JobName, Origin>,
}

/// Where a job came from.
#[derive(Clone, Debug)]
struct Origin {
    source: Arc<Source>,
    spans: Spans,
    sql_file: Option<Arc<Source>>,
}

impl JobFiles {
    /// The jobs, those that are disabled among them.
    pub fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    /// Keys that cannot be told apart where tenants' ids are of this class: those that two enabled
    /// jobs can write, and those in which two placeholders run together. What clashes for every class
    /// is refused before; what a class allows is known only with the database.
    pub fn conflicts(&self, ids: IdClass) -> Vec<(JobName, Problem)> {
        let jobs =
            || self.jobs.values().filter_map(|job| Some((job, self.origins.get(&job.name)?)));
        let files = jobs().map(|(job, origin)| {
            let place = |index| Some(origin.find(Place::Key(index), job)?.1);
            let templates = job.keys.iter().map(|key| key.template.clone()).enumerate();
            let templates =
                templates.map(|(index, key)| (key, place(index).unwrap_or_default())).collect();
            Templates { source: &origin.source, enabled: job.enabled, templates }
        });
        let names: Vec<&JobName> = jobs().map(|(job, _)| &job.name).collect();
        let found = check::conflicts(&files.collect::<Vec<_>>(), &[ids]).into_iter();
        found.filter_map(|(file, problem)| Some(((*names.get(file)?).clone(), problem))).collect()
    }

    /// The same that only some classes of ids make, as warnings: of which class they are is not known.
    pub fn possible_conflicts(&self) -> Problems {
        const HINT: &str = "it depends on what the tenants' ids may hold, which `preheat check` with \
                            the database knows";
        let warning = |(_, problem): (_, Problem)| problem.into_warning().hint(HINT);
        Problems::new(self.conflicts(IdClass::Text).into_iter().map(warning))
    }

    /// One job alone, with its text.
    #[must_use]
    pub fn only(&self, name: &JobName) -> Self {
        let entry = |of: &Arc<_>| (name.clone(), Arc::clone(of));
        let origin = self.origins.get(name).map(|origin| (name.clone(), origin.clone()));
        let jobs = self.jobs.get(name).map(entry);
        Self { jobs: jobs.into_iter().collect(), origins: origin.into_iter().collect() }
    }
}

/// Reads and checks every `*.toml` of a folder.
pub fn load(folder: &Path, defaults: &Defaults) -> Result<JobFiles, Problems> {
    let (texts, problems) = disk::read(folder)?;
    check_all(texts, problems, &|path| disk::read_sql(folder, path), defaults)
}

/// Checks job files that were read already.
pub fn check(
    texts: Vec<JobText>,
    sql_files: &SqlFiles<'_>,
    defaults: &Defaults,
) -> Result<JobFiles, Problems> {
    check_all(texts, Vec::new(), sql_files, defaults)
}

fn check_all(
    mut texts: Vec<JobText>,
    mut problems: Vec<Problem>,
    sql_files: &SqlFiles<'_>,
    defaults: &Defaults,
) -> Result<JobFiles, Problems> {
    texts.sort_by(|a, b| a.path.cmp(&b.path));
    let mut files: Vec<(Arc<Source>, Checked)> = Vec::new();
    let mut spans = Vec::new();
    for JobText { path, text } in texts {
        let source = Arc::new(Source { path, text });
        let Some(name) = name_of(&source.path, &mut problems) else { continue };
        let (file, reader) = match read(&source, &defaults.tenant_column) {
            Ok(read) => read,
            Err(syntax) => {
                problems.extend(syntax);
                continue;
            }
        };
        let mut found = reader.problems;
        let check = Check { source: &source, defaults, sql_files, problems: &mut found };
        let checked = check.job(name, &file);
        problems.append(&mut found);
        files.push((source, checked));
        spans.push(reader.spans);
    }
    let templates = files.iter().map(|(source, file)| Templates {
        source,
        enabled: file.enabled,
        templates: file.templates.clone(),
    });
    let conflicts = check::conflicts(&templates.collect::<Vec<_>>(), &IdClass::ALL);
    problems.extend(conflicts.into_iter().map(|(_, problem)| problem));
    if !problems.is_empty() {
        return Err(Problems::new(problems));
    }
    let (mut jobs, mut origins) = (Jobs::new(), BTreeMap::new());
    for ((source, checked), spans) in files.into_iter().zip(spans) {
        if let Some(job) = checked.job {
            origins.insert(job.name.clone(), Origin { source, spans, sql_file: checked.sql_file });
            jobs.insert(job.name.clone(), Arc::new(job));
        }
    }
    Ok(JobFiles { jobs, origins })
}

fn name_of(path: &Path, problems: &mut Vec<Problem>) -> Option<JobName> {
    let stem = path.file_stem().map(std::ffi::OsStr::to_string_lossy).unwrap_or_default();
    match JobName::parse(&stem) {
        Ok(name) => Some(name),
        Err(error) => {
            let hint = "the file's name is the job's: rename the file";
            problems.push(Problem::of_file(path, error.to_string()).hint(hint));
            None
        }
    }
}

/// Reads a file's fields, or answers what is no TOML in it.
fn read(source: &Arc<Source>, tenant_column: &str) -> Result<(JobFile, Reader), Vec<Problem>> {
    let (document, errors) = DeTable::parse_recoverable(&source.text);
    if !errors.is_empty() {
        let mut problems: Vec<Problem> = Vec::new();
        for error in errors {
            let at = error.span().unwrap_or_default();
            let hint = quotes_hint(&source.text, at.start);
            let problem = Problem::at(source, at, error.message().replace('\n', ", "));
            let problem = problem.maybe_hint(hint);
            let line = |problem: &Problem| problem.line_and_column().map(|(line, _)| line);
            // One slip makes the parser stumble over the rest of its line.
            if !problems.iter().any(|other| line(other) == line(&problem)) {
                problems.push(problem);
            }
        }
        return Err(problems);
    }
    let mut reader = Reader::new(source, tenant_column);
    let file = JobFile::read(Fields::new(document.get_ref(), None, "", &mut reader));
    Ok((file, reader))
}

/// The hint for a text in double quotes that ends at a quote meant to be in it: SQL has such quotes
/// around names.
fn quotes_hint(text: &str, at: usize) -> Option<String> {
    let before = text.get(..text.floor_char_boundary(at))?;
    let line = before.get(before.rfind('\n').map_or(0, |newline| newline + 1)..)?;
    let (_, value) = line.split_once('=')?;
    let inner = value.trim().strip_prefix('"')?.strip_suffix('"')?;
    (!inner.ends_with('\\')).then(|| {
        "text that has double quotes in it stands between `\'\'\'` and `\'\'\'`".to_owned()
    })
}
