//! `preheat init`.

use std::path::Path;

use super::{Servers, servers};
use crate::support::{self, preheat};

/// Runs a command in this folder.
async fn run(servers: &Servers, folder: &Path, arguments: &[&str], code: i32) -> support::Output {
    let program = servers.preheat(arguments.iter().copied()).within(folder);
    program.run().await.expect_code(code)
}

fn read(folder: &Path, file: &str) -> String {
    std::fs::read_to_string(folder.join(file)).unwrap()
}

/// The jobs that the proposal leads to are right: checked without a warning, warm, and equal to the database.
async fn assert_works(servers: &Servers, folder: &Path, job: &str) {
    let check = run(servers, folder, &["check"], 0).await;
    assert_eq!(check.stderr, "");
    let preview = run(servers, folder, &["preview", job, "--json"], 0).await.json();
    assert!(preview["key_count"].as_u64() > Some(0), "{preview}");
    run(servers, folder, &["warm"], 0).await;
    run(servers, folder, &["audit", "--threshold", "100%"], 0).await;
    assert!(!servers.values().await.is_empty());
}

#[tokio::test]
async fn the_clinics_tables_lead_to_settings_and_jobs_that_work() {
    let servers = servers().await;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let written = run(&servers, folder, &["init", "--yes", "--table", "services"], 0).await;
    assert!(written.stdout.starts_with(
        "wrote `preheat.toml`, `jobs/services.toml` and `jobs/job.schema.json`\n1 job, no problems"
    ));
    assert!(
        written.stdout.ends_with("next: `preheat preview services` shows its keys and values\n")
    );
    insta::assert_snapshot!("clinic settings", read(folder, "preheat.toml"));
    insta::assert_snapshot!("clinic job", read(folder, "jobs/services.toml"));
    let schema = servers.preheat(["schema"]).run().await.expect_code(0).stdout;
    assert_eq!(read(folder, "jobs/job.schema.json"), schema);
    assert_works(&servers, folder, "services").await;

    // Nothing is overwritten unless that is asked for, and the settings stay for a second job.
    std::fs::write(folder.join("jobs/services.toml"), "mine").unwrap();
    let refused = run(&servers, folder, &["init", "--yes", "--table", "services"], 2).await;
    assert!(refused.stderr.contains("`jobs/services.toml` would be overwritten"), "{refused:?}");
    assert_eq!(read(folder, "jobs/services.toml"), "mine");
    let refused = run(&servers, folder, &["init", "--yes", "--tenants-table", "tenants"], 2).await;
    assert!(refused.stderr.contains("there are settings already"), "{refused:?}");
    run(&servers, folder, &["init", "--force", "--yes", "--table", "services"], 0).await;
    let second = run(&servers, folder, &["init", "--table", "staff"], 0).await;
    assert!(
        second
            .stdout
            .starts_with("wrote `jobs/staff.toml` and `jobs/job.schema.json`\n2 jobs, no problems"),
        "{second:?}"
    );
    assert_works(&servers, folder, "staff").await;
}

/// An application with its own schema: names in camel case, ids that are numbers, an enum, a domain and types that
/// preheat does not write.
const APP: &str = r#"
create schema app;
create type app."State" as enum ('TRIAL', 'ACTIVE', 'CLOSED');
create domain app.slug as text check (value <> '');
create table app."Workspace" (
  id bigint generated always as identity primary key, slug app.slug not null, state app."State" not null,
  "timeZone" text not null default 'UTC', "createdAt" timestamptz not null default now(), "deletedAt" timestamptz);
create table app."User" (
  id bigint generated always as identity primary key, email text not null, "passwordHash" text not null,
  "workspaceId" bigint references app."Workspace" (id));
create table app."Customer" (
  id bigint generated always as identity primary key, "workspaceId" bigint not null references app."Workspace" (id),
  name app.slug not null, email EMAIL, state app."State" not null, balance money not null, area box, tags text[] not null,
  "apiToken" text, avatar bytea, "createdAt" timestamptz not null default now());
create table app."InvoiceLine" (
  "ownerId" bigint not null references app."Workspace" (id), number text not null, total numeric not null,
  primary key ("ownerId", number));
create table app.logs (line text);
create index on app."Customer" ("workspaceId");
insert into app."Workspace" (slug, state, "deletedAt") values
  ('a', 'ACTIVE', null), ('b', 'TRIAL', null), ('c', 'ACTIVE', now()), ('d', 'ACTIVE', null);
insert into app."Customer" ("workspaceId", name, state, balance, tags)
  select w, 'customer ' || n, 'ACTIVE', n, '{x,y}' from generate_series(1, 4) w, generate_series(1, 3) n;
insert into app."InvoiceLine" select w, 'N' || n, n from generate_series(1, 4) w, generate_series(1, 3) n;
analyze;
"#;

