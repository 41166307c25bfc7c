//! What people can do, before and after they have signed in.

use rustix::process::Signal;

use super::pages::sign_in;
use super::{dashboard, first_run, url};
use crate::support::browser::Browser;
use crate::support::{LONG, eventually};

#[tokio::test]
async fn only_who_has_signed_in_can_run_a_job() {
    let Some(mut browser) = Browser::start().await else { return };
    let (_shop, worker) = dashboard().await;
    let worker = worker.start();
    worker.works().await;
    first_run(&worker, "clubs").await;
    browser.open(&url(&worker, "/jobs/clubs")).await;
    assert_eq!(browser.count("main form[method=post]").await, 0, "there is nothing to press");
    browser.shows("header", "Sign in").await;
    browser.go(&url(&worker, "/login")).await;
    browser.fill("input[name=token]", "wrong").await;
    browser.click("main button.primary").await;
    browser.shows("[role=alert]", "token").await;
    sign_in(&mut browser, &worker).await;
    let before = worker.runs("clubs").await.len();
    browser.go(&url(&worker, "/jobs/clubs")).await;
    browser.click("main form[action$='/run'] button").await;
    browser.until("location.pathname.includes('/runs/')").await;
    eventually("the run has ended", LONG, async || worker.runs("clubs").await.len() == before + 1)
        .await;
    browser.click("header form button").await;
    browser.shows("header", "Sign in").await;
}

#[tokio::test]
async fn a_pause_shows_after_a_restart() {
    let Some(mut browser) = Browser::start().await else { return };
    let (shop, worker) = dashboard().await;
    let first = worker.start();
    first.works().await;
    first_run(&first, "clubs").await;
    browser.open(&url(&first, "/login")).await;
    sign_in(&mut browser, &first).await;
    browser.go(&url(&first, "/jobs/clubs")).await;
    browser.click("#pause summary").await;
    browser.fill("#pause input[name=note]", "vet migration").await;
    browser.click("#pause button").await;
    browser.shows("main", "vet migration").await;
    let address = first.address();
    first.signal(Signal::TERM);
    first.ended().await.expect_code(0);
    let again = super::only_clubs(&shop);
    let again = again.env("PREHEAT_HTTP__LISTEN", address.to_string()).start();
    eventually("the worker works", LONG, async || {
        let ready = crate::support::http::get(address, "/readyz").await;
        ready.is_ok_and(|ready| ready.json()["status"] != "starting")
    })
    .await;
    browser.go(&format!("http://{address}/jobs/clubs")).await;
    browser.shows("main", "vet migration").await;
    browser.shows("main", "Ann").await;
    browser.shows("header", "Ann").await;
    browser.click("main form[action$='/resume'] button").await;
    browser.until("!document.querySelector('main').innerText.includes('vet migration')").await;
    drop(again);
}
