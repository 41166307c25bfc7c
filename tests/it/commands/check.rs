//! `preheat check`.

use super::{GLOBAL, SERVICES, servers};
use crate::support::preheat;
use crate::support::sentinels::{SERVICE, sentinel};

#[tokio::test]
async fn good_jobs_are_good_with_and_without_the_database() {
    let servers = servers().await;
    let check = servers.preheat(["check"]).job("services", SERVICES).job("fleet", GLOBAL);
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

#[tokio::test]
async fn the_primary_that_sentinels_name_is_shown() {
    let servers = servers().await;
    let watching = sentinel(&servers.redis, &[]);
    let url = format!("redis+sentinel://127.0.0.1:{}/{SERVICE}", watching.tcp_port().unwrap());
    let check = servers.preheat(["check"]).cache(&url).shipped_jobs();
    let said = check.run().await.expect_code(0).stdout;
    let primary = format!("127.0.0.1:{}", servers.redis.tcp_port().unwrap());
    let named = format!("the Sentinels name `{primary}` as the cache's primary\n");
    assert!(said.ends_with(&named), "{said}");
    let check = servers.preheat(["check", "--json"]).cache(&url).shipped_jobs();
    assert_eq!(check.run().await.expect_code(0).json()["primary"], primary);
}

/// What a person sees for a job with this query.
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
      = hint: `$1` is the array of the batch's tenant ids: `where tenant_id = any($1)`; a query for all tenants together has `tenants = false`
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
    let check = servers.preheat(["check"]).settings(settings).job("fleet", GLOBAL);
    let check =
        check.job("services", &GLOBAL.replace("tenants\"", "clinics\"").replace("fleet", "f"));
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
    error: setting `database.url` is missing
      hint: set `DATABASE_URL` or `[database] url`, as in `postgres://user:password@host/name`
    error: setting `cache.url` is missing
      hint: set `REDIS_URL` or `[cache] url`, as in `redis://host:6379`

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
    insta::assert_snapshot!(check.run().await.expect_code(2).stderr, @r#"
    error: setting `database.url` is missing
      hint: set `DATABASE_URL` or `[database] url`, as in `postgres://user:password@host/name`
    error: setting `cache.url` is missing
      hint: set `REDIS_URL` or `[cache] url`, as in `redis://host:6379`
    "#);
    let gone = preheat(["check"]).job("services", SERVICES).database("postgres://127.0.0.1:1/shop");
    let gone = gone.cache("redis://127.0.0.1:1");
    insta::assert_snapshot!(gone.run().await.expect_code(3).stderr, @r#"
    error: could not connect to database `127.0.0.1:1/shop`: Connection refused (os error 111)
    error: could not connect to cache `127.0.0.1:1`: Connection refused (os error 111)
    "#);
}

#[tokio::test]
async fn in_an_empty_folder_all_that_is_missing_is_told_at_once() {
    insta::assert_snapshot!(preheat(["check"]).run().await.expect_code(2).stderr, @r#"
    error: setting `database.url` is missing
      hint: set `DATABASE_URL` or `[database] url`, as in `postgres://user:password@host/name`
    error: setting `cache.url` is missing
      hint: set `REDIS_URL` or `[cache] url`, as in `redis://host:6379`

    error: the jobs folder has no job file, `NAME.toml`
    --> jobs
     = hint: `--jobs DIR` or PREHEAT_JOBS names the folder
    "#);
}

#[tokio::test]
async fn a_cache_that_is_missing_or_away_is_told_with_what_is_wrong_with_the_queries() {
    let servers = servers().await;
    let database = || preheat(["check"]).database(servers.database.url());
    let unset = database().job("services", SERVICES).run().await.expect_code(2);
    insta::assert_snapshot!(unset.stderr, @r#"
    error: setting `cache.url` is missing
      hint: set `REDIS_URL` or `[cache] url`, as in `redis://host:6379`
    "#);
    let away = database().job("services", SERVICES).cache("redis://127.0.0.1:1");
    let away = away.run().await.expect_code(3);
    assert_eq!(away.stdout, "");
    insta::assert_snapshot!(away.stderr, @r#"
    error: could not connect to cache `127.0.0.1:1`: Connection refused (os error 111)
    "#);
    let broken = SERVICES.replace("id, name, price", "id, nane, price");
    let both = database().job("services", &broken).cache("redis://127.0.0.1:1");
    insta::assert_snapshot!(both.run().await.expect_code(2).stderr, @r#"
    error: column "nane" does not exist (42703)
     --> jobs/services.toml:7:30
      |
    7 | sql = "select tenant_id, id, nane, price from services where tenant_id = any($1) order by name, id"
      |                              ^^^^
      |
      = hint: Perhaps you meant to reference the column "services.name".

    error: could not connect to cache `127.0.0.1:1`: Connection refused (os error 111)
    "#);
    let offline = preheat(["check", "--offline"]).job("services", SERVICES);
    offline.run().await.expect_code(0);
}

#[tokio::test]
async fn a_table_that_no_entry_of_tables_names_is_a_warning_with_the_line_to_add() {
    let servers = servers().await;
    let sql = "select s.tenant_id, s.name, t.name as clinic, (select count(*)::int from slots \
               where staff_id = s.id) as slots from staff s join tenants t on t.id = s.tenant_id \
               where s.tenant_id = any($1)";
    let job = |tables: &str| {
        format!(
            "schedule = \"every 15m\"\nttl = \"1h\"\ntables = {tables}\n\n[query]\n\
             sql = \"{sql}\"\n\n[[keys]]\nkey = \"staff:{{tenant_id}}\"\n"
        )
    };
    let check = servers.preheat(["check"]).job("staff", &job("[\"staff\"]"));
    let output = check.run().await.expect_code(0);
    assert_eq!(
        output.stdout,
        "1 job, no problems, 2 warnings; every query was prepared and tried on a few tenants\n"
    );
    insta::assert_snapshot!(output.stderr, @r#"
    warning: the query reads `slots`, which `tables` does not name: a change there is not seen until the job's next scheduled run
     --> jobs/staff.toml:3:10
      |
    3 | tables = ["staff"]
      |          ^^^^^^^^^
      |
      = hint: add `"slots"` to `tables`

    warning: the query reads `tenants`, which `tables` does not name: a change there is not seen until the job's next scheduled run
     --> jobs/staff.toml:3:10
      |
    3 | tables = ["staff"]
      |          ^^^^^^^^^
      |
      = hint: add `{ name = "tenants", tenant = "COLUMN" }` to `tables` where a column of it has the tenant's id, else `{ name = "tenants", sql = "select tenant_id from … join changed …" }`
    "#);
    let all = "[\"staff\", \"slots\", { name = \"tenants\", tenant = \"id\" }]";
    let output = servers.preheat(["check"]).job("staff", &job(all)).run().await.expect_code(0);
    assert_eq!(output.stderr, "");
    // Without a change feed no table is watched.
    let off = servers.preheat(["check"]).settings("[changes]\nenabled = false\n");
    let output = off.job("staff", &job("[\"staff\"]")).run().await.expect_code(0);
    assert_eq!(output.stderr, "");
}

#[tokio::test]
async fn tables_that_cannot_be_watched_are_problems_of_their_job() {
    let servers = servers().await;
    servers.database.execute("create view open_slots as select * from slots").await;
    let job =
        SERVICES.replace("[query]", "tables = [\"services\", \"Pets\", \"open_slots\"]\n[query]");
    let check = servers.preheat(["check"]).job("services", &job);
    insta::assert_snapshot!(check.run().await.expect_code(2).stderr, @r#"
    error: `open_slots` is a view, whose rows change without a trigger
     --> jobs/services.toml:6:10
      |
    6 | tables = ["services", "Pets", "open_slots"]
      |          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
      |
      = hint: name the tables that it reads, with `tenant` or `sql`

    error: there is no table `Pets`
     --> jobs/services.toml:6:10
      |
    6 | tables = ["services", "Pets", "open_slots"]
      |          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
      |
      = hint: write the name as it is in the database, capitals and schema too, or create the table first
    "#);
}

#[tokio::test]
async fn a_column_that_stands_in_shared_keys_and_is_not_there_is_a_problem_of_its_job() {
    let servers = servers().await;
    let job = "schedule = \"every 15m\"\nttl = \"1h\"\ntables = [{ name = \"pets\", key = \"chip\" }]\n\
               [query]\nsql = \"select tenant_id, id, name from pets where tenant_id = any($1)\"\n\
               [[keys]]\nkey = \"pet:{id}\"\nshape = \"object\"\nunique = \"id\"\n";
    let check = |job: &str| servers.preheat(["check"]).job("pets", job).run();
    insta::assert_snapshot!(check(job).await.expect_code(2).stderr, @r#"
    error: the table `pets` has no column `chip`
     --> jobs/pets.toml:3:10
      |
    3 | tables = [{ name = "pets", key = "chip" }]
      |          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
      |
      = hint: say which column's value stands in the shared key: `{ name = "pets", key = "…" }`
    "#);
    check(&job.replace("chip", "id")).await.expect_code(0);
}

#[tokio::test]
async fn jobs_and_relations_that_no_change_feed_watches_are_named_quietly() {
    let servers = servers().await;
    let sql = "create materialized view totals as \
               select tenant_id, count(*)::int as n from pets group by tenant_id";
    servers.database.execute(sql).await;
    let job = "schedule = \"every 15m\"\nttl = \"1h\"\ntables = [\"pets\"]\n[query]\n\
               sql = \"select tenant_id, n from totals where tenant_id = any($1)\"\n\
               [[keys]]\nkey = \"totals:{tenant_id}\"\n";
    let check = servers.preheat(["check", "--no-data"]).job("totals", job).job("fleet", GLOBAL);
    let output = check.run().await.expect_code(0);
    assert_eq!(output.stderr, "");
    insta::assert_snapshot!(output.stdout, @r#"
    2 jobs, no problems; every query was prepared
    without `tables`, so that no change feed warms them: `fleet`
    `totals` reads the materialized view `totals`, which no change feed can watch
    "#);
}

#[tokio::test]
async fn a_query_that_mixes_tenants_is_a_problem_unless_no_data_is_read() {
    let sql = "select tenant_id, name, row_number() over (order by name, id) as place from pets\n\
               where tenant_id = any($1) order by name, id";
    let found = problems(sql, KEY).await;
    let start = "error: a tenant's rows depend on the other tenants of its batch: tenant `";
    assert!(found.starts_with(start), "{found}");
    assert!(found.contains("jobs/menu.toml:5:1"), "{found}");
    let servers = servers().await;
    let job =
        format!("schedule = \"every 15m\"\nttl = \"1h\"\n[query]\nsql = \"\"\"{sql}\"\"\"\n{KEY}");
    let check = servers.preheat(["check", "--no-data"]).job("menu", &job);
    let output = check.run().await.expect_code(0);
    assert!(output.stdout.starts_with("1 job, no problems; every query was prepared\n"));
    insta::assert_snapshot!(
        problems("select tenant_id, name from pets where tenant_id = any($1) limit 5", KEY).await,
        @r#"
        error: `limit` or `offset` cuts off rows of the whole batch, and not those of each tenant
         --> jobs/menu.toml:5:1
          |
        5 | sql = """
          | ^^^
          |
          = hint: number each tenant's rows by `row_number() over (partition by tenant_id order by …)`, or put the `limit` into a lateral subquery: `from unnest($1) as batch (id) cross join lateral (select … limit 10) as one`
        "#
    );
}

#[tokio::test]
async fn a_query_that_writes_is_shown_in_the_file() {
    let sql = "delete from pets where tenant_id = any($1) returning tenant_id, name";
    insta::assert_snapshot!(problems(sql, KEY).await, @r#"
    error: the query writes or locks rows: `delete`
     --> jobs/menu.toml:5:1
      |
    5 | sql = """
      | ^^^
      |
      = hint: preheat's queries only read, in read-only transactions: use a `select`
    "#);
}

#[tokio::test]
async fn tenants_that_cannot_be_listed_are_a_problem_of_the_setting() {
    let servers = servers().await;
    let settings = "[tenants]\nsql = \"select tenant_id from pets\"\n";
    let check = servers.preheat(["check"]).settings(settings).job("services", SERVICES);
    let stderr = check.run().await.expect_code(2).stderr;
    assert!(stderr.contains("comes more than once"), "{stderr}");
    assert!(stderr.contains("setting `tenants.sql`"), "{stderr}");
}

#[tokio::test]
async fn the_result_as_json_has_problems_warnings_and_what_is_not_watched() {
    let servers = servers().await;
    let broken = SERVICES.replace("id, name, price", "id, nane, price");
    let flagged = SERVICES
        .replace("services:{tenant_id}", "flags:{tenant_id}:{active}")
        .replace("id, name, price", "id, name, active");
    let check = servers.preheat(["check", "--json"]).job("services", &broken);
    let output = check.job("flags", &flagged).job("fleet", GLOBAL).run().await.expect_code(2);
    assert_eq!(output.stderr, "");
    insta::assert_snapshot!(output.stdout, @r#"
    {
      "jobs": 3,
      "checked": "rows",
      "problems": [
        {
          "severity": "error",
          "file": "jobs/services.toml",
          "line": 7,
          "column": 30,
          "message": "column \"nane\" does not exist (42703)",
          "allowed": null,
          "hint": "Perhaps you meant to reference the column \"services.name\"."
        }
      ],
      "warnings": [
        {
          "severity": "warning",
          "file": "jobs/flags.toml",
          "line": 9,
          "column": 7,
          "message": "the column `active` is bool and stands in the key as Postgres writes it: `t` or `f`",
          "allowed": null,
          "hint": "an application seldom writes it so: add `active::text as active_key` to the query, write `{active_key}`, and name the column in `encode.omit`"
        }
      ],
      "without_tables": [
        "flags",
        "fleet"
      ],
      "unwatchable": [],
      "unreachable": null
    }
    "#);
    let good = servers.preheat(["check", "--json", "--no-data"]).job("services", SERVICES);
    let good: serde_json::Value =
        serde_json::from_str(&good.run().await.expect_code(0).stdout).unwrap();
    assert_eq!(good["checked"], "queries");
    assert_eq!(good["problems"], serde_json::json!([]));
}

#[tokio::test]
async fn the_problems_of_files_as_json_come_without_the_servers() {
    let bad = preheat(["check", "--json"]).settings("[runner]\nbatsh = 3\n").job("menu", "");
    let output = bad.run().await.expect_code(2);
    assert_eq!(output.stderr, "");
    insta::assert_snapshot!(output.stdout, @r#"
    {
      "jobs": 0,
      "checked": "files",
      "problems": [
        {
          "severity": "error",
          "file": "preheat.toml",
          "line": 2,
          "variable": null,
          "message": "unknown setting `runner.batsh`",
          "hint": "did you mean `runner.batch`?"
        },
        {
          "severity": "error",
          "file": "jobs/menu.toml",
          "line": null,
          "column": null,
          "message": "missing field `keys`",
          "allowed": null,
          "hint": "add `[[keys]]` with `key = \"…:{tenant_id}\"`"
        },
        {
          "severity": "error",
          "file": "jobs/menu.toml",
          "line": null,
          "column": null,
          "message": "missing field `query`",
          "allowed": null,
          "hint": "add `[query]` with `sql = \"…\"`"
        },
        {
          "severity": "error",
          "file": "jobs/menu.toml",
          "line": null,
          "column": null,
          "message": "missing field `schedule`",
          "allowed": null,
          "hint": "add `schedule = \"every 10m\"`"
        },
        {
          "severity": "error",
          "file": "jobs/menu.toml",
          "line": null,
          "column": null,
          "message": "missing field `ttl`",
          "allowed": null,
          "hint": "add `ttl = \"30m\"`"
        }
      ],
      "warnings": [],
      "without_tables": [],
      "unwatchable": [],
      "unreachable": null
    }
    "#);
}

#[tokio::test]
async fn hazard_35_a_query_that_row_level_security_would_filter_is_a_problem() {
    let servers = servers().await;
    let role = format!("limited_{}", servers.database.name());
    let url = super::database::with_a_policy(&servers, &role).await;
    let check = servers.preheat(["check"]).database(&url).job("services", SERVICES);
    let check = check.job("fleet", GLOBAL);
    insta::assert_snapshot!(check.run().await.expect_code(2).stderr, @r#"
    error: query would be affected by row-level security policy for table "services" (42501)
     --> jobs/services.toml:7:1
      |
    7 | sql = "select tenant_id, id, name, price from services where tenant_id = any($1) order by name, id"
      | ^^^
      |
      = hint: read with a role that has BYPASSRLS, or set `database.row_security = "accept"` if the policies show the role every row
    "#);
    let settings = "[database]\nrow_security = \"accept\"\n";
    let accept = servers.preheat(["check"]).database(&url).settings(settings);
    let accept = accept.job("services", SERVICES).run().await.expect_code(0);
    assert!(accept.stdout.starts_with("1 job, no problems"), "{}", accept.stdout);
    let tables = format!("drop owned by {role}; drop role {role}");
    servers.database.execute(&tables).await;
}

#[tokio::test]
async fn a_name_with_capitals_and_without_quotes_comes_with_the_quotes() {
    let servers = servers().await;
    servers
        .database
        .execute("create schema app; create table app.\"Customer\" (\"workspaceId\" uuid)")
        .await;
    let query = |sql: &str| {
        format!("schedule = \"every 15m\"\nttl = \"1h\"\n[query]\nsql = '''{sql}'''\n{KEY}")
    };
    for (sql, hint) in [
        (
            "select tenant_id from app.Customer where tenant_id = any($1)",
            "write `app.\"Customer\"`",
        ),
        (
            "select workspaceId as tenant_id from app.\"Customer\" where \"workspaceId\" = any($1)",
            "write `\"workspaceId\"`",
        ),
    ] {
        let check = servers.preheat(["check"]).job("menu", &query(sql));
        let stderr = check.run().await.expect_code(2).stderr;
        assert!(stderr.contains(hint), "{stderr}");
    }
}

#[tokio::test]
async fn hazard_37_what_the_ids_may_hold_decides_whether_two_jobs_clash() {
    let servers = servers().await;
    let (all, new) = (
        SERVICES.replace("services:{tenant_id}", "{tenant_id}:services"),
        SERVICES.replace("services:{tenant_id}", "{tenant_id}:new:services"),
    );
    let check = |arguments: &[&str], settings: &str| {
        let check = servers.preheat(arguments.iter().copied()).settings(settings);
        check.job("all", &all).job("new", &new)
    };
    check(&["check"], "").run().await.expect_code(0);
    let offline = check(&["check", "--offline"], "").run().await.expect_code(0);
    insta::assert_snapshot!(offline.stderr);
    assert_eq!(offline.stdout, "2 jobs, no problems, 1 warning; queries were not checked\n");
    let texts = "[tenants]\nsql = \"select id::text from tenants\"\n";
    let stderr = check(&["check", "--no-data"], texts).run().await.expect_code(2).stderr;
    assert!(stderr.contains("error: two jobs can write one key"), "{stderr}");
}
