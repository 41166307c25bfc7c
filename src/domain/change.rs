//! Changes of the database: which tables are watched, and which jobs each of them concerns.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::job::{Job, JobName, Jobs, Scope, Table, keys_by_values_of};
use super::layout::Layout;
use super::tenant::{IdClass, TenantId};

/// Says which watched table a change came from. It is part of a trigger's name and of every
/// notification, and stands for how the tenants are found too: a trigger of an older definition
/// says another.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChangeSourceId(String);

impl ChangeSourceId {
    /// Takes the text as the id; one that no source has concerns no job.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The id's text: sixteen hexadecimal digits where it was made here.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of a table with one way to find the tenants.
    fn of(table: &str, tenants: &TouchedTenants) -> Self {
        let (kind, text) = match tenants {
            TouchedTenants::Column(name) => ("column", name.as_str()),
            TouchedTenants::Sql(sql) => ("sql", sql.as_str()),
            // The word is in the ids of triggers that are installed.
            TouchedTenants::Global => ("fleet", ""),
        };
        // No name or query has a NUL, so different parts never are the same text.
        Self(format!("{:016x}", fnv_1a(format!("{table}\0{kind}\0{text}").as_bytes())))
    }
}

impl fmt::Display for ChangeSourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How the messages of triggers travel to the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// `NOTIFY`, which every server has. Commits of transactions that notify wait for each other.
    Notify,
    /// Messages in the write-ahead log, for servers with `wal_level = logical`.
    Wal,
}

/// A table that is watched, with one way to find whose data changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeSource {
    /// Its id.
    pub id: ChangeSourceId,
    /// The table's name as the job files have it, with or without its schema's.
    pub table: String,
    /// How the tenants of changed rows are found.
    pub tenants: TouchedTenants,
    /// The jobs that it concerns, in the order of their names; those that are disabled among them,
    /// so that enabling one takes no new trigger.
    pub jobs: Vec<JobName>,
    /// The columns whose values stand in shared keys, each with the jobs that say so. They are no part
    /// of the id: triggers that do not name these values yet are heard all the same.
    pub keys: BTreeMap<String, Vec<JobName>>,
}

/// How the tenants of changed rows are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TouchedTenants {
    /// Each row has its tenant's id in this column.
    Column(String),
    /// This query returns the ids of the tenants of changed rows.
    Sql(String),
    /// There is nothing to find: the data is all tenants'.
    Global,
}

/// One notification: some data changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Where.
    pub source: ChangeSourceId,
    /// Whose, each once or more; `None` where it is all tenants', or may be any tenant's, as
    /// after a `TRUNCATE`.
    #[serde(default)]
    pub tenants: Option<Vec<String>>,
    /// Which shared keys are gone from a tenant: by the column, its values in rows that were deleted,
    /// went to another tenant or have another value now. Those that a trigger did not name end by their
    /// TTL.
    #[serde(default, skip_serializing_if = "GoneValues::is_empty")]
    pub gone: GoneValues,
    /// Whether the fences of the changed data have moved already: the member of a fleet that reads the log moves them before
    /// it passes the change on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_fenced: bool,
}

/// Values of columns that stand in shared keys.
pub type GoneValues = BTreeMap<String, Vec<String>>;

impl Change {
    /// A change that takes no shared key from anybody.
    pub fn new(source: ChangeSourceId, tenants: Option<Vec<String>>) -> Self {
        Self { source, tenants, gone: GoneValues::new(), is_fenced: false }
    }
}

/// Why jobs run for all tenants, outside of their schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResyncCause {
    /// The change feed connected: it did not hear of the changes before.
    FeedConnected,
    /// The cache was restarted, replaced or emptied.
    CacheLost,
    /// A change may be any tenant's: a `TRUNCATE`, a trigger that could not tell whose rows changed, triggers or
    /// tables that changed themselves, or a change of very many tenants.
    AnyTenant,
}

impl ResyncCause {
    /// The cause's name in logs and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FeedConnected => "feed_connected",
            Self::CacheLost => "cache_lost",
            Self::AnyTenant => "any_tenant",
        }
    }
}

/// The tenants of a job whose keys a change or a removal concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// These tenants.
    Tenants(BTreeSet<TenantId>),
    /// All tenants of the job, or all data of a global job.
    All,
}

