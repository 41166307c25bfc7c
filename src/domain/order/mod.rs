//! The order of a tenant's rows within a value: what a job's `query.order` says, and bytes that sort
//! as Postgres would sort the rows.

mod comparison;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use super::spelling::listed;

pub use comparison::{Comparison, NotComparable};

/// One entry of `query.order`: a column of the query, and how its values are ordered.
///
/// Its text is `COLUMN [collate C] [asc | desc] [nulls first | nulls last]`. The column's name is
/// written as the query returns it, in double quotes if it contains blanks, commas or quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderColumn {
    name: String,
    collation: Collation,
    direction: Direction,
    nulls: Nulls,
}

/// Which order of texts an entry asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Collation {
    /// The order of the column's own collation, which must be the order of bytes.
    Column,
    /// The order of bytes, whatever the column's collation is: `collate C`.
    Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Ascending,
    Descending,
}

/// Where the rows are whose value is NULL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nulls {
    First,
    Last,
}

/// Why a text is not an entry of `query.order`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct BadOrder {
    /// The place in the text.
    pub at: Range<usize>,
    /// The reason.
    pub problem: OrderProblem,
}

/// What is wrong with an entry of `query.order`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderProblem {
    /// There is no name.
    #[error("this names no column")]
    NoColumn,
    /// A name's closing quote is missing.
    #[error("the name's double quote is not closed")]
    OpenQuote,
    /// A comma outside of quotes.
    #[error("an entry of `order` is one column")]
    Comma,
    /// A collation other than C.
    #[error("preheat sorts text by bytes, and cannot sort by the collation `{0}`")]
    Collation(String),
    /// A word that cannot stand there.
    #[error("{}", unexpected(found.as_deref(), expected))]
    Unexpected {
        /// The word; `None` at the end of the text.
        found: Option<String>,
        /// The words that can stand there.
        expected: Vec<&'static str>,
    },
}

fn unexpected(found: Option<&str>, expected: &[&str]) -> String {
    let found = match found {
        Some(word) => format!("`{word}` cannot stand here"),
        None => "something is missing here".to_owned(),
    };
    if expected.is_empty() {
        return format!("{found}: the entry is complete before it");
    }
    format!("{found}: write {}", listed(expected.iter().copied(), "or"))
}

impl OrderColumn {
    /// Reads an entry.
    pub fn parse(text: &str) -> Result<Self, BadOrder> {
        let mut words = Words::new(text)?;
        let name = words.name()?;
        let mut expected = vec!["collate C", "asc", "desc", "nulls first", "nulls last"];
        let mut collation = Collation::Column;
        if words.take("collate") {
            words.collation()?;
            collation = Collation::Bytes;
            expected.retain(|word| *word != "collate C");
        }
        let mut direction = Direction::Ascending;
        let is_descending = words.take("desc");
        if is_descending || words.take("asc") {
            expected.retain(|word| word.starts_with("nulls"));
        }
        if is_descending {
            direction = Direction::Descending;
        }
        let mut nulls = direction.nulls();
        if words.take("nulls") {
            nulls = words.nulls()?;
            expected.clear();
        }
        words.end(expected)?;
        Ok(Self { name, collation, direction, nulls })
    }

    /// The column's name, as the query returns it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the name could be a column's as SQL reads it without quotes. Otherwise it may be meant as
    /// an expression, such as `lower(name)`, as a table's column, or as a position.
    pub fn is_plain_name(&self) -> bool {
        is_sql_name(&self.name)
    }

    /// Whether the entry asks for the order of bytes: `collate C`.
    pub fn is_by_bytes(&self) -> bool {
        self.collation == Collation::Bytes
    }

    /// The same entry with `collate C`.
    #[must_use]
    pub fn by_bytes(&self) -> Self {
        Self { collation: Collation::Bytes, ..self.clone() }
    }
}

