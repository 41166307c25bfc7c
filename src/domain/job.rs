//! A job: a named, checked description of what to keep warm.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::json::Encoding;
use super::key::KeyTemplate;
use super::order::OrderColumn;
use super::schedule::Schedule;

/// A job's name: the name of its file. Letters, digits, `-` and `_`, so that it is safe in a key, a
/// route and a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobName(Arc<str>);

/// A name that is empty, too long, or has a character other than letters, digits, `-` and `_`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a job's name has letters, digits, `-` and `_`, at most 64: `{0}`")]
pub struct BadJobName(pub String);

impl JobName {
    /// Long enough for any readable name, short enough for a metric's label.
    pub const MAX_BYTES: usize = 64;

    /// Reads a name.
    pub fn parse(text: &str) -> Result<Self, BadJobName> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if text.is_empty() || text.len() > Self::MAX_BYTES || !text.bytes().all(allowed) {
            return Err(BadJobName(text.to_owned()));
        }
        Ok(Self(Arc::from(text)))
    }

    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A share of something, from none to all, stored as a fraction of one.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Share(f64);

impl Share {
    /// The share of nothing.
    pub const NONE: Self = Self(0.0);

    /// The share of this many per cent, `0.0` to `100.0`; `None` for any other number.
    pub fn from_percent(percent: f64) -> Option<Self> {
        (0.0..=100.0).contains(&percent).then_some(Self(percent / 100.0))
    }

    /// The fraction, `0.0` to `1.0`.
    pub fn fraction(self) -> f64 {
        self.0
    }

    /// This share of a duration.
    pub fn of(self, duration: Duration) -> Duration {
        duration.mul_f64(self.0)
    }

    /// Whether a part is at most this share of the whole.
    #[expect(clippy::cast_precision_loss, reason = "the counts are far below 2^53")]
    pub fn covers(self, part: usize, whole: usize) -> bool {
        // In binary, 29 % of 100 is a little less than 29.
        const ROUNDING: f64 = 1e-9;
        part as f64 <= (self.0 + ROUNDING) * whole as f64
    }
}

/// Why a text is not a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadShare {
    /// A number without `%`.
    #[error("a share needs its `%`, as in `99.9%`")]
    NoSign,
    /// Not a number, or a number below 0 or above 100.
    #[error("a share is from `0%` to `100%`, as in `99.9%`")]
    Unreadable,
}

/// Parses a percentage: `10%`.
impl FromStr for Share {
    type Err = BadShare;

    fn from_str(text: &str) -> Result<Self, BadShare> {
        let text = text.trim();
        let (number, has_sign) = match text.strip_suffix('%') {
            Some(number) => (number.trim_end(), true),
            None => (text, false),
        };
        let percent: f64 = number.parse().map_err(|_told_by_ours| BadShare::Unreadable)?;
        if !has_sign {
            return Err(BadShare::NoSign);
        }
        Self::from_percent(percent).ok_or(BadShare::Unreadable)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", (self.0 * 10_000.0).round() / 100.0)
    }
}

/// What to keep warm, how often and within which bounds.
///
/// `definition::check` has checked every field, alone and together with the others.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The job's name.
    pub name: JobName,
    /// What the job is for, in words for people.
    pub description: String,
    /// When the job is due.
    pub schedule: Schedule,
    /// The longest life of a written key.
    pub ttl: Duration,
    /// The largest share by which a key's TTL is shortened.
    pub ttl_jitter: Share,
    /// Whether the job runs when the worker starts.
    pub on_start: bool,
    /// Whether the worker is ready only after the job's first success.
    pub required: bool,
    /// Whether the job runs at all.
    pub enabled: bool,
    /// The longest duration of one run.
    pub timeout: Duration,
    /// What happens if the job is due while a run is under way.
    pub overlap: Overlap,
    /// How often a batch is tried again after a transient failure.
    pub retries: u32,
    /// The most tenants in one query.
    pub batch: NonZeroUsize,
    /// The most batches in flight at once; `None` where the job file does not say: then the job leaves
    /// one permit to other jobs.
    pub concurrency: Option<NonZeroUsize>,
    /// The tables that the change feed watches for this job.
    pub tables: Vec<Table>,
    /// Whether the job reads tenants, or all data with one query.
    pub scope: Scope,
    /// What the job reads.
    pub query: Query,
    /// The dates of keys with `{date}`.
    pub dates: Option<Dates>,
    /// The kinds of keys that the job writes; at least one.
    pub keys: Vec<Key>,
    /// How rows become JSON.
    pub encoding: Encoding,
}

impl Job {
    /// The shortest TTL that one of its keys may get, by jitter.
    pub fn shortest_ttl(&self) -> Duration {
        self.ttl.saturating_sub(self.ttl_jitter.of(self.ttl))
    }

    /// Whether manifests name some of the job's keys.
    pub fn has_manifests(&self) -> bool {
        self.keys.iter().any(|key| self.kind(key) == KeyKind::Data)
    }

