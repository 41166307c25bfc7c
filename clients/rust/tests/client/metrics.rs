//! The counters of the `metrics` facade.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    set_default_local_recorder,
};

use crate::support::{Loader, cache, eventually, redis, services};

/// Keeps what is counted, by name and labels; histograms count their values.
#[derive(Clone, Default)]
struct Kept {
    counts: Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>,
}

impl Kept {
    fn of(&self, key: &Key) -> Arc<AtomicU64> {
        let labels = key.labels().map(|label| format!("{}={}", label.key(), label.value()));
        let labels: Vec<_> = labels.collect();
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        Arc::clone(self.counts.lock().unwrap().entry(name).or_default())
    }

    fn counts(&self) -> Vec<(String, u64)> {
        let counts = self.counts.lock().unwrap();
        counts.iter().map(|(name, count)| (name.clone(), count.load(Ordering::SeqCst))).collect()
    }
}

/// How often a histogram got a value.
struct Values(Arc<AtomicU64>);

impl metrics::HistogramFn for Values {
    fn record(&self, _value: f64) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Recorder for Kept {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.of(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.of(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Values(self.of(key))))
    }
}

// All tasks of this test run on its own thread, and the recorder is that thread's.
#[tokio::test(flavor = "current_thread")]
async fn reads_loads_and_fills_are_counted_by_family() {
    let kept = Kept::default();
    let _recorder = set_default_local_recorder(&kept);
    let redis = redis();
    let cache = cache(&redis).await;
    for _ in 0..3 {
        Loader::new().read(&cache, services(), &["X-ray"]).await;
    }
    let expected = [
        ("preheat_client_breaker_open{}", 0),
        ("preheat_client_fills_total{family=services,outcome=written}", 1),
        ("preheat_client_load_seconds{family=services}", 1),
        ("preheat_client_loads_total{family=services,outcome=ok}", 1),
        ("preheat_client_reads_total{family=services,result=hit}", 2),
        ("preheat_client_reads_total{family=services,result=miss}", 1),
    ]
    .map(|(name, count)| (name.to_owned(), count));
    // The first question whether Redis answers is the background's.
    eventually("all is counted", async || kept.counts() == expected).await;
}
