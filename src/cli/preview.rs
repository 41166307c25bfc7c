//! `preheat preview`: shows the keys and values of one tenant, and writes nothing.

use std::io::{self, IsTerminal};
use std::num::NonZeroUsize;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use indicatif::MultiProgress;
use serde::Serialize;
use serde_json::value::RawValue;

use super::load::Loaded;
use super::{Exit, Failure, Global, bars, complete, output};
use crate::adapter::clock::SystemClock;
use crate::adapter::postgres::PostgresSource;
use crate::app;
use crate::domain::date::{first_dates, keep_with_zone};
use crate::domain::duration;
use crate::domain::entry::{Entries, Entry, entries};
use crate::domain::job::{Job, KeyKind, Scope};
use crate::domain::layout::{Checks, Layout};
use crate::domain::report;
use crate::domain::row::{Limit, Rows};
use crate::domain::tenant::{Batch, TenantId};
use crate::engine::ports::{Clock, Read, Source};

/// A terminal shows this many characters of a value; a page of them would hide the other keys.
const SHOWN_ON_TERMINAL: usize = 1_000;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The job
    #[arg(value_name = "JOB", add = complete::jobs())]
    name: String,
    /// The tenant; without this option, the first one that the tenant query returns
    #[arg(long, value_name = "ID")]
    tenant: Option<String>,
    /// Show at most this many keys
    #[arg(long, value_name = "N", default_value = "10")]
    limit: NonZeroUsize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    let loaded = global.load(&MultiProgress::new())?;
    let jobs = loaded.select_any(slice::from_ref(&options.name))?;
    let Some(job) = jobs.first() else { return Ok(Exit::Usage) };
    // The server refuses every write, whatever the settings say.
    let source = app::connect_source(&loaded.settings).await?.reading_only();
    let batch = batch(&source, job, options.tenant.as_deref()).await?;
    let now = SystemClock::new().now();
    let dates = first_dates(job, &batch, now);
    let mut rows = Rows::default();
    let limit = Limit::Tenant(loaded.settings.runner.max_tenant_bytes);
    rows.reset(job.key_columns().len(), limit);
    let read = Read { batch: &batch, first_dates: &dates, timeout: job.timeout };
    source.read(job, read, &mut rows).await?;
    let checks = Checks::new(Layout::new(loaded.files.jobs(), source.id_class()), job);
    let found = entries(job, &checks, &batch, &dates, &rows);
    let preview = Preview::new(job, &batch, &found, &loaded, options.limit);
    if options.json {
        output::json(&preview)?;
    } else {
        output::result(&preview.text(&options))?;
    }
    Ok(if preview.failures.is_empty() { Exit::Ok } else { Exit::Failed })
}

/// The one tenant to read, or that of a global job.
async fn batch(source: &PostgresSource, job: &Job, tenant: Option<&str>) -> Result<Batch, Failure> {
    let refused = |message: String, hint: &str| {
        Err(Failure::usage(anyhow::anyhow!("{message}\n  hint: {hint}")))
    };
    let name = &job.name;
    let tenants = match (job.scope, tenant) {
        (Scope::Global, None) => return Ok(Batch::global()),
        (Scope::Global, Some(_)) => {
            let message = format!("job `{name}` has no tenants: its file says `tenants = false`");
            return refused(message, "leave `--tenant` out");
        }
        (Scope::Tenants, Some(id)) => source.tenants_among(&[TenantId::new(id)]).await?,
        (Scope::Tenants, None) => source.tenants().await?,
    };
    if tenants.is_empty() {
        return match tenant {
            Some(id) => refused(
                format!("the tenant query does not return the tenant `{}`", output::shown(id)),
                "write the id exactly as the query of `tenants.sql` returns it",
            ),
            None => refused(
                "the tenant query returns no tenant".to_owned(),
                "see `tenants.sql` in the settings",
            ),
        };
    }
    let tenants = Arc::new(tenants);
    let (mut first, mut without_zone) = (vec![0], None);
    keep_with_zone(job, &tenants, &mut first, SystemClock::new().now(), |tenant, error| {
        let id = output::shown(tenant.unwrap_or_default());
        without_zone = Some(format!("error: tenant `{id}` has no keys: {error}"));
    });
    match without_zone {
        Some(text) => Err(Failure::shown(Exit::Failed, text)),
        None => Ok(Batch::new(tenants, first)),
    }
}

