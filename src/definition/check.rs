//! Turns a parsed job file into the job that it describes, or finds every problem in it. Pure.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::ops::{Range, RangeInclusive};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::file::{EncodeFile, JobFile, KeyFile, QueryFile, TableFields, TableFile};
use super::problem::{Problem, Source};
use super::raw;
use super::read::Located;
use super::value::{Length, nearest_zone, unknown_zone};
use super::{Defaults, SqlFiles, default, limit};
use crate::domain::date;
use crate::domain::duration::{self, text as long};
use crate::domain::job::{
    DateZone, Dates, Job, JobName, Key, Query, Scope, Shape, Share, Table, keys_by_values_of,
};
use crate::domain::json::Encoding;
use crate::domain::key::{KeyTemplate, Part, Placeholder};
use crate::domain::schedule::{Schedule, ScheduleProblem};
use crate::domain::spelling::listed;
use crate::domain::tenant::IdClass;

/// The result of checking one file.
#[derive(Debug)]
pub(super) struct Checked {
    /// The job, if the file has no problem.
    pub(super) job: Option<Job>,
    /// All its key templates that could be parsed, with their places in the file, even if other
    /// parts are wrong.
    pub(super) templates: Vec<(KeyTemplate, Range<usize>)>,
    /// Whether the job is enabled.
    pub(super) enabled: bool,
    /// The query's text, if it is in a file of its own.
    pub(super) sql_file: Option<Arc<Source>>,
}

/// What a file is checked with.
pub(super) struct Check<'a> {
    pub(super) source: &'a Arc<Source>,
    pub(super) defaults: &'a Defaults,
    pub(super) sql_files: &'a SqlFiles<'a>,
    pub(super) problems: &'a mut Vec<Problem>,
}

