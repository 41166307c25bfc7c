//! What a builder takes, and what it checks before it makes a key.

use std::collections::BTreeSet;

use super::name;
use super::pattern::{Class, Pattern, Piece};
use super::{Input, Problem};
use crate::domain::job::{Job, Key, KeyKind, Scope};
use crate::domain::json::{ColumnType, ResultColumn};
use crate::domain::key::{KeyTemplate, Part, Placeholder};
use crate::domain::layout::Condition;
use crate::domain::tenant::IdClass;

/// The keys that preheat keeps for itself, as a template.
const OWN_KEYS: &str = "preheat:{name}";

/// A function that makes the keys of one template.
#[derive(Debug)]
pub(super) struct Builder<'a> {
    pub(super) job: &'a Job,
    pub(super) key: &'a Key,
    /// The words of its name.
    pub(super) name: Vec<String>,
    pub(super) parameters: Vec<Parameter>,
    /// The key, part by part.
    pub(super) parts: Vec<KeyPart>,
    pub(super) rules: Vec<Rule>,
}

/// A parameter of a builder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parameter {
    /// The words of its name.
    pub(super) name: Vec<String>,
    /// Which texts it takes; no text may be empty.
    pub(super) class: Class,
    /// Texts that end it in the key, and that it must not contain: otherwise it would be read as ending there.
    pub(super) ends: Vec<String>,
}

/// A part of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeyPart {
    /// The same text in every key.
    Text(String),
    /// The value of the parameter at this position.
    Value(usize),
}

/// What has to be true of a finished key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// It does not fit the pattern: a key that does is another template's.
    NotOf(Pattern),
    /// It fits the pattern in one way only; in another way, it could be another tenant's key.
    ReadOnce(Pattern),
}

impl Builder<'_> {
    /// Whether the key needs the tenant, who is the first parameter.
    pub(super) fn has_tenant(&self) -> bool {
        self.job.scope == Scope::Tenants
    }

    /// Whether a reader may fill the key for its whole TTL: static keys are known before the query, whereas
    /// a run removes other keys once their data is gone, and knows nothing of a reader's.
    pub(super) fn is_filled_in_full(&self) -> bool {
        match self.job.kind(self.key) {
            KeyKind::Static => true,
            KeyKind::Data | KeyKind::Shared => false,
        }
    }

    /// The builder for messages.
    pub(super) fn shown(&self) -> String {
        shown(self.job, &self.key.template)
    }
}

fn shown(job: &Job, template: &KeyTemplate) -> String {
    format!("`{template}` of job `{}`", job.name)
}

/// The builders of a job. `columns` are the columns of its query.
pub(super) fn builders<'a>(
    job: &'a Job,
    columns: Option<&[ResultColumn]>,
    input: &Input<'_>,
) -> Result<Vec<Builder<'a>>, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut builders = Vec::new();
    for (index, (key, name)) in job.keys.iter().zip(name::of_builders(job)).enumerate() {
        let Placed { parameters, parts } = Placed::new(job, &key.template, columns, input.ids);
        match rules(job, index, &key.template, input) {
            Ok(rules) => builders.push(Builder { job, key, name, parameters, parts, rules }),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(builders) } else { Err(problems) }
}

/// A template's parameters, and the places that they fill.
struct Placed {
    parameters: Vec<Parameter>,
    parts: Vec<KeyPart>,
}

impl Placed {
    /// The parameters are the tenant, the date, columns of the tenant query, and columns of the query.
    fn new(
        job: &Job,
        template: &KeyTemplate,
        columns: Option<&[ResultColumn]>,
        ids: Option<IdClass>,
    ) -> Self {
        let mut placeholders: Vec<&Placeholder> = Vec::new();
        placeholders.extend((job.scope == Scope::Tenants).then_some(&Placeholder::Tenant));
        for kind in [Kind::Date, Kind::TenantColumn, Kind::Column] {
            for placeholder in template.placeholders().filter(|one| Kind::of(one) == kind) {
                if !placeholders.contains(&placeholder) {
                    placeholders.push(placeholder);
                }
            }
        }
        let mut taken = BTreeSet::new();
        let mut parameters: Vec<Parameter> = Vec::new();
        for placeholder in &placeholders {
            let name = name::unlike(&taken, parameter_name(placeholder));
            taken.insert(name.clone());
            let class = class(placeholder, columns, ids);
            parameters.push(Parameter { name, class, ends: Vec::new() });
        }
        let place = |one: &Placeholder| placeholders.iter().position(|other| *other == one);
        let part = |part: &Part| match part {
            Part::Literal(text) => Some(KeyPart::Text(text.clone())),
            Part::Placeholder(placeholder) => Some(KeyPart::Value(place(placeholder)?)),
        };
        let parts = template.parts().iter().filter_map(part).collect();
        let mut placed = Self { parameters, parts };
        placed.find_ends();
        placed
    }

