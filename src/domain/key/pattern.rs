//! Decides whether two key templates can make the same key, from the characters that their placeholders
//! may contain. It works on sets of characters and needs no actual keys.

use std::collections::BTreeSet;

use super::{KeyTemplate, Part, Placeholder};
use crate::domain::tenant::IdClass;

/// A key template as a sequence of pieces.
#[derive(Debug)]
pub(in crate::domain) struct Pattern(Vec<Piece>);

/// One character of a key, or any number of characters, out of a set.
#[derive(Debug)]
struct Piece {
    chars: Chars,
    repeats: bool,
    role: Role,
}

/// What kind of part a character of a key belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// A literal of the template.
    Literal,
    /// The value that names the key's owner.
    Owner,
    /// Another value.
    Value,
}

/// A set of characters.
#[derive(Clone, Copy, Debug)]
struct Chars {
    /// The characters below 128, one bit for each.
    ascii: u128,
    others: Others,
}

/// The characters from 128 on in a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    None,
    One(char),
    All,
}

/// Which texts the value that names a key's owner may have.
#[derive(Clone, Copy, Debug)]
pub(in crate::domain) enum OwnerText<'a> {
    /// All texts that the type of the ids allows.
    Ids,
    /// The same, but without these characters.
    IdsWithout(&'a [char]),
}

/// A question about two patterns.
#[derive(Clone, Copy, Debug)]
pub(in crate::domain) struct Question {
    /// Whether the two patterns can have the same owner: then only keys with different owners count.
    pub(in crate::domain) same_owner: bool,
    /// Whether only keys count in which a literal of the second pattern lies within a value of the
    /// first.
    pub(in crate::domain) literal_in_value: bool,
}

impl Question {
    /// Asks whether they have any key in common.
    pub(in crate::domain) const ANY: Self = Self { same_owner: false, literal_in_value: false };
}

/// Mark: a character belongs to the owner in only one of the patterns, so the owners differ.
const OWNERS_DIFFER: usize = 1;
/// Mark: a character of a literal of the second pattern lies within a value of the first.
const LITERAL_IN_VALUE: usize = 2;
/// The number of sets of these two marks.
const MARKS: usize = 4;

impl Pattern {
    /// The pattern of a template; `owner` is the position of the part that names the owner.
    pub(in crate::domain) fn new(
        template: &KeyTemplate,
        owner: Option<usize>,
        ids: IdClass,
        text: OwnerText<'_>,
    ) -> Self {
        let mut pieces = Vec::new();
        for (index, part) in template.parts().iter().enumerate() {
            let is_owner = owner == Some(index);
            let role = if is_owner { Role::Owner } else { Role::Value };
            let mut any = |chars| pieces.push(Piece { chars, repeats: true, role });
            match part {
                Part::Literal(text) => {
                    let role = Role::Literal;
                    let piece = |char| Piece { chars: Chars::one(char), repeats: false, role };
                    pieces.extend(text.chars().map(piece));
                }
                Part::Placeholder(Placeholder::Date) => {
                    pieces.extend(shaped("0000-00-00", Chars::DIGITS, role));
                }
                Part::Placeholder(Placeholder::Tenant) => match (ids, text) {
                    (IdClass::Uuid, _) => {
                        pieces.extend(shaped(UUID, Chars::HEX, role));
                    }
                    (IdClass::Integer, _) => any(Chars::DIGITS.with('-')),
                    (IdClass::Text, OwnerText::IdsWithout(without)) if is_owner => {
                        any(Chars::all_but(without));
                    }
                    (IdClass::Text, OwnerText::Ids | OwnerText::IdsWithout(_)) => any(Chars::ALL),
                },
                Part::Placeholder(Placeholder::TenantColumn(_) | Placeholder::Column(_)) => {
                    any(Chars::ALL);
                }
            }
        }
        Self(pieces)
    }

    /// The pattern of parts of a template, with a character of its own in the place of each date and of each
    /// integer: not every text out of their characters is one, as [`Self::new`] takes it.
    pub(super) fn exact(parts: &[Part], ids: IdClass) -> Self {
        /// No text of Unicode contains these.
        const DATE: char = '\u{fdd0}';
        const INTEGER: char = '\u{fdd1}';
        let one = |char| Piece { chars: Chars::one(char), repeats: false, role: Role::Value };
        let pieces = parts.iter().flat_map(|part| match (part, ids) {
            (Part::Placeholder(Placeholder::Date), _) => vec![one(DATE)],
            (Part::Placeholder(Placeholder::Tenant), IdClass::Integer) => vec![one(INTEGER)],
            (Part::Literal(text), _) => text.chars().map(one).collect(),
            (Part::Placeholder(Placeholder::Tenant), IdClass::Uuid) => {
                shaped(UUID, Chars::HEX, Role::Value).collect()
            }
            (Part::Placeholder(_), _) => {
                vec![Piece { chars: Chars::ALL, repeats: true, role: Role::Value }]
            }
        });
        Self(pieces.collect())
    }