impl Check<'_> {
    /// Checks a file. It returns a job only if neither the check nor the reader found a problem.
    pub(super) fn job(mut self, name: JobName, file: &JobFile) -> Checked {
        let zone = file.timezone.as_ref().map_or(default::TIMEZONE, |zone| zone.value.0);
        let schedule = file.schedule.as_ref().and_then(|text| self.schedule(text, zone));
        let ttl = self.length("ttl", file.ttl.as_ref(), None);
        let timeout = self.length("timeout", file.timeout.as_ref(), Some(default::TIMEOUT));
        let ttl_jitter =
            file.ttl_jitter.as_ref().map_or_else(default::ttl_jitter, |share| share.value.0);
        if let (Some(schedule), Some(ttl), Some(timeout)) = (&schedule, ttl, timeout) {
            self.fits(file, schedule, Times { ttl, timeout, ttl_jitter });
        }
        let retries = self.count("retries", file.retries.as_ref(), limit::RETRIES);
        let batch = self.count("batch", file.batch.as_ref(), limit::BATCH);
        let concurrency = self.count("concurrency", file.concurrency.as_ref(), limit::CONCURRENCY);
        let has_tenants = file.tenants.as_ref().map_or(default::TENANTS, |tenants| tenants.value);
        let scope = if has_tenants { Scope::Tenants } else { Scope::Global };
        let (query, sql_file) = file.query.as_ref().map(|query| self.query(query, scope)).unzip();
        let dates = self.dates(file, scope);
        let keys = file.keys.as_ref().map(|keys| self.keys(keys, scope)).unwrap_or_default();
        self.dates_and_keys(file, &keys);
        self.order_and_keys(file, &keys);
        let tables = self.tables(file, &keys);
        let encoding = self.encoding(file.encode.as_ref());
        let templates = keys.iter().map(|(key, at)| (key.template.clone(), at.clone())).collect();
        let enabled = file.enabled.as_ref().map_or(default::ENABLED, |enabled| enabled.value);
        let flag = |flag: &Option<Located<bool>>, or| flag.as_ref().map_or(or, |flag| flag.value);
        let sql_file = sql_file.flatten();
        let (Some(schedule), Some(ttl), Some(timeout), Some(query), true) =
            (schedule, ttl, timeout, query.flatten(), self.problems.is_empty())
        else {
            return Checked { job: None, templates, enabled, sql_file };
        };
        let job = Job {
            name,
            description: file
                .description
                .as_ref()
                .map(|text| text.value.clone())
                .unwrap_or_default(),
            schedule,
            ttl,
            ttl_jitter,
            on_start: flag(&file.on_start, default::ON_START),
            required: flag(&file.required, default::REQUIRED),
            enabled,
            timeout,
            overlap: file.overlap.as_ref().map(|overlap| overlap.value.0).unwrap_or_default(),
            retries: retries.unwrap_or(default::RETRIES).try_into().unwrap_or_default(),
            batch: batch.and_then(to_size).unwrap_or(self.defaults.batch),
            concurrency: concurrency
                .and_then(to_size)
                .map(|most| most.min(self.defaults.concurrency)),
            tables,
            scope,
            query,
            dates,
            keys: keys.into_iter().map(|(key, _)| key).collect(),
            encoding,
        };
        Checked { job: Some(job), templates, enabled, sql_file }
    }

    pub(super) fn problem(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    pub(super) fn at(&self, at: &Range<usize>, message: impl Into<String>) -> Problem {
        Problem::at(self.source, at.clone(), message)
    }

    /// A problem with these bytes of a string's value.
    pub(super) fn inside(
        &self,
        text: &Located<String>,
        at: Range<usize>,
        message: impl Into<String>,
    ) -> Problem {
        Problem::at(self.source, raw::range(&self.source.text, text, at), message)
    }

    fn schedule(&mut self, text: &Located<String>, zone: chrono_tz::Tz) -> Option<Schedule> {
        let error = match Schedule::parse(&text.value, zone) {
            Ok(schedule) => return Some(schedule),
            Err(error) => error,
        };
        let problem = self.inside(text, error.at, error.problem.to_string());
        self.problem(match &error.problem {
            ScheduleProblem::Field { allowed, .. } => problem.hint(format!(
                "write {allowed}, `*`, a list `1,2`, a range `1-5`, or with a step `*/5`"
            )),
            ScheduleProblem::FieldCount { .. } => problem.hint(schedule_hint(&text.value)),
            ScheduleProblem::Interval(_) => {
                problem.hint("write `every` and a duration: `every 10m`")
            }
            ScheduleProblem::TooOften | ScheduleProblem::Never => problem,
        });
        None
    }

    fn length(
        &mut self,
        name: &str,
        field: Option<&Located<Length>>,
        or: Option<Duration>,
    ) -> Option<Duration> {
        let Some(field) = field else { return or };
        if field.value.0 < limit::SHORTEST {
            let message = format!("`{name}` is at least {}", long(limit::SHORTEST));
            self.problem(self.at(&field.at, message));
            return None;
        }
        Some(field.value.0)
    }

    fn count(
        &mut self,
        name: &str,
        field: Option<&Located<u64>>,
        allowed: RangeInclusive<u64>,
    ) -> Option<u64> {
        let field = field?;
        if !allowed.contains(&field.value) {
            let (least, most) = (allowed.start(), allowed.end());
            let message = format!("`{name}` is from {least} to {most}, not {}", field.value);
            self.problem(self.at(&field.at, message));
            return None;
        }
        Some(field.value)
    }

    /// Checks that a key lives until the next run writes it again: one run may write it early and
    /// the next one late.
    fn fits(&mut self, file: &JobFile, schedule: &Schedule, times: Times) {
        let Times { ttl, timeout, ttl_jitter } = times;
        let (Some(schedule_at), Some(ttl_at)) = (&file.schedule, &file.ttl) else { return };
        let Some(gap) = schedule.longest_gap() else {
            let problem =
                self.at(&schedule_at.at, "the schedule ends, and its keys expire after it");
            self.problem(problem.hint("leave the year out of the cron expression, or write `*`"));
            return;
        };
        let least = whole_milliseconds(ttl.saturating_sub(ttl_jitter.of(ttl)));
        if gap + timeout <= least {
            return;
        }
        let message = format!(
            "keys may expire between two runs: ttl {} less {ttl_jitter} jitter is {}; the schedule \
             leaves up to {} and the run may take {}",
            long(ttl),
            long(least),
            long(gap),
            long(timeout)
        );
        let mut changes = Vec::new();
        if ttl_jitter.fraction() < 1.0 {
            let needed = (gap + timeout).div_f64(1.0 - ttl_jitter.fraction());
            let needed = rounded_up(whole_milliseconds(needed));
            if needed <= duration::LONGEST {
                changes.push(format!("raise `ttl` to {}", long(needed)));
            }
        }
        let left = least.saturating_sub(gap);
        if left >= limit::SHORTEST {
            changes.push(format!("lower `timeout` to {}", long(left)));
        }
        let rest = least.saturating_sub(timeout);
        if rest >= limit::SHORTEST {
            let room = if rest / 2 >= limit::SHORTEST {
                format!(", or {} with room for one failed run", long(rest / 2))
            } else {
                String::new()
            };
            changes.push(format!("let `schedule` leave at most {}{room}", long(rest)));
        }
        if changes.is_empty() {
            changes.push("raise `ttl`, or lower `ttl_jitter`".to_owned());
        }
        let mut problem = self
            .at(&ttl_at.at, message)
            .allowed(format!("{} at worst", long(least)))
            .note(schedule_at.at.clone(), format!("leaves up to {}", long(gap)));
        if let Some(timeout_at) = &file.timeout {
            problem = problem.note(timeout_at.at.clone(), format!("may take {}", long(timeout)));
        }
        self.problem(problem.hint(changes.join(", or ")));
    }

    fn query(
        &mut self,
        query: &Located<QueryFile>,
        scope: Scope,
    ) -> (Option<Query>, Option<Arc<Source>>) {
        let order = query.value.order.as_ref().map(|order| self.order(order)).unwrap_or_default();
        let (sql, file) = match (&query.value.sql, &query.value.file) {
            (Some(sql), None) => {
                let sql = Arc::from(sql.value.as_str());
                (Some(Query { sql, file: None, order }), None)
            }
            (None, Some(file)) => match self.query_file(file) {
                Some((path, source)) => {
                    let sql = Arc::from(source.text.as_str());
                    (Some(Query { sql, file: Some(path), order }), Some(source))
                }
                None => (None, None),
            },
            (Some(sql), Some(file)) => {
                let problem = self.at(&file.key, "a query has `sql` or `file`, not both");
                self.problem(problem.note(sql.key.clone(), "the other one"));
                (None, None)
            }
            (None, None) => {
                let is_missing = !self.problems.iter().any(|problem| problem.is_within(&query.at));
                if is_missing {
                    let problem = self.at(&query.at, "missing field `sql`");
                    self.problem(problem.hint("add `sql = \"…\"`, or `file = \"NAME.sql\"`"));
                }
                (None, None)
            }
        };
        if let Some(Query { sql, .. }) = &sql {
            let place = query.value.sql.as_ref().or(query.value.file.as_ref());
            let at = place.map_or(query.at.clone(), |place| place.key.clone());
            if sql.trim().is_empty() {
                self.problem(self.at(&at, "the query is empty"));
            } else if scope == Scope::Tenants && !sql.contains("$1") {
                let problem = self.at(&at, "the query of a job with tenants does not use `$1`");
                let hint = "`$1` is the array of the batch's tenant ids: `where tenant_id = any($1)`; \
                            a query for all tenants together has `tenants = false`";
                self.problem(problem.hint(hint));
            }
        }
        (sql, file)
    }

    fn query_file(&mut self, file: &Located<String>) -> Option<(PathBuf, Arc<Source>)> {
        let path = Path::new(&file.value);
        let stays =
            path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if file.value.is_empty() {
            self.problem(self.at(&file.at, "this is empty"));
            return None;
        }
        if !stays {
            let problem = self.at(&file.at, format!("`{}` is outside the jobs folder", file.value));
            self.problem(problem.hint("put the file beside the job file and write its name"));
            return None;
        }
        match (self.sql_files)(path) {
            Ok(text) => {
                let folder = self.source.path.parent().unwrap_or(Path::new(""));
                let source = Source { path: folder.join(path), text };
                Some((path.to_owned(), Arc::new(source)))
            }
            Err(message) => {
                self.problem(self.at(&file.at, message));
                None
            }
        }
    }

    fn dates(&mut self, file: &JobFile, scope: Scope) -> Option<Dates> {
        let dates = file.dates.as_ref()?;
        let days = self.count("days", dates.value.days.as_ref(), limit::DAYS);
        let zone = dates.value.timezone.as_ref()?;
        let fixed = date::zone(&zone.value).map(DateZone::Fixed);
        let column = zone.value.strip_prefix("tenant.").filter(|column| !column.is_empty());
        let column = column.map(|column| DateZone::TenantColumn(column.to_owned()));
        if column.is_some() && scope == Scope::Global {
            let problem = self.at(&zone.at, "a job without tenants has no zone of a tenant");
            self.problem(problem.hint("write the name of a zone"));
        } else if column.is_none() && fixed.is_none() {
            let hint = nearest_zone(&zone.value).unwrap_or_else(|| {
                "write `tenant.COLUMN` for a column of the tenant query, or a zone".to_owned()
            });
            self.problem(self.at(&zone.at, unknown_zone(&zone.value)).hint(hint));
        }
        let zone = fixed.or(column);
        let column = dates.value.column.as_ref();
        if let Some(empty) = column.filter(|column| column.value.trim().is_empty()) {
            let problem = self.at(&empty.at, "this is empty");
            self.problem(problem.hint("name a column of the query, such as `starts_at`"));
        }
        let column = column.map(|column| column.value.clone());
        Some(Dates { days: days?.try_into().ok()?, zone: zone?, column })
    }

    fn keys(
        &mut self,
        keys: &Located<Vec<Located<KeyFile>>>,
        scope: Scope,
    ) -> Vec<(Key, Range<usize>)> {
        if keys.value.is_empty() && !self.problems.iter().any(|problem| problem.is_within(&keys.at))
        {
            let problem = self.at(&keys.at, "a job has at least one key");
            let tenant = &self.defaults.tenant_column;
            self.problem(problem.hint(format!("add `[[keys]]` with `key = \"…:{{{tenant}}}\"`")));
        }
        if keys.value.len() > limit::KEYS {
            let message = format!("a job has at most {} keys", limit::KEYS);
            self.problem(self.at(&keys.at, message));
        }
        let mut checked: Vec<(Key, Range<usize>)> = Vec::new();
        for key in keys.value.iter().take(limit::KEYS) {
            let Some((template, text)) = self.template(&key.value) else { continue };
            if let Some((_, before)) = checked.iter().find(|(other, _)| other.template == template)
            {
                let problem = self.at(&text.at, "this key stands here twice");
                self.problem(problem.note(before.clone(), "the first time"));
                continue;
            }
            self.placeholders(&template, text, scope);
            self.unique(&key.value, &template, text, scope);
            let shape = key.value.shape.as_ref().map_or(Shape::List, |shape| shape.value.0);
            let unique = key.value.unique.as_ref().map(|column| column.value.clone());
            checked.push((Key { template, shape, unique }, text.at.clone()));
        }
        checked
    }

    fn template<'f>(&mut self, key: &'f KeyFile) -> Option<(KeyTemplate, &'f Located<String>)> {
        let text = key.key.as_ref()?;
        let template = match KeyTemplate::parse(&text.value, &self.defaults.tenant_column) {
            Ok(template) => template,
            Err(error) => {
                self.problem(self.inside(text, error.at.clone(), error.to_string()));
                return None;
            }
        };
        if text.value.len() > limit::TEMPLATE_BYTES {
            let message = format!("a key's template has at most {} bytes", limit::TEMPLATE_BYTES);
            self.problem(self.at(&text.at, message));
        }
        if let Some(Part::Literal(start)) = template.parts().first()
            && start.starts_with(RESERVED)
        {
            let message = format!("keys that begin with `{RESERVED}` are preheat's own");
            self.problem(self.inside(text, 0..RESERVED.len(), message));
        }
        Some((template, text))
    }

    /// Finds placeholders that a job of this scope cannot fill.
    fn placeholders(&mut self, template: &KeyTemplate, text: &Located<String>, scope: Scope) {
        if scope == Scope::Tenants {
            return;
        }
        for placeholder in template.placeholders() {
            let (Placeholder::Tenant | Placeholder::TenantColumn(_)) = placeholder else {
                continue;
            };
            let name = placeholder.name(&self.defaults.tenant_column);
            let at = find(&text.value, &name);
            let problem =
                self.inside(text, at, format!("a job without tenants cannot fill `{{{name}}}`"));
            self.problem(problem.hint("take it out of the key, or leave out `tenants = false`"));
        }
    }

    fn unique(
        &mut self,
        key: &KeyFile,
        template: &KeyTemplate,
        text: &Located<String>,
        scope: Scope,
    ) {
        let tenant = self.defaults.tenant_column.as_str();
        match (&key.unique, scope) {
            (Some(unique), Scope::Global) => {
                let problem = self.at(&unique.key, "a job without tenants needs no `unique`");
                self.problem(problem.hint("take it out"));
            }
            (Some(unique), Scope::Tenants) => {
                let names: Vec<_> = template
                    .placeholders()
                    .filter(|placeholder| **placeholder != Placeholder::Date)
                    .map(|placeholder| placeholder.name(tenant))
                    .collect();
                if !names.contains(&unique.value) {
                    let message = format!("`{}` is no placeholder of the key", unique.value);
                    let hint = if names.is_empty() {
                        format!("put `{{{}}}` into the key", unique.value)
                    } else {
                        format!("the key has {}", listed(names.iter().map(String::as_str), "and"))
                    };
                    let problem = self.at(&unique.at, message).note(text.at.clone(), "this key");
                    self.problem(problem.hint(hint));
                }
            }
            (None, Scope::Tenants) if !template.has_tenant() => {
                let problem =
                    self.at(&text.at, "two tenants may have this key: it does not say whose it is");
                let hint = self.tenant_hint(template);
                self.problem(problem.hint(hint));
            }
            (None, Scope::Tenants | Scope::Global) => {}
        }
    }

    /// The hint for a key without the tenant's id. Its column may be that id: the settings may use
    /// another name for it, or may be missing.
    fn tenant_hint(&self, template: &KeyTemplate) -> String {
        let Defaults { tenant_column: tenant, has_settings_file, .. } = self.defaults;
        let other = template.placeholders().find(|other| **other != Placeholder::Date);
        let Some(other) = other.map(|other| other.name(tenant)) else {
            return format!("put `{{{tenant}}}` into the key");
        };
        let own = format!(
            "put `{{{tenant}}}` into the key, or, if `{other}` is unique over all tenants, add \
             `unique = \"{other}\"`"
        );
        if !template.columns().any(|column| column == other) {
            return own;
        }
        let file = if *has_settings_file {
            "the settings"
        } else {
            "`preheat.toml`, which was not found in the working directory"
        };
        format!(
            "if `{other}` is the tenant's id, set `tenants.column = \"{other}\"` in {file}; \
             otherwise {own}"
        )
    }

    fn dates_and_keys(&mut self, file: &JobFile, keys: &[(Key, Range<usize>)]) {
        let with_date = keys.iter().find(|(key, _)| key.template.has_date());
        match (&file.dates, with_date, &file.keys) {
            (None, Some((_, at)), _) => {
                let problem = self.at(at, "a key with `{date}` needs `[dates]`");
                let hint = "add `[dates]` with `days = 7` and `timezone = \"tenant.timezone\"`; if \
                            `date` is meant to be another column of the query, rename it";
                self.problem(problem.hint(hint));
            }
            (Some(dates), None, Some(written)) if keys.len() == written.value.len() => {
                let problem = self.at(&dates.at, "`[dates]` without a key that has `{date}`");
                self.problem(problem.hint("put `{date}` into a key, or take `[dates]` out"));
            }
            (None | Some(_), None | Some(_), None | Some(_)) => {}
        }
    }

    /// Finds an `order` although no key is a list: an object is made from a single row.
    fn order_and_keys(&mut self, file: &JobFile, keys: &[(Key, Range<usize>)]) {
        let order = file.query.as_ref().and_then(|query| query.value.order.as_ref());
        let (Some(order), Some(written)) = (order, &file.keys) else { return };
        let is_whole = !keys.is_empty() && keys.len() == written.value.len();
        if is_whole && keys.iter().all(|(key, _)| key.shape == Shape::Object) {
            let problem = self.at(&order.key, "`order` has no effect: no key is a list");
            let hint = "take it out; where a tenant has several rows, choose the row in the SQL: \
                        `select distinct on (…) … order by …`";
            self.problem(problem.hint(hint));
        }
    }

    fn tables(&mut self, file: &JobFile, keys: &[(Key, Range<usize>)]) -> Vec<Table> {
        let Some(tables) = &file.tables else { return Vec::new() };
        if tables.value.len() > limit::NAMES {
            self.problem(self.at(&tables.at, format!("at most {} tables", limit::NAMES)));
        }
        let mut checked: Vec<Table> = Vec::new();
        for located in tables.value.iter().take(limit::NAMES) {
            let (name, tenant, sql, key) = match &located.value {
                TableFile::Name(name) => (name.clone(), None, None, None),
                TableFile::Table(table) => {
                    let Some(name) = &table.name else { continue };
                    if let (Some(tenant), Some(sql)) = (&table.tenant, &table.sql) {
                        let message = "a table has `tenant` or `sql`, not both";
                        self.problem(
                            self.at(&sql.key, message).note(tenant.key.clone(), "the other one"),
                        );
                    }
                    let TableFields { tenant, sql, key, .. } = table.clone();
                    (name.value.clone(), tenant, sql, key)
                }
            };
            let parts = name.split('.').count();
            if name.split('.').any(|part| part.trim().is_empty()) || parts > 2 {
                let problem = self.at(&located.at, format!("`{name}` is no name of a table"));
                self.problem(problem.hint("write `NAME`, or `SCHEMA.NAME`"));
            }
            if let Some(empty) = [&tenant, &sql, &key]
                .into_iter()
                .flatten()
                .find(|text| text.value.trim().is_empty())
            {
                self.problem(self.at(&empty.at, "this is empty"));
            }
            let all_keys = file.keys.as_ref().map_or(0, |written| written.value.len());
            // If some key is invalid, nobody can tell what it is made from.
            if let Some(key) = key.as_ref().filter(|_| keys.len() == all_keys) {
                self.key_column(key, keys);
            }
            if checked.iter().any(|other| other.name == name) {
                self.problem(self.at(&located.at, format!("`{name}` stands here twice")));
            }
            let [tenant, sql, key] = [tenant, sql, key].map(|text| text.map(|text| text.value));
            checked.push(Table { name, tenant, sql, key });
        }
        checked
    }

    /// Checks that the job has shared keys made from the values of a table's column.
    fn key_column(&mut self, column: &Located<String>, keys: &[(Key, Range<usize>)]) {
        let all = keys.iter().map(|(key, _)| key);
        if !keys_by_values_of(&column.value, all.clone()).is_empty() {
            return;
        }
        let by: BTreeSet<_> = all.clone().filter_map(Key::by_one_value).collect();
        let shared = keys.iter().find(|(key, _)| key.unique.is_some());
        let mut problem = if by.is_empty() {
            let message = "no key of this job is made from the value of a single column";
            let hint = match shared {
                Some(_) => {
                    "such a key has no other placeholder than the one that `unique` names; take \
                     `key` out"
                }
                None => {
                    "`key` is for shared keys, such as `pet:{id}` with `unique = \"id\"`: take it out"
                }
            };
            self.at(&column.at, message).hint(hint)
        } else {
            let message = format!(
                "the job's shared keys are made from several columns, none of them `{}`",
                column.value
            );
            self.at(&column.at, message).hint(format!("write {}", listed(by, "or")))
        };
        if let Some((_, at)) = shared {
            problem = problem.note(at.clone(), "a shared key");
        }
        self.problem(problem);
    }

    fn encoding(&mut self, encode: Option<&Located<EncodeFile>>) -> Encoding {
        let encode = encode.map(|encode| &encode.value);
        let written = encode.and_then(|encode| encode.omit.as_ref());
        let mut omit = BTreeSet::new();
        for column in written.iter().flat_map(|list| &list.value) {
            if !omit.insert(column.value.as_str()) {
                self.problem(self.at(&column.at, format!("`{}` stands here twice", column.value)));
            }
        }
        let columns = encode.and_then(|encode| encode.columns.as_ref());
        for (name, codec) in columns.iter().flat_map(|columns| &columns.value) {
            if omit.contains(name.as_str()) {
                let message = format!("`{name}` has a codec, and `omit` leaves it out");
                self.problem(self.at(&codec.key, message));
            }
        }
        let max_bytes = encode.and_then(|encode| encode.max_bytes.as_ref());
        if let Some(bytes) = max_bytes
            && !limit::VALUE_BYTES.contains(&bytes.value.0)
        {
            self.problem(self.at(&bytes.at, "`max_bytes` is from 2 bytes to 512MiB"));
        }
        let max_bytes = max_bytes.map_or(default::MAX_BYTES, |bytes| bytes.value.0);
        let profile = encode.and_then(|encode| encode.profile.as_ref());
        let case = encode.and_then(|encode| encode.case.as_ref());
        let columns = columns.iter().flat_map(|columns| &columns.value);
        Encoding {
            profile: profile.map(|profile| profile.value.0).unwrap_or_default(),
            case: case.map(|case| case.value.0).unwrap_or_default(),
            omit: written
                .iter()
                .flat_map(|list| &list.value)
                .map(|column| column.value.clone())
                .collect(),
            columns: columns.map(|(name, codec)| (name.clone(), codec.value.0)).collect(),
            max_bytes: usize::try_from(max_bytes).unwrap_or(usize::MAX),
        }
    }
}