/// What `--json` prints; `docs/authoring.md` says what each member means.
#[derive(Serialize)]
struct Preview<'a> {
    job: &'a str,
    tenant: Option<&'a str>,
    /// How many keys there are, those that are not shown included.
    key_count: usize,
    /// The bytes of all their values.
    bytes: usize,
    keys: Vec<KeyPreview>,
    failures: Vec<&'a report::Failure>,
}

#[derive(Serialize)]
struct KeyPreview {
    /// The key, with the cache's prefix.
    key: String,
    kind: &'static str,
    ttl_seconds: f64,
    bytes: usize,
    /// The value as a client reads it.
    value: Box<RawValue>,
}

impl<'a> Preview<'a> {
    fn new(
        job: &'a Job,
        batch: &'a Batch,
        found: &'a Entries<'_>,
        loaded: &Loaded,
        limit: NonZeroUsize,
    ) -> Self {
        let prefix = &loaded.settings.cache.prefix;
        let keys = found.writes.iter().take(limit.get());
        Self {
            job: job.name.as_str(),
            tenant: batch.tenant(0).map(|tenant| tenant.id()),
            key_count: found.writes.len(),
            bytes: found.writes.iter().map(|entry| entry.value.len()).sum(),
            keys: keys.map(|entry| KeyPreview::new(entry, prefix)).collect(),
            failures: found.failures.iter().map(|(_, failure)| failure).collect(),
        }
    }

    fn text(&self, options: &Options) -> String {
        let whose = match (self.tenant, &options.tenant) {
            (None, _) => String::new(),
            (Some(id), Some(_)) => format!(", tenant `{}`", output::shown(id)),
            (Some(id), None) => format!(", tenant `{}` (the first one)", output::shown(id)),
        };
        let keys = output::counted(self.key_count as u64, "key", "keys");
        let bytes = output::bytes(self.bytes as u64);
        let head = format!("job `{}`{whose}: {keys}, {bytes}; nothing is written", self.job);
        let mut parts = vec![output::wrapped(0, &head) + "\n"];
        parts.extend(self.keys.iter().map(KeyPreview::text));
        let left = (self.key_count - self.keys.len()) as u64;
        if left > 0 {
            let more = output::counted(left, "more key", "more keys");
            parts.push(format!("\n{more}: `--limit {}` shows all\n", self.key_count));
        }
        let failures = self.failures.iter();
        parts.extend(
            failures.map(|failure| format!("\ncannot be written: {}\n", bars::failed(failure))),
        );
        parts.concat()
    }
}

impl KeyPreview {
    fn new(entry: &Entry<'_>, prefix: &str) -> Self {
        let text = String::from_utf8_lossy(&entry.value.to_vec()).into_owned();
        let kind = match entry.kind {
            KeyKind::Static => "static",
            KeyKind::Data => "data",
            KeyKind::Shared => "shared",
        };
        Self {
            key: format!("{prefix}{}", entry.key),
            kind,
            ttl_seconds: entry.ttl.as_secs_f64(),
            bytes: entry.value.len(),
            // The encoder writes JSON only.
            value: RawValue::from_string(text).unwrap_or_default(),
        }
    }

    fn text(&self) -> String {
        let Self { key, kind, ttl_seconds, bytes, value } = self;
        let ttl = duration::text(Duration::from_secs_f64(ttl_seconds.round()));
        let (key, bytes) = (output::shown(key), output::bytes(*bytes as u64));
        let value = output::json_text(&value_text(value.get(), io::stdout().is_terminal()));
        format!("\n{key}\n  {kind} key, lives {ttl}, {bytes}\n{value}\n")
    }
}

/// A value, shortened on a terminal.
fn value_text(value: &str, is_terminal: bool) -> String {
    let end = value.char_indices().nth(SHOWN_ON_TERMINAL).filter(|_| is_terminal);
    match end.and_then(|(end, _)| value.split_at_checked(end)) {
        None => value.to_owned(),
        Some((head, rest)) => {
            let left = output::bytes(rest.len() as u64);
            format!("{head}… {left} more; a file, a pipe and `--json` get the whole value")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_value_is_whole_where_a_program_reads_it() {
        let long = "ä".repeat(SHOWN_ON_TERMINAL + 5);
        assert_eq!(value_text(&long, false), long);
        let shown = value_text(&long, true);
        assert!(shown.starts_with(&"ä".repeat(SHOWN_ON_TERMINAL)), "{shown}");
        assert!(shown.contains("… 10 B more"), "{shown}");
        assert_eq!(value_text("[]", true), "[]");
    }
}
