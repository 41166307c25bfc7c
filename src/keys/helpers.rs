/// A text that makes no cache key, or one of something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadKey(String);

impl fmt::Display for BadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no cache key: {}", self.0)
    }
}

impl std::error::Error for BadKey {}

/// A text in a key.
fn as_text(name: &str, value: impl fmt::Display) -> Result<String, BadKey> {
    let text = value.to_string();
    if text.is_empty() {
        return Err(BadKey(format!("`{name}` is empty")));
    }
    Ok(text)
}

/// A UUID as Postgres writes it.
fn as_uuid(name: &str, value: impl fmt::Display) -> Result<String, BadKey> {
    let text = value.to_string();
    if !is_uuid(&text) {
        return Err(BadKey(format!("`{name}` is no UUID in lower case")));
    }
    Ok(text)
}

/// A date, `YYYY-MM-DD`.
fn as_date(name: &str, value: impl fmt::Display) -> Result<String, BadKey> {
    let text = value.to_string();
    if !is_date(&text) {
        return Err(BadKey(format!("`{name}` is no date YYYY-MM-DD")));
    }
    Ok(text)
}

/// An integer as Postgres writes it.
fn as_integer(value: impl Into<i64>) -> String {
    let number: i64 = value.into();
    number.to_string()
}

/// Checks that a text does not contain the text by which it ends in the key.
fn ended_by(name: &str, text: &str, end: &str) -> Result<(), BadKey> {
    if format!("{text}{end}").find(end) < Some(text.len()) {
        return Err(BadKey(format!("`{name}` contains `{end}`")));
    }
    Ok(())
}

/// Checks that a key is none of another template.
fn not_of(key: &str, other: &[&str]) -> Result<(), BadKey> {
    if readings(key, other) > 0 {
        return Err(BadKey("it could be the key of something else".to_owned()));
    }
    Ok(())
}

/// Checks that a template reads a key in one way only.
fn read_once(key: &str, template: &[&str]) -> Result<(), BadKey> {
    if readings(key, template) != 1 {
        return Err(BadKey("it could be the key of something else".to_owned()));
    }
    Ok(())
}

/// In how many ways a template reads a key. It is a list of texts, with the class of a value between two texts.
fn readings(key: &str, template: &[&str]) -> usize {
    let text = template.first().copied().unwrap_or_default();
    match (template, key.strip_prefix(text)) {
        ([_], Some(key)) => usize::from(key.is_empty()),
        ([_, class, template @ ..], Some(key)) => {
            let splits = (0..=key.len()).filter_map(|end| key.split_at_checked(end));
            let values = splits.filter(|(value, _)| is_value(class, value));
            values.map(|(_, rest)| readings(rest, template)).sum()
        }
        _ => 0,
    }
}

fn is_value(class: &str, text: &str) -> bool {
    match class {
        "uuid" => is_uuid(text),
        "integer" => text.parse::<i64>().is_ok_and(|it| it.to_string() == text),
        "date" => is_date(text),
        _ => true,
    }
}

fn is_uuid(text: &str) -> bool {
    let fits = |(place, byte): (usize, u8)| match place {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
    };
    text.len() == 36 && text.bytes().enumerate().all(fits)
}

fn is_date(text: &str) -> bool {
    let mut parts = text.split('-').map(str::parse::<u16>);
    let (Some(Ok(year)), Some(Ok(month)), Some(Ok(day)), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let is_real = (1..=12).contains(&month) && (1..=days).contains(&day);
    is_real && text == format!("{year:04}-{month:02}-{day:02}")
}