    /// Whether some of the job's keys are shared keys.
    pub fn has_shared_keys(&self) -> bool {
        self.keys.iter().any(|key| self.kind(key) == KeyKind::Shared)
    }

    /// The kind of this job's keys that `key` makes.
    pub fn kind(&self, key: &Key) -> KeyKind {
        let template = &key.template;
        match self.scope {
            _ if template.is_static() => KeyKind::Static,
            Scope::Tenants if !template.has_tenant() => KeyKind::Shared,
            Scope::Tenants | Scope::Global => KeyKind::Data,
        }
    }

    /// The query's columns that the job's keys need, each once, without the one of the date. A row carries
    /// the texts of these columns in this order.
    pub fn key_columns(&self) -> Vec<&str> {
        let mut columns: Vec<&str> = Vec::new();
        for column in self.keys.iter().flat_map(|key| key.template.columns()) {
            if !columns.contains(&column) {
                columns.push(column);
            }
        }
        columns
    }

    /// The query's column that says on which day a row is; `None` if no key has a date.
    pub fn date_column(&self) -> Option<&str> {
        let has_date = || self.keys.iter().any(|key| key.template.has_date());
        self.moment_column().or_else(|| has_date().then_some(DATE_COLUMN))
    }

    /// The query's column whose moments decide on which day a row is; `None` if the query returns the date
    /// itself, or the job has no dates.
    pub fn moment_column(&self) -> Option<&str> {
        self.dates.as_ref()?.column.as_deref()
    }
}

/// A table whose changes make a tenant's keys stale, and how to find the tenant of a changed row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The table's name, with or without its schema.
    pub name: String,
    /// The column that holds the tenant's id; `None` where it has the same name as in the tenant query.
    pub tenant: Option<String>,
    /// A query that returns the ids of the tenants to which a changed row belongs.
    pub sql: Option<String>,
    /// The column whose value stands in the job's shared keys: those of rows that are gone from their
    /// tenant are removed at once.
    pub key: Option<String>,
}

impl Table {
    /// A table with nothing but its name.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }
}

/// The column of the query that holds a row's date, for keys with `{date}`, where `dates.column` names no
/// other one.
pub const DATE_COLUMN: &str = "date";

/// What happens if a job is due while a run of it is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Overlap {
    /// No further run starts; the job counts this time as skipped.
    #[default]
    Skip,
    /// One further run waits, however often the job is due meanwhile.
    Queue,
}

/// Whether a job's query reads the rows of some tenants or of all data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The rows of a batch of tenants, whose ids are the parameter `$1`.
    Tenants,
    /// All rows: a job with `tenants = false`. Its keys name no tenant.
    Global,
}

/// A job's SQL, and the order of the rows that it returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The text.
    pub sql: Arc<str>,
    /// The SQL file that it came from; `None` where the job file holds the SQL itself.
    pub file: Option<PathBuf>,
    /// How preheat orders a tenant's rows within a value; empty for the order in which the query
    /// returns them.
    pub order: Vec<OrderColumn>,
}

/// The local dates for which a job has keys: today and the days after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dates {
    /// The number of dates including today; at least one.
    pub days: u16,
    /// The time zone that decides which date is today.
    pub zone: DateZone,
    /// The column of the query whose moment decides a row's date, in that zone; `None` where the query
    /// returns the date as [`DATE_COLUMN`].
    pub column: Option<String>,
}

/// The time zone in which a date is "today".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DateZone {
    /// One zone for all tenants.
    Fixed(chrono_tz::Tz),
    /// The zone that this column of the tenant query names, for each tenant its own.
    TenantColumn(String),
}

/// One kind of key that a job writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The key's pattern.
    pub template: KeyTemplate,
    /// The form of its value.
    pub shape: Shape,
    /// The placeholder that identifies the tenant in place of the tenant's id, because its values are
    /// unique over all tenants: a column of the query, or `tenant.` and a column of the tenant query.
    pub unique: Option<String>,
}

impl Key {
    /// The column of the query whose value alone makes the key, where the key is shared.
    pub fn by_one_value(&self) -> Option<&str> {
        let unique = self.unique.as_deref()?;
        self.template.follows_from(unique).then_some(unique)
    }
}

/// The positions of the shared keys that values of this column of a table make: where the shared keys
/// of one value are by several columns of the query, those by the column of the same name.
pub fn keys_by_values_of<'k>(
    column: &str,
    keys: impl Iterator<Item = &'k Key> + Clone,
) -> Vec<usize> {
    let by = |key: &'k Key| key.by_one_value();
    let first = keys.clone().find_map(by);
    let is_only_one = keys.clone().filter_map(by).all(|other| Some(other) == first);
    let is_it = |key: &Key| match key.by_one_value() {
        Some(unique) => is_only_one || unique == column,
        None => false,
    };
    keys.enumerate().filter(|(_, key)| is_it(key)).map(|(index, _)| index).collect()
}

