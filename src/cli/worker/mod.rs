//! The commands that ask and steer a running worker, by its HTTP address.

#![expect(clippy::indexing_slicing, reason = "a field that a JSON value lacks is null")]

pub(super) mod pause;
pub(super) mod run;
pub(super) mod runs;
pub(super) mod status;
pub(super) mod tenants;

use std::time::Duration;

use comfy_table::{Table, presets};
use indicatif::MultiProgress;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::{Exit, Failure, Global, output};
use crate::adapter::clock::SystemClock;
use crate::domain::duration;
use crate::engine::ports::Clock;
use crate::http;
use crate::http::client::{Answer, Question, WorkerUrl, ask};

/// The longest wait for an answer: longer than the worker's own limit.
const MAX_TIME: Duration = Duration::from_secs(15);
/// The size limit of an answer: 200 jobs take less than a megabyte.
const MAX_ANSWER: u64 = 16 * 1024 * 1024;
/// Where a text is cut that does not fit into its column.
const ELLIPSIS: char = '…';
/// The least width of a column of messages. Where the terminal leaves less, a message has lines of its own.
const MIN_MESSAGE: usize = 40;

/// The options of these commands.
#[derive(Debug, clap::Args)]
pub(super) struct WorkerOptions {
    /// The worker's address, as in `http://127.0.0.1:9464`; else that of `http.listen`
    #[arg(long, value_name = "URL")]
    url: Option<WorkerUrl>,
    /// Print the worker's answer as JSON to stdout
    #[arg(long)]
    json: bool,
}

/// A running worker.
pub(super) struct Worker {
    url: WorkerUrl,
    /// For requests that change something.
    token: Option<SecretString>,
    /// For requests that look at something.
    read_token: Option<SecretString>,
}

impl Worker {
    /// The worker that the options and the settings name.
    pub(super) fn of(options: &WorkerOptions, global: &Global) -> Result<Self, Failure> {
        let settings = global.settings(&MultiProgress::new())?;
        let listen = || WorkerUrl::from(http::reachable(settings.http.listen));
        let url = options.url.clone().unwrap_or_else(listen);
        let token = settings.http.token.clone();
        let read_token = token.clone().or_else(|| settings.http.read_token.clone());
        Ok(Self { url, token, read_token })
    }

    /// What the worker answers to a question.
    pub(super) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.ask("GET", path, "").await
    }

    /// What the worker answers to a request that changes something.
    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.ask("POST", path, &body.to_string()).await
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> Result<Value, Failure> {
        let token = if method == "POST" { &self.token } else { &self.read_token };
        let token = token.as_ref().map(ExposeSecret::expose_secret);
        let question =
            Question { method, path, token, body, max_time: MAX_TIME, max_answer: MAX_ANSWER };
        let answer = ask(&self.url, question).await.map_err(|error| {
            Failure::shown(
                Exit::Unreachable,
                format!(
                    "error: could not ask the worker at {}\n  caused by: {error}\n  hint: is \
                     `preheat serve` running? `--url` or `http.listen` say where",
                    self.url
                ),
            )
        })?;
        self.read(answer)
    }

    fn read(&self, Answer { status, body }: Answer) -> Result<Value, Failure> {
        let value = serde_json::from_str::<Value>(&body).unwrap_or_default();
        if matches!(status, 200 | 202) && !value.is_null() {
            return Ok(value);
        }
        let error = &value["error"];
        let message = error["message"].as_str().map_or_else(
            || format!("{} answered {status}, and not as a worker does", self.url),
            output::shown,
        );
        let (exit, hint) = match (status, error["code"].as_str()) {
            (401, _) if self.read_token.is_none() => {
                (Exit::Usage, Some("set `PREHEAT_HTTP__TOKEN` or `[http] token`"))
            }
            (401, _) => (Exit::Usage, Some("the settings here have another token than the worker")),
            (503, Some("starting" | "draining")) => (Exit::Unreachable, None),
            (400..=428, Some(_)) => (Exit::Usage, None),
            (_, Some(_)) => (Exit::Failed, None),
            (_, None) => (Exit::Unreachable, Some("`--url` names the worker, with its path")),
        };
        let hint = hint.map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
        Err(Failure::shown(exit, format!("error: {message}{hint}")))
    }
}

/// A path segment, or a value in a query.
fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// A table without lines, fitted to the terminal.
fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.to_vec());
    table.add_rows(rows);
    output::fit(&mut table);
    let lines = table.to_string();
    let lines: Vec<_> = lines.lines().map(str::trim_end).collect();
    lines.join("\n") + "\n"
}

