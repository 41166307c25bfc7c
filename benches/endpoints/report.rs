//! The figures as text, each target beside its figure.

use std::fmt::Write as _;
use std::time::Duration;

use crate::cost::Statements;
use crate::load::{LATE, Sample, milliseconds};
use crate::mix::{ENDPOINTS, Kind, is_read, share_outside};
use crate::phases::{CALLERS, Measured, Phase, Plan, Results};
use crate::world::{JOBS, Setting};

/// What a read waits at most for Redis: the client's default deadline, in milliseconds.
const DEADLINE: f64 = 50.0;

const SECOND: Duration = Duration::from_secs(1);

/// What was measured.
pub(crate) struct Head {
    pub(crate) tenants: u32,
    pub(crate) active: usize,
    pub(crate) rounds: u64,
    pub(crate) plan: Plan,
}

/// Median and range of a figure over the rounds; none where no round is valid.
#[derive(Clone, Copy)]
struct Figure {
    median: f64,
    least: f64,
    most: f64,
}

impl Figure {
    fn of(figures: impl Iterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<f64> = figures.collect();
        figures.sort_by(f64::total_cmp);
        let (lower, upper) = (figures.len().checked_sub(1)? / 2, figures.len() / 2);
        let median = f64::midpoint(figures[lower], figures[upper]);
        Some(Self { median, least: figures[0], most: figures[figures.len() - 1] })
    }
}

fn shown(figure: Option<Figure>, digits: usize) -> String {
    figure.map_or_else(
        || "void".to_owned(),
        |Figure { median, least, most }| {
            format!("{median:.digits$} [{least:.digits$}–{most:.digits$}]")
        },
    )
}

impl Results {
    fn rounds(&self, setting: Setting, phase: Phase) -> impl Iterator<Item = &Measured> {
        self.phases.get(&(setting, phase)).into_iter().flatten()
    }

    fn figure(
        &self,
        setting: Setting,
        phase: Phase,
        of: impl Fn(&Measured) -> f64,
    ) -> Option<Figure> {
        Figure::of(self.rounds(setting, phase).map(of))
    }

    fn median(&self, setting: Setting, phase: Phase, of: impl Fn(&Measured) -> f64) -> f64 {
        self.figure(setting, phase, of).map_or(f64::NAN, |figure| figure.median)
    }

    fn most(&self, setting: Setting, phase: Phase, of: impl Fn(&Measured) -> f64) -> f64 {
        self.figure(setting, phase, of).map_or(f64::NAN, |figure| figure.most)
    }

    /// Of some of the requests, where the generator was in time.
    fn latency(
        &self,
        (setting, phase): (Setting, Phase),
        percentile: f64,
        of: impl Fn(&Sample) -> bool,
    ) -> Option<Figure> {
        let valid = self.rounds(setting, phase).filter(|one| is_valid(one));
        let latencies = valid.map(|one| one.outcome.latencies(&of));
        Figure::of(
            latencies.filter(|one| !one.is_empty()).map(|one| milliseconds(&one, percentile)),
        )
    }

    fn p95(&self, setting: Setting, phase: Phase) -> f64 {
        let reads = self.latency((setting, phase), 95.0, |sample| is_read(sample.endpoint));
        reads.map_or(f64::NAN, |figure| figure.median)
    }

    /// What the schedule costs in a second.
    fn schedule(&self) -> Statements {
        let mut sum = Statements::default();
        for job in JOBS {
            let interval = interval(job);
            let of = |of: fn(&Statements) -> f64| -> f64 {
                let runs = self.runs.get(job).into_iter().flatten().map(of);
                Figure::of(runs).map_or(0.0, |figure| figure.median) / interval
            };
            let run = Statements {
                calls: of(|run| run.calls),
                selects: of(|run| run.selects),
                rows: of(|run| run.rows),
                milliseconds: of(|run| run.milliseconds),
                reading: of(|run| run.reading),
            };
            sum = sum + run;
        }
        sum
    }

    /// Milliseconds of the database's time in a second, with what the schedule costs.
    fn database(&self, setting: Setting, phase: Phase) -> f64 {
        let schedule = if setting == Setting::Preheat { self.schedule().milliseconds } else { 0.0 };
        let measured = self.median(setting, phase, |one| {
            (one.cost.application.milliseconds + one.cost.preheat.milliseconds) / one.seconds
        });
        measured + schedule
    }
}

