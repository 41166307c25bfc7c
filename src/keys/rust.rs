//! The builders in Rust, as `rustfmt` writes them.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::builder::{Builder, KeyPart, Parameter, Rule};
use super::pattern::{Class, Pattern, Piece};
use super::{JobBuilders, name, used_helpers};
use crate::domain::count::grouped;
use crate::domain::job::{KeyKind, Shape};
use crate::domain::json::{JsonType, RowMember};

/// The functions that builders call.
const HELPERS: &str = include_str!("helpers.rs");

/// The longest line, and the longest list of arguments in one line.
const LINE: usize = 100;
const ARGUMENTS: usize = 60;

/// The language's words.
const RESERVED: &[&str] = &[
    "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate",
    "do", "dyn", "else", "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl",
    "in", "let", "loop", "macro", "match", "mod", "move", "mut", "override", "priv", "pub", "ref",
    "return", "self", "static", "struct", "super", "trait", "true", "try", "type", "typeof",
    "union", "unsafe", "unsized", "use", "virtual", "where", "while", "yield",
];

/// The names of the helpers.
const HELPER_NAMES: &[&str] = &[
    "as_date",
    "as_integer",
    "as_text",
    "as_uuid",
    "ended_by",
    "is_date",
    "is_uuid",
    "is_value",
    "not_of",
    "read_once",
    "readings",
];

