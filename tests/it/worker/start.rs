//! A worker whose servers come up later than it does, or never.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::http::{self, Answer};
use crate::support::proxy::Mode;
use crate::support::shop::{Shop, items};
use crate::support::{LONG, Proxy, Running, eventually, own_postgres, preheat, redis_with};

/// What `/readyz` reports about a server; null if it does not answer yet, or does not need the
/// server yet.
async fn server(worker: &Running, role: &str) -> Value {
    let body = http::get(worker.address(), "/readyz").await.map(|answer| answer.json());
    let servers = body.map(|mut body| body["servers"].take()).unwrap_or_default();
    let mut servers = servers.as_array().into_iter().flatten();
    servers.find(|server| server["server"] == role).cloned().unwrap_or_default()
}

/// Waits until the worker has found that a server is away, for such a reason.
async fn is_away(worker: &Running, role: &str, reason: &str) {
    eventually(&format!("the {role} is away: {reason}"), LONG, async || {
        server(worker, role).await["message"].as_str().is_some_and(|said| said.contains(reason))
    })
    .await;
    assert_eq!(server(worker, role).await["state"], "away");
}

fn code(answer: &Answer) -> (u16, String) {
    (answer.status, answer.json()["error"]["code"].as_str().unwrap().to_owned())
}

/// Accepts connections and never answers.
async fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

#[tokio::test]
async fn a_worker_whose_servers_come_later_says_what_it_waits_for_and_begins_when_they_are_there() {
    let postgres = own_postgres();
    let shop = Shop::open_in(&postgres, 5).await;
    postgres.stop();
    shop.redis.stop();
    let worker = shop.serve().job("items", &items("required = true")).start();
    worker.answers("/healthz", 200).await;
    is_away(&worker, "database", "could not connect to database").await;
    is_away(&worker, "cache", "could not connect to cache").await;
    let ready = worker.get("/readyz").await;
    assert_eq!((ready.status, &ready.json()["status"]), (503, &json!("starting")));
    assert_eq!(ready.json()["message"], "the worker waits for the database and the cache");
    assert_eq!(worker.get("/healthz").await.json()["status"], "ok");
    assert_eq!(code(&worker.get("/api/v1/jobs").await), (503, "starting".to_owned()));
    let asked = worker.post("/api/v1/runs", &json!({})).await;
    assert_eq!(code(&asked), (503, "starting".to_owned()));
    assert!(asked.header("retry-after").is_some(), "{asked:?}");
    assert_eq!(worker.get("/nowhere").await.status, 404);

    // Unknown metrics are absent; both servers are known to be away.
    for unknown in
        ["preheat_db_connections{state=\"max\"}", "preheat_coverage_ratio{job_name=\"items\"}"]
    {
        assert_eq!(worker.metric(unknown).await, None, "{unknown}");
    }
    for server in ["database", "cache"] {
        let open = format!("preheat_breaker_open{{server=\"{server}\"}}");
        assert_eq!(worker.metric(&open).await, Some(1.0), "{open}");
    }

    shop.redis.restart().unwrap();
    eventually("the cache is there", LONG, async || {
        server(&worker, "cache").await["state"] == "connected"
    })
    .await;
    assert_eq!(worker.metric("preheat_breaker_open{server=\"cache\"}").await, Some(0.0));
    assert_eq!(server(&worker, "database").await["state"], "away");
    postgres.restart().unwrap();
    worker.answers("/readyz", 200).await;
    shop.assert_warm().await;
    assert_eq!(worker.metric("preheat_breaker_open{server=\"database\"}").await, Some(0.0));
    worker.signal(Signal::TERM);
    worker.ended().await.expect_code(0);
}

#[tokio::test]
async fn a_server_that_is_away_is_told_once_a_reason_and_not_once_a_try() {
    let shop = Shop::open(3).await;
    let proxy = Proxy::redis(&shop.redis).await;
    proxy.set(Mode::Refuse);
    let serve = shop.serve().cache(proxy.redis_url()).env("PREHEAT_CACHE__TIMEOUT", "500ms");
    let mut worker = serve.job("items", &items("required = true")).start();
    let tries = |at_least: usize| {
        let proxy = &proxy;
        async move {
            let before = proxy.accepted();
            let what = format!("it is tried {at_least} times more");
            eventually(&what, LONG, async || proxy.accepted() >= before + at_least).await;
        }
    };
    // Each try has two connections. A connection that is closed at once fails in one of a few ways.
    tries(14).await;
    let each_once = |worker: &Running| {
        let told = "the worker waits for the cache and tries again until it is there: ";
        let said = worker.stderr();
        let reasons: Vec<_> =
            said.lines().filter_map(|line| Some(line.split_once(told)?.1)).collect();
        assert!(!reasons.is_empty() && reasons.len() <= 4, "{reasons:?}");
        assert!(reasons.iter().collect::<BTreeSet<_>>().len() == reasons.len(), "{reasons:?}");
    };
    each_once(&worker);
    proxy.set(Mode::Stall);
    worker.says("within 500ms").await;
    tries(6).await;
    each_once(&worker);
    proxy.set(Mode::Pass);
    worker.answers("/readyz", 200).await;
    worker.says("is there").await;
    shop.assert_warm().await;
}

