//! Clients that open connections and send nothing do not keep a probe from its answer.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::http;
use crate::support::shop::{Shop, items};
use crate::support::{LONG, Running, eventually, preheat};

/// More connections than a worker accepts.
const MANY: usize = 300;
/// How long a probe may take on a slow machine.
const PROMPT: Duration = Duration::from_secs(5);

/// Opens connections that send half a request head each, and opens each again when it is closed.
fn half_heads(address: SocketAddr) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for _ in 0..MANY {
        clients.spawn(async move {
            loop {
                if let Ok(mut stream) = TcpStream::connect(address).await {
                    let sent = stream.write_all(b"GET /healthz HTTP/1.1\r\nHo").await;
                    let mut rest = Vec::new();
                    if sent.is_ok() {
                        // Until the worker closes it.
                        stream.read_to_end(&mut rest).await.ok();
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }
    clients
}

async fn answers_promptly(address: SocketAddr, path: &str) {
    let start = Instant::now();
    let answer = tokio::time::timeout(PROMPT, http::get(address, path)).await;
    let answer = answer.unwrap_or_else(|_| panic!("no answer to {path} within {PROMPT:?}"));
    assert_eq!(answer.unwrap().status, 200, "{path}, after {:?}", start.elapsed());
}

fn connections(worker: &Running) -> usize {
    let folder = format!("/proc/{}/fd", worker.id());
    let files = std::fs::read_dir(folder).unwrap().filter_map(Result::ok);
    let links = files.filter_map(|file| std::fs::read_link(file.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
}

#[tokio::test]
async fn half_open_connections_never_take_healthz_away() {
    let shop = Shop::open(2).await;
    let worker = shop.serve().job("items", &items("required = true")).start();
    worker.answers("/readyz", 200).await;
    let _clients = half_heads(worker.address());
    eventually("they have their connections", LONG, async || connections(&worker) > 250).await;
    for _ in 0..20 {
        answers_promptly(worker.address(), "/healthz").await;
        answers_promptly(worker.address(), "/readyz").await;
    }
    assert!(connections(&worker) < 290, "{} connections", connections(&worker));
    let ask = preheat(["health"]).env("PREHEAT_HTTP__LISTEN", worker.address().to_string());
    ask.run().await.expect_code(0);
    assert!(!worker.stderr().contains("could not accept"), "{}", worker.stderr());
    // A client that waits for a run holds its connection meanwhile.
    assert_eq!(worker.warm("items").await["outcome"], "ok");
}

#[tokio::test]
async fn half_a_head_is_given_five_seconds() {
    let shop = Shop::open(1).await;
    let worker = shop.serve().job("items", &items("")).start();
    worker.works().await;
    let mut stream = TcpStream::connect(worker.address()).await.unwrap();
    let start = Instant::now();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHo").await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.ok();
    let took = start.elapsed();
    assert!(took > Duration::from_secs(4) && took < Duration::from_secs(12), "{took:?}");
}

#[tokio::test]
async fn a_worker_that_may_open_few_files_keeps_some_for_its_servers_and_says_little() {
    let shop = Shop::open(3).await;
    let serve = shop.serve().files(64).job("items", &items("required = true"));
    let worker = serve.start();
    worker.answers("/readyz", 200).await;
    let _clients = half_heads(worker.address());
    eventually("they have their connections", LONG, async || connections(&worker) > 30).await;
    for _ in 0..20 {
        answers_promptly(worker.address(), "/healthz").await;
        assert_eq!(worker.warm("items").await["outcome"], "ok");
    }
    shop.assert_warm().await;
    assert!(!worker.stderr().contains("could not accept"), "{}", worker.stderr());
}

#[tokio::test]
async fn a_worker_without_a_free_file_says_so_once_and_recovers() {
    let shop = Shop::open(2).await;
    // So few that even the smallest number of connections is too many.
    let serve = shop.serve().files(24).job("items", &items("required = true"));
    let mut worker = serve.start();
    worker.answers("/readyz", 200).await;
    let clients = half_heads(worker.address());
    worker.says("could not accept a connection").await;
    // Long enough for thirty tries.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let said = worker.stderr().matches("could not accept a connection").count();
    assert_eq!(said, 1, "{}", worker.stderr());
    drop(clients);
    worker.answers("/healthz", 200).await;
    assert_eq!(worker.warm("items").await["outcome"], "ok");
}

#[tokio::test]
async fn probes_can_have_a_listener_of_their_own() {
    let shop = Shop::open(2).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let probes = free.local_addr().unwrap();
    shop.redis.stop();
    let serve = shop.serve().env("PREHEAT_HTTP__PROBES", probes.to_string());
    let serve = serve.job("items", &items("required = true"));
    drop(free);
    let worker = serve.start();
    worker.answers("/healthz", 200).await;
    answers_promptly(probes, "/healthz").await;
    let waits = http::get(probes, "/readyz").await.unwrap();
    assert_eq!((waits.status, &waits.json()["status"]), (503, &"starting".into()));
    shop.redis.restart().unwrap();
    worker.answers("/readyz", 200).await;
    for path in ["/healthz", "/readyz"] {
        answers_promptly(probes, path).await;
        answers_promptly(worker.address(), path).await;
    }
    for path in ["/", "/metrics", "/api/v1/jobs"] {
        assert_eq!(http::get(probes, path).await.unwrap().status, 404, "{path}");
    }
    let health = preheat(["health"]).env("PREHEAT_HTTP__LISTEN", "127.0.0.1:1");
    health.env("PREHEAT_HTTP__PROBES", probes.to_string()).run().await.expect_code(0);
}
