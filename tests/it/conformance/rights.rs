//! What the query of a trigger may read: tables with row-level security, and tables that no trigger
//! watches.

use preheat::adapter::postgres::{
    self, ChangesError, Database, Done, Installed, Removed, Security, Wanted,
};
use preheat::definition::{self, Defaults};
use preheat::domain::change::{ChangeSource, Via, change_sources};
use preheat::domain::job::Job;

use sqlx::AssertSqlSafe;

use super::changes::{
    TABLES, TENANTS, Watch, both_ways, by_sql, job_with, of, plain, sources, sources_of, standing,
    whole, writer,
};
use super::job;
use super::postgres::settings;
use crate::support;

const STAFF: &str = "
  create table tenants (id bigint primary key);
  create table staff (id int primary key, tenant_id bigint);
  create table slots (id int, staff_id int references staff on delete cascade);
  insert into staff values (1, 10), (2, 20);
";
const POLICY: &str = "
  alter table staff enable row level security;
  create policy own on staff using (tenant_id = current_setting('app.tenant_id', true)::bigint);
";
const BY_STAFF: &str =
    "select staff.tenant_id from changed join staff on staff.id = changed.staff_id";

/// One job that watches slots by a query over this relation, and these other tables.
fn slots_by(relation: &str, others: &[&str]) -> Vec<ChangeSource> {
    let query = BY_STAFF.replace("staff.", &format!("{relation}."));
    let query = query.replace("join staff", &format!("join {relation}"));
    let mut tables =
        vec![by_sql("slots", &query.replace(&format!("changed.{relation}."), "changed."))];
    tables.extend(others.iter().copied().map(plain));
    sources_of([Job { tables, ..job("", &["{tenant_id}"]) }])
}

async fn install(
    database: &Database,
    sources: &[ChangeSource],
    tenants: &str,
    security: Security,
) -> Result<(Vec<Installed>, Removed), ChangesError> {
    postgres::install(database, sources, tenants, Wanted { security, via: None }).await
}

fn install_sql(sources: &[ChangeSource], security: Security) -> String {
    postgres::install_sql(sources, security, Via::Notify)
}

async fn problem(database: &Database, sources: &[ChangeSource], security: Security) -> String {
    let error = install(database, sources, TENANTS, security).await.unwrap_err();
    let ChangesError::Tables(problems) = error else { panic!("{error}") };
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems[0].to_string()
}

