//! preheat's JSON equals that of the npm packages `pg` and `drizzle-orm`, and of `row_to_json`: for
//! every type, with hostile values, compared in Node after `JSON.parse`.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "random numbers may become any others"
)]

pub(crate) mod cases;
mod types;

use std::collections::BTreeMap;

use preheat::domain::json::{Case, Column, ColumnType, Encoding, Profile, RowEncoder, write_text};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, ValueRef};

use crate::support::node::Node;
use crate::support::{self, Database};

const PROFILES: [(Profile, &str); 3] = [
    (Profile::Drizzle, "drizzle"),
    (Profile::NodePostgres, "node-postgres"),
    (Profile::Postgres, "postgres"),
];

/// A table with an `id` and a `value`, and the profiles in which its values are compared.
struct Table {
    name: String,
    /// The name of its scalar type in the npm packages' schema.
    scalar: &'static str,
    dimensions: usize,
    ty: ColumnType,
    profiles: &'static [(Profile, &'static str)],
}

#[tokio::test]
async fn hazard_11_values_equal_those_of_pg_drizzle_orm_and_row_to_json() {
    let Some(node) = Node::find() else { return };
    let database = support::database().await;
    let mut connection = database.connect().await;
    let tables = create_tables(&database, &mut connection).await;

    let mut input = Vec::new();
    let mut expected = 0;
    for table in &tables {
        let mut ours = BTreeMap::new();
        for (profile, name) in table.profiles {
            let rows = encode(&mut connection, table, *profile).await;
            expected += rows.len();
            ours.insert(*name, rows);
        }
        input.push(json!({
            "table": table.name,
            "type": table.scalar,
            "dimensions": table.dimensions,
            "profiles": ours,
        }));
    }
    let input = json!({ "url": database.tcp_url(), "tables": input });

    let mut answers = node.run("read.mjs", &input);
    assert_eq!(answers.pop(), Some(json!({ "compared": expected })), "{answers:#?}");
    assert!(expected > 10_000, "{expected}");
    let differences = answers.len();
    let first: Vec<String> = answers.iter().take(20).map(Value::to_string).collect();
    assert!(answers.is_empty(), "{differences} differences:\n{}", first.join("\n"));
}

#[tokio::test]
async fn the_text_of_every_type_is_postgres_own() {
    let database = support::database().await;
    let mut connection = database.connect().await;
    let tables = create_tables(&database, &mut connection).await;
    let mut compared = 0;
    for table in &tables {
        // `format` calls the type's output function, as psql does; a cast need not.
        let sql = format!(
            "select value, format('%s', value) from {} where value is not null",
            table.name
        );
        for row in sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut connection).await.unwrap() {
            let wire = row.try_get_raw(0).unwrap();
            let mut ours = Vec::new();
            write_text(&table.ty, wire.as_bytes().unwrap(), &mut ours).unwrap();
            let theirs: &[u8] = row.try_get_raw(1).unwrap().as_bytes().unwrap();
            let [ours, theirs] = [&ours, theirs].map(String::from_utf8_lossy);
            assert_eq!(ours, theirs, "{}", table.name);
            compared += 1;
        }
    }
    assert!(compared > 10_000, "{compared}");
}

/// The JSON of each row, an object with the only member `value`.
async fn encode(connection: &mut PgConnection, table: &Table, profile: Profile) -> Vec<String> {
    let encoder = encoder(&table.ty, profile);
    let sql = format!("select value from {} order by id", table.name);
    let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(connection).await.unwrap();
    let mut texts = Vec::new();
    for row in rows {
        let mut text = Vec::new();
        let value = row.try_get_raw(0).unwrap();
        let wire = (!value.is_null()).then(|| value.as_bytes().unwrap());
        encoder.encode(|_| wire, &mut text).unwrap();
        texts.push(String::from_utf8(text).unwrap());
    }
    texts
}

