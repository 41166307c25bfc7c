//! The data break the query, belong to another tenant, or resemble something else.

use serde_json::json;

use crate::support::shop::{QUERY, Shop, failure_kinds, items, items_by};
use crate::support::{LONG, eventually};

/// The query, with a name that only tenant 7 has.
fn of_seven(name: &str) -> String {
    QUERY.replace("name", &format!("case when tenant_id = 7 then {name} else name end as name"))
}

#[tokio::test]
async fn hazard_27_a_tenant_whose_rows_break_the_query_is_named_and_the_others_are_warm() {
    let shop = Shop::open(20).await;
    let query = of_seven("(1 / (tenant_id - 7))::text");
    let worker = shop.serve().job("items", &items_by("required = true", &query)).start();
    worker.works().await;
    let run = worker.warm("items").await;
    assert_eq!(run["outcome"], "partial", "{run}");
    assert_eq!(run["report"]["tenants"], json!({"total": 20, "ok": 19, "failed": 1, "fenced": 0}));
    let failure = &run["report"]["failures"][0];
    assert_eq!((&failure["tenant"], &failure["kind"]), (&json!("7"), &json!("query")));
    let message = failure["message"].as_str().unwrap();
    assert!(message.contains("division by zero (22012)"), "{message}");
    let mut expected = shop.expected().await;
    expected.remove("items:7");
    assert_eq!(shop.cached().await, expected);
    let metric = async |series: &str| worker.metric(series).await;
    let partial = "preheat_runs_total{job_name=\"items\",trigger=\"request\",outcome=\"partial\"}";
    assert_eq!(metric(partial).await, Some(1.0));
    let coverage = "preheat_coverage_ratio{job_name=\"items\"}";
    worker.metric_becomes(coverage, |share| (share - 0.95).abs() < 0.001).await;
    assert_eq!(metric("preheat_last_success_timestamp_seconds{job_name=\"items\"}").await, None);
    assert_eq!(worker.get("/readyz").await.status, 503, "partial is no success");
}

#[tokio::test]
async fn a_tenant_that_is_too_slow_is_named_the_others_are_warm_and_its_query_ends() {
    let shop = Shop::open(16).await;
    let query = of_seven("pg_sleep(60)::text");
    let worker = shop
        .serve()
        .env("PREHEAT_DATABASE__STATEMENT_TIMEOUT", "500ms")
        .job("items", &items_by("on_start = false", &query))
        .start();
    worker.answers("/readyz", 200).await;
    let run = worker.warm("items").await;
    assert_eq!(run["outcome"], "partial", "{run}");
    assert_eq!(failure_kinds(&run), ["statement_timeout"]);
    assert_eq!(run["report"]["failures"][0]["tenant"], "7");
    let mut expected = shop.expected().await;
    expected.remove("items:7");
    assert_eq!(shop.cached().await, expected);
    eventually("its query has ended", LONG, async || shop.active_queries().await == 0).await;
}

#[tokio::test]
async fn a_run_past_its_deadline_ends_and_so_does_its_query() {
    let shop = Shop::open(8).await;
    let query = of_seven("pg_sleep(60)::text");
    let lines = "batch = 1\nconcurrency = 2\ntimeout = \"1s\"\non_start = false";
    let worker = shop.serve().job("items", &items_by(lines, &query)).start();
    worker.answers("/readyz", 200).await;
    let run = worker.warm("items").await;
    assert_eq!(run["outcome"], "timeout", "{run}");
    assert_eq!(failure_kinds(&run), ["deadline"]);
    let mut expected = shop.expected().await;
    expected.remove("items:7");
    assert_eq!(shop.cached().await, expected, "the others were written meanwhile");
    eventually("its query has ended", LONG, async || shop.active_queries().await == 0).await;
}

#[tokio::test]
async fn a_query_that_is_wrong_for_all_is_not_sent_for_each_and_keys_stay() {
    let shop = Shop::open(60).await;
    let worker = shop.serve().job("items", &items("batch = 2\nrequired = true")).start();
    worker.answers("/readyz", 200).await;
    let expected = shop.expected().await;
    shop.execute("alter table items rename to things").await;
    let run = worker.warm("items").await;
    assert_eq!(run["outcome"], "failed", "{run}");
    assert_eq!(failure_kinds(&run), ["query"]);
    assert_eq!(run["report"]["tenants"], json!({"total": 60, "ok": 0, "failed": 60, "fenced": 0}));
    let queries = run["report"]["queries"].as_u64().unwrap();
    assert!(queries <= 4, "at most those that were in flight: {queries}");
    assert_eq!(shop.cached().await, expected);
    shop.execute("alter table things rename to items; update items set version = 9").await;
    assert_eq!(worker.warm("items").await["outcome"], "ok");
    shop.assert_warm().await;
}

#[tokio::test]
async fn columns_that_change_their_type_under_a_worker_do_no_harm() {
    let shop = Shop::open(10).await;
    let worker = shop.serve().job("items", &items("required = true")).start();
    worker.answers("/readyz", 200).await;
    shop.execute("alter table items alter version type int2").await;
    shop.execute("alter table tenants alter id type int8").await;
    shop.change().await;
    let run = worker.warm("items").await;
    assert_eq!(run["outcome"], "ok", "{run}");
    shop.assert_warm().await;
}

