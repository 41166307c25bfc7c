//! Every page: no complaint of the browser under the strict policy, no serious barrier, in both themes and on
//! a phone; and without a script.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{HOSTILE, dashboard, first_run, url};
use crate::support::Running;
use crate::support::browser::{Browser, Window};
use crate::support::shop::TOKEN;

/// All pages, each with the name of its picture.
async fn pages(worker: &Running) -> Vec<(&'static str, String)> {
    let run = first_run(worker, "visits").await;
    let hostile = utf8_percent_encode(HOSTILE, NON_ALPHANUMERIC);
    let page = |path: &str| path.to_owned();
    vec![
        ("overview", page("/")),
        ("jobs", page("/jobs")),
        ("job", page("/jobs/visits")),
        ("runs", page("/runs")),
        ("run", format!("/runs/{run}")),
        ("tenants", page("/tenants")),
        ("tenant", format!("/tenants/{hostile}")),
        ("audit", page("/audit")),
        ("changes", page("/changes")),
        ("fleet", page("/fleet")),
        ("settings", page("/settings")),
        ("login", page("/login")),
    ]
}

#[tokio::test]
async fn no_page_has_an_error_or_a_serious_barrier() {
    let Some(mut browser) = Browser::start().await else { return };
    let (_shop, worker) = dashboard().await;
    let worker = worker.start();
    worker.works().await;
    first_run(&worker, "clubs").await;
    let pages = pages(&worker).await;
    let mut found = Vec::new();
    for scheme in ["light", "dark"] {
        browser.open_as(&url(&worker, "/"), &Window { scheme, ..Window::default() }).await;
        for is_signed_in in [false, true] {
            if is_signed_in {
                sign_in(&mut browser, &worker).await;
            }
            for (name, path) in &pages {
                assert_eq!(browser.go(&url(&worker, path)).await, 200, "{path}");
                let place = format!("{path} ({scheme}, signed in: {is_signed_in})");
                let barriers = browser.barriers().await;
                found.extend(barriers.into_iter().map(|barrier| format!("{place}: {barrier}")));
                let problems = browser.problems().await;
                found.extend(problems.into_iter().map(|problem| format!("{place}: {problem}")));
                let who = if is_signed_in { "-signed-in" } else { "" };
                browser.picture(&format!("{name}{who}-{scheme}-1280")).await;
                browser.width(390).await;
                let overflow = "document.documentElement.scrollWidth > innerWidth";
                if browser.value(overflow).await == true {
                    found.push(format!("{place}: is wider than a phone"));
                }
                browser.picture(&format!("{name}{who}-{scheme}-390")).await;
                browser.width(1280).await;
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[tokio::test]
async fn moments_of_long_ago_fit_on_a_phone() {
    let Some(mut browser) = Browser::start().await else { return };
    let (_shop, worker) = dashboard().await;
    let worker = worker.start();
    worker.works().await;
    first_run(&worker, "clubs").await;
    let pages = pages(&worker).await;
    browser.open_as(&url(&worker, "/"), &Window { width: 390, ..Window::default() }).await;
    let mut found = Vec::new();
    for (_, path) in &pages {
        browser.go(&url(&worker, path)).await;
        // A page that updates itself brings new moments, and its script writes how long ago they are.
        browser
            .until(
                "[...document.querySelectorAll('time')].every(time => {
                    if (!('rel' in time.dataset)) return time.textContent = '2025-12-03 04:22 UTC';
                    time.dateTime = new Date(Date.now() - 31e9).toISOString();
                    return time.textContent === '358 d 19 h ago';
                })",
            )
            .await;
        let wide = browser.value("document.documentElement.scrollWidth > innerWidth").await;
        if wide == true {
            found.push(path);
        }
    }
    assert!(found.is_empty(), "wider than a phone: {found:?}");
}

#[tokio::test]
async fn marks_in_the_table_of_a_chart_are_as_small_as_its_text() {
    let Some(mut browser) = Browser::start().await else { return };
    let (_shop, worker) = dashboard().await;
    let worker = worker.start();
    worker.works().await;
    first_run(&worker, "visits").await;
    browser.open(&url(&worker, "/jobs/visits")).await;
    browser.click("#durations-table summary").await;
    let tallest = "Math.max(...[...document.querySelectorAll('details svg')].map(svg => \
                   svg.getBoundingClientRect().height))";
    assert_eq!(browser.value(tallest).await, 12);
    browser.picture("durations-table").await;
}

pub(super) async fn sign_in(browser: &mut Browser, worker: &Running) {
    browser.go(&url(worker, "/login")).await;
    browser.fill("input[name=token]", TOKEN).await;
    browser.fill("input[name=name]", "Ann").await;
    browser.click("main button.primary").await;
    browser.shows("header", "Ann").await;
}

#[tokio::test]
async fn what_is_not_there_has_a_page_that_leads_on() {
    let Some(mut browser) = Browser::start().await else { return };
    let (_shop, worker) = dashboard().await;
    let worker = worker.start();
    worker.works().await;
    for path in ["/nowhere", "/jobs/none", "/runs/none", "/a/b/c/d"] {
        assert_eq!(browser.open(&url(&worker, path)).await, 404, "{path}");
        browser.shows("h1", "Not found").await;
        browser.click("main a.button").await;
        browser.is("live").await;
        assert_eq!(browser.url().await, url(&worker, "/"));
    }
}

#[tokio::test]
async fn an_id_of_a_tenant_is_text_whatever_it_holds() {
    let Some(mut browser) = Browser::start().await else { return };
    let (_shop, worker) = dashboard().await;
    let worker = worker.start();
    worker.works().await;
    for (name, path) in pages(&worker).await {
        browser.open(&url(&worker, &path)).await;
        if ["run", "tenants", "tenant"].contains(&name) {
            let text = browser.text("main").await;
            assert!(text.contains("<script>"), "{path} does not name the tenant: {text}");
        }
        assert_eq!(browser.value("window.broken ?? 0").await, 0, "{path}");
        assert_eq!(browser.count("script:not([src])").await, 0, "{path}");
    }
    browser.open(&url(&worker, "/")).await;
    browser.press("/").await;
    assert_eq!(browser.value("document.activeElement.id").await, "search");
    browser.fill("#search", HOSTILE).await;
    browser.press("Enter").await;
    browser.shows("h1", "<script>").await;
}

#[tokio::test]
async fn without_a_script_everything_can_be_read_and_done() {
    let Some(mut browser) = Browser::start().await else { return };
    let (_shop, worker) = dashboard().await;
    let worker = worker.start();
    worker.works().await;
    let pages = pages(&worker).await;
    let window = Window { javascript: false, ..Window::default() };
    browser.open_as(&url(&worker, "/"), &window).await;
    for (_, path) in &pages {
        assert_eq!(browser.go(&url(&worker, path)).await, 200, "{path}");
        assert!(!browser.text("main h1").await.is_empty(), "{path}");
    }
    sign_in(&mut browser, &worker).await;
    let before = worker.runs("clubs").await.len();
    browser.go(&url(&worker, "/jobs/clubs")).await;
    browser.click("main form[action$='/run'] button").await;
    browser.shows("main", "clubs").await;
    assert!(browser.url().await.contains("/runs/"), "leads to the run");
    crate::support::eventually("the run has ended", crate::support::LONG, async || {
        worker.runs("clubs").await.len() == before + 1
    })
    .await;
}

#[tokio::test]
async fn a_theme_is_kept_and_keys_help() {
    let Some(mut browser) = Browser::start().await else { return };
    let (_shop, worker) = dashboard().await;
    let worker = worker.start();
    worker.works().await;
    browser.open(&url(&worker, "/")).await;
    let ground = "getComputedStyle(document.body).backgroundColor";
    let light = browser.value(ground).await;
    browser.click("#theme").await;
    browser.click("#theme").await;
    assert_eq!(browser.text("#theme").await, "Theme: dark");
    let dark = browser.value(ground).await;
    assert_ne!(light, dark);
    browser.go(&url(&worker, "/settings")).await;
    assert_eq!(browser.value(ground).await, dark, "it is kept");
    browser.press("?").await;
    browser.shows("dialog[open]", "Keys").await;
    browser.press("Escape").await;
    assert_eq!(browser.count("dialog[open]").await, 0);
    browser.press("Tab").await;
    assert_eq!(browser.value("document.activeElement.className").await, "skip");
}