/// The JSON of one value.
fn encode_value(ty: &ColumnType, profile: Profile, wire: &[u8]) -> String {
    let mut text = Vec::new();
    encoder(ty, profile).encode(|_| Some(wire), &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    text.strip_prefix("{\"value\":").and_then(|text| text.strip_suffix('}')).unwrap().to_owned()
}

fn encoder(ty: &ColumnType, profile: Profile) -> RowEncoder {
    let encoding = Encoding {
        profile,
        case: Case::Keep,
        omit: Vec::new(),
        columns: BTreeMap::new(),
        max_bytes: usize::MAX,
    };
    let column = Column { name: "value".to_owned(), ty: ty.clone() };
    RowEncoder::new(&encoding, &[column]).unwrap()
}

/// For every type, a table of values and tables of arrays of them.
async fn create_tables(database: &Database, connection: &mut PgConnection) -> Vec<Table> {
    database.execute(cases::SETUP).await;
    let mut cases = cases::cases();
    let sql = "select count(*) from pg_available_extensions where name = 'citext'";
    if sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut *connection).await.unwrap() == 1 {
        database.execute("create extension citext").await;
        cases.push(cases::citext());
    } else {
        support::skipped("the extension citext is not installed: the type is not compared");
    }
    // The driver looks up unknown types when it first meets them.
    connection.clear_cached_statements().await.unwrap();
    let mut tables = Vec::new();
    for case in cases {
        tables.push(create_scalars(connection, &case).await);
        tables.extend(create_arrays(connection, &case).await);
    }
    tables
}

async fn execute(connection: &mut PgConnection, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.unwrap();
}

async fn create_scalars(connection: &mut PgConnection, case: &cases::Case) -> Table {
    let name = format!("a_{}", case.name);
    let sql = format!("create table {name} (id serial, value {})", case.sql);
    execute(connection, sql).await;
    let sql =
        format!("insert into {name} (value) select v::{} from unnest($1::text[]) v", case.sql);
    sqlx::query(AssertSqlSafe(sql)).bind(&case.values).execute(&mut *connection).await.unwrap();
    execute(connection, format!("insert into {name} (value) values (null)")).await;
    Table { name, scalar: case.name, dimensions: 0, ty: case.ty.clone(), profiles: &PROFILES }
}

/// Arrays of the values of a type: each value alone and all together, with NULL, in two dimensions,
/// and with lower bounds other than 1.
async fn create_arrays(connection: &mut PgConnection, case: &cases::Case) -> Vec<Table> {
    let (of, sql) = (format!("a_{}", case.name), case.sql);
    let flat = format!(
        "select '{{}}'::{sql}[] union all \
         (select array[value] from {of} where value is not null order by id limit 100) union all \
         select array_agg(value order by id) from {of} where value is not null"
    );
    let nulls = format!(
        "select array[null, value, null]::{sql}[] from (select value from {of} order by id limit 5) v"
    );
    let nested = format!(
        "select array[array[value, value], array[value, value]]::{sql}[] \
         from (select value from {of} where value is not null order by id limit 100) v"
    );
    let bounds = format!(
        "with v as (select value from {of} where value is not null order by id limit 100) \
         select array_fill(value, '{{2}}', '{{-3}}')::{sql}[] from v \
         union all select array_fill(value, '{{1,2}}', '{{0,1}}')::{sql}[] from v"
    );
    // For these, `drizzle-orm` throws or returns what no schema can mean: see docs/json.md.
    let not_drizzle = PROFILES.get(1..).unwrap_or_default();
    let throws = case.ty == ColumnType::Point;
    let kinds: [(&str, String, usize, &'static [_]); 4] = [
        ("flat", flat, 1, &PROFILES),
        ("nulls", nulls, 1, if throws { not_drizzle } else { &PROFILES }),
        ("nested", nested, 2, &PROFILES),
        ("bounds", bounds, 1, not_drizzle),
    ];
    let mut tables = Vec::new();
    for (kind, select, dimensions, profiles) in kinds {
        let name = format!("a_{}_{kind}", case.name);
        execute(connection, format!("create table {name} (id serial, value {sql}[])")).await;
        execute(connection, format!("insert into {name} (value) {select}")).await;
        let ty = ColumnType::Array(Box::new(case.ty.clone()));
        tables.push(Table { name, scalar: case.name, dimensions, ty, profiles });
    }
    tables
}
