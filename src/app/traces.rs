//! Where traces of runs go.

use std::sync::Arc;

use crate::config::Settings;
use crate::engine::ports::Traces;
use crate::observe::event;
use crate::observe::metric::Metrics;

/// The way to a collector, if the environment names one. A collector that cannot be used is no reason not to
/// work.
#[cfg(feature = "otel")]
pub(super) fn traces(settings: &Settings, metrics: &Arc<Metrics>) -> Option<Arc<dyn Traces>> {
    use crate::adapter::otlp::{CollectorState, OtlpTraces};

    if !settings.traces.wanted {
        return None;
    }
    let told = Arc::clone(metrics);
    let said = move |state: CollectorState<'_>| match state {
        CollectorState::Away { message } => event::CollectorAway { message }.emit(&told),
        CollectorState::Back => event::CollectorBack.emit(&told),
    };
    let runtime = tokio::runtime::Handle::current();
    match OtlpTraces::from_environment(settings.traces.has_service_name, runtime, said) {
        Ok(traces) => Some(Arc::new(traces)),
        Err(error) => {
            event::NoTraces { message: &error.to_string() }.emit(metrics);
            None
        }
    }
}

/// This build has no exporter.
#[cfg(not(feature = "otel"))]
pub(super) fn traces(settings: &Settings, metrics: &Arc<Metrics>) -> Option<Arc<dyn Traces>> {
    if settings.traces.wanted {
        let message =
            "this build of preheat is without traces: it was compiled without the feature `otel`";
        event::NoTraces { message }.emit(metrics);
    }
    None
}

/// Sends the traces that wait. The exporter blocks its thread meanwhile.
pub(super) async fn close(traces: Option<&Arc<dyn Traces>>) {
    if let Some(traces) = traces.cloned() {
        let closed = tokio::task::spawn_blocking(move || traces.close());
        // A panic of the exporter loses traces and nothing else.
        drop(closed.await);
    }
}
