//! What the triggers tell of each statement.

use std::collections::BTreeMap;

use preheat::adapter::postgres::{Done, Standing};
use preheat::domain::change::{Change, TouchedTenants, Via};
use preheat::domain::job::Job;

use super::{
    BY_STAFF, EVENTS, STAFF, TABLES, TENANTS, Watch, both_ways, by_column, by_sql, install,
    job_with, of, plain, sources, sources_of, standing, whole, writer,
};
use crate::conformance::fleet_job;

async fn every_statement_tells_whose_rows_it_touched(via: Via) {
    let mut watch = Watch::new(via, TABLES, &[plain("items")]).await;
    let cases: [(&str, &[&[&str]]); 16] = [
        ("insert into items values (1, 7), (2, 7), (3, 8)", &[&["7", "8"]]),
        ("insert into items values (4, null)", &[]),
        ("update items set n = 1 where id = 1", &[&["7"]]),
        ("update items set n = n where id = 1", &[&["7"]]),
        ("update items set n = 2", &[&["7", "8"]]),
        ("update items set tenant_id = 9 where id = 3", &[&["8", "9"]]),
        ("update items set tenant_id = -1 where id = 4", &[&["-1"]]),
        ("update items set n = 3 where id = 99", &[]),
        ("delete from items where id = 99", &[]),
        ("insert into items select 5, 1 where false", &[]),
        ("delete from items where id in (2, 3)", &[&["7", "9"]]),
        (
            "insert into items values (1, 70), (6, 71) on conflict (id) do update set n = 5",
            &[&["71"], &["7"]],
        ),
        ("insert into items values (1, 70) on conflict do nothing", &[]),
        (
            "merge into items using (values (1), (7)) as new (id) on items.id = new.id \
             when matched then delete when not matched then insert values (new.id, 72)",
            &[&["7"], &["72"]],
        ),
        (
            "with gone as (delete from items where id = 7 returning tenant_id) \
             insert into items select 8, tenant_id from gone",
            &[&["72"]],
        ),
        ("begin; insert into items values (10, 10); rollback", &[]),
    ];
    for (sql, expected) in cases {
        let mut told = watch.ids(sql).await;
        let mut expected: Vec<_> = expected.iter().map(|ids| of(ids)).collect();
        told.sort();
        expected.sort();
        assert_eq!(told, expected, "{sql}");
    }
    assert_eq!(watch.ids("truncate items").await, [None]);
    let mut copying = watch.server.connect().await;
    let mut copy = copying.copy_in_raw("copy items from stdin").await.unwrap();
    copy.send("1\t5\t0\n2\t6\t0\n3\t5\t0\n".as_bytes()).await.unwrap();
    copy.finish().await.unwrap();
    assert_eq!(watch.ids("select 1").await, [of(&["5", "6"])]);
}

async fn a_burst_in_one_transaction_is_one_notification_a_tenant(via: Via) {
    let mut watch = Watch::new(via, TABLES, &[plain("items")]).await;
    let told =
        watch.ids("insert into items select n, n % 40 from generate_series(1, 100000) n").await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].as_ref().unwrap().len(), 40);
    let told = watch
        .ids(
            "do $$ begin for i in 1..20000 loop \
             update items set n = n + 1 where id = i; end loop; end $$",
        )
        .await;
    let mut tenants: Vec<_> = told.into_iter().map(|ids| ids.unwrap().join(",")).collect();
    tenants.sort_by_key(|id| id.parse::<u32>().unwrap());
    assert_eq!(tenants, (0..40).map(|id| id.to_string()).collect::<Vec<_>>());
}

async fn many_tenants_are_told_in_pieces(via: Via) {
    let mut watch = Watch::new(via, TABLES, &[plain("items")]).await;
    let told = watch.ids("insert into items select n, n from generate_series(1, 10000) n").await;
    assert!((8..12).contains(&told.len()), "{} notifications", told.len());
    let mut ids: Vec<u32> =
        told.into_iter().flatten().flatten().map(|id| id.parse().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=10_000).collect::<Vec<_>>());
}

