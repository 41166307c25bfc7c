//! The conformance suite of the stores of pauses.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use preheat::adapter::postgres::{Database, PostgresHistory, migrate};
use preheat::domain::pause::{Note, Pause, Pauses};
use preheat::domain::server::Server;
use preheat::domain::who::Who;
use preheat::engine::ports::{PAUSES_KEY, PauseChanges, PauseStore};

use super::cache::{Past, on_redis};
use super::name;
use super::postgres::settings;
use crate::support;
use crate::support::memory::MemoryPauses;

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn pause(note: &str, until: Option<&str>) -> Pause {
    Pause {
        note: Note::parse(note).unwrap(),
        by: Who::named("Ann Ö. '; drop").unwrap(),
        since: at("2026-03-01T10:00:00.000123Z"),
        until: until.map(at),
    }
}

async fn keep(store: &dyn PauseStore, changes: &[(&str, Option<Pause>)]) {
    let changes = changes.iter().map(|(job, pause)| (name(job), pause.clone()));
    store.keep(&changes.collect::<PauseChanges>()).await.unwrap();
}

pub(crate) async fn conforms(store: &dyn PauseStore) {
    let kept = async || store.pauses().await.unwrap().unwrap_or_default();
    assert_eq!(kept().await, Pauses::new());
    keep(store, &[]).await;
    let first = pause("vet 'migration' \u{1f43e}", None);
    let other = pause("x", Some("2026-03-01T12:00:00Z"));
    keep(store, &[("a", Some(first.clone())), ("b", Some(other.clone()))]).await;
    assert_eq!(kept().await, Pauses::from([(name("a"), first), (name("b"), other.clone())]));
    let later = pause("longer", Some("2026-03-01T13:00:00.5Z"));
    keep(store, &[("a", Some(later.clone())), ("b", None), ("c", None)]).await;
    assert_eq!(kept().await, Pauses::from([(name("a"), later)]));
    for _twice in 0..2 {
        keep(store, &[("a", None)]).await;
        assert_eq!(
            store.pauses().await.unwrap(),
            Some(Pauses::new()),
            "it knows that none is left"
        );
    }
}

#[tokio::test]
async fn the_pauses_in_memory_conform() {
    conforms(&MemoryPauses::default()).await;
}

#[tokio::test]
async fn the_pauses_in_postgres_conform() {
    let server = support::database().await;
    let database = Arc::new(Database::connect(settings(&server.url())).await.unwrap());
    migrate(&database).await.unwrap();
    let store = PostgresHistory::new(database);
    conforms(&store).await;
    assert_eq!(PauseStore::server(&store), Server::Database);

    keep(&store, &[("a", Some(pause("x", None)))]).await;
    server.execute("insert into preheat.pauses values ('no name', 'y', '', now(), null)").await;
    let kept = store.pauses().await.unwrap().unwrap();
    assert_eq!(kept.keys().map(ToString::to_string).collect::<Vec<_>>(), ["a"]);
    server.execute("drop table preheat.pauses").await;
    let error = store.pauses().await.unwrap_err().to_string();
    assert!(error.starts_with("could not read the pauses: "), "{error}");
}

#[tokio::test]
async fn the_pauses_in_redis_conform_and_are_told_from_lost_ones() {
    let server = support::redis();
    let (cache, connection) = on_redis(&server, &format!("{}?db=3", server.url())).await;
    let mut past = Past::Redis(vec![connection]);
    conforms(&cache).await;
    assert_eq!(PauseStore::server(&cache), Server::Cache);
    assert_eq!(past.ttl(PAUSES_KEY).await, None);
    keep(&cache, &[("a", Some(pause("x", None)))]).await;
    past.evict(PAUSES_KEY).await;
    assert_eq!(cache.pauses().await.unwrap(), None);
}
