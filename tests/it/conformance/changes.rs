//! The change feed on a real server: its triggers, and the listener.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use preheat::adapter::postgres::{
    self, ChangesError, Database, DatabaseSettings, Done, Installed, PostgresFeedSource, Removed,
    Security, Standing, TroubleNote, look, uninstall, uninstall_sql,
};
use preheat::domain::change::{
    Change, ChangeSource, ChangeSourceId, TouchedTenants, change_sources,
};
use preheat::domain::job::{Job, Jobs, Table};
use preheat::engine::ports::{Feed, FeedError, FeedSource};
use sqlx::{AssertSqlSafe, Executor, Row};
use tokio::time::timeout;

use super::pgbouncer::Bouncer;
use super::postgres::settings;
use super::{fleet_job, job, name};
use crate::support::proxy::{Mode, Proxy};
use crate::support::{self, LONG, eventually};

pub(super) async fn install(
    database: &Database,
    sources: &[ChangeSource],
    tenants: &str,
) -> Result<(Vec<Installed>, Removed), ChangesError> {
    postgres::install(database, sources, tenants, Security::Invoker).await
}

pub(super) fn install_sql(sources: &[ChangeSource]) -> String {
    postgres::install_sql(sources, Security::Invoker)
}

pub(super) async fn standing(database: &Database, sources: &[ChangeSource]) -> Standing {
    look(database, sources).await.unwrap().standing
}

/// The tenants of most tests: their ids are numbers.
pub(super) const TENANTS: &str = "select id from tenants";

pub(super) const TABLES: &str = "
  create table tenants (id bigint primary key);
  create table items (id int primary key, tenant_id bigint, n int not null default 0);
";

/// The sources of one job for each of these watched tables.
pub(super) fn sources(tables: &[Table]) -> Vec<ChangeSource> {
    sources_of(tables.iter().map(|table| job_with(table.clone())))
}

pub(super) fn job_with(table: Table) -> Job {
    Job { tables: vec![table], ..job("", &["{tenant_id}"]) }
}

pub(super) fn sources_of(jobs: impl IntoIterator<Item = Job>) -> Vec<ChangeSource> {
    let jobs: Jobs = (0..)
        .zip(jobs)
        .map(|(number, job)| {
            let name = name(&format!("job-{number}"));
            (name.clone(), Arc::new(Job { name, ..job }))
        })
        .collect();
    change_sources(&jobs, "tenant_id")
}

pub(super) fn plain(name: &str) -> Table {
    Table::named(name)
}

pub(super) fn by_column(name: &str, column: &str) -> Table {
    Table { tenant: Some(column.to_owned()), ..plain(name) }
}

pub(super) fn by_sql(name: &str, sql: &str) -> Table {
    Table { sql: Some(sql.to_owned()), ..plain(name) }
}

/// A database with triggers for some tables, and a connected feed.
pub(super) struct Watch {
    pub(super) server: support::Database,
    pub(super) database: Arc<Database>,
    pub(super) sources: Vec<ChangeSource>,
    pub(super) source: PostgresFeedSource,
    pub(super) feed: Box<dyn Feed>,
    pub(super) troubles: Arc<Mutex<Vec<(ChangeSourceId, String)>>>,
}

impl Watch {
    /// Creates these tables, and triggers for one job for each of the watched ones.
    pub(super) async fn new(tables: &str, watched: &[Table]) -> Self {
        Self::of(tables, sources(watched), TENANTS).await
    }

    pub(super) async fn of(tables: &str, sources: Vec<ChangeSource>, tenants: &str) -> Self {
        Self::installed(tables, sources, tenants, Security::Invoker).await
    }