async fn ids_are_told_as_preheat_reads_them(via: Via) {
    let odd = "te'n:a\"nt {*} \\ \t\n é\u{2028}💧";
    let cases = [
        ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ("smallint", "-7", "-7"),
        ("bigint", "9007199254740993", "9007199254740993"),
        ("text", &format!("$$ {odd} $$"), &format!(" {odd} ")),
        ("text", "''", ""),
        ("varchar(20)", "'a '", "a "),
        ("char(4)", "'ab'", "ab  "),
        ("tenant_key", "42", "42"),
    ];
    for (ty, value, expected) in cases {
        let tables = format!(
            "create domain tenant_key as int; create table tenants (id {ty} primary key); \
             create table items (tenant_id {ty}, n int); insert into tenants values ({value})"
        );
        let mut watch = Watch::of(via, &tables, sources(&[plain("items")]), TENANTS).await;
        let told = watch.ids(&format!("insert into items values ({value}, 1)")).await;
        assert_eq!(told, [of(&[expected])], "{ty}");
    }
}

async fn an_id_too_large_for_a_notification_is_any_tenant(via: Via) {
    let tables = "create table tenants (id text); create table items (tenant_id text)";
    let mut watch = Watch::of(via, tables, sources(&[plain("items")]), TENANTS).await;
    assert_eq!(watch.ids("insert into items values (repeat('x', 9000))").await, [None]);
    // Each character takes six bytes in JSON.
    assert_eq!(watch.ids("insert into items values (repeat(chr(1), 1500))").await, [None]);
    let told = watch.ids("insert into items values (repeat('x', 7800)), ('y')").await;
    assert_eq!(told, [of(&[&"x".repeat(7800), "y"])]);
}

async fn tables_have_names_of_any_kind(via: Via) {
    let tables = "create schema \"My Shop\"; create table tenants (id bigint);
      create table \"My Shop\".\"Order \"\"Items\"\"'s\" (\"Te'nant\" bigint);
      create table \"$preheat$\" (tenant_id bigint)";
    let watched = [by_column("My Shop.Order \"Items\"'s", "Te'nant"), plain("$preheat$")];
    let mut watch = Watch::new(via, tables, &watched).await;
    let (items, dollars) = (watch.id("My Shop.Order \"Items\"'s"), watch.id("$preheat$"));
    let told = watch
        .tells(
            "insert into \"My Shop\".\"Order \"\"Items\"\"'s\" values (1); \
             insert into \"$preheat$\" values (2)",
        )
        .await;
    let change = |source, ids: &[&str]| Change::new(source, of(ids));
    assert_eq!(told, [change(items, &["1"]), change(dollars, &["2"])]);
    let again = install(&watch.database, &watch.sources, TENANTS).await.unwrap();
    assert!(again.0.iter().all(|source| source.done == Done::AsItWas), "{again:?}");
}

async fn tenants_may_be_found_by_a_query(via: Via) {
    let query = BY_STAFF.split_once(';').unwrap().0;
    let ends = ["", " ; ", " -- a comment", "; -- a comment", ";\n/* a */ -- comment\n"];
    for end in ends {
        let watched = sources(&[by_sql("slots", &format!("{query}{end}"))]);
        let mut watch = Watch::of(via, STAFF, watched, &format!("{TENANTS}{end}")).await;
        let told = watch.ids("insert into slots values (1, 1), (2, 1), (3, 2)").await;
        assert_eq!(told, [of(&["10", "20"])]);
        // Both the old row and the new row count.
        assert_eq!(
            watch.ids("update slots set staff_id = 2 where id = 1").await,
            [of(&["10", "20"])]
        );
        assert_eq!(watch.ids("delete from slots where id = 2").await, [of(&["10"])]);
        assert!(watch.ids("insert into slots values (4, 3), (5, 99)").await.is_empty());
        assert_eq!(watch.ids("truncate slots").await, [None]);
    }
}

/// The example of the docs, for tenants to which the application keeps writing.
const WHAT_MATTERS: &str = "select id from changed group by id \
                            having count(*) = 1 or count(distinct (status, timezone)) > 1";

async fn a_query_may_tell_of_what_matters_only(via: Via) {
    let people =
        "create table tenants (id bigint primary key, status text, timezone text, seen int)";
    let mut watch = Watch::new(via, people, &[by_sql("tenants", WHAT_MATTERS)]).await;
    let told = watch.ids("insert into tenants values (1, 'active', null, 0), (2, 'off', 'UTC', 0)");
    assert_eq!(told.await, [of(&["1", "2"])]);
    assert!(watch.ids("update tenants set seen = seen + 1").await.is_empty());
    let told = watch.ids("update tenants set seen = 0, status = 'active'").await;
    assert_eq!(told, [of(&["2"])]);
    assert_eq!(watch.ids("update tenants set timezone = 'UTC'").await, [of(&["1"])]);
    assert_eq!(watch.ids("update tenants set id = 3 where id = 2").await, [of(&["2", "3"])]);
    assert_eq!(watch.ids("delete from tenants where id = 1").await, [of(&["1"])]);
}

