//! Messages of triggers that travel through the write-ahead log.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use preheat::adapter::postgres::{self, ChangesError, Database, Ways, look, uninstall};
use preheat::domain::change::{Change, Via};
use preheat::engine::ports::{Feed, FeedError, FeedSource, Source};
use preheat_sandbox::{Postgres, PostgresOptions};
use sqlx::{Connection, Executor, PgConnection};
use tokio::time::timeout;

use super::{
    TABLES, TENANTS, Watch, feed_source, install, install_sql, invoker, of, plain, sources,
};
use crate::conformance::certificates::Certificates;
use crate::conformance::pgbouncer::Bouncer;
use crate::conformance::postgres::{settings, source};
use crate::support::{self, LONG, eventually, own_logical_postgres};

/// How many slots and how many sessions that stream a database has.
async fn slots(server: &support::Database) -> (i64, i64) {
    let sql = "select (select count(*) from pg_replication_slots where database = current_database()), \
                 (select count(*) from pg_stat_activity where backend_type = 'walsender' \
                   and datname = current_database())";
    sqlx::query_as(sql).fetch_one(&mut server.connect().await).await.unwrap()
}

#[tokio::test]
async fn a_slot_lives_as_long_as_its_session_and_its_reader_and_not_longer() {
    let mut watch = Watch::new(Via::Wal, TABLES, &[plain("items")]).await;
    assert_eq!(slots(&watch.server).await, (1, 1));
    assert_eq!(watch.ids("insert into items values (1, 7)").await, [of(&["7"])]);
    watch.execute(super::end_of_listener(Via::Wal)).await;
    let FeedError(message) = timeout(LONG, watch.feed.next()).await.unwrap().unwrap_err();
    assert!(message.contains("terminating connection due to administrator command"), "{message}");
    eventually("the slot is gone", LONG, async || slots(&watch.server).await == (0, 0)).await;

    let feed = watch.source.connect().await.unwrap();
    assert_eq!(slots(&watch.server).await, (1, 1));
    drop(feed);
    eventually("the slot is gone", LONG, async || slots(&watch.server).await == (0, 0)).await;
}

#[tokio::test]
async fn the_log_is_not_kept_for_a_reader_that_reads() {
    let mut watch = Watch::new(Via::Wal, TABLES, &[plain("items")]).await;
    watch.execute("create table other (text text)").await;
    let mut connection = watch.server.connect().await;
    let end = "select pg_current_wal_lsn()::text";
    for _ in 0..2 {
        watch
            .execute("insert into other select repeat('x', 500) from generate_series(1, 2000)")
            .await;
        assert_eq!(watch.ids("insert into items values (1, 7); delete from items").await.len(), 1);
        let written: String = sqlx::query_scalar(end).fetch_one(&mut connection).await.unwrap();
        let confirmed = "select coalesce(bool_and(confirmed_flush_lsn >= $1::pg_lsn), false) \
                         from pg_replication_slots where database = current_database()";
        // The feed only acknowledges while somebody waits for changes.
        let waiting = async { watch.feed.next().await.map(drop) };
        let kept = eventually("what was read is confirmed", LONG, async || {
            let asked = sqlx::query_scalar(confirmed).bind(&written);
            asked.fetch_one(&mut connection).await.unwrap()
        });
        tokio::select! {
            heard = waiting => panic!("nothing has changed: {heard:?}"),
            () = kept => {}
        }
    }
}

