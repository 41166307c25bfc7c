//! The layers of settings, a file and the environment, merged by figment. Each value keeps its
//! origin.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider, Source};
use toml::Spanned;
use toml::de::DeTable;

use super::Overrides;
use super::environment::{Environment, SWITCH};
use super::problem::{Origin, Problem};
use super::setting::{PREFIX, Setting, variable_of};
use super::traces::Traces;
use crate::domain::spelling::{listed, nearest};

/// The settings file that is read by default, if it exists.
const DEFAULT_FILE: &str = "preheat.toml";
/// The default folder of job files.
const DEFAULT_JOBS: &str = "jobs";
/// Our variables that are no settings of the file.
const SINGLE: [&str; 5] =
    ["PREHEAT_CONFIG", SWITCH, "PREHEAT_JOBS", "PREHEAT_LOG", "PREHEAT_LOG_FORMAT"];
/// Conventional variable names and their settings. Our own variables take precedence.
const CONVENTIONAL: [(&str, &str); 2] =
    [("DATABASE_URL", "database.url"), ("REDIS_URL", "cache.url")];
/// Variables that count only if nothing else sets the setting; the first takes precedence. The
/// second holds the address of a REST API, and is refused with a hint.
const FALLBACK: [(&str, &str); 2] =
    [("UPSTASH_REDIS_URL", "cache.url"), ("UPSTASH_REDIS_REST_URL", "cache.url")];

/// The contents of the layers, before anything is checked.
#[derive(Default)]
pub(super) struct Layers {
    figment: Figment,
    file: Option<File>,
    environment: Environment,
}

struct File {
    path: PathBuf,
    /// Every key, in the file's order, with its line and whether it is a table.
    keys: Vec<FileKey>,
}

struct FileKey {
    path: String,
    line: usize,
    is_table: bool,
}

impl Layers {
    pub(super) fn read(overrides: &Overrides, environment: Environment) -> (Self, Vec<Problem>) {
        let named = environment.get("PREHEAT_CONFIG").map(PathBuf::from);
        let mut layers = Self { figment: Figment::new(), file: None, environment };
        layers.merge_variables(FALLBACK.iter().rev());
        let mut problems = match overrides.config.clone().or(named) {
            Some(path) => layers.read_file(path, true),
            None => layers.read_file(PathBuf::from(DEFAULT_FILE), false),
        };
        layers.merge_environment();
        problems.extend_from_slice(layers.environment.problems());
        (layers, problems)
    }

    /// Whether traces are wanted.
    pub(super) fn traces(&self) -> Traces {
        Traces::read(&self.environment)
    }

    /// Whether a settings file was read.
    pub(super) fn has_file(&self) -> bool {
        self.file.is_some()
    }

