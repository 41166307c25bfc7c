//! What a job's file says, with the defaults where it says nothing, and where each value comes from.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::duration;
use crate::domain::job::{DateZone, Dates, Job, Key, Overlap, Scope, Shape};
use crate::domain::json::{Case, ColumnCodec, Encoding, Profile};
use crate::domain::schedule::Schedule;
use crate::engine::run::limit::{Priority, Shares};

/// Where the values of a job come from that are no defaults, by the field's path: `ttl`, `keys.0.key`.
pub type Origins = BTreeMap<String, String>;

/// What stands for the origin of a value that nobody set.
const DEFAULT: &str = "default";

/// A field of a job, as the worker uses it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct DefinedField {
    /// Its path in the job's file: `ttl`, `query.sql`, `keys.0.key`.
    pub field: String,
    /// Its value, as text.
    pub value: String,
    /// Where the value comes from: the job's file with the line, a setting with its own origin, or `default`. Null
    /// where an older version of the file is in use, since the present one is rejected.
    pub origin: Option<String>,
}

/// The fields of a job, in the order of its file. `origins` is `None` if they are not known.
pub(super) fn fields(job: &Job, origins: Option<&Origins>, shares: Shares) -> Vec<DefinedField> {
    let defined = |(field, value): (String, String)| {
        let origin = origins.map(|origins| origins.get(&field).map_or(DEFAULT, String::as_str));
        DefinedField { origin: origin.map(str::to_owned), field, value }
    };
    let keys = job.keys.iter().enumerate().flat_map(|(index, one)| key(index, one));
    let all =
        whole(job, shares).into_iter().chain(query(job)).chain(job.dates.iter().flat_map(dates));
    let all = all.map(|(field, value)| (field.to_owned(), value));
    let encode = encode(&job.encoding).map(|(field, value)| (field.to_owned(), value));
    all.chain(keys).chain(encode).filter(|(_, value)| !value.is_empty()).map(defined).collect()
}

type Field = (&'static str, String);

fn whole(job: &Job, shares: Shares) -> Vec<Field> {
    let (schedule, timezone) = match &job.schedule {
        Schedule::Every(_) => (job.schedule.to_string(), String::new()),
        Schedule::Cron(cron) => (cron.expression().to_owned(), cron.zone().to_string()),
    };
    let overlap = match job.overlap {
        Overlap::Skip => "skip",
        Overlap::Queue => "queue",
    };
    let tables: Vec<_> = job.tables.iter().map(|table| table.name.as_str()).collect();
    let has_tenants = job.scope == Scope::Tenants;
    vec![
        ("description", job.description.clone()),
        ("schedule", schedule),
        ("timezone", timezone),
        ("ttl", duration::text(job.ttl)),
        ("ttl_jitter", job.ttl_jitter.to_string()),
        ("on_start", job.on_start.to_string()),
        ("required", job.required.to_string()),
        ("enabled", job.enabled.to_string()),
        ("timeout", duration::text(job.timeout)),
        ("overlap", overlap.to_owned()),
        ("retries", job.retries.to_string()),
        ("batch", if has_tenants { job.batch.to_string() } else { String::new() }),
        ("concurrency", shares.of_job(job, Priority::Regular).to_string()),
        ("tables", tables.join(", ")),
        ("tenants", has_tenants.to_string()),
    ]
}

fn query(job: &Job) -> Vec<Field> {
    let order: Vec<_> = job.query.order.iter().map(ToString::to_string).collect();
    let sql = match &job.query.file {
        Some(file) => ("query.file", file.display().to_string()),
        None => ("query.sql", job.query.sql.trim().to_owned()),
    };
    vec![sql, ("query.order", order.join(", "))]
}

fn dates(Dates { days, zone, column }: &Dates) -> [Field; 3] {
    let timezone = match zone {
        DateZone::Fixed(zone) => zone.to_string(),
        DateZone::TenantColumn(column) => format!("tenant.{column}"),
    };
    [
        ("dates.days", days.to_string()),
        ("dates.timezone", timezone),
        ("dates.column", column.clone().unwrap_or_default()),
    ]
}

fn key(index: usize, Key { template, shape, unique }: &Key) -> [(String, String); 3] {
    let shape = match shape {
        Shape::List => "list",
        Shape::Object => "object",
    };
    let field = |name: &str, value: String| (format!("keys.{index}.{name}"), value);
    [
        field("key", template.as_str().to_owned()),
        field("shape", shape.to_owned()),
        field("unique", unique.clone().unwrap_or_default()),
    ]
}

fn encode(encoding: &Encoding) -> [Field; 5] {
    let Encoding { profile, case, omit, columns, max_bytes } = encoding;
    let profile = match profile {
        Profile::Drizzle => "drizzle",
        Profile::NodePostgres => "node-postgres",
        Profile::Postgres => "postgres",
    };
    let case = match case {
        Case::Keep => "keep",
        Case::Camel => "camel",
    };
    let codec = |(column, codec): (&String, &ColumnCodec)| match codec {
        ColumnCodec::Number => format!("{column} = number"),
        ColumnCodec::String => format!("{column} = string"),
        ColumnCodec::Json => format!("{column} = json"),
    };
    let columns: Vec<_> = columns.iter().map(codec).collect();
    [
        ("encode.profile", profile.to_owned()),
        ("encode.case", case.to_owned()),
        ("encode.omit", omit.join(", ")),
        ("encode.columns", columns.join(", ")),
        ("encode.max_bytes", max_bytes.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::job::tests::example;
    use crate::domain::key::KeyTemplate;

    #[test]
    fn each_field_has_its_value_and_its_origin() {
        let template = KeyTemplate::parse("a:{tenant_id}", "tenant_id").unwrap();
        let job = example("a", vec![Key { template, shape: Shape::List, unique: None }]);
        let set = [("ttl", "jobs/a.toml:3"), ("batch", "preheat.toml:7 (`runner.batch`)")];
        let origins: Origins =
            set.into_iter().map(|(field, origin)| (field.to_owned(), origin.to_owned())).collect();
        let shares = Shares::of_worker(4);
        let all = fields(&job, Some(&origins), shares);
        let of = |field: &str| {
            let found = all.iter().find(|one| one.field == field).unwrap();
            (found.value.as_str(), found.origin.as_deref().unwrap())
        };
        assert_eq!(of("ttl"), ("30m", "jobs/a.toml:3"));
        assert_eq!(of("batch").1, "preheat.toml:7 (`runner.batch`)");
        assert_eq!(of("overlap"), ("skip", "default"));
        assert_eq!(of("keys.0.key"), ("a:{tenant_id}", "default"));
        assert!(all.iter().all(|one| one.field != "timezone" && one.field != "keys.0.unique"));
        assert!(fields(&job, None, shares).iter().all(|one| one.origin.is_none()));
    }
}
