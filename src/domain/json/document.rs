//! JSON values that are in the database already.

use serde::de::IgnoredAny;

use super::number::mended_js_number;
use super::string::clean_prefix;
use super::wire::{ValueError, utf8};

/// Appends a JSON text as it is.
pub(super) fn write_as_it_is(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    out.extend_from_slice(utf8(text)?.as_bytes());
    Ok(())
}

/// Appends text as it is if it is JSON.
pub(super) fn write_checked(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let text = utf8(text)?;
    if !is_json(text) {
        return Err(ValueError::NotJson);
    }
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

/// Appends a JSON text that parses to what `JSON.stringify(JSON.parse(…))` of it parses to: only
/// numbers can differ.
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

/// As [`write_js`], except that a string that holds JSON becomes that JSON: `drizzle-orm` parses
/// what `pg` has parsed already.
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

/// Whether it is one JSON value.
fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// Whether a quoted string can be the text of a JSON value, by its first characters: most are not.
fn may_hold_json(string: &[u8]) -> bool {
    let begins = string.iter().skip(1).find(|byte| !byte.is_ascii_whitespace());
    begins.is_some_and(|byte| b"{[-0123456789tfn\\".contains(byte))
}

fn is_of_number(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')
}

/// What follows a string of which the first quote was read.
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