#[tokio::test]
async fn a_transaction_of_many_statements_is_handed_on_in_pieces_without_repetition() {
    let mut watch = Watch::new(Via::Wal, TABLES, &[plain("items")]).await;
    watch.execute("insert into items select n, n from generate_series(1, 6000) n").await;
    watch.told().await;
    let each = "do $$ begin for round in 1..2 loop for i in 1..6000 loop \
                update items set n = n + 1 where id = i; end loop; end loop; end $$";
    watch.execute(each).await;
    let last = watch.emit(r#"{"source":"last-word"}"#);
    watch.execute(&last).await;
    let (mut pieces, mut total) = (0, 0);
    loop {
        let piece = timeout(LONG, watch.feed.next()).await.unwrap().unwrap();
        assert!(piece.len() <= 1_001, "{}", piece.len());
        (pieces, total) = (pieces + 1, total + piece.len());
        if piece.last().unwrap().source.as_str() == "last-word" {
            break;
        }
    }
    assert_eq!(total, 12_001);
    assert!(pieces >= 12, "{pieces}");
}

#[tokio::test]
async fn a_transaction_that_holds_up_the_slot_is_named_and_its_changes_are_not_lost() {
    let server = support::logical_database().await;
    server.execute(TABLES).await;
    let database = Arc::new(Database::connect(settings(&server.url())).await.unwrap());
    let watched = sources(&[plain("items")]);
    postgres::install(&database, &watched, TENANTS, invoker(Some(Via::Wal))).await.unwrap();
    let named = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&named);
    let source = feed_source(Via::Wal, &database, None)
        .telling(Arc::new(move |what| noted.lock().unwrap().push(what.to_owned())));

    let mut holder = server.connect().await;
    holder.execute("set application_name = 'a report'").await.unwrap();
    holder.execute("begin; insert into items values (1, 7)").await.unwrap();
    let id: i32 =
        sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut holder).await.unwrap();
    // It can listen, as far as anybody can tell.
    source.prepare().await.unwrap();
    // Callers that give up leave no further slot behind, which the server would keep.
    for _ in 0..2 {
        assert!(timeout(Duration::from_millis(100), source.connect()).await.is_err());
    }
    assert_eq!(slots(&server).await, (1, 1));
    let hold = async {
        eventually("the transaction is named", LONG, async || {
            let named = named.lock().unwrap().clone();
            let session = format!("session {id} of application `a report`");
            named.iter().any(|what| what.contains(&session) && what.contains("open since 2"))
        })
        .await;
        holder.execute("commit").await.unwrap();
    };
    let (feed, ()) = tokio::join!(source.connect(), hold);
    // The change was committed before the feed was connected, which counts as a change of everything.
    let mut feed = feed.unwrap();
    server.execute("insert into items values (2, 8)").await;
    let heard = timeout(LONG, feed.next()).await.unwrap().unwrap();
    assert_eq!(heard, [Change::new(watched[0].id.clone(), of(&["8"]))]);
}

#[tokio::test]
async fn switching_is_one_install_and_the_feed_follows() {
    let mut watch = Watch::new(Via::Notify, TABLES, &[plain("items")]).await;
    let logical = support::logical_database().await;
    logical.execute(TABLES).await;
    let database = Arc::new(Database::connect(settings(&logical.url())).await.unwrap());
    install(&database, &watch.sources, TENANTS).await.unwrap();
    watch.source = feed_source(Via::Notify, &database, None);
    (watch.database, watch.server) = (database, logical);
    watch.feed = watch.source.connect().await.unwrap();
    assert_eq!(watch.ids("insert into items values (1, 7)").await, [of(&["7"])]);
    for via in [Via::Wal, Via::Notify, Via::Wal] {
        let wanted = invoker(Some(via));
        let before = look(&watch.database, &watch.sources).await.unwrap();
        postgres::install(&watch.database, &watch.sources, TENANTS, wanted).await.unwrap();
        let now = look(&watch.database, &watch.sources).await.unwrap();
        assert_eq!(now.ways, super::ways(via));
        assert_eq!(now.versions.missed_since(&before.versions), [watch.sources[0].id.clone()]);
        // `install` sends its message both ways, so the feed receives it before it follows the switch.
        let told = async { watch.feed.next().await.map(drop) };
        tokio::select! {
            heard = told => panic!("nothing has changed: {heard:?}"),
            () = watch.source.somebody_installed() => {}
        }
        watch.source.follow(now.ways);
        let FeedError(message) = timeout(LONG, watch.feed.next()).await.unwrap().unwrap_err();
        assert!(message.contains("the triggers were switched"), "{message}");
        watch.feed = watch.source.connect().await.unwrap();
        watch.via = via;
        assert_eq!(watch.ids("update items set n = n + 1").await, [of(&["7"])]);
        // An `install` without `via` does not change how the triggers send their messages.
        install(&watch.database, &watch.sources, TENANTS).await.unwrap();
        assert_eq!(look(&watch.database, &watch.sources).await.unwrap().ways, super::ways(via));
        let publications = "select count(*) from pg_publication";
        let publications: i64 = sqlx::query_scalar(publications)
            .fetch_one(&mut watch.server.connect().await)
            .await
            .unwrap();
        assert_eq!(publications, i64::from(via == Via::Wal));
    }
    uninstall(&watch.database).await.unwrap();
    let left = "select count(*) from pg_publication";
    let mut connection = watch.server.connect().await;
    assert_eq!(sqlx::query_scalar::<_, i64>(left).fetch_one(&mut connection).await.unwrap(), 0);
}

