//! How a template reads the text of a key: which piece of the text is the value of each placeholder.

use std::ops::Range;

use chrono::NaiveDate;

use super::key::{KeyTemplate, Part, Placeholder};
use super::tenant::IdClass;

/// A template's reading of a key's text.
#[derive(Debug)]
pub(super) struct Reading<'k> {
    pub(super) text: &'k str,
    /// The text of the part that names the owner; `None` if the template has no such part.
    pub(super) owner: Option<&'k str>,
    /// For each byte of the text, whether it belongs to a value.
    in_value: Vec<bool>,
}

/// How a template's possible reading of a key compares with another template's reading of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// It gives the key to another owner.
    pub(super) owners_differ: bool,
    /// A literal of it lies, at least partly, within a value of the other reading.
    pub(super) literal: bool,
}

impl<'k> Reading<'k> {
    /// The one reading that counts for a template: each value, beginning with the first, ends as early
    /// as it can. `None` if the template does not make this key.
    pub(super) fn new(
        template: &KeyTemplate,
        owner: Option<usize>,
        text: &'k str,
        ids: IdClass,
    ) -> Option<Self> {
        if !template.may_make(text) {
            return None;
        }
        let ranges = template.read(text, ids)?;
        let mut in_value = vec![true; text.len()];
        for (part, range) in template.parts().iter().zip(&ranges) {
            if let Part::Literal(_) = part {
                in_value.get_mut(range.clone())?.fill(false);
            }
        }
        let owner = owner.and_then(|owner| text.get(ranges.get(owner)?.clone()));
        Some(Self { text, owner, in_value })
    }

    fn has_value_in(&self, range: Range<usize>) -> bool {
        self.in_value.get(range).is_some_and(|bytes| bytes.contains(&true))
    }
}

impl KeyTemplate {
    /// Whether a key begins and ends like the keys of this template. This check is cheap and rules out
    /// most keys of other templates.
    pub(super) fn may_make(&self, text: &str) -> bool {
        let begins = match self.parts().first() {
            Some(Part::Literal(first)) => text.starts_with(first.as_str()),
            Some(Part::Placeholder(_)) | None => true,
        };
        begins
            && match self.parts().last() {
                Some(Part::Literal(last)) => text.ends_with(last.as_str()),
                Some(Part::Placeholder(_)) | None => true,
            }
    }

    /// The range of bytes of each part in a key: see [`Reading::new`].
    fn read(&self, text: &str, ids: IdClass) -> Option<Vec<Range<usize>>> {
        // Where each part can begin so that all later parts fit; computed from the last part to the
        // first.
        let mut starts = vec![places(text, |place| place == text.len())];
        for part in self.parts().iter().rev() {
            let after = starts.last()?;
            let fits =
                |start: usize| Holds::of(part, ids).ends(text, start, after).next().is_some();
            starts.push(places(text, fits));
        }
        starts.reverse();
        let (first, after) = starts.split_first()?;
        if !*first.first()? {
            return None;
        }
        let mut place = 0;
        let mut ranges = Vec::with_capacity(self.parts().len());
        for (part, after) in self.parts().iter().zip(after) {
            let end = Holds::of(part, ids).ends(text, place, after).next()?;
            ranges.push(place..end);
            place = end;
        }
        Some(ranges)
    }

    /// The marks of all possible readings of a key by this template, compared with the reading `other`.
    /// `part` is the position of the part of this template that names the owner, and `owner` is the
    /// text that this part has if both owners are the same. Without that text the two cannot be compared,
    /// and the owners count as different.
    pub(super) fn marks(
        &self,
        other: &Reading<'_>,
        part: Option<usize>,
        owner: Option<&str>,
        ids: IdClass,
    ) -> Vec<Marks> {
        let text = other.text;
        let anywhere = vec![true; text.len() + 1];
        let start = Marks { owners_differ: owner.is_none(), literal: false };
        let mut reached: Vec<Vec<Marks>> = vec![Vec::new(); text.len() + 1];
        if let Some(first) = reached.first_mut() {
            first.push(start);
        }
        for (index, piece) in self.parts().iter().enumerate() {
            let mut next: Vec<Vec<Marks>> = vec![Vec::new(); text.len() + 1];
            let is_owner = part == Some(index);
            let is_literal = matches!(piece, Part::Literal(_));
            for (start, marks) in reached.iter().enumerate().filter(|(_, marks)| !marks.is_empty())
            {
                for end in Holds::of(piece, ids).ends(text, start, &anywhere) {
                    let differs = is_owner
                        && owner.is_some_and(|owner| {
                            text.get(start..end).is_none_or(|found| found != owner)
                        });
                    let literal = is_literal && other.has_value_in(start..end);
                    let Some(there) = next.get_mut(end) else { continue };
                    for mark in marks {
                        let mark = Marks {
                            owners_differ: mark.owners_differ || differs,
                            literal: mark.literal || literal,
                        };
                        if !there.contains(&mark) {
                            there.push(mark);
                        }
                    }
                }
            }
            reached = next;
        }
        reached.pop().unwrap_or_default()
    }
}

/// The texts that a part of a template can have in a key.
enum Holds<'a> {
    /// Only this text.
    Text(&'a str),
    /// A date.
    Date,
    /// A tenant's id.
    Id(IdClass),
    /// Any text.
    Anything,
}

/// `YYYY-MM-DD`
const DATE_BYTES: usize = 10;

impl<'a> Holds<'a> {
    fn of(part: &'a Part, ids: IdClass) -> Self {
        match part {
            Part::Literal(text) => Self::Text(text),
            Part::Placeholder(Placeholder::Date) => Self::Date,
            Part::Placeholder(Placeholder::Tenant) => match ids {
                IdClass::Uuid | IdClass::Integer => Self::Id(ids),
                IdClass::Text => Self::Anything,
            },
            Part::Placeholder(Placeholder::TenantColumn(_) | Placeholder::Column(_)) => {
                Self::Anything
            }
        }
    }

    /// The wanted positions at which a part that begins at `start` can end, the nearest first.
    fn ends<'t>(
        self,
        text: &'t str,
        start: usize,
        wanted: &'t [bool],
    ) -> impl Iterator<Item = usize> + use<'a, 't> {
        let lengths = match &self {
            Self::Text(fixed) => fixed.len()..=fixed.len(),
            Self::Date => DATE_BYTES..=DATE_BYTES,
            Self::Id(_) | Self::Anything => 0..=text.len().saturating_sub(start),
        };
        lengths.map(move |length| start + length).filter(move |end| {
            wanted.get(*end).copied().unwrap_or_default()
                && text.get(start..*end).is_some_and(|piece| self.fits(piece))
        })
    }

    fn fits(&self, text: &str) -> bool {
        match self {
            Self::Text(fixed) => text == *fixed,
            // Keys have dates in this form only.
            Self::Date => text.parse().is_ok_and(|date: NaiveDate| date.to_string() == text),
            Self::Id(ids) => ids.fits(text),
            Self::Anything => true,
        }
    }
}

/// For each position in a key, including its end, whether it lies between two characters and `is_so`
/// holds.
fn places(text: &str, is_so: impl Fn(usize) -> bool) -> Vec<bool> {
    (0..=text.len()).map(|place| text.is_char_boundary(place) && is_so(place)).collect()
}