#[tokio::test]
async fn a_foreign_applications_tables_lead_to_jobs_that_work() {
    let servers = Servers { database: support::database().await, redis: support::redis() };
    let available = "select name::text from pg_available_extensions where name = 'citext'";
    let mut sql = APP.replace("EMAIL", "text");
    if servers.texts(available).await.is_empty() {
        support::skipped("the extension citext is not installed: `init` meets no column of it");
    } else {
        sql = format!("create extension citext;{}", APP.replace("EMAIL", "citext"));
    }
    servers.database.execute(&sql).await;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    run(&servers, folder, &["init", "--yes"], 0).await;
    insta::assert_snapshot!("app settings", read(folder, "preheat.toml"));
    insta::assert_snapshot!("app job", read(folder, "jobs/customer.toml"));
    run(&servers, folder, &["init", "--table", "InvoiceLine"], 0).await;
    insta::assert_snapshot!("app job with another column", read(folder, "jobs/invoice_line.toml"));
    assert_works(&servers, folder, "customer").await;
    let keys: Vec<String> = servers.values().await.into_keys().collect();
    assert_eq!(keys, ["customer:1", "customer:4", "invoice_line:1", "invoice_line:4"]);
}

#[tokio::test]
async fn without_a_terminal_what_is_not_clear_is_asked_by_options() {
    let servers = servers().await;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let refused = async |arguments: &[&str]| {
        let output = run(&servers, folder, arguments, 2).await;
        assert!(!folder.join("preheat.toml").exists() && !folder.join("jobs").exists());
        output.stderr
    };
    let text = refused(&["init"]).await;
    assert!(text.contains("which table is not clear: `"), "{text}");
    assert!(text.contains("name it with `--table`, or take the first with `--yes`"), "{text}");
    let text = refused(&["init", "--table", "servces"]).await;
    assert!(
        text.contains("no such table here: `servces`\n  hint: did you mean `services`?"),
        "{text}"
    );
    let text = refused(&["init", "--tenants-table", "pages", "--yes"]).await;
    assert!(text.contains("no table refers to `pages`"), "{text}");

    let database = support::database().await;
    let empty = Servers { database, redis: support::redis() };
    let text = run(&empty, folder, &["init", "--yes"], 2).await.stderr;
    assert!(text.contains("no table looks like the list of the tenants"), "{text}");
    let text = preheat(["init"]).within(folder).run().await.expect_code(2).stderr;
    assert!(text.contains("set `DATABASE_URL`"), "{text}");
}

#[tokio::test]
async fn at_a_terminal_init_asks() {
    let servers = servers().await;
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = servers.preheat(["init"]).on_terminal(80) else {
        return support::skipped("no `script` makes a terminal");
    };
    let program = program.within(folder.path()).typing("1\nstaff\n\n");
    let output = program.run().await.expect_code(0);
    for text in
        ["Which table lists the tenants?", "1) tenants", "keep warm?", "write `preheat.toml`"]
    {
        assert!(output.stdout.contains(text), "{text}: {}", output.stdout);
    }
    assert!(folder.path().join("jobs/staff.toml").exists());
}

#[tokio::test]
async fn which_tenants_are_active_is_found_by_what_the_columns_can_say() {
    let cases = [
        (
            "create table accounts (id uuid primary key, is_active bool not null, created_at timestamptz);
             create table items (account_id uuid, id int primary key);",
            "select id from accounts where is_active order by created_at, id",
        ),
        (
            "create table teams (id text primary key, status text not null default 'Active');
             create table items (team_id text, id int primary key);",
            "select id from teams where status = 'Active' order by id",
        ),
        (
            "create table companies (id int primary key, status text, tz text);
             create table items (company_id int, id int primary key);
             insert into companies values (1, 'closed'), (2, 'live');",
            "select id, tz from companies where status = 'live' order by id",
        ),
        (
            "create table shops (id int primary key, \"deletedAt\" timestamptz, disabled bool);
             create table items (shop int references shops, id int primary key);",
            "select id from shops where disabled is not true and \"deletedAt\" is null order by id",
        ),
        (
            "create table orgs (id int primary key, name text);
             create table items (org_id int, id int primary key);",
            "select id from orgs order by id",
        ),
    ];
    for (tables, expected) in cases {
        let servers = Servers { database: support::database().await, redis: support::redis() };
        servers.database.execute(tables).await;
        let folder = tempfile::tempdir().unwrap();
        run(&servers, folder.path(), &["init"], 0).await;
        let settings = read(folder.path(), "preheat.toml");
        let parsed: toml::Table = toml::from_str(&settings).unwrap();
        assert_eq!(parsed["tenants"]["sql"].as_str(), Some(expected));
        let are_all = settings.contains("# No column seems to say which tenants are active");
        assert_eq!(are_all, !expected.contains(" where "), "{settings}");
    }
}
