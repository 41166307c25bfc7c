//! The documents of the control plane name what the code has.

use preheat::observe::metric::DECLARED;

use super::Worker;
use crate::support::document;
use crate::support::http::request;

#[tokio::test]
async fn the_first_page_names_the_routes() {
    let worker = Worker::start().await;
    let page = worker.get("/").await;
    assert_eq!(page.status, 200);
    for route in ["/healthz", "/readyz", "/metrics", "/api/v1/jobs", "POST /api/v1/runs"] {
        assert!(page.body.contains(route), "{}", page.body);
    }
    let head = request(worker.address, "HEAD", "/healthz", &[], "").await.unwrap();
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert!(worker.metrics.encode().contains("preheat_build_info"));
    worker.stop().await;
}

#[tokio::test]
async fn docs_http_names_every_route_and_every_code() {
    let page = include_str!("../../../docs/http.md");
    let worker = Worker::start().await;
    let index = worker.get("/").await.body;
    let routes: Vec<_> = index.lines().filter(|line| line.contains(" /")).collect();
    assert!(routes.len() >= 9, "{index}");
    for route in routes {
        let mut words = route.split_whitespace();
        let row = format!("| `{} {}` |", words.next().unwrap(), words.next().unwrap());
        assert!(page.contains(&row), "docs/http.md has no {row}");
    }
    let sources = [
        include_str!("../../../src/http/answer.rs"),
        include_str!("../../../src/http/auth.rs"),
        include_str!("../../../src/http/idempotency.rs"),
        include_str!("../../../src/http/runs.rs"),
        include_str!("../../../src/http/starting.rs"),
    ];
    let texts = sources.iter().flat_map(|source| source.split('"').skip(1).step_by(2));
    let is_code = |text: &&str| {
        text.contains('_') && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    let codes: Vec<_> = texts.filter(is_code).filter(|text| *text != "snake_case").collect();
    assert!(codes.len() >= 12, "{codes:?}");
    for code in codes {
        let documented = page.contains(&format!("`{code}`"));
        assert!(documented || code == "invalid_token", "docs/http.md has no `{code}`");
    }
    worker.stop().await;
}

#[test]
fn docs_http_explains_every_kind_of_failure() {
    let page = include_str!("../../../docs/http.md");
    let source = include_str!("../../../src/domain/report.rs");
    let (_, names) = source.split_once("pub fn as_str").unwrap();
    let (names, _) = names.split_once("impl Failure ").unwrap();
    let kinds: Vec<_> = names.split('"').skip(1).step_by(2).collect();
    assert!(kinds.len() >= 21, "{kinds:?}");
    for kind in kinds {
        assert!(page.contains(&format!("`{kind}`")), "docs/http.md has no `{kind}`");
    }
}

#[test]
fn docs_metrics_are_those_of_the_code() {
    use std::fmt::Write;

    let mut page = METRICS_INTRODUCTION.to_owned();
    for metric in DECLARED {
        let labels = metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>();
        let (name, kind, labels) = (metric.name, metric.kind.as_str(), labels.join(", "));
        writeln!(page, "| `{name}` | {kind} | {labels} | {}. |", metric.help).unwrap();
    }
    document::compare("docs/metrics.md", &page);
}

const METRICS_INTRODUCTION: &str = "\
# Metrics

Made from the code; `PREHEAT_BLESS=1 cargo test --test it docs_` writes this page anew.

`GET /metrics` answers in the Prometheus text format, or in OpenMetrics where the client asks for it.
A tenant is never a label. The label of a job is `job_name`, because Prometheus sets `job` itself. All counters
and histograms of a job stand from the start with 0, so that a first failure is an increase. A gauge whose value
is not known is absent and never 0: the last success before the first one, the next run of a disabled job, what
the verifier has not measured, the change feed where there is to be none, the cache server's figures before its
first answer. When a job's file goes, its gauges go with it and its counters stay until the worker restarts.

- `outcome` of a run: `ok`, `partial`, `failed`, `timeout`, `cancelled`; `trigger`: `schedule`,
  `startup`, `request`, `change`.
- `outcome` of a tenant: `ok`, `failed`, `fenced`; of a key: `written`, `removed`, `failed`, `fenced`.
- `reason` of a skipped run: `overlap`, `queue_full`, `draining`, `paused`.
- `kind` of a finding: `stale`, `missing`, `orphaned`, `wrong_ttl`; [audit](audit.md) says what they are.
- `state` of a connection: `idle`, `in_use`, `max`.

[`deploy/prometheus/rules.yml`](../deploy/prometheus/rules.yml) has alerts on these metrics, [the runbook](runbook.md)
says what to do when one fires, and `deploy/grafana/preheat.json` is a board of them.

| metric | type | labels | what |
| --- | --- | --- | --- |
";
