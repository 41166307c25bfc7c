//! A problem in a job file: where it is, what was found, what is allowed, and what to do.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};
use serde::{Serialize, Serializer};

/// A file's text, kept so that later problems can be shown in it.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// One problem, or a warning.
#[derive(Clone, Debug)]
pub struct Problem {
    severity: Severity,
    place: ProblemPlace,
    message: String,
    allowed: Option<String>,
    notes: Vec<Note>,
    hint: Option<String>,
}

/// How serious a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    /// The job cannot work, or would write wrong values.
    Error,
    /// The job works, but most likely not as its author meant.
    Warning,
}

#[derive(Clone, Debug)]
enum ProblemPlace {
    /// A part of a text.
    Text { source: Arc<Source>, at: Range<usize> },
    /// A file as a whole.
    File(PathBuf),
}

/// Another part of the same text that has to do with the problem.
#[derive(Clone, Debug)]
struct Note {
    at: Range<usize>,
    text: String,
}

impl Problem {
    /// A problem with these bytes of a text.
    pub(super) fn at(source: &Arc<Source>, at: Range<usize>, message: impl Into<String>) -> Self {
        Self::new(
            ProblemPlace::Text { source: Arc::clone(source), at: within(&source.text, at) },
            message,
        )
    }

    /// A problem with a file as a whole.
    pub(super) fn of_file(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::new(ProblemPlace::File(path.into()), message)
    }

    fn new(place: ProblemPlace, message: impl Into<String>) -> Self {
        let (severity, message) = (Severity::Error, message.into());
        Self { severity, place, message, allowed: None, notes: Vec::new(), hint: None }
    }

    /// The same problem as a warning.
    #[must_use]
    pub fn into_warning(self) -> Self {
        Self { severity: Severity::Warning, ..self }
    }

    /// Adds what is allowed; it is shown beside the place.
    pub(super) fn allowed(mut self, text: impl Into<String>) -> Self {
        self.allowed = Some(text.into());
        self
    }

    /// Adds what to do.
    pub(super) fn hint(mut self, text: impl Into<String>) -> Self {
        self.hint = Some(text.into());
        self
    }

    /// Adds what to do, if there is a hint.
    pub(super) fn maybe_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }

    /// Adds a remark on other bytes of the same text.
    pub(super) fn note(mut self, at: Range<usize>, text: impl Into<String>) -> Self {
        if let ProblemPlace::Text { source, .. } = &self.place {
            self.notes.push(Note { at: within(&source.text, at), text: text.into() });
        }
        self
    }

    /// The file.
    pub fn file(&self) -> &Path {
        match &self.place {
            ProblemPlace::Text { source, .. } => &source.path,
            ProblemPlace::File(path) => path,
        }
    }

    /// The line and the column, in characters, both counted from 1; `None` for a file as a whole.
    pub fn line_and_column(&self) -> Option<(usize, usize)> {
        match &self.place {
            ProblemPlace::Text { source, at } => {
                let before = source.text.get(..at.start).unwrap_or_default();
                let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
                let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
                Some((before.matches('\n').count() + 1, column))
            }
            ProblemPlace::File(_) => None,
        }
    }

    /// What is wrong, in one line.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What is allowed at the place, if that can be said briefly.
    pub fn allowed_text(&self) -> Option<&str> {
        self.allowed.as_deref()
    }

    /// What to do about it.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The problem as text, with the lines of its file that it is about.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = level.primary_title(self.message.as_str());
        let path = self.file().display().to_string();
        let shown = match &self.place {
            ProblemPlace::Text { source, at } => {
                let meant = AnnotationKind::Primary.span(at.clone()).label(self.allowed.as_deref());
                let others = self.notes.iter().map(|note| {
                    AnnotationKind::Context.span(note.at.clone()).label(note.text.as_str())
                });
                let snippet = Snippet::source(source.text.as_str()).path(path);
                title.element(snippet.annotation(meant).annotations(others))
            }
            ProblemPlace::File(_) => title.element(Origin::path(path)),
        };
        let hint = self.hint.as_deref();
        let hint = hint.map(|hint| Level::HELP.with_name("hint").message(hint));
        renderer.render(&[shown.elements(hint)])
    }

    /// Whether its place is within this part of the text.
    pub(super) fn is_within(&self, part: &Range<usize>) -> bool {
        match &self.place {
            ProblemPlace::Text { at, .. } => part.start <= at.start && at.end <= part.end,
            ProblemPlace::File(_) => false,
        }
    }

    fn position(&self) -> usize {
        match &self.place {
            ProblemPlace::Text { at, .. } => at.start,
            ProblemPlace::File(_) => 0,
        }
    }

    fn order(&self, other: &Self) -> Ordering {
        let key = |problem: &Self| (problem.file().to_owned(), problem.position());
        key(self).cmp(&key(other)).then_with(|| self.message.cmp(&other.message))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Flat<'a> {
            severity: Severity,
            file: &'a Path,
            line: Option<usize>,
            column: Option<usize>,
            message: &'a str,
            allowed: Option<&'a str>,
            hint: Option<&'a str>,
        }
        let (line, column) = self.line_and_column().unzip();
        let (file, message) = (self.file(), self.message());
        let (allowed, hint) = (self.allowed_text(), self.hint_text());
        let severity = self.severity;
        Flat { severity, file, line, column, message, allowed, hint }.serialize(serializer)
    }
}

/// All problems, sorted by file and place. As an error, it contains at least one.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Sorts the problems into the order in which they are shown.
    pub fn new(problems: impl IntoIterator<Item = Problem>) -> Self {
        let mut problems: Vec<_> = problems.into_iter().collect();
        problems.sort_by(Problem::order);
        Self(problems)
    }

    /// The problems, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All problems as text, each with the lines of its file, and an empty line between two.
    pub fn render(&self, color: bool) -> String {
        self.0.iter().map(|problem| problem.render(color)).collect::<Vec<_>>().join("\n\n")
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Problems {}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The range, cut to the text and widened to whole characters.
fn within(text: &str, at: Range<usize>) -> Range<usize> {
    let start = text.floor_char_boundary(at.start);
    start..text.ceil_char_boundary(at.end).max(start)
}