/// From the job's file, in seconds.
fn interval(job: &str) -> f64 {
    let path = format!("{}/jobs/{job}.toml", env!("CARGO_MANIFEST_DIR"));
    let file: toml::Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
    let schedule = file["schedule"].as_str().unwrap();
    let every = schedule.strip_prefix("every ").expect("an interval");
    humantime::parse_duration(every).unwrap().as_secs_f64()
}

fn is_valid(measured: &Measured) -> bool {
    measured.outcome.lags().value_at_percentile(99.0) <= u64::try_from(LATE.as_micros()).unwrap()
}

pub(crate) fn text(head: &Head, results: &Results) -> String {
    let mut text = String::new();
    let out = &mut text;
    introduction(out, head, results);
    latencies(out, results);
    database(out, results);
    schedule(out, results);
    endpoints(out, results);
    first_seconds(out, results);
    targets(out, head, results);
    text
}

fn introduction(out: &mut String, head: &Head, results: &Results) {
    let Plan { high, low, length, .. } = head.plan;
    let phases: Vec<&Measured> = results.phases.values().flatten().collect();
    let void = phases.iter().filter(|one| !is_valid(one)).count();
    let late: usize = phases.iter().map(|one| one.outcome.late()).sum();
    let sent: usize = phases.iter().map(|one| one.outcome.samples.len()).sum();
    writeln!(
        out,
        "{} tenants, {} active, Zipf (s = 1); {} warm keys; {} cores; {high:.0} and {low:.0} requests a second, \
         95 % reads, {:.2} % of them outside the warmed set\n\
         median [range] of {} rounds, {:.0} s a phase; {sent} requests, {late} sent later than {} ms; {} of {} phases \
         void: the p99 of the lag was above \
         that, and no latency of theirs counts\n\
         {} is read seconds after its deploy: over hours, more of its keys would be there until their TTL",
        head.tenants,
        head.active,
        results.keys,
        std::thread::available_parallelism().unwrap(),
        share_outside() * 100.0,
        head.rounds,
        length.as_secs_f64(),
        LATE.as_millis(),
        void,
        phases.len(),
        Setting::ReadThrough.name(),
    )
    .unwrap();
}

fn latencies(out: &mut String, results: &Results) {
    writeln!(
        out,
        "\nLatency of reads, ms; of writes, p95; values found in Redis; failed requests; lag of the generator, p99, ms\n\
         {:<18}{:<23}{:>22}{:>24}{:>28}{:>28}{:>22}{:>8}{:>7}",
        "setting", "phase", "p50", "p95", "p99", "writes p95", "hits, %", "failed", "lag"
    )
    .unwrap();
    for (setting, phase) in results.phases.keys().copied() {
        let of = |percentile| {
            let reads = |sample: &Sample| is_read(sample.endpoint);
            shown(results.latency((setting, phase), percentile, reads), 1)
        };
        let writes = results.latency((setting, phase), 95.0, |sample| !is_read(sample.endpoint));
        let hits = results.figure(setting, phase, |one| one.counts.hit_rate());
        let hits = hits.filter(|_| setting != Setting::NoCache);
        let failed: usize = results.rounds(setting, phase).map(|one| one.outcome.failed()).sum();
        let lag = results.median(setting, phase, |one| milliseconds(&one.outcome.lags(), 99.0));
        writeln!(
            out,
            "{:<18}{:<23}{:>22}{:>24}{:>28}{:>28}{:>22}{failed:>8}{lag:>7.2}",
            setting.name(),
            phase.name(),
            of(50.0),
            of(95.0),
            of(99.0),
            shown(writes, 1),
            hits.map_or_else(|| "–".to_owned(), |hits| shown(Some(hits), 2)),
        )
        .unwrap();
    }
}

fn database(out: &mut String, results: &Results) {
    writeln!(
        out,
        "\nThe database, a second: the application's calls (those that read among them), rows and time (for reads among it); \
         preheat's, without its schedule\n\
         {:<18}{:<23}{:>9}{:>9}{:>10}{:>24}{:>10}{:>10}{:>10}{:>24}",
        "setting", "phase", "calls", "reads", "rows", "ms", "reads, ms", "calls", "rows", "ms"
    )
    .unwrap();
    for (setting, phase) in results.phases.keys().copied() {
        let a_second =
            |of: fn(&Measured) -> f64| results.median(setting, phase, |one| of(one) / one.seconds);
        let time = |of: fn(&Measured) -> f64| {
            shown(results.figure(setting, phase, |one| of(one) / one.seconds), 1)
        };
        writeln!(
            out,
            "{:<18}{:<23}{:>9.1}{:>9.1}{:>10.0}{:>24}{:>10.1}{:>10.1}{:>10.0}{:>24}",
            setting.name(),
            phase.name(),
            a_second(|one| one.cost.application.calls),
            a_second(|one| one.cost.application.selects),
            a_second(|one| one.cost.application.rows),
            time(|one| one.cost.application.milliseconds),
            a_second(|one| one.cost.application.reading),
            a_second(|one| one.cost.preheat.calls),
            a_second(|one| one.cost.preheat.rows),
            time(|one| one.cost.preheat.milliseconds),
        )
        .unwrap();
    }
}

