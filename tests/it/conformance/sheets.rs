//! The conformance suite of the sheets of a fleet.

use std::sync::Arc;
use std::time::Duration;

use preheat::engine::ports::{Clock, SheetKind, Sheets};

use super::cache::{Past, on_redis};
use crate::support;
use crate::support::memory::MemorySheets;
use crate::support::virtual_clock::VirtualClock;

const TTL: Duration = Duration::from_secs(8);

/// The sheets of a kind, in the order of their ids, as `id: field=text field=text`.
async fn shown(sheets: &dyn Sheets, kind: SheetKind) -> Vec<String> {
    let mut all = sheets.read(kind).await.unwrap();
    all.sort_by(|one, other| one.id.cmp(&other.id));
    let fields = |fields: &std::collections::BTreeMap<String, String>| -> Vec<String> {
        fields.iter().map(|(field, text)| format!("{field}={text}")).collect()
    };
    all.iter().map(|sheet| format!("{}: {}", sheet.id, fields(&sheet.fields).join(" "))).collect()
}

pub(crate) async fn conforms(sheets: &dyn Sheets) {
    use SheetKind::{Request, Summary};
    assert_eq!(shown(sheets, Summary).await, [""; 0]);
    sheets.put((Summary, "a"), "", "ä \u{1f43e}", TTL).await.unwrap();
    sheets.put((Summary, "b"), "", "old", TTL).await.unwrap();
    sheets.put((Summary, "b"), "", "new", TTL).await.unwrap();
    sheets.put((Request, "a"), "asked", "1", TTL).await.unwrap();
    sheets.put((Request, "a"), "b", "2", TTL).await.unwrap();
    assert_eq!(shown(sheets, Summary).await, ["a: =ä \u{1f43e}", "b: =new"]);
    assert_eq!(shown(sheets, Request).await, ["a: asked=1 b=2"]);
    sheets.remove(Summary, "a").await.unwrap();
    sheets.remove(Summary, "c").await.unwrap();
    assert_eq!(shown(sheets, Summary).await, ["b: =new"]);
    assert_eq!(shown(sheets, Request).await, ["a: asked=1 b=2"]);
}

#[tokio::test]
async fn the_sheets_in_memory_conform_and_vanish() {
    let clock = VirtualClock::new("2026-03-01T00:00:00Z".parse().unwrap(), 1);
    let sheets = MemorySheets::new(Arc::new(clock.clone()) as Arc<dyn Clock>);
    conforms(&sheets).await;
    clock.advance(Duration::from_millis(7_999)).await;
    sheets.put((SheetKind::Request, "a"), "c", "3", TTL).await.unwrap();
    clock.advance(Duration::from_millis(1)).await;
    assert_eq!(shown(&sheets, SheetKind::Summary).await, [""; 0]);
    assert_eq!(shown(&sheets, SheetKind::Request).await, ["a: asked=1 b=2 c=3"]);
}

#[tokio::test]
async fn the_sheets_in_redis_conform_and_vanish() {
    let server = support::redis();
    let (cache, connection) = on_redis(&server, &format!("{}?db=3", server.url())).await;
    let mut past = Past::Redis(vec![connection]);
    conforms(&cache).await;
    let left = past.ttl(&SheetKind::Summary.key_of("b")).await.unwrap();
    assert!(left > Duration::ZERO && left <= TTL, "{left:?}");
    assert!(past.ttl(&SheetKind::Summary.key()).await.unwrap() > TTL);
    past.evict(&SheetKind::Summary.key_of("b")).await;
    for _twice in 0..2 {
        assert_eq!(shown(&cache, SheetKind::Summary).await, [""; 0], "its id is forgotten, too");
    }
    past.evict(&SheetKind::Request.key()).await;
    assert_eq!(shown(&cache, SheetKind::Request).await, [""; 0]);
    cache.put((SheetKind::Request, "a"), "c", "3", TTL).await.unwrap();
    assert_eq!(shown(&cache, SheetKind::Request).await, ["a: asked=1 b=2 c=3"]);
}
