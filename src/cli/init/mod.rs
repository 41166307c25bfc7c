//! `preheat init`: writes the first settings and a job file, proposed from the database's tables.

mod draft;
mod question;
mod suggest;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use indicatif::MultiProgress;

use self::question::{Chooser, NoAnswer};
use self::suggest::{DataTable, TenantsTable, is_clear, tenants_table, tenants_tables};
use super::check::{self, Depth};
use super::{Exit, Failure, Global, output};
use crate::adapter::postgres::{CatalogTable, PostgresSource};
use crate::app;
use crate::config::Settings;
use crate::definition;
use crate::domain::spelling;

/// More answers than this do not fit on a screen.
const MOST_ANSWERS: usize = 15;
const SETTINGS_FILE: &str = "preheat.toml";

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The table that lists the tenants
    #[arg(long, value_name = "TABLE")]
    tenants_table: Option<String>,
    /// What other tables call the tenant's id
    #[arg(long, value_name = "COLUMN")]
    tenant_column: Option<String>,
    /// The table that the first job keeps warm
    #[arg(long, value_name = "TABLE")]
    table: Option<String>,
    /// Ask nothing: take the most likely table where none is named
    #[arg(long)]
    yes: bool,
    /// Overwrite files that exist
    #[arg(long)]
    force: bool,
}

pub(super) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    let settings = global.settings(&MultiProgress::new())?;
    let chooser = Chooser::new(options.yes);
    let source = app::connect_source(&settings).await?;
    let catalog = source.catalog().await?;
    let keeps = settings.has_file && !options.force;
    if keeps && (options.tenants_table.is_some() || options.tenant_column.is_some()) {
        return Err(usage(
            "there are settings already, which say what the tenants are",
            "leave `--tenants-table` and `--tenant-column` out for another job file, or overwrite \
             the settings with `--force`",
        ));
    }
    let known = keeps.then_some(settings.tenants.column.as_str());
    let tenants = tenants(&catalog, &options, known, chooser)?;
    let data = data_table(&tenants, &options, chooser)?;
    let column = match known.or(options.tenant_column.as_deref()) {
        Some(column) => column.to_owned(),
        None => tenants.column(),
    };
    let Some(name) = draft::job_name(&data.table.name) else {
        let table = output::shown(&data.table.name);
        return Err(usage(&format!("no job can be called as table `{table}`"), "name another one"));
    };
    let mut files = Files::new(&settings);
    if !keeps {
        let values = status_values(&source, &tenants).await;
        let (sql, knows_active) = (tenants.sql(&values), tenants.knows_active(&values));
        files.add(settings_path(global), draft::settings(&sql, knows_active, &column));
    }
    let job = draft::job(&name, &data, &tenants, &column);
    files.add(settings.jobs.join(format!("{name}.toml")), job);
    files.refuse_existing(options.force)?;
    if !agreed(chooser.agrees(&format!("write {}?", files.names())))? {
        return Ok(Exit::Failed);
    }
    files.write(options.force)?;
    output::result(&format!("wrote {}\n", files.names()))?;
    let exit = check_written(global, source).await?;
    if exit == Exit::Ok {
        output::result(&format!("next: `preheat preview {name}` shows its keys and values\n"))?;
    }
    Ok(exit)
}

/// The table of the tenants: the one that is named, or a likely one.
fn tenants<'c>(
    catalog: &'c [CatalogTable],
    options: &Options,
    known_column: Option<&str>,
    chooser: Chooser,
) -> Result<TenantsTable<'c>, Failure> {
    let column = known_column.or(options.tenant_column.as_deref());
    if let Some(name) = &options.tenants_table {
        let table = find(catalog.iter(), name)?;
        let found = tenants_table(catalog, table, column).ok_or_else(|| {
            let hint = "write `preheat.toml` yourself, with a query that returns the ids";
            usage(
                &format!(
                    "the table `{}` has no primary key of one column that can be an id",
                    table.sql
                ),
                hint,
            )
        })?;
        if found.data.is_empty() {
            let message = format!("no table refers to `{}`", table.sql);
            return Err(usage(
                &message,
                "name the column that has the tenants' ids: `--tenant-column`",
            ));
        }
        return Ok(found);
    }
    let mut found = tenants_tables(catalog, column);
    found.truncate(MOST_ANSWERS);
    if found.is_empty() {
        let hint =
            "name it with `--tenants-table`, and with `--tenant-column` what others call its id";
        return Err(usage("no table looks like the list of the tenants", hint));
    }
    let names: Vec<String> = found.iter().map(|found| found.table.plain_name()).collect();
    let chosen = chooser.choose("Which table lists the tenants?", &names, is_clear(&found));
    let index = chosen.map_err(|none| no_answer(none, "tenants-table", &names))?;
    Ok(found.swap_remove(index))
}

