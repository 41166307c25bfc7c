//! Key templates: `products:{tenant_id}:{category}`.

use std::fmt;
use std::ops::Range;

use chrono::NaiveDate;

use super::tenant::Tenant;

/// A key's pattern: text with placeholders in braces; `{{` and `}}` stand for a brace itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyTemplate {
    text: String,
    parts: Vec<Part>,
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text that stands in every key.
    Literal(String),
    /// A value's place.
    Placeholder(Placeholder),
}

/// What fills a place of a template.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Placeholder {
    /// The tenant's id: the placeholder that has the name of `tenants.column`.
    Tenant,
    /// `{date}`: one of the tenant's local dates, `YYYY-MM-DD`.
    Date,
    /// `{tenant.COLUMN}`: another column of the tenant query.
    TenantColumn(String),
    /// A column of the job's query; its values are known only from the rows.
    Column(String),
}

/// Why a text is no template, and where in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct TemplateError {
    /// What is wrong.
    pub problem: TemplateProblem,
    /// The bytes of the text that are meant.
    pub at: Range<usize>,
}

/// The ways in which a text is no template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateProblem {
    /// There is no text at all.
    #[error("a key must not be empty")]
    Empty,
    /// A `{` without its `}`.
    #[error("`{{` has no `}}`; for the brace itself write `{{{{`")]
    Unclosed,
    /// A `}` without its `{`.
    #[error("`}}` has no `{{`; for the brace itself write `}}}}`")]
    Unopened,
    /// What stands in the braces is no name.
    #[error("a placeholder is a column's name: letters, digits and `_`, or `tenant.` and a column")]
    BadName,
}

impl KeyTemplate {
    /// Reads a template; `tenant_column` is the placeholder that means the tenant's id.
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

    /// The text it was read from.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its pieces, in order; no literal is empty and no two stand side by side.
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

    /// The columns of the query whose values it needs, in order; dates are not among them.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.placeholders().filter_map(|placeholder| match placeholder {
            Placeholder::Column(name) => Some(name.as_str()),
            Placeholder::Tenant | Placeholder::Date | Placeholder::TenantColumn(_) => None,
        })
    }

    /// The key of a tenant, or of the fleet, where it is known before the query and no column of the
    /// tenant that it needs is NULL; `date` stands for `{date}`.
    pub fn fill(&self, tenant: Option<Tenant<'_>>, date: Option<NaiveDate>) -> Option<String> {
        let mut key = String::with_capacity(self.text.len() + 32);
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

    /// Whether every key is known before the query: such a key is written even with no rows.
    pub fn is_known(&self) -> bool {
        self.columns().next().is_none()
    }

    /// Whether it has `{date}`.
    pub fn has_date(&self) -> bool {
        self.placeholders().any(|placeholder| *placeholder == Placeholder::Date)
    }

    /// Whether it has the tenant's id.
    pub fn has_tenant(&self) -> bool {
        self.placeholders().any(|placeholder| *placeholder == Placeholder::Tenant)
    }

    /// Whether some values make a key of both templates: what differs in literals alone decides,
    /// as a placeholder may hold any text.
    pub fn may_equal(&self, other: &Self) -> bool {
        may_equal(&self.pieces(), &other.pieces())
    }

    /// Whether it may make this key, of this tenant; of any where there is none.
    pub fn may_make(&self, key: &str, tenant: Option<Tenant<'_>>) -> bool {
        let mut pieces: Vec<Option<char>> = Vec::new();
        for part in &self.parts {
            let text = match (part, tenant) {
                (Part::Literal(literal), _) => Some(literal.as_str()),
                (Part::Placeholder(Placeholder::Tenant), Some(tenant)) => Some(tenant.id()),
                (Part::Placeholder(Placeholder::TenantColumn(name)), Some(tenant)) => {
                    let Some(text) = tenant.column(name) else { return false };
                    Some(text)
                }
                (Part::Placeholder(_), _) => None,
            };
            match text {
                Some(text) => pieces.extend(text.chars().map(Some)),
                None => pieces.push(None),
            }
        }
        may_equal(&pieces, &key.chars().map(Some).collect::<Vec<_>>())
    }

    fn pieces(&self) -> Vec<Option<char>> {
        self.parts
            .iter()
            .flat_map(|part| match part {
                Part::Literal(text) => text.chars().map(Some).collect(),
                Part::Placeholder(_) => vec![None],
            })
            .collect()
    }
}

/// Two glob patterns, `None` the star, have a common match. A table over both lengths, since the
/// plain recursion is exponential.
fn may_equal(a: &[Option<char>], b: &[Option<char>]) -> bool {
    let mut below = vec![false; b.len() + 1];
    for i in (0..=a.len()).rev() {
        let mut row = vec![false; b.len() + 1];
        for j in (0..=b.len()).rev() {
            let right = row.get(j + 1).copied().unwrap_or(false);
            let down = below.get(j).copied().unwrap_or(false);
            let both = below.get(j + 1).copied().unwrap_or(false);
            let common = match (a.get(i), b.get(j)) {
                (None, None) => true,
                (None, Some(None)) => right,
                (Some(None), None) => down,
                (None, Some(Some(_))) | (Some(Some(_)), None) => false,
                (Some(None), Some(_)) | (Some(_), Some(None)) => right || down || both,
                (Some(Some(x)), Some(Some(y))) => x == y && both,
            };
            if let Some(cell) = row.get_mut(j) {
                *cell = common;
            }
        }
        below = row;
    }
    below.first().copied().unwrap_or(false)
}

impl Placeholder {
    /// What stands between the braces; `tenant_column` is the name that means the tenant's id.
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
        assert!(!read.is_known() && read.has_date() && read.has_tenant());
        assert!(template("services:{tenant_id}").is_known());
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
    fn a_known_key_is_filled_from_its_tenant() {
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
    fn whose_key_it_may_be_is_seen_from_its_text() {
        let mut list = Tenants::with_columns(["plan", "region"]);
        list.push("t1", [Some("free"), None]);
        let may = |text: &str, key: &str| {
            let template = template(text);
            (template.may_make(key, list.get(0)), template.may_make(key, None))
        };
        assert_eq!(may("p:{tenant_id}:{kind}", "p:t1:x"), (true, true));
        assert_eq!(may("p:{tenant_id}:{kind}", "p:t2:x"), (false, true));
        assert_eq!(may("p:{tenant_id}:{kind}", "q:t1:x"), (false, false));
        assert_eq!(may("{tenant.plan}:{date}", "free:2026-03-01"), (true, true));
        assert_eq!(may("{tenant.region}:{id}", "eu:7"), (false, true));
        assert_eq!(may("pet:{id}", "pet:7"), (true, true));
    }

    #[test]
    fn two_templates_that_can_make_one_key_are_told_apart_from_two_that_cannot() {
        let equal = |a: &str, b: &str| template(a).may_equal(&template(b));
        assert!(equal("products:{tenant_id}:all", "products:{tenant_id}:{category}"));
        assert!(equal("{a}", "services:{tenant_id}"));
        assert!(equal("a{x}c", "ab{y}"));
        assert!(!equal("services:{tenant_id}", "staff:{tenant_id}"));
        assert!(!equal("x:{tenant_id}:a", "x:{tenant_id}:b"));
        assert!(!equal("a", "ab"));
    }
}