#[tokio::test]
async fn hazard_08_without_tenants_nothing_is_done_and_nothing_is_removed() {
    let shop = Shop::open(5).await;
    let worker = shop.serve().job("items", &items("required = true")).start();
    worker.answers("/readyz", 200).await;
    let expected = shop.expected().await;
    shop.execute("update tenants set status = 'suspended'").await;
    let run = worker.warm("items").await;
    assert_eq!(run["report"]["tenants"], json!({"total": 0, "ok": 0, "failed": 0, "fenced": 0}));
    assert_eq!(run["report"]["queries"], 0);
    assert_eq!((&run["outcome"], failure_kinds(&run)), (&json!("failed"), vec!["tenants_shrank"]));
    assert_eq!(shop.cached().await, expected);
}

#[tokio::test]
async fn hazard_10_rows_of_another_tenant_are_written_for_nobody() {
    let shop = Shop::open(6).await;
    let query = QUERY.replace("tenant_id = any($1)", "cardinality($1) > 0");
    let lines = "batch = 2\non_start = false";
    let worker = shop.serve().job("items", &items_by(lines, &query)).start();
    worker.answers("/readyz", 200).await;
    let run = worker.warm("items").await;
    assert_eq!(run["outcome"], "failed", "{run}");
    assert_eq!(failure_kinds(&run), ["foreign_row"]);
    assert!(shop.cached().await.is_empty());
}

#[tokio::test]
async fn hazard_19_a_value_that_has_become_too_large_is_removed_and_named() {
    let shop = Shop::open(6).await;
    let job = items("required = true") + "max_bytes = \"4KiB\"\n";
    let worker = shop.serve().job("items", &job).start();
    worker.answers("/readyz", 200).await;
    shop.execute("update items set name = repeat('x', 1000) where tenant_id = 3").await;
    let run = worker.warm("items").await;
    assert_eq!(run["outcome"], "partial", "{run}");
    let failure = &run["report"]["failures"][0];
    assert_eq!(failure["kind"], "value_too_large");
    assert_eq!((&failure["tenant"], &failure["key"]), (&json!("3"), &json!("items:3")));
    assert_eq!(
        run["report"]["keys"],
        json!({"written": 5, "removed": 1, "failed": 1, "fenced": 0})
    );
    let mut expected = shop.expected().await;
    expected.remove("items:3");
    assert_eq!(shop.cached().await, expected);
    let removed = "preheat_keys_total{job_name=\"items\",outcome=\"removed\"}";
    assert_eq!(worker.metric(removed).await, Some(1.0));
    shop.execute("update items set name = 'x' where tenant_id = 3").await;
    assert_eq!(worker.warm("items").await["outcome"], "ok");
    shop.assert_warm().await;
}

/// Ids with special characters for keys, patterns, templates, lines, SQL, JSON and shells.
const HOSTILE: [&str; 18] = [
    "a:b",
    "*",
    "?[x]",
    "{tenant_id}",
    "{{",
    "new\nline",
    "car\rriage",
    "\u{2028}",
    "ü\u{301}",
    "'; --",
    "\"quoted\"",
    "%s",
    "$1",
    " ",
    "\t",
    "../..",
    "back\\slash",
    "\u{7}bell\u{1b}[31m",
];

#[tokio::test]
async fn hazard_33_ids_that_look_like_something_else_are_only_ids() {
    let shop = Shop::open(2).await;
    shop.execute(
        "alter table tenants alter id type text; alter table items alter tenant_id type text",
    )
    .await;
    let mut connection = shop.connect().await;
    for id in HOSTILE {
        for sql in [
            "insert into tenants (id) values ($1)",
            "insert into items (tenant_id, id, name) values ($1, 1, $1)",
        ] {
            sqlx::query(sql).bind(id).execute(&mut connection).await.unwrap();
        }
    }
    let query = QUERY.replace(
        "name",
        "case when version = 2 then (1 / (version - 2))::text else name end as name",
    );
    let mut worker = shop.serve().job("items", &items_by("required = true", &query)).start();
    worker.answers("/readyz", 200).await;
    shop.assert_warm().await;
    for id in HOSTILE {
        assert!(shop.value(&format!("items:{id}")).await.is_some(), "{id:?}");
    }

    let line = "new\nline";
    sqlx::query("update items set version = 2 where tenant_id = $1")
        .bind(line)
        .execute(&mut connection)
        .await
        .unwrap();
    let path = "/api/v1/jobs/items/runs";
    let run = worker.post(path, &json!({"tenants": HOSTILE, "wait": true})).await.json();
    assert_eq!(run["outcome"], "partial", "{run}");
    assert_eq!(run["report"]["tenants"], json!({"total": 18, "ok": 17, "failed": 1, "fenced": 0}));
    assert_eq!(run["report"]["failures"][0]["tenant"], line);
    worker.says("tenant `new\\nline`: ").await;
    let log = worker.stderr();
    assert!(log.lines().all(|line| line.starts_with("20")), "a line is an event:\n{log}");
}
