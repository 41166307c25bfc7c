//! The conformance suite of histories.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use preheat::adapter::memory::MemoryHistory;
use preheat::adapter::postgres::{
    Database, DatabaseSettings, MigrateError, PostgresHistory, migrate,
};
use preheat::domain::report::{Failure, FailureKind, Report};
use preheat::domain::run::{Outcome, RunFilter, RunId, RunRecord, Trigger};
use preheat::domain::share::Shares;
use preheat::domain::whole;
use preheat::engine::ports::History;

use super::name;
use super::postgres::settings;
use crate::support;

/// How many migrations there are.
const MIGRATIONS: usize = 5;

fn record(job: &str, minute: u32) -> RunRecord {
    let at = |second: u32| {
        let text = format!("2026-03-01T10:{minute:02}:{second:02}.000123Z");
        text.parse::<chrono::DateTime<chrono::Utc>>().unwrap()
    };
    let mut report = Report { bytes: 1 << 40, queries: 3, late: true, ..Report::default() };
    report.tenants.total = 7;
    report.tenants.ok = 6;
    report.tenants.failed = 1;
    report.keys.written = 12;
    let message = "`ä\u{2028}'; drop table x` is no zone".to_owned();
    report.fail(Failure::new(FailureKind::TimeZone, Some("t:1".to_owned()), message));
    RunRecord {
        id: RunId::new(at(0)),
        job: name(job),
        trigger: Trigger::Startup,
        outcome: Outcome::Partial,
        due_at: at(0),
        started_at: at(1),
        finished_at: at(30),
        report,
        replica: "worker-1".to_owned(),
        version: "0.1.0".to_owned(),
        requested_by: None,
        shares: None,
        fleet: None,
        parts: Vec::new(),
        all_tenants: Some(true),
    }
}

fn minutes(records: &[RunRecord]) -> Vec<String> {
    records.iter().map(|record| record.started_at.format("%M").to_string()).collect()
}

/// A run that ended so; it was for all tenants if its trigger is the schedule.
fn ended(job: &str, minute: u32, trigger: Trigger, outcome: Outcome) -> RunRecord {
    let all_tenants = Some(trigger == Trigger::Schedule);
    RunRecord { trigger, outcome, all_tenants, ..record(job, minute) }
}

/// Filters narrow the list together, pages follow one another, and the newest runs are recalled.
async fn answers(history: &dyn History) {
    use Outcome::{Failed, Ok, Partial};
    use Trigger::{Change, Request, Schedule};
    let records = [
        ended("a", 1, Schedule, Ok),
        ended("a", 2, Request, Ok),
        ended("b", 3, Schedule, Failed),
        ended("a", 4, Schedule, Partial),
        ended("a", 5, Change, Failed),
        ended("a", 6, Schedule, Failed),
    ];
    history.append(&records).await.unwrap();
    let found = async |filter: RunFilter| minutes(&history.find(&filter).await.unwrap());
    let all = RunFilter { limit: 9, ..RunFilter::default() };
    let job = Some(name("a"));
    assert_eq!(found(all.clone()).await, ["06", "05", "04", "03", "02", "01"]);
    let failed = RunFilter { outcome: Some(Failed), ..all.clone() };
    assert_eq!(found(failed.clone()).await, ["06", "05", "03"]);
    assert_eq!(found(RunFilter { job: job.clone(), ..failed.clone() }).await, ["06", "05"]);
    let by_schedule = RunFilter { trigger: Some(Schedule), ..failed };
    assert_eq!(found(by_schedule).await, ["06", "03"]);
    let between = RunFilter {
        since: Some(records[1].started_at),
        until: Some(records[3].started_at),
        ..all.clone()
    };
    assert_eq!(found(between).await, ["03", "02"]);
    let after = Some(records[3].place());
    assert_eq!(found(RunFilter { after, limit: 2, ..all.clone() }).await, ["03", "02"]);
    let none = RunFilter { after: Some(records[0].place()), job, ..all };
    assert_eq!(found(none).await, [""; 0]);

    let jobs = [name("a"), name("c")];
    let mut recalled = minutes(&history.recall(&jobs, 1).await.unwrap());
    recalled.sort();
    assert_eq!(recalled, ["01", "04", "06"], "the newest, the last for all, the last success");
    let newest = history.recall(&jobs, 9).await.unwrap();
    let known = newest.iter().find(|found| found.id == records[3].id).unwrap();
    assert_eq!(known.report.failures, records[3].report.failures);
    assert_eq!((known.report.queries, known.report.keys.written), (3, 12));

    let beside = history.beside(&records[3]).await.unwrap();
    assert_eq!((beside.earlier, beside.later), (Some(records[1].id), Some(records[4].id)));
    assert_eq!(beside.last_ok.map(|run| run.id), Some(records[0].id), "over all tenants, too");
    let beside = history.beside(&records[4]).await.unwrap();
    assert_eq!(beside.last_ok.map(|run| run.id), Some(records[1].id), "for some tenants, too");
    let beside = history.beside(&records[2]).await.unwrap();
    assert!(beside.earlier.is_none() && beside.later.is_none() && beside.last_ok.is_none());
}