    /// Whether every key of this pattern fits the other one, which must be easy to see: each character of
    /// this pattern is in one of the other's sets, and a value lies within a single value. Both patterns
    /// are [exact](Self::exact).
    pub(super) fn is_within(&self, other: &Self) -> bool {
        // The positions in the other pattern that every beginning of a key can reach.
        let mut places = other.reach([0]);
        for piece in &self.0 {
            let takes = |place: usize| {
                let other =
                    other.0.get(place).filter(|other| piece.chars.is_within(other.chars))?;
                match (piece.repeats, other.repeats) {
                    (true, false) => None,
                    (false, false) => Some(place + 1),
                    (true | false, true) => Some(place),
                }
            };
            places = other.reach(places.into_iter().filter_map(takes));
        }
        places.contains(&other.0.len())
    }

    /// These positions and those behind them that need no further character.
    fn reach(&self, places: impl IntoIterator<Item = usize>) -> BTreeSet<usize> {
        let mut reached = BTreeSet::new();
        for mut place in places {
            while reached.insert(place) && self.0.get(place).is_some_and(|piece| piece.repeats) {
                place += 1;
            }
        }
        reached
    }

    /// Whether some key fits both patterns and the question.
    pub(in crate::domain) fn meets(&self, other: &Self, question: Question) -> bool {
        let (first, second) = (&self.0, &other.0);
        let mut wanted = 0;
        if question.same_owner {
            wanted |= OWNERS_DIFFER;
        }
        if question.literal_in_value {
            wanted |= LITERAL_IN_VALUE;
        }
        let mut search = Search::new(first.len(), second.len());
        search.come_to(0, 0, 0);
        while let Some((i, j, marks)) = search.pending.pop() {
            if i == first.len() && j == second.len() && marks & wanted == wanted {
                return true;
            }
            let (one, two) = (first.get(i), second.get(j));
            if one.is_some_and(|piece| piece.repeats) {
                search.come_to(i + 1, j, marks);
            }
            if two.is_some_and(|piece| piece.repeats) {
                search.come_to(i, j + 1, marks);
            }
            let (Some(one), Some(two)) = (one, two) else { continue };
            if one.chars.meets(two.chars) {
                let (i, j) = (i + usize::from(!one.repeats), j + usize::from(!two.repeats));
                search.come_to(i, j, marks | one.marks(two));
            }
        }
        false
    }
}

/// A search over pairs of positions in two patterns that the beginning of one key can reach, each with
/// the marks collected on the way.
struct Search {
    seen: Vec<bool>,
    width: usize,
    pending: Vec<(usize, usize, usize)>,
}

impl Search {
    fn new(first: usize, second: usize) -> Self {
        let width = second + 1;
        Self { seen: vec![false; (first + 1) * width * MARKS], width, pending: Vec::new() }
    }

    fn come_to(&mut self, i: usize, j: usize, marks: usize) {
        let place = (i * self.width + j) * MARKS + marks;
        if let Some(seen) = self.seen.get_mut(place).filter(|seen| !**seen) {
            *seen = true;
            self.pending.push((i, j, marks));
        }
    }
}

impl Piece {
    /// The marks of a character that fits this piece and a piece of the other pattern.
    fn marks(&self, other: &Self) -> usize {
        let mut marks = 0;
        if (self.role == Role::Owner) != (other.role == Role::Owner) {
            marks |= OWNERS_DIFFER;
        }
        if self.role != Role::Literal && other.role == Role::Literal {
            marks |= LITERAL_IN_VALUE;
        }
        marks
    }
}

/// The form of a UUID.
const UUID: &str = "00000000-0000-0000-0000-000000000000";

/// The pieces of a value with a fixed form: a `0` in `shape` stands for one of `chars`.
fn shaped(shape: &str, chars: Chars, role: Role) -> impl Iterator<Item = Piece> {
    shape.chars().map(move |char| {
        let chars = if char == '0' { chars } else { Chars::one(char) };
        Piece { chars, repeats: false, role }
    })
}

impl Chars {
    const ALL: Self = Self { ascii: u128::MAX, others: Others::All };
    const DIGITS: Self = Self { ascii: 0x3ff << b'0', others: Others::None };
    const HEX: Self = Self { ascii: (0x3ff << b'0') | (0x3f << b'a'), others: Others::None };

    fn one(char: char) -> Self {
        Self { ascii: 0, others: Others::None }.with(char)
    }

    fn with(self, char: char) -> Self {
        match bit(char) {
            Some(bit) => Self { ascii: self.ascii | bit, ..self },
            None => Self { others: Others::One(char), ..self },
        }
    }

    /// All characters except these. It keeps characters beyond ASCII, so the set may be too large.
    fn all_but(without: &[char]) -> Self {
        let without = without.iter().filter_map(|char| bit(*char)).fold(0, |all, bit| all | bit);
        Self { ascii: !without, others: Others::All }
    }

    fn is_within(self, other: Self) -> bool {
        let beyond = match (self.others, other.others) {
            (Others::None, _) | (_, Others::All) => true,
            (Others::One(one), Others::One(other)) => one == other,
            (Others::One(_) | Others::All, Others::None) | (Others::All, Others::One(_)) => false,
        };
        beyond && self.ascii & !other.ascii == 0
    }

    fn meets(self, other: Self) -> bool {
        let beyond = match (self.others, other.others) {
            (Others::None, _) | (_, Others::None) => false,
            (Others::One(one), Others::One(other)) => one == other,
            (Others::All, Others::One(_) | Others::All) | (Others::One(_), Others::All) => true,
        };
        beyond || self.ascii & other.ascii != 0
    }
}

fn bit(char: char) -> Option<u128> {
    char.is_ascii().then(|| 1 << u32::from(char))
}
