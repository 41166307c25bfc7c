//! The columns that a query returns, found without running it.

use sqlx::postgres::{PgArguments, PgColumn, PgConnection};
use sqlx::{Arguments, AssertSqlSafe, Row};

use super::read_error::{ReadError, refused};

/// The driver reports a statement's columns together with its rows, unless it keeps the statement
/// under a name. So the query is joined to one empty row on a condition that is never true: the
/// server returns one row of NULLs, without running the query.
const BEFORE: &str = "select query.* from (select) as nothing left join (\n";
const AFTER: &str = "\n) as query on false";

/// The columns of a query.
pub(super) async fn columns(
    connection: &mut PgConnection,
    sql: &str,
    arguments: PgArguments,
) -> Result<Vec<PgColumn>, ReadError> {
    let given = arguments.len();
    let query = sqlx::query_with(AssertSqlSafe(one_row_of_nulls(sql)), arguments).persistent(false);
    let row = query.fetch_one(connection).await;
    let row = row.map_err(|error| refused(error, given).after(BEFORE.len()))?;
    Ok(row.columns().to_vec())
}

/// A query that returns one row of NULLs, with the columns of `sql`, which does not run.
pub(super) fn one_row_of_nulls(sql: &str) -> String {
    format!("{BEFORE}{}{AFTER}", statement(sql))
}

/// A query that returns one row with the OIDs of the collations of some of the `count` columns of
/// `sql`, given by their positions; NULL for a column that has none. `sql` does not run.
pub(super) fn collations(
    sql: &str,
    count: usize,
    positions: impl Iterator<Item = usize>,
) -> String {
    let of = |position| format!("(collation for (query.c{position}))::regcollation::oid");
    let collations = positions.map(of).collect::<Vec<_>>().join(", ");
    // The query may give several columns one name.
    let names = (0..count).map(|position| format!("c{position}")).collect::<Vec<_>>().join(", ");
    format!(
        "select {collations} from (select) as nothing left join (\n{}\n) as query ({names}) on false",
        statement(sql)
    )
}

/// A statement without its final semicolon and what follows it.
pub(super) fn statement(sql: &str) -> &str {
    let mut rest = sql;
    while let Some(char) = rest.chars().next() {
        if char == ';' {
            return before(rest, sql);
        }
        rest = after_token(rest, sql).unwrap_or_default();
    }
    sql
}

/// Whether a query has a parameter.
pub(super) fn has_parameter(sql: &str) -> bool {
    let mut rest = sql;
    while !rest.is_empty() {
        let digit = rest.strip_prefix('$').and_then(|after| after.chars().next());
        if digit.is_some_and(|char| char.is_ascii_digit()) && !before(rest, sql).ends_with(is_name)
        {
            return true;
        }
        rest = after_token(rest, sql).unwrap_or_default();
    }
    false
}

/// The byte at which a query first uses the parameter with this number.
pub(super) fn place_of_parameter(sql: &str, number: usize) -> Option<usize> {
    let name = format!("${number}");
    let mut rest = sql;
    while !rest.is_empty() {
        let after = rest.strip_prefix(&name);
        if after.is_some_and(|after| !after.starts_with(|char: char| char.is_ascii_digit()))
            && !before(rest, sql).ends_with(is_name)
        {
            return Some(sql.len() - rest.len());
        }
        rest = after_token(rest, sql).unwrap_or_default();
    }
    None
}

