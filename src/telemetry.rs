//! Where logs go: to stderr, as text or JSON, in colour only on a terminal.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, PoisonError, RwLock};

use tracing::Subscriber;
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::{Log, LogFormat};
use crate::domain::shown::shown;

/// The log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter's directives are invalid.
    #[error("log filter `{filter}` cannot be read; as in `debug` or `info,preheat=debug`")]
    Filter {
        /// The filter as it was set.
        filter: String,
        /// The parser's error.
        source: ParseError,
    },
    /// The process has a log already.
    #[error("the log is set up twice")]
    Twice(#[from] TryInitError),
}

/// Starts logging for the whole process. With the writer that it returns, progress bars can make
/// room for a line.
pub fn init(log: &Log) -> Result<LogWriter, TelemetryError> {
    let writer = LogWriter::default();
    let colour = log.colour && io::stderr().is_terminal();
    let is_terminal = io::stderr().is_terminal();
    let lines = Lines { colour, fields: has_fields(log, is_terminal), whole_time: !is_terminal };
    match log.format {
        LogFormat::Text => text(log, lines, writer.clone())?.try_init()?,
        LogFormat::Json => json(log, writer.clone())?.try_init()?,
    }
    Ok(writer)
}

/// The form of text lines.
#[derive(Clone, Copy)]
struct Lines {
    colour: bool,
    /// Whether fields to search by follow the message. They repeat what the message says.
    fields: bool,
    /// Whether a line begins with the date and the microseconds, too.
    whole_time: bool,
}

impl FormatTime for Lines {
    /// The time in UTC. A terminal has no room for more than the time of day.
    fn format_time(&self, to: &mut Writer<'_>) -> std::fmt::Result {
        let mut text = String::new();
        SystemTime.format_time(&mut Writer::new(&mut text))?;
        let of_day = text.split_once('T').and_then(|(_date, time)| time.split('.').next());
        to.write_str(of_day.filter(|_| !self.whole_time).unwrap_or(&text))
    }
}

/// A person at a terminal reads messages, which say all that matters. Fields are for those who
/// search a file or ask for details.
fn has_fields(log: &Log, is_terminal: bool) -> bool {
    !is_terminal || ["debug", "trace"].iter().any(|level| log.filter.contains(level))
}

fn text<W>(log: &Log, lines: Lines, writer: W) -> Result<impl Subscriber, TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let Lines { colour, fields, .. } = lines;
    let time = lines;
    let format = fmt::format::debug_fn(move |writer, field, value| {
        let value = format!("{value:?}");
        match field.name() {
            // Further lines of a message are indented, so that none looks like another message.
            "message" => {
                let mut lines = value.lines().map(shown);
                writer.write_str(&lines.next().unwrap_or_default())?;
                lines.try_for_each(|line| write!(writer, "\n    {line}"))
            }
            name if fields => write!(writer, " {name}={}", shown(&value)),
            _ => Ok(()),
        }
    });
    let lines = fmt::fmt().with_env_filter(filter(log)?).with_writer(writer).fmt_fields(format);
    Ok(lines.with_timer(time).with_target(false).with_ansi(colour).finish())
}

fn json<W>(log: &Log, writer: W) -> Result<impl Subscriber, TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = fmt::fmt().with_env_filter(filter(log)?).with_writer(writer);
    Ok(lines.json().flatten_event(true).finish())
}

/// sqlx logs each line of `~/.pgpass` that it cannot read, with its contents.
const QUIET: &str = "sqlx_postgres::options::pgpass=off";

fn filter(log: &Log) -> Result<EnvFilter, TelemetryError> {
    let filter = EnvFilter::try_new(&log.filter)
        .map_err(|source| TelemetryError::Filter { filter: log.filter.clone(), source })?;
    Ok(match QUIET.parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_never) => filter,
    })
}

/// A function that clears the terminal of everything a line would tear, and then calls its argument
/// once.
pub type Around = Box<dyn Fn(&mut dyn FnMut()) + Send + Sync>;

/// Writes lines to stderr, through the function of [`Self::write_within`] if there is one.
#[derive(Clone, Default)]
pub struct LogWriter {
    around: Arc<RwLock<Option<Around>>>,
}