/// When a key can be computed, and what removes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// It can be computed before the query, so preheat writes it even if there are no rows.
    Static,
    /// It needs a column of the query. A manifest names it, so that a run can remove it once its data is
    /// gone.
    Data,
    /// A data key without its tenant's id (`pet:{id}`). It can change its owner, and a run that removed
    /// it could not tell which tenant's value it removes. So no run removes it, no manifest names it,
    /// and its TTL ends it.
    Shared,
}

/// The form of a key's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Shape {
    /// A JSON array of rows.
    #[default]
    List,
    /// One row; a static key without a row has `null`.
    Object,
}

/// Jobs by name.
pub type Jobs = BTreeMap<JobName, Arc<Job>>;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::domain::json::{Case, Profile};

    /// A job of tenants that writes these keys, for the tests of this folder.
    pub(crate) fn example(name: &str, keys: Vec<Key>) -> Job {
        Job {
            name: JobName::parse(name).unwrap(),
            description: String::new(),
            schedule: Schedule::Every(Duration::from_mins(10)),
            ttl: Duration::from_mins(30),
            ttl_jitter: Share::NONE,
            on_start: false,
            required: false,
            enabled: true,
            timeout: Duration::from_mins(5),
            overlap: Overlap::Skip,
            retries: 0,
            batch: NonZeroUsize::MIN,
            concurrency: None,
            tables: Vec::new(),
            scope: Scope::Tenants,
            query: Query { sql: "".into(), file: None, order: Vec::new() },
            dates: None,
            keys,
            encoding: Encoding {
                profile: Profile::Postgres,
                case: Case::Keep,
                omit: Vec::new(),
                columns: BTreeMap::new(),
                max_bytes: 1024,
            },
        }
    }

    #[test]
    fn a_name_is_safe_in_keys_routes_and_labels() {
        assert_eq!(JobName::parse("price-list_2").unwrap().as_str(), "price-list_2");
        for bad in ["", "..", "a/b", "a b", "ä", "a:b", &"x".repeat(65)] {
            JobName::parse(bad).unwrap_err();
        }
    }

    #[test]
    fn values_of_a_column_make_the_shared_keys_that_follow_from_them() {
        let key = |text: &str, unique: Option<&str>| Key {
            template: KeyTemplate::parse(text, "tenant_id").unwrap(),
            shape: Shape::Object,
            unique: unique.map(str::to_owned),
        };
        let list = key("pets:{tenant_id}", None);
        let dated = key("pet:{id}:{date}", Some("id"));
        let (pet, photo) = (key("pet:{id}", Some("id")), key("photo:{id}", Some("id")));
        let chip = key("chip:{chip}", Some("chip"));
        let slug = key("site:{tenant.slug}:{page}", Some("tenant.slug"));
        let cases: [(&[&Key], &str, &[usize]); 7] = [
            (&[&list], "id", &[]),
            (&[&dated, &slug], "id", &[]),
            (&[&list, &pet, &photo, &dated], "id", &[1, 2]),
            (&[&pet], "pet_id", &[0]),
            (&[&pet, &chip], "id", &[0]),
            (&[&pet, &chip], "chip", &[1]),
            (&[&pet, &chip], "pet_id", &[]),
        ];
        for (keys, column, expected) in cases {
            assert_eq!(keys_by_values_of(column, keys.iter().copied()), expected, "{column}");
        }
    }

    #[test]
    fn a_share_is_between_none_and_all() {
        let tenth = Share::from_percent(10.0).unwrap();
        assert_eq!(tenth.of(Duration::from_secs(100)), Duration::from_secs(10));
        assert!(tenth.covers(1, 10) && tenth.covers(0, 0) && !tenth.covers(2, 19));
        for percent in 0..=100_u8 {
            let share = Share::from_percent(f64::from(percent)).unwrap();
            let exactly = usize::from(percent) * 1_000;
            assert!(share.covers(exactly, 100_000), "{percent}");
            assert!(!share.covers(exactly + 1, 100_000), "{percent}");
        }
        assert_eq!(tenth.to_string(), "10%");
        assert!(Share::from_percent(-1.0).is_none());
        assert!(Share::from_percent(100.1).is_none());
        assert!(Share::from_percent(f64::NAN).is_none());
    }

    #[test]
    fn a_share_is_read_as_it_is_shown() {
        for (text, percent) in [("10%", 10.0), (" 12.5 % ", 12.5), ("0%", 0.0), ("100%", 100.0)] {
            assert_eq!(text.parse(), Ok(Share::from_percent(percent).unwrap()), "{text}");
        }
        for text in ["10", "0.999", " 99.9 "] {
            assert_eq!(text.parse::<Share>(), Err(BadShare::NoSign), "{text}");
        }
        for text in ["", "%", "101%", "-1%", "NaN%", "inf%", "10%%", "some"] {
            assert_eq!(text.parse::<Share>(), Err(BadShare::Unreadable), "{text}");
        }
    }
}
