//! Names in error messages: the name that a person probably meant, and the list of all valid names.

/// A common beginning of at least this length is enough to suggest a name.
const SAYS_SOMETHING: usize = 3;

/// The name that a person probably meant by `found`: the one with the fewest typing errors, among the
/// names with few errors for their length and the names that begin with `found` or with which `found`
/// begins.
pub fn nearest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let found = found.to_lowercase();
    let slips = |name: &str| strsim::damerau_levenshtein(&found, &name.to_lowercase());
    let few = (found.chars().count() / 3).max(1);
    let has_something_in_common =
        |slips, name: &str| slips < found.chars().count().max(name.chars().count());
    let begins_alike = |name: &str| {
        let name = name.to_lowercase();
        let shorter = found.len().min(name.len());
        shorter >= SAYS_SOMETHING && (found.starts_with(&name) || name.starts_with(&found))
    };
    let distances = known.into_iter().map(|name| (slips(name), name));
    let meant = distances.filter(|(slips, name)| {
        *slips <= few && has_something_in_common(*slips, name) || begins_alike(name)
    });
    meant.min().map(|(_, name)| name)
}

/// The names as a part of a sentence, such as: `a`, `b` or `c`.
pub fn listed<'a>(names: impl IntoIterator<Item = &'a str>, last_joint: &str) -> String {
    let names: Vec<_> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match names.as_slice() {
        [] => "none".to_owned(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} {last_joint} {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_a_few_slips_away_was_meant() {
        let known = ["schedule", "ttl", "timeout", "n"];
        let cases = [
            ("shedule", Some("schedule")),
            ("TTL", Some("ttl")),
            ("timoeut", Some("timeout")),
            ("tl", Some("ttl")),
            ("time", Some("timeout")),
            ("ttl_jitter", Some("ttl")),
            ("ti", None),
            ("colour", None),
            ("", None),
            ("2", None),
        ];
        for (found, meant) in cases {
            assert_eq!(nearest(found, known), meant, "{found}");
        }
    }

    #[test]
    fn names_are_listed_as_in_a_sentence() {
        assert_eq!(listed([], "or"), "none");
        assert_eq!(listed(["a"], "or"), "`a`");
        assert_eq!(listed(["a", "b", "c"], "or"), "`a`, `b` or `c`");
    }
}