/// The rest of the SQL after its first token: a string, a quoted name, a comment, or else one
/// character. `None` if the token does not end.
pub(super) fn after_token<'s>(rest: &'s str, sql: &'s str) -> Option<&'s str> {
    let before = before(rest, sql);
    let mut chars = rest.chars();
    let first = chars.next()?;
    match first {
        '\'' => {
            let prefix = before.strip_suffix(['e', 'E']);
            let has_escapes = prefix.is_some_and(|before| !before.ends_with(is_name));
            after_text(chars.as_str(), has_escapes)
        }
        '"' => after(chars.as_str(), "\""),
        '$' if !before.ends_with(is_name) => {
            let name = chars.as_str().split(|char| !is_name(char)).next().unwrap_or_default();
            let Some(within) = chars.as_str().strip_prefix(name)?.strip_prefix('$') else {
                return Some(chars.as_str());
            };
            after(within, &format!("${name}$"))
        }
        '-' if rest.starts_with("--") => after(rest, "\n"),
        '/' if rest.starts_with("/*") => after_comment(rest),
        _ => Some(chars.as_str()),
    }
}

/// Whether the character can be part of a name.
pub(super) fn is_name(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

fn before<'s>(rest: &str, sql: &'s str) -> &'s str {
    sql.get(..sql.len() - rest.len()).unwrap_or_default()
}

fn after<'s>(text: &'s str, end: &str) -> Option<&'s str> {
    text.split_once(end).map(|(_, after)| after)
}

fn after_text(text: &str, has_escapes: bool) -> Option<&str> {
    let mut chars = text.chars();
    loop {
        match chars.next()? {
            '\'' => return Some(chars.as_str()),
            '\\' if has_escapes => drop(chars.next()),
            _ => {}
        }
    }
}

/// Comments nest.
fn after_comment(comment: &str) -> Option<&str> {
    let mut rest = comment;
    let mut depth = 0;
    loop {
        rest = if let Some(inner) = rest.strip_prefix("/*") {
            depth += 1;
            inner
        } else if let Some(outer) = rest.strip_prefix("*/") {
            depth -= 1;
            outer
        } else {
            let mut chars = rest.chars();
            chars.next()?;
            chars.as_str()
        };
        if depth == 0 {
            return Some(rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sql: &str, expected: &str) {
        assert_eq!(statement(sql), expected, "{sql}");
    }

    #[test]
    fn a_statement_ends_at_the_semicolon_that_is_no_part_of_it() {
        check("select 1", "select 1");
        check("select 1;", "select 1");
        check("select 1 ;\n ; ", "select 1 ");
        check("select 1; -- one; or two", "select 1");
        check("select 1 -- one\n;\n/* two */ -- three", "select 1 -- one\n");
        check("select 1 -- one; two", "select 1 -- one; two");
        check(
            "select 1 /* one; /* two; */ three; */ ; 4",
            "select 1 /* one; /* two; */ three; */ ",
        );
        check("select ';' as a, '; -- ' as b", "select ';' as a, '; -- ' as b");
        check("select ';' as \";\";/* ' */", "select ';' as \";\"");
        check("select 'it''s;' ;", "select 'it''s;' ");
        check(r"select e'\';', '\'; select ';'", r"select e'\';', '\'");
        check(r"select type'\'; select ';'", r"select type'\'");
        check("select $$;$$, $a$;$$;$a$, $1;", "select $$;$$, $a$;$$;$a$, $1");
        check("select a$b$ ; $b$", "select a$b$ ");
        check("select 1; /* open", "select 1");
        check("select 'open;", "select 'open;");
        check("", "");
    }

    #[test]
    fn a_parameter_is_no_part_of_a_text_a_comment_or_a_name() {
        for sql in ["select $1", "select a from t where b=any($1)", "select '$$', $2 -- $", "$1"] {
            assert!(has_parameter(sql), "{sql}");
        }
        let sql = "-- $2\nselect '$2', a$2, $20 where a > $2 and b < $2";
        assert_eq!(place_of_parameter(sql, 2), sql.find("$2 and"));
        assert_eq!(place_of_parameter(sql, 3), None);
        for sql in
            ["", "select '$1'", "select 1 -- $1", "/* $1 */", "select a$1", "select $a$ $1 $a$"]
        {
            assert!(!has_parameter(sql), "{sql}");
        }
    }
}
