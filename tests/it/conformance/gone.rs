//! Shared keys that are gone from a tenant, as the triggers name them on a real server.

use std::collections::BTreeSet;
use std::sync::Arc;

use preheat::adapter::postgres::{Database, Done, Standing, uninstall_sql};
use preheat::domain::change::{Change, GoneValues, Via};
use preheat::domain::job::{Job, Table};

use super::changes::{
    TENANTS, Watch, both_ways, by_column, by_sql, install, install_sql, job_with, of, plain,
    sources, sources_of, standing, whole, writer,
};
use super::postgres::{settings, source};
use super::{batch, job, read};
use crate::support;

const PETS: &str = "
  create table tenants (id bigint primary key);
  create table pets (id int primary key, tenant_id bigint, n int not null default 0);
";

/// A table with a column that is part of shared keys.
fn with_key(table: Table, column: &str) -> Table {
    Table { key: Some(column.to_owned()), ..table }
}

fn pets() -> Table {
    with_key(plain("pets"), "id")
}

/// The values of the only column that a statement names as gone, sorted. The notification of the tenants
/// comes first.
async fn gone(watch: &mut Watch, sql: &str) -> Vec<String> {
    let told = watch.tells(sql).await;
    let mut tenants = false;
    let mut gone = Vec::new();
    for change in told {
        let Change { source, tenants: of_change, gone: mut values, is_fenced: _ } = change;
        assert_eq!(source, watch.sources[0].id);
        if values.is_empty() {
            tenants = true;
            continue;
        }
        assert!(tenants, "{sql}: the fences move first");
        assert_eq!(of_change, of(&[]), "a worker that knows of no keys warms nobody for it");
        let (_column, some) = values.pop_first().unwrap();
        assert!(values.is_empty() && some.len() <= 1_000, "{sql}");
        gone.extend(some);
    }
    gone.sort();
    gone
}

async fn keys_of_rows_that_are_gone_from_a_tenant_are_named(via: Via) {
    let mut watch = Watch::new(via, PETS, &[pets()]).await;
    let cases: [(&str, &[&str]); 19] = [
        ("insert into pets select n, n % 3 from generate_series(1, 20) n", &[]),
        ("update pets set n = n + 1", &[]),
        ("update pets set n = 7, tenant_id = tenant_id, id = id where id < 5", &[]),
        ("delete from pets where id = 1", &["1"]),
        ("delete from pets where id = 1", &[]),
        ("update pets set tenant_id = 70 where id in (2, 3)", &["2", "3"]),
        ("update pets set id = 40 where id = 4", &["4"]),
        ("update pets set id = id + 100 where id between 5 and 7", &["5", "6", "7"]),
        ("update pets set tenant_id = null where id = 8", &["8"]),
        ("delete from pets where id = 8", &[]),
        // Two rows swap their tenants.
        (
            "update pets set tenant_id = case id when 2 then 1 else 70 end where id in (2, 40)",
            &["2", "40"],
        ),
        ("begin; delete from pets where id = 9; insert into pets values (9, 70); commit", &["9"]),
        ("begin; delete from pets where id = 9; rollback", &[]),
        (
            "insert into pets values (9, 72), (90, 72) on conflict (id) \
             do update set tenant_id = excluded.tenant_id",
            &["9"],
        ),
        ("insert into pets values (9, 73) on conflict do nothing", &[]),
        (
            "merge into pets using (values (9, 1), (90, 2)) as new (id, n) on pets.id = new.id \
             when matched and new.n = 1 then delete when matched then update set tenant_id = 1",
            &["9", "90"],
        ),
        (
            "with moved as (delete from pets where id = 90 returning tenant_id) \
             insert into pets select 91, tenant_id from moved",
            &["90"],
        ),
        ("delete from pets where id in (10, 11)", &["10", "11"]),
        ("truncate pets", &[]),
    ];
    for (sql, expected) in cases {
        assert_eq!(gone(&mut watch, sql).await, expected, "{sql}");
    }
}