async fn what_a_query_names_is_what_it_named_when_it_was_installed(via: Via) {
    let mut watch =
        Watch::new(via, STAFF, &[by_sql("slots", BY_STAFF.split_once(';').unwrap().0)]).await;
    let elsewhere = "create schema other; create table other.staff (id int, tenant_id bigint); \
                     insert into other.staff values (1, 666); \
                     create temporary table staff (id int, tenant_id bigint); \
                     set search_path = other; insert into public.slots values (1, 1)";
    assert_eq!(watch.ids(elsewhere).await, [of(&["10"])]);
}

async fn a_fleet_needs_no_tenant(via: Via) {
    let fleet = Job { tables: vec![plain("rates")], ..fleet_job("", &["rates"]) };
    let tables = "create table rates (n int)";
    let mut watch = Watch::of(via, tables, sources_of([fleet]), "no query at all").await;
    for (sql, count) in [
        ("insert into rates values (1), (2)", 1),
        ("update rates set n = 3", 1),
        ("update rates set n = 3 where n = 7", 0),
        ("delete from rates where n = 7", 0),
        ("delete from rates", 1),
        ("truncate rates", 1),
        ("insert into rates values (1); insert into rates values (2)", 1),
    ] {
        assert_eq!(watch.ids(sql).await, vec![None; count], "{sql}");
    }
}

async fn a_table_may_be_watched_in_several_ways(via: Via) {
    let fleet = Job { tables: vec![plain("items")], ..fleet_job("", &["all"]) };
    let watched = [plain("items"), by_column("items", "n"), plain("items")];
    let jobs = watched.into_iter().map(job_with).chain([fleet]);
    let sources = sources_of(jobs);
    assert_eq!(sources.len(), 3);
    let mut watch = Watch::of(via, TABLES, sources, TENANTS).await;
    let told = watch.tells("insert into items values (1, 7, 8)").await;
    let told: BTreeMap<_, _> =
        told.into_iter().map(|change| (change.source, change.tenants)).collect();
    for source in &watch.sources {
        let expected = match &source.tenants {
            TouchedTenants::Column(column) if column == "n" => of(&["8"]),
            TouchedTenants::Column(_) => of(&["7"]),
            TouchedTenants::Sql(_) | TouchedTenants::Global => None,
        };
        assert_eq!(told[&source.id], expected, "{source:?}");
    }
}

async fn whoever_writes_needs_no_right_of_ours(via: Via) {
    let mut watch = Watch::new(via, TABLES, &[plain("items")]).await;
    let role = writer(&watch.server, "items").await;
    watch.execute("alter default privileges revoke execute on functions from public").await;
    for (sql, expected) in [
        ("insert into items values (1, 7)", of(&["7"])),
        ("update items set tenant_id = 8", of(&["7", "8"])),
        ("delete from items", of(&["8"])),
        ("truncate items", None),
    ] {
        let told = watch.ids(&format!("set role {role}; {sql}")).await;
        assert_eq!(told, [expected], "{sql}");
    }
    watch.execute(&format!("drop owned by {role}; drop role {role}")).await;
}

async fn a_write_never_fails_for_the_feed(via: Via) {
    let mut watch =
        Watch::new(via, STAFF, &[by_sql("slots", BY_STAFF.split_once(';').unwrap().0)]).await;
    let source = watch.id("slots");
    let role = writer(&watch.server, "slots").await;
    // The role may not read `staff`.
    assert_eq!(
        watch.ids(&format!("set role {role}; insert into slots values (1, 1)")).await,
        [None]
    );
    watch.execute(&format!("grant select on staff to {role}")).await;
    assert_eq!(
        watch.ids(&format!("set role {role}; insert into slots values (2, 2)")).await,
        [of(&["20"])]
    );
    watch.execute("alter table slots rename staff_id to who").await;
    assert_eq!(watch.ids("insert into slots values (3, 1)").await, [None]);
    let troubles = watch.troubles.lock().unwrap().clone();
    let code = |code: &str| (source.clone(), code.to_owned());
    assert_eq!(troubles, [code("42501"), code("42703")]);
    watch.execute(&format!("drop owned by {role}; drop role {role}")).await;
}

