//! Turns job files into checked jobs, or lists every problem in them.
//!
//! It works in two stages: `file` mirrors the text, field by field, and `check` makes the
//! [`Job`](crate::domain::job::Job) that the text describes. Neither stops at its first problem,
//! and neither touches the disk: only `disk` does.
//!
//! Some problems only the database can show, such as a missing column. They are found later,
//! outside this module; [`JobFiles`] keeps the texts, so that these problems can be shown in them
//! as well.

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
mod order;
mod place;
mod problem;
mod raw;
mod read;
mod reference;
mod value;

pub use disk::{Contents, contents, names};
pub use place::{Place, problem_in};
pub use problem::{Problem, Problems};
pub use reference::{EXAMPLE, SCHEMA_FILE, reference, schema, schema_text};

use check::{Check, Checked, Templates};
use file::JobFile;
use problem::Source;
use read::{Fields, Reader, Spans};

/// The settings' values for fields that a job file leaves out.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// `runner.batch`.
    pub batch: NonZeroUsize,
    /// `runner.concurrency`: the upper limit for a job file's own value.
    pub concurrency: NonZeroUsize,
    /// `tenants.column`.
    pub tenant_column: String,
    /// Whether a settings file was found. If not, its absence may be the problem.
    pub has_settings_file: bool,
}

/// A job file.
#[derive(Clone, Debug)]
pub struct JobText {
    /// Its path. The file name without the extension is the job's name.
    pub path: PathBuf,
    /// Its contents.
    pub text: String,
}

/// Finds the text of a file that a `query.file` refers to, by its path in the jobs folder. The
/// error says why there is none.
pub type SqlFiles<'a> = dyn Fn(&Path) -> Result<String, String> + 'a;

/// The checked jobs, and the texts that they came from.
#[derive(Debug)]
pub struct JobFiles {
    jobs: Jobs,
    origins: BTreeMap<JobName, JobSource>,
    contents: Option<Contents>,
}

/// The text that a job came from.
#[derive(Clone, Debug)]
struct JobSource {
    source: Arc<Source>,
    spans: Spans,
    sql_file: Option<Arc<Source>>,
}

impl JobFiles {
    /// The jobs, including disabled ones.
    pub fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    /// The contents of the folder just before it was read; `None` if the files come from no folder.
    pub fn contents(&self) -> Option<Contents> {
        self.contents
    }

    /// Keys that are ambiguous if the tenants' ids are of this class: keys that two enabled jobs
    /// could write, and keys in which two placeholders run together. Keys that are ambiguous for
    /// every class were refused before. For the others the class matters, and only the database
    /// knows it.
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

    /// Keys that are ambiguous for some classes of ids only, as warnings, because the class is not
    /// known.
    pub fn possible_conflicts(&self) -> Problems {
        const HINT: &str = "it depends on the type of the tenants' ids: `preheat check` with the \
                            database decides";
        let warning = |(_, problem): (_, Problem)| problem.into_warning().hint(HINT);
        Problems::new(self.conflicts(IdClass::Text).into_iter().map(warning))
    }

    /// A copy with one job only, and its text.
    #[must_use]
    pub fn only(&self, name: &JobName) -> Self {
        let entry = |of: &Arc<_>| (name.clone(), Arc::clone(of));
        let origin = self.origins.get(name).map(|origin| (name.clone(), origin.clone()));
        let jobs = self.jobs.get(name).map(entry);
        let (jobs, origins) = (jobs.into_iter().collect(), origin.into_iter().collect());
        Self { jobs, origins, contents: self.contents }
    }
}

/// Reads and checks every `*.toml` file of a folder.
pub fn load(folder: &Path, defaults: &Defaults) -> Result<JobFiles, Problems> {
    // A file that changes between the two looks is read once more than needed, and never once less.
    let contents = contents(folder);
    let (texts, problems) = disk::read(folder)?;
    let files = check_all(texts, problems, &|path| disk::read_sql(folder, path), defaults)?;
    Ok(JobFiles { contents: Some(contents), ..files })
}

/// Checks job files whose texts were read already.
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
            origins
                .insert(job.name.clone(), JobSource { source, spans, sql_file: checked.sql_file });
            jobs.insert(job.name.clone(), Arc::new(job));
        }
    }
    Ok(JobFiles { jobs, origins, contents: None })
}

fn name_of(path: &Path, problems: &mut Vec<Problem>) -> Option<JobName> {
    let stem = path.file_stem().map(std::ffi::OsStr::to_string_lossy).unwrap_or_default();
    match JobName::parse(&stem) {
        Ok(name) => Some(name),
        Err(error) => {
            let hint = "the file's name is the job's name: rename the file";
            problems.push(Problem::of_file(path, error.to_string()).hint(hint));
            None
        }
    }
}

/// Reads a file's fields; the error lists what is not valid TOML.
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
            // After one mistake the parser often complains about the rest of the line.
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

/// The hint for a string in double quotes that ends too early, at a double quote meant to be part
/// of it. SQL writes such quotes around names.
fn quotes_hint(text: &str, at: usize) -> Option<String> {
    let before = text.get(..text.floor_char_boundary(at))?;
    let line = before.get(before.rfind('\n').map_or(0, |newline| newline + 1)..)?;
    let (_, value) = line.split_once('=')?;
    let inner = value.trim().strip_prefix('"')?.strip_suffix('"')?;
    (!inner.ends_with('\\'))
        .then(|| "write text that contains double quotes between `\'\'\'` and `\'\'\'`".to_owned())
}
