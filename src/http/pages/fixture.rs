//! Data for the tests of pages: a worker in trouble, whose names try to be markup.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::context::Context;
use super::links::Links;
use crate::domain::audit::{Difference, Kind};
use crate::domain::change::ResyncCause;
use crate::domain::job::tests::example;
use crate::domain::job::{Job, JobName, Key, Query, Shape, Table};
use crate::domain::key::KeyTemplate;
use crate::domain::report::{
    BatchTime, FailedOfKind, Failure, FailureKind, Outcome, Report, TenantCounts,
};
use crate::domain::retry::BreakerState;
use crate::domain::run::{RunId, RunPart, RunRecord, Trigger};
use crate::domain::share::Shares;
use crate::domain::who::Who;
use crate::engine::schedule::status::{RejectedFor, Rejection, Rejections};
use crate::http::SettingInUse;
use crate::http::access::Rights;
use crate::overview::{
    Audit, AuditOfJob, BatchOfJob, Busiest, CacheMemory, Change, Changes, Collision, Comparison,
    Connections, Consistency, Coverage, DefinedField, Feed, FeedState, Figures, FirstFailure,
    FleetView, Freshness, HitRate, JobDetail, JobLine, JobOfTenant, JobSeries, JobShare, JobState,
    KeyOfTenant, LastResync, LastRun, Level, Limits, Line, Link, LinkKind, MemberView, Moment,
    NextHour, NotWarmTenant, NotWarmTenants, Overview, PauseView, Permits, PermitsOfJob, Reads,
    ReadsOfFamily, RowMemory, RunBar, Running, ServerBreaker, Skip, TenantDetail, Trouble,
    TroubleKind, ValuePart, Verdict, WarmState, WatchedTable, WrongKey,
};

/// A text that would be markup if it was not escaped.
pub(super) const HOSTILE: &str = "<script>alert('t')</script>\" onload=\"x\" style=\"y";

pub(super) fn context(links: &Links, rights: Rights) -> Context<'_> {
    Context { links, now: now(), rights }
}

pub(super) fn now() -> DateTime<Utc> {
    "2026-03-29T12:10:04Z".parse().unwrap()
}

/// That many seconds before now.
pub(super) fn before(seconds: i64) -> Moment {
    Moment(now() - chrono::Duration::seconds(seconds))
}

pub(super) fn run_id(number: u128) -> RunId {
    RunId(Uuid::from_u128(0x019c_ae1f_0000_7000_8000_0000_0000_0000 + number))
}

/// A day of values around `middle`, with a gap.
pub(super) fn day(middle: f32, apart: f32) -> Line {
    let value = |place: u16| middle + apart * (f32::from(place) / 9.0).sin();
    let values = (0..288).map(|place| (!(100..120).contains(&place)).then(|| value(place)));
    Line { until: Some(before(4)), step_ms: 300_000, values: values.collect() }
}

fn bars(took: u64, failing: &[usize]) -> Vec<RunBar> {
    let outcome = |place| match failing.iter().position(|at| *at == place) {
        None => Outcome::Ok,
        Some(0) => Outcome::Failed,
        Some(_) => Outcome::Partial,
    };
    (0..50_usize)
        .map(|place| RunBar {
            id: run_id(place as u128),
            trigger: Trigger::Schedule,
            outcome: outcome(place),
            started_at: before(600 * (50 - i64::try_from(place).unwrap())),
            waited_ms: 2,
            took_ms: took + (place as u64 * 7919) % took,
            keys: 18_204,
        })
        .collect()
}

pub(super) fn job(name: &str) -> JobLine {
    JobLine {
        name: name.to_owned(),
        description: format!("The {name} of each clinic, by tenant"),
        state: JobState::Idle,
        level: Level::Ok,
        schedule: "every 10m".to_owned(),
        timezone: None,
        gap_ms: Some(600_000),
        ttl_ms: 1_800_000,
        next_due_at: Some(before(-356)),
        running: None,
        queued: 0,
        last_run: Some(LastRun {
            id: run_id(49),
            trigger: Trigger::Schedule,
            outcome: Outcome::Ok,
            finished_at: before(244),
            took_ms: 710,
        }),
        last_success_at: Some(before(244)),
        runs: bars(400, &[]),
        p95_ms: Some(790),
        late_after: Some(before(-956)),
        is_late: false,
        ttl_margin_ms: Some(1_140_000),
        expires_at: Some(before(-1_400)),
        coverage: Some(1.0),
        consistency: Some(1.0),
        hit_rate: Some(0.9998),
        not_warm: 0,
        first_failure: None,
        keys: Some(5_120),
        bytes: Some(21_400_000),
        pause: None,
    }
}

