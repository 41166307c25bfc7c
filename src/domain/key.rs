//! Key templates: `products:{tenant_id}:{category}`.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use chrono::NaiveDate;

use super::tenant::Tenant;

/// What every key begins with that preheat keeps for itself.
const OWN: &str = "preheat:";

/// Whether preheat keeps a key for itself.
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

    /// Whether it has another column of the tenant.
    pub fn has_tenant_column(&self) -> bool {
        self.placeholders().any(|placeholder| matches!(placeholder, Placeholder::TenantColumn(_)))
    }

    /// Whether some values make a key of both templates: what differs in literals alone decides,
    /// as a placeholder may hold any text.
    pub fn may_equal(&self, other: &Self) -> bool {
        may_equal(&self.pieces(), &other.pieces())
    }

    /// Whose a key may be by this template, as far as its text says.
    pub fn owners<'k>(&'k self, key: &'k str) -> Owners<'k> {
        // Most keys are of other templates.
        if let Some(Part::Literal(first)) = self.parts.first()
            && !key.starts_with(first)
        {
            return Owners::Nobody;
        }
        let place = |wanted: fn(&Part) -> bool| self.parts.iter().position(wanted);
        let Some(place) = place(is_tenant).or_else(|| place(is_tenant_column)) else {
            return if self.may_be_of(None, key) { Owners::Anyone } else { Owners::Nobody };
        };
        let texts = match self.texts_at(place, key) {
            Ok(texts) if texts.is_empty() => return Owners::Nobody,
            Ok(texts) => texts.into_iter().collect(),
            Err(TooMany) => return Owners::Anyone,
        };
        match self.parts.get(place) {
            Some(Part::Placeholder(Placeholder::TenantColumn(name))) => {
                Owners::WithColumn(name, texts)
            }
            Some(Part::Placeholder(_) | Part::Literal(_)) | None => Owners::OneOf(texts),
        }
    }

    /// What a part may stand for in a key.
    fn texts_at<'k>(&self, place: usize, key: &'k str) -> Result<BTreeSet<&'k str>, TooMany> {
        let (before, rest) = self.parts.split_at(place);
        let after = rest.get(1..).unwrap_or_default();
        let starts =
            before.iter().fold(at(0, key), |from, part| Holds::of(part, None).ends(&from, key));
        let ends = after
            .iter()
            .rev()
            .fold(at(key.len(), key), |to, part| Holds::of(part, None).starts(&to, key));
        let mut texts = BTreeSet::new();
        for start in places(&starts) {
            for end in places(&ends).filter(|end| *end >= start) {
                texts.extend(key.get(start..end));
                if texts.len() > MAX_OWNERS {
                    return Err(TooMany);
                }
            }
        }
        Ok(texts)
    }

    /// Whether a key may be that tenant's by this template; of the fleet where there is none.
    pub fn may_be_of(&self, tenant: Option<Tenant<'_>>, key: &str) -> bool {
        let parts = self.parts.iter();
        let ends = parts.fold(at(0, key), |from, part| Holds::of(part, tenant).ends(&from, key));
        ends.last().copied().unwrap_or_default()
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

/// Whose a key may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owners<'k> {
    /// Nobody's: the template does not make it.
    Nobody,
    /// That of the tenant with one of these ids.
    OneOf(Vec<&'k str>),
    /// That of a tenant that has one of these texts in this column.
    WithColumn(&'k str, Vec<&'k str>),
    /// The template makes it and its text names no tenant, or may name too many.
    Anyone,
}

/// More texts than these are not told apart: two placeholders stand side by side.
const MAX_OWNERS: usize = 64;

/// A placeholder may stand for more than [`MAX_OWNERS`] texts.
struct TooMany;

/// What a part of a template may stand for in a key.
enum Holds<'a> {
    /// This text only.
    Text(&'a str),
    /// A date.
    Date,
    /// Whatever text.
    Anything,
    /// Nothing: the tenant has no such key.
    Never,
}

impl<'a> Holds<'a> {
    /// Of a tenant; of any where there is none.
    fn of(part: &'a Part, tenant: Option<Tenant<'a>>) -> Self {
        match (part, tenant) {
            (Part::Literal(text), _) => Self::Text(text),
            (Part::Placeholder(Placeholder::Date), _) => Self::Date,
            (Part::Placeholder(Placeholder::Tenant), Some(tenant)) => Self::Text(tenant.id()),
            (Part::Placeholder(Placeholder::TenantColumn(name)), Some(tenant)) => {
                tenant.column(name).map_or(Self::Never, Self::Text)
            }
            (
                Part::Placeholder(
                    Placeholder::Tenant | Placeholder::TenantColumn(_) | Placeholder::Column(_),
                ),
                _,
            ) => Self::Anything,
        }
    }

    /// Where it may end if it begins at one of these places.
    fn ends(&self, from: &[bool], key: &str) -> Vec<bool> {
        let mut ends = vec![false; from.len()];
        if let Self::Anything = self {
            let first = places(from).next().unwrap_or(from.len());
            mark_all(&mut ends, key, |place| place >= first);
        } else {
            for start in places(from) {
                let end = self.length(key.get(start..).unwrap_or_default()).map(|by| start + by);
                mark(&mut ends, end);
            }
        }
        ends
    }

    /// Where it may begin if it ends at one of these places.
    fn starts(&self, to: &[bool], key: &str) -> Vec<bool> {
        let mut starts = vec![false; to.len()];
        if let Self::Anything = self {
            let last = places(to).last();
            mark_all(&mut starts, key, |place| last.is_some_and(|last| place <= last));
        } else {
            for (start, _) in key.char_indices().chain([(key.len(), ' ')]) {
                let end = self.length(key.get(start..).unwrap_or_default()).map(|by| start + by);
                let fits = end.and_then(|end| to.get(end).copied()).unwrap_or_default();
                mark(&mut starts, fits.then_some(start));
            }
        }
        starts
    }

    /// How much of the beginning of a text it takes, where that is fixed.
    fn length(&self, text: &str) -> Option<usize> {
        match self {
            Self::Text(fixed) => text.starts_with(fixed).then_some(fixed.len()),
            Self::Date => {
                let date = text.get(..DATE_BYTES)?;
                date.parse::<NaiveDate>().is_ok().then_some(DATE_BYTES)
            }
            Self::Anything | Self::Never => None,
        }
    }
}

/// `YYYY-MM-DD`
const DATE_BYTES: usize = 10;

fn is_tenant(part: &Part) -> bool {
    *part == Part::Placeholder(Placeholder::Tenant)
}

fn is_tenant_column(part: &Part) -> bool {
    matches!(part, Part::Placeholder(Placeholder::TenantColumn(_)))
}

/// The places of a key, its end among them, of which one is marked.
fn at(place: usize, key: &str) -> Vec<bool> {
    let mut places = vec![false; key.len() + 1];
    mark(&mut places, Some(place));
    places
}

fn mark(places: &mut [bool], place: Option<usize>) {
    if let Some(marked) = place.and_then(|place| places.get_mut(place)) {
        *marked = true;
    }
}

/// Marks the places between two characters that are wanted.
fn mark_all(places: &mut [bool], key: &str, wanted: impl Fn(usize) -> bool) {
    for (place, marked) in places.iter_mut().enumerate() {
        *marked = wanted(place) && key.is_char_boundary(place);
    }
}

fn places(marked: &[bool]) -> impl Iterator<Item = usize> {
    marked.iter().enumerate().filter(|(_, marked)| **marked).map(|(place, _)| place)
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
    fn a_key_says_whose_it_may_be() {
        let of = |ids: &[&'static str]| Owners::OneOf(ids.to_vec());
        let cases = [
            ("services:{tenant_id}", "services:7", of(&["7"])),
            ("services:{tenant_id}", "services:a:*[é]", of(&["a:*[é]"])),
            ("services:{tenant_id}", "service:7", Owners::Nobody),
            ("a:{tenant_id}:{kind}", "a:7:dog", of(&["7"])),
            ("a:{tenant_id}:{kind}", "a:7:dog:food", of(&["7", "7:dog"])),
            ("a:{kind}:{tenant_id}:z", "a:x:7:z", of(&["7"])),
            ("a:{kind}:{tenant_id}:z", "a:x:7", Owners::Nobody),
            ("slots:{tenant_id}:{date}", "slots:7:2026-03-01", of(&["7"])),
            ("slots:{tenant_id}:{date}", "slots:7:today", Owners::Nobody),
            ("{tenant_id}:{tenant_id}", "7:7", of(&["7"])),
            ("{tenant_id}", "", of(&[""])),
            ("pet:{id}", "pet:9", Owners::Anyone),
            ("pet:{id}", "pat:9", Owners::Nobody),
            ("menu", "menu", Owners::Anyone),
            ("menu", "menus", Owners::Nobody),
        ];
        for (text, key, expected) in cases {
            assert_eq!(template(text).owners(key), expected, "{text} {key}");
        }
        let long = "x".repeat(100);
        assert_eq!(template("{tenant_id}{kind}").owners(&long), Owners::Anyone, "too many");
    }

    #[test]
    fn a_key_that_a_tenant_has_may_be_its_own_and_no_others() {
        let mut list = Tenants::with_columns(["slug", "region"]);
        list.push("7", [Some("north"), None]);
        list.push("8", [Some("a:b"), Some("eu")]);
        let (seven, eight) = (list.get(0), list.get(1));
        let date = NaiveDate::from_ymd_opt(2026, 3, 1);
        for text in ["s:{tenant_id}:{date}", "{tenant.slug}:{date}:x", "{tenant_id}{tenant_id}"] {
            let read = template(text);
            let key = read.fill(eight, date).unwrap();
            assert!(read.may_be_of(eight, &key), "{text} {key}");
            assert!(!read.may_be_of(seven, &key), "{text} {key}");
        }
        let region = template("r:{tenant.region}:{kind}");
        assert!(region.may_be_of(eight, "r:eu:dog") && !region.may_be_of(seven, "r::dog"));
        assert_eq!(region.owners("r:eu:dog"), Owners::WithColumn("region", vec!["eu"]));
        assert_eq!(region.owners("r"), Owners::Nobody);
        assert!(template("menu:{date}").may_be_of(None, "menu:2026-03-01"));
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