/// The parts of a fleet's run are found by the moment when it was due, and the runs beside it are other runs.
async fn keeps_parts(history: &dyn History) {
    let due = |minute: u32| record("a", minute).due_at;
    let part = |minute: u32, second: u32, shares: &str| {
        let started_at = due(minute) + Duration::from_secs(second.into());
        let trigger = Trigger::Schedule;
        let shares = Shares::parse(shares);
        RunRecord { id: RunId::new(started_at), trigger, started_at, shares, ..record("a", minute) }
    };
    let records = [
        part(1, 1, "0-20"),
        part(1, 9, "21-63"),
        part(2, 1, "0-63"),
        RunRecord { shares: None, ..part(1, 5, "") },
        part(3, 1, "0-20"),
    ];
    history.append(&records).await.unwrap();
    let ids = |records: &[RunRecord]| records.iter().map(|record| record.id).collect::<Vec<_>>();
    let found = history.parts(&[due(1)]).await.unwrap();
    assert_eq!(ids(&found), ids(&records[..2]));
    assert_eq!(found[0].shares, records[0].shares);
    let found = history.parts(&[due(3), due(1), due(1), due(9)]).await.unwrap();
    assert_eq!(found.len(), 3);
    let whole = whole::one(records[..2].to_vec()).unwrap();
    for run in [&whole, &records[0], &records[1]] {
        let beside = history.beside(run).await.unwrap();
        let later = if run.id == records[1].id { records[2].listed_id() } else { records[3].id };
        assert_eq!((beside.later, beside.last_ok.map(|run| run.id)), (Some(later), None));
    }
    let beside = history.beside(&records[2]).await.unwrap();
    assert_eq!(beside.earlier, Some(whole.id));
    assert_eq!(beside.later, Some(records[4].listed_id()));

    // A part of another fleet's run that was due at the same moment is of another run.
    let other = RunRecord { fleet: Some("green:".to_owned()), ..part(3, 2, "0-63") };
    history.append(std::slice::from_ref(&other)).await.unwrap();
    assert_eq!(history.get(other.id).await.unwrap().unwrap().fleet, other.fleet);
    let recalled = history.recall(&[name("a")], 1).await.unwrap();
    assert_eq!(recalled[0].fleet, other.fleet);
    let beside = history.beside(&records[4]).await.unwrap();
    assert_eq!(beside.later, Some(other.listed_id()));
    assert_ne!(other.listed_id(), records[4].listed_id());
}

async fn conforms(history: &dyn History) {
    let records = [record("a", 1), record("b", 2), record("a", 3)];
    history.append(&[]).await.unwrap();
    history.append(&records[..2]).await.unwrap();
    history.append(&records).await.unwrap();

    let newest = history.recent(None, 10).await.unwrap();
    assert_eq!(minutes(&newest), ["03", "02", "01"]);
    assert_eq!(minutes(&history.recent(None, 2).await.unwrap()), ["03", "02"]);
    assert_eq!(minutes(&history.recent(Some(&name("a")), 9).await.unwrap()), ["03", "01"]);
    assert_eq!(history.recent(Some(&name("c")), 9).await.unwrap().len(), 0);

    let found = history.get(records[0].id).await.unwrap().unwrap();
    assert_eq!(format!("{found:?}"), format!("{:?}", records[0]));
    assert!(history.get(record("a", 9).id).await.unwrap().is_none());

    let before = records[1].finished_at;
    assert_eq!(history.prune(before).await.unwrap(), 1);
    assert_eq!(minutes(&history.recent(None, 10).await.unwrap()), ["03", "02"]);
    assert_eq!(history.prune(before).await.unwrap(), 0);
}

