//! JSON values that the database stores as JSON.

use serde::de::IgnoredAny;

use super::number::mended_js_number;
use super::string::clean_prefix;
use super::wire::{ValueError, utf8};

/// Appends a JSON text as it is.
pub(super) fn write_as_it_is(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    out.extend_from_slice(utf8(text)?.as_bytes());
    Ok(())
}

/// Appends a text as it is, after checking that it is JSON.
pub(super) fn write_checked(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let text = utf8(text)?;
    if !is_json(text) {
        return Err(ValueError::NotJson);
    }
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

/// Appends a JSON text that equals `JSON.stringify(JSON.parse(text))` after parsing. It differs from
/// `text` only in numbers.
pub(super) fn write_js(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    utf8(text)?;
    let mut pending = text;
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        match byte {
            b'"' => rest = behind_string(after)?,
            b'-' | b'0'..=b'9' => {
                let length = rest.iter().take_while(|byte| is_of_number(**byte)).count();
                let (number, behind) = rest.split_at_checked(length).unwrap_or((rest, &[]));
                if let Some(mended) = mended_js_number(number) {
                    let before = pending.len() - rest.len();
                    out.extend_from_slice(pending.get(..before).unwrap_or_default());
                    out.extend_from_slice(mended);
                    pending = behind;
                }
                rest = behind;
            }
            _ => rest = after,
        }
    }
    out.extend_from_slice(pending);
    Ok(())
}

/// Like [`write_js`], except that a string which contains JSON becomes that JSON: `drizzle-orm` parses
/// a second time what `pg` has already parsed.
pub(super) fn write_drizzle(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let string = text.trim_ascii();
    if !matches!(string, [b'"', ..]) || !may_hold_json(string) {
        return write_js(text, out);
    }
    match serde_json::from_slice::<String>(string) {
        Ok(held) if is_json(&held) => write_js(held.as_bytes(), out),
        _ => write_as_it_is(text, out),
    }
}

/// Whether a text is exactly one JSON value.
fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// Whether a quoted string may contain a JSON value, judged by its first characters, which rule out
/// most.
fn may_hold_json(string: &[u8]) -> bool {
    let begins = string.iter().skip(1).find(|byte| !byte.is_ascii_whitespace());
    begins.is_some_and(|byte| b"{[-0123456789tfn\\".contains(byte))
}

fn is_of_number(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')
}

/// The text after a string; `text` begins after the string's first quote.
fn behind_string(mut text: &[u8]) -> Result<&[u8], ValueError> {
    let mut seen = 0;
    loop {
        let clean = clean_prefix(text, &mut seen);
        text = match text.split_at_checked(clean) {
            Some((_, [b'"', after @ ..])) => return Ok(after),
            Some((_, [b'\\', _escaped, after @ ..])) => after,
            Some((_, [b'\\'] | [])) | None => return Err(ValueError::Malformed),
            Some((_, [_control, after @ ..])) => after,
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn written(
        write: impl FnOnce(&[u8], &mut Vec<u8>) -> Result<(), ValueError>,
        text: &str,
    ) -> Result<String, ValueError> {
        let mut out = Vec::new();
        write(text.as_bytes(), &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[\"\\\\\n0-9e.-]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map("[\"\\\\0-9e-]{0,5}", inner, 0..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn ordinary_json_stays_as_it_is(json in any_json()) {
            let text = json.to_string();
            prop_assume!(!text.contains("-0"));
            prop_assert_eq!(written(write_js, &text), Ok(text.clone()));
            prop_assert_eq!(written(write_checked, &text), Ok(text));
        }

        #[test]
        fn what_is_no_json_never_breaks_anything(text in "[\"\\\\{}0-9e.,-]{0,20}") {
            let (js, drizzle) = (written(write_js, &text), written(write_drizzle, &text));
            if is_json(&text) {
                prop_assert!(is_json(&js.unwrap()) && is_json(&drizzle.unwrap()));
            } else {
                prop_assert_eq!(written(write_checked, &text), Err(ValueError::NotJson));
            }
        }
    }

    #[test]
    fn numbers_are_mended_outside_of_strings_only() {
        let text = r#"{"-0": [-0, "1e400\"", 1e400, "\\", -0.0], "1e400": "-0"}"#;
        let expected = r#"{"-0": [0, "1e400\"", null, "\\", 0], "1e400": "-0"}"#;
        assert_eq!(written(write_js, text), Ok(expected.to_owned()));
    }

    #[test]
    fn drizzle_reads_a_string_that_holds_json_twice() {
        let cases = [
            (r#""[1, -0]""#, "[1, 0]"),
            (r#" "true" "#, "true"),
            (r#""\u005b\"a\"]""#, r#"["a"]"#),
            (r#""tru""#, r#""tru""#),
            (r#""2026-03-01""#, r#""2026-03-01""#),
            (r#"["1"]"#, r#"["1"]"#),
        ];
        for (text, expected) in cases {
            assert_eq!(written(write_drizzle, text), Ok(expected.to_owned()));
        }
    }
}
