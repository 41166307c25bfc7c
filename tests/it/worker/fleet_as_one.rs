//! Several workers that share the tenants, seen and asked as one.

use serde_json::{Value, json};

use crate::support::program::{Output, Running};
use crate::support::shop::{Shop, TOKEN, items};
use crate::support::{LONG, eventually, preheat};

const TENANTS: u32 = 200;
const FLEET: &str = "[fleet]\nenabled = true\n";

fn start(shop: &Shop, name: &str) -> Running {
    shop.serve().env("HOSTNAME", name).settings(FLEET).job("items", &items("")).start()
}

/// Two workers that share the tenants, and say so.
async fn two(shop: &Shop) -> [Running; 2] {
    let workers = [start(shop, "one"), start(shop, "two")];
    for worker in &workers {
        worker.works().await;
    }
    for worker in &workers {
        eventually("it knows of both", LONG, async || {
            let fleet = worker.get("/api/v1/fleet").await.json();
            let members = fleet["members"].as_array().unwrap().clone();
            let has_half =
                |member: &Value| member["share_count"] == 32 && member["lease_ends_at"].is_string();
            fleet["vacant"].is_null() && members.len() == 2 && members.iter().all(has_half)
        })
        .await;
    }
    workers
}

/// The runs that were requested, as this worker lists them.
async fn requested(worker: &Running) -> Vec<Value> {
    let answer = worker.get("/api/v1/runs?trigger=request").await.json();
    answer["runs"].as_array().unwrap().clone()
}

async fn ask(worker: &Running, words: &[&str]) -> Output {
    let url = format!("http://{}", worker.address());
    let words = words.iter().copied().chain(["--url", &url]);
    preheat(words).env("PREHEAT_HTTP__TOKEN", TOKEN).run().await
}

#[tokio::test]
async fn a_fleet_is_asked_and_answers_as_one_whichever_worker_is_asked() {
    let shop = Shop::open(TENANTS).await;
    let workers = two(&shop).await;
    let status = ask(&workers[1], &["status"]).await.stdout;
    for said in ["one", "two", "32 of 64"] {
        assert!(status.contains(said), "{status}");
    }

    let answer = workers[0].post("/api/v1/jobs/items/runs", &json!({ "wait": true })).await;
    assert_eq!(answer.status, 200);
    let run = answer.json();
    assert_eq!((&run["state"], &run["outcome"]), (&json!("finished"), &json!("ok")), "{run}");
    assert_eq!(run["report"]["tenants"]["ok"], TENANTS);
    assert_eq!((&run["shares"], &run["missing_shares"]), (&json!("0-63"), &Value::Null));
    let replicas: Vec<_> =
        run["parts"].as_array().unwrap().iter().map(|part| &part["replica"]).collect();
    assert!(replicas.contains(&&json!("one")) && replicas.contains(&&json!("two")), "{run}");
    shop.assert_warm().await;

    let path = format!("/api/v1/runs/{}", run["id"].as_str().unwrap());
    for worker in &workers {
        let shown = worker.get(&path).await.json();
        assert_eq!((&shown["state"], &shown["parts"]), (&json!("finished"), &run["parts"]));
        eventually("both parts are in the history", LONG, async || {
            let runs = requested(worker).await;
            runs.len() == 1 && runs[0]["id"] == run["id"] && runs[0]["parts"] == run["parts"]
        })
        .await;
        let part = run["parts"][0]["id"].as_str().unwrap();
        let part = worker.get(&format!("/api/v1/runs/{part}")).await.json();
        assert_eq!((&part["part_of"], &part["shares"]), (&run["id"], &run["parts"][0]["shares"]));
        assert_eq!(worker.get("/fleet").await.status, 200);
    }
    for worker in &workers {
        let job = worker.get("/api/v1/jobs/items").await.json();
        assert_eq!(
            (&job["last_run"]["id"], &job["last_run"]["parts"]),
            (&run["id"], &run["parts"])
        );
        let jobs = worker.get("/api/v1/jobs").await.json();
        assert_eq!(jobs["jobs"][0]["last_run"], job["last_run"]);
        let line = &worker.get("/api/v1/overview").await.json()["jobs"][0];
        assert_eq!(
            job["last_success_at"].as_str().map(|at| &at[..19]),
            line["last_success_at"].as_str().map(|at| &at[..19])
        );
    }
    let waited = ask(&workers[1], &["run", "items", "--wait"]).await;
    assert_eq!(waited.code(), Some(0), "{waited:?}");

    // What each would read alike comes from one.
    let mut with_figures = 0;
    for worker in &workers {
        with_figures += usize::from(worker.metric("preheat_cache_hits_total").await.is_some());
    }
    assert_eq!(with_figures, 1);
}

#[tokio::test]
async fn a_pass_is_handed_to_the_fleet_which_alone_opens_connections_for_it() {
    let shop = Shop::open(TENANTS).await;
    let warm = |words: &[&str]| {
        let words = ["warm", "--fleet"].iter().chain(words).copied();
        let program = preheat(words).cache(shop.redis.url()).settings(FLEET);
        // Nobody listens there.
        program.database("postgres://127.0.0.1:1/shop").job("items", &items(""))
    };
    let alone = warm(&[]).run().await;
    assert_eq!(alone.code(), Some(3), "{alone:?}");
    assert!(alone.stderr.contains("no worker of a fleet is there"), "{alone:?}");

    let workers = two(&shop).await;
    let done = warm(&["--json"]).run().await.expect_code(0);
    let report = done.json();
    assert_eq!(report["jobs"][0]["report"]["tenants"]["ok"], TENANTS, "{report}");
    shop.assert_warm().await;
    let said = warm(&["--tenant", "7"]).run().await.expect_code(0).stdout;
    assert!(said.contains("items"), "{said}");
    assert_eq!(workers[0].get("/api/v1/jobs/items").await.status, 200);

    shop.execute("alter table items rename to elsewhere").await;
    let failed = warm(&[]).run().await;
    assert_eq!(failed.code(), Some(1), "{failed:?}");
}