/// A job with tenants that are not warm, and with texts that would be markup.
pub(super) fn troubled_job() -> JobLine {
    JobLine {
        description: HOSTILE.to_owned(),
        level: Level::Warning,
        last_run: Some(LastRun { outcome: Outcome::Partial, ..job("x").last_run.unwrap() }),
        last_success_at: Some(before(1_864)),
        runs: bars(400, &[12, 47, 48, 49]),
        coverage: Some(0.9962),
        consistency: Some(0.9998),
        hit_rate: Some(0.9938),
        not_warm: 19,
        first_failure: Some(FirstFailure {
            run: run_id(47),
            kind: FailureKind::Query,
            tenant: Some(HOSTILE.to_owned()),
            message: "division by zero".to_owned(),
            count: 19,
        }),
        keys: Some(18_204),
        bytes: Some(96_400_000),
        ..job("products")
    }
}

fn paused_job() -> JobLine {
    JobLine {
        state: JobState::Paused,
        level: Level::Info,
        schedule: "0 */30 6-20 * * *".to_owned(),
        timezone: Some("Europe/Berlin".to_owned()),
        next_due_at: None,
        late_after: None,
        ttl_margin_ms: Some(-124_000),
        pause: Some(PauseView {
            note: "vet <migration>".to_owned(),
            by: "Ann".to_owned(),
            since: before(560),
            until: Some(before(-2_996)),
        }),
        ..job("slots")
    }
}

fn running_job() -> JobLine {
    JobLine {
        state: JobState::Running,
        running: Some(Running {
            id: run_id(50),
            trigger: Trigger::Schedule,
            started_at: before(1),
            tenants_total: 5_000,
            tenants_done: 2_300,
        }),
        queued: 1,
        ..job("staff")
    }
}

fn new_job() -> JobLine {
    JobLine {
        last_run: None,
        last_success_at: None,
        runs: Vec::new(),
        p95_ms: None,
        ttl_margin_ms: None,
        expires_at: None,
        coverage: None,
        consistency: None,
        hit_rate: None,
        keys: None,
        bytes: None,
        ..job("weekly_report")
    }
}

fn troubles() -> Vec<Trouble> {
    let link = |kind, name: Option<&str>| Link { kind, name: name.map(str::to_owned) };
    vec![
        Trouble {
            level: Level::Warning,
            kind: TroubleKind::NotWarm,
            sentence: "19 tenants of products are not warm.".to_owned(),
            reason: Some(format!("query: division by zero, first {HOSTILE}")),
            since: Some(before(1_804)),
            link: link(LinkKind::Tenants, Some("products")),
            next_step: "tried 3 times; next try 12:20".to_owned(),
        },
        Trouble {
            level: Level::Critical,
            kind: TroubleKind::KeysExpire,
            sentence: "The keys of slots expire before they are written again.".to_owned(),
            reason: None,
            since: None,
            link: link(LinkKind::Job, Some("slots")),
            next_step: "make the TTL longer or the schedule denser".to_owned(),
        },
        Trouble {
            level: Level::Info,
            kind: TroubleKind::Paused,
            sentence: "1 job is paused (Ann: vet <migration>).".to_owned(),
            reason: None,
            since: Some(before(560)),
            link: link(LinkKind::Job, Some("slots")),
            next_step: "it resumes by itself at 13:00".to_owned(),
        },
    ]
}

