//! Numbers of bytes as people write them: `5MiB`, `64 kB`.

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Parses a number of bytes; `None` if the text is not one.
pub fn parse(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 10] = [
        ("", 1),
        ("B", 1),
        ("kB", 1000),
        ("KB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("KiB", KIB),
        ("MiB", MIB),
        ("GiB", GIB),
        ("bytes", 1),
    ];
    let text = text.trim();
    let digits = text.trim_end_matches(|char: char| !char.is_ascii_digit());
    let unit = text.get(digits.len()..)?.trim();
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
    digits.parse::<u64>().ok()?.checked_mul(*factor)
}

/// The text of a number of bytes, in the largest unit that gives a whole number: `5MiB`.
pub fn text(bytes: usize) -> String {
    const UNITS: [(usize, &str); 6] = [
        (1 << 30, "GiB"),
        (1_000_000_000, "GB"),
        (1 << 20, "MiB"),
        (1_000_000, "MB"),
        (1 << 10, "KiB"),
        (1_000, "kB"),
    ];
    let unit = UNITS.into_iter().find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit));
    let (unit, name) = unit.unwrap_or((1, "B"));
    format!("{}{name}", bytes / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_a_unit() {
        let cases = [
            ("5MiB", Some(5 << 20)),
            ("5 MiB", Some(5 << 20)),
            ("500kB", Some(500_000)),
            ("12", Some(12)),
            ("12B", Some(12)),
            ("5mib", None),
            ("MiB", None),
            ("-1", None),
            ("1.5MiB", None),
            ("99999999999GiB", None),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse(text), bytes, "{text}");
        }
    }

    #[test]
    fn a_size_is_shown_as_it_can_be_set() {
        let sizes = [(5 << 20, "5MiB"), (1_000_000, "1MB"), (1 << 30, "1GiB"), (1_536, "1536B")];
        for (bytes, text) in sizes {
            assert_eq!(super::text(bytes), text);
        }
    }
}
