//! Prometheus itself: its tool checks the files, and a server scrapes a real worker.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use preheat::domain::reads::READS_KEY;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Child;

use super::board::queries;
use super::rules::{RULES, rules};
use super::{ROOT, none};
use crate::support::program::Running;
use crate::support::shop::{Shop, items};
use crate::support::{LONG, eventually, http, preheat, redis_with, skipped};

/// A program of Debian's package `prometheus`; `None`, and reported, where it is not installed.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.exists());
    if found.is_none() {
        skipped(&format!("`{name}` is not installed: Debian's package `prometheus` has it"));
    }
    found
}

#[test]
fn promtool_accepts_the_rules_and_their_tests_pass() {
    let Some(promtool) = program("promtool") else { return };
    for arguments in [["check", "rules", "rules.yml"], ["test", "rules", "tests.yml"]] {
        let folder = format!("{ROOT}/deploy/prometheus");
        let output = Command::new(&promtool).args(arguments).current_dir(folder).output().unwrap();
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(output.status.success(), "{arguments:?}: {}", said.join("\n"));
    }
}

/// A Prometheus that scrapes one worker every second, with the rules of the repository.
struct Prometheus {
    _child: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Prometheus {
    fn start(program: PathBuf, worker: SocketAddr) -> Self {
        let folder = tempfile::Builder::new().prefix("preheat-prometheus-").tempdir().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let settings = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
             rule_files: ['{ROOT}/{RULES}']\n\
             scrape_configs:\n- {{ job_name: preheat, static_configs: [{{ targets: ['{worker}'] }}] }}\n"
        );
        let config = folder.path().join("prometheus.yml");
        std::fs::write(&config, settings).unwrap();
        let mut command = tokio::process::Command::new(program);
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        drop(listener);
        Self { _child: command.spawn().unwrap(), address, _folder: folder }
    }

    /// Whether a query has a result now that is a number.
    async fn shows(&self, query: &str) -> bool {
        let form = [("content-type", "application/x-www-form-urlencoded")];
        let body = format!("query={}", encoded(query));
        let Ok(answer) = http::post(self.address, "/api/v1/query", &form, &body).await else {
            return false;
        };
        let answer = answer.json();
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let series = answer["data"]["result"].as_array().unwrap();
        series.iter().any(|series| series["value"][1] != "NaN")
    }

    /// The state of each alert.
    async fn alerts(&self) -> Vec<(String, String)> {
        let Ok(answer) = http::get(self.address, "/api/v1/rules").await else { return Vec::new() };
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let answer = answer.json();
        let groups = answer["data"]["groups"].as_array().unwrap().iter();
        let rules = groups.flat_map(|group| group["rules"].as_array().unwrap());
        rules.map(|rule| (text(&rule["name"]), text(&rule["state"]))).collect()
    }
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[tokio::test]
async fn on_a_worker_that_works_every_panel_shows_something_and_no_alert_fires() {
    let Some(program) = program("prometheus") else { return };
    // With a limit, so that the panel of the cache's memory has one to show.
    let shop = Shop::open(5).await.with_redis(redis_with(&[("maxmemory", "64mb")]));
    let job = items("schedule = \"every 2s\"\ntables = [\"items\"]");
    let install = preheat(["changes", "install"]).database(shop.url()).job("items", &job);
    install.run().await.expect_code(0);
    let worker = shop.serve().env("PREHEAT_AUDIT__INTERVAL", "2s").job("items", &job).start();
    worker.works().await;
    let prometheus = Prometheus::start(program, worker.address());

    let mut cache = shop.cache().await;
    let mut empty = queries();
    let begun = Instant::now();
    eventually("every panel has shown something", 2 * LONG, async || {
        // Panels of changes show something while data change, and those of reads while clients count.
        shop.change().await;
        let mut count = redis::cmd("HINCRBY");
        count.arg(READS_KEY).arg("items:hit").arg(9).exec_async(&mut cache).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut still = Vec::new();
        for query in std::mem::take(&mut empty) {
            if !prometheus.shows(&query.filled()).await {
                still.push(query);
            }
        }
        empty = still;
        let fires = |(name, state)| (state == "firing").then_some(name);
        none(prometheus.alerts().await.into_iter().filter_map(fires).collect());
        empty.is_empty() || begun.elapsed() > LONG
    })
    .await;
    let empty = empty.iter().map(|query| format!("{}: {}", query.panel, query.expr));
    none(empty.collect());
    eventually("no alert is on its way", LONG, async || {
        let alerts = prometheus.alerts().await;
        alerts.len() == rules().len() && alerts.iter().all(|(_, state)| state == "inactive")
    })
    .await;
    promtool_accepts_the_metrics_of(&worker).await;
}

async fn promtool_accepts_the_metrics_of(worker: &Running) {
    let Some(promtool) = program("promtool") else { return };
    let page = worker.get("/metrics").await.body;
    let mut check = Command::new(promtool);
    let check = check.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut running = check.stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(running.stdin.as_mut().unwrap(), page.as_bytes()).unwrap();
    let output = running.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{}", said.join("\n"));
    assert_eq!(said.concat(), "");
}