async fn keys_are_named_in_pieces_up_to_a_bound(via: Via) {
    let tables = "create table tenants (id bigint primary key); \
                  create table pets (id uuid primary key, tenant_id bigint)";
    let mut watch = Watch::new(via, tables, &[pets()]).await;
    let fill = "insert into pets select gen_random_uuid(), n % 5 from generate_series(1, 1200) n";
    for (sql, most) in [("delete from pets", 1_000), ("update pets set tenant_id = 7", 1_000)] {
        watch.execute(fill).await;
        watch.told().await;
        let told = watch.tells(sql).await;
        let pieces = told.iter().filter(|change| !change.gone.is_empty()).count();
        assert!((5..10).contains(&pieces), "{pieces} notifications");
        let named = told.iter().flat_map(|change| change.gone.values().flatten());
        assert_eq!(named.collect::<BTreeSet<_>>().len(), most, "{sql}");
        watch.execute("truncate pets").await;
        watch.told().await;
    }
    watch.execute(fill).await;
    watch.told().await;
    let some = "delete from pets where id in (select id from pets limit 300)";
    assert_eq!(gone(&mut watch, some).await.len(), 300);
}

/// The texts of a query's key columns, as preheat reads them.
async fn as_preheat_reads(database: &Arc<Database>) -> Vec<String> {
    let source = source(Arc::clone(database), TENANTS);
    let job = job("select tenant_id, id from pets where tenant_id = any($1)", &["pet:{id}"]);
    let rows = read(&source, &job, &batch(&["7"]), &[]).await.unwrap();
    let mut keys: Vec<_> =
        rows.into_iter().map(|(_, _, mut keys)| keys.remove(0).unwrap()).collect();
    keys.sort();
    keys
}

async fn values_are_named_as_preheat_writes_them_into_keys(via: Via) {
    let odd = "te'n:a\"nt {*} %41 \\ \t\n é\u{2028}💧";
    let cases = [
        ("uuid", vec!["'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"]),
        ("smallint", vec!["-7", "7"]),
        ("bigint", vec!["9007199254740993"]),
        ("text", vec!["$$ x $$", "''", "E'\\x01'", "'\"}],'", "'null'"]),
        ("text", vec!["$odd$"]),
        ("varchar(20)", vec!["'a '", "'A'"]),
        ("char(4)", vec!["'ab'"]),
        ("citext", vec!["'Luna'"]),
        ("pet_key", vec!["42"]),
        ("mood", vec!["'so so'"]),
        ("numeric", vec!["1.50", "-0.001", "1e30"]),
        ("boolean", vec!["true", "false"]),
    ];
    for (ty, values) in cases {
        let tables = format!(
            "create extension if not exists citext; create domain pet_key as int;
             create type mood as enum ('so so');
             create table tenants (id bigint primary key);
             create table pets (id {ty}, tenant_id bigint)"
        );
        let mut watch = Watch::new(via, &tables, &[pets()]).await;
        for value in &values {
            let value = value.replace("$odd$", &format!("$odd${odd}$odd$"));
            // An application's session may write some types in another form.
            let sql = format!("set bytea_output = escape; insert into pets values ({value}, 7)");
            watch.execute(&sql).await;
        }
        watch.told().await;
        let expected = as_preheat_reads(&watch.database).await;
        assert_eq!(expected.len(), values.len());
        assert_eq!(gone(&mut watch, "delete from pets").await, expected, "{ty} {values:?}");
    }
}

async fn a_value_of_another_text_is_another_key_even_where_the_type_takes_them_for_equal(via: Via) {
    let tables = "create extension if not exists citext;
        create table tenants (id bigint primary key);
        create table pets (id citext primary key, tenant_id bigint)";
    let mut watch = Watch::new(via, tables, &[pets()]).await;
    watch.execute("insert into pets values ('luna', 7)").await;
    watch.told().await;
    assert_eq!(gone(&mut watch, "update pets set id = 'Luna'").await, ["luna"]);
}

async fn a_value_that_fills_a_notification_is_left_to_its_ttl_and_takes_no_other_with_it(via: Via) {
    let tables = "create table tenants (id bigint primary key); \
                  create table pets (id text, tenant_id bigint)";
    let mut watch = Watch::new(via, tables, &[pets()]).await;
    let values = "insert into pets select repeat('x', 2000), 7 union all \
         select repeat(chr(1), 300), 7 union all select n || repeat('y', 900), 7 from generate_series(1, 50) n";
    watch.execute(values).await;
    watch.told().await;
    let named = gone(&mut watch, "delete from pets").await;
    assert_eq!(named.len(), 50);
    assert!(named.iter().all(|value| value.ends_with('y')));
}

