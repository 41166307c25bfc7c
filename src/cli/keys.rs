//! `preheat keys`: writes typed key builders for applications.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::MultiProgress;

use super::load::Loaded;
use super::{Exit, Failure, Global, complete, output};
use crate::adapter::postgres::PostgresSource;
use crate::app;
use crate::definition::Problems;
use crate::domain::job::Job;
use crate::domain::layout::Layout;
use crate::engine::ports::Source;
use crate::keys::{self, Input, JobColumns, Language};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The language of the builders
    #[arg(long, value_name = "LANGUAGE")]
    lang: Language,
    /// Write them to this file instead of stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write nothing; end with 1 if the file is out of date
    #[arg(long, requires = "output")]
    check: bool,
    /// Read the job files only, without the database: the rows get no types
    #[arg(long)]
    offline: bool,
    /// The jobs; without them, all that are enabled
    #[arg(value_name = "JOB", add = complete::jobs())]
    names: Vec<String>,
}

impl Options {
    /// The options and arguments that decide what is written.
    fn arguments(&self) -> String {
        let lang = match self.lang {
            Language::TypeScript => "--lang typescript",
            Language::Rust => "--lang rust",
        };
        let offline = self.offline.then_some("--offline");
        let names = self.names.iter().map(String::as_str);
        [lang].into_iter().chain(offline).chain(names).collect::<Vec<_>>().join(" ")
    }
}

pub(super) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    let loaded = global.load(&MultiProgress::new())?;
    let mut jobs = loaded.select(&options.names)?;
    jobs.sort_by(|one, other| one.name.cmp(&other.name));
    let text = if options.offline {
        let jobs = jobs.into_iter().map(|job| JobColumns { job, columns: None }).collect();
        text(&options, &loaded, jobs, None)?
    } else {
        let source = app::connect_source(&loaded.settings).await?.reading_only();
        let jobs = with_columns(&source, &loaded, jobs).await?;
        text(&options, &loaded, jobs, Some(&source))?
    };
    let Some(path) = &options.output else {
        output::result(&text)?;
        return Ok(Exit::Ok);
    };
    let shown = path.display();
    let written = match fs::read_to_string(path) {
        // Git may have changed the ends of lines.
        Ok(written) => Some(written.replace("\r\n", "\n")),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(failed(&format!("could not read `{shown}`: {error}"))),
    };
    if written.as_ref() == Some(&text) {
        output::result(&format!("{shown} is up to date\n"))?;
    } else if options.check {
        return Err(failed(&out_of_date(path, written.as_deref(), &text, &options)));
    } else {
        let write = fs::write(path, &text);
        write.map_err(|error| failed(&format!("could not write `{shown}`: {error}")))?;
        output::result(&format!("wrote {shown}\n"))?;
    }
    Ok(Exit::Ok)
}

/// Asks the database for the columns of each job's query. What `preheat check` finds in these jobs is an error.
async fn with_columns(
    source: &PostgresSource,
    loaded: &Loaded,
    jobs: Vec<Arc<Job>>,
) -> Result<Vec<JobColumns>, Failure> {
    let mut found = app::check_queries(source, &loaded.files).await?;
    if found.tenants.is_empty() {
        found.extend(app::check_keys(source, &loaded.files));
    }
    found.jobs.retain(|name, _| jobs.iter().any(|job| job.name == *name));
    if !found.is_empty() {
        let problems = found.tenants.into_iter().chain(found.jobs.into_values().flatten());
        return Err(Failure::problems(&Problems::new(problems)));
    }
    let mut described = Vec::new();
    for job in jobs {
        let columns = Some(source.result_columns(&job).await?);
        described.push(JobColumns { job, columns });
    }
    Ok(described)
}

fn text(
    options: &Options,
    loaded: &Loaded,
    jobs: Vec<JobColumns>,
    source: Option<&PostgresSource>,
) -> Result<String, Failure> {
    let ids = source.map(Source::id_class);
    let layout = Layout::new(loaded.files.jobs(), ids.unwrap_or_default());
    let arguments = options.arguments();
    let input = Input { jobs, layout: &layout, ids, arguments: &arguments };
    keys::generate(options.lang, &input).map_err(|problems| {
        let shown =
            |problem: &keys::Problem| format!("error: {problem}\n  hint: {}", problem.hint());
        let lines: Vec<_> = problems.iter().map(shown).collect();
        Failure::shown(Exit::Usage, lines.join("\n"))
    })
}

fn failed(message: &str) -> Failure {
    Failure::shown(Exit::Failed, format!("error: {message}"))
}

/// Says where a file differs from what it should be, and how to mend that.
fn out_of_date(path: &Path, written: Option<&str>, text: &str, options: &Options) -> String {
    let shown = path.display();
    let hint = format!("hint: preheat keys {} --output {shown}", options.arguments());
    let Some(written) = written else {
        return format!("`{shown}` does not exist\n  {hint}");
    };
    let same = written.lines().zip(text.lines()).take_while(|(old, new)| old == new).count();
    let line = |sign: char, text: &str| match text.lines().nth(same) {
        Some(line) => format!("\n  {sign} {}", output::shown(line)),
        None => String::new(),
    };
    let (old, new) = (line('-', written), line('+', text));
    format!("`{shown}` is out of date from line {} on{old}{new}\n  {hint}", same + 1)
}
