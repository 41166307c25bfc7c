//! A job file as it is written. The reader fills these types, and the JSON Schema and the reference
//! are generated from them. [`super::check()`] decides whether what they say makes sense.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use toml::Spanned;
use toml::de::DeValue;

use super::read::{Fields, Located, Reader, Value};
use super::value::{Bytes, Length, OneOf, Percent, Zone, table, word};
use super::{default, limit};
use crate::domain::duration;
use crate::domain::job::{Overlap, Shape};
use crate::domain::json::{Case, ColumnCodec, Profile};

/// One job: what to keep warm, how often and within which limits. The file's name is the job's name.
#[derive(Debug, JsonSchema)]
#[schemars(title = "preheat job", deny_unknown_fields)]
pub(super) struct JobFile {
    /// The purpose of the job, for people.
    #[schemars(extend("default" = ""))]
    pub(super) description: Option<Located<String>>,
    /// When the job is due: `every` and a duration, on a grid that starts in 1970 and is the same on every replica; or a cron expression of six fields, `second minute hour day month weekday` (with five, the second is 0).
    #[schemars(required, extend("examples" = ["every 10m", "0 */10 * * * *"]))]
    pub(super) schedule: Option<Located<String>>,
    /// The IANA time zone of a cron expression.
    #[schemars(extend("default" = default::TIMEZONE.name()))]
    pub(super) timezone: Option<Located<Zone>>,
    /// How long a written key lives, at most. After `ttl_jitter` is taken off, it must be at least the longest time between two due times plus `timeout`, so that no key expires before the next run writes it.
    #[schemars(required)]
    pub(super) ttl: Option<Located<Length>>,
    /// Shortens a key's TTL by up to this percentage, depending on a hash of the key, so that keys do not expire all at once.
    #[schemars(extend("default" = default::ttl_jitter().to_string()))]
    pub(super) ttl_jitter: Option<Located<Percent>>,
    /// Whether the job runs once when the worker starts.
    #[schemars(extend("default" = default::ON_START))]
    pub(super) on_start: Option<Located<bool>>,
    /// Whether `/readyz` waits for the job's first success.
    #[schemars(extend("default" = default::REQUIRED))]
    pub(super) required: Option<Located<bool>>,
    /// Whether the job runs at all. A disabled job is checked all the same.
    #[schemars(extend("default" = default::ENABLED))]
    pub(super) enabled: Option<Located<bool>>,
    /// The longest time of one run.
    #[schemars(extend("default" = duration::text(default::TIMEOUT)))]
    pub(super) timeout: Option<Located<Length>>,
    /// What happens when the job is due while it is running: `skip` does nothing, `queue` starts one more run afterwards.
    #[schemars(extend("default" = word(Overlap::default())))]
    pub(super) overlap: Option<Located<OneOf<Overlap>>>,
    /// How often a batch is tried again after a transient failure.
    #[schemars(range(max = *limit::RETRIES.end()), extend("default" = default::RETRIES))]
    pub(super) retries: Option<Located<u64>>,
    /// The number of tenants in one query; `runner.batch` if it is not set.
    #[schemars(range(min = *limit::BATCH.start(), max = *limit::BATCH.end()))]
    pub(super) batch: Option<Located<u64>>,
    /// The most batches of this job in flight at once, up to `runner.concurrency`. The default leaves one permit to other jobs.
    #[schemars(range(min = *limit::CONCURRENCY.start(), max = *limit::CONCURRENCY.end()))]
    pub(super) concurrency: Option<Located<u64>>,
    /// The tables whose changes make a tenant's keys stale. After `preheat changes install` the worker notices such changes, and warms the tenant's keys again at once. If a table does not hold the tenant's id in the column that `tenants.column` names, write `{ name = "…", tenant = "COLUMN" }` or `{ name = "…", sql = "…" }`. For a job with `tenants = false` any change counts.
    #[schemars(extend("default" = []))]
    pub(super) tables: Option<Located<Vec<Located<TableFile>>>>,
    /// Whether the query reads a batch of tenants; `false` means one query for all tenants together, and no tenant in the keys.
    #[schemars(extend("default" = default::TENANTS))]
    pub(super) tenants: Option<Located<bool>>,
    /// What the job reads.
    #[schemars(required)]
    pub(super) query: Option<Located<QueryFile>>,
    /// The dates of keys with `{date}`, in local time; only for jobs with such a key.
    pub(super) dates: Option<Located<DatesFile>>,
    /// What the job writes: at least one key.
    #[schemars(required, length(min = 1, max = limit::KEYS))]
    pub(super) keys: Option<Located<Vec<Located<KeyFile>>>>,
    /// How rows become JSON.
    pub(super) encode: Option<Located<EncodeFile>>,
}

