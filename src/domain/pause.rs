//! A pause of a job: until it ends, only people start the job's runs.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::job::JobName;
use super::who::{Who, is_invisible};

/// The longest note, in characters.
pub const MAX_NOTE: usize = 200;

/// Why and since when a job is paused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// The reason, as the person who paused the job wrote it.
    pub note: Note,
    /// Who paused it.
    pub by: Who,
    /// Since when.
    pub since: DateTime<Utc>,
    /// When it ends by itself; `None` if somebody has to resume the job.
    pub until: Option<DateTime<Utc>>,
}

/// The pauses of all jobs, by name. A job that is gone keeps its pause, so that it is still paused
/// when its file comes back.
pub type Pauses = BTreeMap<JobName, Pause>;

impl Pause {
    /// Whether the pause has ended by itself.
    pub fn is_over(&self, now: DateTime<Utc>) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// Why a job is paused: one line of text.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct Note(String);

/// A text cannot be a note.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// It says nothing.
    #[error("a pause needs a note, so that others know why the job does not run")]
    Empty,
    /// It is too long.
    #[error("a note has at most {MAX_NOTE} characters")]
    TooLong,
}

impl Note {
    /// A note from outside: without spaces at its ends and without characters that show nothing.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let line = text.chars().map(|char| if char.is_whitespace() { ' ' } else { char });
        let shown: String = line.filter(|char| !is_invisible(*char)).collect();
        let note = shown.trim();
        match note.chars().count() {
            0 => Err(NoteError::Empty),
            1..=MAX_NOTE => Ok(Self(note.to_owned())),
            _ => Err(NoteError::TooLong),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Note {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Note {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_one_line_that_says_something() {
        assert_eq!(Note::parse(" vet\nmigration\u{7} ").unwrap().as_str(), "vet migration");
        assert_eq!(Note::parse(" \n"), Err(NoteError::Empty));
        Note::parse(&"ö".repeat(MAX_NOTE)).unwrap();
        assert_eq!(Note::parse(&"x".repeat(MAX_NOTE + 1)), Err(NoteError::TooLong));
    }

    #[test]
    fn a_pause_ends_by_itself_if_it_says_when() {
        let at = |second| DateTime::from_timestamp(second, 0).unwrap();
        let pause = |until| Pause {
            note: Note::parse("migration").unwrap(),
            by: Who::token(),
            since: at(0),
            until,
        };
        assert!(!pause(None).is_over(at(1_000_000)));
        assert!(!pause(Some(at(60))).is_over(at(59)));
        assert!(pause(Some(at(60))).is_over(at(60)));
        let text = serde_json::to_string(&pause(Some(at(60)))).unwrap();
        assert_eq!(serde_json::from_str::<Pause>(&text).unwrap(), pause(Some(at(60))));
    }
}