/// A table whose last column has messages of any length, which are never cut.
fn table_with_messages(
    header: &[&str],
    rows: impl IntoIterator<Item = (Vec<String>, String)>,
) -> String {
    let (rows, messages): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    laid_out(header, rows, &messages, output::columns())
}

/// A row is one line. Its message follows it, wrapped to the width that is left, or stands below it where
/// little is left.
fn laid_out(
    header: &[&str],
    rows: Vec<Vec<String>>,
    messages: &[String],
    columns: Option<u16>,
) -> String {
    let (title, header) = header.split_last().unwrap_or((&"", &[]));
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.to_vec());
    table.add_rows(rows);
    output::pack(&mut table);
    let table = table.to_string();
    let width = table.lines().map(|line| line.chars().count()).max().unwrap_or_default();
    let is_beside = columns.is_none_or(|columns| usize::from(columns) > width + MIN_MESSAGE);
    let mut text = String::new();
    let title = if is_beside { *title } else { "" };
    let messages = std::iter::once(title).chain(messages.iter().map(String::as_str));
    for (line, message) in table.lines().zip(messages) {
        let line = match (message, is_beside) {
            ("", _) => line.trim_end().to_owned(),
            (message, true) => {
                format!("{line} {}", output::wrapped_to(columns, width + 1, message))
            }
            (message, false) => {
                format!("{}\n  {}", line.trim_end(), output::wrapped_to(columns, 2, message))
            }
        };
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// The first failure of a run: its kind and its message; empty if there is none.
fn first_failure(run: &Value) -> String {
    let failure = &run["report"]["failures"][0];
    if failure.is_null() {
        return String::new();
    }
    format!("{}: {}", text_of(&failure["kind"]), text_of(&failure["message"]))
}

/// A text of an answer.
fn text_of(value: &Value) -> String {
    output::shown(value.as_str().unwrap_or_default())
}

/// A text of an answer, cut to a width.
fn cut(value: &Value, width: usize) -> String {
    let text = text_of(value);
    if text.chars().count() <= width {
        return text;
    }
    text.chars().take(width.saturating_sub(1)).chain([ELLIPSIS]).collect()
}

/// How long ago, or in how long, a time of an answer is: `4m ago`, `in 2h`; `-` if there is none.
fn when(value: &Value) -> String {
    let at = value.as_str().and_then(|text| chrono::DateTime::parse_from_rfc3339(text).ok());
    let Some(at) = at else { return "-".to_owned() };
    let apart = SystemClock::new().now().signed_duration_since(at);
    let text = span(apart.abs().to_std().unwrap_or_default());
    if apart.num_milliseconds() >= 0 { format!("{text} ago") } else { format!("in {text}") }
}

/// A duration in its largest unit.
fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let whole = match seconds {
        0..120 => seconds,
        120..7_200 => seconds / 60 * 60,
        7_200..172_800 => seconds / 3_600 * 3_600,
        _ => seconds / 86_400 * 86_400,
    };
    match whole {
        0 => "0s".to_owned(),
        whole => duration::text(Duration::from_secs(whole)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_one_unit_or_two() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (90, "1m30s"), (150, "2m"), (7_199, "1h59m"), (90_000, "1d1h")]
        {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_message_has_the_width_that_is_left_and_is_never_cut() {
        let message = "unavailable: the cache counts as down, so this run wrote nothing";
        let lay = |columns| {
            let rows = vec![vec!["fleet".to_owned(), "failed".to_owned()], vec!["a".to_owned(); 2]];
            let messages = [message.to_owned(), String::new()];
            laid_out(&["job", "outcome", "error"], rows, &messages, columns)
        };
        let title = "job   outcome error\n";
        assert_eq!(lay(None), format!("{title}fleet failed  {message}\na     a\n"));
        let wrapped = "fleet failed  unavailable: the cache counts as down, so\n              \
                       this run wrote nothing\na     a\n";
        assert_eq!(lay(Some(56)), format!("{title}{wrapped}"));
        let below = "job   outcome\nfleet failed\n  unavailable: the cache counts as down,\n  so this \
                     run wrote nothing\na     a\n";
        assert_eq!(lay(Some(40)), below);
    }

    #[test]
    fn a_text_is_cut_to_its_column() {
        assert_eq!(cut(&Value::from("short"), 8), "short");
        assert_eq!(cut(&Value::from("äöüäöüäöü"), 4), "äöü…");
        assert_eq!(cut(&Value::Null, 4), "");
    }
}
