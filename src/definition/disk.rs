//! Reads the jobs folder from disk.

use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rapidhash::fast::RapidHasher;

use super::problem::{Problem, Problems};
use super::{JobText, limit};

/// Everything that [`super::load`] reads from a folder, as a hash: two equal ones mean equal job files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents(u64);

/// The contents of a folder now: the texts of its job files and of the SQL files that these name, and what
/// keeps files from being read. A folder that is gone has contents too.
pub fn contents(folder: &Path) -> Contents {
    let mut hasher = RapidHasher::default_const();
    let problems = match read(folder) {
        Ok((mut texts, problems)) => {
            texts.sort_by(|a, b| a.path.cmp(&b.path));
            for JobText { path, text } in texts {
                (&path, &text).hash(&mut hasher);
                sql_file(&text).map(|file| read_sql(folder, &file)).hash(&mut hasher);
            }
            Problems::new(problems)
        }
        Err(problems) => problems,
    };
    for problem in &problems {
        (problem.file(), problem.message()).hash(&mut hasher);
    }
    Contents(hasher.finish())
}

/// The names of a folder's job files and their descriptions, for a shell that completes them. A file that
/// cannot be read has no name here.
pub fn names(folder: &Path) -> Vec<(String, Option<String>)> {
    let Ok((mut texts, _problems)) = read(folder) else { return Vec::new() };
    texts.sort_by(|a, b| a.path.cmp(&b.path));
    let named = |JobText { path, text }: JobText| {
        let document = toml::from_str::<toml::Table>(&text).ok();
        let description =
            document.and_then(|job| Some(job.get("description")?.as_str()?.to_owned()));
        Some((path.file_stem()?.to_str()?.to_owned(), description))
    };
    texts.into_iter().filter_map(named).collect()
}

/// The file that a job's `query.file` names. A text that is no TOML names none.
fn sql_file(text: &str) -> Option<PathBuf> {
    // Most job files contain their SQL, and need not be parsed for this.
    let document = text.contains("file").then(|| toml::from_str::<toml::Table>(text).ok())??;
    Some(PathBuf::from(document.get("query")?.get("file")?.as_str()?))
}

/// The texts of a folder's `*.toml` files, and a problem for each file that cannot be read.
///
/// A file may be a symbolic link: Kubernetes mounts a `ConfigMap` as links into the folder
/// `..data`. Files whose names begin with a dot are no job files.
pub(super) fn read(folder: &Path) -> Result<(Vec<JobText>, Vec<Problem>), Problems> {
    let whole = |message: String| Problems::new([Problem::of_file(folder, message).hint(HINT)]);
    let could_not = |error: &io::Error| whole(format!("could not read the jobs folder: {error}"));
    let (mut paths, mut problems) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).map_err(|error| could_not(&error))? {
        let path = entry.map_err(|error| could_not(&error))?.path();
        let is_hidden =
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if is_hidden {
            continue;
        }
        if let Some((message, hint)) = overlooked(&path) {
            problems.push(Problem::of_file(path, message).hint(hint));
        } else if has_ending(&path) && !path.is_dir() {
            paths.push(path);
        }
    }
    if paths.is_empty() && !problems.is_empty() {
        return Err(Problems::new(problems));
    }
    if paths.is_empty() {
        return Err(whole("the jobs folder has no job file, `NAME.toml`".to_owned()));
    }
    if paths.len() > limit::FILES {
        let message =
            format!("the jobs folder has {} job files, more than {}", paths.len(), limit::FILES);
        return Err(whole(message));
    }
    let mut texts = Vec::new();
    for path in paths {
        match read_text(&path) {
            Ok(text) => texts.push(JobText { path, text }),
            Err(message) => problems.push(Problem::of_file(path, message)),
        }
    }
    Ok((texts, problems))
}

/// Finds a file, or a folder of files, that looks like a job but would not be read: the message,
/// and what to do.
fn overlooked(path: &Path) -> Option<(String, &'static str)> {
    if path.is_dir() {
        let inside = fs::read_dir(path).ok()?.filter_map(Result::ok).map(|entry| entry.path());
        let job = inside.into_iter().find(|path| has_ending(path) && !path.is_dir())?;
        let name = job.file_name().unwrap_or_default().display().to_string();
        let message = format!("job files in folders of the jobs folder are not read: `{name}`");
        return Some((message, "move it into the jobs folder, or out of it"));
    }
    let ending = path.extension()?.to_string_lossy();
    let is_almost = ending.eq_ignore_ascii_case("toml") || ALMOST.contains(&&*ending);
    let is_misnamed = is_almost && !has_ending(path);
    let message = format!("the file ends in `.{ending}`, and only `*.toml` is read");
    is_misnamed.then_some((message, "rename it to `NAME.toml`, or move it out of the jobs folder"))
}

/// Common misspellings of the extension, in lower case.
const ALMOST: [&str; 6] = ["tml", "tom", "tmol", "tolm", "otml", "toml~"];

fn has_ending(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "toml")
}

const HINT: &str = "`--jobs DIR` or PREHEAT_JOBS names the folder";

/// The text of a file that a job's `query.file` refers to. The file must be in the folder, even if
/// it is a link.
pub(super) fn read_sql(folder: &Path, file: &Path) -> Result<String, String> {
    let path = folder.join(file);
    let could_not = |error: io::Error| format!("could not read `{}`: {error}", file.display());
    let inside = path.canonicalize().map_err(could_not)?;
    if !inside.starts_with(folder.canonicalize().map_err(could_not)?) {
        return Err(format!("`{}` leads out of the jobs folder", file.display()));
    }
    read_text(&inside)
}

fn read_text(path: &Path) -> Result<String, String> {
    let could_not = |error: io::Error| format!("could not read the file: {error}");
    let file = fs::File::open(path).map_err(could_not)?;
    let mut bytes = Vec::new();
    file.take(limit::FILE_BYTES + 1).read_to_end(&mut bytes).map_err(could_not)?;
    if bytes.len() as u64 > limit::FILE_BYTES {
        return Err(format!("the file is larger than {} bytes", limit::FILE_BYTES));
    }
    String::from_utf8(bytes).map_err(|error| {
        let lines = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        let line = lines.filter(|byte| **byte == b'\n').count() + 1;
        format!("the file is not UTF-8: line {line}")
    })
}