#[expect(clippy::too_many_lines, reason = "it is one value")]
pub(super) fn overview() -> Overview {
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    Overview {
        as_of: before(3),
        started_at: before(266_000),
        replica: "worker-7".to_owned(),
        version: "0.1.0".to_owned(),
        verdict: Verdict {
            level: Level::Warning,
            sentence: "19 tenants are not warm. All others are.".to_owned(),
        },
        troubles: troubles(),
        figures: Figures {
            hit_rate: HitRate {
                ratio: Some(0.9921),
                hits: 41_232,
                misses: 328,
                window_ms: 300_000,
                day: day(0.985, 0.014),
            },
            coverage: Coverage {
                ratio: Some(0.9962),
                tenants: Some(5_000),
                tenants_warm: Some(4_981),
                tenants_not_warm: 19,
            },
            consistency: Consistency {
                ratio: Some(0.9998),
                nines: Some(3),
                tenants: 120,
                keys: 9_120,
                findings: 2,
                at: Some(before(250)),
            },
            freshness: Freshness {
                p50_ms: Some(7.9),
                p99_ms: Some(18.4),
                changes: 212,
                day: day(12.0, 6.0),
            },
            reads: Reads {
                ratio: Some(0.9967),
                window_ms: 300_000,
                families: vec![
                    reads("slots", [21_118, 120, 12, 0, 7]),
                    reads("services", [18_200, 3, 1, 0, 0]),
                    reads("other", [0, 0, 0, 4, 0]),
                ],
            },
        },
        jobs: vec![troubled_job(), paused_job(), running_job(), job("services"), new_job()],
        next_hour: NextHour {
            runs: 14,
            queries: 720,
            database_ms: 41_000,
            keys: 212_000,
            bytes: 1_100_000_000,
            unknown: names(&["weekly_report"]),
            busiest: Some(Busiest {
                minute: before(-596),
                runs: 3,
                database_ms: 12_400,
                jobs: names(&["products", "services", "staff"]),
            }),
            collisions: vec![Collision {
                at: before(-596),
                jobs: names(&["products", "services"]),
            }],
        },
        cache: CacheMemory {
            as_of: Some(before(3)),
            used: Some(143_000_000),
            max: Some(512_000_000),
            keys: Some(61_204),
            evicted_last_hour: Some(0),
            days_until_full: Some(41.3),
            jobs: vec![
                JobShare { job: "products".to_owned(), bytes: 96_400_000, share: Some(0.674) },
                JobShare { job: "services".to_owned(), bytes: 21_400_000, share: Some(0.15) },
            ],
            day: day(140_000_000.0, 3_000_000.0),
        },
        feed: feed(),
    }
}

pub(super) fn feed() -> Feed {
    Feed {
        state: FeedState::Connected,
        reason: None,
        since: Some(before(266_000)),
        last_heard_at: Some(before(2)),
        last_minute: 41,
        tables_without_triggers: 0,
        waiting: 3,
        oldest_waiting_ms: Some(420),
    }
}

/// What the verifier found, as somebody with these rights sees it.
pub(super) fn audit(rights: Rights) -> Audit {
    let has_values = rights == Rights::Write;
    let part =
        |text: &str, bytes| ValuePart { text: text.to_owned(), bytes, is_cut: bytes > 2_000 };
    let key = |key: &str, kind| WrongKey {
        key: key.to_owned(),
        tenant: Some("t_0042".to_owned()),
        kind,
        found_at: before(250),
        behind_ms: None,
        ttl: None,
        differences: has_values.then(Vec::new),
        database: None,
        cache: None,
    };
    let difference = Difference {
        path: "[0].name".to_owned(),
        database: "\"Fleas\"".to_owned(),
        cache: HOSTILE.to_owned(),
    };
    let stale = WrongKey {
        tenant: Some(HOSTILE.to_owned()),
        behind_ms: Some(12_500),
        ttl: Some("it never expires: its job gives at most 30m".to_owned()),
        differences: has_values.then(|| vec![difference]),
        database: has_values.then(|| part("[{\"name\":\"Fleas\"}]", 18)),
        cache: has_values.then(|| part(HOSTILE, 4_096)),
        ..key(&format!("products:{HOSTILE}"), Kind::Stale)
    };
    let missing = WrongKey {
        database: has_values.then(|| part("[]", 2)),
        ..key("products:t_0042", Kind::Missing)
    };
    let job = |job: &str, wrong, findings| AuditOfJob {
        job: job.to_owned(),
        compared_at: Some(before(250)),
        tenants: 20,
        keys: 1_520,
        consistency: Some(0.9998),
        coverage: Some(1.0),
        not_warm: 19,
        wrong,
        findings,
    };
    let new = AuditOfJob {
        compared_at: None,
        tenants: 0,
        keys: 0,
        consistency: None,
        coverage: None,
        not_warm: 0,
        ..job("weekly_report", 0, Vec::new())
    };
    Audit {
        as_of: before(3),
        consistency: overview().figures.consistency,
        has_values,
        jobs: vec![
            job("products", 1_022, vec![stale, missing]),
            job("services", 1, vec![key("services:t_0042", Kind::WrongTtl)]),
            new,
        ],
    }
}