#[tokio::test]
async fn the_history_in_memory_conforms_and_forgets_the_oldest() {
    conforms(&MemoryHistory::new(3)).await;
    answers(&MemoryHistory::new(6)).await;
    keeps_parts(&MemoryHistory::new(6)).await;
    let history = MemoryHistory::new(2);
    history.append(&[record("a", 3), record("a", 1), record("a", 2)]).await.unwrap();
    assert_eq!(minutes(&history.recent(None, 9).await.unwrap()), ["03", "02"]);
}

#[tokio::test]
async fn the_history_in_postgres_conforms_in_read_only_sessions() {
    let server = support::database().await;
    let database = Arc::new(Database::connect(settings(&server.url())).await.unwrap());
    assert_eq!(migrate(&database).await.unwrap(), MIGRATIONS);
    assert_eq!(migrate(&database).await.unwrap(), 0);
    conforms(&PostgresHistory::new(Arc::clone(&database))).await;

    let row: (i64, i64, i64, String) = sqlx::query_as(
        "select tenants_total, keys_written, bytes, first_error from preheat.runs limit 1",
    )
    .fetch_one(&mut server.connect().await)
    .await
    .unwrap();
    let message = "`ä\u{2028}'; drop table x` is no zone".to_owned();
    assert_eq!(row, (7, 12, 1 << 40, message));
    server.execute("delete from preheat.runs").await;
    keeps_parts(&PostgresHistory::new(database)).await;
}

#[tokio::test]
async fn the_history_in_postgres_answers_filters_by_its_indexes() {
    let server = support::database().await;
    let database = Arc::new(Database::connect(settings(&server.url())).await.unwrap());
    migrate(&database).await.unwrap();
    answers(&PostgresHistory::new(Arc::clone(&database))).await;
    // A month of fifty jobs, one run each ten minutes; few fail, and few are asked for.
    server
        .execute(
            "insert into preheat.runs (id, job, trigger, outcome, due_at, started_at, finished_at, \
             replica, version, report, all_tenants) \
             select gen_random_uuid(), 'j' || n % 50, \
             case when n % 5000 = 0 then 'request' else 'schedule' end, \
             case when n % 4001 = 0 then 'failed' else 'ok' end, t, t, t, 'w', '1', '{}', true \
             from (select n, timestamptz '2026-03-01' + n * interval '12 s' as t \
             from generate_series(1, 100000) n) runs; analyze preheat.runs",
        )
        .await;
    let limit = "order by started_at desc, id desc limit 50";
    for (filter, index) in [
        ("job = 'j7'", "runs_newest_of_job"),
        ("outcome = 'failed'", "runs_newest_by_outcome"),
        ("trigger = 'request'", "runs_newest_by_trigger"),
        ("true", "runs_newest"),
        ("(started_at, id) < ('2026-03-05', gen_random_uuid())", "runs_newest"),
        ("job = 'j7' and started_at >= '2026-03-09'", "runs_newest_of_job"),
        (
            "job = 'j7' and outcome in ('ok', 'partial') \
             and coalesce(all_tenants, trigger in ('schedule', 'startup'))",
            "runs_over_all_tenants",
        ),
    ] {
        let sql = format!("explain select * from preheat.runs where {filter} {limit}");
        let plan: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .fetch_all(&mut server.connect().await)
            .await
            .unwrap();
        let plan = plan.join("\n");
        assert!(plan.contains(index) && !plan.contains("Sort"), "{filter}:\n{plan}");
    }
}