impl LogWriter {
    /// From now on, lines are written through this function, for example `MultiProgress::suspend`.
    pub fn write_within(&self, around: Around) {
        *self.around.write().unwrap_or_else(PoisonError::into_inner) = Some(around);
    }

    /// From now on, lines are written directly.
    pub fn write_plainly(&self) {
        *self.around.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn line(&self, to: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
        let around = self.around.read().unwrap_or_else(PoisonError::into_inner);
        let Some(around) = around.as_ref() else { return to.write_all(bytes) };
        let mut written = Ok(());
        around(&mut || written = to.write_all(bytes));
        written
    }
}

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // If stderr is gone, there is nobody to tell. An error here would make the subscriber write
        // to stderr and panic. The worker goes on without its log.
        drop(self.line(&mut io::stderr().lock(), bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log(filter: &str) -> Log {
        Log { format: LogFormat::Text, filter: filter.to_owned(), colour: true }
    }

    fn say_something() {
        tracing::info!(job = "services", "job `services` starts");
        tracing::debug!("a detail");
    }

    #[test]
    fn a_line_of_json_is_one_object_with_its_fields_at_the_top() {
        let lines = Written::default();
        let writer = lines.clone();
        let subscriber = json(&log("info"), move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, say_something);
        let bytes = lines.0.lock().unwrap().clone();
        let line: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["message"], "job `services` starts");
        assert_eq!(line["job"], "services");
        assert!(line["timestamp"].is_string());
    }

    #[test]
    fn a_line_of_text_has_colours_only_where_they_are_wanted() {
        for colour in [true, false] {
            let lines = Written::default();
            let writer = lines.clone();
            let how = Lines { colour, fields: true, whole_time: true };
            let subscriber = text(&log("debug"), how, move || writer.clone()).unwrap();
            tracing::subscriber::with_default(subscriber, say_something);
            let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
            assert!(text.contains("job `services` starts") && text.contains("a detail"), "{text}");
            assert_eq!(text.contains('\u{1b}'), colour, "{text:?}");
        }
    }

    #[test]
    fn a_line_of_text_is_one_line_whatever_the_data_and_has_fields_where_they_are_of_use() {
        for fields in [true, false] {
            let lines = Written::default();
            let writer = lines.clone();
            let how = Lines { colour: false, fields, whole_time: fields };
            let subscriber = text(&log("info"), how, move || writer.clone()).unwrap();
            tracing::subscriber::with_default(subscriber, || {
                tracing::warn!(
                    tenant = "a\u{1b}[2J\nb",
                    keys = 3,
                    "tenant `{}` fails",
                    "a\u{1b}[2J\nb"
                );
            });
            let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
            let (time, said) = text.split_once("WARN ").unwrap();
            assert_eq!(time.trim_end().len(), if fields { 27 } else { 8 }, "{time}");
            let message = "tenant `a\\u{1b}[2J\n    b` fails";
            let all = format!(r#"{message} tenant="a\u{{1b}}[2J\nb" keys=3"#);
            assert_eq!(said.trim_end(), if fields { all.as_str() } else { message });
        }
        assert!(has_fields(&log("info"), false) && has_fields(&log("info,preheat=debug"), true));
        assert!(!has_fields(&log("info"), true));
    }

    #[test]
    fn a_filter_that_is_none_is_refused_by_its_name() {
        let error = filter(&log("preheat=loud")).unwrap_err();
        assert!(error.to_string().starts_with("log filter `preheat=loud` cannot be read"));
    }

    #[test]
    fn lines_are_written_within_the_function_that_makes_room_for_them() {
        let writer = LogWriter::default();
        let rooms = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&rooms);
        let mut written = Vec::new();
        writer.line(&mut written, b"before\n").unwrap();
        writer.write_within(Box::new(move |write| {
            *counted.lock().unwrap() += 1;
            write();
        }));
        writer.line(&mut written, b"within\n").unwrap();
        writer.write_plainly();
        writer.line(&mut written, b"after\n").unwrap();
        assert_eq!(written, b"before\nwithin\nafter\n");
        assert_eq!(*rooms.lock().unwrap(), 1);
    }
}
