//! Listening for changes, on connections that are lost or go through a pooler.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use preheat::adapter::postgres::{Database, DatabaseSettings, Done};
use preheat::domain::change::{Change, ChangeSourceId, Via};
use preheat::engine::ports::{FeedError, FeedSource};
use sqlx::Row;
use tokio::time::timeout;

use super::{
    TABLES, TENANTS, Watch, both_ways, by_column, database, end_of_listener, feed_source, install,
    invoker, of, plain, sources, standing, whole,
};
use crate::conformance::pgbouncer::Bouncer;
use crate::conformance::postgres::settings;
use crate::support::proxy::{Mode, Proxy};
use crate::support::{self, LONG, eventually};

/// Gives a database what a listener of its triggers needs.
async fn watched(via: Via, server: &support::Database) {
    let database = Database::connect(settings(&server.url())).await.unwrap();
    let sources = sources(&[plain("items")]);
    let wanted = invoker(Some(via));
    preheat::adapter::postgres::install(&database, &sources, TENANTS, wanted).await.unwrap();
    database.close().await;
}

async fn a_listener_takes_one_of_the_connections(via: Via) {
    let server = database(via).await;
    server.execute(TABLES).await;
    watched(via, &server).await;
    let count = async || {
        let sql = "select count(*) from pg_stat_activity where application_name = 'preheat' \
                   and datname = current_database()";
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut server.connect().await).await.unwrap()
    };
    let two = DatabaseSettings {
        max_connections: NonZeroU32::new(2).unwrap(),
        ..settings(&server.url())
    };
    for direct in [None, Some(two.clone())] {
        let database = Arc::new(Database::connect(two.clone()).await.unwrap());
        // Both of the pool's connections are open and idle.
        let both = (0..2).map(|_| standing(&database, &[]));
        futures::future::join_all(both).await;
        let source = feed_source(via, &database, direct);
        for _again in 0..3 {
            let feed = source.connect().await.unwrap();
            for _ in 0..3 {
                let more = (0..4).map(|_| standing(&database, &[]));
                futures::future::join_all(more).await;
                assert_eq!(count().await, 2);
            }
            drop(feed);
            eventually("the listener is gone", LONG, async || count().await <= 1).await;
        }
        drop((source, database));
        eventually("nobody is there", LONG, async || count().await == 0).await;
    }
    let one = DatabaseSettings { max_connections: NonZeroU32::MIN, ..two };
    let database = Arc::new(Database::connect(one).await.unwrap());
    let source = feed_source(via, &database, None);
    let error = source.connect().await.err().unwrap();
    assert_eq!(
        error.to_string(),
        "listening takes a connection of its own, and `database.max_connections` is 1"
    );
}

async fn a_lost_connection_is_an_error_and_never_mended_in_silence(via: Via) {
    let mut watch = Watch::new(via, TABLES, &[plain("items")]).await;
    assert_eq!(watch.ids("insert into items values (1, 7)").await, [of(&["7"])]);
    watch.execute(end_of_listener(via)).await;
    let FeedError(message) = timeout(LONG, watch.feed.next()).await.unwrap().unwrap_err();
    assert!(message.starts_with("lost the connection that listens to database"), "{message}");
}

async fn a_connection_that_died_without_a_word_is_noticed(via: Via) {
    let server = database(via).await;
    server.execute(TABLES).await;
    watched(via, &server).await;
    let proxy = Proxy::postgres(server.server()).await;
    let direct = settings(&server.url_through(&proxy));
    let database = Arc::new(Database::connect(settings(&server.url())).await.unwrap());
    let source = feed_source(via, &database, Some(direct));
    let mut feed = source.connect().await.unwrap();
    proxy.set(Mode::Stall);
    let FeedError(message) = timeout(LONG, feed.next()).await.unwrap().unwrap_err();
    assert!(message.contains("no answer within "), "{message}");
}

async fn waiting_may_be_given_up_at_any_time_and_nothing_is_lost(via: Via) {
    let mut watch = Watch::new(via, TABLES, &[plain("items")]).await;
    for round in 1..50_u64 {
        let sql = format!("insert into items values ({round}, {round})");
        let ((), given_up) = tokio::join!(
            watch.server.execute(&sql),
            timeout(Duration::from_micros(round * 150), watch.feed.next())
        );
        let expected = Change::new(watch.sources[0].id.clone(), of(&[&round.to_string()]));
        match given_up {
            Ok(heard) => assert_eq!(heard.unwrap(), [expected]),
            Err(_elapsed) => assert_eq!(watch.feed.next().await.unwrap(), [expected]),
        }
    }
}

async fn what_cannot_be_understood_is_a_change_of_everything(via: Via) {
    let mut watch = Watch::new(via, TABLES, &[plain("items"), by_column("items", "n")]).await;
    let all: Vec<_> =
        watch.sources.iter().map(|source| Change::new(source.id.clone(), None)).collect();
    for payload in ["", "products", "{}", "[7]"] {
        let told = watch.tells(&watch.emit(payload)).await;
        assert_eq!(told, all, "{payload}");
    }
    let told = watch.tells(&watch.emit(r#"{"source":"x","tenants":7}"#)).await;
    assert_eq!(told, [Change::new(ChangeSourceId::new("x"), None)]);
}

#[tokio::test]
async fn behind_pgbouncer_one_listens_past_it() {
    let Some(bouncer) = Bouncer::start().await else { return };
    let server = support::database().await;
    server.execute(TABLES).await;
    let through = settings(&bouncer.url(server.name()));
    let database = Arc::new(Database::connect(through).await.unwrap());
    let sources = sources(&[plain("items")]);
    let (installed, _) = install(&database, &sources, TENANTS).await.unwrap();
    assert_eq!(installed[0].done, Done::New);
    assert_eq!(standing(&database, &sources).await, whole("items"));
    let source = |database: &Arc<Database>, direct| feed_source(Via::Notify, database, direct);
    let direct = source(&database, Some(settings(&server.url())));
    let mut feed = direct.connect().await.unwrap();
    server.execute("insert into items values (1, 7)").await;
    let told = feed.next().await.unwrap();
    assert_eq!(told, [Change::new(sources[0].id.clone(), of(&["7"]))]);

    // The listener gets no session of its own here, and would receive nothing.
    let error = source(&database, None).connect().await.err().unwrap();
    assert!(error.to_string().contains("set `[changes] url`"), "{error}");
    let mut neighbour = bouncer.neighbour(server.name()).await;
    let heard = "select count(*) from pg_listening_channels()";
    // No named statement: this client's next one may run in another session.
    let heard = sqlx::raw_sql(heard).fetch_one(&mut neighbour).await.unwrap();
    assert_eq!(heard.get::<i64, _>(0), 0);
    let other = support::database().await;
    let error = source(&database, Some(settings(&other.url()))).connect().await.err().unwrap();
    assert!(error.to_string().contains("is not heard by the listener"), "{error}");
}

both_ways! {
    a_listener_takes_one_of_the_connections,
    a_lost_connection_is_an_error_and_never_mended_in_silence,
    a_connection_that_died_without_a_word_is_noticed,
    waiting_may_be_given_up_at_any_time_and_nothing_is_lost,
    what_cannot_be_understood_is_a_change_of_everything,
}
