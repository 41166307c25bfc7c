//! Installing, mending, printing and removing the triggers.

use preheat::adapter::postgres::{
    ChangesError, Database, Done, Standing, uninstall, uninstall_sql,
};
use preheat::domain::change::Via;
use preheat::domain::job::{Job, Table};
use sqlx::{AssertSqlSafe, Executor};

use super::{
    BY_STAFF, EVENTS, TABLES, TENANTS, Watch, both_ways, by_column, by_sql, install, install_sql,
    job_with, plain, sources, sources_of, standing, whole,
};
use crate::conformance::fleet_job;
use crate::conformance::postgres::settings;
use crate::support::{self, LONG, eventually};

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

async fn installing_twice_is_one_install_and_locks_nothing(via: Via) {
    let watch = Watch::new(via, TABLES, &[plain("items")]).await;
    let before = ours(&watch.server).await;
    assert_eq!(before.len(), 5);
    let mut writing = watch.server.connect().await;
    writing.execute("begin; insert into items values (1, 1)").await.unwrap();
    let (installed, removed) = install(&watch.database, &watch.sources, TENANTS).await.unwrap();
    assert_eq!(installed[0].done, Done::AsItWas);
    assert_eq!((removed.triggers, removed.functions.len()), (0, 0));
    assert_eq!(ours(&watch.server).await, before);
}

async fn what_is_different_is_mended_and_what_nobody_needs_is_removed(via: Via) {
    let watch = Watch::new(
        via,
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

async fn uninstalling_removes_what_is_ours_and_nothing_else(via: Via) {
    let watch = Watch::new(via, TABLES, &[plain("items"), by_column("items", "n")]).await;
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

async fn what_is_printed_is_what_is_installed(via: Via) {
    let tables = EVENTS.to_owned()
        + "create table items (tenant_id bigint);
           create table staff (id int primary key, tenant_id bigint);
           create table slots (id int, staff_id int);";
    let fleet = Job { tables: vec![plain("slots")], ..fleet_job("", &["slots"]) };
    let query = by_sql("slots", BY_STAFF.split_once(';').unwrap().0);
    let watched = [plain("items"), plain("events"), query].map(job_with);
    let sources = sources_of(watched.into_iter().chain([fleet]));
    let watch = Watch::of(via, &tables, sources, TENANTS).await;
    let installed = ours(&watch.server).await;

    watch.execute(&uninstall_sql()).await;
    assert!(ours(&watch.server).await.is_empty());
    let sql = install_sql(via, &watch.sources);
    for _again in 0..2 {
        watch.execute(&sql).await;
        assert_eq!(ours(&watch.server).await, installed);
    }
    let (done, removed) = install(&watch.database, &watch.sources, TENANTS).await.unwrap();
    assert!(done.iter().all(|source| source.done == Done::AsItWas), "{done:?}");
    assert_eq!(removed.triggers, 0);

    let fewer = sources_of([job_with(plain("items"))]);
    watch.execute(&install_sql(via, &fewer)).await;
    let (done, removed) = install(&watch.database, &fewer, TENANTS).await.unwrap();
    assert_eq!((done[0].done, removed.triggers), (Done::AsItWas, 0));
}

#[tokio::test]
async fn printed_statements_fail_where_installing_would() {
    let server = support::database().await;
    server.execute(TABLES).await;
    for bad in [by_column("items", "clinic"), by_sql("items", "select nothing from changed")] {
        let sql = install_sql(Via::Notify, &sources(std::slice::from_ref(&bad)));
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
    server.execute(&install_sql(Via::Notify, &sources)).await;
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

both_ways! {
    installing_twice_is_one_install_and_locks_nothing,
    what_is_different_is_mended_and_what_nobody_needs_is_removed,
    uninstalling_removes_what_is_ours_and_nothing_else,
    what_is_printed_is_what_is_installed,
}