/// The whole file.
pub(super) fn file(jobs: &[JobBuilders<'_>], arguments: &str) -> String {
    let mut body = String::new();
    for job in jobs {
        if let Some(members) = &job.members {
            body += &row_type(job, members);
        }
        for builder in &job.builders {
            body += &function(job, builder);
        }
    }
    let helpers = used_helpers(HELPERS, helper_name, &body).join("\n\n");
    let uses_serde = jobs.iter().any(|job| job.members.is_some());
    let serde = if uses_serde { "use serde::{Deserialize, Serialize};\n" } else { "" };
    format!(
        "// Made from the job files by `preheat keys {arguments}`; do not edit.\n\
         // To make it anew: preheat keys {arguments} --output <this file>\n\
         #![allow(dead_code, unreachable_pub, clippy::pedantic, reason = \"generated\")]\n\n\
         use std::fmt;\nuse std::time::Duration;\n\n\
         use preheat_client::{{Fill, Key}};\n{serde}\n{body}{helpers}\n"
    )
}

fn helper_name(block: &str) -> Option<&str> {
    let line = block.lines().find_map(|line| line.strip_prefix("fn "))?;
    line.split_once('(').map(|(name, _)| name)
}

/// The type of a job's rows.
fn row_type(job: &JobBuilders<'_>, members: &[RowMember]) -> String {
    let (name, of) = (row_name(job), &job.job.name);
    let mut text = format!(
        "/// A row of job `{of}`.\n\
         #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]\npub struct {name} {{\n"
    );
    let mut taken = BTreeSet::new();
    for member in members {
        let words = name::named("value", name::words(&member.name));
        let words = name::unlike(&taken, words);
        taken.insert(words.clone());
        let plain = name::snake(&words);
        if plain != member.name {
            let name = member.name.escape_debug();
            let _a_string_takes_all = writeln!(text, "    #[serde(rename = \"{name}\")]");
        }
        let (column, ty) = (member.column.to_string(), member_type(member));
        let (column, field) = (column.escape_debug(), field(&plain));
        let _a_string_takes_all = writeln!(text, "    /// `{column}`\n    pub {field}: {ty},");
    }
    text + "}\n\n"
}

fn row_name(job: &JobBuilders<'_>) -> String {
    name::pascal(&job.name) + "Row"
}

/// A field may be called like a word of the language, except for those that `r#` cannot mark.
fn field(name: &str) -> String {
    match name {
        "crate" | "self" | "super" => format!("{name}_"),
        _ if RESERVED.contains(&name) => format!("r#{name}"),
        _ => name.to_owned(),
    }
}

fn member_type(member: &RowMember) -> String {
    let ty = json_type(&member.ty);
    if member.is_nullable && member.ty != JsonType::Any { format!("Option<{ty}>") } else { ty }
}

fn json_type(ty: &JsonType) -> String {
    let fixed = match ty {
        JsonType::Boolean => "bool",
        JsonType::Int16 => "i16",
        JsonType::Int32 => "i32",
        JsonType::Int64 => "i64",
        JsonType::Oid => "u32",
        JsonType::Number => "f64",
        JsonType::String => "String",
        JsonType::PointPair => "[f64; 2]",
        JsonType::Point | JsonType::Buffer | JsonType::Interval | JsonType::Any => {
            "serde_json::Value"
        }
        JsonType::Array { element, has_nulls } => {
            let element = json_type(element);
            return if *has_nulls {
                format!("Vec<Option<{element}>>")
            } else {
                format!("Vec<{element}>")
            };
        }
    };
    fixed.to_owned()
}

fn function(job: &JobBuilders<'_>, builder: &Builder<'_>) -> String {
    let template = builder.key.template.as_str().escape_debug();
    let mut lines = vec![signature(job, builder)];
    lines.extend(builder.parameters.iter().flat_map(checks));
    let mut text = String::new();
    for part in &builder.parts {
        match part {
            KeyPart::Text(literal) => {
                text += &literal.escape_debug().to_string().replace('{', "{{").replace('}', "}}");
            }
            KeyPart::Value(index) => {
                let name = builder.parameters.get(*index).map(parameter_name).unwrap_or_default();
                text.extend(["{", &name, "}"]);
            }
        }
    }
    let ttl = grouped(builder.job.ttl.as_millis());
    let key = if builder.parameters.is_empty() {
        let text = text.replace("{{", "{").replace("}}", "}");
        format!("    let key = \"{text}\";")
    } else {
        call("    let key = format!", &[format!("\"{text}\"")], ";")
    };
    lines.push(key);
    for rule in &builder.rules {
        let (check, pattern) = match rule {
            Rule::NotOf(pattern) => ("    not_of", pattern),
            Rule::ReadOnce(pattern) => ("    read_once", pattern),
        };
        let key = if builder.parameters.is_empty() { "key" } else { "&key" };
        lines.push(call(check, &[key.to_owned(), list(&readable(pattern))], "?;"));
    }
    lines.push(format!("    let ttl = Duration::from_millis({ttl});"));
    let tenant = if builder.has_tenant() { "Some(tenant)" } else { "None" };
    let fill = if builder.is_filled_in_full() { "Fill::Full" } else { "Fill::Brief" };
    let family = format!("\"{}\"", builder.job.name);
    let arguments = ["key", tenant, "ttl", &family, fill].map(str::to_owned);
    let make = match builder.job.kind(builder.key) {
        KeyKind::Shared => "shared",
        KeyKind::Static | KeyKind::Data => "new",
    };
    lines.push(if may_refuse(builder) {
        call(&format!("    Ok(Key::{make}"), &arguments, ")")
    } else {
        call(&format!("    Key::{make}"), &arguments, "")
    });
    format!("/// `{template}`\n{}\n}}\n\n", lines.join("\n"))
}

/// A builder without parameters and rules always has its one key.
fn may_refuse(builder: &Builder<'_>) -> bool {
    !builder.parameters.is_empty() || !builder.rules.is_empty()
}

fn signature(job: &JobBuilders<'_>, builder: &Builder<'_>) -> String {
    let (row, generics) = match job.members {
        Some(_) => (row_name(job), ""),
        None => ("Row".to_owned(), "<Row>"),
    };
    let value = match (builder.key.shape, builder.job.kind(builder.key)) {
        (Shape::List, _) => format!("Vec<{row}>"),
        (Shape::Object, KeyKind::Static) => format!("Option<{row}>"),
        (Shape::Object, KeyKind::Data | KeyKind::Shared) => row,
    };
    let result = if may_refuse(builder) {
        format!("Result<Key<{value}>, BadKey>")
    } else {
        format!("Key<{value}>")
    };
    let ty = |parameter: &Parameter| match parameter.class {
        Class::Integer => "impl Into<i64>",
        Class::Uuid | Class::Date | Class::Text => "impl fmt::Display",
    };
    let parameters = builder.parameters.iter();
    let parameters: Vec<_> =
        parameters.map(|one| format!("{}: {}", parameter_name(one), ty(one))).collect();
    let before = format!("pub fn {}{generics}(", function_name(builder));
    let after = format!(") -> {result} {{");
    let line = format!("{before}{}{after}", parameters.join(", "));
    if width(&line) <= LINE || parameters.is_empty() {
        return line;
    }
    format!("{before}\n{}{after}", lines("    ", &parameters))
}

fn function_name(builder: &Builder<'_>) -> String {
    free(name::snake(&builder.name))
}

fn parameter_name(parameter: &Parameter) -> String {
    free(name::snake(&parameter.name))
}

/// A name that is no word of the language and no helper's.
fn free(name: String) -> String {
    let is_taken = RESERVED.contains(&name.as_str()) || HELPER_NAMES.contains(&name.as_str());
    if is_taken { name + "_" } else { name }
}

/// The statements that check a parameter.
fn checks(parameter: &Parameter) -> Vec<String> {
    let name = parameter_name(parameter);
    let quoted = format!("\"{name}\"");
    let start = format!("    let {name} = ");
    let check = |check: &str| call(&(start.clone() + check), &[quoted.clone(), name.clone()], "?;");
    let first = match parameter.class {
        Class::Uuid => check("as_uuid"),
        Class::Date => check("as_date"),
        Class::Text => check("as_text"),
        Class::Integer => format!("{start}as_integer({name});"),
    };
    let end = |end: &String| {
        let arguments = [quoted.clone(), format!("&{name}"), format!("\"{}\"", end.escape_debug())];
        call("    ended_by", &arguments, "?;")
    };
    [first].into_iter().chain(parameter.ends.iter().map(end)).collect()
}

/// A pattern for `readings`: texts, and between them the classes of the values.
pub(super) fn readable(Pattern(pieces): &Pattern) -> Vec<String> {
    let mut items = Vec::new();
    let mut text = String::new();
    for piece in pieces {
        let class = match piece {
            Piece::Text(literal) => {
                text.push_str(literal);
                continue;
            }
            Piece::Value(Class::Uuid) => "uuid",
            Piece::Value(Class::Integer) => "integer",
            Piece::Value(Class::Date) => "date",
            Piece::Value(Class::Text) => "text",
        };
        items.extend([std::mem::take(&mut text), class.to_owned()]);
    }
    items.push(text);
    items
}

/// A list of texts, with each on a line of its own if they are too long for one. It is an argument of a call.
fn list(items: &[String]) -> String {
    let items: Vec<_> = items.iter().map(|item| format!("\"{}\"", item.escape_debug())).collect();
    let line = items.join(", ");
    if width(&line) <= ARGUMENTS {
        return format!("&[{line}]");
    }
    format!("&[\n{}        ]", lines("            ", &items))
}

/// A call, with each argument on a line of its own if they are too long for one.
fn call(before: &str, arguments: &[String], after: &str) -> String {
    let line = arguments.join(", ");
    let is_short = width(&line) <= ARGUMENTS || arguments.len() == 1;
    if is_short && width(before) + width(&line) + width(after) + 2 <= LINE {
        return format!("{before}({line}){after}");
    }
    format!("{before}(\n{}    ){after}", lines("        ", arguments))
}

/// Each item on a line of its own.
fn lines(indent: &str, items: &[String]) -> String {
    items.iter().flat_map(|item| [indent, item, ",\n"]).collect()
}

fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_builder_is_called_like_a_helper() {
        let mut names: Vec<&str> = HELPERS.split("\n\n").filter_map(helper_name).collect();
        names.sort_unstable();
        assert_eq!(names, HELPER_NAMES);
    }
}
