//! How a metric is declared: `metrics!`, and what the type of its field decides.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::{Atomic, ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Metric, Registry};

use super::label::{Labels, OfJob};
use crate::domain::job::JobName;

/// The declaration of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Declaration {
    /// Its name, as it is scraped.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it counts, without a full stop.
    pub help: &'static str,
}

/// A metric's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// It counts observations by size.
    Histogram,
}

impl Kind {
    /// Its name in the exposition formats.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

impl Declaration {
    pub(super) const fn of<T: Declared>(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: T::KIND, labels: T::LABELS, help }
    }

    /// The name without the suffix that the encoder adds.
    pub(super) fn stem(&self) -> &'static str {
        match self.kind {
            Kind::Counter => self.name.strip_suffix("_total").unwrap_or(self.name),
            Kind::Gauge | Kind::Histogram => self.name,
        }
    }

    pub(super) fn register(&self, registry: &mut Registry, metric: &(impl Metric + Clone)) {
        registry.register(self.stem(), self.help, metric.clone());
    }
}

/// Declares all metrics, each with its field, the field's type (which says the metric's type and its
/// labels), its name (which ends with its unit) and its help text, without a full stop:
///
/// ```ignore
/// metrics! {
///     batch_retries: Family<OfJob, Counter>, "preheat_batch_retries_total",
///         "Batches that were tried again after a failure that may pass";
/// }
/// ```
///
/// A field begins with its type's default, or with the value after `= …`. The counters and histograms of a job
/// begin with the job, at 0. Its gauges are absent until they have a value, and so is a [`Latest`].
///
/// The macro generates [`DECLARED`](super::DECLARED) and [`Metrics`](super::Metrics): its fields, their
/// registration, and the series that begin and end with a job.
macro_rules! metrics {
    ($(
        $field:ident: $type:ty $(= $start:expr)?,
        $name:literal,
        $help:literal;
    )*) => {
        /// All of them, in the order of the documentation.
        pub const DECLARED: &[Declaration] = &[$(Declaration::of::<$type>($name, $help)),*];

        /// The metrics of one worker.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            state: State,
            /// What has just happened, told by the same events.
            pub news: NewsLog,
            $(pub(super) $field: $type,)*
        }

        impl Metrics {
            fn registered() -> Self {
                let mut registry = Registry::default();
                $(
                    let $field: $type = metrics!(@start $($start)?);
                    Declaration::of::<$type>($name, $help).register(&mut registry, &$field);
                )*
                Self { registry, state: State::default(), news: NewsLog::default(), $($field),* }
            }

            fn add_job(&self, job: &JobName) {
                $(self.$field.add_job(job);)*
            }

            fn remove_job(&self, job: &JobName) {
                $(self.$field.remove_job(job);)*
            }
        }
    };
    (@start) => { Default::default() };
    (@start $start:expr) => { $start };
}

/// What the type of a metric's field decides.
pub(super) trait Declared: Metric + Clone {
    const KIND: Kind;
    const LABELS: &'static [&'static str] = &[];

    /// Begins all counters and histograms of a job.
    fn add_job(&self, _job: &JobName) {}

    /// Removes the gauges of a job that no longer exists.
    fn remove_job(&self, _job: &JobName) {}
}

impl Declared for Counter {
    const KIND: Kind = Kind::Counter;
}

impl<N, A> Declared for Gauge<N, A>
where
    Self: Metric,
    A: Atomic<N>,
{
    const KIND: Kind = Kind::Gauge;
}

impl Declared for Histogram {
    const KIND: Kind = Kind::Histogram;
}

impl<L, M, C> Declared for Family<L, M, C>
where
    Self: Metric,
    L: Labels,
    M: Declared,
    C: MetricConstructor<M> + Clone,
{
    const KIND: Kind = M::KIND;
    const LABELS: &'static [&'static str] = L::NAMES;

    /// A gauge begins with its first value: a 0 that nobody measured would be a wrong value.
    fn add_job(&self, job: &JobName) {
        if M::KIND != Kind::Gauge {
            L::of_job(job, &mut |labels| drop(self.get_or_create(labels)));
        }
    }

    /// A counter stays, since it counts past events.
    fn remove_job(&self, job: &JobName) {
        if M::KIND == Kind::Gauge {
            L::of_job(job, &mut |labels| {
                self.remove(labels);
            });
        }
    }
}

/// The bounds of a histogram's buckets.
#[derive(Clone, Copy, Debug)]
pub(in crate::observe) struct Buckets(pub(super) &'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// The metric of a job.
pub(in crate::observe) trait PerJob<M> {
    /// The series of this job, which begins now if it did not exist.
    fn of(&self, job: &JobName) -> M;

    /// Removes the series of this job.
    fn forget(&self, job: &JobName);
}

impl<M: Clone, C: MetricConstructor<M>> PerJob<M> for Family<OfJob, M, C> {
    fn of(&self, job: &JobName) -> M {
        self.get_or_create_owned(&OfJob { job_name: job.clone() })
    }

    fn forget(&self, job: &JobName) {
        self.remove(&OfJob { job_name: job.clone() });
    }
}

/// A value that somebody else keeps, or that is known at times only: each scrape shows the last one that was
/// set, and nothing before the first.
#[derive(Debug)]
pub(in crate::observe) struct Latest<M>(Arc<Mutex<Option<M>>>);

/// A counter that another server, or the operating system, keeps.
pub(in crate::observe) type ForeignCounter<N = u64> = Latest<ConstCounter<N>>;
/// A gauge that is absent while its value is not known.
pub(in crate::observe) type Known<N = i64> = Latest<ConstGauge<N>>;

impl<M> Latest<M> {
    /// Shows this value from now on, or none.
    pub(super) fn set(&self, value: Option<M>) {
        *self.latest() = value;
    }

    fn latest(&self) -> MutexGuard<'_, Option<M>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<N> Latest<ConstCounter<N>> {
    pub(super) fn count(&self, count: N) {
        self.set(Some(ConstCounter::new(count)));
    }
}

impl<N> Latest<ConstGauge<N>> {
    pub(in crate::observe) fn know(&self, value: N) {
        self.set(Some(ConstGauge::new(value)));
    }
}

impl<M> Clone for Latest<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M> Default for Latest<M> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<M: EncodeMetric + TypedMetric> EncodeMetric for Latest<M> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.latest().as_ref().map_or(Ok(()), |value| value.encode(encoder))
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }

    fn is_empty(&self) -> bool {
        self.latest().is_none()
    }
}

impl<N> Declared for Latest<ConstCounter<N>>
where
    Self: Metric,
{
    const KIND: Kind = Kind::Counter;
}

impl<N> Declared for Latest<ConstGauge<N>>
where
    Self: Metric,
{
    const KIND: Kind = Kind::Gauge;
}
