//! The variables that settings come from: those of the process, and below them those of a `.env` file.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::problem::{Origin, Problem};
use super::setting::PREFIX;

/// The file, in the working directory.
const FILE: &str = ".env";
/// The variable of the process that says whether the file is read.
pub(super) const SWITCH: &str = "PREHEAT_DOTENV";
/// The variables without [`PREFIX`] that are taken from the file. It belongs to the application, whose other
/// variables mean nothing here: a `HOSTNAME` in it is where a web server listens.
const TAKEN: [&str; 6] = [
    "DATABASE_URL",
    "REDIS_URL",
    "UPSTASH_REDIS_URL",
    "UPSTASH_REDIS_REST_URL",
    "RUST_LOG",
    "NO_COLOR",
];

/// Variables by their names. One that is set to the empty string counts as not set.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    /// The lines of the variables that come from the file.
    lines: BTreeMap<String, usize>,
    problems: Vec<Problem>,
}

/// Variables without a file.
impl<I: IntoIterator<Item = (String, String)>> From<I> for Environment {
    fn from(variables: I) -> Self {
        let variables = variables.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        Self { variables, ..Self::default() }
    }
}

impl Environment {
    /// The variables of this process, and those of the file where the process has none.
    #[expect(clippy::disallowed_methods, reason = "the only reader of the environment")]
    pub fn of_process() -> Self {
        let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        Self::with_file(
            std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value))).collect(),
            Path::new(FILE),
        )
    }

    /// These variables, and those of a file where they lack some.
    fn with_file(process: BTreeMap<String, String>, path: &Path) -> Self {
        let is_read = match process.get(SWITCH).map(String::as_str) {
            None | Some("" | "true") => Ok(true),
            Some("false") => Ok(false),
            Some(other) => Err(format!("found `{other}`; allowed: `true` or `false`")),
        };
        let file = match is_read {
            Ok(true) => EnvFile::read(path),
            Ok(false) => Ok(EnvFile::default()),
            Err(message) => {
                let origin = Origin::Variable(SWITCH.to_owned());
                Err(Problem { origin, message, hint: None })
            }
        };
        // A variable that the process sets to nothing keeps that of the file out, too.
        let is_of_process = |name: &str| process.contains_key(name);
        let (file, problems) = match file {
            Ok(file) => (file, Vec::new()),
            Err(problem) => (EnvFile::default(), vec![problem]),
        };
        let taken = file.variables.into_iter().filter(|(name, _)| !is_of_process(name));
        let (mut variables, mut lines) = (BTreeMap::new(), BTreeMap::new());
        for (name, (value, line)) in taken.filter(|(_, (value, _))| !value.is_empty()) {
            lines.insert(name.clone(), line);
            variables.insert(name, value);
        }
        variables.extend(process.into_iter().filter(|(_, value)| !value.is_empty()));
        Self { variables, lines, problems }
    }

    /// A variable that the process itself has, whatever the file says.
    pub(super) fn of_the_process(&self, name: &str) -> Option<&str> {
        if self.lines.contains_key(name) { None } else { self.get(name) }
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub(super) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Where a variable is set.
    pub(super) fn origin(&self, name: &str) -> Origin {
        match self.lines.get(name) {
            Some(line) => Origin::EnvFile { line: *line, name: name.to_owned() },
            None => Origin::Variable(name.to_owned()),
        }
    }

    /// The variables that come from the file.
    pub(super) fn names_of_file(&self) -> impl Iterator<Item = &str> {
        self.lines.keys().map(String::as_str)
    }
}

/// The variables of a file that may be settings, each with its line.
#[derive(Default)]
struct EnvFile {
    variables: BTreeMap<String, (String, usize)>,
}

impl EnvFile {
    /// Reads the file. If there is none, it has no variables.
    fn read(path: &Path) -> Result<Self, Problem> {
        // A folder of this name is an environment of Python.
        if path.is_dir() {
            return Ok(Self::default());
        }
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(problem(None, format!("the file cannot be read: {error}"))),
        }
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let text = text.trim_start_matches('\u{feff}');
        let lines: Vec<&str> = text.lines().collect();
        let mut variables = BTreeMap::new();
        // The first line that no variable has been found in yet.
        let mut next = 0;
        for variable in dotenvy::from_read_iter(text.as_bytes()) {
            let (name, value) = variable.map_err(|error| unreadable(&lines, next, &error))?;
            let rest = lines.get(next..).unwrap_or_default();
            let Some(index) = rest.iter().position(|line| sets(line, &name)) else { continue };
            let line = next + index + 1;
            next += index + lines_of_one(rest.get(index..).unwrap_or_default());
            if is_taken(&name) {
                variables.insert(name, (value, line));
            }
        }
        Ok(Self { variables })
    }
}

fn is_taken(name: &str) -> bool {
    TAKEN.contains(&name) || (name.starts_with(PREFIX) && name != SWITCH)
}