    pub(super) async fn installed(
        tables: &str,
        sources: Vec<ChangeSource>,
        tenants: &str,
        security: Security,
    ) -> Self {
        let server = support::database().await;
        server.execute(tables).await;
        let database = Arc::new(Database::connect(settings(&server.url())).await.unwrap());
        postgres::install(&database, &sources, tenants, security).await.unwrap();
        let troubles = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&troubles);
        let note: TroubleNote = Arc::new(move |source, code| {
            noted.lock().unwrap().push((source.clone(), code.to_owned()));
        });
        let source = PostgresFeedSource::new(Arc::clone(&database), None, note).unwrap();
        source.watch(sources.iter().map(|source| source.id.clone()));
        let feed = source.connect().await.unwrap();
        Self { server, database, sources, source, feed, troubles }
    }

    pub(super) fn id(&self, table: &str) -> ChangeSourceId {
        let mut found = self.sources.iter().filter(|source| source.table == table);
        let source = found.next().unwrap();
        assert!(found.next().is_none(), "{table} is watched in several ways");
        source.id.clone()
    }

    pub(super) async fn execute(&self, sql: &str) {
        self.server.execute(sql).await;
    }

    /// All notifications up to a final one of our own, in order.
    pub(super) async fn told(&mut self) -> Vec<Change> {
        const LAST: &str = r#"{"source":"last-word"}"#;
        self.execute(&format!("select pg_notify('preheat_changes', '{LAST}')")).await;
        let mut told = Vec::new();
        loop {
            let some = timeout(LONG, self.feed.next()).await.unwrap().unwrap();
            assert!(!some.is_empty());
            for change in some {
                if change.source.as_str() == "last-word" {
                    return told;
                }
                told.push(change);
            }
        }
    }

    /// The notifications of a statement, or of several in one transaction.
    pub(super) async fn tells(&mut self, sql: &str) -> Vec<Change> {
        self.execute(sql).await;
        self.told().await
    }

    /// The ids in a statement's notifications, for the only watched table; each list is sorted.
    pub(super) async fn ids(&mut self, sql: &str) -> Vec<Option<Vec<String>>> {
        let source = self.sources[0].id.clone();
        let told = self.tells(sql).await;
        let of = |change: Change| {
            assert_eq!(change.source, source);
            change.tenants
        };
        told.into_iter().map(of).collect()
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as a change has them")]
pub(super) fn of(ids: &[&str]) -> Option<Vec<String>> {
    Some(ids.iter().map(|id| (*id).to_owned()).collect())
}

pub(super) fn whole(table: &str) -> Standing {
    Standing { whole: vec![table.to_owned()], ..Standing::default() }
}

/// All our triggers and functions in a database.
async fn ours(server: &support::Database) -> Vec<String> {
    let sql = "select t.tgrelid::regclass || ' ' || t.tgname || ' ' || t.tgenabled::text || ' ' \
                 || pg_get_triggerdef(t.oid) from pg_trigger t where t.tgname like 'preheat%' \
               union all \
               select concat(pg_get_functiondef(p.oid), obj_description(p.oid, 'pg_proc')) from pg_proc p \
               where p.pronamespace = to_regnamespace('preheat') \
               order by 1";
    sqlx::query_scalar(sql).fetch_all(&mut server.connect().await).await.unwrap()
}

#[tokio::test]
async fn every_statement_tells_whose_rows_it_touched() {
    let mut watch = Watch::new(TABLES, &[plain("items")]).await;
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

#[tokio::test]
async fn a_burst_in_one_transaction_is_one_notification_a_tenant() {
    let mut watch = Watch::new(TABLES, &[plain("items")]).await;
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

#[tokio::test]
async fn many_tenants_are_told_in_pieces() {
    let mut watch = Watch::new(TABLES, &[plain("items")]).await;
    let told = watch.ids("insert into items select n, n from generate_series(1, 10000) n").await;
    assert!((8..12).contains(&told.len()), "{} notifications", told.len());
    let mut ids: Vec<u32> =
        told.into_iter().flatten().flatten().map(|id| id.parse().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=10_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn ids_are_told_as_preheat_reads_them() {
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
        let mut watch = Watch::of(&tables, sources(&[plain("items")]), TENANTS).await;
        let told = watch.ids(&format!("insert into items values ({value}, 1)")).await;
        assert_eq!(told, [of(&[expected])], "{ty}");
    }
}

#[tokio::test]
async fn an_id_too_large_for_a_notification_is_any_tenant() {
    let tables = "create table tenants (id text); create table items (tenant_id text)";
    let mut watch = Watch::of(tables, sources(&[plain("items")]), TENANTS).await;
    assert_eq!(watch.ids("insert into items values (repeat('x', 9000))").await, [None]);
    // Each character takes six bytes in JSON.
    assert_eq!(watch.ids("insert into items values (repeat(chr(1), 1500))").await, [None]);
    let told = watch.ids("insert into items values (repeat('x', 7800)), ('y')").await;
    assert_eq!(told, [of(&[&"x".repeat(7800), "y"])]);
}

#[tokio::test]
async fn tables_have_names_of_any_kind() {
    let tables = "create schema \"My Shop\"; create table tenants (id bigint);
      create table \"My Shop\".\"Order \"\"Items\"\"'s\" (\"Te'nant\" bigint);
      create table \"$preheat$\" (tenant_id bigint)";
    let watched = [by_column("My Shop.Order \"Items\"'s", "Te'nant"), plain("$preheat$")];
    let mut watch = Watch::new(tables, &watched).await;
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

const STAFF: &str = "
  create table tenants (id bigint primary key);
  create table staff (id int primary key, tenant_id bigint);
  create table slots (id int, staff_id int);
  insert into staff values (1, 10), (2, 20), (3, null);
";
const BY_STAFF: &str = "select staff.tenant_id, 'more' from changed join staff \
                        on staff.id = changed.staff_id;\n-- the tenants of slots";

#[tokio::test]
async fn tenants_may_be_found_by_a_query() {
    let query = BY_STAFF.split_once(';').unwrap().0;
    let ends = ["", " ; ", " -- a comment", "; -- a comment", ";\n/* a */ -- comment\n"];
    for end in ends {
        let watched = sources(&[by_sql("slots", &format!("{query}{end}"))]);
        let mut watch = Watch::of(STAFF, watched, &format!("{TENANTS}{end}")).await;
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

#[tokio::test]
async fn a_query_may_tell_of_what_matters_only() {
    let people =
        "create table tenants (id bigint primary key, status text, timezone text, seen int)";
    let mut watch = Watch::new(people, &[by_sql("tenants", WHAT_MATTERS)]).await;
    let told = watch.ids("insert into tenants values (1, 'active', null, 0), (2, 'off', 'UTC', 0)");
    assert_eq!(told.await, [of(&["1", "2"])]);
    assert!(watch.ids("update tenants set seen = seen + 1").await.is_empty());
    let told = watch.ids("update tenants set seen = 0, status = 'active'").await;
    assert_eq!(told, [of(&["2"])]);
    assert_eq!(watch.ids("update tenants set timezone = 'UTC'").await, [of(&["1"])]);
    assert_eq!(watch.ids("update tenants set id = 3 where id = 2").await, [of(&["2", "3"])]);
    assert_eq!(watch.ids("delete from tenants where id = 1").await, [of(&["1"])]);
}

#[tokio::test]
async fn what_a_query_names_is_what_it_named_when_it_was_installed() {
    let mut watch =
        Watch::new(STAFF, &[by_sql("slots", BY_STAFF.split_once(';').unwrap().0)]).await;
    let elsewhere = "create schema other; create table other.staff (id int, tenant_id bigint); \
                     insert into other.staff values (1, 666); \
                     create temporary table staff (id int, tenant_id bigint); \
                     set search_path = other; insert into public.slots values (1, 1)";
    assert_eq!(watch.ids(elsewhere).await, [of(&["10"])]);
}

#[tokio::test]
async fn a_fleet_needs_no_tenant() {
    let fleet = Job { tables: vec![plain("rates")], ..fleet_job("", &["rates"]) };
    let tables = "create table rates (n int)";
    let mut watch = Watch::of(tables, sources_of([fleet]), "no query at all").await;
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

#[tokio::test]
async fn a_table_may_be_watched_in_several_ways() {
    let fleet = Job { tables: vec![plain("items")], ..fleet_job("", &["all"]) };
    let watched = [plain("items"), by_column("items", "n"), plain("items")];
    let jobs = watched.into_iter().map(job_with).chain([fleet]);
    let sources = sources_of(jobs);
    assert_eq!(sources.len(), 3);
    let mut watch = Watch::of(TABLES, sources, TENANTS).await;
    let told = watch.tells("insert into items values (1, 7, 8)").await;
    let told: BTreeMap<_, _> =
        told.into_iter().map(|change| (change.source, change.tenants)).collect();
    for source in &watch.sources {
        let expected = match &source.tenants {
            TouchedTenants::Column(column) if column == "n" => of(&["8"]),
            TouchedTenants::Column(_) => of(&["7"]),
            TouchedTenants::Sql(_) | TouchedTenants::Fleet => None,
        };
        assert_eq!(told[&source.id], expected, "{source:?}");
    }
}

/// A role with no right but to write to the tables, like an application's.
pub(super) async fn writer(server: &support::Database, tables: &str) -> String {
    let role = format!("writer_of_{}", server.name());
    server
        .execute(&format!(
            "create role {role}; grant insert, update, delete, truncate, select on {tables} to {role}; \
             revoke all on schema preheat from public"
        ))
        .await;
    role
}

#[tokio::test]
async fn whoever_writes_needs_no_right_of_ours() {
    let mut watch = Watch::new(TABLES, &[plain("items")]).await;
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

#[tokio::test]
async fn a_write_never_fails_for_the_feed() {
    let mut watch =
        Watch::new(STAFF, &[by_sql("slots", BY_STAFF.split_once(';').unwrap().0)]).await;
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

const EVENTS: &str = "
  create table tenants (id bigint primary key);
  create table events (tenant_id bigint, day int) partition by range (day);
  create table events_1 partition of events for values from (0) to (10);
  create table events_2 partition of events for values from (10) to (20) partition by list (day);
  create table events_2_10 partition of events_2 for values in (10);
";

#[tokio::test]
async fn partitions_are_watched_whoever_they_are_written_through() {
    let mut watch = Watch::new(EVENTS, &[plain("events")]).await;
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

#[tokio::test]
async fn children_are_watched_like_their_parents() {
    let tables = "create table tenants (id bigint primary key); \
                  create table animals (tenant_id bigint, name text); \
                  create table dogs (tail int) inherits (animals)";
    let mut watch = Watch::new(tables, &[plain("animals")]).await;
    assert_eq!(watch.ids("insert into dogs values (1, 'a', 3)").await, [of(&["1"])]);
    assert_eq!(watch.ids("insert into animals values (2, 'b')").await, [of(&["2"])]);
    assert_eq!(watch.ids("update animals set name = 'c'").await, [of(&["1", "2"])]);
    assert_eq!(watch.ids("update only animals set name = 'd'").await, [of(&["2"])]);
    assert_eq!(watch.ids("delete from animals").await, [of(&["1", "2"])]);
}

#[tokio::test]
async fn rows_that_go_with_their_parent_are_told() {
    let tables = "create table tenants (id bigint primary key); \
                  create table groups (id int primary key); \
                  create table items (tenant_id bigint, group_id int references groups on delete cascade)";
    let mut watch = Watch::new(tables, &[plain("items")]).await;
    watch.execute("insert into groups values (1); insert into items values (7, 1), (8, 1)").await;
    assert_eq!(watch.told().await.len(), 1);
    assert_eq!(watch.ids("delete from groups").await, [of(&["7", "8"])]);
}

#[tokio::test]
async fn installing_twice_is_one_install_and_locks_nothing() {
    let watch = Watch::new(TABLES, &[plain("items")]).await;
    let before = ours(&watch.server).await;
    assert_eq!(before.len(), 5);
    let mut writing = watch.server.connect().await;
    writing.execute("begin; insert into items values (1, 1)").await.unwrap();
    let (installed, removed) = install(&watch.database, &watch.sources, TENANTS).await.unwrap();
    assert_eq!(installed[0].done, Done::AsItWas);
    assert_eq!((removed.triggers, removed.functions.len()), (0, 0));
    assert_eq!(ours(&watch.server).await, before);
}

#[tokio::test]
async fn what_is_different_is_mended_and_what_nobody_needs_is_removed() {
    let watch = Watch::new(
        &(TABLES.to_owned() + "create table old (tenant_id bigint)"),
        &[plain("items"), plain("old")],
    )
    .await;
    let id = watch.id("items");
    let both = ours(&watch.server).await;
    for damage in [
        format!("drop trigger preheat_{id}_update on items"),
        format!("alter table items disable trigger preheat_{id}_truncate"),
        format!(
            "create or replace trigger preheat_{id}_insert after insert on items \
             for each statement execute function preheat.changed_{id}()"
        ),
        format!("alter function preheat.changed_{id}() security definer"),
        format!("alter function preheat.changed_{id}() reset search_path"),
        format!(
            "create or replace function preheat.changed_{id}() returns trigger language plpgsql \
             as 'begin return null; end'"
        ),
    ] {
        watch.execute(&damage).await;
        assert_ne!(ours(&watch.server).await, both, "{damage}");
        let (installed, _) = install(&watch.database, &watch.sources, TENANTS).await.unwrap();
        let done: Vec<_> = installed.iter().map(|installed| installed.done).collect();
        assert_eq!(done, [Done::Mended, Done::AsItWas], "{damage}");
        assert_eq!(ours(&watch.server).await, both, "{damage}");
    }
    let only = sources(&[plain("items")]);
    let (_, removed) = install(&watch.database, &only, TENANTS).await.unwrap();
    assert_eq!(removed.triggers, 4);
    assert_eq!(removed.functions, ["`old`: tenants by `tenant_id`"]);
    assert_eq!(ours(&watch.server).await.len(), 5);
}

#[tokio::test]
async fn uninstalling_removes_what_is_ours_and_nothing_else() {
    let watch = Watch::new(TABLES, &[plain("items"), by_column("items", "n")]).await;
    preheat::adapter::postgres::migrate(&watch.database).await.unwrap();
    watch
        .execute(
            "create function theirs() returns trigger language plpgsql as 'begin return null; end'; \
             create trigger preheat_theirs after insert on items execute function theirs(); \
             create function preheat.changed_by_hand() returns int language sql as 'select 1'",
        )
        .await;
    let removed = uninstall(&watch.database).await.unwrap();
    assert_eq!((removed.triggers, removed.functions.len()), (8, 2));
    let left = ours(&watch.server).await;
    assert_eq!(left.len(), 2, "{left:?}");
    let runs: i64 = sqlx::query_scalar("select count(*) from preheat.runs")
        .fetch_one(&mut watch.server.connect().await)
        .await
        .unwrap();
    assert_eq!(runs, 0);
    let again = uninstall(&watch.database).await.unwrap();
    assert_eq!((again.triggers, again.functions.len()), (0, 0));
}

#[tokio::test]
async fn what_is_printed_is_what_is_installed() {
    let tables = EVENTS.to_owned()
        + "create table items (tenant_id bigint);
           create table staff (id int primary key, tenant_id bigint);
           create table slots (id int, staff_id int);";
    let fleet = Job { tables: vec![plain("slots")], ..fleet_job("", &["slots"]) };
    let query = by_sql("slots", BY_STAFF.split_once(';').unwrap().0);
    let watched = [plain("items"), plain("events"), query].map(job_with);
    let sources = sources_of(watched.into_iter().chain([fleet]));
    let watch = Watch::of(&tables, sources, TENANTS).await;
    let installed = ours(&watch.server).await;

    watch.execute(&uninstall_sql()).await;
    assert!(ours(&watch.server).await.is_empty());
    let sql = install_sql(&watch.sources);
    for _again in 0..2 {
        watch.execute(&sql).await;
        assert_eq!(ours(&watch.server).await, installed);
    }
    let (done, removed) = install(&watch.database, &watch.sources, TENANTS).await.unwrap();
    assert!(done.iter().all(|source| source.done == Done::AsItWas), "{done:?}");
    assert_eq!(removed.triggers, 0);

    let fewer = sources_of([job_with(plain("items"))]);
    watch.execute(&install_sql(&fewer)).await;
    let (done, removed) = install(&watch.database, &fewer, TENANTS).await.unwrap();
    assert_eq!((done[0].done, removed.triggers), (Done::AsItWas, 0));
}

#[tokio::test]
async fn printed_statements_fail_where_installing_would() {
    let server = support::database().await;
    server.execute(TABLES).await;
    for bad in [by_column("items", "clinic"), by_sql("items", "select nothing from changed")] {
        let sql = install_sql(&sources(std::slice::from_ref(&bad)));
        let mut connection = server.connect().await;
        let failed = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await;
        assert!(failed.is_err(), "{bad:?}");
        assert!(ours(&server).await.is_empty());
    }
}

async fn problems(tables: &str, watched: &[Table], tenants: &str) -> Vec<String> {
    let server = support::database().await;
    server.execute(tables).await;
    let database = Database::connect(settings(&server.url())).await.unwrap();
    let mut watched = watched.to_vec();
    // A valid table is not installed alone.
    watched.push(plain("good"));
    let error = install(&database, &sources(&watched), tenants).await.unwrap_err();
    assert!(ours(&server).await.is_empty());
    let ChangesError::Tables(problems) = error else { panic!("{error}") };
    problems.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn every_table_that_cannot_be_watched_says_why_and_what_to_do() {
    let tables = "
      create table tenants (id uuid);
      create table good (tenant_id uuid);
      create view seen as select * from good;
      create sequence counter;
      create extension if not exists postgres_fdw;
      create extension if not exists citext;
      create server there foreign data wrapper postgres_fdw;
      create foreign table far (tenant_id uuid) server there;
      create table parts (tenant_id uuid, n int) partition by list (n);
      create foreign table parts_1 partition of parts for values in (1) server there;
      create table items (id int, name text, mixed citext);";
    let watched = [
        plain("Good"),
        plain("nowhere.good"),
        plain("seen"),
        plain("counter"),
        plain("far"),
        plain("parts"),
        plain("items"),
        by_column("items", "name"),
        by_column("items", "mixed"),
        by_sql("items", "select name::uuid from changed where"),
        by_sql("items", "select id from changed"),
        by_sql("items", "select $1::uuid from changed"),
        by_sql("items", "delete from items returning id"),
    ];
    let mut found = problems(tables, &watched, TENANTS).await;
    found.sort();
    insta::assert_snapshot!(found.join("\n"));
    let found = problems(tables, &[], "select clinic from tenants").await;
    insta::assert_snapshot!(found.join("\n"), @"cannot read the tenant query: column \"clinic\" does not exist (42703); hint: see `preheat check`");
}

#[tokio::test]
async fn who_may_not_is_told_and_nothing_is_done() {
    let server = support::database().await;
    server.execute(TABLES).await;
    let role = format!("reader_of_{}", server.name());
    server
        .execute(&format!(
            "create role {role} login; grant select on all tables in schema public to {role}"
        ))
        .await;
    let url = server.url_as(&role);
    let database = Database::connect(settings(&url)).await.unwrap();
    let sources = sources(&[plain("items")]);
    let error = install(&database, &sources, TENANTS).await.unwrap_err();
    assert!(matches!(&error, ChangesError::NotAllowed(_)), "{error}");
    assert!(ours(&server).await.is_empty());
    let lacking = Standing { lacking: vec!["items".to_owned()], ..Standing::default() };
    assert_eq!(standing(&database, &sources).await, lacking);

    // Any role that may read sees that the owner has installed them.
    server.execute(&install_sql(&sources)).await;
    assert_eq!(standing(&database, &sources).await, whole("items"));
    let (done, _) = install(&database, &sources, TENANTS).await.unwrap();
    assert_eq!(done[0].done, Done::AsItWas);
    let error = uninstall(&database).await.unwrap_err();
    assert!(matches!(&error, ChangesError::NotAllowed(_)), "{error}");
    drop(database);
    server.execute(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn a_table_that_is_written_to_is_waited_for_and_then_let_alone() {
    let server = support::database().await;
    server.execute(TABLES).await;
    let database = Database::connect(settings(&server.url())).await.unwrap();
    let sources = sources(&[plain("items")]);
    let mut writing = server.connect().await;
    writing.execute("begin; insert into items values (1, 1)").await.unwrap();
    let let_go = async {
        let sql = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' \
                   and datname = current_database()";
        let mut looking = server.connect().await;
        eventually("the install waits for the table", LONG, async || {
            sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut looking).await.unwrap() == 1
        })
        .await;
        writing.execute("commit").await.unwrap();
    };
    let (installed, ()) = tokio::join!(install(&database, &sources, TENANTS), let_go);
    assert_eq!(installed.unwrap().0[0].done, Done::New);
}

#[tokio::test]
async fn a_listener_takes_one_of_the_connections() {
    let server = support::database().await;
    server.execute(TABLES).await;
    let count = async || {
        let sql = "select count(*) from pg_stat_activity where application_name = 'preheat' \
                   and datname = current_database()";
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut server.connect().await).await.unwrap()
    };
    let two = DatabaseSettings {
        max_connections: NonZeroU32::new(2).unwrap(),
        ..settings(&server.url())
    };
    for direct in [None, Some(two.clone())] {
        let database = Arc::new(Database::connect(two.clone()).await.unwrap());
        // Both of the pool's connections are open and idle.
        let both = (0..2).map(|_| standing(&database, &[]));
        futures::future::join_all(both).await;
        let note: TroubleNote = Arc::new(|_, _| {});
        let source = PostgresFeedSource::new(Arc::clone(&database), direct, note).unwrap();
        for _again in 0..3 {
            let feed = source.connect().await.unwrap();
            for _ in 0..3 {
                let more = (0..4).map(|_| standing(&database, &[]));
                futures::future::join_all(more).await;
                assert_eq!(count().await, 2);
            }
            drop(feed);
            eventually("the listener is gone", LONG, async || count().await <= 1).await;
        }
        drop((source, database));
        eventually("nobody is there", LONG, async || count().await == 0).await;
    }
    let one = DatabaseSettings { max_connections: NonZeroU32::MIN, ..two };
    let database = Arc::new(Database::connect(one).await.unwrap());
    let source = PostgresFeedSource::new(database, None, Arc::new(|_, _| {})).unwrap();
    let error = source.connect().await.err().unwrap();
    assert_eq!(
        error.to_string(),
        "listening takes a connection of its own, and `database.max_connections` is 1"
    );
}

#[tokio::test]
async fn a_lost_connection_is_an_error_and_never_mended_in_silence() {
    let mut watch = Watch::new(TABLES, &[plain("items")]).await;
    assert_eq!(watch.ids("insert into items values (1, 7)").await, [of(&["7"])]);
    watch
        .execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where query ilike '%listen%' \
             and datname = current_database() and pid <> pg_backend_pid()",
        )
        .await;
    let FeedError(message) = timeout(LONG, watch.feed.next()).await.unwrap().unwrap_err();
    assert!(message.starts_with("lost the connection that listens to database"), "{message}");
}

#[tokio::test]
async fn a_connection_that_died_without_a_word_is_noticed() {
    let server = support::database().await;
    server.execute(TABLES).await;
    let proxy = Proxy::postgres(support::postgres()).await;
    let direct = settings(&server.url_through(&proxy));
    let database = Arc::new(Database::connect(settings(&server.url())).await.unwrap());
    let source = PostgresFeedSource::new(database, Some(direct), Arc::new(|_, _| {})).unwrap();
    let mut feed = source.connect().await.unwrap();
    proxy.set(Mode::Stall);
    let FeedError(message) = timeout(LONG, feed.next()).await.unwrap().unwrap_err();
    assert!(message.contains("no answer within 5s"), "{message}");
}

#[tokio::test]
async fn waiting_may_be_given_up_at_any_time_and_nothing_is_lost() {
    let mut watch = Watch::new(TABLES, &[plain("items")]).await;
    for round in 1..50_u64 {
        let sql = format!("insert into items values ({round}, {round})");
        let ((), given_up) = tokio::join!(
            watch.server.execute(&sql),
            timeout(Duration::from_micros(round * 150), watch.feed.next())
        );
        let expected = Change::new(watch.sources[0].id.clone(), of(&[&round.to_string()]));
        match given_up {
            Ok(heard) => assert_eq!(heard.unwrap(), [expected]),
            Err(_elapsed) => assert_eq!(watch.feed.next().await.unwrap(), [expected]),
        }
    }
}

#[tokio::test]
async fn what_cannot_be_understood_is_a_change_of_everything() {
    let mut watch = Watch::new(TABLES, &[plain("items"), by_column("items", "n")]).await;
    let all: Vec<_> =
        watch.sources.iter().map(|source| Change::new(source.id.clone(), None)).collect();
    for payload in ["", "products", "{}", "[7]"] {
        let told = watch.tells(&format!("select pg_notify('preheat_changes', '{payload}')")).await;
        assert_eq!(told, all, "{payload}");
    }
    let told =
        watch.tells(r#"select pg_notify('preheat_changes', '{"source":"x","tenants":7}')"#).await;
    assert_eq!(told, [Change::new(ChangeSourceId::new("x"), None)]);
}

#[tokio::test]
async fn behind_pgbouncer_one_listens_past_it() {
    let Some(bouncer) = Bouncer::start().await else { return };
    let server = support::database().await;
    server.execute(TABLES).await;
    let through = settings(&bouncer.url(server.name()));
    let database = Arc::new(Database::connect(through).await.unwrap());
    let sources = sources(&[plain("items")]);
    let (installed, _) = install(&database, &sources, TENANTS).await.unwrap();
    assert_eq!(installed[0].done, Done::New);
    assert_eq!(standing(&database, &sources).await, whole("items"));
    let source = |database: &Arc<Database>, direct| {
        PostgresFeedSource::new(Arc::clone(database), direct, Arc::new(|_, _| {})).unwrap()
    };
    let direct = source(&database, Some(settings(&server.url())));
    let mut feed = direct.connect().await.unwrap();
    server.execute("insert into items values (1, 7)").await;
    let told = feed.next().await.unwrap();
    assert_eq!(told, [Change::new(sources[0].id.clone(), of(&["7"]))]);

    // The listener gets no session of its own here, and would receive nothing.
    let error = source(&database, None).connect().await.err().unwrap();
    assert!(error.to_string().contains("set `[changes] url`"), "{error}");
    let mut neighbour = bouncer.neighbour(server.name()).await;
    let heard = "select count(*) from pg_listening_channels()";
    // No named statement: this client's next one may run in another session.
    let heard = sqlx::raw_sql(heard).fetch_one(&mut neighbour).await.unwrap();
    assert_eq!(heard.get::<i64, _>(0), 0);
    let other = support::database().await;
    let error = source(&database, Some(settings(&other.url()))).connect().await.err().unwrap();
    assert!(error.to_string().contains("is not heard by the listener"), "{error}");
}
