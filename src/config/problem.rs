//! Problems of settings, and how they are shown.

use std::fmt;
use std::path::PathBuf;

/// Everything that is wrong with the settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// At least one; sorted by line of the file, then by variable.
    pub problems: Vec<Problem>,
}

/// One problem. It never contains a secret value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where the setting comes from.
    pub origin: Origin,
    /// What is wrong: the setting, what was found, and what is allowed.
    pub message: String,
    /// What to do, if that is not obvious.
    pub hint: Option<String>,
}

/// Where a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A file.
    File {
        /// Its path.
        path: PathBuf,
        /// The line, counted from 1; `None` if the problem is about the whole file.
        line: Option<usize>,
    },
    /// A variable of the `.env` file.
    EnvFile {
        /// The line, counted from 1.
        line: usize,
        /// Its name.
        name: String,
    },
    /// An environment variable.
    Variable(String),
    /// It is not set.
    Unset,
}

impl Problem {
    pub(super) fn no_database() -> Self {
        Self::unset("database", "DATABASE_URL", "postgres://user:password@host/name")
    }

    pub(super) fn no_cache() -> Self {
        Self::unset("cache", "REDIS_URL", "redis://host:6379")
    }

    fn unset(section: &str, variable: &str, example: &str) -> Self {
        Self {
            origin: Origin::Unset,
            message: format!("setting `{section}.url` is missing"),
            hint: Some(format!("set `{variable}` or `[{section}] url`, as in `{example}`")),
        }
    }
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem] }
    }
}

/// Where a value comes from, in words.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: Some(line) } => write!(f, "{}:{line}", path.display()),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::EnvFile { line, name } => write!(f, ".env:{line} (`{name}`)"),
            Self::Variable(name) => write!(f, "variable `{name}`"),
            Self::Unset => f.write_str("default"),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::File { path, line: Some(line) } => write!(f, "{}:{line}: ", path.display())?,
            Origin::File { path, line: None } => write!(f, "{}: ", path.display())?,
            Origin::EnvFile { line, name } => write!(f, ".env:{line}: variable `{name}`: ")?,
            Origin::Variable(name) => write!(f, "variable `{name}`: ")?,
            Origin::Unset => {}
        }
        f.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}