#[tokio::test]
async fn a_switch_waits_for_transactions_that_have_spoken_the_other_way() {
    let watch = Watch::new(Via::Wal, TABLES, &[plain("items")]).await;
    let mut writing = watch.server.connect().await;
    writing.execute("begin; insert into items values (1, 1)").await.unwrap();
    let wanted = invoker(Some(Via::Notify));
    let switching = postgres::install(&watch.database, &watch.sources, TENANTS, wanted);
    let let_go = async {
        let waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' \
                     and datname = current_database()";
        let mut looking = watch.server.connect().await;
        eventually("the install waits for the writer", LONG, async || {
            sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut looking).await.unwrap() == 1
        })
        .await;
        writing.execute("commit").await.unwrap();
    };
    let (switched, ()) = tokio::join!(switching, let_go);
    switched.unwrap();
}

#[tokio::test]
async fn triggers_that_speak_both_ways_are_named_and_heard() {
    let tables = TABLES.to_owned() + "create table others (tenant_id bigint)";
    let mut watch = Watch::new(Via::Wal, &tables, &[plain("items"), plain("others")]).await;
    // As after a migration that was printed for one table, some time ago.
    let (items, others) = (watch.id("items"), watch.id("others"));
    let old: Vec<_> = watch.sources.iter().filter(|source| source.id == others).cloned().collect();
    let script = install_sql(Via::Notify, &old);
    let function = script.split("-- For ").nth(1).unwrap().split("create or replace trigger");
    watch.execute(&format!("-- For {}", function.clone().next().unwrap())).await;
    let looked = look(&watch.database, &watch.sources).await.unwrap();
    assert_eq!(looked.ways, Ways { notify: true, wal: true });
    assert_eq!(looked.standing.not_switched, ["others"]);
    assert_eq!(looked.standing.whole, ["items", "others"]);
    watch.source.follow(looked.ways);
    assert!(timeout(LONG, watch.feed.next()).await.unwrap().is_err());
    watch.feed = watch.source.connect().await.unwrap();
    for round in 1..4 {
        for (sql, id) in [
            (format!("insert into items values ({round}, 7)"), &items),
            ("insert into others values (7)".to_owned(), &others),
        ] {
            watch.execute(&sql).await;
            let heard = timeout(LONG, watch.feed.next()).await.unwrap().unwrap();
            assert_eq!(heard, [Change::new(id.clone(), of(&["7"]))]);
        }
    }
    install(&watch.database, &watch.sources, TENANTS).await.unwrap();
    let looked = look(&watch.database, &watch.sources).await.unwrap();
    assert_eq!(looked.ways, Ways { notify: false, wal: true });
    assert!(looked.standing.not_switched.is_empty());
}

/// Why a role cannot listen to a database.
async fn refused(url: &str, direct: Option<&str>) -> String {
    let database = Arc::new(Database::connect(settings(url)).await.unwrap());
    let source = feed_source(Via::Wal, &database, direct.map(settings));
    source.connect().await.err().unwrap().to_string()
}

