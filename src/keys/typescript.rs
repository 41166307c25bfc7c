//! The builders in TypeScript.

use std::fmt::Write;

use super::builder::{Builder, KeyPart, Parameter, Rule};
use super::pattern::{Class, Pattern, Piece};
use super::{JobBuilders, name, used_helpers};
use crate::domain::count::grouped;
use crate::domain::job::{KeyKind, Shape};
use crate::domain::json::{JsonType, RowMember};

/// The functions that builders call.
const HELPERS: &str = include_str!("helpers.ts");

/// Words that no parameter can be called, and the names of the helpers.
const RESERVED: &[&str] = &[
    "arguments",
    "asDate",
    "asInteger",
    "asText",
    "asUuid",
    "await",
    "break",
    "case",
    "catch",
    "class",
    "const",
    "continue",
    "debugger",
    "default",
    "delete",
    "do",
    "else",
    "endedBy",
    "enum",
    "eval",
    "export",
    "extends",
    "false",
    "finally",
    "for",
    "function",
    "if",
    "implements",
    "import",
    "in",
    "instanceof",
    "interface",
    "let",
    "new",
    "notOf",
    "null",
    "package",
    "private",
    "protected",
    "public",
    "readOnce",
    "return",
    "static",
    "super",
    "switch",
    "this",
    "throw",
    "true",
    "try",
    "typeof",
    "undefined",
    "var",
    "void",
    "while",
    "with",
    "yield",
];

/// The whole file.
pub(super) fn file(jobs: &[JobBuilders<'_>], arguments: &str) -> String {
    let mut types = String::new();
    let mut keys = Vec::new();
    for job in jobs {
        if let Some(members) = &job.members {
            types += &row_type(job, members);
        }
        keys.extend(job.builders.iter().map(|builder| function(job, builder)));
    }
    let keys = format!("export const keys = {{\n{}}};\n", keys.join("\n"));
    let used = ["Key", "SharedKey"].into_iter().filter(|ty| keys.contains(&format!("): {ty}<")));
    let used = used.collect::<Vec<_>>().join(", ");
    let helpers = used_helpers(HELPERS, helper_name, &keys);
    let helpers: String = helpers.iter().flat_map(|helper| ["\n", helper, "\n"]).collect();
    format!(
        "// Made from the job files by `preheat keys {arguments}`; do not edit.\n\
         // To make it anew: preheat keys {arguments} --output <this file>\n\
         /* eslint-disable */\n\
         import type {{ {used} }} from \"preheat-client\";\n\n{types}{keys}{helpers}"
    )
}

fn helper_name(block: &str) -> Option<&str> {
    let line = block.lines().find_map(|line| line.strip_prefix("function "))?;
    line.split_once('(').map(|(name, _)| name)
}

/// The type of a job's rows.
fn row_type(job: &JobBuilders<'_>, members: &[RowMember]) -> String {
    let (name, of) = (row_name(job), &job.job.name);
    let mut text = format!("/** A row of job `{of}`. */\nexport type {name} = {{\n");
    for member in members {
        let column = comment(&member.column.to_string());
        let ty = member_type(member);
        let name = property(&member.name);
        let _a_string_takes_all = writeln!(text, "  /** `{column}` */\n  {name}: {ty};");
    }
    text + "};\n\n"
}

fn row_name(job: &JobBuilders<'_>) -> String {
    name::pascal(&job.name) + "Row"
}

fn member_type(member: &RowMember) -> String {
    let ty = json_type(&member.ty);
    if member.is_nullable && member.ty != JsonType::Any { format!("{ty} | null") } else { ty }
}

fn json_type(ty: &JsonType) -> String {
    let fixed = match ty {
        JsonType::Boolean => "boolean",
        JsonType::Int16 | JsonType::Int32 | JsonType::Int64 | JsonType::Oid | JsonType::Number => {
            "number"
        }
        JsonType::String => "string",
        JsonType::PointPair => "[number, number]",
        JsonType::Point => "{ x: number; y: number }",
        JsonType::Buffer => "{ type: \"Buffer\"; data: number[] }",
        JsonType::Interval => {
            "{ [field in \"years\" | \"months\" | \"days\" | \"hours\" | \"minutes\" | \"seconds\" | \
             \"milliseconds\"]?: number }"
        }
        JsonType::Any => "unknown",
        JsonType::Array { element, has_nulls } => {
            let element = json_type(element);
            return if *has_nulls {
                format!("({element} | null)[]")
            } else {
                format!("{element}[]")
            };
        }
    };
    fixed.to_owned()
}

/// A builder as a member of `keys`.
fn function(job: &JobBuilders<'_>, builder: &Builder<'_>) -> String {
    let (row, generics) = match job.members {
        Some(_) => (row_name(job), ""),
        None => ("Row".to_owned(), "<Row = unknown>"),
    };
    let value = match (builder.key.shape, builder.job.kind(builder.key)) {
        (Shape::List, _) => format!("{row}[]"),
        (Shape::Object, KeyKind::Static) => format!("{row} | null"),
        (Shape::Object, KeyKind::Data | KeyKind::Shared) => row,
    };
    let template = comment(builder.key.template.as_str());
    let name = name::camel(&builder.name);
    let parameters: Vec<_> = builder.parameters.iter().map(parameter).collect();
    let parameters = parameters.join(", ");
    let tenant = builder.parameters.first().filter(|_| builder.has_tenant());
    let tenant = tenant.map_or_else(|| "null".to_owned(), checked);
    let key = key(builder);
    let ttl = grouped(builder.job.ttl.as_millis());
    let family = &builder.job.name;
    let fill = if builder.is_filled_in_full() { "full" } else { "brief" };
    let (ty, shared) = match builder.job.kind(builder.key) {
        KeyKind::Shared => ("SharedKey", "    shared: true,\n"),
        KeyKind::Static | KeyKind::Data => ("Key", ""),
    };
    format!(
        "  /** `{template}` */\n  \
         {name}: {generics}({parameters}): {ty}<{value}> => ({{\n    \
         tenant: {tenant},\n    key: {key},\n    ttl: {ttl},\n    family: \"{family}\",\n    \
         fill: \"{fill}\",\n{shared}  }}),\n"
    )
}

fn parameter(parameter: &Parameter) -> String {
    let ty = match parameter.class {
        Class::Integer => "number | bigint | string",
        Class::Uuid | Class::Date | Class::Text => "string",
    };
    format!("{}: {ty}", parameter_name(parameter))
}

fn parameter_name(parameter: &Parameter) -> String {
    let name = name::camel(&parameter.name);
    if RESERVED.contains(&name.as_str()) { name + "_" } else { name }
}

/// The expression that makes the key, and checks it.
fn key(builder: &Builder<'_>) -> String {
    let mut key = String::from("`");
    for part in &builder.parts {
        match part {
            KeyPart::Text(text) => key += &escaped(text, '`'),
            KeyPart::Value(index) => {
                // The tenant is checked where it stands by itself.
                let is_tenant = *index == 0 && builder.has_tenant();
                let value = if is_tenant { parameter_name } else { checked };
                let value = builder.parameters.get(*index).map(value).unwrap_or_default();
                key.extend(["${", &value, "}"]);
            }
        }
    }
    key.push('`');
    let others = builder.rules.iter().filter_map(|rule| match rule {
        Rule::NotOf(pattern) => Some(expression(pattern, Greed::Ignored)),
        Rule::ReadOnce(_) => None,
    });
    let others = others.collect::<Vec<_>>().join("|");
    if !others.is_empty() {
        key = format!("notOf(/{others}/, {key})");
    }
    for rule in &builder.rules {
        if let Rule::ReadOnce(pattern) = rule {
            let [shortest, longest] =
                [Greed::Shortest, Greed::Longest].map(|greed| expression(pattern, greed));
            key = format!("readOnce(/{shortest}/, /{longest}/, {key})");
        }
    }
    key
}

/// The call that checks a parameter.
fn checked(parameter: &Parameter) -> String {
    let check = match parameter.class {
        Class::Uuid => "asUuid",
        Class::Integer => "asInteger",
        Class::Date => "asDate",
        Class::Text => "asText",
    };
    let name = parameter_name(parameter);
    let checked = format!("{check}(\"{name}\", {name})");
    parameter.ends.iter().fold(checked, |checked, end| {
        format!("endedBy(\"{name}\", {checked}, \"{}\")", escaped(end, '"'))
    })
}

/// Which text a value takes where several would do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Greed {
    /// Values are not looked at.
    Ignored,
    Shortest,
    Longest,
}

