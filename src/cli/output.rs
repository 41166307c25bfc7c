//! Results go to stdout, everything else to stderr.

use std::io::{self, Write};

use chrono::SecondsFormat;
use serde::Serialize;
use serde_json::json;

use crate::adapter::clock::SystemClock;
use crate::engine::port::Clock;

/// Writes a result. A reader that has gone (`preheat … | head`) is no error.
pub(super) fn result(text: &str) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Writes a result as JSON.
pub(super) fn json(value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    result(&text)
}

/// Writes what is wrong; where even stderr is gone, there is nobody to tell.
pub(super) fn problem(text: &str) {
    let mut err = anstream::stderr().lock();
    drop(writeln!(err, "{text}"));
}

/// The same as a line of a log in JSON.
pub(super) fn problem_as_json(text: &str) {
    let timestamp = SystemClock::new().now().to_rfc3339_opts(SecondsFormat::Micros, true);
    let message = text.strip_prefix("error: ").unwrap_or(text);
    let line = json!({ "timestamp": timestamp, "level": "ERROR", "message": message });
    problem(&line.to_string());
}

/// Whether problems are shown in colour.
pub(super) fn is_coloured() -> bool {
    anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never
}

/// An error and what caused it, each once, the outermost first.
pub(super) fn chain(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}");
    // An error that is a new name for its cause says the same once more.
    let mut said = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if cause != said {
            text.push_str("\n  caused by: ");
            text.push_str(&cause);
            said = cause;
        }
    }
    text
}

/// A number of bytes for people: `1.5 MB`.
pub(super) fn bytes(count: u64) -> String {
    indicatif::DecimalBytes(count).to_string()
}

/// A count for people: `17,000`.
pub(super) fn count(count: u64) -> String {
    indicatif::HumanCount(count).to_string()
}

/// Some things: `1 query`, `6 keys`.
pub(super) fn counted(number: u64, one: &str, several: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { several })
}

/// A duration for people: `1.25s`, `340ms`.
pub(super) fn seconds(duration: std::time::Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0..1_000 => format!("{millis}ms"),
        1_000..60_000 => format!("{:.2}s", duration.as_secs_f64()),
        _ => humantime::format_duration(std::time::Duration::from_secs(duration.as_secs()))
            .to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn an_error_is_printed_once_with_its_causes() {
        let error = Err::<(), _>(io::Error::other("no such host"))
            .context("no such host")
            .context("could not reach the cache")
            .unwrap_err();
        assert_eq!(chain(&error), "error: could not reach the cache\n  caused by: no such host");
    }
}
