//! The source on real Postgres servers that refuse, fail, hang and recover.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use preheat::adapter::ConnectErrorKind;
use preheat::adapter::postgres::{
    Database, DatabaseSettings, PostgresSource, RowSecurity, TenantsSettings,
};
use preheat::domain::job::{DateZone, Dates};
use preheat::domain::row::Rows;
use preheat::domain::tenant::{TenantId, Tenants};
use preheat::engine::ports::{Read, Source, SourceError, SourceErrorKind};
use preheat_sandbox::{Postgres, PostgresOptions};
use secrecy::SecretString;
use sqlx::PgConnection;

use super::certificates::Certificates;
use super::{batch, fleet_job, job, read, with_dates};
use crate::support::proxy::Mode;
use crate::support::{self, LONG, Proxy, eventually};

pub(crate) fn settings(url: &str) -> DatabaseSettings {
    DatabaseSettings {
        url: SecretString::from(url),
        max_connections: NonZeroU32::new(4).unwrap(),
        statement_timeout: Duration::from_secs(30),
        read_only: true,
        row_security: RowSecurity::Refuse,
        time_zone: None,
    }
}

pub(crate) async fn connect(settings: DatabaseSettings, tenants: &str) -> PostgresSource {
    let database = Arc::new(Database::connect(settings).await.unwrap());
    source(database, tenants)
}

pub(crate) fn source(database: Arc<Database>, tenants: &str) -> PostgresSource {
    let tenants = TenantsSettings { sql: tenants.into(), column: "tenant_id".to_owned() };
    PostgresSource::new(database, tenants)
}

/// Tenants whose ids are the numbers from 1.
async fn numbered(server: &support::Database) -> PostgresSource {
    connect(settings(&server.url()), NUMBERS).await
}

const NUMBERS: &str = "select n from generate_series(1, 9) n";

/// One row for each tenant, without any table.
const ONE_EACH: &str = "select id as tenant_id, 1 as one from unnest($1) id";

async fn fails(source: &PostgresSource, sql: &str, ids: &[&str]) -> SourceError {
    read(source, &job(sql, &["k:{tenant_id}"]), &batch(ids), &[]).await.unwrap_err()
}

fn tenant_ids(ids: &[&str]) -> Vec<TenantId> {
    ids.iter().map(TenantId::new).collect()
}

/// Which of these tenants are active.
pub(crate) async fn among(source: &PostgresSource, ids: &[&str]) -> Vec<String> {
    let tenants = source.tenants_among(&tenant_ids(ids)).await.unwrap();
    tenants.iter().map(|tenant| tenant.id().to_owned()).collect()
}

/// How many of our queries the server is running.
async fn active(past: &mut PgConnection) -> i64 {
    let sql = "select count(*) from pg_stat_activity where application_name = 'preheat' \
               and state = 'active' and datname = current_database()";
    sqlx::query_scalar(sql).fetch_one(past).await.unwrap()
}

/// Waits until the server runs none of them.
async fn ended(past: &mut PgConnection) {
    eventually("the server is not at it any more", LONG, async || active(past).await == 0).await;
}

#[tokio::test]
async fn ids_of_every_type_are_asked_for_and_found() {
    let server = support::database().await;
    server
        .execute("create extension citext; create schema ext; create domain tenant_key as int8")
        .await;
    let cases = [
        ("uuid", "0191c6c0-0000-7000-8000-00000000000a", "ffffffff-ffff-ffff-ffff-ffffffffffff"),
        ("int2", "-7", "32767"),
        ("int4", "-7", "2147483647"),
        ("int8", "-7", "9223372036854775807"),
        ("tenant_key", "12", "13"),
        ("text", "a'b{}\"\\,", "NULL"),
        ("varchar(20)", "é", ""),
        ("char(4)", "ab  ", "abcd"),
        ("citext", "Abc", "ÄB"),
    ];
    for (ty, one, other) in cases {
        server
            .execute(&format!(
                "drop table if exists t, i;
                 create table t (id {ty} primary key); create table i (tenant_id {ty}, n int);"
            ))
            .await;
        let mut past = server.connect().await;
        for (n, id) in [(1, one), (2, other)] {
            for sql in [
                format!("insert into t values ($1::text::{ty})"),
                format!("insert into i values ($1::text::{ty}, {n})"),
            ] {
                let insert = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id);
                insert.execute(&mut past).await.unwrap();
            }
        }
        let source = connect(settings(&server.url()), "select id from t").await;
        let tenants = source.tenants().await.unwrap();
        let mut ids: Vec<_> = tenants.iter().map(|tenant| tenant.id().to_owned()).collect();
        ids.sort_unstable();
        let mut expected = vec![one.to_owned(), other.to_owned()];
        expected.sort_unstable();
        assert_eq!(ids, expected, "{ty}");
        let job = job(
            "select tenant_id, n from i where tenant_id = any($1) order by n",
            &["k:{tenant_id}"],
        );
        let found = read(&source, &job, &batch(&[other, one]), &[]).await.unwrap();
        let slots: Vec<_> = found.iter().map(|(slot, json, _)| (*slot, json.as_str())).collect();
        assert_eq!(slots, [(1, "{\"n\":1}"), (0, "{\"n\":2}")], "{ty}");

        // A text that is no such id, or another spelling of one, is not among them.
        let odd = ["nobody", "7", "+12", "012", "aBC", "9223372036854775808", "a\0b", "{}", "ab"];
        let upper = one.to_uppercase();
        let upper = (upper != one).then_some(upper.as_str());
        let asked: Vec<_> = odd.into_iter().chain(upper).chain([other, other]).collect();
        assert_eq!(among(&source, &asked).await, [other], "{ty}");
        assert_eq!(among(&source, &odd).await, [""; 0], "{ty}");
        assert_eq!(among(&source, &[one, "nobody"]).await, [one], "{ty}");
        assert_eq!(among(&source, &[]).await, [""; 0], "{ty}");
    }
}

