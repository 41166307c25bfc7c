//! `preheat changes`: the triggers, for people and for migration tools.

use super::{GLOBAL, SERVICES, Servers, servers};
use crate::support::preheat;
use crate::support::shop::{Shop, items};

/// The tables that the job of [`SERVICES`] watches.
const WATCHING: &str = "tables = [\"services\", { name = \"tenants\", tenant = \"id\" }]";

fn watching(tables: &str) -> String {
    format!("{tables}\n{SERVICES}")
}

async fn triggers(servers: &Servers) -> Vec<String> {
    servers
        .texts(
            "select tgrelid::regclass || ' ' || regexp_replace(tgname, '[0-9a-f]{16}', '[id]') \
             from pg_trigger where tgname like 'preheat%' order by 1",
        )
        .await
}

const OF_BOTH: [&str; 8] = [
    "services preheat_[id]_delete",
    "services preheat_[id]_insert",
    "services preheat_[id]_truncate",
    "services preheat_[id]_update",
    "tenants preheat_[id]_delete",
    "tenants preheat_[id]_insert",
    "tenants preheat_[id]_truncate",
    "tenants preheat_[id]_update",
];

#[tokio::test]
async fn triggers_are_installed_once_changed_and_removed() {
    let servers = servers().await;
    let changes =
        |action: &str| servers.preheat(["changes", action]).job("services", &watching(WATCHING));
    let installed = changes("install").run().await.expect_code(0).stdout;
    insta::assert_snapshot!(installed, @r"
    installed `services`: tenants by `tenant_id`, by NOTIFY
    installed `tenants`: tenants by `id`, by NOTIFY
    ");
    assert_eq!(triggers(&servers).await, OF_BOTH);
    let again = changes("install").run().await.expect_code(0).stdout;
    insta::assert_snapshot!(again, @r"
    unchanged `services`: tenants by `tenant_id`, by NOTIFY
    unchanged `tenants`: tenants by `id`, by NOTIFY
    ");

    let sql = "{ name = \"services\", sql = \"select tenant_id from changed\" }";
    let other = servers.preheat(["changes", "install"]);
    let other = other.job("services", &watching(&format!("tables = [{sql}]")));
    let other = other.job("fleet", &format!("tables = [\"tenants\"]\n{GLOBAL}"));
    insta::assert_snapshot!(other.run().await.expect_code(0).stdout, @r"
    installed `services`: tenants by a query, by NOTIFY
    installed `tenants`: all tenants together, by NOTIFY
    removed `services`: tenants by `tenant_id`
    removed `tenants`: tenants by `id`
    ");
    assert_eq!(triggers(&servers).await, OF_BOTH);

    let removed = changes("uninstall").run().await.expect_code(0).stdout;
    insta::assert_snapshot!(removed, @r"
    removed `services`: tenants by a query
    removed `tenants`: all tenants together
    ");
    assert!(triggers(&servers).await.is_empty());
    let again = changes("uninstall").run().await.expect_code(0).stdout;
    assert_eq!(again, "there was nothing to remove\n");
    let nothing = servers.preheat(["changes", "install"]).job("services", SERVICES);
    let nothing = nothing.run().await.expect_code(0).stdout;
    insta::assert_snapshot!(nothing, @r"
    no job has `tables`: there is nothing to install
    without `tables`, so that no change feed warms them: `services`
    ");
}

#[tokio::test]
async fn the_shipped_jobs_can_be_watched() {
    let servers = servers().await;
    let install = || servers.preheat(["changes", "install"]).shipped_jobs().run();
    let installed = install().await.expect_code(0).stdout;
    assert_eq!(installed.lines().count(), 7, "{installed}");
    let sql = preheat(["changes", "sql"]).shipped_jobs().run().await.expect_code(0).stdout;
    servers.database.execute(&sql).await;
    let again = install().await.expect_code(0).stdout;
    assert!(again.lines().all(|line| line.starts_with("unchanged ")), "{again}");
}

#[tokio::test]
async fn what_install_would_do_is_printed_without_a_database() {
    let sql = |arguments: &[&'static str]| {
        let arguments = ["changes", "sql"].into_iter().chain(arguments.iter().copied());
        preheat(arguments).job("services", &watching(WATCHING)).run()
    };
    let printed = sql(&[]).await.expect_code(0).stdout;
    insta::assert_snapshot!(printed);
    let removal = sql(&["--uninstall"]).await.expect_code(0).stdout;
    insta::assert_snapshot!(removal);

    let servers = servers().await;
    servers.database.execute(&printed).await;
    assert_eq!(triggers(&servers).await, OF_BOTH);
    let install = servers.preheat(["changes", "install"]).job("services", &watching(WATCHING));
    let installed = install.run().await.expect_code(0).stdout;
    assert!(installed.lines().all(|line| line.starts_with("unchanged ")), "{installed}");
    servers.database.execute(&removal).await;
    assert!(triggers(&servers).await.is_empty());
}

#[tokio::test]
async fn a_table_that_cannot_be_watched_is_told_with_its_job_file() {
    let servers = servers().await;
    let tables = "tables = [\"services\", \"service\", { name = \"staff\", tenant = \"clinic\" }]";
    let install = servers.preheat(["changes", "install"]).job("services", &watching(tables));
    let said = install.run().await.expect_code(2).stderr;
    insta::assert_snapshot!(said, @r#"
    error: jobs/services.toml: there is no table `service`
      hint: write the name as it is in the database, capitals and schema too, or create the table first
    error: jobs/services.toml: the table `staff` has no column `clinic`
      hint: say which column holds the tenant's id: `{ name = "staff", tenant = "…" }`; or with a query: `{ name = "staff", sql = "…" }`
    "#);
    assert!(triggers(&servers).await.is_empty());
}

#[tokio::test]
async fn who_may_not_is_told_how_the_owner_can() {
    let servers = servers().await;
    let role = format!("app_of_{}", servers.database.name());
    let make = format!("drop role if exists {role}; create role {role} login");
    servers.database.execute(&make).await;
    servers
        .database
        .execute(&format!("grant select on all tables in schema public to {role}"))
        .await;
    let url = servers.database.url_as(&role);
    let changes = |action: &str| {
        let changes = servers.preheat(["changes", action]).database(&url);
        changes.job("services", &watching(WATCHING)).run()
    };
    let said = changes("install").await.expect_code(2).stderr;
    insta::assert_snapshot!(said.replace(servers.database.name(), "[database]"), @r"
    error: cannot change the triggers of the change feed: permission denied for database [database] (42501)
      hint: let the owner of the tables do it: `preheat changes sql | psql -v ON_ERROR_STOP=1 --single-transaction`
    ");

    let with_all = servers.preheat(["changes", "install"]).job("services", &watching(WATCHING));
    with_all.run().await.expect_code(0);
    changes("install").await.expect_code(0);
    let said = changes("uninstall").await.expect_code(2).stderr;
    insta::assert_snapshot!(said, @r"
    error: cannot change the triggers of the change feed: must be owner of relation services (42501)
      hint: let the owner of the tables do it: `preheat changes sql --uninstall | psql -v ON_ERROR_STOP=1 --single-transaction`
    ");
    assert_eq!(triggers(&servers).await, OF_BOTH);
}

#[tokio::test]
async fn a_database_that_is_not_there_is_told_apart() {
    let install = preheat(["changes", "install"]).job("services", &watching(WATCHING));
    install.database("postgres://127.0.0.1:1/shop").run().await.expect_code(3);
    let install = preheat(["changes", "install"]).job("services", &watching(WATCHING));
    install.run().await.expect_code(2);
    preheat(["changes"]).run().await.expect_code(2);
}

#[tokio::test]
async fn installing_warns_of_what_jobs_read_and_nobody_watches_and_names_jobs_without_tables() {
    let servers = servers().await;
    let staff = "{ name = \"slots\", sql = \"select staff.tenant_id from changed join staff on \
                 staff.id = changed.staff_id\" }";
    let install = servers.preheat(["changes", "install"]);
    let install = install.job("slots", &watching(&format!("tables = [{staff}]")));
    let output = install.job("fleet", GLOBAL).run().await.expect_code(0);
    insta::assert_snapshot!(output.stdout);
    insta::assert_snapshot!(output.stderr);
}

#[tokio::test]
async fn a_log_that_nobody_could_read_is_a_warning_of_check_and_an_error_of_install() {
    let servers = servers().await;
    let with = |command: &[&'static str]| {
        servers
            .preheat(command.iter().copied())
            .env("PREHEAT_CHANGES__VIA", "wal")
            .job("services", &watching(WATCHING))
            .run()
    };
    let said = with(&["check"]).await.expect_code(0);
    let all = said.stdout + &said.stderr;
    assert!(all.contains("nobody would hear of changes: wal_level is minimal"), "{all}");
    let said = with(&["changes", "install"]).await.expect_code(2).stderr;
    assert!(said.contains("wal_level is minimal"), "{said}");
    let by_flag = with(&["changes", "install", "--via", "notify"]).await.expect_code(0).stderr;
    assert!(!by_flag.contains("hint"), "{by_flag}");
}

#[tokio::test]
async fn check_and_plan_tell_why_no_worker_hears_triggers_that_write_to_the_log() {
    let shop = Shop::open_logical(2).await;
    let role = format!("reader_{}", std::process::id());
    shop.execute(&format!("create role {role} login; grant select on items, tenants to {role}"))
        .await;
    let job = items("tables = [\"items\", { name = \"tenants\", tenant = \"id\" }]");
    let as_role = shop.url().replace("user=postgres", &format!("user={role}"));
    let run = async |command: &'static str, url: &str, direct: Option<&str>| {
        let run = preheat(command.split(' ')).database(url).cache(shop.redis.url());
        let run = run.job("items", &job);
        direct.into_iter().fold(run, |run, url| run.env("PREHEAT_CHANGES__URL", url)).run().await
    };
    let all = async |command: &'static str, url: &str, direct: Option<&str>| {
        let output = run(command, url, direct).await.expect_code(0);
        output.stdout + &output.stderr
    };
    all("changes install --via wal", shop.url(), None).await;
    let no_right = format!("the role {role} lacks REPLICATION");
    for (url, direct, lacks) in [
        (shop.url(), None, None),
        (&as_role, None, Some(no_right.as_str())),
        (&as_role, Some(shop.url()), None),
        (shop.url(), Some(as_role.as_str()), Some(no_right.as_str())),
    ] {
        hears_or_says(&all, (url, direct), lacks).await;
    }
    let said = all("check", &as_role, None).await;
    assert!(said.contains("--> triggers of the change feed"), "{said}");
    assert!(said.contains("[changes] url"), "{said}");

    shop.execute("drop publication preheat_changes").await;
    let missing = "the publication `preheat_changes` is missing";
    hears_or_says(&all, (shop.url(), None), Some(missing)).await;
    // The hint repeats how the triggers speak, and the flags.
    let refused = run("changes install", &as_role, None).await.expect_code(2).stderr;
    assert!(refused.contains("`preheat changes sql --via wal | psql"), "{refused}");
    let install = "changes install --security-definer --via notify";
    let refused = run(install, &as_role, None).await.expect_code(2).stderr;
    let flags = "`preheat changes sql --security-definer --via notify | psql";
    assert!(refused.contains(flags), "{refused}");
    shop.execute(&format!("drop owned by {role}; drop role {role}")).await;
}

/// Whether `check` and `plan` find that nobody hears of changes, for this reason.
async fn hears_or_says(
    all: &impl AsyncFn(&'static str, &str, Option<&str>) -> String,
    (url, direct): (&str, Option<&str>),
    lacks: Option<&str>,
) {
    let (check, plan) = (all("check", url, direct).await, all("plan", url, direct).await);
    match lacks {
        Some(lacks) => {
            assert!(check.contains(&format!("no worker can hear of changes: {lacks}")), "{check}");
            let feed = format!("the write-ahead log cannot be read: {lacks}");
            assert!(plan.contains(&feed), "{plan}");
        }
        None => assert!(!check.contains("write-ahead"), "{check}"),
    }
    assert_eq!(plan.contains("\n  rarer "), lacks.is_none(), "{plan}");
}