pub(super) fn changes() -> Changes {
    let table = |table: &str, jobs: &[&str], notifications, last_at| WatchedTable {
        table: table.to_owned(),
        jobs: jobs.iter().map(ToString::to_string).collect(),
        notifications,
        last_at,
    };
    Changes {
        as_of: before(3),
        started_at: before(266_000),
        feed: feed(),
        freshness: overview().figures.freshness,
        tables: vec![
            table("products", &["products", "services"], 18_204, Some(before(2))),
            table(HOSTILE, &["staff"], 0, None),
        ],
        last_resync: Some(LastResync {
            at: before(4_211),
            cause: ResyncCause::AnyTenant,
            jobs: vec!["products".to_owned(), "services".to_owned()],
        }),
    }
}

/// A worker that started a moment ago and knows nothing yet.
pub(super) fn nothing_known() -> Overview {
    Overview {
        verdict: Verdict { level: Level::Info, sentence: "No job has run yet.".to_owned() },
        troubles: Vec::new(),
        figures: Figures {
            hit_rate: HitRate::default(),
            coverage: Coverage::default(),
            consistency: Consistency::default(),
            freshness: Freshness::default(),
            reads: Reads::default(),
        },
        jobs: vec![new_job()],
        next_hour: NextHour::default(),
        cache: CacheMemory::default(),
        feed: Feed::default(),
        ..overview()
    }
}

pub(super) fn not_warm() -> NotWarmTenants {
    let tenant = |id: &str, kind, message: &str| NotWarmTenant {
        tenant: Some(id.to_owned()),
        job: "products".to_owned(),
        kind,
        message: message.to_owned(),
        since: before(1_804),
        tries: 3,
        next_try_at: Some(before(-596)),
    };
    NotWarmTenants {
        tenants: vec![
            tenant("t_0042", Some(FailureKind::Query), "division by zero"),
            tenant(HOSTILE, None, "its data changed in every round"),
            tenant("t_0977", Some(FailureKind::ValueTooLarge), HOSTILE),
        ],
        total: 19,
        more: 0,
        active: Some(5_000),
        next: Some("products/t_0977".to_owned()),
    }
}

pub(super) fn job_detail() -> JobDetail {
    JobDetail {
        line: troubled_job(),
        next_due: (0..5).map(|place| before(-596 - 600 * place)).collect(),
        skipped: vec![Skip { at: before(1_204), reason: "overlap".to_owned() }],
        day: JobSeries {
            coverage: day(0.99, 0.009),
            consistency: day(0.9995, 0.0004),
            p95_ms: day(700.0, 90.0),
        },
        not_warm: not_warm().tenants,
        batch: Some(BatchOfJob {
            configured: 100,
            now: 50,
            reason: Some(
                "a query for 100 tenants took 4.2 s; `runner.target_batch_time` is 2s".to_owned(),
            ),
        }),
        definition: vec![
            field("ttl", "30m", "jobs/products.toml:4"),
            field("ttl_jitter", "10%", "default"),
            field("batch", "100", "variable `PREHEAT_RUNNER__BATCH` (`runner.batch`)"),
            field("concurrency", "3", "default"),
            field("tables", HOSTILE, HOSTILE),
            field("query.order", HOSTILE, "jobs/products.toml:9"),
            field("keys.1.key", "products:{tenant_id}:{category}", "jobs/products.toml:17"),
            DefinedField { origin: None, ..field("timeout", "5m", "") },
        ],
    }
}

fn field(field: &str, value: &str, origin: &str) -> DefinedField {
    let (field, value) = (field.to_owned(), value.to_owned());
    DefinedField { field, value, origin: Some(origin.to_owned()) }
}