async fn several_columns_of_a_table_may_stand_in_keys_and_have_names_of_any_kind(via: Via) {
    let tables = "create table tenants (id bigint primary key);
        create table \"Pe'ts\" (id int, \"ch\"\"ip'{}\" text, \"Te'nant\" bigint)";
    let table = by_column("Pe'ts", "Te'nant");
    let jobs = ["id", "ch\"ip'{}", "id"].map(|column| job_with(with_key(table.clone(), column)));
    let mut watch = Watch::of(via, tables, sources_of(jobs), TENANTS).await;
    assert_eq!(watch.sources.len(), 1);
    watch.execute("insert into \"Pe'ts\" values (1, 'a', 7), (2, null, 7)").await;
    watch.told().await;
    let told = watch.tells("delete from \"Pe'ts\"").await;
    let mut named = GoneValues::new();
    for change in told {
        named.extend(change.gone);
    }
    let texts = |values: &[&str]| of(values).unwrap();
    let expected = [("id".to_owned(), texts(&["1", "2"])), ("ch\"ip'{}".to_owned(), texts(&["a"]))];
    assert_eq!(named, GoneValues::from(expected));
    let again = install(&watch.database, &watch.sources, TENANTS).await.unwrap();
    assert!(again.0.iter().all(|source| source.done == Done::AsItWas), "{again:?}");
}

async fn where_a_query_finds_the_tenants_deleted_rows_and_other_values_are_named(via: Via) {
    let tables = "create table tenants (id bigint primary key);
        create table owners (id int primary key, tenant_id bigint);
        create table pets (id int, owner_id int);
        insert into owners values (1, 10), (2, 20)";
    let query = "select owners.tenant_id from changed join owners on owners.id = changed.owner_id";
    let mut watch = Watch::new(via, tables, &[with_key(by_sql("pets", query), "id")]).await;
    for (sql, expected) in [
        ("insert into pets values (1, 1), (2, 1), (3, 2)", vec![]),
        ("update pets set owner_id = 2 where id = 1", vec![]),
        ("update pets set id = 4 where id = 3", vec!["3"]),
        ("delete from pets", vec!["1", "2", "4"]),
    ] {
        assert_eq!(gone(&mut watch, sql).await, expected, "{sql}");
    }
}

async fn rows_of_partitions_are_named_whoever_they_are_written_through(via: Via) {
    let tables = "create table tenants (id bigint primary key);
        create table pets (id int, tenant_id bigint, day int) partition by range (day);
        create table pets_1 partition of pets for values from (0) to (10);
        create table pets_2 partition of pets for values from (10) to (20)";
    let mut watch = Watch::new(via, tables, &[pets()]).await;
    for (sql, expected) in [
        ("insert into pets select n, n, n from generate_series(1, 19) n", vec![]),
        ("delete from pets where id in (1, 11)", vec!["1", "11"]),
        ("delete from pets_1 where id = 2", vec!["2"]),
        ("update pets_2 set tenant_id = 70 where id = 12", vec!["12"]),
        // From one partition to another: with the same tenant, and with another.
        ("update pets set day = 15 where id = 3", vec![]),
        ("update pets set day = 15, tenant_id = 70 where id in (4, 13)", vec!["13", "4"]),
        ("truncate pets_2", vec![]),
    ] {
        assert_eq!(gone(&mut watch, sql).await, expected, "{sql}");
    }
}

async fn a_write_needs_no_right_and_never_fails_for_the_sake_of_a_key(via: Via) {
    let mut watch = Watch::new(via, PETS, &[pets()]).await;
    let role = writer(&watch.server, "pets").await;
    watch.execute("insert into pets values (1, 7), (2, 7), (3, 7)").await;
    watch.told().await;
    assert_eq!(
        gone(&mut watch, &format!("set role {role}; delete from pets where id = 1")).await,
        ["1"]
    );
    watch.execute("alter table pets rename id to number").await;
    assert!(gone(&mut watch, "delete from pets where number = 2").await.is_empty());
    assert_eq!(watch.ids("update pets set tenant_id = 8").await, [of(&["7", "8"])]);
    assert!(watch.troubles.lock().unwrap().is_empty(), "the tenants are known");
    watch.execute(&format!("drop owned by {role}; drop role {role}")).await;
}

