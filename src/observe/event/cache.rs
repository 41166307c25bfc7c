//! The cache: what it lost, what is in it, and what was removed on request.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use tracing::{debug, error, info, warn};

use super::{bytes, counted};
use crate::domain::job::JobName;
use crate::domain::reads::{ReadCounts, ReadResult};
use crate::domain::report::{Failure, KeyCounts};
use crate::domain::run::RunId;
use crate::observe::figures::Share;
use crate::observe::metric::{OfReads, PerJob};
use crate::observe::news::News;

event! {
    /// The cache server, or a node of it, is another process than before.
    CacheRestarted;
    metrics |metrics| {
        metrics.cache_restarts.inc();
        metrics.news.tell(|| News::CacheLost);
    };
    log warn!(
        "the cache server, or a node of it, is another process than before: it was restarted, failed \
         over or replaced, and may have lost any of its keys; they are warmed again"
    );
}

event! {
    /// Several servers answer behind the cache's address.
    SeveralCaches;
    metrics |metrics| metrics.several_caches.set(1);
    log error!(
        "several servers answer behind the cache's address, and each has a part of the writes only; \
         hint: let `cache.url` name one server, and no load balancer or proxy"
    );
}

event! {
    /// One server answers behind the cache's address, where several did.
    OneCacheAgain;
    metrics |metrics| metrics.several_caches.set(0);
    log info!(
        "one server answers behind the cache's address again; everything is warmed again"
    );
}

event! {
    /// The cache lost its keys, and is the same process as before.
    CacheEmptied;
    metrics |metrics| {
        metrics.cache_flushes.inc();
        metrics.news.tell(|| News::CacheLost);
    };
    log warn!(
        "the cache was emptied (FLUSHALL, FLUSHDB or the like): the keys that preheat keeps for \
         itself are gone; everything is warmed again"
    );
}

event! {
    /// The cache evicted keys for lack of memory; emitted at most every ten minutes. The server counts
    /// them itself.
    KeysEvicted {
        /// How many keys of any client, since the last such event.
        count: u64,
        /// Bytes in use.
        used_memory: u64,
        /// The most bytes that it may use.
        maxmemory: u64,
    }
    log warn!(
        count,
        used_memory,
        maxmemory,
        "the cache has evicted {count} keys, anybody's, for want of memory: it uses {} of {}; hint: \
         raise `maxmemory`, or write less (see `preheat plan`)",
        bytes(used_memory),
        bytes(maxmemory)
    );
}

event! {
    /// The cache evicted keys while a run wrote.
    Evictions<'a> {
        job: &'a JobName,
        run: RunId,
        /// How many keys of any client.
        count: u64,
    }
    metrics |metrics| metrics.cache_evicted_during_runs.of(job).inc_by(count);
    log debug!(
        %job, %run, count,
        "the cache evicted {} while job `{job}` ran", counted(count, "key", "keys")
    );
}

event! {
    /// The worker looked for a sample of a job's keys in the cache.
    CoverageMeasured<'a> {
        job: &'a JobName,
        /// How many of them it found.
        there: u64,
        /// How many it looked for; 0 while the tenants are not known.
        expected: u64,
    }
    metrics |metrics| {
        let share = Share { part: there, whole: expected };
        match share.ratio() {
            None => metrics.coverage.forget(job),
            Some(ratio) => {
                metrics.coverage.of(job).set(ratio);
            }
        }
        metrics.figures().note_coverage(job, share);
    };
}

event! {
    /// The clients of applications have counted reads.
    ReadsCounted<'a> {
        /// By how much the counts of each family have grown.
        grown: &'a BTreeMap<String, ReadCounts>,
        /// Whether this worker counts them for all its fleet.
        is_counted: bool,
        now: DateTime<Utc>,
    }
    metrics |metrics| {
        for (family, counts) in grown.iter().filter(|_| is_counted) {
            for result in ReadResult::ALL {
                let labels = OfReads { family: family.clone(), result };
                metrics.reads.get_or_create(&labels).inc_by(counts.of(result));
            }
        }
        metrics.figures().note_reads(grown, now);
    };
}

event! {
    /// Keys were removed on request.
    Invalidated<'a> {
        removed: u64,
        /// How many keys the cache refused to remove.
        failed: u64,
        /// How many fences were moved before.
        fences: u64,
        /// How many of each job were removed, where the job is known.
        by_job: &'a BTreeMap<JobName, u64>,
        /// The first failure.
        failure: Option<&'a Failure>,
    }
    metrics |metrics| {
        for (job, removed) in by_job {
            metrics.count_keys(job, KeyCounts { removed: *removed, ..KeyCounts::default() });
        }
        metrics.news.tell(|| News::KeysRemoved { removed, failed, by_job: by_job.clone() });
    };
    log if let Some(Failure { kind, message, .. }) = failure {
        warn!(
            removed, failed, fences, failure = kind.as_str(),
            "keys could not all be removed on request, {removed} were: {message}"
        );
    } else {
        let keys = counted(removed, "key was", "keys were");
        let moved = counted(fences, "fence", "fences");
        info!(removed, fences, "{keys} removed on request, after {moved}");
    };
}

#[cfg(test)]
mod tests {
    use super::super::testing::job;
    use super::*;
    use crate::observe::Metrics;

    #[test]
    fn coverage_is_absent_until_it_is_known_and_where_it_is_not_any_more() {
        let metrics = Metrics::new();
        let job = job();
        metrics.register_jobs([&job].into_iter());
        let shown = || {
            let page = metrics.encode();
            let series = "preheat_coverage_ratio{job_name=\"services\"} ";
            let value = page.lines().find_map(|line| line.strip_prefix(series));
            value.map(|value| value.parse::<f64>().unwrap())
        };
        assert_eq!(shown(), None);
        let measured = |there, expected| {
            CoverageMeasured { job: &job, there, expected }.emit(&metrics);
            shown()
        };
        assert_eq!(measured(3, 4), Some(0.75));
        assert_eq!(measured(0, 4), Some(0.0));
        assert_eq!(measured(0, 0), None);
        assert_eq!(measured(4, 4), Some(1.0));
        metrics.register_jobs([].iter());
        assert_eq!(shown(), None);
    }
}