    fn read_file(&mut self, path: PathBuf, must_exist: bool) -> Vec<Problem> {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => return vec![],
            Err(error) => {
                let origin = Origin::File { path, line: None };
                let message = format!("the settings cannot be read: {error}");
                return vec![Problem { origin, message, hint: None }];
            }
        };
        let at = |span: Option<Range<usize>>| Origin::File {
            path: path.clone(),
            line: span.map(|span| line_of(&text, span.start)),
        };
        let (table, errors) = DeTable::parse_recoverable(&text);
        let mut problems: Vec<_> = errors
            .iter()
            // Only the message: the whole error shows the line, which may contain a password.
            .map(|error| problem_of_syntax(at(error.span()), error.message()))
            .collect();
        if !problems.is_empty() {
            return problems;
        }
        match toml::from_str::<Dict>(&text) {
            Ok(dict) => {
                let metadata = Metadata::from("file", Source::File(path.clone()));
                self.merge(Layer { metadata, dict });
            }
            Err(error) => problems.push(problem_of_syntax(at(error.span()), error.message())),
        }
        let mut keys = Vec::new();
        collect(&text, "", table.get_ref(), &mut keys);
        keys.sort_by_key(|key| key.line);
        self.file = Some(File { path, keys });
        problems
    }

    fn merge_environment(&mut self) {
        self.merge_variables(CONVENTIONAL.iter());
        let environment = std::mem::take(&mut self.environment);
        for (name, value) in environment.iter() {
            if let Some(setting) = setting_of(name) {
                self.merge(Layer::variable(name, &setting, value));
            }
        }
        self.environment = environment;
    }

    fn merge_variables<'n>(&mut self, names: impl Iterator<Item = &'n (&'n str, &'n str)>) {
        for (name, setting) in names {
            if let Some(value) = self.environment.get(name) {
                let layer = Layer::variable(name, setting, value);
                self.merge(layer);
            }
        }
    }

    fn merge(&mut self, layer: Layer) {
        self.figment = std::mem::take(&mut self.figment).merge(layer);
    }

    /// A setting's value and its origin.
    pub(super) fn find(&self, setting: &str) -> Option<(Value, Origin)> {
        let value = self.figment.find_value(setting).ok()?;
        let metadata = self.figment.get_metadata(value.tag());
        let origin = match metadata {
            Some(metadata) if metadata.source.is_some() => self.in_file(setting),
            Some(metadata) => self.environment.origin(&metadata.name),
            None => Origin::Unset,
        };
        Some((value, origin))
    }

    fn in_file(&self, setting: &str) -> Origin {
        self.file.as_ref().map_or(Origin::Unset, |file| Origin::File {
            path: file.path.clone(),
            line: file.keys.iter().find(|key| key.path == setting).map(|key| key.line),
        })
    }

    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name)
    }

    /// Where a variable is set.
    pub(super) fn origin_of_variable(&self, name: &str) -> Origin {
        self.environment.origin(name)
    }

    /// The variables that come from a `.env` file.
    pub(super) fn names_of_env_file(&self) -> Vec<String> {
        self.environment.names_of_file().map(str::to_owned).collect()
    }

    pub(super) fn jobs(&self, overrides: &Overrides) -> PathBuf {
        let variable = || self.variable("PREHEAT_JOBS").map(PathBuf::from);
        overrides.jobs.clone().or_else(variable).unwrap_or_else(|| PathBuf::from(DEFAULT_JOBS))
    }

    /// The host's name. In a container `HOSTNAME` holds it. Elsewhere that is usually a variable of
    /// the shell, which does not export it.
    pub(super) fn host_name(&self) -> String {
        let file = || std::fs::read_to_string("/etc/hostname").ok();
        let name = self.variable("HOSTNAME").map(str::to_owned).or_else(file).unwrap_or_default();
        if name.trim().is_empty() { "preheat".to_owned() } else { name.trim().to_owned() }
    }

    /// Problems of keys in the file and of variables that are no settings.
    pub(super) fn unknown(&self, settings: &[Setting]) -> Vec<Problem> {
        let known = Known::new(settings);
        let in_file = self.file.iter().flat_map(|file| {
            let unknown = file.keys.iter().filter(|key| !known.has(&key.path, key.is_table));
            // An unknown table is one problem; its keys are not reported one by one.
            let told = unknown.filter(|key| {
                key.path.rsplit_once('.').is_none_or(|(table, _)| known.sections.contains(table))
            });
            told.map(|key| Problem {
                origin: Origin::File { path: file.path.clone(), line: Some(key.line) },
                message: format!("unknown setting `{}`", key.path),
                hint: Some(known.hint(&key.path)),
            })
        });
        let in_environment =
            self.environment.iter().filter(|(name, _)| known.misses(name)).map(|(name, _)| {
                let hint = known.hint_for_variable(name);
                let message = "unknown setting".to_owned();
                Problem { origin: self.environment.origin(name), message, hint }
            });
        in_file.chain(in_environment).collect()
    }
}

/// The contents of one file or one variable.
struct Layer {
    metadata: Metadata,
    dict: Dict,
}

impl Layer {
    /// The value stays text. The reader of the setting knows its type, so a password of digits
    /// stays a password.
    fn variable(name: &str, setting: &str, value: &str) -> Self {
        let dict = figment::util::nest(setting, Value::from(value)).into_dict();
        Self { metadata: Metadata::named(name.to_owned()), dict: dict.unwrap_or_default() }
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        self.metadata.clone()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}

/// `PREHEAT_SECTION__KEY` → `section.key`
fn setting_of(variable: &str) -> Option<String> {
    let (section, key) = variable.strip_prefix(PREFIX)?.split_once("__")?;
    Some(format!("{}.{}", section.to_ascii_lowercase(), key.to_ascii_lowercase()))
}

/// The names that exist.
struct Known<'a> {
    settings: BTreeSet<&'a str>,
    sections: BTreeSet<&'a str>,
}

