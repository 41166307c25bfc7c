//! Who asked for something, as the log, run records and pauses name them.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest name, in characters.
pub const MAX_NAME: usize = 64;

/// Who asked for something: the name given at the sign-in, the one that a trusted proxy sends, or
/// `token`. It is a label for people and proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, JsonSchema)]
pub struct Who(String);

impl Who {
    /// The name of somebody who carried the token and gave no name.
    pub fn token() -> Self {
        Self("token".to_owned())
    }

    /// A name from outside: without spaces at its ends, without control characters and characters
    /// that change the direction of text, and at most [`MAX_NAME`] long. `None` if nothing is left.
    pub fn named(text: &str) -> Option<Self> {
        let shown = text.chars().filter(|char| !is_invisible(*char)).collect::<String>();
        let name: String = shown.trim().chars().take(MAX_NAME).collect();
        let name = name.trim_end();
        (!name.is_empty()).then(|| Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a character shows nothing, or changes how others are shown.
pub(super) fn is_invisible(char: char) -> bool {
    let is_format = matches!(
        char,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    );
    char.is_control() || is_format
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Who {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Who {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::named(&text).ok_or_else(|| serde::de::Error::custom("an empty name"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_and_shows_what_it_is() {
        let name = |text: &str| Who::named(text).map(|who| who.to_string());
        assert_eq!(name("  Ann Ö. \n").as_deref(), Some("Ann Ö."));
        assert_eq!(name("a\u{202e}b\u{1b}[31m\u{200b}").as_deref(), Some("ab[31m"));
        assert_eq!(name(&"x".repeat(100)).unwrap().len(), MAX_NAME);
        for nothing in ["", "  ", "\u{200b}\n"] {
            assert_eq!(name(nothing), None);
        }
    }
}
