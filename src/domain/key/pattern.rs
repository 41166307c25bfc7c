//! What two key templates have in common, by the characters that their placeholders may hold. Pure
//! arithmetic over sets of characters: no key is needed.

use super::{KeyTemplate, Part, Placeholder};
use crate::domain::tenant::IdClass;

/// A key template as a row of pieces.
#[derive(Debug)]
pub(in crate::domain) struct Pattern(Vec<Piece>);

/// One character of a key, or any number of them.
#[derive(Debug)]
struct Piece {
    chars: Chars,
    repeats: bool,
    role: Role,
}

/// What a character of a key belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The template's own text.
    Literal,
    /// The value that says whose the key is.
    Owner,
    /// Another value.
    Value,
}

/// A set of characters.
#[derive(Clone, Copy, Debug)]
struct Chars {
    /// Those below 128, a bit each.
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

/// What the value that says whose a key is may hold.
#[derive(Clone, Copy, Debug)]
pub(in crate::domain) enum OwnerText<'a> {
    /// What the type of the ids allows.
    Ids,
    /// The same without these characters.
    IdsWithout(&'a [char]),
}

/// What is asked of two patterns.
#[derive(Clone, Copy, Debug)]
pub(in crate::domain) struct Question {
    /// The two may be those of one owner: only keys of two owners count.
    pub(in crate::domain) same_owner: bool,
    /// Only keys count in which a literal of the second stands in a value of the first.
    pub(in crate::domain) literal_in_value: bool,
}

impl Question {
    /// Whether they have any key in common.
    pub(in crate::domain) const ANY: Self = Self { same_owner: false, literal_in_value: false };
}

/// A character belongs to the owner in one pattern and not in the other: the owners differ.
const OWNERS_DIFFER: usize = 1;
/// A character is a literal of the second pattern within a value of the first.
const LITERAL_IN_VALUE: usize = 2;
/// The sets of these two marks.
const MARKS: usize = 4;

impl Pattern {
    /// The pattern of a template; `owner` is the part that says whose a key is.
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
                        let shape = "00000000-0000-0000-0000-000000000000";
                        pieces.extend(shaped(shape, Chars::HEX, role));
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

    /// Whether some key is one of both patterns, in such a way.
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

/// The places in two patterns to which one key may lead, each with the marks on the way.
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
    /// The marks of a character that is one of this piece and of another pattern's.
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

/// Pieces of a value whose form is fixed: `0` stands for one of these characters.
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

    /// A character beyond ASCII stays in: the set may be larger than it need be.
    fn all_but(without: &[char]) -> Self {
        let without = without.iter().filter_map(|char| bit(*char)).fold(0, |all, bit| all | bit);
        Self { ascii: !without, others: Others::All }
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