async fn hazard_35_a_writer_under_policies_is_heard_for_the_right_tenant(via: Via) {
    let mut watch = Watch::new(via, TABLES, &[plain("items")]).await;
    let role = writer(&watch.server, "items").await;
    watch
        .execute(
            "alter table items enable row level security; alter table items force row level security; \
             create policy own on items \
               using (tenant_id = current_setting('app.tenant_id', true)::bigint)",
        )
        .await;
    let writes = format!("set role {role}; set app.tenant_id = '7'");
    for sql in ["insert into items values (1, 7)", "update items set n = 2", "delete from items"] {
        assert_eq!(watch.ids(&format!("{writes}; {sql}")).await, [of(&["7"])], "{sql}");
    }
    watch.execute(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn hazard_35_a_query_that_policies_may_filter_is_refused_unless_its_function_sees_every_row()
{
    let watched = slots_by("staff", &["staff"]);
    let tables = format!("{STAFF}{POLICY}");
    let mut watch =
        Watch::installed(Via::Notify, &tables, watched, TENANTS, Security::Definer).await;
    let id = watch.id("slots");
    let role = writer(&watch.server, "slots, staff").await;
    watch.execute(&format!("set role {role}; insert into slots values (1, 1), (2, 2)")).await;
    let told = watch.told().await;
    assert_eq!(told.len(), 1);
    assert_eq!((&told[0].source, &told[0].tenants), (&id, &of(&["10", "20"])));
    // Once a function has these rights, it keeps them, whoever installs again.
    for security in [Security::Invoker, Security::Definer] {
        let (again, _) = install(&watch.database, &watch.sources, TENANTS, security).await.unwrap();
        assert!(again.iter().all(|source| source.done == Done::AsItWas), "{again:?}");
    }
    let standing = standing(&watch.database, &watch.sources).await;
    assert_eq!(standing.whole, ["slots", "staff"]);
    watch.execute(&install_sql(&watch.sources, Security::Definer)).await;
    let (again, _) =
        install(&watch.database, &watch.sources, TENANTS, Security::Invoker).await.unwrap();
    assert!(again.iter().all(|source| source.done == Done::AsItWas), "{again:?}");

    preheat::adapter::postgres::uninstall(&watch.database).await.unwrap();
    let refused = problem(&watch.database, &watch.sources, Security::Invoker).await;
    insta::assert_snapshot!(refused);
    watch.execute("grant create on schema public to public").await;
    let open = problem(&watch.database, &watch.sources, Security::Definer).await;
    insta::assert_snapshot!(open);
    for security in [Security::Invoker, Security::Definer] {
        let sql = install_sql(&watch.sources, security);
        let mut connection = watch.server.connect().await;
        let failed = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await;
        assert!(failed.is_err(), "{security:?}");
    }
    watch.execute(&format!("drop owned by {role}; drop role {role}")).await;
}

async fn hazard_35_a_policy_that_comes_later_is_no_silence(via: Via) {
    let mut watch = Watch::of(via, STAFF, slots_by("staff", &["staff"]), TENANTS).await;
    let id = watch.id("slots");
    let role = writer(&watch.server, "slots, staff").await;
    let write = format!("set role {role}; insert into slots values (1, 1)");
    assert_eq!(watch.tells(&write).await[0].tenants, of(&["10"]));
    watch.execute(POLICY).await;
    assert_eq!(watch.tells(&write).await[0].tenants, None);
    assert_eq!(*watch.troubles.lock().unwrap(), [(id, "42501".to_owned())]);
    let refused = problem(&watch.database, &watch.sources, Security::Invoker).await;
    assert!(refused.contains("`preheat changes install --security-definer`"), "{refused}");
    install(&watch.database, &watch.sources, TENANTS, Security::Definer).await.unwrap();
    assert_eq!(watch.tells(&write).await[0].tenants, of(&["10"]));
    watch.execute(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn an_owner_from_whom_policies_hide_rows_is_no_help() {
    let server = support::database().await;
    server.execute(&format!("{STAFF}{POLICY}")).await;
    let role = format!("owner_of_{}", server.name());
    server
        .execute(&format!(
            "create role {role} login; grant create on database {} to {role}; \
             alter table slots owner to {role}; grant select on staff, tenants to {role}",
            server.name()
        ))
        .await;
    let url = server.url_as(&role);
    let database = Database::connect(settings(&url)).await.unwrap();
    let watched = slots_by("staff", &[]);
    for security in [Security::Invoker, Security::Definer] {
        let refused = problem(&database, &watched, security).await;
        assert!(refused.contains("which hides rows from role `owner_of_"), "{refused}");
        assert!(refused.contains("let a role with BYPASSRLS"), "{refused}");
    }
    server.execute(&format!("alter table staff owner to {role}")).await;
    install(&database, &watched, TENANTS, Security::Definer).await.unwrap();
    assert_eq!(standing(&database, &watched).await, whole("slots"));
    server.execute("alter table staff force row level security").await;
    let refused = problem(&database, &watched, Security::Invoker).await;
    assert!(refused.contains("hides rows from role"), "{refused}");
    drop(database);
    server.execute(&format!("drop owned by {role} cascade; drop role {role}")).await;
}

#[tokio::test]
async fn a_view_reads_with_the_rights_of_its_owner_unless_it_says_otherwise() {
    let views = "create view people as select * from staff; \
                 create view own_people with (security_invoker) as select * from staff;";
    let server = support::database().await;
    server.execute(&format!("{STAFF}{POLICY}{views}")).await;
    let database = Database::connect(settings(&server.url())).await.unwrap();
    let by_view = slots_by("people", &["staff"]);
    let (installed, _) = install(&database, &by_view, TENANTS, Security::Invoker).await.unwrap();
    assert!(installed.iter().all(|source| source.unwatched.is_empty()), "{installed:?}");
    let refused = problem(&database, &slots_by("own_people", &["staff"]), Security::Invoker).await;
    assert!(refused.contains("reads `staff` with row-level security"), "{refused}");
}

#[tokio::test]
async fn tables_that_a_triggers_query_reads_and_no_entry_names_are_told() {
    let server = support::database().await;
    server.execute(&format!("{STAFF} create view people as select * from staff")).await;
    let database = Database::connect(settings(&server.url())).await.unwrap();
    let both = [job_with(by_sql("slots", BY_STAFF)), job_with(plain("staff"))];
    let cases = [
        (slots_by("staff", &[]), ["staff"].as_slice()),
        (slots_by("people", &[]), &["staff"]),
        (slots_by("staff", &["staff"]), &[]),
        // Another job's entry does not warm this job.
        (sources_of(both), &["staff"]),
        (sources(&[by_sql("slots", "select id::bigint from changed")]), &[]),
    ];
    for (watched, expected) in cases {
        let (installed, _) =
            install(&database, &watched, TENANTS, Security::Invoker).await.unwrap();
        let unwatched = installed.iter().flat_map(|installed| &installed.unwatched);
        let unwatched: Vec<_> = unwatched.map(|(_job, table)| table).collect();
        assert_eq!(unwatched, expected, "{watched:?}");
    }
}

/// The `tables` that the docs show.
fn tables_of_the_docs() -> Vec<ChangeSource> {
    let docs = include_str!("../../../docs/changes.md");
    let blocks = docs.split("```toml\n").skip(1).map(|block| block.split("```").next().unwrap());
    let tables = blocks.into_iter().find(|block| block.contains("name = \"slots\"")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let rest = "schedule = \"every 1h\"\nttl = \"3h\"\n[query]\nsql = \"select $1\"\n\
                [[keys]]\nkey = \"k:{tenant_id}\"\n";
    std::fs::write(folder.path().join("docs.toml"), format!("{tables}\n{rest}")).unwrap();
    let defaults = Defaults {
        batch: 100.try_into().unwrap(),
        concurrency: 4.try_into().unwrap(),
        tenant_column: "tenant_id".to_owned(),
        has_settings_file: true,
    };
    let files = definition::load(folder.path(), &defaults).unwrap_or_else(|all| panic!("{all}"));
    change_sources(files.jobs(), "tenant_id")
}

async fn hazard_39_rows_that_go_by_a_cascade_are_told_with_the_example_of_the_docs(via: Via) {
    let tables = format!(
        "{STAFF} create table products (tenant_id bigint); create table clinics (id bigint); \
         insert into slots values (1, 1), (2, 2);"
    );
    let mut watch = Watch::of(via, &tables, tables_of_the_docs(), TENANTS).await;
    let told = async |watch: &mut Watch, sql: &str| -> Vec<String> {
        watch.tells(sql).await.into_iter().flat_map(|change| change.tenants.unwrap()).collect()
    };
    assert_eq!(told(&mut watch, "insert into slots values (3, 1)").await, ["10"]);
    assert_eq!(told(&mut watch, "delete from staff where id = 1").await, ["10"]);
    assert_eq!(told(&mut watch, "update staff set tenant_id = 30").await, ["20", "30"]);
    assert_eq!(told(&mut watch, "insert into products values (7)").await, ["7"]);
    assert_eq!(told(&mut watch, "insert into clinics values (8)").await, ["8"]);
    let (again, _) =
        install(&watch.database, &watch.sources, TENANTS, Security::Invoker).await.unwrap();
    assert!(again.iter().all(|source| source.unwatched.is_empty()), "{again:?}");
}

both_ways! {
    hazard_35_a_writer_under_policies_is_heard_for_the_right_tenant,
    hazard_35_a_policy_that_comes_later_is_no_silence,
    hazard_39_rows_that_go_by_a_cascade_are_told_with_the_example_of_the_docs,
}
