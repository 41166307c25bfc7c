//! Queries on a database that refuses writes, hides rows by policies, or computes with a time zone.

use serde_json::Value;

use super::{SERVICES, Servers, servers};
use crate::support::program::Preheat;

/// A job with a query.
fn by(sql: &str) -> String {
    format!(
        "schedule = \"every 15m\"\nttl = \"1h\"\n[query]\nsql = \"\"\"{sql}\"\"\"\n[[keys]]\n\
         key = \"own:{{tenant_id}}\"\n[encode]\nomit = [\"tenant_id\"]\n"
    )
}

const DELETES: &str = "delete from products where tenant_id = any($1) returning tenant_id, name";

/// A query that seems to only read.
const NOTES: &str = "select id as tenant_id, note(id::text) as noted from unnest($1) id";

async fn count(servers: &Servers, table: &str) -> String {
    servers.texts(&format!("select count(*)::text from {table}")).await.remove(0)
}

#[tokio::test]
async fn hazard_41_who_only_looks_writes_nothing_whatever_the_settings_say() {
    let servers = servers().await;
    servers
        .database
        .execute(
            "create table notes (tenant text);
             create function note(tenant text) returns int language plpgsql as $$ begin
               insert into notes values (tenant); return 1; end $$",
        )
        .await;
    let products = count(&servers, "products").await;
    let writing = |arguments: &[&str], sql: &str| -> Preheat {
        let preheat = servers.preheat(arguments.iter().copied()).job("own", &by(sql));
        preheat.env("PREHEAT_DATABASE__READ_ONLY", "false")
    };
    for sql in [DELETES, NOTES] {
        for arguments in [["plan"].as_slice(), &["audit", "--quick"]] {
            let output = writing(arguments, sql).run().await;
            let said = format!("{}{}", output.stdout, output.stderr);
            assert!(said.contains("in a read-only transaction (25006)"), "{arguments:?}: {said}");
            assert!(said.contains("`database.read_only"), "{arguments:?}: {said}");
        }
    }
    let checked = writing(&["check"], DELETES).run().await.expect_code(2);
    assert!(
        checked.stderr.contains("the query writes or locks rows: `delete`"),
        "{}",
        checked.stderr
    );
    assert_eq!(count(&servers, "products").await, products);
    assert_eq!(count(&servers, "notes").await, "0");

    // A run may write, if the settings allow it.
    writing(&["warm"], NOTES).run().await.expect_code(0);
    assert_ne!(count(&servers, "notes").await, "0");
    let denied = servers.preheat(["warm"]).job("own", &by(DELETES)).run().await.expect_code(1);
    assert!(denied.stdout.contains("`database.read_only = false`"), "{}", denied.stdout);
    assert_eq!(count(&servers, "products").await, products);
}

/// The URL of another role that reads all tables. A policy shows it no service unless a setting
/// names the tenant.
pub(super) async fn with_a_policy(servers: &Servers, role: &str) -> String {
    servers
        .database
        .execute(&format!(
            "create role {role} login;
             grant select on all tables in schema public to {role};
             alter table services enable row level security;
             create policy own on services
               using (tenant_id::text = current_setting('app.tenant_id', true))"
        ))
        .await;
    servers.database.url_as(role)
}

#[tokio::test]
async fn hazard_35_a_policy_that_hides_rows_is_refused_and_old_keys_stay() {
    let servers = servers().await;
    servers.preheat(["warm"]).job("services", SERVICES).run().await.expect_code(0);
    let old = servers.values().await;
    assert!(old.values().any(|value| value != "[]"));
    let url = with_a_policy(&servers, "hidden").await;
    let behind = |arguments: &[&str]| {
        let preheat = servers.preheat(arguments.iter().copied()).job("services", SERVICES);
        preheat.database(&url)
    };
    let explains = |said: &str| {
        assert!(said.contains("row-level security policy for table \"services\""), "{said}");
        assert!(said.contains("BYPASSRLS"), "{said}");
        assert!(said.contains("`database.row_security = \"accept\"`"), "{said}");
    };
    explains(&behind(&["check"]).run().await.expect_code(2).stderr);
    explains(&behind(&["warm"]).run().await.expect_code(1).stdout);
    explains(&behind(&["plan"]).run().await.expect_code(2).stderr);
    assert_eq!(servers.values().await, old);

    // The same for the tenant query.
    servers
        .database
        .execute(
            "alter table services disable row level security;
             alter table tenants enable row level security;
             create policy own on tenants using (id::text = current_setting('app.tenant_id', true))",
        )
        .await;
    for (command, code) in [("check", 2), ("warm", 1), ("plan", 2)] {
        let output = behind(&[command]).run().await.expect_code(code);
        let said = output.stdout + &output.stderr;
        assert!(said.contains("policy for table \"tenants\""), "{said}");
    }
    assert_eq!(servers.values().await, old);
    servers.database.execute("drop owned by hidden; drop role hidden").await;
}

