//! Typed key builders, for `preheat keys`: functions with which an application makes the keys that a run
//! writes, from the same job files. Pure.
//!
//! A builder refuses a text with which it would make another key than the one that was meant. The rules are
//! those of [`Layout`], by which a run decides whose a key is:
//! `builder` turns them into checks, `typescript` and `rust` write them down.

mod builder;
mod name;
mod pattern;
mod rust;
#[cfg(test)]
#[expect(unreachable_pub, reason = "the error is public in a generated file")]
mod tests;
mod typescript;

use std::sync::Arc;

use clap::ValueEnum;

use crate::domain::job::Job;
use crate::domain::json::{ColumnProblem, ResultColumn, RowMember, row_members};
use crate::domain::layout::Layout;
use crate::domain::tenant::IdClass;

use self::builder::{Builder, builders};

/// A language in which applications are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub enum Language {
    /// For `preheat-client` of npm.
    TypeScript,
    /// For the crate `preheat-client`.
    Rust,
}

/// The jobs to make builders for, and what is known of their tenants and rows.
#[derive(Debug)]
pub struct Input<'a> {
    /// The jobs, sorted by name.
    pub jobs: Vec<JobColumns>,
    /// The templates of all jobs.
    pub layout: &'a Layout,
    /// The class of the tenants' ids; `None` without the database.
    pub ids: Option<IdClass>,
    /// The command's options and arguments, for the first lines of the file.
    pub arguments: &'a str,
}

/// A job, with the columns of its query.
#[derive(Clone, Debug)]
pub struct JobColumns {
    /// The job.
    pub job: Arc<Job>,
    /// The columns; `None` without the database.
    pub columns: Option<Vec<ResultColumn>>,
}

/// Why there can be no builders for some keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Two builders, or the types of two jobs' rows, would have one name.
    #[error("{first} and {second} would both be called `{name}`")]
    SameName {
        /// The name.
        name: String,
        /// The first of them.
        first: String,
        /// The second.
        second: String,
    },
    /// All keys of a template may also be keys of another one.
    #[error("{first} has no key that could not be one of `{second}` as well")]
    SameKeys {
        /// The template.
        first: String,
        /// The other template.
        second: String,
    },
    /// A column cannot be a member of the value.
    #[error("job `{job}`: {problem}")]
    Column {
        /// The job.
        job: String,
        /// What is wrong.
        problem: ColumnProblem,
    },
}

impl Problem {
    /// How to mend the problem.
    pub fn hint(&self) -> String {
        match self {
            Self::SameName { .. } => {
                "rename one of the jobs, or change the text of one of the keys".to_owned()
            }
            Self::SameKeys { .. } => {
                "put a text of its own into each template, as in `pet:{id}` and `chip:{chip}`"
                    .to_owned()
            }
            Self::Column { problem, .. } => problem.hint(),
        }
    }
}

/// A job's builders and the members of its rows.
struct JobBuilders<'a> {
    job: &'a Job,
    /// The words of the name that the job's row type begins with.
    name: Vec<String>,
    /// `None` without the database.
    members: Option<Vec<RowMember>>,
    builders: Vec<Builder<'a>>,
}

/// The text of a file with the builders, or all problems that keep it from being written.
pub fn generate(language: Language, input: &Input<'_>) -> Result<String, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut jobs = Vec::new();
    for JobColumns { job, columns } in &input.jobs {
        let members = columns.as_ref().map(|columns| row_members(&job.encoding, columns));
        let members = members.transpose().unwrap_or_else(|found| {
            let of_job = |problem| Problem::Column { job: job.name.to_string(), problem };
            problems.extend(found.into_iter().map(of_job));
            None
        });
        let builders = builders(job, columns.as_deref(), input).unwrap_or_else(|found| {
            problems.extend(found);
            Vec::new()
        });
        jobs.push(JobBuilders { job, name: name::of_job(job), members, builders });
    }
    problems.extend(same_names(&jobs));
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(match language {
        Language::TypeScript => typescript::file(&jobs, input.arguments),
        Language::Rust => rust::file(&jobs, input.arguments),
    })
}

/// The names that two builders, or two jobs, would share. They are compared as the languages write them.
fn same_names(jobs: &[JobBuilders<'_>]) -> Vec<Problem> {
    let of_builder = |builder: &Builder<'_>| (name::camel(&builder.name), builder.shown());
    let of_job = |job: &JobBuilders<'_>| {
        let name = name::pascal(&job.name) + "Row";
        (name, format!("the rows of job `{}`", job.job.name))
    };
    let builders = jobs.iter().flat_map(|job| &job.builders).map(of_builder);
    let mut seen: Vec<(String, String)> = Vec::new();
    let mut problems = Vec::new();
    for (name, what) in builders.chain(jobs.iter().map(of_job)) {
        if let Some((name, first)) = seen.iter().find(|(other, _)| *other == name) {
            let (name, first) = (name.clone(), first.clone());
            problems.push(Problem::SameName { name, first, second: what });
        } else {
            seen.push((name, what));
        }
    }
    problems
}

/// The helper functions of a file that `text` uses, in their order. A helper is a block of `helpers` without an
/// empty line, and may use the helpers after it; `name` finds a block's name.
fn used_helpers<'h>(
    helpers: &'h str,
    name: impl Fn(&'h str) -> Option<&'h str>,
    text: &str,
) -> Vec<&'h str> {
    let mut used: Vec<&str> = Vec::new();
    for block in helpers.trim_end().split("\n\n") {
        let is_used = name(block).is_none_or(|name| {
            let calls = |text: &str| text.contains(&format!("{name}("));
            calls(text) || used.iter().any(|block| calls(block))
        });
        if is_used {
            used.push(block);
        }
    }
    used
}
