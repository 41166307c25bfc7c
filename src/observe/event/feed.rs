//! The change feed.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::{counted, millis};
use chrono::{DateTime, Utc};

use crate::domain::change::ResyncCause;
use crate::domain::job::JobName;
use crate::observe::figures::Resync;
use crate::observe::news::News;

event! {
    /// The change feed is connected: from now on the worker receives the database's changes.
    FeedConnected { at: DateTime<Utc> }
    metrics |metrics| {
        metrics.set_feed_listens(Some(true));
        metrics.figures().note_feed(Some(true), None, at);
        metrics.news.tell(|| News::FeedConnected);
    };
    log info!("the change feed is connected: each job with `tables` runs once");
}

event! {
    /// The change feed is disconnected, and the worker receives no changes; emitted once an outage and reason.
    FeedLost<'a> { message: &'a str, at: DateTime<Utc> }
    metrics |metrics| {
        metrics.set_feed_listens(Some(false));
        metrics.figures().note_feed(Some(false), Some(message), at);
        metrics.news.tell(|| News::FeedLost { message: message.to_owned() });
    };
    log warn!(
        "the change feed is away: changes wait for the jobs' schedules until it is back: {message}"
    );
}

event! {
    /// There is no change feed, or no longer; emitted once a reason.
    FeedOff<'a> {
        reason: &'a str,
        /// Whether there should be one, and it cannot work.
        is_fault: bool,
        at: DateTime<Utc>,
    }
    metrics |metrics| {
        metrics.set_feed_listens(is_fault.then_some(false));
        metrics.figures().note_feed(is_fault.then_some(false), Some(reason), at);
    };
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
    /// The change feed does not receive all changes; emitted once for the same tables.
    FeedLacks<'a> {
        /// The changes that it does not receive.
        what: &'a str,
    }
    log warn!("the change feed does not hear of {what}; hint: run `preheat changes install`");
}

event! {
    /// Some triggers notify and others write to the write-ahead log; emitted once for the same tables.
    FeedMixed<'a> {
        /// The tables whose triggers notify.
        tables: &'a str,
    }
    log warn!(
        "the triggers of {tables} notify, others write to the write-ahead log: the worker listens both \
         ways; hint: run `preheat changes install`"
    );
}

event! {
    /// The change feed cannot begin before older transactions end; emitted once for the same ones.
    FeedWaits<'a> {
        /// Whose transactions.
        what: &'a str,
    }
    metrics |metrics| metrics.set_feed_listens(Some(false));
    log warn!(
        "the change feed begins when the transactions have ended that are open now, and waits for \
         {what}; the jobs' schedules go on meanwhile"
    );
}

event! {
    /// The feed may have missed changes of some tables; their jobs run once.
    ChangesMissed<'a> { tables: &'a str }
    log info!(
        "changes of {tables} may have been missed, as triggers or tables changed: jobs that name \
         them in `tables` run once"
    );
}

event! {
    /// A trigger could not find the tenants of changed rows, so all tenants are warmed; emitted once a table
    /// and reason.
    TriggerBlind<'a> {
        table: &'a str,
        /// The SQLSTATE of the trigger's error.
        code: &'a str,
    }
    log warn!(
        code,
        "the trigger on `{table}` cannot tell whose rows changed (SQLSTATE {code}): all tenants are \
         warmed; hint: row-level security may hide them, see `preheat changes install`"
    );
}

event! {
    /// A trigger notified of a change by a name that no job uses; emitted once a name.
    ChangeUnknown<'a> {
        /// The name that the trigger gives to the source of the change.
        source: &'a str,
    }
    log warn!(
        source,
        "changes come from a trigger that no job has; hint: `preheat changes install` makes the \
         triggers that the jobs have now"
    );
}

event! {
    /// The feed received notifications of changes.
    ChangesHeard<'a> {
        notifications: usize,
        /// How many of them are of each table that jobs name.
        tables: &'a BTreeMap<&'a str, u64>,
        at: DateTime<Utc>,
    }
    metrics |metrics| {
        metrics.change_notifications.inc_by(notifications as u64);
        metrics.figures().note_heard(notifications, at);
        metrics.figures().note_tables(tables, at);
    };
    log debug!(
        notifications,
        "received {} of changes", counted(notifications, "notification", "notifications")
    );
}

event! {
    /// The data of any tenant may have changed, or the cache may have lost it: jobs run for all tenants.
    ResyncWanted<'a> { cause: ResyncCause, jobs: &'a [JobName], at: DateTime<Utc> }
    metrics |metrics| {
        metrics.figures().note_resync(Resync { at, cause, jobs: jobs.to_vec() });
    };
    log {
        let (jobs, cause) = (jobs.len(), cause.as_str());
        debug!(jobs, cause, "{} to run for all tenants ({cause})", counted(jobs, "job has", "jobs have"));
    };
}

event! {
    /// The fences of changed tenants could not be moved; emitted once for the changes that wait.
    FencesUnmoved<'a> { message: &'a str }
    log warn!("changes wait, as their tenants' fences could not be moved: {message}");
}

event! {
    /// Shared keys whose rows are gone could not be removed yet; emitted once for the changes that wait.
    GoneKeysWait<'a> { keys: usize, message: &'a str }
    log warn!(keys, "changes wait, as shared keys could not be removed: {message}");
}

event! {
    /// The cache refused to remove shared keys whose rows are gone.
    GoneKeysLeft<'a> { keys: usize, message: &'a str }
    log warn!(keys, "shared keys whose rows are gone are left to their TTL: {message}");
}

event! {
    /// A run has written the data of changes to the cache.
    ChangesWarmed<'a> {
        job: &'a JobName,
        /// How long ago the feed received each.
        lags: &'a [Duration],
        at: DateTime<Utc>,
    }
    metrics |metrics| {
        for lag in lags {
            metrics.change_lag.observe(lag.as_secs_f64());
        }
        metrics.figures().note_lags(lags, at);
    };
    log if let Some(longest) = lags.iter().max() {
        let (tenants, lag_ms) = (lags.len(), millis(*longest));
        let changes = counted(tenants, "change has", "changes have");
        debug!(%job, tenants, lag_ms, "{changes} reached the cache in job `{job}`");
    };
}