    /// Finds the text behind each value but the last one.
    fn find_ends(&mut self) {
        let is_value = |part: &KeyPart| matches!(part, KeyPart::Value(_));
        let Some(last) = self.parts.iter().rposition(is_value) else { return };
        for pair in self.parts.get(..=last).unwrap_or_default().windows(2) {
            let [KeyPart::Value(index), KeyPart::Text(end)] = pair else { continue };
            let Some(parameter) = self.parameters.get_mut(*index) else { continue };
            let begins = end.chars().next();
            let may_contain = begins.is_some_and(|char| parameter.class.may_contain(char));
            if may_contain && !parameter.class.is_fixed() && !parameter.ends.contains(end) {
                parameter.ends.push(end.clone());
            }
        }
    }
}

/// The order of parameters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tenant,
    Date,
    TenantColumn,
    Column,
}

impl Kind {
    fn of(placeholder: &Placeholder) -> Self {
        match placeholder {
            Placeholder::Tenant => Self::Tenant,
            Placeholder::Date => Self::Date,
            Placeholder::TenantColumn(_) => Self::TenantColumn,
            Placeholder::Column(_) => Self::Column,
        }
    }
}

fn parameter_name(placeholder: &Placeholder) -> Vec<String> {
    match placeholder {
        Placeholder::Tenant => vec!["tenant".to_owned()],
        Placeholder::Date => vec!["date".to_owned()],
        Placeholder::TenantColumn(name) | Placeholder::Column(name) => {
            name::named("value", name::words(name))
        }
    }
}

fn class(
    placeholder: &Placeholder,
    columns: Option<&[ResultColumn]>,
    ids: Option<IdClass>,
) -> Class {
    match placeholder {
        Placeholder::Tenant => Class::of_ids(ids.unwrap_or_default()),
        Placeholder::Date => Class::Date,
        Placeholder::TenantColumn(_) => Class::Text,
        Placeholder::Column(name) => {
            let named = |one: &&ResultColumn| one.column.name == *name;
            let column = columns.unwrap_or_default().iter().rev().find(named);
            column.map_or(Class::Text, |one| class_of(&one.column.ty))
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the texts of other types have many forms")]
fn class_of(ty: &ColumnType) -> Class {
    match ty.base() {
        ColumnType::Uuid => Class::Uuid,
        ColumnType::Int2 | ColumnType::Int4 | ColumnType::Int8 => Class::Integer,
        _ => Class::Text,
    }
}

/// What has to be true of a template's keys.
fn rules(
    job: &Job,
    index: usize,
    template: &KeyTemplate,
    input: &Input<'_>,
) -> Result<Vec<Rule>, Problem> {
    let ids = input.ids.unwrap_or_default();
    let mut rules = Vec::new();
    if runs_together(template, ids) {
        rules.push(Rule::ReadOnce(Pattern::of(template, ids)));
    }
    if let Ok(own) = KeyTemplate::parse(OWN_KEYS, "")
        && template.may_equal(&own, ids)
    {
        rules.push(Rule::NotOf(Pattern::of(&own, ids)));
    }
    for condition in input.layout.conditions(job, index) {
        rules.push(match condition {
            Condition::NotOf(other) => Rule::NotOf(Pattern::of(other, ids)),
            Condition::ReadOnce(other) => Rule::ReadOnce(Pattern::of(other, ids)),
            Condition::Never(other) => {
                let (first, second) = (shown(job, template), other.to_string());
                return Err(Problem::SameKeys { first, second });
            }
        });
    }
    Ok(rules)
}

/// Whether a value is followed by another value, with no text between them, and could end in several places.
fn runs_together(template: &KeyTemplate, ids: IdClass) -> bool {
    let Pattern(pieces) = Pattern::of(template, ids);
    let is_open = |piece: &Piece| matches!(piece, Piece::Value(class) if !class.is_fixed());
    let are_neighbours = |pair: &[Piece]| matches!(pair, [one, Piece::Value(_)] if is_open(one));
    let open = pieces.iter().filter(|piece| is_open(piece)).count();
    open > 1 && pieces.windows(2).any(are_neighbours)
}