#[tokio::test]
async fn policies_that_show_every_row_are_accepted_and_that_is_said() {
    let servers = servers().await;
    let url = with_a_policy(&servers, "shown").await;
    servers.database.execute("create policy every on services to shown using (true)").await;
    let behind = |command: &'static str| {
        let preheat = servers.preheat([command]).job("services", SERVICES).database(&url);
        preheat.env("PREHEAT_DATABASE__ROW_SECURITY", "accept")
    };
    let said = behind("check").run().await.expect_code(0).stderr;
    assert!(said.contains("`database.row_security` is `accept`"), "{said}");
    for command in ["plan", "warm"] {
        let said = behind(command).run().await.expect_code(0).stderr;
        assert_eq!(said.matches("`database.row_security` is `accept`").count(), 1, "{said}");
    }
    assert!(servers.values().await.values().any(|value| value != "[]"));
    servers.database.execute("drop owned by shown; drop role shown").await;
}

/// What a query makes of a moment and a duration with the settings of its session.
const LOCAL: &str = "select id as tenant_id, at::date::text as day, to_char(at, 'HH24:MI') as time, \
     at::text as text, interval '1 day 2 hours'::text as long \
     from unnest($1) id, (select timestamptz '2026-03-01 23:30:00+00') moment (at)";

#[tokio::test]
async fn queries_compute_with_the_zone_that_the_role_and_the_database_set() {
    let servers = servers().await;
    let warm = async |settings: &[(&str, &str)]| {
        let preheat = servers.preheat(["warm"]).job("own", &by(LOCAL));
        let set = |preheat: Preheat, (name, value): &(&str, &str)| preheat.env(name, value);
        settings.iter().fold(preheat, set).run().await.expect_code(0);
        let values = servers.values().await;
        let value: Value = serde_json::from_str(values.values().next().unwrap()).unwrap();
        ["day", "time", "text", "long"].map(|column| value[0][column].as_str().unwrap().to_owned())
    };
    let set = async |sql: &str| {
        servers.database.execute(&sql.replace("{name}", servers.database.name())).await;
    };
    let utc = ["2026-03-01", "23:30", "2026-03-01 23:30:00+00", "1 day 02:00:00"];
    assert_eq!(warm(&[]).await, utc);

    set("alter database \"{name}\" set timezone = 'Asia/Tokyo'").await;
    let tokyo = ["2026-03-02", "08:30", "2026-03-02 08:30:00+09", "1 day 02:00:00"];
    assert_eq!(warm(&[]).await, tokyo);

    set("create role local_zone login; grant select on tenants to local_zone;
         alter role local_zone set timezone = 'America/Lima';
         alter role local_zone set intervalstyle = 'iso_8601';
         alter role local_zone in database \"{name}\" set datestyle = 'SQL, DMY'")
    .await;
    let url = servers.database.url_as("local_zone");
    let role = [("DATABASE_URL", url.as_str())];
    let lima = ["01/03/2026", "18:30", "01/03/2026 18:30:00 -05", "P1DT2H"];
    assert_eq!(warm(&role).await, lima);

    // The role's setting in this database comes first, and preheat's settings before everything.
    set("alter role local_zone in database \"{name}\" set timezone = 'Asia/Kolkata'").await;
    assert_eq!(warm(&role).await[1], "05:00");
    let said = [role[0], ("PREHEAT_DATABASE__TIME_ZONE", "Europe/Berlin")];
    assert_eq!(warm(&said).await[1], "00:30");
    set("drop owned by local_zone; drop role local_zone").await;
}
