//! Translates a position in the value of a TOML string into the position in the file, where escapes
//! and line continuations take more bytes.

use std::ops::Range;

use super::read::Located;

/// The bytes of the file that stand for these bytes of the string's value.
pub(super) fn range(file: &str, string: &Located<String>, at: Range<usize>) -> Range<usize> {
    let chars = |end: usize| {
        let end = string.value.floor_char_boundary(end);
        string.value.get(..end).unwrap_or_default().chars().count()
    };
    let raw = file.get(string.at.clone()).unwrap_or_default();
    let start = offset(raw, chars(at.start));
    let end = offset(raw, chars(at.end)).max(start);
    string.at.start + start..string.at.start + end
}

/// The byte in the string as written, quotes included, at which this character of its value begins.
fn offset(raw: &str, characters: usize) -> usize {
    let (quotes, has_escapes) = match raw {
        _ if raw.starts_with("\"\"\"") => (3, true),
        _ if raw.starts_with("'''") => (3, false),
        _ => (1, raw.starts_with('"')),
    };
    let mut rest = raw.get(quotes..).unwrap_or_default();
    if quotes == 3 {
        rest = rest.strip_prefix("\r\n").or_else(|| rest.strip_prefix('\n')).unwrap_or(rest);
    }
    for _ in 0..characters {
        rest = after_line_continuations(rest, has_escapes);
        let length = match rest.strip_prefix('\\') {
            Some(escape) if has_escapes => 1 + escape_length(escape),
            Some(_) | None => rest.chars().next().map_or(0, char::len_utf8),
        };
        rest = rest.get(length..).unwrap_or_default();
    }
    raw.len() - after_line_continuations(rest, has_escapes).len()
}

/// A backslash at the end of a line removes the line break and all white space after it.
fn after_line_continuations(mut rest: &str, has_escapes: bool) -> &str {
    while has_escapes
        && let Some(after) = rest.strip_prefix('\\')
        && after.trim_start_matches([' ', '\t']).starts_with(['\n', '\r'])
    {
        rest = after.trim_start();
    }
    rest
}

fn escape_length(escape: &str) -> usize {
    match escape.chars().next() {
        Some('x') => 3,
        Some('u') => 5,
        Some('U') => 9,
        Some(char) => char.len_utf8(),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of the file that stand for each `x` of the string's value.
    fn places_of_x(file: &str) -> Vec<usize> {
        let document = toml::de::DeTable::parse(file).unwrap();
        let value = document.get_ref().get("a").unwrap();
        let string = Located {
            key: 0..0,
            at: value.span(),
            value: value.get_ref().as_str().unwrap().to_owned(),
        };
        let places = string.value.match_indices('x');
        places.map(|(at, _)| range(file, &string, at..at + 1).start).collect()
    }

    #[test]
    fn a_place_in_a_string_is_found_in_each_way_to_write_it() {
        let cases = [
            r#"a = "x y x""#,
            r"a = 'x \ x'",
            r#"a = "\t\"x\u00e4\U0001F600\x41x""#,
            "a = \"\"\"x\nx\n  x\"\"\"",
            "a = \"\"\"\nx\nx\"\"\"",
            "a = '''\r\nx\r\nx'''",
            "a = \"\"\"\\\n   x \\\n\n  x\\n x\"\"\"",
            "a = \"ä😀x\"",
        ];
        for file in cases {
            let places = places_of_x(file);
            assert!(!places.is_empty(), "{file}");
            // `\x41` contains the only other `x`, and stands for an `A`.
            let expected: Vec<_> = file
                .match_indices('x')
                .map(|(at, _)| at)
                .filter(|at| !file.get(..*at).unwrap().ends_with('\\'))
                .collect();
            assert_eq!(places, expected, "{file}");
        }
    }
}
