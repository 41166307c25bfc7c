//! Traces of runs, sent to a collector by OTLP over HTTP (<https://opentelemetry.io/docs/specs/otlp/>). The
//! standard variables `OTEL_*` configure it; without an endpoint in them there are no traces.
//!
//! A trace is made when its run has ended, from the run's record: a run costs nothing for it while it goes
//! on, and its outcome decides whether it is worth a trace.

mod client;

use std::cell::Cell;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
    Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    IdGenerator, RandomIdGenerator, SdkTracer, SdkTracerProvider, SpanLimits,
};
use tokio::runtime::Handle;

pub use self::client::{Collector, CollectorState};
use crate::domain::run::{Outcome, RunId, RunRecord, Trigger};
use crate::domain::trace::{BatchTrace, TraceParent};
use crate::engine::ports::{RunTrace, Traces};

/// A run for changes that went well has a trace only if it took longer than this: there are too many.
const LONG_FOR_CHANGES: Duration = Duration::from_secs(1);
/// Of the others, one in so many has a trace.
const ONE_IN: u128 = 100;
/// How long the last traces may take when the process ends.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Sends traces in the background, by a thread of its own.
pub struct OtlpTraces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// Why there are no traces although they are wanted. It names the variable that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot send traces: {0}")]
pub struct OtlpError(String);

impl OtlpTraces {
    /// Begins to send traces, if the environment names a collector. `said` hears of the collector when it
    /// goes away and when it is back.
    pub fn from_environment(
        has_service_name: bool,
        runtime: Handle,
        said: impl Fn(CollectorState<'_>) + Send + Sync + 'static,
    ) -> Result<Self, OtlpError> {
        let collector = Collector::new(runtime, Box::new(said)).map_err(OtlpError)?;
        let exporter = SpanExporter::builder().with_http().with_http_client(collector).build();
        let exporter = exporter.map_err(|error| OtlpError(error.to_string()))?;
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder().with_attribute(version);
        let resource =
            if has_service_name { resource } else { resource.with_service_name("preheat") };
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_id_generator(RunIds::default())
            .with_span_limits(SpanLimits::default())
            .with_resource(resource.build())
            .build();
        let tracer = provider.tracer("preheat");
        Ok(Self { provider, tracer })
    }
}

impl Traces for OtlpTraces {
    fn run_ended(&self, run: &RunTrace<'_>) {
        if !is_wanted(run.record) {
            return;
        }
        let RunTrace { record, batches, began_at, parent } = *run;
        let around = parent.map_or_else(Context::new, |parent| {
            Context::new().with_remote_span_context(context_of(parent))
        });
        let started_at = SystemTime::from(record.started_at);
        let span = RUN.with(|ids| {
            ids.set(Some(record.id));
            self.tracer
                .span_builder(format!("run {}", record.job))
                .with_kind(SpanKind::Internal)
                .with_start_time(started_at)
                .with_attributes(of_run(record))
                .start_with_context(&self.tracer, &around)
        });
        RUN.with(|ids| ids.set(None));
        let inside = around.with_span(span);
        for batch in batches.iter() {
            let began_at = started_at + batch.began_at.saturating_sub(began_at);
            self.batch(batch, began_at, &inside);
        }
        let span = inside.span();
        if record.outcome != Outcome::Ok {
            let first = record.report.failures.first();
            let message = first.map_or("", |failure| failure.kind.as_str());
            span.set_status(Status::error(message));
        }
        span.end_with_timestamp(SystemTime::from(record.finished_at));
    }

    fn close(&self) {
        // A collector that is away was reported when it went.
        drop(self.provider.shutdown_with_timeout(LAST_WORDS));
    }
}

impl OtlpTraces {
    /// A batch, with its read from the database and its write to the cache.
    fn batch(&self, batch: &BatchTrace, began_at: SystemTime, inside: &Context) {
        let BatchTrace { took, read, tenants, failed, .. } = batch;
        let tenants = i64::try_from(*tenants).unwrap_or(i64::MAX);
        let span = self
            .tracer
            .span_builder("batch")
            .with_kind(SpanKind::Internal)
            .with_start_time(began_at)
            .with_attributes([KeyValue::new("preheat.tenants", tenants)])
            .start_with_context(&self.tracer, inside);
        let inside = inside.with_span(span);
        let is_read = if failed.is_some() && read.is_zero() { *took } else { *read };
        let parts = [
            ("read", "postgresql", Duration::ZERO, is_read),
            ("write", "redis", is_read, took.saturating_sub(is_read)),
        ];
        for (name, system, after, took) in parts.into_iter().filter(|(.., took)| !took.is_zero()) {
            let began_at = began_at + after;
            let part = self
                .tracer
                .span_builder(name)
                .with_kind(SpanKind::Client)
                .with_start_time(began_at)
                .with_attributes([KeyValue::new("db.system.name", system)])
                .start_with_context(&self.tracer, &inside);
            let part = inside.with_span(part);
            part.span().end_with_timestamp(began_at + took);
        }
        let span = inside.span();
        if let Some(kind) = failed {
            span.set_attribute(KeyValue::new("error.type", *kind));
            span.set_status(Status::error(*kind));
        }
        span.end_with_timestamp(began_at + *took);
    }
}

/// Whether a run is worth a trace. Runs for changes are many, and most of them are alike.
fn is_wanted(record: &RunRecord) -> bool {
    match record.trigger {
        Trigger::Schedule | Trigger::Startup | Trigger::Request => true,
        Trigger::Change => {
            record.outcome != Outcome::Ok
                || record.duration() > LONG_FOR_CHANGES
                || record.id.0.as_u128().is_multiple_of(ONE_IN)
        }
    }
}

fn of_run(record: &RunRecord) -> [KeyValue; 9] {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let report = &record.report;
    [
        KeyValue::new("preheat.job", record.job.to_string()),
        KeyValue::new("preheat.run.id", record.id.to_string()),
        KeyValue::new("preheat.trigger", record.trigger.as_str()),
        KeyValue::new("preheat.outcome", record.outcome.as_str()),
        KeyValue::new("preheat.tenants", number(report.tenants.total)),
        KeyValue::new("preheat.tenants.failed", number(report.tenants.failed)),
        KeyValue::new("preheat.keys.written", number(report.keys.written)),
        KeyValue::new("preheat.bytes", number(report.bytes)),
        KeyValue::new("preheat.queries", number(report.queries)),
    ]
}

fn context_of(parent: TraceParent) -> SpanContext {
    let flags = if parent.is_sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    SpanContext::new(
        TraceId::from_bytes(parent.trace),
        SpanId::from_bytes(parent.span),
        flags,
        true,
        TraceState::default(),
    )
}

thread_local! {
    /// The run whose trace begins on this thread.
    static RUN: Cell<Option<RunId>> = const { Cell::new(None) };
}

/// The id of a run's trace is the id of the run, so that a reader of the log can find the trace.
#[derive(Debug, Default)]
struct RunIds(RandomIdGenerator);

impl IdGenerator for RunIds {
    fn new_trace_id(&self) -> TraceId {
        let run = RUN.with(Cell::get);
        run.map_or_else(|| self.0.new_trace_id(), |run| TraceId::from_bytes(run.0.into_bytes()))
    }

    fn new_span_id(&self) -> SpanId {
        self.0.new_span_id()
    }
}