/// The table of the first job: the one that is named, or a likely one.
fn data_table<'c>(
    tenants: &TenantsTable<'c>,
    options: &Options,
    chooser: Chooser,
) -> Result<DataTable<'c>, Failure> {
    if let Some(name) = &options.table {
        let table = find(tenants.data.iter().map(|data| data.table), name)?;
        let named = |data: &&DataTable<'c>| std::ptr::eq(data.table, table);
        if let Some(data) = tenants.data.iter().find(named) {
            return Ok(*data);
        }
    }
    let all = tenants.data.iter().map(|data| data.table.plain_name());
    let names: Vec<String> = all.take(MOST_ANSWERS).collect();
    let chosen =
        chooser.choose("Which table should the first job keep warm?", &names, names.len() == 1);
    let index = chosen.map_err(|none| no_answer(none, "table", &names))?;
    let data = tenants.data.get(index).copied();
    data.ok_or_else(|| usage("no table has rows of tenants", "name one with `--table`"))
}

/// A table by its name, with or without its schema.
fn find<'c>(
    mut tables: impl Iterator<Item = &'c CatalogTable> + Clone,
    name: &str,
) -> Result<&'c CatalogTable, Failure> {
    let named = |table: &&CatalogTable| {
        [&table.name, &table.sql].contains(&&name.to_owned())
            || format!("{}.{}", table.schema, table.name) == name
    };
    let known: Vec<String> = tables.clone().map(CatalogTable::plain_name).collect();
    tables.find(named).ok_or_else(|| {
        let near = spelling::nearest(name, known.iter().map(String::as_str));
        let hint = near.map_or_else(
            || {
                let some = known.iter().take(MOST_ANSWERS).map(String::as_str);
                format!("tables are {}", spelling::listed(some, "and"))
            },
            |near| format!("did you mean `{near}`?"),
        );
        usage(&format!("there is no such table here: `{}`", output::shown(name)), &hint)
    })
}

/// The values that may say which tenants are active. If they cannot be read, the settings say that all are.
async fn status_values(source: &PostgresSource, tenants: &TenantsTable<'_>) -> Vec<String> {
    match tenants.unclear_status() {
        Some(column) => source.some_values(tenants.table, column).await.unwrap_or_default(),
        None => Vec::new(),
    }
}

fn settings_path(global: &Global) -> PathBuf {
    global.config.clone().unwrap_or_else(|| PathBuf::from(SETTINGS_FILE))
}

/// Checks the files as `preheat check` does, without the cache.
async fn check_written(global: &Global, source: PostgresSource) -> Result<Exit, Failure> {
    drop(source);
    let loaded = global.load_again()?;
    let source = app::connect_source(&loaded.settings).await?;
    let report = check::queries(&source, &loaded.settings, &loaded.files, Depth::Rows).await?;
    report.show()?;
    report.end()
}

/// The files to write.
struct Files {
    files: Vec<(PathBuf, String)>,
    /// Where editors look for the schema of job files.
    schema: PathBuf,
}

impl Files {
    fn new(settings: &Settings) -> Self {
        Self { files: Vec::new(), schema: settings.jobs.join(definition::SCHEMA_FILE) }
    }

    fn add(&mut self, path: PathBuf, text: String) {
        self.files.push((path, text));
    }

    fn names(&self) -> String {
        let paths = self.files.iter().map(|(path, _)| path).chain([&self.schema]);
        let names: Vec<String> = paths.map(|path| path.display().to_string()).collect();
        spelling::listed(names.iter().map(String::as_str), "and")
    }

    fn refuse_existing(&self, force: bool) -> Result<(), Failure> {
        let existing = self.files.iter().map(|(path, _)| path).filter(|path| path.exists());
        let existing: Vec<String> = existing.map(|path| path.display().to_string()).collect();
        if force || existing.is_empty() {
            return Ok(());
        }
        let names = spelling::listed(existing.iter().map(String::as_str), "and");
        Err(usage(&format!("{names} would be overwritten"), "`--force` overwrites"))
    }

    fn write(&self, force: bool) -> Result<(), Failure> {
        for (path, text) in &self.files {
            write(path, text, force).map_err(|error| not_written(path, &error))?;
        }
        // Nobody edits this one, so that it is overwritten in any case.
        fs::write(&self.schema, definition::schema_text())
            .map_err(|error| not_written(&self.schema, &error))
    }
}

fn not_written(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    Failure::shown(Exit::Failed, format!("error: could not write `{path}`: {error}"))
}

fn write(path: &Path, text: &str, force: bool) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut options = File::options();
    // A file that appeared meanwhile is not overwritten either.
    let mut file = if force {
        options.write(true).create(true).truncate(true).open(path)?
    } else {
        options.write(true).create_new(true).open(path)?
    };
    file.write_all(text.as_bytes())
}

fn agreed(answer: Result<bool, NoAnswer>) -> Result<bool, Failure> {
    answer.map_err(|none| no_answer(none, "yes", &[]))
}

fn no_answer(none: NoAnswer, option: &str, answers: &[String]) -> Failure {
    match none {
        NoAnswer::NotClear => usage(
            &format!(
                "which table is not clear: {}",
                spelling::listed(answers.iter().map(String::as_str), "or")
            ),
            &format!("name it with `--{option}`, or take the first with `--yes`"),
        ),
        NoAnswer::Ended => Failure::shown(Exit::Failed, "nothing was written".to_owned()),
        NoAnswer::Failed(error) => error.into(),
    }
}

fn usage(message: &str, hint: &str) -> Failure {
    Failure::usage(anyhow::anyhow!("{message}\n  hint: {hint}"))
}
