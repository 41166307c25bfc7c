//! Signing in with the token, and what a cookie may do.

use preheat::domain::who::Who;
use preheat::http::Access;
use secrecy::SecretString;
use serde_json::json;

use super::{TOKEN, Worker, code};
use crate::support::http::{Answer, post, request};

const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");
const HTML: (&str, &str) = ("accept", "text/html");
const SAME: (&str, &str) = ("sec-fetch-site", "same-origin");
const RUN: &str = "/api/v1/jobs/services/runs";

fn access() -> Access {
    Access {
        token: Some(SecretString::from("open sesame")),
        read_token: None,
        user_header: "X-Forwarded-User".to_owned(),
        ..Access::default()
    }
}

async fn form(worker: &Worker, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let all: Vec<_> = [FORM, HTML].iter().chain(headers).copied().collect();
    post(worker.address, path, &all, body).await.unwrap()
}

async fn get(worker: &Worker, path: &str, headers: &[(&str, &str)]) -> Answer {
    request(worker.address, "GET", path, headers, "").await.unwrap()
}

/// Signs in, and answers with the cookie as a browser sends it back.
async fn signed_in(worker: &Worker, body: &str) -> String {
    let answer = form(worker, "/login", &[SAME], body).await;
    assert_eq!(answer.status, 303, "{answer:?}");
    let cookie = answer.header("set-cookie").unwrap();
    cookie.split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn whoever_signed_in_may_use_the_levers_under_their_name() {
    let worker = Worker::start_for(access()).await;
    let body = "token=open+sesame&name=Ann+%C3%96.&next=jobs%2Fservices%3Fa%3Db";
    let answer = form(&worker, "/login", &[SAME], body).await;
    assert_eq!((answer.status, answer.header("location")), (303, Some("./jobs/services?a=b")));
    let cookie = answer.header("set-cookie").unwrap().to_owned();
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Strict"), "{cookie}");
    let (cookie, _) = cookie.split_once(';').unwrap();

    let mine = [("cookie", cookie), SAME];
    let run = post(worker.address, RUN, &mine, r#"{"wait":true}"#).await.unwrap();
    assert_eq!(run.json()["requested_by"], "Ann Ö.", "{run:?}");
    let page = get(&worker, "/jobs", &[mine[0], HTML]).await;
    assert!(page.body.contains("Ann Ö.") && page.body.contains("Sign out"), "{}", page.body);
    let refusal = get(&worker, "/jobs/nope", &[mine[0], HTML]).await;
    assert_eq!(refusal.status, 404);
    assert!(refusal.body.contains("Ann Ö."), "a refusal's page keeps the name: {}", refusal.body);

    // A page of another site, which the browser would send with the cookie.
    for other in
        [&[("sec-fetch-site", "cross-site")] as &[_], &[("origin", "http://evil.example")], &[]]
    {
        let headers: Vec<_> = [mine[0]].iter().chain(other).copied().collect();
        let refused = post(worker.address, RUN, &headers, "").await.unwrap();
        assert_eq!(code(&refused), (403, "cross_site".to_owned()), "{other:?}");
    }
    let origin = format!("http://{}", worker.address);
    let headers = [mine[0], ("origin", origin.as_str())];
    assert_eq!(post(worker.address, RUN, &headers, "").await.unwrap().status, 202);

    let out = form(&worker, "/logout", &mine, "").await;
    assert_eq!((out.status, out.header("location")), (303, Some("./")));
    assert!(out.header("set-cookie").unwrap().starts_with("preheat=; Max-Age=0; Path=/;"));
    worker.clock.set_by(chrono::TimeDelta::hours(12));
    assert_eq!(code(&post(worker.address, RUN, &mine, "").await.unwrap()).0, 401, "it is over");
    worker.stop().await;
}

#[tokio::test]
async fn a_wrong_token_may_be_tried_a_few_times() {
    let worker = Worker::start_for(access()).await;
    for _try in 0..5 {
        let answer = form(&worker, "/login", &[SAME], "token=guess&next=jobs").await;
        assert_eq!(answer.header("location"), Some("./login?failed=token&next=jobs"));
        assert_eq!(answer.header("set-cookie"), None);
    }
    let answer = form(&worker, "/login", &[SAME], "token=open+sesame").await;
    assert_eq!(answer.header("location"), Some("./login?failed=wait"));
    let program = post(worker.address, "/login", &[FORM], "token=open+sesame").await.unwrap();
    assert_eq!(code(&program), (429, "too_many_tries".to_owned()));
    assert_eq!(program.header("retry-after"), Some("60"));
    let page = get(&worker, "/login?failed=wait&next=%22%3E%3Cscript%3E", &[HTML]).await;
    assert!(page.body.contains("wait a minute") && !page.body.contains("><script>"));
    worker.clock.set_by(chrono::TimeDelta::minutes(1));
    signed_in(&worker, "token=open+sesame").await;

    let elsewhere = form(&worker, "/login", &[SAME], "token=open+sesame&next=//evil.example").await;
    assert_eq!(elsewhere.header("location"), Some("./"));
    let cross = [("sec-fetch-site", "cross-site")];
    let other_site = form(&worker, "/login", &cross, "token=open+sesame").await;
    assert_eq!(other_site.status, 403);
    assert_eq!(form(&worker, "/login", &[SAME], "name=Ann").await.status, 400);
    worker.stop().await;
}

#[tokio::test]
async fn with_a_token_for_reading_nobody_looks_without_one() {
    let read_token = Some(SecretString::from("look"));
    let worker = Worker::start_for(Access { read_token, ..access() }).await;
    for open in ["/healthz", "/metrics", "/login"] {
        assert_eq!(get(&worker, open, &[HTML]).await.status, 200, "{open}");
    }
    assert_eq!(get(&worker, "/readyz", &[]).await.status, 503);
    for path in ["/", "/api/v1/jobs", "/api/v1/openapi.json", "/api/v1/events", "/jobs", "/live"] {
        assert_eq!(
            code(&get(&worker, path, &[]).await),
            (401, "unauthorized".to_owned()),
            "{path}"
        );
        for token in ["Bearer look", TOKEN.1] {
            if !matches!(path, "/api/v1/events" | "/live") {
                let seen = get(&worker, path, &[("authorization", token)]).await;
                assert_eq!(seen.status, 200, "{path} {token}");
            }
        }
    }
    let lead = get(&worker, "/runs?job=services&x=%C3%A4", &[HTML]).await;
    let location = "./login?next=runs%3Fjob%3Dservices%26x%3D%25C3%25A4";
    assert_eq!((lead.status, lead.header("location")), (303, Some(location)));

    let reader = signed_in(&worker, "token=look&name=Bob").await;
    let cookie = ("cookie", reader.as_str());
    assert_eq!(get(&worker, "/api/v1/jobs", &[cookie]).await.status, 200);
    for headers in [&[cookie, SAME] as &[_], &[("authorization", "Bearer look")]] {
        let refused = post(worker.address, RUN, headers, "").await.unwrap();
        assert_eq!(code(&refused), (403, "read_only".to_owned()));
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_trusted_proxy_names_the_user_and_the_prefix() {
    let trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
    let worker = Worker::start_for(Access { trusted_proxies, ..access() }).await;
    let said = [
        ("x-forwarded-proto", "https"),
        ("x-forwarded-prefix", "/tools/preheat"),
        ("x-forwarded-user", "ann@example.org"),
        SAME,
    ];
    let answer = form(&worker, "/login", &said, "token=open+sesame&name=Bob").await;
    let cookie = answer.header("set-cookie").unwrap();
    assert!(cookie.ends_with("; Path=/tools/preheat; HttpOnly; SameSite=Strict; Secure"));
    let headers: Vec<_> = said.iter().chain(&[TOKEN]).copied().collect();
    let run = post(worker.address, RUN, &headers, "").await.unwrap();
    assert_eq!(run.json()["requested_by"], json!(Who::named("ann@example.org").unwrap()));
    let location = run.header("location").unwrap();
    assert!(location.starts_with("/tools/preheat/api/v1/runs/"), "{location}");
    worker.stop().await;

    let distrusting = Worker::start_for(access()).await;
    let run = post(distrusting.address, RUN, &headers, "").await.unwrap();
    assert_eq!(run.json()["requested_by"], "token");
    distrusting.stop().await;
}

#[tokio::test]
async fn the_routes_are_below_the_base_path_too() {
    let base_path = "/tools/preheat".to_owned();
    let worker = Worker::start_for(Access { base_path, ..access() }).await;
    for path in ["/api/v1/jobs/services", "/tools/preheat/api/v1/jobs/services"] {
        assert_eq!(worker.get(path).await.json()["name"], "services", "{path}");
    }
    let bare = worker.get("/tools/preheat").await;
    assert_eq!((bare.status, bare.header("location")), (308, Some("/tools/preheat/")));
    assert_eq!(worker.get("/tools/preheats/api/v1/jobs").await.status, 404);
    let answer =
        form(&worker, "/tools/preheat/login", &[SAME], "token=open+sesame&next=jobs").await;
    assert_eq!((answer.status, answer.header("location")), (303, Some("./jobs")));
    assert!(answer.header("set-cookie").unwrap().contains("; Path=/tools/preheat;"));
    worker.stop().await;
}

#[tokio::test]
async fn a_worker_for_this_machine_alone_answers_to_its_own_names() {
    let worker = Worker::start_for(Access { only_local: true, ..access() }).await;
    let ask = async |path: &str, host: &str| get(&worker, path, &[("host", host)]).await;
    assert_eq!(ask("/api/v1/jobs", "localhost:9464").await.status, 200);
    assert_eq!(code(&ask("/api/v1/jobs", "evil.example").await), (403, "unknown_host".to_owned()));
    assert_eq!(ask("/metrics", "evil.example").await.status, 200, "a scrape goes on");
    worker.stop().await;
}

#[tokio::test]
async fn the_buttons_work_as_forms() {
    let worker = Worker::start_for(access()).await;
    let cookie = signed_in(&worker, "token=open+sesame&name=Ann").await;
    let mine = [("cookie", cookie.as_str()), SAME];
    let run = form(&worker, "/jobs/services/run", &mine, "tenants=a%0D%0A+b+%0D%0A").await;
    let location = run.header("location").unwrap();
    let id = location.strip_prefix("../../runs/").unwrap();
    let run = worker.finished(&json!({ "id": id })).await;
    assert_eq!((&run["requested_by"], &run["report"]["tenants"]["ok"]), (&json!("Ann"), &json!(2)));

    let asked = form(&worker, "/jobs/services/pause", &mine, "").await;
    assert_eq!(asked.status, 200);
    assert!(asked.body.contains("action=\"../../jobs/services/pause\""), "{}", asked.body);
    let paused = form(&worker, "/jobs/services/pause", &mine, "note=Umbau&for=").await;
    assert_eq!(paused.header("location"), Some("../../jobs/services"));
    let job = worker.get("/api/v1/jobs/services").await.json();
    assert_eq!((&job["pause"]["by"], &job["pause"]["note"]), (&json!("Ann"), &json!("Umbau")));
    let bad = form(&worker, "/jobs/services/pause", &mine, "note=x&for=soon").await;
    assert_eq!(bad.status, 422);
    assert!(bad.header("content-type").unwrap().starts_with("text/html"), "{bad:?}");
    let resumed = form(&worker, "/jobs/services/resume", &mine, "").await;
    assert_eq!(resumed.status, 303);

    let asked = form(&worker, "/pause-all", &mine, "").await;
    assert!(asked.body.contains("Pause 3 jobs?"), "{}", asked.body);
    let paused = form(&worker, "/pause-all", &mine, "note=%3Cscript%3E&for=20m").await;
    assert_eq!(paused.header("location"), Some("./"));
    let asked = form(&worker, "/resume-all", &mine, "").await;
    assert!(asked.body.contains("Resume 3 paused jobs?"), "{}", asked.body);
    assert!(asked.body.contains("Ann: &lt;script&gt;"), "{}", asked.body);
    assert_eq!(form(&worker, "/resume-all", &mine, "confirmed=yes").await.status, 303);
    assert_eq!(worker.get("/api/v1/jobs/report").await.json()["pause"], json!(null));

    let asked = form(&worker, "/jobs/services/invalidate", &mine, "").await;
    assert!(asked.body.contains("2 keys of 3 tenants would be removed"), "{}", asked.body);
    assert!(worker.cache.get("services:a").is_some());
    let done = form(&worker, "/jobs/services/invalidate", &mine, "confirmed=yes").await;
    assert!(done.body.contains("2 keys removed"), "{}", done.body);
    assert!(worker.cache.get("services:a").is_none());
    let warmed = form(&worker, "/tenants/a/warm", &mine, "").await;
    assert_eq!(warmed.header("location"), Some("../../tenants/a"));

    for path in ["/jobs/services/run", "/jobs/services/invalidate", "/pause-all", "/tenants/a/warm"]
    {
        assert_eq!(form(&worker, path, &[SAME], "").await.status, 401, "{path}");
    }
    assert_eq!(form(&worker, "/jobs/nothing/invalidate", &mine, "").await.status, 404);
    assert_eq!(form(&worker, "/jobs/nothing/run", &mine, "").await.status, 404);
    worker.stop().await;
}