#[tokio::test]
async fn what_listening_lacks_is_said_with_what_to_do() {
    let server = support::logical_database().await;
    server.execute(TABLES).await;
    let said = refused(&server.url(), None).await;
    assert!(
        said.contains("the publication `preheat_changes` is missing; hint: run `preheat changes"),
        "{said}"
    );

    let role = format!("reader_of_{}", server.name());
    server.execute(&format!("create role {role} login")).await;
    let said = refused(&server.url_as(&role), None).await;
    assert!(said.contains("need a role with REPLICATION (`alter role … replication`)"), "{said}");
    server.execute(&format!("drop role {role}")).await;

    let plain = support::database().await;
    let said = refused(&plain.url(), None).await;
    assert!(said.contains("wal_senders") || said.contains("wal_level is minimal"), "{said}");
    assert!(said.contains("hint: "), "{said}");
    plain.execute(TABLES).await;
    let database = Database::connect(settings(&plain.url())).await.unwrap();
    let watched = sources(&[super::plain("items")]);
    let wanted = invoker(Some(Via::Wal));
    let error = postgres::install(&database, &watched, TENANTS, wanted).await.unwrap_err();
    assert!(matches!(&error, ChangesError::Log(_)), "{error}");
    assert!(error.to_string().starts_with("wal_level is minimal; hint: "), "{error}");
    let mut connection = plain.connect().await;
    let sql = sqlx::AssertSqlSafe(install_sql(Via::Wal, &watched));
    let error = sqlx::raw_sql(sql).execute(&mut connection).await.unwrap_err();
    assert!(error.to_string().contains("wal_level is minimal"), "{error}");
}

/// A watched database on a server of the test's own.
async fn watched_on(server: &Postgres, url: &str) -> Arc<Database> {
    server.execute("postgres", TABLES).await.unwrap();
    let database = Arc::new(Database::connect(settings(url)).await.unwrap());
    let watched = sources(&[plain("items")]);
    postgres::install(&database, &watched, TENANTS, invoker(Some(Via::Wal))).await.unwrap();
    database
}

/// Whether a feed hears of a change.
async fn hears(feed: &mut Box<dyn Feed>, url: &str) {
    let mut writer = PgConnection::connect(url).await.unwrap();
    writer.execute("insert into items values ((select count(*) from items), 7)").await.unwrap();
    let heard = timeout(LONG, feed.next()).await.unwrap().unwrap();
    assert_eq!(heard[0].tenants, of(&["7"]));
}

#[tokio::test]
async fn a_worker_for_which_there_is_no_slot_says_so_and_a_server_that_stops_waits_for_no_reader() {
    let server = own_logical_postgres(&[("max_replication_slots", "1"), ("max_wal_senders", "3")]);
    let url = server.url("postgres");
    let database = watched_on(&server, &url).await;
    let source = feed_source(Via::Wal, &database, None);
    let mut feed = source.connect().await.unwrap();
    hears(&mut feed, &url).await;
    let said = refused(&url, None).await;
    assert!(said.contains("all replication slots are in use"), "{said}");
    assert!(said.contains("raise `max_replication_slots`"), "{said}");
    drop(feed);
    // A server that stops does not wait for a reader.
    let mut feed = source.connect().await.unwrap();
    server.stop();
    let FeedError(message) = timeout(LONG, feed.next()).await.unwrap().unwrap_err();
    assert!(message.starts_with("lost the connection that listens"), "{message}");
}

#[tokio::test]
async fn a_worker_for_which_there_is_no_wal_sender_says_so() {
    let server = own_logical_postgres(&[("max_wal_senders", "1")]);
    let url = server.url("postgres");
    let database = watched_on(&server, &url).await;
    let source = feed_source(Via::Wal, &database, None);
    let mut feed = source.connect().await.unwrap();
    let said = refused(&url, None).await;
    assert!(said.contains("exceeds max_wal_senders"), "{said}");
    assert!(said.contains("hint: every worker takes one WAL sender: raise"), "{said}");
    hears(&mut feed, &url).await;
    drop(feed);
    eventually("the WAL sender is free", LONG, async || source.connect().await.is_ok()).await;
}

