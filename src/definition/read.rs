//! Reads a table field by field, so that one problem does not hide the next.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Problem, Source};
use crate::domain::spelling::{listed, nearest};

/// The places of fields, by their path: `query.sql`, `keys.0.key`.
pub(super) type Spans = BTreeMap<String, Span>;

/// The place of a field.
#[derive(Clone, Debug)]
pub(super) struct Span {
    /// Its name.
    pub(super) key: Range<usize>,
    /// Its value.
    pub(super) at: Range<usize>,
}

/// A type that a field's value can be read as.
pub(super) trait Value: Sized {
    /// Reads the value. If it cannot, it adds a problem to the reader.
    fn read(value: &Spanned<DeValue<'_>>, path: &str, reader: &mut Reader) -> Option<Self>;
}

/// A value and its place in the file.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    /// The field's name. For an element of a list, it is the element itself.
    pub(super) key: Range<usize>,
    /// The value.
    pub(super) at: Range<usize>,
    pub(super) value: T,
}

impl<T: JsonSchema> JsonSchema for Located<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// What reading a file has found so far.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) source: Arc<Source>,
    pub(super) problems: Vec<Problem>,
    pub(super) spans: Spans,
    /// Every field that the code asked for, in order.
    pub(super) known: Vec<String>,
    /// The name of the tenant's id in key templates.
    tenant_column: String,
}

impl Reader {
    pub(super) fn new(source: &Arc<Source>, tenant_column: &str) -> Self {
        Self {
            source: Arc::clone(source),
            problems: Vec::new(),
            spans: Spans::new(),
            known: Vec::new(),
            tenant_column: tenant_column.to_owned(),
        }
    }

    /// Records the place of a field.
    pub(super) fn locate(&mut self, path: &str, key: Range<usize>, at: Range<usize>) {
        self.spans.insert(path.to_owned(), Span { key, at });
    }

    /// Adds the problem of a value whose type is not the field's.
    pub(super) fn wrong_type(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        path: &str,
        kind: &str,
        hint: Option<String>,
    ) {
        let name = path.rsplit('.').find(|part| part.parse::<usize>().is_err()).unwrap_or(path);
        let found = value.get_ref().type_str();
        let article = if found.starts_with(['a', 'i']) { "an" } else { "a" };
        let message = format!("`{name}` must be {kind}, not {article} {found}");
        self.bad_value(value, message, hint);
    }

    /// Adds the problem of a value that has the right type, but no meaning.
    pub(super) fn bad_value(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        message: String,
        hint: Option<String>,
    ) {
        let problem = Problem::at(&self.source, value.span(), message);
        self.problems.push(match hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        });
    }
}

/// The fields of one table.
pub(super) struct Fields<'a, 'i> {
    table: &'a DeTable<'i>,
    /// The table's header; `None` for the file itself.
    header: Option<Range<usize>>,
    path: &'a str,
    known: Vec<&'static str>,
    reader: &'a mut Reader,
}

impl<'a, 'i> Fields<'a, 'i> {
    pub(super) fn new(
        table: &'a DeTable<'i>,
        header: Option<Range<usize>>,
        path: &'a str,
        reader: &'a mut Reader,
    ) -> Self {
        Self { table, header, path, known: Vec::new(), reader }
    }

    /// Reads a field that may be missing.
    pub(super) fn optional<T: Value>(&mut self, name: &'static str) -> Option<Located<T>> {
        let path = self.path_of(name);
        self.known.push(name);
        self.reader.known.push(path.clone());
        let (key, value) = self.table.get_key_value(name)?;
        self.reader.locate(&path, key.span(), value.span());
        let read = T::read(value, &path, self.reader)?;
        Some(Located { key: key.span(), at: value.span(), value: read })
    }

    /// Reads a field that must be present.
    pub(super) fn required<T: Value>(&mut self, name: &'static str) -> Option<Located<T>> {
        if !self.table.contains_key(name) {
            let message = format!("missing field `{name}`");
            let problem = match &self.header {
                Some(header) => Problem::at(&self.reader.source, header.clone(), message),
                None => Problem::of_file(&self.reader.source.path, message),
            };
            self.reader
                .problems
                .push(problem.hint(example(&self.path_of(name), &self.reader.tenant_column)));
        }
        self.optional(name)
    }

