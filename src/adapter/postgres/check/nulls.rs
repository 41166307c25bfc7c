//! Which columns of a query's result may be NULL although their tables say NOT NULL.
//!
//! The server says of a column from which table it comes, and not whether an outer join may leave it NULL.
//! Only the query's own text can do that: a column that comes through a view, a function or an expression has
//! no table. So the words of the text are enough. They err on the side of NULL.

use std::collections::BTreeSet;

use super::super::describe::{after_token, is_name};

/// The tables whose columns a query may set to NULL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Nulled {
    /// Those with one of these names, without their schemas. The names of other things may be among them.
    Named(BTreeSet<String>),
    /// Any.
    All,
}

impl Nulled {
    pub(super) fn of(sql: &str) -> Self {
        let tokens = tokens(sql);
        let joins = |at: usize| {
            let at = if is_word(&tokens, at + 1, "outer") { at + 2 } else { at + 1 };
            is_word(&tokens, at, "join").then_some(at + 1)
        };
        let mut found = None;
        for (at, token) in tokens.iter().enumerate() {
            let Token::Word(word) = token else { continue };
            match word.as_str() {
                "grouping" if is_word(&tokens, at + 1, "sets") => return Self::All,
                "rollup" | "cube" => return Self::All,
                "right" | "full" if joins(at).is_some() => return Self::All,
                "left" => {
                    let Some(joined) = joins(at) else { continue };
                    let joined = joined_to(tokens.get(joined..).unwrap_or_default());
                    found.get_or_insert_with(BTreeSet::new).extend(names_in(joined));
                }
                _ => {}
            }
        }
        match found {
            // Such names do not say which tables are behind them.
            Some(_) if tokens.contains(&Token::Hidden) || has_common_table(&tokens) => Self::All,
            Some(names) => Self::Named(names),
            None => Self::Named(BTreeSet::new()),
        }
    }

    /// Whether columns of the table with this name may be NULL.
    pub(super) fn has(&self, table: &str) -> bool {
        // The server cuts longer names.
        let is_cut = |name: &String| name.len() > LONGEST_NAME && name.starts_with(table);
        match self {
            Self::All => true,
            Self::Named(names) => names.contains(table) || names.iter().any(is_cut),
        }
    }
}

/// The longest name in bytes (`NAMEDATALEN` less one).
const LONGEST_NAME: usize = 63;

/// A token of SQL that is no text and no comment.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// A word in lower case, as the server reads it.
    Word(String),
    /// A name in quotes.
    Quoted(String),
    /// A name in quotes, with escapes.
    Hidden,
    Open,
    Close,
    Dot,
    Other,
}

/// All words that may be names of tables: a name before a dot is that of a schema, or of a column's table.
fn names_in(tokens: &[Token]) -> impl Iterator<Item = String> {
    let after = tokens.iter().skip(1).map(Some).chain([None]);
    tokens.iter().zip(after).filter_map(|(token, after)| match token {
        Token::Word(name) | Token::Quoted(name) if after != Some(&Token::Dot) => Some(name.clone()),
        Token::Word(_)
        | Token::Quoted(_)
        | Token::Hidden
        | Token::Open
        | Token::Close
        | Token::Dot
        | Token::Other => None,
    })
}

fn is_word(tokens: &[Token], at: usize, word: &str) -> bool {
    matches!(tokens.get(at), Some(Token::Word(found)) if found == word)
}

fn tokens(sql: &str) -> Vec<Token> {
    let is_of_word = |char: char| is_name(char) || char == '$';
    let mut tokens = Vec::new();
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let word = rest.split(|char| !is_of_word(char)).next().unwrap_or_default();
        if is_name(first) {
            tokens.push(Token::Word(word.to_ascii_lowercase()));
            rest = rest.get(word.len()..).unwrap_or_default();
            continue;
        }
        let after = after_token(rest, sql).unwrap_or_default();
        let token = rest.get(..rest.len() - after.len()).unwrap_or_default();
        let has_escapes = || {
            let before = sql.get(..sql.len() - rest.len()).unwrap_or_default();
            after.starts_with('"') || before.to_ascii_lowercase().ends_with("u&")
        };
        match first {
            '"' if has_escapes() => tokens.push(Token::Hidden),
            '"' => tokens.push(Token::Quoted(token.trim_matches('"').to_owned())),
            '(' => tokens.push(Token::Open),
            ')' => tokens.push(Token::Close),
            '.' => tokens.push(Token::Dot),
            _ if first.is_whitespace() || token.starts_with("--") || token.starts_with("/*") => {}
            _ => tokens.push(Token::Other),
        }
        rest = after;
    }
    tokens
}