#[tokio::test]
async fn the_log_of_a_standby_is_not_read_in_place_of_its_primarys() {
    let server = own_logical_postgres(&[("hot_standby", "on")]);
    let url = server.url("postgres");
    watched_on(&server, &url).await.close().await;
    support::restart_as_standby(&server);
    let said = refused(&url, None).await;
    assert!(said.contains("it is a standby, where no trigger fires"), "{said}");
    assert!(said.contains("set `[changes] url` to the address of the primary"), "{said}");
}

/// A server with TLS, and a role for each kind of login, named after it, with the password `it's: secret/@ä`.
async fn server_with_logins(certificates: &Certificates) -> Postgres {
    let logical = [("wal_level", "logical"), ("max_wal_senders", "9")];
    let server = Postgres::start(&PostgresOptions {
        tcp: true,
        tls: Some(certificates.server()),
        settings: logical.map(|(name, value)| (name.into(), value.into())).to_vec(),
        access: vec![
            "hostssl all scram all scram-sha-256".to_owned(),
            "hostnossl all scram all reject".to_owned(),
            "host all hashed all md5".to_owned(),
            "host all clear all password".to_owned(),
        ],
        ..PostgresOptions::default()
    })
    .unwrap();
    watched_on(&server, &server.url("postgres")).await.close().await;
    for (role, encryption) in [("scram", "scram-sha-256"), ("hashed", "md5"), ("clear", "md5")] {
        let create = format!(
            "set password_encryption = '{encryption}'; \
             create role {role} login replication superuser password 'it''s: secret/@ä'"
        );
        server.execute("postgres", &create).await.unwrap();
    }
    server
}

#[tokio::test]
async fn a_replication_session_logs_in_and_is_protected_as_the_url_says() {
    let certificates = Certificates::new();
    let server = server_with_logins(&certificates).await;
    let port = server.tcp_port().unwrap();
    let ca = certificates.ca().display().to_string();
    let url = |role: &str, host: &str, parameters: &str| {
        let password = "it's%3A%20secret%2F%40%C3%A4";
        format!("postgres://{role}:{password}@{host}:{port}/postgres?{parameters}")
    };
    let connect = async |url: &str| -> Result<Box<dyn Feed>, FeedError> {
        let main = Database::connect(settings(&server.url("postgres"))).await.unwrap();
        feed_source(Via::Wal, &Arc::new(main), Some(settings(url))).connect().await
    };
    let verified = format!("sslmode=verify-full&sslrootcert={ca}");
    let any_name = format!("sslmode=verify-ca&sslrootcert={ca}");
    for good in [
        url("scram", "localhost", &verified),
        url("scram", "127.0.0.1", &any_name),
        url("scram", "127.0.0.1", "sslmode=require"),
        url("scram", "127.0.0.1", "sslmode=prefer"),
        url("hashed", "127.0.0.1", "sslmode=disable"),
        url("hashed", "localhost", &verified),
        url("clear", "127.0.0.1", "sslmode=disable"),
    ] {
        let mut feed = connect(&good).await.unwrap_or_else(|error| panic!("{good}: {error}"));
        hears(&mut feed, &server.url("postgres")).await;
        let tls = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) \
                   where backend_type = 'walsender' and ssl";
        let mut looking = PgConnection::connect(&server.url("postgres")).await.unwrap();
        let tls: i64 = sqlx::query_scalar(tls).fetch_one(&mut looking).await.unwrap();
        assert_eq!(tls > 0, !good.contains("disable"), "{good}");
        drop(feed);
        let gone = "select count(*) from pg_replication_slots";
        eventually("the slot is gone", LONG, async || {
            sqlx::query_scalar::<_, i64>(gone).fetch_one(&mut looking).await.unwrap() == 0
        })
        .await;
    }
    for (bad, said) in [
        (url("scram", "127.0.0.1", &verified), "certificate not valid for name"),
        (url("scram", "localhost", "sslmode=verify-full"), "UnknownIssuer"),
        (url("scram", "127.0.0.1", "sslmode=disable"), "pg_hba.conf rejects"),
        (
            url("scram", "localhost", &verified).replace("secret", "other"),
            "password authentication failed",
        ),
        (
            url("hashed", "localhost", &verified).replace("secret", "other"),
            "password authentication failed",
        ),
    ] {
        let Err(FeedError(message)) = connect(&bad).await else { panic!("{bad}") };
        assert!(message.contains(said), "{message}");
        assert!(!message.contains("secret") && !message.contains("other%"), "{message}");
    }
}