    /// Adds a problem for each field that nobody asked for.
    pub(super) fn finish(self) {
        for (key, _) in self.table {
            let found: &str = key.get_ref();
            if !self.known.contains(&found) {
                let problem = Problem::at(
                    &self.reader.source,
                    key.span(),
                    format!("unknown field `{found}`"),
                );
                self.reader.problems.push(problem.hint(self.meant(found)));
            }
        }
    }

    fn meant(&self, found: &str) -> String {
        let here = if self.path.is_empty() { "" } else { self.path };
        let table = |path: &str| path.split('.').next().unwrap_or_default().to_owned();
        let moved = MOVED.iter().find(|(name, _)| *name == found).map(|(_, to)| *to);
        let alias = ALIASES.iter().find(|(alias, _)| *alias == found).map(|(_, name)| *name);
        let alias = alias.filter(|name| self.known.contains(name));
        if let Some(name) = alias.or_else(|| nearest(found, self.known.iter().copied())) {
            return format!("did you mean `{name}`?");
        }
        if !here.is_empty() && TOP_LEVEL.contains(&found) {
            let header =
                if table(here) == "keys" { "[[keys]]".to_owned() } else { format!("[{here}]") };
            return format!(
                "it stands under `{header}`; move it above the first table of the file"
            );
        }
        match moved {
            Some(to) if here.is_empty() => format!("it belongs under `{to}`"),
            Some(_) | None => {
                format!("the fields here are {}", listed(self.known.iter().copied(), "and"))
            }
        }
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

/// The names that other tools use for a field.
const ALIASES: [(&str, &str); 19] = [
    ("cron", "schedule"),
    ("every", "schedule"),
    ("interval", "schedule"),
    ("intervall", "schedule"),
    ("period", "schedule"),
    ("expire", "ttl"),
    ("expires", "ttl"),
    ("expiry", "ttl"),
    ("jitter", "ttl_jitter"),
    ("tz", "timezone"),
    ("zone", "timezone"),
    ("batch_size", "batch"),
    ("parallelism", "concurrency"),
    ("retry", "retries"),
    ("template", "key"),
    ("exclude", "omit"),
    ("order_by", "order"),
    ("orderby", "order"),
    ("sort", "order"),
];

/// The tables in which fields belong that people write outside of them.
const MOVED: [(&str, &str); 13] = [
    ("sql", "[query]"),
    ("file", "[query]"),
    ("order", "[query]"),
    ("days", "[dates]"),
    ("key", "[[keys]]"),
    ("shape", "[[keys]]"),
    ("unique", "[[keys]]"),
    ("profile", "[encode]"),
    ("case", "[encode]"),
    ("omit", "[encode]"),
    ("columns", "[encode]"),
    ("max_bytes", "[encode]"),
    ("template", "[[keys]]"),
];

/// Fields of the file itself. If they are written below a table's header, TOML takes them for
/// fields of that table.
pub(super) const TOP_LEVEL: [&str; 15] = [
    "description",
    "schedule",
    "ttl",
    "ttl_jitter",
    "on_start",
    "required",
    "enabled",
    "timeout",
    "overlap",
    "retries",
    "batch",
    "concurrency",
    "tables",
    "tenants",
    "keys",
];

/// The line to add for a missing field.
fn example(path: &str, tenant: &str) -> String {
    let last = path.rsplit('.').next().unwrap_or_default();
    let key = format!("key = \"…:{{{tenant}}}\"");
    let text = match last {
        "schedule" => "schedule = \"every 10m\"",
        "ttl" => "ttl = \"30m\"",
        "query" => "[query]` with `sql = \"…\"",
        "keys" => &format!("[[keys]]` with `{key}"),
        "key" => &key,
        "days" => "days = 7",
        "timezone" => "timezone = \"tenant.timezone\"",
        "name" => "name = \"…\"",
        other => other,
    };
    format!("add `{text}`")
}
