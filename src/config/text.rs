//! Which texts a setting may have: each check returns the allowed form for those that it may not.

use crate::domain::network::is_base_path;

pub(super) fn visible_ascii(token: &str) -> Result<(), &'static str> {
    let visible = token.bytes().all(|byte| byte.is_ascii_graphic());
    if visible { Ok(()) } else { Err("visible ASCII characters without a space") }
}

pub(super) fn header_name(text: &str) -> Result<(), &'static str> {
    let is_right = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_right) { Ok(()) } else { Err("a header's name") }
}

pub(super) fn base_path(text: &str) -> Result<(), &'static str> {
    if is_base_path(text) { Ok(()) } else { Err("a path such as `/preheat`, or nothing") }
}

pub(super) fn column_name(text: &str) -> Result<(), &'static str> {
    let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    let starts = text.bytes().next().is_some_and(letter);
    if starts && text.bytes().all(|byte| letter(byte) || byte.is_ascii_digit()) {
        Ok(())
    } else {
        Err("a column name of letters, digits and `_`")
    }
}