/// A table, by its name alone or with details about its rows.
#[derive(Debug, JsonSchema)]
#[schemars(untagged, inline)]
pub(super) enum TableFile {
    /// Its name, with or without the schema's.
    Name(String),
    /// Its name, and details about its rows.
    Table(TableFields),
}

/// A table: how to find the tenant of a row, and which column the shared keys are made from.
#[derive(Clone, Debug, JsonSchema)]
#[schemars(deny_unknown_fields, inline)]
pub(super) struct TableFields {
    /// Its name exactly as the database has it, capitals too, with or without the schema's.
    #[schemars(required)]
    pub(super) name: Option<Located<String>>,
    /// The column that holds the tenant's id; `tenants.column` if it is not set.
    pub(super) tenant: Option<Located<String>>,
    /// A query over the relation `changed` that returns the tenant's id as its first column: `select staff.tenant_id from changed join staff on staff.id = changed.staff_id`. `changed` has the columns of the table. It contains the rows that one statement touched; for an update, the rows before and after it. A NULL id stands for no tenant.
    pub(super) sql: Option<Located<String>>,
    /// The column whose value is in the job's shared keys (`unique`). If a row is deleted, moves to another tenant, or gets another value in this column, its key is removed at once. Without `key`, it lives until its TTL ends. With `sql`, preheat does not notice that a row moves to another tenant.
    pub(super) key: Option<Located<String>>,
}

/// The job's SQL, either `sql` or `file`, and the order of its rows.
#[derive(Debug, JsonSchema)]
#[schemars(deny_unknown_fields, inline)]
#[schemars(extend("oneOf" = [{ "required": ["sql"] }, { "required": ["file"] }]))]
pub(super) struct QueryFile {
    /// The query. `$1` is the array of the batch's tenant ids; with `[dates]`, `$2` and `$3` say for which dates, see `dates.column`: two moments for the whole batch, or else the arrays of the tenants' first and last dates. Its rows contain the tenant's id in the column that `tenants.column` names, the columns of the keys' placeholders and, with `[dates]`, the column that `dates.column` names, or else a column `date`. A list has a tenant's rows in the order in which the query returns them, unless `order` says another one.
    pub(super) sql: Option<Located<String>>,
    /// A file in the jobs folder that holds the query.
    pub(super) file: Option<Located<String>>,
    /// The order of a tenant's rows within a list. preheat sorts them, so the SQL needs no `order by`. Each entry is a column of the query, if need be followed by `collate C`, by `asc` or `desc`, and by `nulls first` or `nulls last`, in this order. Rows that are equal in all these columns are sorted by their JSON.
    #[schemars(length(min = 1, max = limit::ORDER), extend("examples" = [["name", "starts_at desc", "id"]]))]
    pub(super) order: Option<Located<Vec<Located<String>>>>,
}

/// The dates that have keys.
#[derive(Debug, JsonSchema)]
#[schemars(deny_unknown_fields, inline)]
pub(super) struct DatesFile {
    /// The number of days: today and the days after it.
    #[schemars(required, range(min = *limit::DAYS.start(), max = *limit::DAYS.end()))]
    pub(super) days: Option<Located<u64>>,
    /// The time zone that decides which day is today: `tenant.COLUMN` for a column of the tenant query that holds the zone's name, or the name of a zone.
    #[schemars(required, extend("examples" = ["tenant.timezone", "Europe/Berlin"]))]
    pub(super) timezone: Option<Located<String>>,
    /// The column of the query that says when a row is. preheat computes the row's date from it: the local date, in the time zone of `timezone`, of a `timestamptz`, or the date of a `timestamp` or `date`. `$2` and `$3` are then moments of the column's type: the first moment of all tenants' days, and the first one after them. If `column` is not set, the query returns the date as a column `date`.
    #[schemars(extend("examples" = ["starts_at"]))]
    pub(super) column: Option<Located<String>>,
}

/// One kind of key.
#[derive(Debug, JsonSchema)]
#[schemars(deny_unknown_fields, inline)]
pub(super) struct KeyFile {
    /// The key's template. `{tenant_id}` is the tenant's id (the placeholder has the name that `tenants.column` gives it), `{tenant.COLUMN}` another column of the tenant query, `{date}` one of the dates, `{COLUMN}` a column of the query; `{{` and `}}` stand for braces. A key without columns of the query is written even if there are no rows.
    #[schemars(required)]
    pub(super) key: Option<Located<String>>,
    /// `list` writes a JSON array of rows, `object` a single row.
    #[schemars(extend("default" = word(Shape::default())))]
    pub(super) shape: Option<Located<OneOf<Shape>>>,
    /// For a key without the tenant's id: the placeholder whose value is unique over all tenants.
    #[schemars(extend("examples" = ["id", "tenant.slug"]))]
    pub(super) unique: Option<Located<String>>,
}