async fn triggers_that_name_no_keys_are_noticed_and_upgraded(via: Via) {
    let without = sources(&[plain("pets")]);
    let mut watch = Watch::of(via, PETS, without.clone(), TENANTS).await;
    let with = sources(&[pets()]);
    assert_eq!(with[0].id, without[0].id, "they are heard all the same");
    let lacks = Standing { without_keys: vec!["pets".to_owned()], ..whole("pets") };
    assert_eq!(standing(&watch.database, &with).await, lacks);
    watch.execute("insert into pets values (1, 7), (2, 7), (3, 7)").await;
    watch.told().await;
    assert!(gone(&mut watch, "delete from pets where id = 1").await.is_empty());

    let (done, _) = install(&watch.database, &with, TENANTS).await.unwrap();
    assert_eq!((done[0].done, done[0].keys.as_slice()), (Done::Mended, &["id".to_owned()][..]));
    assert_eq!(standing(&watch.database, &with).await, whole("pets"));
    assert_eq!(standing(&watch.database, &without).await, whole("pets"), "more is no fault");
    assert_eq!(gone(&mut watch, "delete from pets where id = 2").await, ["2"]);

    // The same triggers, from the script for migrations.
    watch.execute(&uninstall_sql()).await;
    watch.execute(&install_sql(via, &with)).await;
    watch.execute(&install_sql(via, &with)).await;
    let (done, _) = install(&watch.database, &with, TENANTS).await.unwrap();
    assert_eq!(done[0].done, Done::AsItWas);
    assert_eq!(gone(&mut watch, "delete from pets where id = 3").await, ["3"]);
}

#[tokio::test]
async fn a_key_column_that_cannot_be_is_a_problem_of_the_jobs_that_name_it() {
    let server = support::database().await;
    server
        .execute(
            "create table tenants (id bigint); create table pets (id int, tenant_id bigint, \
             born date, seen timestamptz, raw bytea, weight float8)",
        )
        .await;
    let database = Database::connect(settings(&server.url())).await.unwrap();
    let columns = ["id", "chip", "born", "seen", "raw", "weight"];
    let jobs: Vec<Job> = columns.map(|column| job_with(with_key(plain("pets"), column))).into();
    let error = install(&database, &sources_of(jobs), TENANTS).await.unwrap_err();
    insta::assert_snapshot!(error, @r#"
    `born` of table `pets` is date, whose text depends on the session that writes: a key that is gone would not be found by it; hint: take `key` out; these keys live until their TTL then
    the table `pets` has no column `chip`; hint: say which column's value stands in the shared key: `{ name = "pets", key = "…" }`
    `raw` of table `pets` is bytea, whose text depends on the session that writes: a key that is gone would not be found by it; hint: take `key` out; these keys live until their TTL then
    `seen` of table `pets` is timestamp with time zone, whose text depends on the session that writes: a key that is gone would not be found by it; hint: take `key` out; these keys live until their TTL then
    `weight` of table `pets` is double precision, whose text depends on the session that writes: a key that is gone would not be found by it; hint: take `key` out; these keys live until their TTL then
    "#);

    let chip = sources(&[with_key(plain("pets"), "chip")]);
    let mut connection = server.connect().await;
    let printed = sqlx::raw_sql(sqlx::AssertSqlSafe(install_sql(Via::Notify, &chip)));
    let failed = printed.execute(&mut connection).await.unwrap_err().to_string();
    assert!(failed.contains("column changed.chip does not exist"), "{failed}");
}

both_ways! {
    keys_of_rows_that_are_gone_from_a_tenant_are_named,
    keys_are_named_in_pieces_up_to_a_bound,
    values_are_named_as_preheat_writes_them_into_keys,
    a_value_of_another_text_is_another_key_even_where_the_type_takes_them_for_equal,
    a_value_that_fills_a_notification_is_left_to_its_ttl_and_takes_no_other_with_it,
    several_columns_of_a_table_may_stand_in_keys_and_have_names_of_any_kind,
    where_a_query_finds_the_tenants_deleted_rows_and_other_values_are_named,
    rows_of_partitions_are_named_whoever_they_are_written_through,
    a_write_needs_no_right_and_never_fails_for_the_sake_of_a_key,
    triggers_that_name_no_keys_are_noticed_and_upgraded,
}