/// The regular expression of a pattern. Those of UUIDs and dates take more texts than there are.
fn expression(Pattern(pieces): &Pattern, greed: Greed) -> String {
    let mut text = String::from("^");
    for piece in pieces {
        let value = match piece {
            Piece::Text(literal) => {
                text += &in_expression(literal);
                continue;
            }
            Piece::Value(Class::Uuid) => "[0-9a-f-]{36}",
            Piece::Value(Class::Integer) => "-?\\d+",
            Piece::Value(Class::Date) => "\\d{4}-\\d\\d-\\d\\d",
            Piece::Value(Class::Text) => "[^]*",
        };
        match greed {
            Greed::Ignored => text += value,
            Greed::Shortest if value.ends_with(['*', '+']) => text.extend(["(", value, "?)"]),
            Greed::Shortest | Greed::Longest => text.extend(["(", value, ")"]),
        }
    }
    text + "$"
}

fn in_expression(literal: &str) -> String {
    let mut text = String::new();
    for char in literal.chars() {
        if "\\^$.*+?()[]{}|/".contains(char) {
            text.push('\\');
        }
        push_plain(char, &mut text);
    }
    text
}

/// A text within these quotes.
fn escaped(literal: &str, quote: char) -> String {
    let mut text = String::new();
    for char in literal.chars() {
        // `${` would begin an expression.
        if char == '\\' || char == quote || quote == '`' && char == '$' {
            text.push('\\');
        }
        push_plain(char, &mut text);
    }
    text
}

/// Appends a character, by its number if it would end the line or is not to be seen.
fn push_plain(char: char, text: &mut String) {
    if char.is_control() || matches!(char, '\u{2028}' | '\u{2029}') {
        let _a_string_takes_all = write!(text, "\\u{:04x}", u32::from(char));
    } else {
        text.push(char);
    }
}

fn property(name: &str) -> String {
    let is_first = |char: char| char.is_ascii_alphabetic() || char == '_' || char == '$';
    let is_plain = name.starts_with(is_first)
        && name.chars().all(|char| is_first(char) || char.is_ascii_digit());
    if is_plain { name.to_owned() } else { format!("\"{}\"", escaped(name, '"')) }
}

/// A text in a comment, on one line.
fn comment(text: &str) -> String {
    text.escape_debug().to_string().replace("*/", "*\\/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_parameter_is_called_like_a_helper_that_builders_call() {
        let names = HELPERS.split("\n\n").filter_map(helper_name);
        for name in names.filter(|name| *name != "refusal") {
            assert!(RESERVED.contains(&name), "{name}");
        }
    }
}
