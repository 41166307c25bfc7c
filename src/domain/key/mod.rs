//! Key templates: `products:{tenant_id}:{category}`.

pub(in crate::domain) mod pattern;

use std::fmt;
use std::ops::Range;

use chrono::NaiveDate;

use self::pattern::{OwnerText, Pattern, Question};
use super::tenant::{IdClass, Tenant};

/// Every key that preheat keeps for itself begins with this.
const OWN: &str = "preheat:";

/// Whether a key is one that preheat keeps for itself, such as a fence or a manifest.
pub fn is_own(key: &str) -> bool {
    key.starts_with(OWN)
}

/// A key's pattern: text with placeholders in braces; `{{` and `}}` stand for a brace itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyTemplate {
    text: String,
    parts: Vec<Part>,
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text that is the same in every key.
    Literal(String),
    /// The place of a value.
    Placeholder(Placeholder),
}

/// The kind of value that fills a place in a template.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Placeholder {
    /// The tenant's id: the placeholder with the name that `tenants.column` says.
    Tenant,
    /// `{date}`: one of the tenant's local dates, `YYYY-MM-DD`.
    Date,
    /// `{tenant.COLUMN}`: another column of the tenant query.
    TenantColumn(String),
    /// A column of the job's query: only the rows give its values.
    Column(String),
}

/// Why a text is not a template, and where in the text the problem is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct TemplateError {
    /// What is wrong.
    pub problem: TemplateProblem,
    /// The range of bytes in the text that has the problem.
    pub at: Range<usize>,
}

/// The reasons why a text is not a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateProblem {
    /// The text is empty.
    #[error("a key must not be empty")]
    Empty,
    /// A `{` without its `}`.
    #[error("`{{` has no `}}`; for the brace itself write `{{{{`")]
    Unclosed,
    /// A `}` without its `{`.
    #[error("`}}` has no `{{`; for the brace itself write `}}}}`")]
    Unopened,
    /// The text in the braces is not a name.
    #[error("a placeholder is a column's name: letters, digits and `_`, or `tenant.` and a column")]
    BadName,
}

