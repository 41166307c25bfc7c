//! Shows problems in the job files that turn up only after the files were checked.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::problem::{Problem, Source};
use super::read::Located;
use super::{JobFiles, JobSource, raw};
use crate::domain::job::{Job, JobName};

/// A place in a job file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// The query. With an offset it is the word that begins there. (Postgres counts the position of
    /// an error from 1.)
    Query {
        /// The number of characters before the place in the query.
        offset: Option<usize>,
    },
    /// The template of the key with this index.
    Key(usize),
    /// The schedule.
    Schedule,
    /// The dates.
    Dates,
    /// How rows become JSON.
    Encode,
    /// Any field, by its path: `ttl`, `encode.columns.price`.
    Field(&'a str),
}

impl JobFiles {
    /// A problem with a job, at a place in its file.
    pub fn problem_at(
        &self,
        job: &JobName,
        place: Place<'_>,
        message: impl Into<String>,
        hint: Option<String>,
    ) -> Problem {
        let origin = self.origins.get(job);
        let found = origin.and_then(|origin| origin.find(place, self.jobs.get(job)?));
        let problem = match (found, origin) {
            (Some((source, at)), _) => Problem::at(source, at, message),
            (None, Some(origin)) => Problem::of_file(&origin.source.path, message),
            (None, None) => Problem::of_file(format!("{job}.toml"), message),
        };
        problem.maybe_hint(hint)
    }
}

impl JobFiles {
    /// The file of a job, and the line of each field in it, counted from 1, by the field's path: `ttl`, `query.sql`,
    /// `keys.0.key`. A field that the file leaves out is not among them.
    pub fn lines(&self, job: &JobName) -> Option<(&Path, BTreeMap<&str, usize>)> {
        let JobSource { source, spans, sql_file: _ } = self.origins.get(job)?;
        let line = |at: usize| {
            let before = source.text.get(..at).unwrap_or_default();
            before.bytes().filter(|byte| *byte == b'\n').count() + 1
        };
        let lines = spans.iter().map(|(path, span)| (path.as_str(), line(span.key.start)));
        Some((&source.path, lines.collect()))
    }
}

/// A problem with a query that is in no job file, shown in the query's text; `title` says which
/// query it is. The offset is that of [`Place::Query`].
pub fn problem_in(
    title: &str,
    sql: &str,
    offset: Option<usize>,
    message: impl Into<String>,
    hint: Option<String>,
) -> Problem {
    let problem = match offset {
        None => Problem::of_file(title, message),
        Some(offset) => {
            let source = Arc::new(Source { path: title.into(), text: sql.to_owned() });
            Problem::at(&source, word(sql, offset), message)
        }
    };
    problem.maybe_hint(hint)
}

impl JobSource {
    pub(super) fn find(&self, place: Place<'_>, job: &Job) -> Option<(&Arc<Source>, Range<usize>)> {
        let at = match (place, &self.sql_file) {
            (Place::Query { offset: Some(offset) }, Some(file)) => {
                return Some((file, word(&file.text, offset)));
            }
            (Place::Query { offset: Some(offset) }, None) => {
                let at = self.value("query.sql")?;
                let within = word(&job.query.sql, offset);
                let text = Located { key: at.clone(), at, value: job.query.sql.to_string() };
                Some(raw::range(&self.source.text, &text, within))
            }
            (Place::Query { offset: None }, Some(_)) => self.value("query.file"),
            (Place::Query { offset: None }, None) => {
                self.spans.get("query.sql").map(|span| span.key.clone())
            }
            (Place::Key(index), _) => self.value(&format!("keys.{index}.key")),
            (Place::Schedule, _) => self.value("schedule"),
            (Place::Dates, _) => self.value("dates"),
            (Place::Encode, _) => self.value("encode"),
            (Place::Field(path), _) => self.value(path),
        };
        Some((&self.source, at?))
    }

    /// The place of a field's value; if the field is missing, of the nearest table or list that
    /// should contain it.
    fn value(&self, path: &str) -> Option<Range<usize>> {
        let around = path.rsplit_once('.').map(|(around, _)| around);
        let span = self.spans.get(path).map(|span| span.at.clone());
        span.or_else(|| self.value(around?))
    }
}

/// The bytes of the word that begins after this many characters, or of the single character there.
fn word(text: &str, characters: usize) -> Range<usize> {
    let start = text.char_indices().nth(characters).map_or(text.len(), |(at, _)| at);
    let rest = text.get(start..).unwrap_or_default();
    let length = rest.find(|char: char| !char.is_alphanumeric() && char != '_' && char != '$');
    let one = rest.chars().next().map_or(0, char::len_utf8);
    start..start + length.unwrap_or(rest.len()).max(one)
}