impl<'a> Known<'a> {
    fn new(settings: &'a [Setting]) -> Self {
        let settings: BTreeSet<_> = settings.iter().map(|setting| setting.key).collect();
        let sections = settings.iter().filter_map(|key| Some(key.split_once('.')?.0)).collect();
        Self { settings, sections }
    }

    /// A section must be a table. Otherwise its keys would be ignored silently.
    fn has(&self, path: &str, is_table: bool) -> bool {
        self.settings.contains(path) || (is_table && self.sections.contains(path))
    }

    /// Whether a variable looks like ours, but is not. Kubernetes sets `PREHEAT_PORT`,
    /// `PREHEAT_SERVICE_HOST` and the like in every pod if there is a service named `preheat`.
    /// Those are no mistake.
    fn misses(&self, variable: &str) -> bool {
        if !variable.starts_with(PREFIX) || SINGLE.contains(&variable) {
            return false;
        }
        if let Some(setting) = setting_of(variable) {
            return !self.settings.contains(setting.as_str());
        }
        let of_a_service = ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT_"];
        !variable.ends_with("_PORT") && !of_a_service.iter().any(|part| variable.contains(part))
    }

    fn hint(&self, path: &str) -> String {
        let Some((section, key)) = path.split_once('.') else {
            return self.hint_for_section(path);
        };
        let keys = || self.keys_of(section);
        if let Some(near) = nearest(key, keys()) {
            return format!("did you mean `{section}.{near}`?");
        }
        let elsewhere =
            self.settings.iter().find(|known| known.split_once('.').is_some_and(|k| k.1 == key));
        if let Some(elsewhere) = elsewhere {
            return format!("did you mean `{elsewhere}`?");
        }
        format!("settings of `[{section}]` are {}", listed(keys(), "and"))
    }

    fn hint_for_section(&self, section: &str) -> String {
        if self.sections.contains(section) {
            return format!("write it as a table: `[{section}]`");
        }
        if let Some(near) = nearest(section, self.sections.iter().copied()) {
            return format!("did you mean `[{near}]`?");
        }
        let within = self
            .settings
            .iter()
            .find(|known| known.split_once('.').is_some_and(|k| k.1 == section));
        if let Some(within) = within {
            return format!("did you mean `{within}`?");
        }
        format!("sections are {}", listed(self.sections.iter().copied(), "and"))
    }

    fn keys_of(&self, section: &str) -> impl Iterator<Item = &'a str> {
        self.settings
            .iter()
            .filter_map(move |known| known.split_once('.').filter(|k| k.0 == section))
            .map(|(_, key)| key)
            .collect::<Vec<_>>()
            .into_iter()
    }

    fn hint_for_variable(&self, name: &str) -> Option<String> {
        let ours = self.settings.iter().map(|setting| variable_of(setting));
        let ours: Vec<_> = ours.chain(SINGLE.map(str::to_owned)).collect();
        let near = nearest(name, ours.iter().map(String::as_str))?;
        Some(format!("did you mean `{near}`?"))
    }
}

fn collect(text: &str, within: &str, table: &DeTable<'_>, keys: &mut Vec<FileKey>) {
    for (name, value) in table {
        let path = match within {
            "" => name.get_ref().to_string(),
            within => format!("{within}.{}", name.get_ref()),
        };
        let inner = value.get_ref().as_table();
        let line = line_of(text, Spanned::span(name).start);
        keys.push(FileKey { path: path.clone(), line, is_table: inner.is_some() });
        if let Some(inner) = inner {
            collect(text, &path, inner, keys);
        }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count()
}

fn problem_of_syntax(origin: Origin, message: &str) -> Problem {
    Problem { origin, message: format!("cannot be read as TOML: {message}"), hint: None }
}