#[tokio::test]
async fn a_record_of_a_newer_version_hides_no_other() {
    let server = support::database().await;
    let database = Arc::new(Database::connect(settings(&server.url())).await.unwrap());
    migrate(&database).await.unwrap();
    let history = PostgresHistory::new(database);
    history.append(&[record("a", 1), record("a", 2)]).await.unwrap();
    server
        .execute("update preheat.runs set trigger = 'moon' where started_at > '2026-03-01 10:02'")
        .await;
    assert_eq!(minutes(&history.recent(None, 9).await.unwrap()), ["01"]);
}

#[tokio::test]
async fn many_that_migrate_at_once_migrate_once() {
    let server = support::database().await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let settings = settings(&server.url());
        tasks.spawn(async move {
            let database = Database::connect(settings).await.unwrap();
            migrate(&database).await.unwrap()
        });
    }
    let counts: usize = tasks.join_all().await.into_iter().sum();
    assert_eq!(counts, MIGRATIONS);
}

#[tokio::test]
async fn a_role_without_rights_gets_the_sql_that_an_administrator_may_run() {
    let server = support::database().await;
    let role = format!("reader {}", server.name());
    server.execute(&format!("create role \"{role}\" login")).await;
    let url = server.url_as(&role.replace(' ', "%20"));
    let one = DatabaseSettings { max_connections: NonZeroU32::MIN, ..settings(&url) };
    let database = Arc::new(Database::connect(one).await.unwrap());

    let Err(MigrateError::NotAllowed { message, sql }) = migrate(&database).await else {
        panic!("it must not be allowed")
    };
    assert!(message.contains("permission denied for database"), "{message}");

    server.execute(&sql).await;
    assert_eq!(migrate(&database).await.unwrap(), 0);
    let history = PostgresHistory::new(Arc::clone(&database));
    history.append(&[record("a", 1)]).await.unwrap();
    assert_eq!(history.recent(None, 1).await.unwrap().len(), 1);

    server.execute(&format!("revoke insert on preheat.runs from \"{role}\"")).await;
    let refused = migrate(&database).await.unwrap_err();
    assert!(matches!(&refused, MigrateError::NotAllowed { .. }), "{refused}");
    let error = history.append(&[record("a", 2)]).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "could not keep run records: permission denied for table runs (42501)"
    );
    assert_eq!(history.prune(record("a", 5).due_at).await.unwrap(), 1);
    server.execute(&format!("drop owned by \"{role}\"; drop role \"{role}\"")).await;
}

#[tokio::test]
async fn the_administrators_sql_runs_where_the_tables_exist_already() {
    let server = support::database().await;
    let owner = Database::connect(settings(&server.url())).await.unwrap();
    assert_eq!(migrate(&owner).await.unwrap(), MIGRATIONS);
    let role = format!("warmer_of_{}", server.name());
    server.execute(&format!("create role {role} login")).await;
    let url = server.url_as(&role);
    let database = Arc::new(Database::connect(settings(&url)).await.unwrap());
    let Err(MigrateError::NotAllowed { message, sql }) = migrate(&database).await else {
        panic!("it must not be allowed")
    };
    assert!(message.contains("permission denied for schema preheat"), "{message}");
    for _again in 0..2 {
        server.execute(&sql).await;
        assert_eq!(migrate(&database).await.unwrap(), 0);
        assert_eq!(migrate(&owner).await.unwrap(), 0);
    }
    let history = PostgresHistory::new(Arc::clone(&database));
    history.append(&[record("a", 1)]).await.unwrap();
    drop((history, database));
    server.execute(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn a_migration_that_was_changed_is_an_error() {
    let server = support::database().await;
    let database = Database::connect(settings(&server.url())).await.unwrap();
    migrate(&database).await.unwrap();
    server.execute("update preheat.migrations set checksum = '\\x00'").await;
    let error = migrate(&database).await.unwrap_err().to_string();
    assert_eq!(error, "cannot migrate: migration 1 differs from the one that was applied");
}

#[tokio::test]
async fn a_history_without_its_server_says_so_in_time() {
    let server = support::own_postgres();
    let database = Arc::new(Database::connect(settings(&server.url("postgres"))).await.unwrap());
    server.stop();
    let start = std::time::Instant::now();
    let error = PostgresHistory::new(database).append(&[record("a", 1)]).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(20));
    assert!(
        error.to_string().starts_with("could not keep run records: could not connect"),
        "{error}"
    );
}
