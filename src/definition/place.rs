//! Problems that turn up after the files were checked, shown in the files all the same.

use std::ops::Range;
use std::sync::Arc;

use super::check::{find, unknown_column};
use super::problem::{Problem, Source};
use super::value::Located;
use super::{JobFiles, Origin, raw};
use crate::domain::job::{DATE_COLUMN, DateZone, Job, JobName, Scope};
use crate::domain::key::Placeholder;

/// A place in a job's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// The query; with an offset, the word of it that begins after so many characters. (The
    /// position in an error of Postgres is counted from 1.)
    Query {
        /// How many characters of the query stand before it.
        offset: Option<usize>,
    },
    /// The pattern of a key, by its position.
    Key(usize),
    /// The schedule.
    Schedule,
    /// The dates.
    Dates,
    /// How rows become JSON.
    Encode,
    /// Any field by its path: `ttl`, `encode.columns.price`.
    Field(&'a str),
}

impl JobFiles {
    /// A problem of a job at a place of its file.
    pub fn problem_at(
        &self,
        job: &JobName,
        place: Place<'_>,
        message: impl Into<String>,
        hint: Option<String>,
    ) -> Problem {
        let problem = match self.origins.get(job) {
            Some(origin) => {
                let (source, at) = origin.find(place, self.jobs.get(job).map(AsRef::as_ref));
                Problem::at(source, at, message)
            }
            None => Problem::of_file(format!("{job}.toml"), message),
        };
        match hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }

    /// What does not fit the columns that the tenant query returns.
    pub fn tenant_column_problems(&self, columns: &[&str]) -> Vec<Problem> {
        let mut problems = Vec::new();
        let unknown = |column: &str| !columns.contains(&column);
        let message = |column: &str| format!("the tenant query returns no column `{column}`");
        let hint = |column: &str| unknown_column(column, columns.iter().copied());
        for (name, job) in &self.jobs {
            for (index, key) in job.keys.iter().enumerate() {
                for placeholder in key.template.placeholders() {
                    if let Placeholder::TenantColumn(column) = placeholder
                        && unknown(column)
                    {
                        let problem =
                            self.at_placeholder(name, index, placeholder, message(column));
                        problems.extend(problem.map(|problem| problem.hint(hint(column))));
                    }
                }
            }
            if let Some(DateZone::TenantColumn(column)) =
                job.dates.as_ref().map(|dates| &dates.zone)
                && unknown(column)
            {
                let place = Place::Field("dates.timezone");
                problems.push(self.problem_at(name, place, message(column), Some(hint(column))));
            }
        }
        problems
    }

    /// What does not fit the columns that a job's query returns.
    pub fn query_column_problems(&self, job: &JobName, columns: &[&str]) -> Vec<Problem> {
        let Some(checked) = self.jobs.get(job) else { return Vec::new() };
        let mut problems = Vec::new();
        let unknown = |column: &str| !columns.contains(&column);
        let message = |column: &str| format!("the query returns no column `{column}`");
        for (index, key) in checked.keys.iter().enumerate() {
            for placeholder in key.template.placeholders() {
                if let Placeholder::Column(column) = placeholder
                    && unknown(column)
                {
                    let hint = format!(
                        "a placeholder is `{{{}}}`, `{{tenant.COLUMN}}`, `{{date}}` or a column of \
                         the query; {}",
                        self.tenant_column,
                        unknown_column(column, columns.iter().copied())
                    );
                    let problem = self.at_placeholder(job, index, placeholder, message(column));
                    problems.extend(problem.map(|problem| problem.hint(hint)));
                }
            }
        }
        let query = Place::Query { offset: None };
        if checked.scope == Scope::Tenants && unknown(&self.tenant_column) {
            let hint =
                "the query says with it whose a row is; `encode.omit` keeps it out of the value";
            let message = message(&self.tenant_column);
            problems.push(self.problem_at(job, query, message, Some(hint.to_owned())));
        }
        if checked.keys.iter().any(|key| key.template.has_date()) && unknown(DATE_COLUMN) {
            let hint = "the query says with it to which day's key a row belongs; `encode.omit` keeps \
                        it out of the value";
            problems.push(self.problem_at(job, query, message(DATE_COLUMN), Some(hint.to_owned())));
        }
        let omitted = checked.encoding.omit.iter().enumerate();
        let omitted = omitted.map(|(index, column)| (format!("encode.omit.{index}"), column));
        let coded = checked.encoding.columns.keys();
        let coded = coded.map(|column| (format!("encode.columns.{column}"), column));
        for (path, column) in omitted.chain(coded).filter(|(_, column)| unknown(column)) {
            let hint = unknown_column(column, columns.iter().copied());
            problems.push(self.problem_at(job, Place::Field(&path), message(column), Some(hint)));
        }
        problems
    }

    fn at_placeholder(
        &self,
        job: &JobName,
        key: usize,
        placeholder: &Placeholder,
        message: String,
    ) -> Option<Problem> {
        let origin = self.origins.get(job)?;
        let template = &self.jobs.get(job)?.keys.get(key)?.template;
        let at = origin.value(&format!("keys.{key}.key"))?;
        let within = find(template.as_str(), &placeholder.name(&self.tenant_column));
        let text = Located { key: at.clone(), at, value: template.as_str().to_owned() };
        let at = raw::range(&origin.source.text, &text, within);
        Some(Problem::at(&origin.source, at, message))
    }
}

impl Origin {
    fn find(&self, place: Place<'_>, job: Option<&Job>) -> (&Arc<Source>, Range<usize>) {
        let field = |path: &str| (&self.source, self.value(path).unwrap_or_default());
        let name = |path: &str| (&self.source, self.name(path).unwrap_or_default());
        match (place, &self.sql_file, job) {
            (Place::Query { offset: Some(offset) }, Some(file), _) => {
                (file, word(&file.text, offset))
            }
            (Place::Query { offset: Some(offset) }, None, Some(job)) => {
                let at = self.value("query.sql").unwrap_or_default();
                let within = word(&job.query.sql, offset);
                let text = Located { key: at.clone(), at, value: job.query.sql.to_string() };
                (&self.source, raw::range(&self.source.text, &text, within))
            }
            (Place::Query { .. }, Some(_), _) => field("query.file"),
            (Place::Query { .. }, None, _) => name("query.sql"),
            (Place::Key(index), _, _) => field(&format!("keys.{index}.key")),
            (Place::Schedule, _, _) => field("schedule"),
            (Place::Dates, _, _) => field("dates"),
            (Place::Encode, _, _) => name("encode"),
            (Place::Field(path), _, _) => field(path),
        }
    }

    /// Where a field's value stands, or that of the nearest field around it.
    fn value(&self, path: &str) -> Option<Range<usize>> {
        let around = path.rsplit_once('.').map(|(around, _)| around);
        let span = self.spans.get(path).map(|span| span.at.clone());
        span.or_else(|| self.value(around?))
    }

    fn name(&self, path: &str) -> Option<Range<usize>> {
        self.spans.get(path).map(|span| span.key.clone())
    }
}

/// The bytes of the word that begins after so many characters, or of the one character that does.
fn word(text: &str, characters: usize) -> Range<usize> {
    let start = text.char_indices().nth(characters).map_or(text.len(), |(at, _)| at);
    let rest = text.get(start..).unwrap_or_default();
    let length = rest.find(|char: char| !char.is_alphanumeric() && char != '_' && char != '$');
    let one = rest.chars().next().map_or(0, char::len_utf8);
    start..start + length.unwrap_or(rest.len()).max(one)
}