#[tokio::test]
async fn an_id_that_another_column_writes_otherwise_is_the_same_id() {
    let server = support::database().await;
    let source = numbered(&server).await;
    for ty in ["int2", "int8"] {
        let sql = format!("select id::{ty} as tenant_id, 1 as one from unnest($1) id");
        let found = read(&source, &job(&sql, &["k:{tenant_id}"]), &batch(&["3", "4"]), &[]).await;
        assert_eq!(found.unwrap().len(), 2);
    }
    let source = connect(settings(&server.url()), "select 'x'::text").await;
    let sql = "select id::varchar(9) as tenant_id, 1 as one from unnest($1) id";
    let found = read(&source, &job(sql, &["k:{tenant_id}"]), &batch(&["x"]), &[]).await;
    assert_eq!(found.unwrap().len(), 1);
}

#[tokio::test]
async fn a_tenant_list_that_cannot_be_trusted_is_an_error() {
    let server = support::database().await;
    let cases = [
        ("select null::int", SourceErrorKind::Data, "a tenant's id is NULL"),
        (
            "select unnest(array[1, 2, 1])",
            SourceErrorKind::Data,
            "the tenant id `1` comes more than once",
        ),
        (
            "select 1.5 as id",
            SourceErrorKind::Definition,
            "the tenants' id `id` is numeric, and an id is uuid, int2, int4, int8, text, varchar, \
             bpchar or citext; hint: cast it in `tenants.sql`",
        ),
        (
            "select id from tenant",
            SourceErrorKind::Definition,
            "relation \"tenant\" does not exist (42P01) at character 16 of the query",
        ),
        ("select", SourceErrorKind::Definition, "the tenant query returns no column"),
    ];
    for (sql, kind, message) in cases {
        let error = connect(settings(&server.url()), sql).await.tenants().await.unwrap_err();
        assert_eq!(error.kind, kind, "{sql}");
        assert_eq!(error.message, format!("could not read the tenants: {message}"));
    }
    let sql = "select unnest(array['a', 'A'])::citext";
    server.execute("create extension citext").await;
    let error = connect(settings(&server.url()), sql).await.tenants().await.unwrap_err();
    assert!(error.message.ends_with("the tenant id `a` comes more than once"), "{error}");
}

#[tokio::test]
async fn a_tenants_columns_are_its_texts() {
    let server = support::database().await;
    let sql = "select 1, null::text as zone, 7.50 as price, date '2026-03-01' as since, \
               array[1,2] as list, 'x'::varchar as \"Upper\"";
    let tenants = connect(settings(&server.url()), sql).await.tenants().await.unwrap();
    let tenant = tenants.get(0).unwrap();
    let columns = ["zone", "price", "since", "list", "Upper"].map(|name| tenant.column(name));
    assert_eq!(columns, [None, Some("7.50"), Some("2026-03-01"), Some("{1,2}"), Some("x")]);
}

#[tokio::test]
async fn hazard_10_a_row_of_another_tenant_fails_the_batch() {
    let server = support::database().await;
    let source = numbered(&server).await;
    let sql = "select n as tenant_id, 1 as one from generate_series(1, 9) n \
               where cardinality($1) > 0";
    let error = fails(&source, sql, &["1", "2"]).await;
    assert_eq!(error.kind, SourceErrorKind::Foreign);
    assert_eq!(
        error.message,
        "could not read the rows of job `products`: the query returned a row whose `tenant_id` is \
         `3`, a tenant that was not asked for; hint: filter by `tenant_id = any($1)`"
    );
    let error = fails(&source, "select null::int as tenant_id, 1 as one", &["1"]).await;
    assert_eq!(error.kind, SourceErrorKind::Foreign);
    assert!(error.message.contains("whose `tenant_id` is NULL"), "{error}");
}