impl Direction {
    /// Where Postgres puts NULLs if nothing is said: it treats them as larger than all values.
    fn nulls(self) -> Nulls {
        match self {
            Self::Ascending => Nulls::Last,
            Self::Descending => Nulls::First,
        }
    }
}

/// The entry's shortest text.
impl fmt::Display for OrderColumn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&quoted(&self.name))?;
        match self.collation {
            Collation::Column => {}
            Collation::Bytes => f.write_str(" collate C")?,
        }
        match self.direction {
            Direction::Ascending => {}
            Direction::Descending => f.write_str(" desc")?,
        }
        match self.nulls {
            nulls if nulls == self.direction.nulls() => Ok(()),
            Nulls::First => f.write_str(" nulls first"),
            Nulls::Last => f.write_str(" nulls last"),
        }
    }
}

/// A name as an entry needs it: in quotes if it has to be.
fn quoted(name: &str) -> Cow<'_, str> {
    let is_plain = |char: char| !char.is_whitespace() && char != '"' && char != ',';
    if !name.is_empty() && name.chars().all(is_plain) {
        Cow::Borrowed(name)
    } else {
        Cow::Owned(in_quotes(name))
    }
}

/// A name as SQL needs it: in quotes unless it is a name in lower case. Reserved words, which need quotes
/// too, are not known here.
fn quoted_in_sql(name: &str) -> Cow<'_, str> {
    if is_sql_name(name) && !name.contains(char::is_uppercase) {
        Cow::Borrowed(name)
    } else {
        Cow::Owned(in_quotes(name))
    }
}

fn in_quotes(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Whether SQL reads this as a name without quotes.
fn is_sql_name(name: &str) -> bool {
    let is_part = |char: char| char == '_' || char.is_alphanumeric();
    name.chars().all(is_part) && name.starts_with(|char: char| !char.is_ascii_digit())
}

/// The words of an entry that have not been read yet.
struct Words<'t> {
    words: std::iter::Peekable<std::vec::IntoIter<Word<'t>>>,
    /// The length of the entry.
    length: usize,
}

/// A word of an entry, with its quotes.
#[derive(Clone)]
struct Word<'t> {
    at: Range<usize>,
    text: &'t str,
}

impl Word<'_> {
    fn bad(&self, problem: OrderProblem) -> BadOrder {
        BadOrder { at: self.at.clone(), problem }
    }

    fn is(&self, other: &str) -> bool {
        self.text.eq_ignore_ascii_case(other)
    }

    /// What stands between the quotes, or the whole word if it has none.
    fn unquoted(&self) -> String {
        let inner = self.text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        inner.map_or_else(|| self.text.to_owned(), |inner| inner.replace("\"\"", "\""))
    }
}

impl<'t> Words<'t> {
    fn new(text: &'t str) -> Result<Self, BadOrder> {
        let mut words = Vec::new();
        let mut start = 0;
        while let Some(rest) = text.get(start..).filter(|rest| !rest.is_empty()) {
            let blanks = rest.len() - rest.trim_start().len();
            if blanks > 0 {
                start += blanks;
                continue;
            }
            let length = match rest.strip_prefix('"') {
                Some(name) => {
                    1 + quoted_length(name).ok_or(BadOrder {
                        at: start..text.len(),
                        problem: OrderProblem::OpenQuote,
                    })?
                }
                None => rest
                    .find(|char: char| char.is_whitespace() || char == ',' || char == '"')
                    .unwrap_or(rest.len()),
            };
            if length == 0 {
                return Err(BadOrder { at: start..start + 1, problem: OrderProblem::Comma });
            }
            let at = start..start + length;
            words.push(Word { text: text.get(at.clone()).unwrap_or_default(), at });
            start += length;
        }
        Ok(Self { words: words.into_iter().peekable(), length: text.len() })
    }

    fn name(&mut self) -> Result<String, BadOrder> {
        let name = self.words.next().map(|word| word.unquoted());
        let problem = OrderProblem::NoColumn;
        name.filter(|name| !name.is_empty()).ok_or(BadOrder { at: 0..self.length, problem })
    }