pub(super) fn tenant() -> TenantDetail {
    let key = |key: &str, ttl_ms: Option<u64>| KeyOfTenant {
        key: key.to_owned(),
        present: ttl_ms.is_some(),
        ttl_ms,
        bytes: ttl_ms.map(|_| 4_210),
    };
    let job = |name: &str, state, not_warm: Option<NotWarmTenant>| JobOfTenant {
        job: name.to_owned(),
        state,
        not_warm,
        problem: None,
        keys_expected: 3,
        keys_present: 2,
        shortest_ttl_ms: Some(902_000),
        keys: vec![
            key(&format!("{name}:{HOSTILE}"), Some(902_000)),
            key(&format!("{name}:t_0042:dogs"), Some(1_310_000)),
            key(&format!("{name}:t_0042:cats"), None),
        ],
        more_keys: 12,
    };
    TenantDetail {
        id: HOSTILE.to_owned(),
        active: Some(true),
        timezone: Some("Europe/Berlin".to_owned()),
        fence: Some(1_774_772_800_042),
        last_change_at: Some(before(413)),
        jobs: vec![
            job("products", WarmState::NotWarm, not_warm().tenants.pop()),
            job("services", WarmState::Warm, None),
        ],
    }
}

pub(super) fn run() -> RunRecord {
    let mut report = Report { bytes: 96_400_000, queries: 57, retries: 2, ..Report::default() };
    report.tenants.total = 5_000;
    report.tenants.ok = 4_979;
    report.tenants.failed = 19;
    report.tenants.fenced = 2;
    report.keys.written = 18_204;
    report.keys.removed = 12;
    report.keys.fenced = 8;
    report.evicted = 3;
    let millis = std::time::Duration::from_millis;
    report.database = millis(410);
    report.time =
        BatchTime { permit: millis(12), encode: millis(90), cache: millis(160), retry: millis(85) };
    report.failures = vec![Failure {
        kind: FailureKind::Query,
        tenant: Some(HOSTILE.to_owned()),
        key: Some(format!("products:{HOSTILE}")),
        message: HOSTILE.to_owned(),
        count: 19,
    }];
    let tenants = vec![HOSTILE.to_owned(), "t_0977".to_owned()];
    report.failed_tenants = vec![FailedOfKind { kind: FailureKind::Query, tenants, more: 17 }];
    RunRecord {
        id: run_id(49),
        job: JobName::parse("products").unwrap(),
        trigger: Trigger::Request,
        requested_by: Who::named(HOSTILE),
        shares: None,
        fleet: None,
        parts: Vec::new(),
        all_tenants: Some(true),
        outcome: Outcome::Partial,
        due_at: before(246).0,
        started_at: before(245).0,
        finished_at: before(244).0,
        report,
        replica: HOSTILE.to_owned(),
        version: "0.1.0".to_owned(),
    }
}

/// A run of a fleet, of which one member has not ended its part.
pub(super) fn fleet_run() -> RunRecord {
    let shares = |text: &str| Shares::parse(text).unwrap();
    let part = |number: u128, of: &str, outcome, replica: &str| RunPart {
        id: run_id(number),
        shares: shares(of),
        outcome,
        started_at: before(245).0,
        finished_at: before(244).0,
        tenants: TenantCounts { total: 2_500, ok: 2_490, failed: 10, fenced: 0 },
        keys: 9_102,
        replica: replica.to_owned(),
        version: "0.1.0".to_owned(),
    };
    let parts = vec![
        part(50, "0-20", Outcome::Partial, HOSTILE),
        part(51, "21-40", Outcome::Ok, "worker-2"),
    ];
    let (shares, trigger) = (Some(shares("0-40")), Trigger::Schedule);
    let id = RunId::of_fleet("", &run().job, trigger, run().due_at);
    RunRecord { id, trigger, shares, parts, ..run() }
}