async fn partitions_are_watched_whoever_they_are_written_through(via: Via) {
    let mut watch = Watch::new(via, EVENTS, &[plain("events")]).await;
    assert_eq!(watch.ids("insert into events values (1, 1), (2, 10)").await, [of(&["1", "2"])]);
    assert_eq!(watch.ids("insert into events_2 values (3, 10)").await, [of(&["3"])]);
    assert_eq!(watch.ids("insert into events_2_10 values (4, 10)").await, [of(&["4"])]);
    // A row moves from one partition to another.
    assert_eq!(watch.ids("update events set day = 10 where tenant_id = 1").await, [of(&["1"])]);
    assert_eq!(watch.ids("truncate events_1").await, [None]);
    assert_eq!(watch.ids("truncate events").await, [None]);

    let new = "create table events_3 (tenant_id bigint, day int); \
               alter table events attach partition events_3 for values from (20) to (30)";
    assert!(watch.ids(new).await.is_empty());
    assert_eq!(watch.ids("insert into events values (5, 20)").await, [of(&["5"])]);
    assert!(watch.ids("insert into events_3 values (6, 20)").await.is_empty());
    let partly = Standing { partly: vec!["events".to_owned()], ..Standing::default() };
    assert_eq!(standing(&watch.database, &watch.sources).await, partly);

    let (installed, _) = install(&watch.database, &watch.sources, TENANTS).await.unwrap();
    assert_eq!((installed[0].done, installed[0].relations), (Done::Mended, 5));
    assert_eq!(watch.ids("insert into events_3 values (7, 20)").await, [of(&["7"])]);
    assert_eq!(standing(&watch.database, &watch.sources).await, whole("events"));

    // A detached partition is no longer watched.
    watch.execute("alter table events detach partition events_3").await;
    let (installed, removed) = install(&watch.database, &watch.sources, TENANTS).await.unwrap();
    assert_eq!((installed[0].relations, removed.triggers), (4, 4));
}

async fn children_are_watched_like_their_parents(via: Via) {
    let tables = "create table tenants (id bigint primary key); \
                  create table animals (tenant_id bigint, name text); \
                  create table dogs (tail int) inherits (animals)";
    let mut watch = Watch::new(via, tables, &[plain("animals")]).await;
    assert_eq!(watch.ids("insert into dogs values (1, 'a', 3)").await, [of(&["1"])]);
    assert_eq!(watch.ids("insert into animals values (2, 'b')").await, [of(&["2"])]);
    assert_eq!(watch.ids("update animals set name = 'c'").await, [of(&["1", "2"])]);
    assert_eq!(watch.ids("update only animals set name = 'd'").await, [of(&["2"])]);
    assert_eq!(watch.ids("delete from animals").await, [of(&["1", "2"])]);
}

async fn rows_that_go_with_their_parent_are_told(via: Via) {
    let tables = "create table tenants (id bigint primary key); \
                  create table groups (id int primary key); \
                  create table items (tenant_id bigint, group_id int references groups on delete cascade)";
    let mut watch = Watch::new(via, tables, &[plain("items")]).await;
    watch.execute("insert into groups values (1); insert into items values (7, 1), (8, 1)").await;
    assert_eq!(watch.told().await.len(), 1);
    assert_eq!(watch.ids("delete from groups").await, [of(&["7", "8"])]);
}

both_ways! {
    every_statement_tells_whose_rows_it_touched,
    a_burst_in_one_transaction_is_one_notification_a_tenant,
    many_tenants_are_told_in_pieces,
    ids_are_told_as_preheat_reads_them,
    an_id_too_large_for_a_notification_is_any_tenant,
    tables_have_names_of_any_kind,
    tenants_may_be_found_by_a_query,
    a_query_may_tell_of_what_matters_only,
    what_a_query_names_is_what_it_named_when_it_was_installed,
    a_fleet_needs_no_tenant,
    a_table_may_be_watched_in_several_ways,
    whoever_writes_needs_no_right_of_ours,
    a_write_never_fails_for_the_feed,
    partitions_are_watched_whoever_they_are_written_through,
    children_are_watched_like_their_parents,
    rows_that_go_with_their_parent_are_told,
}
