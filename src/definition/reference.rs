//! The JSON Schema of a job file, and the reference in `jobs/README.md` that is generated from it.

use std::fmt::Write;
use std::sync::Arc;

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::problem::Source;

/// The JSON Schema of a job file.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12();
    let schema = settings.into_generator().into_root_schema_for::<super::file::JobFile>();
    let mut schema = schema.to_value();
    as_toml(&mut schema);
    schema
}

/// The file in the jobs folder in which editors find [`schema`].
pub const SCHEMA_FILE: &str = "job.schema.json";

/// The text of [`SCHEMA_FILE`].
pub fn schema_text() -> String {
    format!("{:#}\n", schema())
}

/// The text of `jobs/README.md`.
pub fn reference() -> String {
    let schema = schema();
    let fields = fields();
    let mut text = String::from(INTRODUCTION);
    text.push_str("\n```toml\n");
    text.push_str(EXAMPLE);
    text.push_str("```\n");
    for section in SECTIONS {
        section.write(&mut text, &schema, &fields);
    }
    text.push_str(RULES);
    text
}

/// A job file that uses every field.
pub const EXAMPLE: &str = include_str!("example.toml");

const INTRODUCTION: &str = include_str!("introduction.md");
const RULES: &str = include_str!("rules.md");

/// A table of the file, by its path in a job file and in the schema.
struct Section {
    title: &'static str,
    path: &'static str,
    pointer: &'static str,
}

const SECTIONS: [Section; 6] = [
    Section { title: "The job", path: "", pointer: "" },
    Section { title: "`[query]`", path: "query", pointer: "/properties/query" },
    Section { title: "`[dates]`", path: "dates", pointer: "/properties/dates" },
    Section { title: "`[[keys]]`", path: "keys", pointer: "/properties/keys/items" },
    Section { title: "`[encode]`", path: "encode", pointer: "/properties/encode" },
    Section {
        title: "A table in `tables`",
        path: "tables",
        pointer: "/properties/tables/items/anyOf/1",
    },
];

impl Section {
    fn write(&self, text: &mut String, schema: &Value, fields: &[String]) {
        let Some(table) = schema.pointer(self.pointer) else { return };
        let names = fields.iter().filter_map(|field| match field.rsplit_once('.') {
            Some((path, name)) => (path == self.path).then_some(name),
            None => self.path.is_empty().then_some(field.as_str()),
        });
        let head = "| field | what it is | default | meaning |\n| --- | --- | --- | --- |";
        let mut lines = format!("\n## {}\n\n{head}\n", self.title);
        for name in names {
            let Some(field) = table.pointer(&format!("/properties/{name}")) else { continue };
            let required = table.get("required").and_then(Value::as_array);
            let is_required = required.is_some_and(|names| names.iter().any(|other| other == name));
            let default = match field.get("default") {
                _ if is_required => "required".to_owned(),
                Some(value) => format!("`{value}`"),
                None => "–".to_owned(),
            };
            let meaning = field.get("description").and_then(Value::as_str).unwrap_or_default();
            let kind = kind(field);
            // Writing into a string cannot fail.
            let _written = writeln!(lines, "| `{name}` | {kind} | {default} | {meaning} |");
        }
        text.push_str(&lines);
    }
}

/// Every field that the reader asks for, by its path without indexes: `keys.shape`.
pub(super) fn fields() -> Vec<String> {
    let source = Arc::new(Source { path: "example.toml".into(), text: EXAMPLE.to_owned() });
    let known =
        super::read(&source, "tenant_id").map(|(_, reader)| reader.known).unwrap_or_default();
    let mut fields: Vec<String> = Vec::new();
    for path in known {
        let parts = path.split('.').filter(|part| part.parse::<usize>().is_err());
        let field = parts.collect::<Vec<_>>().join(".");
        if !fields.contains(&field) {
            fields.push(field);
        }
    }
    fields
}

/// The type of a field, in a word or two.
fn kind(field: &Value) -> String {
    let text = |name: &str| field.get(name).and_then(Value::as_str);
    if let Some(title) = text("title") {
        return title.to_owned();
    }
    if let Some(words) = field.get("enum").and_then(Value::as_array) {
        let words: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
        return words.join(", ");
    }
    match text("type") {
        Some("string") => "text".to_owned(),
        Some("boolean") => "`true`, `false`".to_owned(),
        Some("integer") => match (field.get("minimum"), field.get("maximum")) {
            (Some(least), Some(most)) => format!("{least} to {most}"),
            (None | Some(_), None | Some(_)) => "whole number".to_owned(),
        },
        Some("array") => "list".to_owned(),
        Some(_) | None => "table".to_owned(),
    }
}