fn schedule(out: &mut String, results: &Results) {
    writeln!(out, "\npreheat's schedule: a run of each job, and what its interval makes of it")
        .unwrap();
    for job in JOBS {
        let of = |of: fn(&Statements) -> f64| {
            let runs = results.runs.get(job).into_iter().flatten().map(of);
            Figure::of(runs).map_or(f64::NAN, |figure| figure.median)
        };
        let milliseconds = of(|run| run.milliseconds);
        writeln!(
            out,
            "{job:<10} every {:>6.0} s: {:>6.0} calls, {:>8.0} rows, {milliseconds:>8.1} ms; {:>7.2} ms a second",
            interval(job),
            of(|run| run.calls),
            of(|run| run.rows),
            milliseconds / interval(job),
        )
        .unwrap();
    }
    let all = results.schedule();
    writeln!(
        out,
        "together: {:.1} calls, {:.0} rows, {:.2} ms a second",
        all.calls, all.rows, all.milliseconds
    )
    .unwrap();
}

fn endpoints(out: &mut String, results: &Results) {
    writeln!(
        out,
        "\np95 by endpoint, steady, ms\n{:<36}{:>12}{:>19}{:>12}",
        "", "no cache", "read-through only", "preheat"
    )
    .unwrap();
    for (place, endpoint) in ENDPOINTS.iter().enumerate() {
        let [none, through, preheat] = Setting::ALL.map(|setting| {
            let of = |sample: &Sample| sample.endpoint == place;
            let p95 = results.latency((setting, Phase::Steady), 95.0, of);
            p95.map_or(f64::NAN, |figure| figure.median)
        });
        let mark = if endpoint.kind == Kind::Outside { " *" } else { "" };
        let name = format!("{}{mark}", endpoint.name);
        writeln!(out, "{name:<36}{none:>12.1}{through:>19.1}{preheat:>12.1}").unwrap();
    }
    writeln!(out, "* outside the warmed set").unwrap();
}

fn first_seconds(out: &mut String, results: &Results) {
    writeln!(out, "\np95 of reads in the first second after a deploy, ms").unwrap();
    let deploys = [
        (Setting::ReadThrough, Phase::Deploy),
        (Setting::Preheat, Phase::DeployWarmed),
        (Setting::Preheat, Phase::DeployWarming),
    ];
    for (setting, phase) in deploys {
        let first = results.latency((setting, phase), 95.0, |sample| {
            is_read(sample.endpoint) && sample.at < SECOND
        });
        writeln!(out, "{:<18}{:<23}{:>21}", setting.name(), phase.name(), shown(first, 1)).unwrap();
    }
}

/// A line of the list of targets.
fn target(out: &mut String, name: &str, figure: f64, wanted: &str, is_met: bool) {
    let verdict = if is_met { "met" } else { "NOT MET" };
    writeln!(out, "{name:<66}{figure:>10.2}   {wanted:<22}{verdict}").unwrap();
}

fn targets(out: &mut String, head: &Head, results: &Results) {
    writeln!(out, "\nTargets").unwrap();
    hit_targets(out, results);
    cost_targets(out, head, results);
    load_targets(out, results);
    outage_targets(out, results);
}