impl KeyTemplate {
    /// Parses a template. `tenant_column` is the name of the placeholder for the tenant's id.
    pub fn parse(text: &str, tenant_column: &str) -> Result<Self, TemplateError> {
        let fail = |problem, at| Err(TemplateError { problem, at });
        if text.is_empty() {
            return fail(TemplateProblem::Empty, 0..0);
        }
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut chars = text.char_indices().peekable();
        while let Some((at, char)) = chars.next() {
            let doubled = chars.peek().is_some_and(|&(_, next)| next == char);
            match char {
                '{' | '}' if doubled => {
                    chars.next();
                    literal.push(char);
                }
                '}' => return fail(TemplateProblem::Unopened, at..at + 1),
                '{' => {
                    let rest = text.get(at + 1..).unwrap_or_default();
                    let Some(length) = rest.find('}') else {
                        return fail(TemplateProblem::Unclosed, at..text.len());
                    };
                    let name = rest.get(..length).unwrap_or_default();
                    let Some(placeholder) = Placeholder::parse(name, tenant_column) else {
                        return fail(TemplateProblem::BadName, at..at + length + 2);
                    };
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal)));
                    }
                    parts.push(Part::Placeholder(placeholder));
                    while chars.next_if(|&(index, _)| index <= at + 1 + length).is_some() {}
                }
                _ => literal.push(char),
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    /// The template's text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its parts, in order. No literal is empty, and no two literals are neighbours.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Its placeholders, in order.
    pub fn placeholders(&self) -> impl Iterator<Item = &Placeholder> {
        self.parts.iter().filter_map(|part| match part {
            Part::Literal(_) => None,
            Part::Placeholder(placeholder) => Some(placeholder),
        })
    }

    /// The query's columns that its keys need, in order, without the date's column.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.placeholders().filter_map(|placeholder| match placeholder {
            Placeholder::Column(name) => Some(name.as_str()),
            Placeholder::Tenant | Placeholder::Date | Placeholder::TenantColumn(_) => None,
        })
    }

    /// An empty text with room for most keys of this template.
    pub fn empty_key(&self) -> String {
        String::with_capacity(self.text.len() + 32)
    }

    /// The static key of a tenant, or of a job without tenants. `None` if the template makes data keys,
    /// or if it needs a column of the tenant that is NULL. `date` fills `{date}`.
    pub fn fill(&self, tenant: Option<Tenant<'_>>, date: Option<NaiveDate>) -> Option<String> {
        let mut key = self.empty_key();
        for part in &self.parts {
            match part {
                Part::Literal(text) => key.push_str(text),
                Part::Placeholder(Placeholder::Tenant) => key.push_str(tenant?.id()),
                Part::Placeholder(Placeholder::TenantColumn(name)) => {
                    key.push_str(tenant?.column(name)?);
                }
                Part::Placeholder(Placeholder::Date) => key.push_str(&date?.to_string()),
                Part::Placeholder(Placeholder::Column(_)) => return None,
            }
        }
        Some(key)
    }

    /// Whether its keys follow from the value of this column of the query alone.
    pub fn follows_from(&self, column: &str) -> bool {
        let is_it =
            |other: &Placeholder| matches!(other, Placeholder::Column(name) if name == column);
        !self.is_static() && self.placeholders().all(is_it)
    }

    /// The key with this value in the place of each column, where nothing else fills a place.
    pub fn fill_columns(&self, value: &str) -> Option<String> {
        let mut key = String::with_capacity(self.text.len() + value.len());
        for part in &self.parts {
            match part {
                Part::Literal(text) => key.push_str(text),
                Part::Placeholder(Placeholder::Column(_)) => key.push_str(value),
                Part::Placeholder(
                    Placeholder::Tenant | Placeholder::Date | Placeholder::TenantColumn(_),
                ) => return None,
            }
        }
        Some(key)
    }

    /// Whether the template makes static keys: preheat can compute them before the query.
    pub fn is_static(&self) -> bool {
        self.columns().next().is_none()
    }

    /// Whether it has the placeholder `{date}`.
    pub fn has_date(&self) -> bool {
        self.placeholders().any(|placeholder| *placeholder == Placeholder::Date)
    }

    /// Whether it has the placeholder for the tenant's id.
    pub fn has_tenant(&self) -> bool {
        self.placeholders().any(|placeholder| *placeholder == Placeholder::Tenant)
    }

    /// Whether it has a placeholder for another column of the tenant query.
    pub fn has_tenant_column(&self) -> bool {
        self.placeholders().any(|placeholder| matches!(placeholder, Placeholder::TenantColumn(_)))
    }

    /// Whether both templates can make the same key, with some values: ids of this class, valid dates,
    /// and any text for other placeholders.
    pub fn may_equal(&self, other: &Self, ids: IdClass) -> bool {
        self.may_begin_like(other) && self.pattern(ids).meets(&other.pattern(ids), Question::ANY)
    }

    /// Whether every key of this template is one of the other's too: `products:{tenant_id}:all` beside
    /// `products:{tenant_id}:{category}`. The answer `false` may also mean that this is hard to see.
    pub fn is_within(&self, other: &Self, ids: IdClass) -> bool {
        are_within(&self.parts, &other.parts, ids)
    }

    /// Whether two placeholders without a fixed length are neighbours, so that a reader of the key
    /// cannot tell where the first value ends.
    pub fn run_together(&self, ids: IdClass) -> bool {
        let is_open = |placeholder: &Placeholder| match placeholder {
            Placeholder::Tenant => ids != IdClass::Uuid,
            Placeholder::Date => false,
            Placeholder::TenantColumn(_) | Placeholder::Column(_) => true,
        };
        let are_open = |pair: &[Part]| {
            matches!(pair, [Part::Placeholder(one), Part::Placeholder(other)]
                if is_open(one) && is_open(other))
        };
        self.parts.windows(2).any(are_open)
    }

    /// Whether the literals at the beginning of both templates allow a common key: for most pairs they
    /// do not.
    pub(super) fn may_begin_like(&self, other: &Self) -> bool {
        match (self.parts.first(), other.parts.first()) {
            (Some(Part::Literal(one)), Some(Part::Literal(other))) => {
                one.starts_with(other.as_str()) || other.starts_with(one.as_str())
            }
            (Some(_) | None, Some(_) | None) => true,
        }
    }

    fn pattern(&self, ids: IdClass) -> Pattern {
        Pattern::new(self, None, ids, OwnerText::Ids)
    }
}