/// A fleet of two, of which one stands by.
pub(super) fn fleet() -> FleetView {
    let member = |id: &str, replica: &str, shares: &str, share_count| MemberView {
        id: id.to_owned(),
        replica: replica.to_owned(),
        version: "0.1.0".to_owned(),
        address: "10.0.0.7:9464".to_owned(),
        since: before(7_200),
        shares: shares.to_owned(),
        share_count,
        lease_ends_at: (share_count > 0).then(|| before(-8)),
        is_this: share_count == 0,
        tenants_not_warm: 21,
        running: if share_count == 0 { Vec::new() } else { vec!["products".to_owned()] },
    };
    let members = vec![member("a1", HOSTILE, "0-60", 61), member(HOSTILE, "worker-2", "", 0)];
    FleetView { enabled: true, as_of: before(0), members, vacant: Some("61-63".to_owned()) }
}

pub(super) fn comparison() -> Comparison {
    let change = |now, before: u64, percent| Change { now, before, percent };
    Comparison {
        run: run_id(46),
        finished_at: before(1_864),
        took_ms: change(994, 710, Some(40.0)),
        tenants: change(5_000, 5_000, Some(0.0)),
        keys: change(18_204, 18_767, Some(-3.0)),
        bytes: change(96_400_000, 96_000_000, Some(0.4)),
        queries: change(57, 50, Some(14.0)),
        database_ms: change(410, 402, Some(2.0)),
        retries: change(12, 0, None),
    }
}

/// A job's definition, whose texts would be markup.
pub(super) fn definition() -> Job {
    let key = |template: &str| Key {
        template: KeyTemplate::parse(template, "tenant_id").unwrap(),
        shape: Shape::List,
        unique: None,
    };
    let keys = vec![key("products:{tenant_id}"), key("products:{tenant_id}:{category}")];
    let sql =
        format!("select tenant_id, name\nfrom products -- {HOSTILE}\nwhere tenant_id = any($1)");
    let example = example("products", keys);
    let query = Query { sql: sql.into(), ..example.query.clone() };
    Job { query, tables: vec![Table::named("products"), Table::named(HOSTILE)], ..example }
}

pub(super) fn settings() -> Vec<SettingInUse> {
    let setting = |key, value: Option<&str>, origin: &str| SettingInUse {
        key,
        value: value.map(str::to_owned),
        origin: origin.to_owned(),
    };
    vec![
        setting("database.url", Some("set"), "variable `DATABASE_URL`"),
        setting("database.max_connections", Some("4"), "default"),
        setting("tenants.sql", Some(HOSTILE), "preheat.toml:12"),
        setting("http.token", None, "default"),
    ]
}

pub(super) fn rejections() -> Rejections {
    let problem = RejectedFor {
        file: "jobs/products.toml".to_owned(),
        line: Some(7),
        message: HOSTILE.to_owned(),
        hint: Some("the column is `price`".to_owned()),
    };
    let rejection = Rejection { problems: vec![problem], older_in_use: true };
    Rejections::from([(JobName::parse("products").unwrap(), rejection)])
}

fn reads(family: &str, counts: [u64; 5]) -> ReadsOfFamily {
    let [hits, misses, joined, bypassed, refused] = counts;
    #[expect(clippy::cast_precision_loss, reason = "an example's figures are small")]
    let ratio = Some(hits as f64 / (hits + misses + joined + bypassed) as f64);
    ReadsOfFamily { family: family.to_owned(), ratio, hits, misses, joined, bypassed, refused }
}

pub(super) fn limits() -> Limits {
    let closed = ServerBreaker {
        server: "cache".to_owned(),
        state: BreakerState::Closed,
        since: before(266_000),
        failures: 0,
        reason: None,
        next_try_at: None,
        times_open: 0,
    };
    let open = ServerBreaker {
        server: "database".to_owned(),
        state: BreakerState::Open,
        since: before(64),
        failures: 1_003,
        reason: Some(HOSTILE.to_owned()),
        next_try_at: Some(before(-3)),
        times_open: 2,
    };
    Limits {
        as_of: before(0),
        breakers: vec![open, closed],
        connections: Connections { most: 4, in_use: 3, idle: 1 },
        permits: Permits {
            most: 4,
            for_changes: 1,
            in_use: 3,
            in_use_for_changes: 1,
            waiting: 2,
            jobs: vec![PermitsOfJob { job: "products".to_owned(), permits: 2 }],
        },
        memory: RowMemory {
            batch_bytes: 8_388_608,
            tenant_bytes: 16_777_216,
            all_bytes: 33_554_432,
        },
    }
}
