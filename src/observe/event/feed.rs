//! The change feed.

use std::time::Duration;

use tracing::{debug, info, warn};

use super::{counted, millis};
use crate::domain::job::JobName;

event! {
    /// Changes of the database are heard of from now on.
    FeedConnected;
    metrics |metrics| metrics.set_feed_listens(true);
    log info!("the change feed is connected: what jobs with tables have is warmed once");
}

event! {
    /// Changes of the database are not heard of; told once an outage.
    FeedLost<'a> { message: &'a str }
    metrics |metrics| metrics.set_feed_listens(false);
    log warn!(
        "the change feed is away: changes wait for the jobs' schedules until it is back: {message}"
    );
}

event! {
    /// There is no change feed, or none any more; told once a reason.
    FeedOff<'a> {
        reason: &'a str,
        /// Whether somebody meant to have one.
        is_fault: bool,
    }
    metrics |metrics| metrics.set_feed_listens(false);
    log {
        let text = "there is no change feed, and the jobs' schedules alone keep the cache fresh";
        if is_fault {
            warn!("{text}: {reason}");
        } else {
            info!("{text}: {reason}");
        }
    };
}

event! {
    /// The change feed does not hear of all changes; told once for the same tables.
    FeedLacks<'a> {
        /// Of which changes.
        what: &'a str,
    }
    log warn!("the change feed does not hear of {what}; hint: run `preheat changes install`");
}

event! {
    /// The feed may have missed changes of some tables, so that their jobs run once.
    ChangesMissed<'a> { tables: &'a str }
    log info!(
        "changes of {tables} may have been missed, as triggers were made, mended or switched on, \
         or another table has the name: jobs that name them in `tables` run once"
    );
}

event! {
    /// A trigger could not tell the tenants, so that all are warmed; told once a table and reason.
    TriggerBlind<'a> {
        table: &'a str,
        /// The SQLSTATE of what went wrong.
        code: &'a str,
    }
    log warn!(
        code,
        "the trigger on `{table}` cannot tell whose rows changed (SQLSTATE {code}), so that all \
         tenants are warmed; hint: its query runs with the rights of the role that writes, and \
         fails where row-level security would hide rows; see `preheat changes install`"
    );
}

event! {
    /// A trigger told of a change in a way that no job has; told once each.
    ChangeUnknown<'a> {
        /// What the trigger calls where the change came from.
        source: &'a str,
    }
    log warn!(
        source,
        "changes come from a trigger that no job has; hint: `preheat changes install` makes the \
         triggers that the jobs have now"
    );
}

event! {
    /// Changes were heard of.
    ChangesHeard { notifications: usize }
    metrics |metrics| metrics.change_notifications.inc_by(notifications as u64);
    log {
        let heard = counted(notifications, "notification", "notifications");
        debug!(notifications, "{heard} of changes");
    };
}

event! {
    /// Fences could not be moved; told once for what is waiting.
    FencesUnmoved<'a> { message: &'a str }
    log warn!("changes wait, as their tenants' fences could not be moved: {message}");
}

event! {
    /// A run settled changes: what they changed is in the cache.
    ChangesSettled<'a> {
        job: &'a JobName,
        /// How long ago each was heard of.
        lags: &'a [Duration],
    }
    metrics |metrics| for lag in lags {
        metrics.change_lag.observe(lag.as_secs_f64());
    };
    log if let Some(longest) = lags.iter().max() {
        let (tenants, lag_ms) = (lags.len(), millis(*longest));
        let changed = counted(tenants, "change is", "changes are");
        debug!(%job, tenants, lag_ms, "{changed} warm again in job `{job}`");
    };
}