fn hit_targets(out: &mut String, results: &Results) {
    let preheat = |phase, of: fn(&Measured) -> f64| results.median(Setting::Preheat, phase, of);
    let steady = preheat(Phase::Steady, |one| one.counts.hit_rate());
    target(out, "hit rate, steady, %", steady, "at least 99", steady >= 99.0);
    let first = preheat(Phase::DeployWarmed, |one| one.by_second[0].hit_rate());
    target(
        out,
        "hit rate of the first second after a deploy, warmed first, %",
        first,
        "at least 95",
        first >= 95.0,
    );
    let least = preheat(Phase::DeployWarmed, |one| {
        let full = &one.by_second[..one.by_second.len() - 1];
        full.iter().map(|second| second.hit_rate()).fold(100.0, f64::min)
    });
    target(out, "the lowest of a second in that phase, %", least, "at least 95", least >= 95.0);
    let seconds = preheat(Phase::DeployWarming, |one| {
        let lows = one.by_second.iter().rposition(|second| second.hit_rate() < 95.0);
        lows.map_or(0.0, |last| last as f64 + 1.0)
    });
    target(out, "seconds until 95 % while warming", seconds, "at most 10", seconds <= 10.0);
}

fn cost_targets(out: &mut String, head: &Head, results: &Results) {
    for phase in [Phase::Steady, Phase::SteadyLow] {
        let (none, warm) =
            (results.p95(Setting::NoCache, phase), results.p95(Setting::Preheat, phase));
        let gain = (1.0 - warm / none) * 100.0;
        target(
            out,
            &format!("p95 of reads, {}: less than without a cache by, %", phase.name()),
            gain,
            "at least 50",
            gain >= 50.0,
        );
    }
    let calls = |setting| {
        results.median(setting, Phase::Steady, |one| one.cost.application.calls / one.seconds)
    };
    let cut = (1.0 - calls(Setting::Preheat) / calls(Setting::NoCache)) * 100.0;
    target(
        out,
        "the application's database calls, writes and all: less by, %",
        cut,
        "at least 90",
        cut >= 90.0,
    );
    let reads = |setting| {
        results.median(setting, Phase::Steady, |one| one.cost.application.selects / one.seconds)
    };
    let cut = (1.0 - reads(Setting::Preheat) / reads(Setting::NoCache)) * 100.0;
    writeln!(out, "{:<66}{cut:>10.2}", "of them those that read: less by, %").unwrap();

    let at = |setting, phase| results.database(setting, phase);
    let part = at(Setting::Preheat, Phase::Steady) / at(Setting::NoCache, Phase::Steady);
    target(
        out,
        "database time with preheat's own, of that without a cache",
        part,
        "at most 0.50",
        part <= 0.5,
    );
    let low = at(Setting::Preheat, Phase::SteadyLow) / at(Setting::NoCache, Phase::SteadyLow);
    writeln!(out, "{:<66}{low:>10.2}", "the same at the lower rate").unwrap();
    // What a request costs, of both; the rest of preheat's does not depend on the rate.
    let slope = |setting| {
        let (high, low) = (at(setting, Phase::Steady), at(setting, Phase::SteadyLow));
        (high - low) / (head.plan.high - head.plan.low)
    };
    let rate = results.schedule().milliseconds
        / (at(Setting::NoCache, Phase::Steady) / head.plan.high - slope(Setting::Preheat));
    writeln!(out, "{:<66}{rate:>10.2}", "preheat pays for itself from so many requests a second")
        .unwrap();
}

fn load_targets(out: &mut String, results: &Results) {
    for setting in [Setting::ReadThrough, Setting::Preheat] {
        let loads = results
            .most(setting, Phase::Expiry, |one| one.counts.loads() as f64 / one.fills.len() as f64);
        let name = format!("loads a key, all keys expired, {}", setting.name());
        let most = results.rounds(setting, Phase::Expiry).flat_map(|one| one.fills.values()).max();
        let wanted = format!("1 (most fills: {})", most.copied().unwrap_or_default());
        target(out, &name, loads, &wanted, loads <= 1.0);
    }
    let loads =
        results.most(Setting::ReadThrough, Phase::Stampede, |one| one.counts.loads() as f64);
    let name = format!("loads for {CALLERS} callers of one key over four processes");
    target(out, &name, loads, "1", loads <= 1.0);
}

fn outage_targets(out: &mut String, results: &Results) {
    let bound = results.p95(Setting::NoCache, Phase::Steady) + DEADLINE;
    for phase in [Phase::Frozen, Phase::Killed] {
        let p95 = results.p95(Setting::Preheat, phase);
        let name = format!("p95 of reads, {}, ms", phase.name());
        target(out, &name, p95, &format!("at most {bound:.1}"), p95 <= bound);
        let failed: usize =
            results.rounds(Setting::Preheat, phase).map(|one| one.outcome.failed()).sum();
        target(out, &format!("failed requests, {}", phase.name()), failed as f64, "0", failed == 0);
    }
}