#[tokio::test]
async fn what_breaks_on_data_is_told_from_what_can_never_work() {
    let server = support::database().await;
    let source = numbered(&server).await;
    let by_tenant = "select id as tenant_id, 10 / (id - 2) as n from unnest($1) id";
    let found = read(&source, &job(by_tenant, &["k:{tenant_id}"]), &batch(&["1", "3"]), &[]).await;
    assert_eq!(found.unwrap().len(), 2);
    server
        .execute("create table w (n int); create table text_json as select '{x'::text as j")
        .await;
    let json = "select id as tenant_id, j from unnest($1) id, text_json";
    let cases = [
        (by_tenant, SourceErrorKind::Data, "division by zero (22012)"),
        (
            "select id as tenant_id, id::text::date from unnest($1) id",
            SourceErrorKind::Data,
            "invalid input syntax for type date: \"2\" (22007)",
        ),
        (
            "select i as tenant_id from unnest($1) id",
            SourceErrorKind::Definition,
            "column \"i\" does not exist (42703) at character 8 of the query",
        ),
        (
            "with w as (insert into w values (1) returning n) select n as tenant_id, 1 as one \
             from w where n = any($1)",
            SourceErrorKind::Definition,
            "cannot execute SELECT in a read-only transaction (25006); hint: queries only read: \
             `database.read_only = false` lets those of runs write, while `check`, `plan` and \
             audits only read in any case",
        ),
        (
            "select id as tenant_id, $2::int as n from unnest($1) id",
            SourceErrorKind::Definition,
            "the query uses `$2`, and the job gives it `$1` only",
        ),
        (
            "select 1 as one from unnest($1) id",
            SourceErrorKind::Definition,
            "the query returns no column `tenant_id`",
        ),
        (
            "select id::text as tenant_id, 1 as one from unnest($1) id",
            SourceErrorKind::Definition,
            "the column `tenant_id` is text, and the tenants' id is int4",
        ),
        (
            "select id as tenant_id, point '(1,1)' <-> point '(0,0)', lseg '((0,0),(1,1))' as l \
             from unnest($1) id",
            SourceErrorKind::Definition,
            "column `l` has the type `lseg`, which has no codec",
        ),
    ];
    for (sql, kind, message) in cases {
        let error = fails(&source, sql, &["2"]).await;
        assert_eq!(error.message, format!("could not read the rows of job `products`: {message}"));
        assert_eq!(error.kind, kind, "{sql}");
    }
    let mut as_json = job(json, &["k:{tenant_id}"]);
    as_json.encoding.columns = [("j".to_owned(), preheat::domain::json::ColumnCodec::Json)].into();
    let error = read(&source, &as_json, &batch(&["1"]), &[]).await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Encoding, "{error}");
    assert!(!error.message.contains("{x"), "{error}");
    assert!(read(&source, &job(ONE_EACH, &["k"]), &batch(&["1"]), &[]).await.is_ok());
}

#[tokio::test]
async fn a_query_may_leave_parameters_out_and_a_fleet_has_dates_alone() {
    let server = support::database().await;
    let source = numbered(&server).await;
    let week = || Dates { days: 7, zone: DateZone::Fixed(chrono_tz::Tz::UTC) };
    let first = "2026-02-27".parse().unwrap();
    let only_ids = with_dates(job(ONE_EACH, &["k:{tenant_id}"]), week());
    assert_eq!(read(&source, &only_ids, &batch(&["1"]), &[first]).await.unwrap().len(), 1);

    let sql = "select d::date as date from generate_series($1, $2, '1 day') d";
    let fleet = with_dates(fleet_job(sql, &["k:{date}"]), week());
    let found = read(&source, &fleet, &preheat::domain::tenant::Batch::fleet(), &[first]).await;
    let dates: Vec<_> =
        found.unwrap().into_iter().map(|(.., keys)| keys[0].clone().unwrap()).collect();
    assert_eq!(
        (dates.len(), dates[0].as_str(), dates[6].as_str()),
        (7, "2026-02-27", "2026-03-05")
    );
}

#[tokio::test]
async fn a_statement_timeout_ends_the_query_in_the_server() {
    let server = support::database().await;
    let mut past = server.connect().await;
    let sleep =
        job("select id as tenant_id, pg_sleep(3000)::text from unnest($1) id", &["k:{tenant_id}"]);
    let short = Duration::from_millis(300);
    let bounded = DatabaseSettings { statement_timeout: short, ..settings(&server.url()) };
    let source = connect(bounded, NUMBERS).await;
    let error = read(&source, &sleep, &batch(&["1"]), &[]).await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Timeout);
    assert!(
        error.message.ends_with("canceling statement due to statement timeout (57014)"),
        "{error}"
    );
    // After its answer, the server may take a moment to report that it is idle.
    ended(&mut past).await;

    // A read's own timeout reaches the server too.
    let source = numbered(&server).await;
    let mut rows = Rows::default();
    rows.reset(0, usize::MAX);
    let one = batch(&["1"]);
    let bounds = Read { batch: &one, first_dates: &[], timeout: short };
    let error = source.read(&sleep, bounds, &mut rows).await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Timeout);
    assert!(error.message.contains("57014"), "{error}");
    ended(&mut past).await;
    assert!(read(&source, &job(ONE_EACH, &["k"]), &one, &[]).await.is_ok());
}

