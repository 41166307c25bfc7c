//! The labels of metrics. Each is bounded: a job is one, a tenant never.

use std::fmt;
use std::hash::Hash;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use crate::domain::audit;
use crate::domain::job::JobName;
use crate::domain::reads::ReadResult;
use crate::domain::run::{Outcome, SkipReason, Trigger};
use crate::domain::server::Server;

/// The labels of one series.
pub(in crate::observe) trait Labels: Clone + Eq + Hash {
    /// Their names.
    const NAMES: &'static [&'static str];

    /// Visits the labels of every series that one job has; none if `job_name` is not a label.
    fn of_job(job: &JobName, visit: &mut impl FnMut(&Self));
}

/// Declares a set of labels. A set that begins with `job_name` has a series for each job and each value
/// of the other labels. The types of those list their values as `ALL` and are in `encode_as_str!`
/// below. The label is not `job`, because Prometheus sets that one itself at each scrape and would rename
/// ours to `exported_job`:
///
/// ```ignore
/// labels!(OfSkip { job_name, reason: SkipReason });
/// labels!(OfServer { server: Server });
/// ```
macro_rules! labels {
    ($name:ident { job_name $(, $label:ident: $type:ty)* }) => {
        labels!(@struct $name { job_name: JobName $(, $label: $type)* } |job, visit| {
            labels!(@each [$($label: $type),*] visit(&Self { job_name: job.clone() $(, $label)* }));
        });
    };
    ($name:ident { $($label:ident: $type:ty),* }) => {
        labels!(@struct $name { $($label: $type),* } |_job, _visit| {});
    };
    (@struct $name:ident { $($label:ident: $type:ty),* }
     |$job:ident, $visit:ident| $visits:block) => {
        #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        pub(in crate::observe) struct $name {
            $(pub(in crate::observe) $label: $type),*
        }

        impl Labels for $name {
            const NAMES: &'static [&'static str] = &[$(stringify!($label)),*];

            fn of_job($job: &JobName, $visit: &mut impl FnMut(&Self)) $visits
        }
    };
    // One loop a label, each inside the one before.
    (@each [] $visits:expr) => { $visits };
    (@each [$label:ident: $type:ty $(, $others:ident: $types:ty)*] $visits:expr) => {
        for $label in <$type>::ALL {
            labels!(@each [$($others: $types),*] $visits);
        }
    };
}

labels!(OfJob { job_name });
labels!(OfRun { job_name, trigger: Trigger, outcome: Outcome });
labels!(OfTrigger { job_name, trigger: Trigger });
labels!(OfSkip { job_name, reason: SkipReason });
labels!(OfTenants { job_name, outcome: TenantOutcome });
labels!(OfKeys { job_name, outcome: KeyOutcome });
labels!(OfFindings { job_name, kind: audit::Kind });
labels!(OfServer { server: Server });
labels!(OfConnections { state: &'static str });
labels!(OfReads { family: String, result: ReadResult });
labels!(OfBuild { version: &'static str });

/// Declares the values of a label that only metrics use.
macro_rules! values {
    ($(#[$doc:meta])* $name:ident { $($value:ident = $text:literal),* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(in crate::observe) enum $name { $($value),* }

        impl $name {
            const ALL: [Self; [$($text),*].len()] = [$(Self::$value),*];

            fn as_str(self) -> &'static str {
                match self { $(Self::$value => $text),* }
            }
        }
    };
}

values! {
    /// The outcomes of a tenant in a run.
    TenantOutcome { Ok = "ok", Failed = "failed", Fenced = "fenced" }
}
values! {
    /// The outcomes of a key in a run.
    KeyOutcome { Written = "written", Removed = "removed", Failed = "failed", Fenced = "fenced" }
}

/// Types whose `as_str` is the value of a label.
macro_rules! encode_as_str {
    ($($type:ty),*) => {$(
        impl EncodeLabelValue for $type {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                self.as_str().encode(encoder)
            }
        }
    )*};
}

encode_as_str!(
    JobName,
    Trigger,
    Outcome,
    SkipReason,
    TenantOutcome,
    KeyOutcome,
    audit::Kind,
    ReadResult,
    Server
);