/// Whether every text that these parts make can be made by the others.
pub(super) fn are_within(parts: &[Part], others: &[Part], ids: IdClass) -> bool {
    Pattern::exact(parts, ids).is_within(&Pattern::exact(others, ids))
}

impl Placeholder {
    /// The text between the braces. `tenant_column` is the name of the placeholder for the tenant's id.
    pub fn name(&self, tenant_column: &str) -> String {
        match self {
            Self::Tenant => tenant_column.to_owned(),
            Self::Date => "date".to_owned(),
            Self::TenantColumn(column) => format!("tenant.{column}"),
            Self::Column(column) => column.clone(),
        }
    }

    fn parse(name: &str, tenant_column: &str) -> Option<Self> {
        let is_name = |text: &str| {
            !text.is_empty() && text.chars().all(|char| char.is_alphanumeric() || char == '_')
        };
        if let Some(column) = name.strip_prefix("tenant.") {
            return is_name(column).then(|| Self::TenantColumn(column.to_owned()));
        }
        match name {
            _ if !is_name(name) => None,
            _ if name == tenant_column => Some(Self::Tenant),
            "date" => Some(Self::Date),
            _ => Some(Self::Column(name.to_owned())),
        }
    }
}

impl fmt::Display for KeyTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::tenant::Tenants;

    fn template(text: &str) -> KeyTemplate {
        KeyTemplate::parse(text, "tenant_id").unwrap()
    }

    #[test]
    fn a_template_is_read_into_literals_and_placeholders() {
        let read = template("slots:{tenant_id}:{date}:{tenant.plan}:{kind}{{x}}");
        let placeholders: Vec<_> = read.placeholders().cloned().collect();
        assert_eq!(
            placeholders,
            [
                Placeholder::Tenant,
                Placeholder::Date,
                Placeholder::TenantColumn("plan".to_owned()),
                Placeholder::Column("kind".to_owned()),
            ]
        );
        assert_eq!(read.parts().last(), Some(&Part::Literal("{x}".to_owned())));
        assert!(!read.is_static() && read.has_date() && read.has_tenant());
        assert!(template("services:{tenant_id}").is_static());
    }

    #[test]
    fn what_is_wrong_with_a_template_is_said_with_its_place() {
        let cases = [
            ("", TemplateProblem::Empty, 0..0),
            ("a:{b", TemplateProblem::Unclosed, 2..4),
            ("a:b}c", TemplateProblem::Unopened, 3..4),
            ("a:{}", TemplateProblem::BadName, 2..4),
            ("a:{b c}:d", TemplateProblem::BadName, 2..7),
            ("a:{tenant.}", TemplateProblem::BadName, 2..11),
        ];
        for (text, problem, at) in cases {
            let found = KeyTemplate::parse(text, "tenant_id").unwrap_err();
            assert_eq!(found, TemplateError { problem, at }, "{text}");
        }
    }

    #[test]
    fn a_static_key_is_filled_from_its_tenant() {
        let mut list = Tenants::with_columns(["plan", "region"]);
        list.push("t1", [Some("free"), None]);
        let (tenant, date) = (list.get(0), NaiveDate::from_ymd_opt(2026, 3, 1));
        let fill = |text: &str| template(text).fill(tenant, date);
        assert_eq!(fill("a:{tenant_id}:{date}").as_deref(), Some("a:t1:2026-03-01"));
        assert_eq!(fill("{tenant.plan}{{").as_deref(), Some("free{"));
        assert_eq!(fill("{tenant.region}"), None, "NULL makes no key");
        assert_eq!(fill("{tenant_id}:{kind}"), None, "only the rows know");
        assert_eq!(template("menu").fill(None, None).as_deref(), Some("menu"));
    }

    #[test]
    fn a_key_that_follows_from_one_value_is_filled_with_it() {
        for (text, follows) in [
            ("pet:{id}", true),
            ("{id}:pet:{id}", true),
            ("pet:{id}:{kind}", false),
            ("pet:{id}:{date}", false),
            ("pet:{tenant.slug}:{id}", false),
            ("pet:{tenant_id}:{id}", false),
            ("pets", false),
        ] {
            assert_eq!(template(text).follows_from("id"), follows, "{text}");
        }
        assert_eq!(template("{id}:p{{:{id}").fill_columns("7:a").as_deref(), Some("7:a:p{:7:a"));
        assert_eq!(template("pet:{id}:{date}").fill_columns("7"), None);
    }

    #[test]
    fn two_templates_that_can_make_one_key_are_told_apart_from_two_that_cannot() {
        let equal = |a: &str, b: &str, ids| {
            let (a, b) = (template(a), template(b));
            assert_eq!(a.may_equal(&b, ids), b.may_equal(&a, ids), "{a} {b}");
            a.may_equal(&b, ids)
        };
        for ids in IdClass::ALL {
            let equal = |a, b| equal(a, b, ids);
            assert!(equal("products:{tenant_id}:all", "products:{tenant_id}:{category}"));
            assert!(equal("{a}", "services:{tenant_id}"));
            assert!(equal("a{x}c", "ab{y}"));
            assert!(equal("s:{tenant_id}:{date}", "s:{tenant_id}:{kind}"));
            assert!(!equal("services:{tenant_id}", "staff:{tenant_id}"));
            assert!(!equal("x:{tenant_id}:a", "x:{tenant_id}:b"));
            assert!(!equal("s:{tenant_id}:{date}", "s:{tenant_id}:today"));
            assert!(!equal("a", "ab"));
            assert!(!equal("ü{x}", "ö{x}"));
        }
        let only_text = [
            ("products:{tenant_id}", "products:{tenant_id}:featured"),
            ("ws:{tenant_id}:customers", "ws:{tenant_id}:invoices:{status}:customers"),
            ("{tenant_id}:a", "{tenant_id}:b:a"),
            ("x:{tenant_id}", "x:ü{tenant_id}"),
        ];
        for (a, b) in only_text {
            let of = |ids| equal(a, b, ids);
            assert_eq!(IdClass::ALL.map(of), [false, false, true], "{a} {b}");
        }
        let of = |ids| equal("{tenant_id}a", "{tenant_id}-a", ids);
        assert_eq!(IdClass::ALL.map(of), [false, true, true]);
    }

    #[test]
    fn a_template_may_be_a_special_case_of_another() {
        let within =
            |a: &str, b: &str| IdClass::ALL.map(|ids| template(a).is_within(&template(b), ids));
        let always = [
            ("p:{tenant_id}:all", "p:{tenant_id}:{kind}"),
            ("p:{tenant_id}:{date}", "p:{tenant_id}:{kind}"),
            ("p:{tenant_id}:{a}:{b}", "p:{tenant_id}:{c}"),
            ("p:{tenant_id}:x{a}", "p:{tenant_id}:{c}"),
            ("pet:{id}", "pet:{chip}"),
            ("{tenant_id}", "{kind}"),
            ("ü:{a}", "{b}:{c}"),
            ("p", "p"),
        ];
        for (a, b) in always {
            assert_eq!(within(a, b), [true; 3], "{a} {b}");
        }
        let never = [
            ("p:{tenant_id}:{kind}", "p:{tenant_id}:all"),
            ("p:{tenant_id}:{kind}", "p:{tenant_id}:{date}"),
            ("p:{tenant_id}:{kind}", "p:{tenant_id}:{a}:{b}"),
            ("p:{tenant_id}:a:{x}", "p:{tenant_id}:{x}:b"),
            ("ü{a}", "ö{a}"),
            ("p", "q"),
        ];
        for (a, b) in never {
            assert_eq!(within(a, b), [false; 3], "{a} {b}");
        }
        assert_eq!(within("p:{tenant_id}:all", "p:{tenant_id}"), [false, false, true]);
        let none_is_empty = within("{tenant_id}1", "{kind}1{tenant_id}");
        assert_eq!(none_is_empty, [false, false, true], "an integer has a digit");
    }

    #[test]
    fn placeholders_run_together_where_no_text_and_no_length_parts_them() {
        let cases = [
            ("x:{tenant_id}{kind}", [false, true, true]),
            ("x:{kind}{tenant_id}", [false, true, true]),
            ("x:{a}{b}:{tenant_id}", [true; 3]),
            ("x:{tenant_id}{date}", [false; 3]),
            ("x:{tenant_id}:{kind}", [false; 3]),
        ];
        for (text, expected) in cases {
            let of = |ids| template(text).run_together(ids);
            assert_eq!(IdClass::ALL.map(of), expected, "{text}");
        }
    }
}
