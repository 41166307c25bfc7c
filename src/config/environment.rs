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
        let EnvFile { variables: of_file, problems } = match is_read {
            Ok(true) => EnvFile::read(path),
            Ok(false) => EnvFile::default(),
            Err(message) => {
                let origin = Origin::Variable(SWITCH.to_owned());
                EnvFile::refused(Problem { origin, message, hint: None })
            }
        };
        // A variable that the process sets to nothing keeps that of the file out, too.
        let is_of_process = |name: &str| process.contains_key(name);
        let taken = of_file.into_iter().filter(|(name, _)| !is_of_process(name));
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
    problems: Vec<Problem>,
}

impl EnvFile {
    /// Reads the file. If there is none, it has no variables.
    fn read(path: &Path) -> Self {
        // A folder of this name is an environment of Python.
        if path.is_dir() {
            return Self::default();
        }
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => Self::refused(unreadable_file(&error.to_string())),
        }
    }

    fn refused(problem: Problem) -> Self {
        Self { variables: BTreeMap::new(), problems: vec![problem] }
    }

    /// Lines that cannot be read are left out. They are problems only where they set a variable of ours: other
    /// programs read the rest of the file, each in its own way.
    fn parse(text: &str) -> Self {
        let text = text.trim_start_matches('\u{feff}');
        let mut lines: Vec<&str> = text.lines().collect();
        let (mut starts, mut problems) = (Vec::new(), Vec::new());
        let mut next = 0;
        while let Some(line) = lines.get(next).copied() {
            if let Some(length) = lines_of_one(lines.get(next..).unwrap_or_default()) {
                starts.push((next + 1, name_of(line)));
                next += length;
                continue;
            }
            let name = name_of(line);
            if is_taken(name) {
                problems.push(unreadable_line(next + 1, name));
            }
            lines.splice(next..=next, [""]);
            next += 1;
        }
        let mut variables = BTreeMap::new();
        let mut starts = starts.into_iter();
        // All together, as a value may contain the variables before it.
        for variable in dotenvy::from_read_iter(lines.join("\n").as_bytes()) {
            let (name, value) = match variable {
                Ok(variable) => variable,
                Err(error) => return Self::refused(unreadable_file(&error.to_string())),
            };
            let Some((line, _)) = starts.find(|(_, start)| *start == name) else { continue };
            if is_taken(&name) {
                variables.insert(name, (value, line));
            }
        }
        Self { variables, problems }
    }
}

fn is_taken(name: &str) -> bool {
    TAKEN.contains(&name) || (name.starts_with(PREFIX) && name != SWITCH)
}

/// The name of the variable that a line sets, as far as it can be read.
fn name_of(line: &str) -> &str {
    let line = line.trim_start();
    let line = line.strip_prefix("export").filter(|rest| rest.starts_with(' ')).unwrap_or(line);
    let line = line.trim_start();
    let is_of_name =
        |character: char| character.is_ascii_alphanumeric() || "_.".contains(character);
    line.split(|character| !is_of_name(character)).next().unwrap_or_default()
}

/// How many of these lines the first one takes with its value: one that begins with a quote may have several.
/// `None` if it cannot be read.
fn lines_of_one(lines: &[&str]) -> Option<usize> {
    let first = lines.first()?.trim();
    let value = first.split_once('=').map(|(_, value)| value.trim_start()).unwrap_or_default();
    let most = if value.starts_with(['"', '\'']) { lines.len() } else { 1 };
    (1..=most).find(|count| {
        let text = lines.get(..*count).unwrap_or_default().join("\n");
        // Nothing is set by an empty line, a comment, and `export` of a variable alone.
        dotenvy::from_read_iter(text.as_bytes()).next().is_none_or(|variable| variable.is_ok())
    })
}

/// The problem of a line. The message shows no part of its value, which may be a password.
fn unreadable_line(line: usize, name: &str) -> Problem {
    let hint = format!(
        "a value with blanks or quotes needs quotes around it, as in `NAME=\"a b\"`; with \
         `{SWITCH}=false` preheat does not read the file"
    );
    let origin = Origin::EnvFile { line, name: name.to_owned() };
    Problem { origin, message: "the line is not `NAME=value`".to_owned(), hint: Some(hint) }
}

fn unreadable_file(why: &str) -> Problem {
    let origin = Origin::File { path: FILE.into(), line: None };
    let hint = format!("with `{SWITCH}=false` preheat does not read it");
    Problem { origin, message: format!("the file cannot be read: {why}"), hint: Some(hint) }
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
    fn a_line_of_ours_that_cannot_be_read_is_named_by_its_number_and_never_shown() {
        for (file, line) in [
            ("A=1\nREDIS_URL=hush hush\n", 2),
            ("A=1\n\nexport PREHEAT_JOBS hush\n", 3),
            ("A=1\nDATABASE_URL=\"hush\nC=2\n", 2),
            ("A='\nhush hush\n'\n\nREDIS_URL=hush's\n", 5),
        ] {
            let found = with(&[], file);
            let [problem] = found.problems() else { panic!("{file}: {:?}", found.problems()) };
            let text = problem.to_string();
            assert!(text.starts_with(&format!(".env:{line}: variable `")), "{text}");
            assert!(text.contains("the line is not `NAME=value`"), "{text}");
            assert!(!text.contains("hush"), "{text}");
        }
    }

    #[test]
    fn a_line_of_the_application_that_cannot_be_read_is_nothing_to_us() {
        for line in [
            "APP_NAME=My App",
            "GREETING=Bob's",
            "hush",
            "export",
            "KEY=\"not closed",
            "my name=x",
            "A=1 # it's a comment",
            "MAIL={\"a\": 'b'} c",
            "KEY=\"-----BEGIN\nREDIS_URL=redis://of-a-value\n-----END\"",
        ] {
            let file = format!(
                "CACHE_HOST=a\n{line}\nREDIS_URL=redis://${{CACHE_HOST}}\n{line}\nPREHEAT_JOBS=warm\n"
            );
            let found = with(&[], &file);
            assert!(found.problems().is_empty(), "{line}: {:?}", found.problems());
            let expected = [("PREHEAT_JOBS", "warm"), ("REDIS_URL", "redis://a")];
            assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{line}");
            let before = file.split("\nREDIS_URL=redis://$").next().unwrap().lines().count();
            let name = "REDIS_URL".to_owned();
            assert_eq!(found.origin("REDIS_URL"), Origin::EnvFile { line: before + 1, name });
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
