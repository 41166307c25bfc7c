//! `preheat check`.

use super::{FLEET, SERVICES, servers};
use crate::support::preheat;

#[tokio::test]
async fn good_jobs_are_good_with_and_without_the_database() {
    let servers = servers().await;
    let check = servers.preheat(["check"]).job("services", SERVICES).job("fleet", FLEET);
    let output = check.run().await.expect_code(0);
    let good = "2 jobs, no problems; every query was prepared and tried on a few tenants\n\
                without `tables`, so that no change feed warms them: `fleet` and `services`\n";
    assert_eq!(output.stdout, good);
    let output = servers.preheat(["check"]).shipped_jobs().run().await.expect_code(0);
    let good = "6 jobs, no problems; every query was prepared and tried on a few tenants\n";
    assert_eq!(output.stdout, good);
    assert_eq!(output.stderr, "");
    let offline = preheat(["check", "--offline"]).job("services", SERVICES);
    let output = offline.run().await.expect_code(0);
    assert_eq!(output.stdout, "1 job, no problems; queries were not checked\n");
    assert!(servers.values().await.is_empty());
}

/// What a person sees of a job with this query.
async fn problems(sql: &str, rest: &str) -> String {
    let servers = servers().await;
    let job = format!(
        "schedule = \"every 15m\"\nttl = \"1h\"\n\n[query]\nsql = \"\"\"\n{sql}\n\"\"\"\n\n{rest}"
    );
    let output = servers.preheat(["check"]).job("menu", &job).run().await.expect_code(2);
    assert_eq!(output.stdout, "");
    output.stderr
}

const KEY: &str = "[[keys]]\nkey = \"menu:{tenant_id}\"\n";

