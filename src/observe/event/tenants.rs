//! The tenant list, and the tenants that leave it.

use std::collections::BTreeMap;

use tracing::{debug, error, info, warn};

use super::counted;
use crate::domain::job::JobName;
use crate::domain::report::KeyCounts;

event! {
    /// The tenant list that a run of this job read is empty.
    NoTenants<'a> { job: &'a JobName }
    log warn!(%job, "job `{job}` has nothing to warm: the tenant query returned no tenant");
}

event! {
    /// A tenant list lacks so many tenants that no run uses it. The runs that fail because of it are counted.
    TenantsShrank<'a> {
        /// How many are missing, and what to do.
        message: &'a str,
    }
    log error!("{message}");
}

event! {
    /// Keys of tenants that are not active any more were removed.
    TenantsSwept<'a> {
        /// How many tenants have left since the last list.
        newly: usize,
        /// How many tenants that had left before were swept again.
        again: usize,
        /// How many keys of each job were removed.
        removed: &'a BTreeMap<JobName, u64>,
    }
    metrics |metrics| for (job, count) in removed {
        metrics.count_keys(job, KeyCounts { removed: *count, ..KeyCounts::default() });
    };
    log match (newly, removed.values().sum::<u64>()) {
        (0, 0) => debug!(again, "no run wrote keys of departed tenants"),
        (0, keys) => info!(
            again,
            keys,
            "removed {} that runs with an older tenant list had written for departed tenants",
            counted(keys, "key", "keys")
        ),
        (newly, keys) => info!(
            newly,
            again,
            keys,
            "tenants that are not active any more since the last list: {newly}; {} removed",
            counted(keys, "key of theirs is", "keys of theirs are")
        ),
    };
}

event! {
    /// The tenant list could not be compared with the tenants that may have keys, or not all keys of
    /// the tenants that left it could be removed.
    SweepIncomplete<'a> { message: &'a str }
    log warn!(
        "could not remove all keys of tenants that are not active any more; the next tenant list \
         will: {message}"
    );
}

#[cfg(test)]
mod tests {
    use super::super::testing::{job, logged};
    use super::*;
    use crate::observe::Metrics;

    #[test]
    fn keys_of_tenants_that_are_gone_are_counted_and_said() {
        let metrics = Metrics::new();
        let removed = BTreeMap::from([(job(), 7), (JobName::parse("slots").unwrap(), 2)]);
        let lines = logged(|| {
            TenantsSwept { newly: 3, again: 1, removed: &removed }.emit(&metrics);
            TenantsSwept { newly: 0, again: 4, removed: &removed }.emit(&metrics);
            TenantsSwept { newly: 0, again: 4, removed: &BTreeMap::new() }.emit(&metrics);
            SweepIncomplete { message: "connection refused" }.emit(&metrics);
        });
        insta::assert_snapshot!(lines, @r#"
         INFO tenants that are not active any more since the last list: 3; 9 keys of theirs are removed newly=3 again=1 keys=9
         INFO removed 9 keys that runs with an older tenant list had written for departed tenants again=4 keys=9
        DEBUG no run wrote keys of departed tenants again=4
         WARN could not remove all keys of tenants that are not active any more; the next tenant list will: connection refused
        "#);
        let page = metrics.encode();
        assert!(
            page.contains("preheat_keys_total{job_name=\"services\",outcome=\"removed\"} 14\n")
        );
        assert!(page.contains("preheat_keys_total{job_name=\"slots\",outcome=\"removed\"} 4\n"));
    }
}