    /// Reads the next word if it is this one.
    fn take(&mut self, word: &str) -> bool {
        self.words.next_if(|next| next.is(word)).is_some()
    }

    /// Reads the name of the collation C.
    fn collation(&mut self) -> Result<(), BadOrder> {
        match self.words.next() {
            Some(word) if ["C", "\"C\""].iter().any(|name| word.is(name)) => Ok(()),
            Some(word) => Err(word.bad(OrderProblem::Collation(word.unquoted()))),
            None => Err(self.missing(vec!["C"])),
        }
    }

    fn nulls(&mut self) -> Result<Nulls, BadOrder> {
        if self.take("first") {
            return Ok(Nulls::First);
        }
        if self.take("last") {
            return Ok(Nulls::Last);
        }
        let expected = vec!["first", "last"];
        Err(match self.words.next() {
            Some(word) => word.unexpected(expected),
            None => self.missing(expected),
        })
    }

    fn end(mut self, expected: Vec<&'static str>) -> Result<(), BadOrder> {
        match self.words.next() {
            Some(word) => Err(word.unexpected(expected)),
            None => Ok(()),
        }
    }

    fn missing(&self, expected: Vec<&'static str>) -> BadOrder {
        let problem = OrderProblem::Unexpected { found: None, expected };
        BadOrder { at: self.length.saturating_sub(1)..self.length, problem }
    }
}

impl Word<'_> {
    fn unexpected(&self, expected: Vec<&'static str>) -> BadOrder {
        self.bad(OrderProblem::Unexpected { found: Some(self.text.to_owned()), expected })
    }
}

/// The length of a quoted name after its first quote, with its last quote; within it, a quote is
/// doubled.
fn quoted_length(name: &str) -> Option<usize> {
    let mut quotes = name.match_indices('"').peekable();
    while let Some((at, _)) = quotes.next() {
        if quotes.next_if(|(next, _)| *next == at + 1).is_none() {
            return Some(at + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_and_shown_in_its_shortest_form() {
        let cases = [
            ("name", "name"),
            ("  name  ASC ", "name"),
            ("Name desc", "Name desc"),
            ("a NULLS last", "a"),
            ("a nulls FIRST", "a nulls first"),
            ("a desc nulls first", "a desc"),
            ("a desc nulls last", "a desc nulls last"),
            ("a collate C", "a collate C"),
            ("a Collate \"C\" desc nulls last", "a collate C desc nulls last"),
            ("\"two words\" desc", "\"two words\" desc"),
            ("\"plain\"", "plain"),
            ("\"a\"\"b\"", "\"a\"\"b\""),
            ("\"a,b\"", "\"a,b\""),
            ("desc", "desc"),
            ("asc asc", "asc"),
            ("über.straße", "über.straße"),
        ];
        for (text, shown) in cases {
            let entry = OrderColumn::parse(text).unwrap();
            assert_eq!(entry.to_string(), shown, "{text}");
            assert_eq!(OrderColumn::parse(shown), Ok(entry), "{text}");
        }
        assert_eq!(OrderColumn::parse("\"a\"\"b\" desc").unwrap().name(), "a\"b");
    }

    #[test]
    fn what_is_no_entry_is_refused_at_its_place() {
        let cases = [
            ("", ""),
            ("  ", "  "),
            ("\"\"", "\"\""),
            ("\"name", "\"name"),
            ("name, id", ","),
            ("name down", "down"),
            ("name desc asc", "asc"),
            ("name desc collate C", "collate"),
            ("name collate de_DE", "de_DE"),
            ("name collate", "e"),
            ("name nulls", "s"),
            ("name nulls lats", "lats"),
            ("name nulls first desc", "desc"),
            ("lower (name)", "(name)"),
        ];
        for (text, place) in cases {
            let error = OrderColumn::parse(text).unwrap_err();
            assert_eq!(text.get(error.at.clone()), Some(place), "{text}: {error}");
        }
    }
}
