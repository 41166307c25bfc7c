//! Globs over keys, as Redis means them, byte by byte.
//!
//! `*` stands for anything, `?` for one byte, `[ab0-9]` for one of these, `[^ab]` for one of the
//! others; a backslash takes the character after it as it is. Everything else stands for itself, and
//! a letter that takes several bytes is matched by as many `?`.

/// A text as a glob that matches it and nothing else.
pub fn escaped(text: &str) -> String {
    let mut glob = String::with_capacity(text.len());
    for char in text.chars() {
        if matches!(char, '*' | '?' | '[' | ']' | '\\') {
            glob.push('\\');
        }
        glob.push(char);
    }
    glob
}

/// Whether a text is one that the glob stands for.
pub fn matches(glob: &str, text: &str) -> bool {
    let (mut glob, mut text) = (glob.as_bytes(), text.as_bytes());
    // Where to go on if what comes after the last star does not fit: behind that star, and with a
    // byte less of the text.
    let mut star: Option<(&[u8], &[u8])> = None;
    loop {
        match (glob, text) {
            ([], []) => return true,
            ([b'*', rest @ ..], _) => {
                star = Some((rest, text));
                glob = rest;
                continue;
            }
            ([first, behind @ ..], [byte, after @ ..]) => {
                let (fits, rest) = fits(*first, behind, *byte);
                if fits {
                    (glob, text) = (rest, after);
                    continue;
                }
            }
            ([], [_, ..]) | ([_, ..], []) => {}
        }
        let Some((rest, [_, after @ ..])) = star else { return false };
        star = Some((rest, after));
        (glob, text) = (rest, after);
    }
}

/// Whether a byte fits to what a glob begins with, and the rest of the glob.
fn fits(first: u8, behind: &[u8], byte: u8) -> (bool, &[u8]) {
    match (first, behind) {
        (b'?', _) => (true, behind),
        (b'[', _) => fits_class(behind, byte),
        (b'\\', [taken, rest @ ..]) => (*taken == byte, rest),
        _ => (first == byte, behind),
    }
}

/// The same for a class, from behind its bracket on; one that is not closed ends with the glob.
fn fits_class(class: &[u8], byte: u8) -> (bool, &[u8]) {
    let (others, mut class) = match class {
        [b'^', rest @ ..] => (true, rest),
        _ => (false, class),
    };
    let mut found = false;
    loop {
        class = match class {
            [] | [b']', ..] => return (found != others, class.get(1..).unwrap_or_default()),
            [b'\\', one, rest @ ..] => {
                found |= *one == byte;
                rest
            }
            [one, b'-', other, rest @ ..] => {
                found |= (*one.min(other)..=*one.max(other)).contains(&byte);
                rest
            }
            [one, rest @ ..] => {
                found |= *one == byte;
                rest
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_escaped_text_is_matched_by_itself_alone() {
        for text in ["a*b", "a?b", "[ab]", "a\\b", "]", "a^-b", "é\n{}\"'", ""] {
            assert!(matches(&escaped(text), text), "{text}");
            assert!(!matches(&escaped(text), &format!("{text}x")), "{text}");
        }
        assert!(!matches(&escaped("a*b"), "axb") && !matches(&escaped("[ab]"), "a"));
    }

    #[test]
    fn many_stars_cost_no_more_than_they_must() {
        assert!(!matches(&"a*".repeat(100), &"a".repeat(99)));
        assert!(!matches(&"*a".repeat(50), &"b".repeat(100_000)));
    }
}