/// The beginning of these tokens that is joined: up to the condition that belongs to the join. If several
/// joins make that hard to see, it is longer.
fn joined_to(tokens: &[Token]) -> &[Token] {
    let (mut depth, mut conditions) = (0_usize, 1_usize);
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Open => depth += 1,
            Token::Close => match depth.checked_sub(1) {
                Some(outer) => depth = outer,
                None => return tokens.get(..at).unwrap_or_default(),
            },
            Token::Word(word) if depth == 0 => match word.as_str() {
                "join" => conditions += 1,
                "on" | "using" => conditions -= 1,
                _ => {}
            },
            Token::Word(_) | Token::Quoted(_) | Token::Hidden | Token::Dot | Token::Other => {}
        }
        if conditions == 0 {
            return tokens.get(..at).unwrap_or_default();
        }
    }
    tokens
}

/// Whether the query may have a common table expression: `with NAME as`, `with recursive`.
fn has_common_table(tokens: &[Token]) -> bool {
    tokens.iter().enumerate().any(|(at, token)| {
        let is_zone = is_word(tokens, at + 1, "time") && is_word(tokens, at + 2, "zone");
        *token == Token::Word("with".to_owned()) && !is_zone && !is_word(tokens, at + 1, "ties")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sql: &str, nulled: &[&str], not_nulled: &[&str]) {
        let found = Nulled::of(sql);
        for table in nulled {
            assert!(found.has(table), "{table}: {sql}");
        }
        for table in not_nulled {
            assert!(!found.has(table), "{table}: {sql}");
        }
    }

    #[test]
    fn the_tables_of_an_outer_joins_other_side_may_be_null() {
        check("select * from a join b on true, c", &[], &["a", "b", "c"]);
        check("select left(a.x, 3), \"left\" from a -- left join b", &[], &["a", "b"]);
        check("select 'left join b on', $$left join b on$$ from a", &[], &["a", "b"]);
        check("select * from a left join b on a.x = b.x join c on true", &["b"], &["a", "c"]);
        check("select * from a LEFT OUTER JOIN \"B b\" USING (x) where c", &["B b"], &["a", "c"]);
        check("select * from a left /* x */ join s.B on true", &["b"], &["a"]);
        check("select * from a left join b join c on true on true, d", &["b", "c"], &["a", "d"]);
        check("select * from a natural left join b cross join c", &["b", "c"], &["a"]);
        check("select * from (select * from a left join b on true) q, c", &["b"], &["a", "c"]);
        check(
            "select * from a left join lateral (select a.y from b join s . c using (x)) q on true join d on true",
            &["b", "c"],
            &["a", "d"],
        );
        let (long, cut) = ("x".repeat(70), "x".repeat(63));
        check(&format!("select * from a left join {long} on true"), &[&cut], &["a"]);
    }

    #[test]
    fn what_cannot_be_told_apart_may_be_null() {
        for sql in [
            "select * from a right join b on true",
            "select * from a full outer join b using (x)",
            "select x from a group by rollup (x)",
            "select x from a group by cube (x)",
            "select x from a group by grouping sets ((x), ())",
            "with b as (select * from a) select * from b left join b c on true",
            "select * from a left join u&\"\\0061\" on true",
            "select * from b left join \"a\"\"b\" on true",
        ] {
            check(sql, &["a"], &[]);
        }
        check("select now()::timestamp with time zone from a left join b on true", &["b"], &["a"]);
        check("with b as (select * from a) select * from b join c on true", &[], &["a", "c"]);
        check("select with_ties, rolled, \"cube\" from a left join b on true", &["b"], &["a"]);
    }
}