/// Whether a line sets a variable.
fn sets(line: &str, name: &str) -> bool {
    let line = line.trim_start();
    let line = line.strip_prefix("export").filter(|rest| rest.starts_with(' ')).unwrap_or(line);
    let after = line.trim_start().strip_prefix(name);
    after.is_some_and(|after| after.trim_start().starts_with('='))
}

/// How many of these lines the first variable takes: a value in quotes may have several.
fn lines_of_one(lines: &[&str]) -> usize {
    let is_whole = |count: &usize| {
        let text = lines.get(..*count).unwrap_or_default().join("\n");
        dotenvy::from_read_iter(text.as_bytes()).next().is_some_and(|variable| variable.is_ok())
    };
    (1..=lines.len()).find(is_whole).unwrap_or(1)
}

/// The problem of a line, which is one of those from `next` on. The message shows no part of the line, which
/// may contain a password.
fn unreadable(lines: &[&str], next: usize, error: &dotenvy::Error) -> Problem {
    let dotenvy::Error::LineParse(found, _) = error else {
        return problem(None, format!("the file cannot be read: {error}"));
    };
    // The parser's error has the end of the line, or the whole line, or several.
    let found = found.lines().next().unwrap_or_default();
    let mut rest = lines.iter().enumerate().skip(next);
    let line = rest.find(|(_, line)| !line.trim_start().starts_with('#') && line.contains(found));
    problem(line.map(|(index, _)| index + 1), "the line is not `NAME=value`".to_owned())
}

fn problem(line: Option<usize>, message: String) -> Problem {
    let hint = format!(
        "a value with blanks or quotes needs quotes around it, as in `NAME=\"a b\"`; with \
         `{SWITCH}=false` preheat does not read the file"
    );
    Problem { origin: Origin::File { path: FILE.into(), line }, message, hint: Some(hint) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(process: &[(&str, &str)], file: &str) -> Environment {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        std::fs::write(&path, file).unwrap();
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Environment::with_file(process.iter().map(owned).collect(), &path)
    }

    #[test]
    fn a_file_adds_what_the_process_does_not_set_and_nothing_of_the_applications_own() {
        let file = "# of the application\nAPP_NAME='My app'\nexport DATABASE_URL=\"postgres://a/b\"\n\
                    REDIS_URL=redis://file # the cache\nHOSTNAME=0.0.0.0\nPREHEAT_JOBS=warm\n\
                    PREHEAT_RUNNER__BATCH=\nPREHEAT_CACHE__PREFIX=r1:\nDATABASE_URL=postgres://c/d\n";
        let process = [("REDIS_URL", "redis://process"), ("PREHEAT_CACHE__PREFIX", "")];
        let found = with(&process, file);
        let variables: Vec<_> = found.iter().collect();
        let expected = [
            ("DATABASE_URL", "postgres://c/d"),
            ("PREHEAT_JOBS", "warm"),
            ("REDIS_URL", "redis://process"),
        ];
        assert_eq!(variables, expected);
        assert_eq!(found.names_of_file().collect::<Vec<_>>(), ["DATABASE_URL", "PREHEAT_JOBS"]);
        let name = "DATABASE_URL".to_owned();
        assert_eq!(found.origin("DATABASE_URL"), Origin::EnvFile { line: 9, name });
        assert_eq!(found.origin("REDIS_URL"), Origin::Variable("REDIS_URL".to_owned()));
        assert!(found.problems().is_empty());
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named_by_its_number_and_never_shown() {
        for (file, line) in [
            ("REDIS_URL=redis://a\nTITLE=hush hush\n", 2),
            ("A=1\n\nhush\n", 3),
            ("A=1\nB=\"hush\nC=2\n", 2),
            ("hushed=1\n# hush\nhush # a comment\n", 3),
            ("A=\"hush hush\"\nB=hush hush\n", 2),
            ("A='\nhush hush\n'\n\nB=hush hush\n", 5),
        ] {
            let found = with(&[], file);
            let [problem] = found.problems() else { panic!("{file}: {:?}", found.problems()) };
            let text = problem.to_string();
            assert!(
                text.starts_with(&format!(".env:{line}: the line is not `NAME=value`")),
                "{text}"
            );
            assert!(!text.contains("hush"), "{text}");
        }
    }

    #[test]
    fn the_switch_and_a_missing_file_leave_the_process_alone() {
        let found = with(&[(SWITCH, "false")], "hush");
        assert!(found.problems().is_empty() && found.names_of_file().next().is_none());
        let found = with(&[(SWITCH, "off")], "REDIS_URL=redis://a");
        assert_eq!(
            found.problems().first().map(ToString::to_string).as_deref(),
            Some("variable `PREHEAT_DOTENV`: found `off`; allowed: `true` or `false`")
        );
        let none = Environment::with_file(BTreeMap::new(), Path::new("/no/such/.env"));
        assert!(none.problems().is_empty());
        let folder = tempfile::tempdir().unwrap();
        assert!(Environment::with_file(BTreeMap::new(), folder.path()).problems().is_empty());
    }
}