/// How rows become JSON.
#[derive(Debug, JsonSchema)]
#[schemars(deny_unknown_fields, inline)]
pub(super) struct EncodeFile {
    /// Which program's JSON the value equals after `JSON.parse`: that of `drizzle-orm` on `pg`, that of `pg`, or that of Postgres' `row_to_json`.
    #[schemars(extend("default" = word(Profile::default())))]
    pub(super) profile: Option<Located<OneOf<Profile>>>,
    /// How column names become names in the JSON: `keep` leaves them as they are, `camel` turns `updated_at` into `updatedAt`.
    #[schemars(extend("default" = word(Case::default())))]
    pub(super) case: Option<Located<OneOf<Case>>>,
    /// Columns that are left out of the value.
    #[schemars(extend("default" = []))]
    pub(super) omit: Option<Located<Vec<Located<String>>>>,
    /// Columns that are encoded in another way: as `number`, as `string`, or as `json` for text that is JSON already.
    #[schemars(extend("default" = {}))]
    pub(super) columns: Option<Located<BTreeMap<String, Located<OneOf<ColumnCodec>>>>>,
    /// The size limit of a value. A larger value is an error for its key, and is never written.
    #[schemars(extend("default" = default::MAX_BYTES_TEXT))]
    pub(super) max_bytes: Option<Located<Bytes>>,
}

impl JobFile {
    pub(super) fn read(mut fields: Fields<'_, '_>) -> Self {
        let file = Self {
            description: fields.optional("description"),
            schedule: fields.required("schedule"),
            timezone: fields.optional("timezone"),
            ttl: fields.required("ttl"),
            ttl_jitter: fields.optional("ttl_jitter"),
            on_start: fields.optional("on_start"),
            required: fields.optional("required"),
            enabled: fields.optional("enabled"),
            timeout: fields.optional("timeout"),
            overlap: fields.optional("overlap"),
            retries: fields.optional("retries"),
            batch: fields.optional("batch"),
            concurrency: fields.optional("concurrency"),
            tables: fields.optional("tables"),
            tenants: fields.optional("tenants"),
            query: fields.required("query"),
            dates: fields.optional("dates"),
            keys: fields.required("keys"),
            encode: fields.optional("encode"),
        };
        fields.finish();
        file
    }
}

impl Value for TableFile {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, reader: &mut Reader) -> Option<Self> {
        match value.get_ref() {
            DeValue::String(name) => Some(Self::Name(name.to_string())),
            DeValue::Table(table) => {
                let mut fields = Fields::new(table, Some(value.span()), path, reader);
                let read = TableFields {
                    name: fields.required("name"),
                    tenant: fields.optional("tenant"),
                    sql: fields.optional("sql"),
                    key: fields.optional("key"),
                };
                fields.finish();
                Some(Self::Table(read))
            }
            DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_) => {
                let kind = "a table's name or `{ name = \"…\", tenant = \"…\" }`";
                reader.wrong_type(value, path, kind, None);
                None
            }
        }
    }
}

impl Value for QueryFile {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, reader: &mut Reader) -> Option<Self> {
        if value.get_ref().is_str() {
            let hint = "write `[query]` and below it `sql = \"\"\"…\"\"\"`".to_owned();
            reader.wrong_type(value, path, "a table", Some(hint));
            return None;
        }
        let table = table(value, path, reader)?;
        let mut fields = Fields::new(table, Some(value.span()), path, reader);
        let read = Self {
            sql: fields.optional("sql"),
            file: fields.optional("file"),
            order: fields.optional("order"),
        };
        fields.finish();
        Some(read)
    }
}

impl Value for DatesFile {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, reader: &mut Reader) -> Option<Self> {
        let table = table(value, path, reader)?;
        let mut fields = Fields::new(table, Some(value.span()), path, reader);
        let read = Self {
            days: fields.required("days"),
            timezone: fields.required("timezone"),
            column: fields.optional("column"),
        };
        fields.finish();
        Some(read)
    }
}

impl Value for KeyFile {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, reader: &mut Reader) -> Option<Self> {
        let table = table(value, path, reader)?;
        let mut fields = Fields::new(table, Some(value.span()), path, reader);
        let read = Self {
            key: fields.required("key"),
            shape: fields.optional("shape"),
            unique: fields.optional("unique"),
        };
        fields.finish();
        Some(read)
    }
}

impl Value for EncodeFile {
    fn read(value: &Spanned<DeValue<'_>>, path: &str, reader: &mut Reader) -> Option<Self> {
        let table = table(value, path, reader)?;
        let mut fields = Fields::new(table, Some(value.span()), path, reader);
        let read = Self {
            profile: fields.optional("profile"),
            case: fields.optional("case"),
            omit: fields.optional("omit"),
            columns: fields.optional("columns"),
            max_bytes: fields.optional("max_bytes"),
        };
        fields.finish();
        Some(read)
    }
}