#[tokio::test]
async fn an_unknown_table_is_shown_in_the_file() {
    let sql = "select tenant_id, name\nfrom servces\nwhere tenant_id = any($1)";
    insta::assert_snapshot!(problems(sql, KEY).await, @r#"
    error: relation "servces" does not exist (42P01)
     --> jobs/menu.toml:7:6
      |
    7 | from servces
      |      ^^^^^^^
    "#);
}

#[tokio::test]
async fn an_unknown_column_is_shown_in_the_file() {
    let sql = "select tenant_id, 'Röntgen' as kind, nam\nfrom services\nwhere tenant_id = any($1)";
    insta::assert_snapshot!(problems(sql, KEY).await, @r#"
    error: column "nam" does not exist (42703)
     --> jobs/menu.toml:6:38
      |
    6 | select tenant_id, 'Röntgen' as kind, nam
      |                                      ^^^
      |
      = hint: Perhaps you meant to reference the column "services.name".
    "#);
}

#[tokio::test]
async fn a_parameter_of_the_wrong_type_is_shown_in_the_file() {
    let sql = "select tenant_id, name\nfrom services\nwhere duration_minutes = any($1)";
    insta::assert_snapshot!(problems(sql, KEY).await, @r"
    error: operator does not exist: integer = uuid (42883)
     --> jobs/menu.toml:8:24
      |
    8 | where duration_minutes = any($1)
      |                        ^
      |
      = hint: No operator matches the given name and argument types. You might need to add explicit type casts.
    ");
    let sql = "select tenant_id, name from services where tenant_id = any($1) and price > $2";
    insta::assert_snapshot!(problems(sql, KEY).await, @r#"
    error: the query uses `$2`, and the job gives it `$1` only
     --> jobs/menu.toml:5:1
      |
    5 | sql = """
      | ^^^
    "#);
    let sql = "select tenant_id, name from services";
    insta::assert_snapshot!(problems(sql, KEY).await, @r#"
    error: the query of a job with tenants does not use `$1`
     --> jobs/menu.toml:5:1
      |
    5 | sql = """
      | ^^^
      |
      = hint: `$1` is the array of the batch's tenant ids: `where tenant_id = any($1)`; a query for the whole fleet has `tenants = false`
    "#);
}

#[tokio::test]
async fn a_column_without_a_codec_is_named_with_its_cast() {
    let sql = "select tenant_id, point(1, 2) as place, lseg '((0,0),(1,1))' as line\n\
               from services\nwhere tenant_id = any($1)";
    insta::assert_snapshot!(problems(sql, KEY).await, @r#"
    error: column `line` has the type `lseg`, which has no codec
     --> jobs/menu.toml:5:1
      |
    5 | sql = """
      | ^^^
      |
      = hint: cast it to text in the query: `line::text as line`
    "#);
}

#[tokio::test]
async fn columns_that_keys_and_dates_need_must_be_there() {
    let sql = "select name, category from products\nwhere tenant_id = any($1)";
    insta::assert_snapshot!(problems(sql, KEY).await, @r#"
    error: the query returns no column `tenant_id`
     --> jobs/menu.toml:5:1
      |
    5 | sql = """
      | ^^^
      |
      = hint: each row needs its tenant's id; `encode.omit` keeps it out of the value
    "#);

    let sql = "select tenant_id, name, category from products\nwhere tenant_id = any($1)";
    let keys = "[[keys]]\nkey = \"menu:{tenant_id}:{categori}\"\n\n\
                [[keys]]\nkey = \"menu:{tenant_id}:in:{tenant.city}\"\n";
    insta::assert_snapshot!(problems(sql, keys).await, @r#"
    error: the query returns no column `categori`
      --> jobs/menu.toml:11:7
       |
    11 | key = "menu:{tenant_id}:{categori}"
       |       ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
       |
       = hint: did you mean `category`?

    error: the tenant query returns no column `city` after the id
      --> jobs/menu.toml:14:7
       |
    14 | key = "menu:{tenant_id}:in:{tenant.city}"
       |       ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
       |
       = hint: add it to `tenants.sql`
    "#);

    let sql = "select tenant_id, starts_at from slots\nwhere tenant_id = any($1)";
    let dated = "[dates]\ndays = 7\ntimezone = \"tenant.time_zone\"\n\n\
                 [[keys]]\nkey = \"menu:{tenant_id}:{date}\"\n";
    insta::assert_snapshot!(problems(sql, dated).await, @r#"
    error: the tenant query returns no column `time_zone` after the id
      --> jobs/menu.toml:12:12
       |
    12 | timezone = "tenant.time_zone"
       |            ^^^^^^^^^^^^^^^^^^
       |
       = hint: did you mean `timezone`?

    error: the query returns no column `date`
      --> jobs/menu.toml:15:7
       |
    15 | key = "menu:{tenant_id}:{date}"
       |       ^^^^^^^^^^^^^^^^^^^^^^^^^
    "#);
}

#[tokio::test]
async fn what_encode_names_must_be_there() {
    let sql = "select tenant_id, name, price from services\nwhere tenant_id = any($1)";
    let encode = "[encode]\nomit = [\"tenant_id\", \"nmae\"]\n\
                  columns = { price = \"number\", prise = \"string\" }\n";
    insta::assert_snapshot!(problems(sql, &format!("{KEY}\n{encode}")).await, @r#"
    error: `omit` names a column `nmae` that the query does not return
      --> jobs/menu.toml:14:8
       |
    14 | omit = ["tenant_id", "nmae"]
       |        ^^^^^^^^^^^^^^^^^^^^^
       |
       = hint: did you mean `name`?

    error: `columns` names a column `prise` that the query does not return
      --> jobs/menu.toml:15:39
       |
    15 | columns = { price = "number", prise = "string" }
       |                                       ^^^^^^^^
       |
       = hint: did you mean `price`?
    "#);
}

#[tokio::test]
async fn a_query_in_a_file_of_its_own_is_shown_there() {
    let servers = servers().await;
    let job =
        format!("schedule = \"every 15m\"\nttl = \"1h\"\n[query]\nfile = \"menu.sql\"\n{KEY}");
    let sql = "-- the menu\nselect tenant_id, nam from services where tenant_id = any($1)\n";
    let check = servers.preheat(["check"]).job("menu", &job).file("jobs/menu.sql", sql);
    insta::assert_snapshot!(check.run().await.expect_code(2).stderr, @r#"
    error: column "nam" does not exist (42703)
     --> jobs/menu.sql:2:19
      |
    2 | select tenant_id, nam from services where tenant_id = any($1)
      |                   ^^^
      |
      = hint: Perhaps you meant to reference the column "services.name".
    "#);
}

#[tokio::test]
async fn problems_of_the_tenant_query_and_of_all_jobs_are_told_at_once() {
    let servers = servers().await;
    let settings = "[tenants]\nsql = \"select id, zone from tenants\"\n";
    let broken = SERVICES.replace("id, name, price", "id, nane, price");
    let check = servers.preheat(["check"]).settings(settings).job("fleet", FLEET);
    let check =
        check.job("services", &FLEET.replace("tenants\"", "clinics\"").replace("fleet", "f"));
    let check = check.job("menu", &broken.replace("services:", "menu:"));
    insta::assert_snapshot!(check.run().await.expect_code(2).stderr, @r#"
    error: relation "clinics" does not exist (42P01)
     --> jobs/services.toml:7:45
      |
    7 | sql = "select count(*)::int as clinics from clinics"
      |                                             ^^^^^^^

    error: column "zone" does not exist (42703)
     --> setting `tenants.sql`:1:12
      |
    1 | select id, zone from tenants
      |            ^^^^
    "#);

    for (sql, said) in [
        ("select created_at from tenants", "the tenants' id `created_at` is timestamptz"),
        ("select id from tenants where id = $1", "the tenant query has a parameter"),
    ] {
        let settings = format!("[tenants]\nsql = \"{sql}\"\n");
        let check = servers.preheat(["check"]).settings(&settings).job("services", SERVICES);
        let stderr = check.run().await.expect_code(2).stderr;
        assert!(stderr.contains(said), "{stderr}");
        assert!(stderr.contains("setting `tenants.sql`"), "{stderr}");
    }
}

#[tokio::test]
async fn bad_files_are_told_without_a_database_and_no_database_is_told_apart() {
    let check = preheat(["check"]).job("menu", "schedule = \"every 1h\"\ntll = \"2h\"\n");
    insta::assert_snapshot!(check.run().await.expect_code(2).stderr, @r#"
    error: missing field `keys`
    --> jobs/menu.toml
     = hint: add `[[keys]]` with `key = "…:{tenant_id}"`

    error: missing field `query`
    --> jobs/menu.toml
     = hint: add `[query]` with `sql = "…"`

    error: missing field `ttl`
    --> jobs/menu.toml
     = hint: add `ttl = "30m"`

    error: unknown field `tll`
     --> jobs/menu.toml:2:1
      |
    2 | tll = "2h"
      | ^^^
      |
      = hint: did you mean `ttl`?
    "#);
    let check = preheat(["check"]).job("services", SERVICES);
    insta::assert_snapshot!(check.run().await.expect_code(2).stderr, @r"
    error: setting `database.url` is missing
      hint: set `DATABASE_URL` or `[database] url`, as in `postgres://user:password@host/name`
    ");
    let gone = preheat(["check"]).job("services", SERVICES).database("postgres://127.0.0.1:1/shop");
    insta::assert_snapshot!(gone.run().await.expect_code(3).stderr, @r"
    error: could not connect to database `127.0.0.1:1/shop`: Connection refused (os error 111)
    ");
}
