//! Behind a proxy that takes a prefix off the path, under a name that browsers do not trust.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{dashboard, first_run};
use crate::support::browser::Browser;
use crate::support::shop::TOKEN;

const PREFIX: &str = "/ops/preheat";

/// A proxy for `http://…/ops/preheat/…`. It ends when it is dropped.
async fn proxy(worker: SocketAddr) -> (u16, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            connections.spawn(pass(client, worker));
        }
    });
    (port, tasks)
}

/// Passes one request on, without the prefix.
async fn pass(mut client: TcpStream, worker: SocketAddr) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = client.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let (line, rest) = head.split_once("\r\n").unwrap();
    let Some((method, path)) = line.split_once(&format!(" {PREFIX}/")) else {
        let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        return drop(client.write_all(answer.as_bytes()).await);
    };
    let rest = rest.replace("Connection: keep-alive", "Connection: close");
    let head = format!("{method} /{path}\r\nX-Forwarded-Prefix: {PREFIX}\r\n{rest}");
    let mut worker = TcpStream::connect(worker).await.unwrap();
    worker.write_all(head.as_bytes()).await.unwrap();
    drop(copy_bidirectional(&mut client, &mut worker).await);
}

#[tokio::test]
async fn the_dashboard_works_below_any_path() {
    let Some(mut browser) = Browser::start_with("MAP preheat.test 127.0.0.1").await else { return };
    let (_shop, worker) = dashboard().await;
    let worker = worker.start();
    worker.works().await;
    first_run(&worker, "clubs").await;
    let (port, _proxy) = proxy(worker.address()).await;
    let base = format!("http://preheat.test:{port}{PREFIX}/");
    assert_eq!(browser.open(&base).await, 200);
    browser.is("live").await;
    for section in ["Jobs", "Runs", "Tenants", "Audit", "Changes", "Settings"] {
        browser.click(&format!("nav >> text={section}")).await;
        browser.shows("nav a[aria-current]", section).await;
        assert!(browser.url().await.starts_with(&base), "{}", browser.url().await);
    }
    browser.go(&format!("{base}login")).await;
    browser.fill("input[name=token]", TOKEN).await;
    browser.click("main button.primary").await;
    browser.shows("header", "Sign out").await;
    browser.go(&format!("{base}jobs/clubs")).await;
    browser.click("main form[action$='/run'] button").await;
    browser.until("location.pathname.includes('/runs/')").await;
    assert!(browser.url().await.starts_with(&base), "{}", browser.url().await);
    assert_eq!(browser.problems().await, [""; 0]);
}
