//! JSON strings.

use super::wire::{ValueError, utf8};

/// How each byte is written in a JSON string: 0 stands for the byte itself, `u` for `\u00XX`, any other
/// value is the character after a backslash.
#[expect(clippy::indexing_slicing, reason = "the compiler evaluates it")]
const ESCAPES: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = b'u';
        byte += 1;
    }
    table[b'\t' as usize] = b't';
    table[b'\n' as usize] = b'n';
    table[b'\r' as usize] = b'r';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
};

/// The two hexadecimal digits of every byte.
#[expect(clippy::indexing_slicing, reason = "the compiler evaluates it")]
const HEX: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut table = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = [digits[byte >> 4], digits[byte & 15]];
        byte += 1;
    }
    table
};

/// Writes text as a JSON string.
pub(super) fn write_string(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    out.reserve(text.len() + 2);
    out.push(b'"');
    let mut seen = 0;
    let mut rest = text;
    loop {
        let clean = clean_prefix(rest, &mut seen);
        let (head, tail) = rest.split_at_checked(clean).unwrap_or((rest, &[]));
        out.extend_from_slice(head);
        let Some((&byte, after)) = tail.split_first() else { break };
        push_escape(byte, out);
        rest = after;
    }
    if seen & HIGH_BITS != 0 {
        utf8(text)?;
    }
    out.push(b'"');
    Ok(())
}

/// Turns the bytes of `out` from `start` on into a JSON string, in place.
pub(super) fn quote_tail(start: usize, out: &mut Vec<u8>) {
    let more = |byte: u8| match escape(byte) {
        0 => 0,
        b'u' => 5,
        _ => 1,
    };
    rewrite_tail(start, out, more, |byte, place| {
        let (code, [high, low]) = (escape(byte), hex(byte));
        match (code, place) {
            (0, [only]) => *only = byte,
            (b'u', place) => place.copy_from_slice(&[b'\\', b'u', b'0', b'0', high, low]),
            (_, place) => place.copy_from_slice(&[b'\\', code]),
        }
    });
}

/// Puts quotes around the bytes of `out` from `start` on, in place. `write` writes each byte in its new
/// form, which has `more` additional bytes. The work goes from the end to the start, so that it reads
/// each byte before it overwrites it.
pub(super) fn rewrite_tail(
    start: usize,
    out: &mut Vec<u8>,
    more: impl Fn(u8) -> usize,
    write: impl Fn(u8, &mut [u8]),
) {
    let mut from = out.len();
    let added: usize = out.get(start..).unwrap_or_default().iter().map(|byte| more(*byte)).sum();
    out.resize(from + added + 2, b'"');
    let mut to = from + added + 1;
    if added == 0 {
        out.copy_within(start..from, start + 1);
    } else {
        while from > start {
            from -= 1;
            let Some(&byte) = out.get(from) else { break };
            let width = 1 + more(byte);
            to -= width;
            if let Some(place) = out.get_mut(to..to + width) {
                write(byte, place);
            }
        }
    }
    if let Some(first) = out.get_mut(start) {
        *first = b'"';
    }
    if let Some(last) = out.last_mut() {
        *last = b'"';
    }
}

/// The two hexadecimal digits of a byte.
pub(super) fn hex(byte: u8) -> [u8; 2] {
    #[expect(clippy::indexing_slicing, reason = "a byte is below 256")]
    HEX[usize::from(byte)]
}

fn escape(byte: u8) -> u8 {
    #[expect(clippy::indexing_slicing, reason = "a byte is below 256")]
    ESCAPES[usize::from(byte)]
}

fn push_escape(byte: u8, out: &mut Vec<u8>) {
    match escape(byte) {
        b'u' => {
            let [high, low] = hex(byte);
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
        }
        code => out.extend_from_slice(&[b'\\', code]),
    }
}

const ONES: u64 = u64::from_ne_bytes([1; 8]);
const HIGH_BITS: u64 = u64::from_ne_bytes([0x80; 8]);

/// How many bytes at the start need no escape, checked eight at a time; `seen` collects the high bits.
pub(super) fn clean_prefix(text: &[u8], seen: &mut u64) -> usize {
    let (words, rest) = text.as_chunks::<8>();
    let mut clean = 0;
    for word in words {
        let word = u64::from_ne_bytes(*word);
        *seen |= word;
        if needs_escape(word) {
            break;
        }
        clean += 8;
    }
    let tail = if clean == words.len() * 8 { rest } else { text.get(clean..).unwrap_or_default() };
    for byte in tail {
        if escape(*byte) != 0 {
            break;
        }
        *seen |= u64::from(*byte);
        clean += 1;
    }
    clean
}

/// Whether one of eight bytes is below 0x20, a quote or a backslash (Bit Twiddling Hacks,
/// "Determine if a word has a byte less than n"). Bytes from 0x80 on never count.
fn needs_escape(word: u64) -> bool {
    let below_0x20 = word.wrapping_sub(ONES * 0x20);
    let quote = (word ^ (ONES * u64::from(b'"'))).wrapping_sub(ONES);
    let backslash = (word ^ (ONES * u64::from(b'\\'))).wrapping_sub(ONES);
    (below_0x20 | quote | backslash) & !word & HIGH_BITS != 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(text: &[u8]) -> Result<String, ValueError> {
        let mut out = b"before".to_vec();
        write_string(text, &mut out)?;
        Ok(String::from_utf8(out.split_off(6)).unwrap())
    }

    fn quoted(text: &[u8]) -> String {
        let mut out = [b"before", text].concat();
        quote_tail(6, &mut out);
        String::from_utf8(out.split_off(6)).unwrap()
    }

    proptest! {
        #[test]
        fn a_string_comes_back_as_it_was(text in "(?s)[ -~]{0,20}|.{0,40}|[\"\\\\\n\0é ]{0,40}") {
            for json in [written(text.as_bytes()).unwrap(), quoted(text.as_bytes())] {
                prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text.as_str());
            }
        }

        #[test]
        fn bytes_are_refused_exactly_where_they_are_no_text(
            text in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let is_text = str::from_utf8(&text).is_ok();
            prop_assert_eq!(written(&text).is_ok(), is_text);
        }
    }

    #[test]
    fn an_escape_is_found_at_every_place() {
        for length in 0..40 {
            for place in 0..length {
                for (byte, escaped) in [(b'"', "\\\""), (b'\\', "\\\\"), (0x1F, "\\u001f")] {
                    let mut text = vec![b'x'; length];
                    text[place] = byte;
                    let [before, after] =
                        [place, length - place - 1].map(|count| "x".repeat(count));
                    let expected = format!("\"{before}{escaped}{after}\"");
                    assert_eq!(written(&text).unwrap(), expected);
                    assert_eq!(quoted(&text), expected);
                }
            }
        }
    }
}
