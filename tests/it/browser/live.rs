//! Pages that stay up to date by themselves.

use rustix::process::Signal;
use serde_json::json;

use super::{dashboard, first_run, slow_dashboard, url};
use crate::support::browser::Browser;

#[tokio::test]
async fn a_page_follows_a_run() {
    let Some(mut browser) = Browser::start().await else { return };
    let (shop, worker) = slow_dashboard().await;
    let worker = worker.start();
    worker.works().await;
    first_run(&worker, "items").await;
    let held = shop.hold().await;
    browser.open(&url(&worker, "/jobs")).await;
    browser.is("live").await;
    assert_eq!(worker.post("/api/v1/jobs/items/runs", &json!({})).await.status, 202);
    browser.shows("#job-items", "running").await;
    drop(held);
    browser.until("!document.querySelector('#job-items').innerText.includes('running')").await;
    assert!(browser.problems().await.is_empty());
}

#[tokio::test]
async fn a_page_keeps_what_a_person_is_doing() {
    let Some(mut browser) = Browser::start().await else { return };
    let (_shop, worker) = slow_dashboard().await;
    let worker = worker.start();
    worker.works().await;
    first_run(&worker, "items").await;
    browser.open(&url(&worker, "/jobs")).await;
    browser.is("live").await;
    browser.value("document.querySelector('#job-items a').focus()").await;
    browser.value("window.before = document.querySelector('#job-items')").await;
    worker.warm("items").await;
    browser.until("!window.before.isConnected").await;
    let focused = browser.value("document.activeElement.closest('#job-items') !== null").await;
    assert_eq!(focused, true, "the keyboard stays where it was");
}

#[tokio::test]
async fn a_page_comes_back_after_the_worker_was_restarted() {
    let Some(mut browser) = Browser::start().await else { return };
    let (shop, worker) = dashboard().await;
    let first = worker.start();
    first.works().await;
    first_run(&first, "clubs").await;
    let address = first.address();
    browser.open(&url(&first, "/")).await;
    browser.is("live").await;
    let before = browser.value("document.querySelector('#as-of').innerText").await;
    first.signal(Signal::TERM);
    first.ended().await.expect_code(0);
    browser.is("reconnecting").await;
    let again = super::only_clubs(&shop);
    let again = again.env("PREHEAT_HTTP__LISTEN", address.to_string()).start();
    browser.is("live").await;
    browser.until(&format!("document.querySelector('#as-of').innerText !== {before}")).await;
    browser.until("!document.querySelector('#job-visits')").await;
    drop(again);
}

#[tokio::test]
async fn a_starting_worker_says_what_it_waits_for_and_shows_the_page_afterwards() {
    let Some(mut browser) = Browser::start().await else { return };
    let (shop, worker) = slow_dashboard().await;
    shop.redis.stop();
    let worker = worker.start();
    worker.answers("/readyz", 503).await;
    assert_eq!(browser.open(&url(&worker, "/jobs")).await, 503);
    browser.shows("h1", "The worker is starting").await;
    browser.shows("main", "away").await;
    shop.redis.restart().unwrap();
    browser.shows("h1", "Jobs").await;
}
