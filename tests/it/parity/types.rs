//! The table of types in `docs/json.md`, which the encoder generates from real values.

use std::fmt::Write as _;

use preheat::domain::json::ColumnType;
use sqlx::{AssertSqlSafe, Row};

use super::{PROFILES, encode_value};
use crate::support::{self, document};

/// A type's name in SQL, and a value of it.
const VALUES: &[(&str, &str)] = &[
    ("bool", "true"),
    ("int2", "7"),
    ("int4", "-7"),
    ("int8", "9007199254740993"),
    ("oid", "7"),
    ("float4", "0.1"),
    ("float8", "1e21"),
    ("float8", "NaN"),
    ("numeric", "1.50"),
    ("numeric", "NaN"),
    ("text", "a \"b\""),
    ("varchar", "a"),
    ("char(3)", "a"),
    ("name", "a"),
    ("citext", "a"),
    ("mood", "sad"),
    ("xml", "<a/>"),
    ("\"char\"", "a"),
    ("uuid", "0190d1c6-5b3e-7000-8000-0123456789ab"),
    ("date", "2026-03-01"),
    ("date", "infinity"),
    ("time", "12:30:00.5"),
    ("timetz", "12:30:00+02"),
    ("timestamp", "2026-03-01 12:30:00.123456"),
    ("timestamptz", "2026-03-01 12:30:00.123456+00"),
    ("timestamptz", "0044-03-15 12:00:00+00 BC"),
    ("timestamptz", "infinity"),
    ("interval", "1 year 2 days 03:04:05.678"),
    ("json", "{\"a\": [1.0, 1e400]}"),
    ("jsonb", "{\"a\": [1.0, -0.5]}"),
    ("bytea", "\\x01ff"),
    ("inet", "192.168.0.1/24"),
    ("cidr", "10.0.0.0/8"),
    ("macaddr", "08:00:2b:01:02:03"),
    ("macaddr8", "08:00:2b:01:02:03:04:05"),
    ("bit(3)", "101"),
    ("varbit", "10"),
    ("point", "(1,2.5)"),
    ("int4range", "[1,5)"),
    ("tstzrange", "[2026-03-01 00:00:00+00,)"),
    ("text[]", "{a,NULL}"),
    ("int4[]", "{{1,2},{3,4}}"),
    ("int8[]", "{1,NULL}"),
    ("numeric[]", "{1.50,NULL}"),
    ("timestamptz[]", "{2026-03-01 12:30:00+00}"),
    ("mood[]", "{sad,NULL}"),
    ("numrange[]", "{\"[1,2)\"}"),
];

#[tokio::test]
async fn docs_the_table_of_types_is_what_the_encoder_writes() {
    let database = support::database().await;
    let mut connection = database.connect().await;
    database.execute("create type mood as enum ('sad')").await;
    let mut table = String::from(
        "| type | value | `drizzle` | `node-postgres` | `postgres` |\n\
         | --- | --- | --- | --- | --- |\n",
    );
    for (sql, value) in VALUES {
        // `citext` has the same text on the wire as `text`, and the extension may be missing.
        let cast = if *sql == "citext" { "text" } else { sql };
        let query = format!("select '{value}'::{cast}");
        let row = sqlx::query(AssertSqlSafe(query)).fetch_one(&mut connection).await.unwrap();
        let raw = row.try_get_raw(0).unwrap();
        let name = sql.split('(').next().unwrap();
        let ty = match *sql {
            "mood" => ColumnType::Enum,
            "mood[]" => ColumnType::Array(Box::new(ColumnType::Enum)),
            _ => ColumnType::from_name(name),
        };
        let label = match *sql {
            "mood" => "an enum".to_owned(),
            "mood[]" => "an array of an enum".to_owned(),
            named => code(named),
        };
        write!(table, "| {label} | {} |", code(value)).unwrap();
        for (profile, _) in PROFILES {
            let json = encode_value(&ty, profile, raw.as_bytes().unwrap());
            write!(table, " {} |", code(&json)).unwrap();
        }
        table.push('\n');
    }

    let file = "docs/json.md";
    let page = std::fs::read_to_string(file).unwrap();
    let (open, close) = ("<!-- types -->\n", "<!-- /types -->\n");
    let (before, rest) = page.split_once(open).unwrap();
    let (_, after) = rest.split_once(close).unwrap();
    document::compare(file, &format!("{before}{open}{table}{close}{after}"));
}

/// Formats text as code within a table.
fn code(text: &str) -> String {
    format!("`{}`", text.replace('|', "\\|"))
}
