//! Globs over keys with the rules of Redis, byte by byte.
//!
//! `*` matches any bytes, `?` one byte, `[ab0-9]` one of these bytes, `[^ab]` any byte except these. A
//! backslash makes the next character literal. Every other character matches itself. A character of
//! several bytes needs as many `?`.

/// A glob that matches this text and nothing else.
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

/// Whether the glob matches a text.
pub fn matches(glob: &str, text: &str) -> bool {
    let (mut glob, mut text) = (glob.as_bytes(), text.as_bytes());
    // Where to try again if the glob after the last star does not match: right after that star, and
    // with the text one byte shorter.
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

/// Whether a byte matches the first element of a glob, and the glob after that element.
fn fits(first: u8, behind: &[u8], byte: u8) -> (bool, &[u8]) {
    match (first, behind) {
        (b'?', _) => (true, behind),
        (b'[', _) => fits_class(behind, byte),
        (b'\\', [taken, rest @ ..]) => (*taken == byte, rest),
        _ => (first == byte, behind),
    }
}

/// The same for a class: `class` is the glob after the `[`. A class without `]` ends with the glob.
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