#[tokio::test]
async fn every_session_shows_the_certificate_that_the_url_names() {
    let certificates = Certificates::new();
    let client = certificates.client("certified");
    let logical = [("wal_level", "logical"), ("max_wal_senders", "9")];
    let ca = certificates.ca().display().to_string();
    let settings_of = logical.iter().copied().chain([("ssl_ca_file", ca.as_str())]);
    let server = Postgres::start(&PostgresOptions {
        tcp: true,
        tls: Some(certificates.server()),
        settings: settings_of.map(|(name, value)| (name.into(), value.into())).collect(),
        access: vec!["hostssl all certified all cert".to_owned()],
        ..PostgresOptions::default()
    });
    let server = server.unwrap();
    watched_on(&server, &server.url("postgres")).await.close().await;
    let create = "create role certified login replication superuser";
    server.execute("postgres", create).await.unwrap();
    let port = server.tcp_port().unwrap();
    let bare = format!(
        "postgres://certified@localhost:{port}/postgres?sslmode=verify-full&sslrootcert={ca}"
    );
    let (certificate, key) = (client.certificate.display(), client.key.display());
    let shown = format!("{bare}&sslcert={certificate}&sslkey={key}");

    let database = Arc::new(Database::connect(settings(&shown)).await.unwrap());
    let tenants = source(Arc::clone(&database), "select current_user::text").tenants().await;
    assert_eq!(tenants.unwrap().get(0).unwrap().id(), "certified");
    let mut feed = feed_source(Via::Wal, &database, None).connect().await.unwrap();
    hears(&mut feed, &server.url("postgres")).await;

    let main = Arc::new(Database::connect(settings(&server.url("postgres"))).await.unwrap());
    let refused = async |url: &str| {
        let listening = feed_source(Via::Wal, &main, Some(settings(url))).connect().await;
        let connecting = Database::connect(settings(url)).await;
        [connecting.err().unwrap().message, listening.err().unwrap().to_string()]
    };
    for said in refused(&bare).await {
        assert!(said.contains("connection requires a valid client certificate"), "{said}");
    }
    certificates.old_client("certified");
    for said in refused(&shown).await {
        assert!(said.contains("cannot use the certificate of `sslcert`"), "{said}");
        assert!(said.contains("hint: it has version 1") && !said.contains("verify-ca"), "{said}");
    }
}

#[tokio::test]
async fn behind_pgbouncer_the_log_is_read_past_it() {
    let Some(bouncer) = Bouncer::start_before(support::logical_postgres()).await else { return };
    let server = support::logical_database().await;
    server.execute(TABLES).await;
    let database = Database::connect(settings(&bouncer.url(server.name()))).await.unwrap();
    let database = Arc::new(database);
    let watched = sources(&[plain("items")]);
    postgres::install(&database, &watched, TENANTS, invoker(Some(Via::Wal))).await.unwrap();
    let direct = feed_source(Via::Wal, &database, Some(settings(&server.url())));
    let mut feed = direct.connect().await.unwrap();
    server.execute("insert into items values (1, 7)").await;
    let told = timeout(LONG, feed.next()).await.unwrap().unwrap();
    assert_eq!(told, [Change::new(watched[0].id.clone(), of(&["7"]))]);

    let through = feed_source(Via::Wal, &database, None);
    match through.connect().await {
        // From version 1.23 on it passes replication connections on.
        Ok(_feed) => {}
        Err(FeedError(said)) => assert!(said.contains("set `[changes] url`"), "{said}"),
    }
    let other = support::logical_database().await;
    other.execute("create publication preheat_changes").await;
    let said = refused(&bouncer.url(server.name()), Some(&other.url())).await;
    assert!(said.contains("is not heard by the listener"), "{said}");
}
