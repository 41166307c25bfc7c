//! Results go to stdout, everything else to stderr.

use std::io::{self, Write};
use std::time::Duration;

use chrono::SecondsFormat;
use comfy_table::{ColumnConstraint, ContentArrangement, Table};
use serde::Serialize;
use serde_json::json;

use crate::adapter::clock::SystemClock;
pub(super) use crate::domain::count::{count, counted};
use crate::domain::duration;
use crate::domain::shown::is_harmful;
pub(super) use crate::domain::shown::shown;
use crate::engine::ports::Clock;

/// Writes a result. It is no error if the reader has gone, as in `preheat … | head`.
pub(super) fn result(text: &str) -> io::Result<()> {
    write(&harmless(text, escaped))
}

/// Writes a result in yellow, if colours are on.
pub(super) fn caution(text: &str) -> io::Result<()> {
    write(&format!("\u{1b}[33m{}\u{1b}[0m", harmless(text, escaped)))
}

/// Writes a result as JSON.
pub(super) fn json(value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    write(&harmless(&text, escaped_in_json))
}

/// A part of a JSON text, with escapes in place of everything that a terminal would obey.
pub(super) fn json_text(text: &str) -> String {
    harmless(text, escaped_in_json)
}

fn write(text: &str) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Writes a problem to stderr. If stderr is gone too, there is nobody to tell.
pub(super) fn problem(text: &str) {
    let mut err = anstream::stderr().lock();
    drop(writeln!(err, "{}", harmless(text, escaped)));
}

/// Writes a problem whose text contains colour codes. No other control sequence reaches the
/// terminal.
pub(super) fn coloured_problem(text: &str) {
    let mut err = anstream::stderr().lock();
    drop(writeln!(err, "{}", with_colours_only(text)));
}

/// Writes a problem as a line of a JSON log.
pub(super) fn problem_as_json(text: &str) {
    let timestamp = SystemClock::new().now().to_rfc3339_opts(SecondsFormat::Micros, true);
    let text = anstream::adapter::strip_str(text).to_string();
    let message = text.strip_prefix("error: ").unwrap_or(&text);
    let line = json!({ "timestamp": timestamp, "level": "ERROR", "message": message });
    problem(&line.to_string());
}

fn with_colours_only(text: &str) -> String {
    const BEGIN: &str = "\u{1b}[";
    let mut pieces = text.split(BEGIN);
    let mut safe = harmless(pieces.next().unwrap_or_default(), escaped);
    for piece in pieces {
        let digits = |code: &str| code.bytes().all(|byte| byte.is_ascii_digit() || byte == b';');
        let colour = piece.split_once('m').filter(|(code, _)| digits(code));
        match colour {
            Some((code, rest)) => {
                safe.extend([BEGIN, code, "m"]);
                safe.push_str(&harmless(rest, escaped));
            }
            None => safe.push_str(&harmless(&format!("{BEGIN}{piece}"), escaped)),
        }
    }
    safe
}

/// Escapes every character that could move a terminal's cursor, or change its colours or writing
/// direction. Newline and tab are the only control characters that stay.
fn harmless(text: &str, escape: fn(char) -> String) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let ends_a_line = character == '\r' && characters.peek() == Some(&'\n');
        match character {
            '\n' | '\t' => safe.push(character),
            _ if ends_a_line => safe.push(character),
            _ if is_harmful(character) => safe.push_str(&escape(character)),
            _ => safe.push(character),
        }
    }
    safe
}

fn escaped(character: char) -> String {
    character.escape_default().to_string()
}

/// An escape in JSON's syntax, which differs from Rust's. All escaped characters are below U+10000,
/// so one escape is enough.
fn escaped_in_json(character: char) -> String {
    format!("\\u{:04x}", u32::from(character))
}

/// The width limit of a result: the width of the terminal. A file or a pipe has no limit.
pub(super) fn columns() -> Option<u16> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(size.ws_col).filter(|columns| *columns > 0)
}

/// Wraps a text that follows a title of `title` columns to the width of the terminal.
pub(super) fn wrapped(title: usize, text: &str) -> String {
    wrapped_to(columns(), title, text)
}

/// Wraps a text that follows a title of `title` columns to this width; without one, it stays one line.
pub(super) fn wrapped_to(columns: Option<u16>, title: usize, text: &str) -> String {
    let room = columns.map_or(usize::MAX, |columns| usize::from(columns).saturating_sub(title));
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        let has_room = |line: &&mut String| line.chars().count() + 1 + word.chars().count() <= room;
        match lines.last_mut().filter(has_room) {
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push(word.to_owned()),
        }
    }
    lines.join(&format!("\n{:title$}", ""))
}

/// Limits a table to the terminal's width. Its first column wraps, its numbers do not.
pub(super) fn fit(table: &mut Table) {
    pack(table);
    if let Some(columns) = columns() {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(columns);
    }
}

/// Puts a table's columns one space apart.
pub(super) fn pack(table: &mut Table) {
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((u16::from(index > 0), 0));
        if index > 0 {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
}

/// Whether problems are shown in colour.
pub(super) fn is_coloured() -> bool {
    anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never
}

/// An error and its causes, the outermost first, each printed once.
pub(super) fn chain(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}");
    // A wrapper that repeats its cause's message adds nothing.
    let mut said = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if cause != said {
            text.push_str("\n  caused by: ");
            text.push_str(&shown(&cause));
            said = cause;
        }
    }
    text
}

/// A number of bytes for people: `1.5 MB`.
pub(super) fn bytes(count: u64) -> String {
    indicatif::DecimalBytes(count).to_string()
}

/// Bytes of memory for people, in Redis' units: `1.50 MiB`.
pub(super) fn memory(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// A duration for people: `1.25s`, `340ms`.
pub(super) fn seconds(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0..1_000 => format!("{millis}ms"),
        1_000..60_000 => format!("{:.2}s", duration.as_secs_f64()),
        _ => duration::text(Duration::from_secs(duration.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn lines_stay_and_nothing_that_a_terminal_would_obey() {
        assert_eq!(harmless("a\r\nb\tc\rd\u{1b}[2J", escaped), "a\r\nb\tc\\rd\\u{1b}[2J");
        let hostile = "a\u{1b}[31m\u{9b}2J\u{202e}\u{7f}\r\n";
        let json = serde_json::to_string(hostile).unwrap();
        let json = harmless(&json, escaped_in_json);
        assert!(!json.chars().any(is_harmful), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), hostile);
    }

    #[test]
    fn of_what_a_terminal_would_obey_only_colours_are_left_in_a_text_that_has_some() {
        let text = "\u{1b}[1m\u{1b}[91merror\u{1b}[0m: \u{1b}[2Jx\u{1b}]0;title\u{7}\u{1b}[31";
        let left = "\u{1b}[1m\u{1b}[91merror\u{1b}[0m: \\u{1b}[2Jx\\u{1b}]0;title\\u{7}\\u{1b}[31";
        assert_eq!(with_colours_only(text), left);
    }

    #[test]
    fn an_error_is_printed_once_with_its_causes() {
        let error = Err::<(), _>(io::Error::other("no such host"))
            .context("no such host")
            .context("could not reach the cache")
            .unwrap_err();
        assert_eq!(chain(&error), "error: could not reach the cache\n  caused by: no such host");
    }
}
