//! `query.order`: preheat sorts rows as the server does, for every type.

use preheat::domain::entry::entries;
use preheat::domain::job::Job;
use preheat::domain::json::ColumnType;
use preheat::domain::layout::Checks;
use preheat::domain::order::{Comparison, OrderColumn};
use preheat::domain::row::Rows;
use preheat::domain::tenant::Batch;
use preheat::engine::ports::{Read, Source, SourceErrorKind};
use sqlx::{AssertSqlSafe, PgConnection};

use super::{NUMBERS, connect, settings};
use crate::conformance::{fleet_job, read};
use crate::parity::cases;
use crate::support::{self, LONG};

/// The ways to order by a column.
const ENTRIES: [&str; 5] =
    ["value", "value desc", "value nulls first", "value desc nulls last", "value asc nulls last"];

/// More values of a type than this say nothing new.
const VALUES: usize = 2500;

/// Types by their names in SQL, each with some values, and with an expression of `n` for more.
const MORE: [(&str, &str, &str); 20] = [
    ("bool", "", "n % 2 = 0"),
    ("int2", "", "hashint4(n) % 32768"),
    ("int4", "2147483646 -2147483647 255 256 -256", "hashint4(n)"),
    ("int8", "4294967296 -4294967296", "hashint8extended(n, 1)"),
    ("oid", "2147483647 2147483648", "abs(hashint4(n)::int8)"),
    ("float4", "NaN -NaN -0 0 1e-45 -1e-45 -Infinity Infinity", "hashint4(n) / 1e6"),
    ("float8", "NaN -0 0 5e-324 -5e-324 -Infinity Infinity", "hashint8extended(n, 2) / 1e9"),
    (
        "numeric",
        "0 0.000 1 1.0 1.00 -1 -1.00 10000 9999 10000.0001 -10000 -9999.9999 99990000 100000000 NaN \
         Infinity -Infinity 0.0001 0.00010001 -0.0001 -0.00010001 10001 1000100000000",
        "hashint8extended(n, 3)::numeric / (10::numeric ^ (n % 20))",
    ),
    ("text", "a A b B aa a! a-b ab ä Ä ö z é \u{1F600} \u{FFFD} _", "left(md5(n::text), n % 4)"),
    ("varchar", "a A aa ab", "left(md5(n::text), n % 3) || chr(n + 100)"),
    ("char(3)", "a b ab abc A", "left(md5(n::text), n % 4)"),
    ("name", "a A ab", "left(md5(n::text), n % 5)"),
    ("uuid", "", "md5(n::text)::uuid"),
    (
        "bytea",
        r"\x \x00 \x0000 \x0001 \x00ff \x01 \x0100 \xff \xff00",
        "decode(left(md5(n::text), n % 9 * 2), 'hex')",
    ),
    ("date", "infinity -infinity", "date '2000-01-01' + hashint4(n) % 700000"),
    ("time", "", "time '00:00' + hashint4(n) * interval '1 second'"),
    (
        "timetz",
        "12:00:00+00 13:00:00+01 11:00:00-01 24:00:00+00 00:00:00+00 23:59:59-15 00:00:00+15",
        "(time '00:00' + n * interval '1 hour') at time zone make_interval(hours => n % 15)",
    ),
    ("macaddr", "00:00:00:00:00:01 7f:ff:ff:ff:ff:ff 80:00:00:00:00:00", "left(md5(n::text), 12)"),
    ("macaddr8", "7f:ff:ff:ff:ff:ff:ff:ff 80:00:00:00:00:00:00:00", "left(md5(n::text), 16)"),
    (
        "inet",
        "10.0.0.0/8 10.0.0.0/9 10.0.0.0/32 10.0.0.1/8 10.0.0.1 10.128.0.0/9 9.255.0.0/8 0.0.0.0/0 \
         11.0.0.0/7 ::/0 ::1 fe80::/10 fe80::1/10 fe80::/11",
        "'0.0.0.0'::inet + abs(hashint4(n)::int8)",
    ),
];