impl Touched {
    /// Adds one tenant.
    pub fn add(&mut self, tenant: TenantId) {
        match self {
            Self::All => {}
            Self::Tenants(tenants) => drop(tenants.insert(tenant)),
        }
    }

    /// The tenants as a run takes them: `None` for all.
    pub fn into_ids(self) -> Option<Vec<TenantId>> {
        match self {
            Self::All => None,
            Self::Tenants(tenants) => Some(tenants.into_iter().collect()),
        }
    }
}

/// What was heard of, after the fences of whose data it is were moved. The moments are those of the
/// monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Changes.
    Jobs {
        /// By the jobs that they concern.
        jobs: BTreeMap<JobName, Touched>,
        /// When the first of them was heard of.
        heard_at: Duration,
    },
    /// Anything may have changed that jobs with tables have.
    Everything {
        /// When all fences had been moved: what was read later is right.
        moved_at: Duration,
    },
}

/// All tables that jobs watch, each once for each way to find its tenants, in the order of their
/// names; `tenant_column` is what the tenant's id is called where a table says nothing.
pub fn change_sources(jobs: &Jobs, tenant_column: &str) -> Vec<ChangeSource> {
    let mut sources: Vec<ChangeSource> = Vec::new();
    for job in jobs.values() {
        for table in &job.tables {
            let tenants = touched_tenants(job, table, tenant_column);
            let id = ChangeSourceId::of(&table.name, &tenants);
            let place = sources.iter().position(|known| known.id == id).unwrap_or_else(|| {
                let (table, jobs, keys) = (table.name.clone(), Vec::new(), BTreeMap::new());
                sources.push(ChangeSource { id, table, tenants, jobs, keys });
                sources.len() - 1
            });
            let Some(source) = sources.get_mut(place) else { continue };
            if !source.jobs.contains(&job.name) {
                source.jobs.push(job.name.clone());
            }
            if let Some(column) = &table.key {
                source.keys.entry(column.clone()).or_default().push(job.name.clone());
            }
        }
    }
    sources.sort_by(|one, other| (&one.table, &one.id).cmp(&(&other.table, &other.id)));
    sources
}

/// The tables that these jobs watch.
#[derive(Clone, Debug, Default)]
pub struct WatchedTables {
    jobs: Arc<Jobs>,
    sources: Vec<ChangeSource>,
}

impl WatchedTables {
    /// Those of these jobs; `tenant_column` is what the tenant's id is called where a table says
    /// nothing.
    pub fn of(jobs: Arc<Jobs>, tenant_column: &str) -> Self {
        let sources = change_sources(&jobs, tenant_column);
        Self { jobs, sources }
    }

    /// Makes them those of these jobs. Answers whether they were those of other jobs.
    pub fn refresh(&mut self, jobs: Arc<Jobs>, tenant_column: &str) -> bool {
        let are_others = !Arc::ptr_eq(&self.jobs, &jobs);
        if are_others {
            *self = Self::of(jobs, tenant_column);
        }
        are_others
    }

    /// The sources that an enabled job has.
    pub fn of_enabled_jobs(self) -> Vec<ChangeSource> {
        let Self { jobs, mut sources } = self;
        let is_enabled = |name: &JobName| jobs.get(name).is_some_and(|job| job.enabled);
        sources.retain(|source| source.jobs.iter().any(is_enabled));
        sources
    }

    /// The source with this id.
    pub fn find(&self, id: &ChangeSourceId) -> Option<&ChangeSource> {
        self.sources.iter().find(|source| source.id == *id)
    }

    /// The shared keys that are gone with these values. One that may be another tenant's or job's key by
    /// another template is not among them.
    pub fn gone_keys(&self, source: &ChangeSource, gone: &GoneValues, ids: IdClass) -> Vec<String> {
        let layout = Layout::new(&self.jobs, ids);
        let mut found = Vec::new();
        for (column, values) in gone {
            let jobs = source.keys.get(column).into_iter().flatten();
            for job in jobs.filter_map(|name| self.jobs.get(name)) {
                for index in keys_by_values_of(column, job.keys.iter()) {
                    let Some(key) = job.keys.get(index) else { continue };
                    let keys = values.iter().filter_map(|value| key.template.fill_columns(value));
                    found.extend(keys.filter(|key| layout.is_of(job, index, None, key)));
                }
            }
        }
        found
    }
}

