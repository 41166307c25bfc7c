//! The keys of a template as a pattern, for the checks of builders.

use crate::domain::key::{KeyTemplate, Part, Placeholder};
use crate::domain::tenant::IdClass;

/// What the keys of a template look like, piece by piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern(pub(super) Vec<Piece>);

/// A piece of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// This text.
    Text(String),
    /// A value.
    Value(Class),
}

/// Which texts a value can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// A UUID in lower case with hyphens.
    Uuid,
    /// An integer in decimal.
    Integer,
    /// A date, `YYYY-MM-DD`.
    Date,
    /// Any text.
    Text,
}

impl Class {
    /// The class of the tenants' ids.
    pub(super) fn of_ids(ids: IdClass) -> Self {
        match ids {
            IdClass::Uuid => Self::Uuid,
            IdClass::Integer => Self::Integer,
            IdClass::Text => Self::Text,
        }
    }

    /// Whether a text of this class can contain the character.
    pub(super) fn may_contain(self, char: char) -> bool {
        match self {
            Self::Uuid => char == '-' || char.is_ascii_hexdigit(),
            Self::Integer | Self::Date => char == '-' || char.is_ascii_digit(),
            Self::Text => true,
        }
    }

    /// Whether all texts of this class have one length.
    pub(super) fn is_fixed(self) -> bool {
        match self {
            Self::Uuid | Self::Date => true,
            Self::Integer | Self::Text => false,
        }
    }
}

impl Pattern {
    /// The pattern of a template. A column can be any text, as for a run.
    pub(super) fn of(template: &KeyTemplate, ids: IdClass) -> Self {
        let piece = |part: &Part| match part {
            Part::Literal(text) => Piece::Text(text.clone()),
            Part::Placeholder(Placeholder::Tenant) => Piece::Value(Class::of_ids(ids)),
            Part::Placeholder(Placeholder::Date) => Piece::Value(Class::Date),
            Part::Placeholder(Placeholder::TenantColumn(_) | Placeholder::Column(_)) => {
                Piece::Value(Class::Text)
            }
        };
        Self(template.parts().iter().map(piece).collect())
    }
}