/// The times that must fit together.
#[derive(Clone, Copy)]
struct Times {
    ttl: Duration,
    timeout: Duration,
    ttl_jitter: Share,
}

/// The prefix of all of preheat's own keys.
const RESERVED: &str = "preheat:";

/// The key templates of one file, with their places in it.
pub(super) struct Templates<'a> {
    pub(super) source: &'a Arc<Source>,
    /// Whether the job is enabled.
    pub(super) enabled: bool,
    pub(super) templates: Vec<(KeyTemplate, Range<usize>)>,
}

/// Keys that are ambiguous whichever of these classes the tenants' ids belong to, each with the
/// index of its file. There are two kinds: keys that two enabled jobs could write, where the
/// problem belongs to the file whose name comes later, and keys in which two placeholders stand
/// side by side.
pub(super) fn conflicts(files: &[Templates<'_>], classes: &[IdClass]) -> Vec<(usize, Problem)> {
    let mut problems = Vec::new();
    for (index, Templates { source, enabled, templates }) in files.iter().enumerate() {
        for (template, at) in templates {
            if classes.iter().all(|ids| template.run_together(*ids)) {
                let message = "two placeholders stand side by side: a key does not say where the \
                               value of the first one ends";
                let problem = Problem::at(source, at.clone(), message);
                problems.push((index, problem.hint("put text between them, such as `:`")));
            }
            let earlier = files.iter().take(index).filter(|other| other.enabled && *enabled);
            let found = earlier.into_iter().find_map(|other| {
                let may_equal = |(other, _): &&(KeyTemplate, _)| {
                    classes.iter().all(|ids| other.may_equal(template, *ids))
                };
                Some((other.source, other.templates.iter().find(may_equal)?))
            });
            if let Some((other, (same, place))) = found {
                let (line, _) =
                    Problem::at(other, place.clone(), "").line_and_column().unwrap_or_default();
                let message = format!(
                    "two jobs can write one key: this, and `{same}` in {}:{line}",
                    other.path.display()
                );
                let problem = Problem::at(source, at.clone(), message);
                let hint = "begin the keys of each job with a different text";
                problems.push((index, problem.hint(hint)));
            }
        }
    }
    problems
}

/// The hint for a schedule that cannot be parsed: what its author may have meant.
fn schedule_hint(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    let text = match words.as_slice() {
        ["@yearly" | "@annually"] => "0 0 0 1 1 *".to_owned(),
        ["@monthly"] => "0 0 0 1 * *".to_owned(),
        ["@weekly"] => "0 0 0 * * SUN".to_owned(),
        ["@daily" | "@midnight" | "daily"] => "0 0 0 * * *".to_owned(),
        ["@hourly" | "hourly"] => "every 1h".to_owned(),
        [interval] if duration::parse(interval).is_ok() => format!("every {interval}"),
        ["@every", interval] => format!("every {interval}"),
        _ => return "write `every 10m`, or `0 */10 * * * *`".to_owned(),
    };
    format!("write `{text}`")
}

fn to_size(count: u64) -> Option<NonZeroUsize> {
    NonZeroUsize::new(usize::try_from(count).ok()?)
}

fn whole_milliseconds(duration: Duration) -> Duration {
    let nanos = Duration::from_nanos(u64::from(duration.subsec_nanos()));
    let milliseconds = (nanos.as_secs_f64() * 1000.0).round();
    Duration::from_secs(duration.as_secs()) + Duration::from_secs_f64(milliseconds / 1000.0)
}

/// A duration as a person would write it: in whole seconds, and from ten minutes up in whole
/// minutes.
fn rounded_up(duration: Duration) -> Duration {
    let seconds = u64::try_from(duration.as_millis().div_ceil(1000)).unwrap_or(u64::MAX);
    let unit = if seconds < 600 { 1 } else { 60 };
    Duration::from_secs(seconds.div_ceil(unit).saturating_mul(unit))
}

/// The place of a placeholder in a template's text.
fn find(template: &str, placeholder: &str) -> Range<usize> {
    let text = format!("{{{placeholder}}}");
    let start = template.find(&text).unwrap_or_default();
    start..start + text.len()
}
