//! Counts as people read them.

/// A count with its thousands apart: `18,204`.
pub fn count(number: u64) -> String {
    indicatif::HumanCount(number).to_string()
}

/// A count with its noun: `1 tenant`, `5,000 tenants`.
pub fn counted(number: u64, one: &str, several: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { several })
}

/// A number as programmers write it: `3_600_000`.
pub fn grouped(number: u128) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('_');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_their_thousands_apart() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1_000", "1_234_567"]);
        assert_eq!(counted(1, "tenant", "tenants"), "1 tenant");
        assert_eq!(counted(0, "tenant", "tenants"), "0 tenants");
    }
}