#[tokio::test]
async fn a_read_that_was_given_up_ends_in_the_server_and_blocks_nobody() {
    let server = support::database().await;
    let mut past = server.connect().await;
    let one = DatabaseSettings { max_connections: NonZeroU32::MIN, ..settings(&server.url()) };
    let source = connect(one, NUMBERS).await;
    let sleep =
        job("select id as tenant_id, pg_sleep(3000)::text from unnest($1) id", &["k:{tenant_id}"]);
    let ids = batch(&["1"]);
    {
        let mut reading = Box::pin(read(&source, &sleep, &ids, &[]));
        eventually("the server is at it", LONG, async || {
            tokio::select! {
                result = &mut reading => panic!("{result:?}"),
                count = active(&mut past) => count == 1,
            }
        })
        .await;
    }
    assert!(read(&source, &job(ONE_EACH, &["k"]), &ids, &[]).await.is_ok());
    ended(&mut past).await;
}

#[tokio::test]
async fn no_more_connections_are_opened_than_allowed() {
    let server = support::database().await;
    let two = DatabaseSettings {
        max_connections: NonZeroU32::new(2).unwrap(),
        ..settings(&server.url())
    };
    let database = Arc::new(Database::connect(two).await.unwrap());
    let source = source(Arc::clone(&database), NUMBERS);
    let count = job(
        "select id as tenant_id, (select count(*) from pg_stat_activity where \
         application_name = 'preheat' and datname = current_database()) as n, \
         pg_sleep(0.02)::text from unnest($1) id",
        &["k:{tenant_id}"],
    );
    let ids = batch(&["1"]);
    let reads = (0..30).map(|_| read(&source, &count, &ids, &[]));
    for found in futures::future::join_all(reads).await {
        let json: serde_json::Value = serde_json::from_str(&found.unwrap()[0].1).unwrap();
        let n: i64 =
            json["n"].as_str().map_or_else(|| json["n"].as_i64().unwrap(), |n| n.parse().unwrap());
        assert!(n <= 2, "{n} connections");
    }
    let connections = database.connections();
    assert!(connections.idle + connections.active <= 2, "{connections:?}");
}

#[tokio::test]
async fn a_table_that_changes_under_a_prepared_query_is_read_as_it_is_now() {
    let server = support::database().await;
    server.execute("create table t (tenant_id int, v int); insert into t values (1, 2)").await;
    let source = numbered(&server).await;
    let all = job("select * from t where tenant_id = any($1)", &["k:{tenant_id}"]);
    let ids = batch(&["1"]);
    let json = async || read(&source, &all, &ids, &[]).await.unwrap()[0].1.clone();
    assert_eq!(json().await, "{\"v\":2}");
    server.execute("alter table t alter v type text using 'v' || v").await;
    assert_eq!(json().await, "{\"v\":\"v2\"}");
    server.execute("alter table t add w bool").await;
    assert_eq!(json().await, "{\"v\":\"v2\",\"w\":null}");
    server.execute("alter table t drop v").await;
    assert_eq!(json().await, "{\"w\":null}");

    server.execute("create table tenants (id int); insert into tenants values (1)").await;
    let source = connect(settings(&server.url()), "select * from tenants").await;
    assert_eq!(source.tenants().await.unwrap().column_names().count(), 0);
    server.execute("alter table tenants add zone text").await;
    assert_eq!(source.tenants().await.unwrap().column_names().collect::<Vec<_>>(), ["zone"]);
    server.execute("alter table tenants alter id type text").await;
    assert_eq!(source.tenants().await.unwrap().get(0).unwrap().id(), "1");
}

#[tokio::test]
async fn custom_types_are_read() {
    let server = support::database().await;
    server
        .execute(
            "create type mood as enum ('sad', 'happy'); create domain short as varchar(9);
             create schema other; create type other.size as enum ('S', 'XL');
             create table t (tenant_id int, mood mood, size other.size, short short, moods mood[]);
             insert into t values (1, 'happy', 'XL', 'a', '{sad,happy}')",
        )
        .await;
    let source = numbered(&server).await;
    let mut all = job("select * from t where tenant_id = any($1)", &["k:{mood}:{size}"]);
    all.encoding.omit.push("moods".to_owned());
    let found = read(&source, &all, &batch(&["1"]), &[]).await.unwrap();
    let keys = vec![Some("happy".to_owned()), Some("XL".to_owned())];
    let json = "{\"mood\":\"happy\",\"size\":\"XL\",\"short\":\"a\"}".to_owned();
    assert_eq!(found, vec![(0, json, keys)]);
}

#[tokio::test]
async fn a_type_that_is_newer_than_the_connection_is_read() {
    let server = support::database().await;
    let one = DatabaseSettings { max_connections: NonZeroU32::MIN, ..settings(&server.url()) };
    let source = connect(one, "select id, kind from tenants").await;
    server
        .execute("create table tenants (id int, kind text); insert into tenants values (1)")
        .await;
    assert_eq!(source.tenants().await.unwrap().len(), 1);
    for kind in ["first", "second"] {
        server
            .execute(&format!(
                "create type {kind} as enum ('{kind}');
                 alter table tenants alter kind type {kind} using '{kind}';"
            ))
            .await;
        let sql = "select id as tenant_id, kind from tenants where id = any($1)";
        let found = read(&source, &job(sql, &["k:{kind}"]), &batch(&["1"]), &[]).await.unwrap();
        assert_eq!(found[0].2, [Some(kind.to_owned())]);
        let tenants = source.tenants().await.unwrap();
        assert_eq!(tenants.get(0).unwrap().column("kind"), Some(kind));
        assert_eq!(among(&source, &["1", "2"]).await, ["1"]);
    }
}