/// Intervals of equal length are equal, whatever their fields.
const INTERVALS: &str = "1 month|30 days|720 hours|29 days 24 hours|31 days|1 month 1 microsecond\
    |-1 month|-30 days|1 year|360 days|365 days|0|-1 day 24 hours|-1 microsecond";

/// A job that reads a table in the given order of arrival and orders its rows by these entries. The
/// value has only the rows' numbers.
fn ordered(table: &str, arrival: &str, order: &[&str]) -> Job {
    let sql = format!("select n, value from {table} order by {arrival}");
    let mut job = fleet_job(&sql, &["all"]);
    job.encoding.omit.push("value".to_owned());
    job.query.order = order.iter().map(|entry| OrderColumn::parse(entry).unwrap()).collect();
    job
}

async fn value(source: &dyn Source, job: &Job) -> String {
    let batch = Batch::global();
    let mut rows = Rows::default();
    rows.reset(0, usize::MAX);
    source
        .read(job, Read { batch: &batch, first_dates: &[], timeout: LONG }, &mut rows)
        .await
        .unwrap();
    let found = entries(job, &Checks::default(), &batch, &[], &rows);
    String::from_utf8(found.writes[0].value.to_vec()).unwrap()
}

/// The value that the server's order of the rows makes.
async fn expected(
    connection: &mut PgConnection,
    table: &str,
    entry: &str,
    is_text: bool,
) -> String {
    let column = if is_text { "value collate \"C\"" } else { "value" };
    let by = entry.replacen("value", column, 1);
    // The tie is decided by the rows' JSON, which is longer than the number.
    let sql = format!(
        "select '[' || string_agg(json, ',' order by {by}, json collate \"C\") || ']' \
         from (select value, format('{{\"n\":%s}}', n) as json from {table}) row"
    );
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(connection).await.unwrap()
}

/// A type and its values, for a table.
struct Values {
    sql: String,
    ty: ColumnType,
    values: Vec<String>,
    /// An expression of `n` for more values.
    more: &'static str,
}

fn all_values() -> Vec<Values> {
    let mut all = Vec::new();
    for (sql, values, more) in MORE {
        let ty = ColumnType::from_name(sql.split('(').next().unwrap());
        let values = values.split_whitespace().map(str::to_owned).collect();
        all.push(Values { sql: sql.to_owned(), ty, values, more });
    }
    let values = INTERVALS.split('|').map(str::to_owned).collect();
    let more = "make_interval(months => hashint4(n) % 9, days => hashint4(n + 1) % 300, \
                secs => hashint4(n + 2) / 1e3)";
    all.push(Values { sql: "interval".to_owned(), ty: ColumnType::Interval, values, more });
    all.extend(cases::cases().into_iter().map(|case| {
        let values = case.values.into_iter().take(VALUES).collect();
        Values { sql: case.sql.to_owned(), ty: case.ty, values, more: "" }
    }));
    all
}

/// Creates a table with each value twice, so that there are ties, and with rows without a value.
async fn create_table(connection: &mut PgConnection, table: &str, values: &Values) {
    let Values { sql, values, more, .. } = values;
    let create = format!("create table {table} (n serial, value {sql})");
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *connection).await.unwrap();
    let insert = format!("insert into {table} (value) select v::{sql} from unnest($1::text[]) v");
    sqlx::query(AssertSqlSafe(insert)).bind(values).execute(&mut *connection).await.unwrap();
    let more = if more.is_empty() { "null" } else { more };
    let rest = format!(
        "insert into {table} (value) select value from {table};
         insert into {table} (value) values (null), (null);
         insert into {table} (value) select ({more})::{sql} from generate_series(0, 400) n"
    );
    sqlx::raw_sql(AssertSqlSafe(rest)).execute(connection).await.unwrap();
}