fn touched_tenants(job: &Job, table: &Table, tenant_column: &str) -> TouchedTenants {
    match (job.scope, &table.sql, &table.tenant) {
        (Scope::Global, _, _) => TouchedTenants::Global,
        (Scope::Tenants, Some(sql), _) => TouchedTenants::Sql(sql.clone()),
        (Scope::Tenants, None, Some(column)) => TouchedTenants::Column(column.clone()),
        (Scope::Tenants, None, None) => TouchedTenants::Column(tenant_column.to_owned()),
    }
}

/// The hash of Fowler, Noll and Vo (RFC 9923), 64 bits: the ids stand in databases, so it must never
/// change, which a crate's hash may.
fn fnv_1a(bytes: &[u8]) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    bytes.iter().fold(BASIS, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::job::tests::example;
    use crate::domain::job::{Key, Shape};
    use crate::domain::key::KeyTemplate;

    #[test]
    fn an_id_stays_what_it_is_as_triggers_in_databases_have_it() {
        // From the test vectors of the hash's authors.
        assert_eq!(fnv_1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv_1a(b"foobar"), 0x8594_4171_f739_67e8);
        let column = TouchedTenants::Column("tenant_id".to_owned());
        assert_eq!(ChangeSourceId::of("products", &column).as_str(), "24f02fc823f398ad");
    }

    /// A job that watches `pets`, whose shared keys are by these templates.
    fn pets(name: &str, column: Option<&str>, templates: &[&str]) -> (JobName, Arc<Job>) {
        let key = |text: &&str| Key {
            template: KeyTemplate::parse(text, "tenant_id").unwrap(),
            shape: Shape::Object,
            unique: Some("id".to_owned()),
        };
        let job = example(name, templates.iter().map(key).collect());
        let table = Table { key: column.map(str::to_owned), ..Table::named("pets") };
        (job.name.clone(), Arc::new(Job { tables: vec![table], ..job }))
    }

    #[test]
    fn gone_values_are_the_shared_keys_of_the_jobs_that_name_their_column() {
        let jobs = Jobs::from([
            pets("a", Some("id"), &["pet:{id}", "photo:{id}", "pet:{id}:{date}"]),
            pets("b", Some("pet_id"), &["b:{id}"]),
            pets("c", None, &["c:{id}"]),
        ]);
        let watched = WatchedTables::of(Arc::new(jobs), "tenant_id");
        let [source] = watched.sources.as_slice() else { panic!("{watched:?}") };
        assert_eq!(source.jobs.len(), 3, "with a key or without, it is one source");
        let gone = |column: &str, values: &[&str]| {
            let values = values.iter().map(|value| (*value).to_owned()).collect();
            let gone = GoneValues::from([(column.to_owned(), values)]);
            watched.gone_keys(source, &gone, IdClass::Text)
        };
        assert_eq!(gone("id", &["7", "a b%"]), ["pet:7", "pet:a b%", "photo:7", "photo:a b%"]);
        assert_eq!(gone("pet_id", &["7"]), ["b:7"]);
        assert!(gone("chip", &["7"]).is_empty());
    }

    #[test]
    fn a_gone_value_removes_no_key_of_another_template() {
        let (name, job) = pets("all", None, &["pet:{tenant_id}:all"]);
        let keys = job.keys.iter().map(|key| Key { unique: None, ..key.clone() }).collect();
        let lists = (name, Arc::new(Job { keys, ..Job::clone(&job) }));
        let jobs = Jobs::from([lists, pets("pet", Some("id"), &["pet:{id}"])]);
        let watched = WatchedTables::of(Arc::new(jobs), "tenant_id");
        let [source] = watched.sources.as_slice() else { panic!("{watched:?}") };
        let values = ["t1:all", "t1"].map(str::to_owned).to_vec();
        let gone = GoneValues::from([("id".to_owned(), values)]);
        assert_eq!(watched.gone_keys(source, &gone, IdClass::Text), ["pet:t1"]);
    }

    #[test]
    fn different_tables_and_ways_have_different_ids() {
        let text = |text: &str| text.to_owned();
        let ids = [
            ChangeSourceId::of("products", &TouchedTenants::Column(text("tenant_id"))),
            ChangeSourceId::of("products", &TouchedTenants::Column(text("clinic_id"))),
            ChangeSourceId::of("products", &TouchedTenants::Sql(text("tenant_id"))),
            ChangeSourceId::of("products", &TouchedTenants::Global),
            ChangeSourceId::of("public.products", &TouchedTenants::Global),
        ];
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
    }
}