#[tokio::test]
async fn hazard_26_a_server_that_accepts_and_says_nothing_is_waited_for_until_a_signal_comes() {
    let (_database, database) = silent().await;
    let (_cache, cache) = silent().await;
    let serve = || {
        preheat(["serve"])
            .database(format!("postgres://postgres@{database}/shop?sslmode=disable"))
            .cache(format!("redis://{cache}"))
            .env("PREHEAT_CACHE__TIMEOUT", "500ms")
            .job("items", &items(""))
    };
    let worker = serve().start();
    is_away(&worker, "cache", "within 500ms").await;
    is_away(&worker, "database", "within 5s").await;
    let at_once = serve().start();
    at_once.answers("/healthz", 200).await;
    for worker in [worker, at_once] {
        let start = Instant::now();
        worker.signal(Signal::TERM);
        let output = worker.ended().await.expect_code(0);
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        assert!(output.stderr.contains("the worker has stopped"), "{}", output.stderr);
    }
}

#[tokio::test]
async fn a_wait_that_has_an_end_ends_with_the_reasons_and_exit_code_3() {
    let shop = Shop::open(1).await;
    let wait = || shop.serve().argument("--wait").argument("1s").job("items", &items(""));
    let nowhere =
        wait().database("postgres://nobody@127.0.0.1:1/none").cache("redis://127.0.0.1:1");
    let said = nowhere.run().await.expect_code(3).stderr;
    assert!(said.contains("error: gave up after 1s: could not connect to database"), "{said}");
    assert!(said.contains("error: could not connect to cache"), "{said}");
    let worker = wait().start();
    worker.works().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(worker.get("/healthz").await.status, 200, "who has begun has no end");
}

#[tokio::test]
async fn what_the_server_says_is_waited_for_and_what_only_settings_mend_is_not() {
    let shop = Shop::open(2).await.with_redis(redis_with(&[("requirepass", "other")]));
    let mut worker = shop.serve().job("items", &items("required = true")).start();
    is_away(&worker, "cache", "NOAUTH").await;
    worker.says("the worker waits for the cache").await;
    let client = redis::Client::open(shop.redis.url()).unwrap();
    let mut open = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("AUTH").arg("other").exec_async(&mut open).await.unwrap();
    let set = ["SET", "requirepass", ""];
    redis::cmd("CONFIG").arg(&set).exec_async(&mut open).await.unwrap();
    worker.answers("/readyz", 200).await;

    let no_file =
        shop.serve().cache("rediss://127.0.0.1:1").env("PREHEAT_CACHE__CA", "nowhere.pem");
    let said = no_file.job("items", &items("")).run().await.expect_code(2).stderr;
    assert!(said.contains("nowhere.pem"), "{said}");
}

#[tokio::test]
async fn a_cache_that_still_loads_its_data_is_waited_for() {
    const LOADING: &[u8] = b"-LOADING Redis is loading the dataset in memory\r\n";
    let shop = Shop::open(2).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let loads = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut bytes).await {
                    let commands = String::from_utf8_lossy(&bytes[..length]).matches('*').count();
                    if stream.write_all(&LOADING.repeat(commands)).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    let serve = shop.serve().cache(format!("redis://{address}"));
    let worker = serve.job("items", &items("")).start();
    is_away(&worker, "cache", "LOADING").await;
    eventually("the database is connected", LONG, async || {
        server(&worker, "database").await["state"] == "connected"
    })
    .await;
    loads.abort();
}

#[tokio::test]
async fn job_files_that_change_while_the_worker_waits_are_read_when_it_begins() {
    let shop = Shop::open(3).await;
    shop.redis.stop();
    let mut worker = shop.serve().job("items", &items("enabled = false")).start();
    is_away(&worker, "cache", "could not connect").await;
    worker.write("jobs/items.toml", &items("required = true"));
    worker.signal(Signal::HUP);
    worker.get("/healthz").await;
    shop.redis.restart().unwrap();
    worker.says("the job files were read again").await;
    worker.answers("/readyz", 200).await;
    eventually("all is warm", LONG, async || shop.is_warm().await).await;
}

#[tokio::test]
async fn a_history_that_has_to_be_kept_elsewhere_is_waited_for() {
    let postgres = own_postgres();
    postgres.create_database("records", None).await.unwrap();
    let url = postgres.url("records");
    postgres.stop();
    let shop = Shop::open(2).await;
    let serve = shop.serve().env("PREHEAT_HISTORY__ENABLED", "true");
    let worker = serve.env("PREHEAT_HISTORY__URL", &url).job("items", &items("")).start();
    is_away(&worker, "history", "could not connect").await;
    for there in ["database", "cache"] {
        assert_eq!(server(&worker, there).await["state"], "connected");
    }
    postgres.restart().unwrap();
    worker.answers("/readyz", 200).await;
    worker.warm("items").await;
}

#[tokio::test]
async fn a_start_that_fails_is_a_line_of_json_where_the_log_is_json() {
    let shop = Shop::open(1).await;
    let bad = items("retries = 21");
    let by_flag = || shop.serve().argument("--log-format").argument("json");
    let cases = [
        (by_flag().job("items", &bad), 2, "`retries`"),
        (
            by_flag().job("items", &items("")).env("PREHEAT_DATABASE__MAX_CONNECTIONS", "no"),
            2,
            "max_connections",
        ),
        (by_flag().job("items", &items("")).settings("database = ["), 2, "preheat.toml"),
        (shop.serve().env("PREHEAT_LOG_FORMAT", "json").job("items", &bad), 2, "`retries`"),
        (
            by_flag()
                .argument("--wait")
                .argument("1s")
                .job("items", &items(""))
                .cache("redis://127.0.0.1:1"),
            3,
            "gave up after 1s",
        ),
    ];
    for (serve, code, part) in cases {
        let said = serve.run().await.expect_code(code).stderr;
        let last: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert_eq!(last["level"], "ERROR");
        assert!(last["message"].as_str().unwrap().contains(part), "{said}");
        assert!(last["timestamp"].as_str().unwrap().ends_with('Z'), "{said}");
        for line in said.lines() {
            assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
        }
    }
}