/// Removes what TOML does not have: the type null, because a field that may be missing is just not
/// required, and integer formats such as `uint64`.
fn as_toml(schema: &mut Value) {
    let null = Value::from("null");
    match schema {
        Value::Object(members) => {
            if let Some(Value::Array(kinds)) = members.get_mut("type") {
                kinds.retain(|kind| *kind != null);
                if let [only] = kinds.as_slice() {
                    let only = only.clone();
                    members.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::Array(words)) = members.get_mut("enum") {
                words.retain(|word| !word.is_null());
            }
            if members.get("format").is_some_and(|format| format == "uint64") {
                members.remove("format");
            }
            members.values_mut().for_each(as_toml);
        }
        Value::Array(elements) => elements.iter_mut().for_each(as_toml),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn properties(schema: &Value, section: &Section) -> BTreeSet<String> {
        let table = schema.pointer(section.pointer).unwrap();
        let names = table["properties"].as_object().unwrap().keys();
        let prefix =
            if section.path.is_empty() { String::new() } else { format!("{}.", section.path) };
        names.map(|name| format!("{prefix}{name}")).collect()
    }

    #[test]
    fn the_schema_has_the_fields_that_the_reader_looks_for_and_no_others() {
        let schema = schema();
        let of_schema: BTreeSet<_> =
            SECTIONS.iter().flat_map(|section| properties(&schema, section)).collect();
        let of_reader: BTreeSet<_> = fields().into_iter().collect();
        assert_eq!(of_schema, of_reader);
        let top_level: BTreeSet<_> = of_reader.iter().filter(|path| !path.contains('.')).collect();
        for name in super::super::read::TOP_LEVEL {
            assert!(top_level.contains(&name.to_owned()), "{name}");
        }
    }

    #[test]
    fn required_in_the_schema_is_what_the_reader_misses() {
        let source = Arc::new(Source {
            path: "a.toml".into(),
            text: "tables = [{}]\nquery = {}\ndates = {}\nkeys = [{}]\nencode = {}".to_owned(),
        });
        let (_, reader) = super::super::read(&source, "tenant_id").unwrap();
        let missed: BTreeSet<_> = reader
            .problems
            .iter()
            .filter_map(|problem| problem.message().strip_prefix("missing field "))
            .map(|name| name.trim_matches('`').to_owned())
            .collect();
        let schema = schema();
        let required: BTreeSet<_> = SECTIONS
            .iter()
            .filter_map(|section| schema.pointer(section.pointer).unwrap().get("required"))
            .flat_map(|names| names.as_array().unwrap())
            .map(|name| name.as_str().unwrap().to_owned())
            .filter(|name| !["query", "keys"].contains(&name.as_str()))
            .collect();
        assert_eq!(missed, required);
    }

    #[test]
    fn the_reader_accepts_what_the_schema_gives_as_defaults_choices_and_examples() {
        let schema = schema();
        let mut tried = 0;
        for section in SECTIONS {
            let header = match section.path {
                "" => String::new(),
                "keys" => "[[keys]]\n".to_owned(),
                "tables" => "[[tables]]\n".to_owned(),
                path => format!("[{path}]\n"),
            };
            let table = schema.pointer(section.pointer).unwrap();
            for (name, field) in table["properties"].as_object().unwrap() {
                let several = ["enum", "examples"].into_iter().filter_map(|list| field.get(list));
                let several = several.flat_map(|list| list.as_array().unwrap());
                let one = ["default", "minimum", "maximum"].into_iter();
                let is_number = field["type"] == "integer";
                let one = one.filter(|member| *member == "default" || is_number);
                for value in one.filter_map(|member| field.get(member)).chain(several) {
                    let text = format!("{header}{name} = {value}\n");
                    let source = Arc::new(Source { path: "a.toml".into(), text });
                    let (_, reader) = super::super::read(&source, "tenant_id").unwrap();
                    for problem in &reader.problems {
                        assert!(problem.message().starts_with("missing field"), "{problem}");
                    }
                    tried += 1;
                }
            }
        }
        assert!(tried > 30, "{tried}");
    }

    #[test]
    fn there_is_no_null_in_the_schema() {
        let text = schema().to_string();
        for null in ["\"null\"", ":null", "[null", ",null"] {
            assert!(!text.contains(null), "{:#}", schema());
        }
    }
}
