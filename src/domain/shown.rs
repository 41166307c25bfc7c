//! Texts from data, made safe for a terminal and a log.

/// A text from data (a tenant's id, a key, a server's message) in one line, with every character
/// escaped that would control a terminal.
pub fn shown(data: &str) -> String {
    let mut safe = String::with_capacity(data.len());
    for character in data.chars() {
        if is_harmful(character) {
            safe.extend(character.escape_default());
        } else {
            safe.push(character);
        }
    }
    safe
}

/// Whether a character would control a terminal: move the cursor, change colours, end the line, or
/// change the direction of writing.
pub fn is_harmful(character: char) -> bool {
    let turns_direction = matches!(
        character,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    let ends_a_line = matches!(character, '\u{2028}' | '\u{2029}');
    character.is_control() || turns_direction || ends_a_line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_would_obey_is_left_of_data() {
        let hostile = "a\u{1b}[31mred\u{7}\r\nb\u{9b}2J\u{202e}c\td\u{7f}";
        assert_eq!(shown(hostile), r"a\u{1b}[31mred\u{7}\r\nb\u{9b}2J\u{202e}c\td\u{7f}");
        let harmless = "ö “x” 'y' \"z\" \\ 東京";
        assert_eq!(shown(harmless), harmless);
    }
}