#[tokio::test]
async fn a_query_of_the_databases_own_types_is_no_error_in_the_servers_log() {
    let server = support::own_postgres();
    let types = "create type mood as enum ('sad', 'happy'); create domain moods as mood[];
                 create type steps as range (subtype = numeric)";
    server.execute("postgres", types).await.unwrap();
    let source = connect(settings(&server.url("postgres")), NUMBERS).await;
    let sql = "select id as tenant_id, 'sad'::mood as mood, '{sad,happy}'::moods as moods, \
               '[1,2]'::steps as steps, '<a/>'::xml as xml from unnest($1) id";
    assert_eq!(source.describe(&job(sql, &["k:{mood}"])).await.unwrap().problems, []);
    let found = read(&source, &job(sql, &["k:{mood}"]), &batch(&["1"]), &[]).await.unwrap();
    assert_eq!(found[0].2, [Some("sad".to_owned())]);
    assert!(!server.log_tail().contains("ERROR"), "{}", server.log_tail());
}

#[tokio::test]
async fn what_a_url_sets_is_set_by_each_transaction_or_refused_by_name() {
    let server = support::database().await;
    let with = |options: &str| settings(&format!("{}&options={options}", server.url()));
    let set = with("-c%20search_path%3Dother,public%20--work-mem%3D7MB");
    let source = connect(set, NUMBERS).await;
    let sql = "select id as tenant_id, current_setting('search_path') as path, \
               current_setting('work_mem') as mem from unnest($1) id";
    let found = read(&source, &job(sql, &["k:{tenant_id}"]), &batch(&["1"]), &[]).await.unwrap();
    assert_eq!(found[0].1, r#"{"path":"\"other\", \"public\"","mem":"7MB"}"#);

    let refused = [
        ("-c%20statement_timeout%3D7", "see `[database] statement_timeout`"),
        ("--default-transaction-read-only%3Doff", "see `[database] read_only`"),
        ("-c%20TimeZone%3DUTC", "see `[database] time_zone`"),
        ("-crow_security%3Don", "see `[database] row_security`"),
        ("-B%207", "it is `-c name=value`, as often as needed"),
        ("-c%20nothing%3Dsecret", "\"nothing\" (42704)"),
    ];
    for (options, message) in refused {
        let error = Database::connect(with(options)).await.unwrap_err();
        assert!(error.message.contains(message), "{error}");
        assert!(!error.message.contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_was_restarted_is_read_from_at_once() {
    let server = support::own_postgres();
    let source = connect(settings(&server.url("postgres")), NUMBERS).await;
    let each = job(ONE_EACH, &["k:{tenant_id}"]);
    let ids = batch(&["1", "2"]);
    for end in [Postgres::stop, Postgres::kill] {
        assert_eq!(read(&source, &each, &ids, &[]).await.unwrap().len(), 2);
        end(&server);
        let error = read(&source, &each, &ids, &[]).await.unwrap_err();
        assert_eq!(error.kind, SourceErrorKind::Unavailable);
        assert!(error.message.starts_with("could not connect to database `/"), "{error}");
        server.restart().unwrap();
        assert_eq!(read(&source, &each, &ids, &[]).await.unwrap().len(), 2);
    }

    let sleep =
        job("select id as tenant_id, pg_sleep(3000)::text from unnest($1) id", &["k:{tenant_id}"]);
    let mut reading = Box::pin(read(&source, &sleep, &ids, &[]));
    let ended = tokio::time::timeout(Duration::from_millis(300), &mut reading).await;
    assert!(ended.is_err());
    let killed = tokio::task::spawn_blocking(move || server.kill());
    let error = tokio::time::timeout(LONG, reading).await.unwrap().unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Unavailable, "{error}");
    killed.await.unwrap();
}

#[tokio::test]
async fn hazard_26_a_black_hole_ends_with_the_timeout_and_a_new_connection() {
    let server = support::database().await;
    let proxy = Proxy::postgres(support::postgres()).await;
    let short = Duration::from_millis(200);
    let bounded =
        DatabaseSettings { statement_timeout: short, ..settings(&server.url_through(&proxy)) };
    let source = connect(bounded, NUMBERS).await;
    let each = job(ONE_EACH, &["k:{tenant_id}"]);
    let ids = batch(&["1"]);
    let with = async |timeout| {
        let mut rows = Rows::default();
        rows.reset(0, usize::MAX);
        source.read(&each, Read { batch: &ids, first_dates: &[], timeout }, &mut rows).await
    };
    with(LONG).await.unwrap();
    proxy.set(Mode::Stall);
    let start = Instant::now();
    let error = with(Duration::from_millis(500)).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(
        matches!(error.kind, SourceErrorKind::Unavailable | SourceErrorKind::Timeout),
        "{error}"
    );
    proxy.set(Mode::Pass);
    with(LONG).await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_with_a_connection_is_said_without_the_password() {
    let certificates = Certificates::new();
    let options = PostgresOptions {
        tcp: true,
        tls: Some(certificates.server()),
        access: vec!["host all locked all scram-sha-256".to_owned()],
        ..PostgresOptions::default()
    };
    let server = Postgres::start(&options).unwrap();
    server.execute("postgres", "create role locked login password 'se/cr:et'").await.unwrap();
    let port = server.tcp_port().unwrap();
    let ca = certificates.ca();
    let ca = ca.display();
    let other = Certificates::new();
    let other = other.ca();
    let other = other.display();
    let at =
        |host: &str, rest: &str| format!("postgres://locked:se%2Fcr%3Aet@{host}:{port}/{rest}");

    for rest in [
        "postgres?sslmode=disable".to_owned(),
        "postgres".to_owned(),
        "postgres?sslmode=require".to_owned(),
        format!("postgres?sslmode=verify-full&sslrootcert={ca}"),
    ] {
        let database = Database::connect(settings(&at("localhost", &rest))).await.unwrap();
        assert_eq!(database.server(), format!("localhost:{port}/postgres"));
    }
    let ip = format!("postgres?sslmode=verify-ca&sslrootcert={ca}");
    Database::connect(settings(&at("127.0.0.1", &ip))).await.unwrap();

    let refused = ConnectErrorKind::Refused;
    let cases = [
        (
            at("localhost", "nowhere?sslmode=disable"),
            refused,
            "database \"nowhere\" does not exist",
        ),
        (
            at("localhost", "postgres?sslmode=disable").replace("se%2Fcr%3Aet", "hush"),
            refused,
            "password authentication failed for user \"locked\"",
        ),
        (at("127.0.0.1", &ip.replace("verify-ca", "verify-full")), refused, "certificate"),
        (
            at("localhost", &format!("postgres?sslmode=verify-full&sslrootcert={other}")),
            refused,
            "certificate",
        ),
        (at("localhost", "postgres?sslmode=verify-full"), refused, "certificate"),
        (
            "postgres://locked:hush@127.0.0.1:1/x".to_owned(),
            ConnectErrorKind::Unreachable,
            "refused",
        ),
        (
            "postgres://locked:hush@no-such-host.invalid/x".to_owned(),
            ConnectErrorKind::Unreachable,
            "no-such-host",
        ),
        ("mysql:/locked:hush@/x".to_owned(), ConnectErrorKind::Settings, "URL"),
    ];
    for (url, kind, part) in cases {
        let error = Database::connect(settings(&url)).await.unwrap_err();
        assert!(error.message.contains(part), "{url}: {error}");
        assert_eq!(error.kind, kind, "{url}: {error}");
        assert!(!error.message.contains("hush") && !error.message.contains("cr:et"), "{error}");
    }
}

#[tokio::test]
async fn a_lazy_database_is_connected_by_its_first_read() {
    let server = support::own_postgres();
    server.stop();
    let lazy = Database::lazy(settings(&server.tcp_url("postgres").unwrap())).unwrap();
    let source = source(Arc::new(lazy), NUMBERS);
    let error = source.tenants().await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Unavailable);
    server.restart().unwrap();
    assert_eq!(source.tenants().await.unwrap().len(), 9);
}

#[tokio::test]
async fn a_session_is_as_warm_queries_want_it() {
    let server = support::database().await;
    let source = numbered(&server).await;
    let sql = "select id as tenant_id, current_setting('jit') as jit, \
               current_setting('transaction_read_only') as ro, current_setting('TimeZone') as tz, \
               current_setting('statement_timeout') as timeout, \
               current_setting('lock_timeout') as lock, current_setting('row_security') as rls, \
               current_setting('client_connection_check_interval') as check from unnest($1) id";
    let found = read(&source, &job(sql, &["k:{tenant_id}"]), &batch(&["1"]), &[]).await.unwrap();
    assert_eq!(
        found[0].1,
        "{\"jit\":\"off\",\"ro\":\"on\",\"tz\":\"UTC\",\
         \"timeout\":\"30s\",\"lock\":\"2s\",\"rls\":\"off\",\"check\":\"1s\"}"
    );
}

/// The tenant query of the sample clinic.
const CLINIC: &str =
    "select id, timezone from tenants where status = 'active' order by created_at, id";

fn texts(tenants: &Tenants) -> Vec<(String, Option<String>)> {
    let zone = |tenant: &preheat::domain::tenant::Tenant<'_>| {
        (tenant.id().to_owned(), tenant.column("timezone").map(str::to_owned))
    };
    tenants.iter().map(|tenant| zone(&tenant)).collect()
}

#[tokio::test]
async fn some_tenants_are_those_of_the_whole_list_in_its_order() {
    let server = support::clinic().await;
    let source = connect(settings(&server.url()), CLINIC).await;
    let all = texts(&source.tenants().await.unwrap());
    let mut past = server.connect().await;
    let every: Vec<String> =
        sqlx::query_scalar("select id::text from tenants").fetch_all(&mut past).await.unwrap();
    assert!((2..every.len()).contains(&all.len()), "{} of {}", all.len(), every.len());
    let mut ids: Vec<&str> = every.iter().map(String::as_str).collect();
    ids.extend(["7", "", "0191c6c0-0000-7000-8000-00000000000a"]);
    ids.sort_unstable();
    let found = source.tenants_among(&tenant_ids(&ids)).await.unwrap();
    assert_eq!(texts(&found), all);

    let asked = tenant_ids(&[&all[2].0, &all[0].0]);
    let found = source.tenants_among(&asked).await.unwrap();
    assert_eq!(texts(&found), [all[0].clone(), all[2].clone()]);
    server.execute(&format!("update tenants set status = 'trial' where id = '{}'", all[0].0)).await;
    let found = source.tenants_among(&asked).await.unwrap();
    assert_eq!(texts(&found), [all[2].clone()]);
}

#[tokio::test]
async fn some_tenants_are_read_by_the_index_of_their_ids() {
    let server = support::clinic().await;
    server
        .execute(
            "insert into tenants (id, name, status, timezone)
             select gen_random_uuid(), 'x', 'active', 'UTC' from generate_series(1, 20000);
             analyze tenants",
        )
        .await;
    let database = Arc::new(Database::connect(settings(&server.url())).await.unwrap());
    let source = source(Arc::clone(&database), CLINIC);
    let mut past = server.connect().await;
    let sql = "select id::text from tenants where status = 'active' limit 3";
    let ids: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut past).await.unwrap();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let read = async |past: &mut PgConnection| -> (i64, i64) {
        let sql = "select seq_tup_read, idx_tup_fetch from pg_stat_user_tables \
                   where relname = 'tenants'";
        sqlx::query_as(sql).fetch_one(past).await.unwrap()
    };
    // The server adds up a session's statistics when the session ends.
    sqlx::Connection::close(past).await.unwrap();
    let mut past = server.connect().await;
    let mut before = read(&mut past).await;
    eventually("all that was done before is counted", LONG, async || {
        let last = std::mem::replace(&mut before, read(&mut past).await);
        last == before && before.0 >= 3
    })
    .await;
    assert_eq!(among(&source, &ids).await.len(), 3);
    drop((source, database));
    eventually("what was read is counted", LONG, async || read(&mut past).await != before).await;
    assert_eq!(read(&mut past).await, (before.0, before.1 + 3));
}

#[tokio::test]
async fn some_tenants_are_found_whatever_the_tenant_query_looks_like() {
    let server = support::database().await;
    server
        .execute(
            "create table t (id int, zone text, rank int);
             insert into t values (1, 'b', 3), (2, 'a', 2), (3, null, 1), (4, 'd', null)",
        )
        .await;
    let queries = [
        "select id, zone from t order by rank desc nulls last;",
        "select id, zone from t where id < 9 -- all of them; really\n;",
        "select id, zone from t; -- that is all",
        "select id, zone from t /* one */ ; ; /* two */\n -- three",
        "select id, zone from t -- no end of line",
        "select id, ';' as zone from t",
        // A text that looks like an end is text, and an end may be hidden. Both queries are read
        // whole.
        "select id, '; -- ' as zone from t",
        "select id, zone from t; /* one /* two */ three */",
        "table t",
        "values (1, 'b'), (2, 'a')",
        "with c as (select * from t) select id, zone from c order by zone",
        "with recursive n (id) as (select 1 union all select id + 1 from n where id < 4) select id from n",
        "select id, zone from t where id < 3 union all select id, zone from t where id > 2",
        "select distinct on (zone) id, zone from t order by zone, id",
        "select id, zone from t order by id desc limit 2",
        "select id, zone, row_number() over (order by rank) as n from t",
        "select id as \"Odd \"\"name\", zone as \"tenant id\" from t",
        "select id, zone as id, rank as id from t",
        "select id + 0, zone || '', rank + 1 from t",
        "select unnest(array[3, 2, 1]), 'x' as zone",
        "select max(id), zone from t group by zone order by zone",
        "(select id, zone from t)",
    ];
    for sql in queries {
        let source = connect(settings(&server.url()), sql).await;
        let all = source.tenants().await.unwrap();
        let wanted = all.only(|tenant| ["2", "3", "1"].contains(&tenant.id()));
        assert!(!wanted.is_empty(), "{sql}");
        let found = source.tenants_among(&tenant_ids(&["2", "3", "7", "1", "x"])).await.unwrap();
        let ids =
            |list: &Tenants| list.iter().map(|tenant| tenant.id().to_owned()).collect::<Vec<_>>();
        assert_eq!(ids(&found), ids(&wanted), "{sql}");
        let names = |list: &Tenants| list.column_names().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(names(&found), names(&wanted), "{sql}");
        for (found, wanted) in found.iter().zip(wanted.iter()) {
            for name in all.column_names() {
                assert_eq!(found.column(name), wanted.column(name), "{sql}");
            }
        }
    }
}

#[tokio::test]
async fn the_server_is_asked_for_some_tenants_alone() {
    let server = support::database().await;
    let cases = [
        "select 1 as id, current_query() as query",
        "select 1, current_query() as query; -- one, and; two",
        "select 1 as id, current_query() as query, 2 as id",
        "select 1 as id, current_query() as query, '; -- ' as text",
    ];
    for sql in cases {
        let source = connect(settings(&server.url()), sql).await;
        let found = source.tenants_among(&tenant_ids(&["1"])).await.unwrap();
        let query = found.get(0).unwrap().column("query").unwrap();
        assert!(query.ends_with(" = any($1)"), "{query}");
    }
}

#[tokio::test]
async fn some_tenants_of_a_table_that_changes_are_read_as_it_is_now() {
    let server = support::database().await;
    server
        .execute("create table tenants (id int, zone text); insert into tenants values (1, 'a')")
        .await;
    let one = DatabaseSettings { max_connections: NonZeroU32::MIN, ..settings(&server.url()) };
    let sql = "select * from tenants";
    let changed = [
        ("alter table tenants add plan text default 'free'", "1", vec!["zone", "plan"]),
        ("alter table tenants rename zone to region", "1", vec!["region", "plan"]),
        (
            "alter table tenants alter id type bigint; insert into tenants values (3000000000, 'b')",
            "3000000000",
            vec!["region", "plan"],
        ),
        ("alter table tenants drop plan", "1", vec!["region"]),
        ("alter table tenants alter id type text", "3000000000", vec!["region"]),
        ("insert into tenants values ('x')", "x", vec!["region"]),
    ];
    // With a connection that knows only this query, and with one that knows both kinds of query.
    for knows_both in [false, true] {
        let source = connect(one.clone(), sql).await;
        assert_eq!(source.tenants().await.unwrap().len(), 1);
        if knows_both {
            assert_eq!(among(&source, &["1"]).await, ["1"]);
        }
        for (change, id, columns) in &changed {
            server.execute(change).await;
            let found = source.tenants_among(&tenant_ids(&[id])).await.unwrap();
            assert_eq!(
                found.iter().map(|tenant| tenant.id().to_owned()).collect::<Vec<_>>(),
                [*id]
            );
            assert_eq!(&found.column_names().collect::<Vec<_>>(), columns, "{change}");
            if knows_both {
                assert_eq!(among(&source, &["1"]).await, ["1"]);
            }
        }
        server
            .execute(
                "drop table tenants; create table tenants (id int, zone text);
                 insert into tenants values (1, 'a')",
            )
            .await;
    }
}

#[tokio::test]
async fn reading_some_tenants_fails_as_reading_all_does() {
    let server = support::database().await;
    let some = tenant_ids(&["1"]);
    let cases = [
        ("select 1.5 as id", SourceErrorKind::Definition, "hint: cast it in `tenants.sql`"),
        (
            "select id from tenant",
            SourceErrorKind::Definition,
            "relation \"tenant\" does not exist (42P01) at character 16 of the query",
        ),
        ("select", SourceErrorKind::Definition, "the tenant query returns no column"),
        (
            "select n / (n - 1) from generate_series(1, 2) n",
            SourceErrorKind::Data,
            "division by zero (22012)",
        ),
        (
            "select unnest(array[1, 2, 1])",
            SourceErrorKind::Data,
            "the tenant id `1` comes more than once",
        ),
    ];
    for (sql, kind, end) in cases {
        let source = connect(settings(&server.url()), sql).await;
        let error = source.tenants_among(&some).await.unwrap_err();
        assert_eq!(error.kind, kind, "{sql}: {error}");
        assert!(error.message.starts_with("could not read the tenants: "), "{error}");
        assert!(error.message.ends_with(end), "{error}");
    }

    let short = Duration::from_millis(300);
    let mut past = server.connect().await;
    let bounded = DatabaseSettings { statement_timeout: short, ..settings(&server.url()) };
    let source = connect(bounded, "select 1 as id, pg_sleep(3000)::text").await;
    let error = source.tenants_among(&some).await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Timeout, "{error}");
    ended(&mut past).await;

    let proxy = Proxy::postgres(support::postgres()).await;
    let through = server.url_through(&proxy);
    let source =
        connect(DatabaseSettings { statement_timeout: short, ..settings(&through) }, NUMBERS).await;
    assert_eq!(among(&source, &["1", "10"]).await, ["1"]);
    proxy.set(Mode::Stall);
    let error = source.tenants_among(&some).await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Unavailable, "{error}");
    proxy.set(Mode::Pass);
    assert_eq!(among(&source, &["1", "10"]).await, ["1"]);
    proxy.cut();
    proxy.set(Mode::Refuse);
    let error = source.tenants_among(&some).await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Unavailable, "{error}");
}