#[tokio::test]
async fn rows_of_every_type_are_ordered_as_the_server_orders_them() {
    let server = support::database().await;
    server.execute(cases::SETUP).await;
    let mut connection = server.connect().await;
    let source = connect(settings(&server.url()), NUMBERS).await;
    let (mut compared, mut refused) = (0, Vec::new());
    for (index, values) in all_values().into_iter().enumerate() {
        let table = format!("t{index}");
        create_table(&mut connection, &table, &values).await;
        let Values { sql, ty, .. } = values;
        let comparison = Comparison::new(&OrderColumn::parse("value").unwrap(), &ty);
        let Ok(comparison) = comparison else {
            let job = ordered(&table, "n", &["value"]);
            let error = read(&source, &job, &Batch::global(), &[]).await.unwrap_err();
            assert_eq!(error.kind, SourceErrorKind::Definition, "{error}");
            assert!(error.message.contains("rows cannot be ordered by the column"), "{error}");
            refused.push(sql);
            continue;
        };
        for entry in ENTRIES {
            let theirs = expected(&mut connection, &table, entry, comparison.is_of_text()).await;
            for arrival in ["n", "n desc", "md5(n::text)"] {
                let ours = value(&source, &ordered(&table, arrival, &[entry])).await;
                assert!(ours == theirs, "{sql} {entry}\n{ours}\n{theirs}");
            }
            compared += 1;
        }
    }
    assert!(compared >= 5 * 40, "{compared}");
    assert_eq!(
        refused.join(" "),
        "mood xml json jsonb bit(5) varbit point int4range int8range numrange daterange tsrange \
         tstzrange span"
    );
}

#[tokio::test]
async fn several_columns_order_rows_one_after_the_other() {
    let server = support::database().await;
    server
        .execute(
            "create table t (n int, value text, price numeric, \"At Time\" timestamptz);
             insert into t select n, (array['a', 'ab', 'a b', null])[n % 4 + 1], n % 3 * 1.50,
               case when n % 5 > 0 then timestamptz '2026-03-01' + n % 7 * interval '1 day' end
             from generate_series(1, 400) n",
        )
        .await;
    let source = connect(settings(&server.url()), NUMBERS).await;
    let sql = |order: &str| format!("select n, value, price, \"At Time\" from t order by {order}");
    let job = |order: &str, entries: &[&str]| {
        let mut job = ordered("t", "n", entries);
        job.query.sql = sql(order).into();
        job
    };
    let theirs = "price desc, value collate \"C\" desc nulls last, \"At Time\" nulls first, \
                  n::text collate \"C\"";
    let entries = ["price desc", "value desc nulls last", "\"At Time\" nulls first"];
    let mut ours = job("md5(n::text)", &entries);
    ours.encoding.omit.extend(["price".to_owned(), "At Time".to_owned()]);
    let mut expected = job(theirs, &[]);
    expected.encoding.omit.clone_from(&ours.encoding.omit);
    // A number's JSON ends with a brace, which comes after all digits.
    expected.query.sql = sql(&theirs.replace("n::text", "(n || '}')")).into();
    assert_eq!(value(&source, &ours).await, value(&source, &expected).await);
}

#[tokio::test]
async fn a_column_that_changes_under_a_running_job_fails_its_batch() {
    let server = support::database().await;
    server.execute("create table t (n int, value int); insert into t values (1, 1)").await;
    let source = connect(settings(&server.url()), NUMBERS).await;
    let job = ordered("t", "n", &["value"]);
    assert_eq!(value(&source, &job).await, "[{\"n\":1}]");
    server.execute("alter table t alter value type jsonb using to_jsonb(value)").await;
    let error = read(&source, &job, &Batch::global(), &[]).await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Definition);
    let said = "rows cannot be ordered by the column `value`, which is jsonb; hint: take it out of";
    assert!(error.message.contains(said), "{error}");
    server.execute("alter table t rename value to price").await;
    let mut job = job;
    job.query.sql = "select n, price from t".into();
    job.encoding.omit = Vec::new();
    let error = read(&source, &job, &Batch::global(), &[]).await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Definition);
    assert!(error.message.ends_with("the query returns no column `value`"), "{error}");
}
