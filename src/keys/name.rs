//! The names of builders, their parameters and the types of rows.

use std::collections::BTreeSet;

use crate::domain::job::Job;
use crate::domain::key::{KeyTemplate, Part, Placeholder};

/// The words of a name: they end where another character than a letter or a digit stands, and before a capital
/// letter that follows another kind of character.
pub(super) fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut before = None;
    for char in text.chars() {
        let is_part = char.is_alphabetic() || char.is_ascii_digit();
        if !is_part {
            before = None;
            continue;
        }
        let begins =
            before.is_none_or(|before: char| char.is_uppercase() && !before.is_uppercase());
        match words.last_mut() {
            Some(word) if !begins => word.extend(char.to_lowercase()),
            Some(_) | None => words.push(char.to_lowercase().collect()),
        }
        before = Some(char);
    }
    words
}

/// `productsByCategory`
pub(super) fn camel(words: &[String]) -> String {
    let mut words = words.iter();
    let first = words.next().cloned().unwrap_or_default();
    words.fold(first, |name, word| name + &capital(word))
}

/// `ProductsByCategory`
pub(super) fn pascal(words: &[String]) -> String {
    words.iter().map(|word| capital(word)).collect()
}

/// `products_by_category`
pub(super) fn snake(words: &[String]) -> String {
    words.join("_")
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.chain(chars.as_str().chars()).collect()
}

/// The words with another one before them if they would be no name, because they begin with a digit or there
/// are none.
pub(super) fn named(before: &str, words: Vec<String>) -> Vec<String> {
    let begins = words.first().and_then(|word| word.chars().next());
    if begins.is_some_and(|char| !char.is_ascii_digit()) {
        return words;
    }
    [before.to_owned()].into_iter().chain(words).collect()
}

/// The name of a job.
pub(super) fn of_job(job: &Job) -> Vec<String> {
    named("job", words(job.name.as_str()))
}

/// The names of a job's builders, in the order of its keys: the job's name, and, if the job has several keys,
/// the words in which their templates differ.
pub(super) fn of_builders(job: &Job) -> Vec<Vec<String>> {
    let name = of_job(job);
    if job.keys.len() == 1 {
        return vec![name];
    }
    let templates: Vec<Vec<Token>> = job.keys.iter().map(|key| tokens(&key.template)).collect();
    let shortest = templates.iter().map(Vec::len).min().unwrap_or_default();
    let first = templates.first().map(Vec::as_slice).unwrap_or_default();
    let all_have = |token: &Token, at: &dyn Fn(&[Token]) -> usize| {
        templates.iter().all(|tokens| tokens.get(at(tokens)) == Some(token))
    };
    let is_start = |(index, token): &(usize, &Token)| all_have(token, &|_| *index);
    let start = first.iter().take(shortest).enumerate().take_while(is_start).count();
    let is_end =
        |(index, token): &(usize, &Token)| all_have(token, &|tokens| tokens.len() - 1 - index);
    let end = first.iter().rev().take(shortest - start).enumerate().take_while(is_end).count();
    let full = |tokens: &Vec<Token>| {
        let differing = tokens.get(start..tokens.len() - end).unwrap_or_default();
        [name.clone(), suffix(differing, &name)].concat()
    };
    templates.iter().map(full).collect()
}

/// A part of a template, for names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    /// The tenant's id, which every builder takes.
    Tenant,
    /// Another value, by the words of its name.
    Value(Vec<String>),
}

fn tokens(template: &KeyTemplate) -> Vec<Token> {
    let tokens = |part: &Part| match part {
        Part::Literal(text) => words(text).into_iter().map(Token::Word).collect(),
        Part::Placeholder(Placeholder::Tenant) => vec![Token::Tenant],
        Part::Placeholder(Placeholder::Date) => vec![Token::Value(vec!["date".to_owned()])],
        Part::Placeholder(Placeholder::TenantColumn(name) | Placeholder::Column(name)) => {
            vec![Token::Value(words(name))]
        }
    };
    template.parts().iter().flat_map(tokens).collect()
}

/// `byCategoryAndKind`; a word that is the job's whole name says nothing.
fn suffix(tokens: &[Token], name: &[String]) -> Vec<String> {
    let mut suffix: Vec<String> = Vec::new();
    let mut follows_value = false;
    for token in tokens {
        match token {
            Token::Word(word) if *name == [word.as_str()] => {}
            Token::Word(word) => {
                suffix.push(word.clone());
                follows_value = false;
            }
            Token::Tenant => {}
            Token::Value(words) => {
                suffix.push(if follows_value { "and" } else { "by" }.to_owned());
                suffix.extend(words.iter().cloned());
                follows_value = true;
            }
        }
    }
    suffix
}

/// The words, with the next number behind them that makes them no name of `taken`.
pub(super) fn unlike(taken: &BTreeSet<Vec<String>>, words: Vec<String>) -> Vec<String> {
    let numbered = |number: usize| [words.as_slice(), &[number.to_string()]].concat();
    let free = (2..taken.len() + 3).map(numbered).find(|name| !taken.contains(name));
    if taken.contains(&words) { free.unwrap_or_default() } else { words }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::job::tests::example;
    use crate::domain::job::{Key, Shape};

    fn split(text: &str) -> String {
        words(text).join(" ")
    }

    #[test]
    fn a_name_is_split_into_words() {
        let cases = [
            ("services", "services"),
            ("price-list_2", "price list 2"),
            ("priceList", "price list"),
            ("IDs", "ids"),
            ("2fa", "2fa"),
            ("_private__key_", "private key"),
            ("straße_Ändern²", "straße ändern"),
            ("---", ""),
        ];
        for (text, expected) in cases {
            assert_eq!(split(text), expected);
        }
        let words = words("price-list_2x");
        assert_eq!(camel(&words), "priceList2x");
        assert_eq!(pascal(&words), "PriceList2x");
        assert_eq!(snake(&words), "price_list_2x");
        assert_eq!(named("job", self::words("2fa")), ["job", "2fa"]);
        assert_eq!(named("value", Vec::new()), ["value"]);
    }

    #[track_caller]
    fn check(job: &str, templates: &[&str], expected: &[&str]) {
        let key = |text: &&str| {
            let template = KeyTemplate::parse(text, "t").unwrap();
            Key { template, shape: Shape::List, unique: None }
        };
        let job = example(job, templates.iter().map(key).collect());
        let names: Vec<String> = of_builders(&job).iter().map(|name| camel(name)).collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn a_builder_is_called_like_its_job_and_by_what_makes_its_key_different() {
        check("services", &["services:{t}"], &["services"]);
        check("price-list", &["p:{t}:{kind}"], &["priceList"]);
        check(
            "products",
            &["products:{t}:all", "products:{t}:{category}"],
            &["productsAll", "productsByCategory"],
        );
        check("p", &["p:{t}", "p:{t}:new"], &["p", "pNew"]);
        check("pets", &["pets:{t}", "pet:{id}"], &["pets", "petsPetById"]);
        check("slots", &["slots:{t}:{date}", "slots:{t}"], &["slotsByDate", "slots"]);
        check(
            "a",
            &["a:{t}:{x}:{y}:z", "a:{t}:{tenant.plan}:z", "a:{t}:z"],
            &["aByXAndY", "aByPlan", "a"],
        );
        check("a", &["x", "x:x"], &["a", "aX"]);
    }
}
