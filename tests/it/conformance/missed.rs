//! Changes that the feed may have missed: a look notices that, and `install` reports it.

use std::collections::BTreeSet;
use std::sync::Arc;

use preheat::adapter::postgres::{Database, look};
use preheat::domain::change::{Change, Via};
use preheat::engine::ports::FeedSource;
use sqlx::Connection;
use tokio::time::timeout;

use super::changes::{
    TABLES, TENANTS, Watch, both_ways, by_column, feed_source, install, invoker, of, plain, sources,
};
use super::postgres::settings;
use crate::support::{LONG, eventually};

async fn hazard_39_a_look_notices_triggers_that_were_away_and_another_table_of_the_name(via: Via) {
    let watch = Watch::new(via, TABLES, &[plain("items")]).await;
    let id = watch.id("items");
    let items = std::slice::from_ref(&id);
    let look = async || look(&watch.database, &watch.sources).await.unwrap();
    let install = async || install(&watch.database, &watch.sources, TENANTS).await.unwrap();
    let mut before = look().await.versions;
    let (off, on) =
        ("alter table items disable trigger all", "alter table items enable trigger all");
    let replica = format!("alter table items enable replica trigger preheat_{id}_update");
    let always = format!("alter table items enable always trigger preheat_{id}_update");
    let swap = "alter table items rename to old; create table items (like old)";
    // For each case: whether all triggers exist afterwards, and whether changes may have been
    // missed.
    let cases: [(&[&str], bool, bool); 11] = [
        (&["insert into items values (1, 7)", "analyze items", "vacuum full items"], true, false),
        (&["alter table items add more int; create index on items (n)"], true, false),
        (&[off, on], true, true),
        (&[&format!("{off}; {on}")], true, true),
        (&[off], false, false),
        (&[on], true, true),
        (&[&replica], false, false),
        (&[&always], true, true),
        (&[swap], false, true),
        (&["drop table items"], false, false),
        (&["alter table old rename to items"], true, true),
    ];
    for (statements, is_whole, is_missed) in cases {
        for sql in statements {
            watch.execute(sql).await;
        }
        let now = look().await;
        assert_eq!(now.standing.lacking.is_empty(), is_whole, "{statements:?}");
        let missed = now.versions.missed_since(&before);
        assert_eq!(missed, if is_missed { items } else { &[] }, "{statements:?}");
        before = now.versions;
    }
    watch.execute(&format!("drop trigger preheat_{id}_insert on items")).await;
    let lacking = look().await;
    assert!(lacking.versions.missed_since(&before).is_empty());
    install().await;
    assert_eq!(look().await.versions.missed_since(&lacking.versions), items);
    assert_eq!(look().await.versions.missed_since(&before), items);
}

async fn a_look_waits_for_no_table_that_somebody_has_locked(via: Via) {
    let watch = Watch::new(via, TABLES, &[plain("items")]).await;
    let mut holder = watch.server.connect().await;
    let lock = "begin; lock table items, tenants in access exclusive mode";
    sqlx::raw_sql(lock).execute(&mut holder).await.unwrap();
    let looked = look(&watch.database, &watch.sources).await.unwrap();
    assert_eq!(looked.standing.whole, ["items"]);
    holder.close().await.unwrap();
}

async fn installing_tells_workers_what_is_new_or_mended_and_nothing_else(via: Via) {
    let tables = TABLES.to_owned() + "create table others (tenant_id bigint)";
    let mut watch = Watch::new(via, &tables, &[plain("items"), plain("others")]).await;
    assert!(watch.told().await.is_empty());
    assert_eq!(watch.source.take_installed(), BTreeSet::new());
    let id = watch.id("items");
    watch.execute("alter table items disable trigger all").await;
    install(&watch.database, &watch.sources, TENANTS).await.unwrap();
    assert!(watch.told().await.is_empty());
    timeout(LONG, watch.source.somebody_installed()).await.unwrap();
    assert_eq!(watch.source.take_installed(), BTreeSet::from([id.clone()]));
    install(&watch.database, &watch.sources, TENANTS).await.unwrap();
    assert!(watch.told().await.is_empty());
    assert_eq!(watch.source.take_installed(), BTreeSet::new());
    watch.execute(&super::changes::install_sql(via, &watch.sources)).await;
    assert!(watch.told().await.is_empty());
    let both = watch.sources.iter().map(|source| source.id.clone()).collect();
    assert_eq!(watch.source.take_installed(), both);
}

async fn who_listens_hears_of_sources_whose_changes_may_have_been_missed(via: Via) {
    let mut watch = Watch::new(via, TABLES, &[plain("items"), by_column("items", "n")]).await;
    let all: Vec<_> = watch.sources.iter().map(|source| source.id.clone()).collect();
    for _ in 0..2 {
        watch.source.may_have_missed(all.clone());
        let mut heard = Vec::new();
        while heard.len() < all.len() {
            heard.extend(timeout(LONG, watch.feed.next()).await.unwrap().unwrap());
        }
        heard.sort_by(|one, other| one.source.cmp(&other.source));
        let mut expected: Vec<_> = all.iter().map(|id| Change::new(id.clone(), None)).collect();
        expected.sort_by(|one, other| one.source.cmp(&other.source));
        assert_eq!(heard, expected);
    }
    // A new connection reports all data as changed anyway.
    watch.source.may_have_missed(all);
    watch.feed = watch.source.connect().await.unwrap();
    assert!(watch.told().await.is_empty());
}

async fn a_listener_outlives_the_timeout_of_idle_sessions(via: Via) {
    let server = super::changes::database(via).await;
    server.execute(TABLES).await;
    let name = server.name();
    server.execute(&format!("alter database {name} set idle_session_timeout = '500ms'")).await;
    let database = Arc::new(Database::connect(settings(&server.url())).await.unwrap());
    let watched = sources(&[plain("items")]);
    let wanted = invoker(Some(via));
    preheat::adapter::postgres::install(&database, &watched, TENANTS, wanted).await.unwrap();
    let source = feed_source(via, &database, None);
    let mut feed = source.connect().await.unwrap();
    // A session that began later and was idle for as long has ended by now.
    let mut idle = server.connect().await;
    let id: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut idle).await.unwrap();
    let sql = "select count(*) from pg_stat_activity where pid = $1";
    eventually("another idle session has ended", LONG, async || {
        let mut looking = server.connect().await;
        sqlx::query_scalar::<_, i64>(sql).bind(id).fetch_one(&mut looking).await.unwrap() == 0
    })
    .await;
    server.execute("insert into items values (1, 7)").await;
    let heard = timeout(LONG, feed.next()).await.unwrap().unwrap();
    assert_eq!(heard, [Change::new(watched[0].id.clone(), of(&["7"]))]);
}

both_ways! {
    hazard_39_a_look_notices_triggers_that_were_away_and_another_table_of_the_name,
    a_look_waits_for_no_table_that_somebody_has_locked,
    installing_tells_workers_what_is_new_or_mended_and_nothing_else,
    who_listens_hears_of_sources_whose_changes_may_have_been_missed,
    a_listener_outlives_the_timeout_of_idle_sessions,
}
