//! How a metric is declared: `metrics!`, and what the type of its field decides.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::{Atomic, Gauge};
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
/// A field begins with its type's default, or with the value after `= …`. The series of a job begin with the
/// job; `once measured` after the name leaves them out until there is a value.
///
/// The macro generates [`DECLARED`](super::DECLARED) and [`Metrics`](super::Metrics): its fields, their
/// registration, and the series that begin and end with a job.
macro_rules! metrics {
    ($(
        $field:ident: $type:ty $(= $start:expr)?,
        $name:literal $(once $measured:ident)?,
        $help:literal;
    )*) => {
        /// All of them, in the order of the documentation.
        pub const DECLARED: &[Declaration] = &[$(Declaration::of::<$type>($name, $help)),*];

        /// The metrics of one worker.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            state: State,
            $(pub(super) $field: $type,)*
        }

        impl Metrics {
            fn registered() -> Self {
                let mut registry = Registry::default();
                $(
                    let $field: $type = metrics!(@start $($start)?);
                    Declaration::of::<$type>($name, $help).register(&mut registry, &$field);
                )*
                Self { registry, state: State::default(), $($field),* }
            }

            fn add_job(&self, job: &JobName) {
                $(metrics!(@add self.$field, job $(, $measured)?);)*
            }

            fn remove_job(&self, job: &JobName) {
                $(self.$field.remove_job(job);)*
            }
        }
    };
    (@start) => { Default::default() };
    (@start $start:expr) => { $start };
    (@add $metric:expr, $job:ident) => { $metric.add_job($job) };
    (@add $metric:expr, $job:ident, measured) => {};
}

/// What the type of a metric's field decides.
pub(super) trait Declared: Metric + Clone {
    const KIND: Kind;
    const LABELS: &'static [&'static str] = &[];

    /// Begins all series of a job.
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

    fn add_job(&self, job: &JobName) {
        L::of_job(job, &mut |labels| drop(self.get_or_create(labels)));
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

/// A counter that another server keeps: each scrape shows that server's last report, and nothing before the
/// first one.
#[derive(Clone, Debug, Default)]
pub(in crate::observe) struct ForeignCounter(Arc<Mutex<Option<u64>>>);

impl ForeignCounter {
    pub(super) fn set(&self, count: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(count);
    }

    fn latest(&self) -> Option<u64> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EncodeMetric for ForeignCounter {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.latest().map_or(Ok(()), |count| ConstCounter::new(count).encode(encoder))
    }

    fn metric_type(&self) -> MetricType {
        <ConstCounter<u64> as TypedMetric>::TYPE
    }

    fn is_empty(&self) -> bool {
        self.latest().is_none()
    }
}

impl Declared for ForeignCounter {
    const KIND: Kind = Kind::Counter;
}
