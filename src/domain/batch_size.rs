//! How many tenants of a job go into one batch: as many as the job says, or fewer while its queries take longer
//! than they should.

use std::fmt;
use std::num::NonZeroUsize;
use std::time::Duration;

use super::duration;

/// So many slow batches in a row make the batches smaller. One alone may be due to a single large tenant, and
/// would be as slow in a smaller batch.
const SLOW_TO_SHRINK: u32 = 2;
/// So many quick batches in a row make the batches larger again.
const QUICK_TO_GROW: u32 = 8;
/// A batch is quick if its query takes at most this share of the target. Between the two, the size stays as it
/// is: so it comes to rest.
const QUICK: f64 = 0.5;
/// Smaller batches are to take this share of the target: between quick and slow.
const AIM: f64 = 0.75;
/// By how much the size changes at once, at most.
const MOST_SHRINK: f64 = 0.5;
const MOST_GROWTH: f64 = 1.25;
/// The smallest size is this share of the configured one: the time of a query that is slow whatever its size
/// does not fall any more, and each further batch only costs one more.
const SMALLEST: usize = 16;
/// A query never counts as quicker than this.
const QUICKEST: Duration = Duration::from_millis(1);

/// The query of a batch, as one of a run over all tenants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// How many tenants it was for.
    pub tenants: NonZeroUsize,
    /// How long it took, or how long it ran before the server cancelled it.
    pub took: Duration,
}

/// The size of a job's batches.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchSize {
    configured: NonZeroUsize,
    target: Duration,
    now: usize,
    /// The slow batches in a row, and the most tenants that would have fitted into one of them.
    slow: u32,
    slow_fits: f64,
    quick: u32,
    /// The batch that made the batches smaller; `None` while they are as large as configured.
    because: Option<Observed>,
}

/// The size of a job's batches at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSizeNow {
    /// The size in the job's file, or that of all jobs.
    pub configured: NonZeroUsize,
    /// The size of the batches that begin now.
    pub now: NonZeroUsize,
    /// Why it is smaller than configured, if it is: the last query that took too long.
    pub because: Option<TooSlow>,
}

/// A query that took so long that the batches after it have fewer tenants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooSlow {
    /// How many tenants it was for, and how long it took.
    pub query: Observed,
    /// How long it should have taken at most.
    pub target: Duration,
}

impl fmt::Display for TooSlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { query: Observed { tenants, took }, target } = self;
        let who = if tenants.get() == 1 { "tenant" } else { "tenants" };
        let (took, target) = (took.as_secs_f64(), duration::text(*target));
        write!(
            f,
            "a query for {tenants} {who} took {took:.1} s; `runner.target_batch_time` is {target}"
        )
    }
}

impl BatchSize {
    /// As large as configured; a query should take at most `target`.
    pub fn new(configured: NonZeroUsize, target: Duration) -> Self {
        let now = configured.get();
        Self { configured, target, now, slow: 0, slow_fits: 0.0, quick: 0, because: None }
    }

    /// The size at this moment.
    pub fn now(&self) -> BatchSizeNow {
        let Self { configured, target, because, .. } = *self;
        let because = because.map(|query| TooSlow { query, target });
        let now = NonZeroUsize::new(self.now).unwrap_or(NonZeroUsize::MIN);
        BatchSizeNow { configured, now, because }
    }

    /// Takes note of a batch of a run over `all` tenants.
    ///
    /// A batch counts if it has at least half of the tenants that the size allows, since the time of a few
    /// tenants says little about that of many; and no more than it allows, since a batch that began before the
    /// last change says nothing about the present size.
    pub fn observe(&mut self, observed: Observed, all: usize) {
        let tenants = observed.tenants.get();
        if tenants > self.now || tenants * 2 < self.now.min(all) {
            return;
        }
        let took = observed.took.max(QUICKEST);
        if took > self.target {
            self.quick = 0;
            self.slow += 1;
            self.slow_fits = self.slow_fits.max(self.fits(tenants, took));
            if self.slow >= SLOW_TO_SHRINK {
                self.shrink(observed);
            }
        } else if took <= self.target.mul_f64(QUICK) {
            self.slow_again();
            self.quick += 1;
            if self.quick >= QUICK_TO_GROW {
                self.grow(self.fits(tenants, took));
            }
        } else {
            self.slow_again();
            self.quick = 0;
        }
    }

    /// How many tenants' rows could have been read within the target, if each takes its share of the time.
    #[expect(clippy::cast_precision_loss, reason = "a batch has at most some thousand tenants")]
    fn fits(&self, tenants: usize, took: Duration) -> f64 {
        tenants as f64 * self.target.as_secs_f64() / took.as_secs_f64()
    }

    /// The next slow batch is the first one in a row.
    fn slow_again(&mut self) {
        self.slow = 0;
        self.slow_fits = 0.0;
    }

    #[expect(clippy::cast_precision_loss, reason = "a batch has at most some thousand tenants")]
    fn shrink(&mut self, observed: Observed) {
        let least = observed.tenants.get() as f64 * MOST_SHRINK;
        let smallest = (self.configured.get() / SMALLEST).max(1);
        let shrunk = whole((self.slow_fits * AIM).max(least)).max(smallest);
        self.slow_again();
        if shrunk < self.now {
            self.now = shrunk;
            self.because = Some(observed);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a batch has at most some thousand tenants")]
    fn grow(&mut self, fits: f64) {
        self.quick = 0;
        // A size of one grows by a quarter as well.
        let most = whole((self.now as f64 * MOST_GROWTH).ceil());
        self.now = whole(fits).max(self.now).min(most).min(self.configured.get());
        if self.now == self.configured.get() {
            self.because = None;
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a size is positive, and a cast ends at the largest number"
)]
fn whole(size: f64) -> usize {
    size as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_secs(2);
    const ALL: usize = 10_000;

    fn many(number: usize) -> NonZeroUsize {
        NonZeroUsize::new(number).unwrap()
    }

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// A job whose batches have a hundred tenants.
    fn hundred() -> BatchSize {
        BatchSize::new(many(100), TARGET)
    }

    impl BatchSize {
        fn see(&mut self, tenants: usize, took: f64) -> usize {
            self.observe(Observed { tenants: many(tenants), took: seconds(took) }, ALL);
            self.now().now.get()
        }

        /// Batches of the present size, of which each tenant takes this long and each query that much more.
        fn batches(&mut self, count: usize, a_tenant: f64, a_query: f64) -> usize {
            for _ in 0..count {
                let tenants = self.now().now.get();
                let all = u32::try_from(tenants).unwrap();
                self.see(tenants, f64::from(all).mul_add(a_tenant, a_query));
            }
            self.now().now.get()
        }
    }

    #[test]
    fn two_slow_batches_in_a_row_make_it_smaller_at_most_by_half() {
        let mut size = hundred();
        assert_eq!(size.see(100, 2.5), 100);
        assert_eq!(size.see(100, 2.5), 60);
        let because = size.now().because.unwrap().to_string();
        assert_eq!(because, "a query for 100 tenants took 2.5 s; `runner.target_batch_time` is 2s");
        let mut size = hundred();
        size.see(100, 60.0);
        assert_eq!(size.see(100, 60.0), 50);
        // The quicker of the two decides.
        let mut size = hundred();
        size.see(100, 60.0);
        assert_eq!(size.see(100, 2.1), 71);
    }

    #[test]
    fn batches_that_began_at_a_larger_size_or_have_few_tenants_do_not_count() {
        let mut size = hundred();
        size.see(100, 60.0);
        assert_eq!(size.see(100, 60.0), 50);
        for _ in 0..10 {
            assert_eq!(size.see(100, 60.0), 50, "it is from before");
            assert_eq!(size.see(24, 60.0), 50, "the rest of the tenants");
        }
        let mut few = hundred();
        for took in [3.0, 3.0] {
            // All tenants of the job, however few.
            few.observe(Observed { tenants: many(30), took: seconds(took) }, 30);
        }
        assert_eq!(few.now().now.get(), 15);
    }

    #[test]
    fn it_never_falls_below_a_sixteenth_nor_below_one() {
        let mut size = hundred();
        assert_eq!(size.batches(100, 0.0, 60.0), 6);
        let mut single = BatchSize::new(NonZeroUsize::MIN, TARGET);
        assert_eq!(single.batches(100, 0.0, 60.0), 1);
        assert_eq!(single.now().because, None, "it is as large as configured");
        let mut tiny = BatchSize::new(many(3), TARGET);
        assert_eq!(tiny.batches(100, 0.0, 60.0), 1);
        assert_eq!(tiny.batches(100, 0.0, 0.1), 3, "even from one it grows");
    }

    #[test]
    fn after_a_step_of_the_load_it_comes_to_rest_and_back() {
        let mut size = hundred();
        assert_eq!(size.batches(50, 0.005, 0.05), 100);
        // The database is ten times as slow.
        let rest = size.batches(20, 0.05, 0.5);
        assert_eq!(rest, 25, "of which a query takes 1.75 s");
        for _ in 0..500 {
            assert_eq!(size.batches(1, 0.05, 0.5), rest, "it is at rest");
        }
        assert!(size.now().because.is_some());
        // It is as quick as before: a quarter more for eight batches each.
        assert_eq!(size.batches(7, 0.005, 0.05), rest);
        assert_eq!(size.batches(1, 0.005, 0.05), rest + rest.div_ceil(4));
        assert_eq!(size.batches(60, 0.005, 0.05), 100);
        assert_eq!(size.now().because, None);
    }

    #[test]
    fn through_a_slow_drift_no_query_stays_slow() {
        let mut size = hundred();
        let mut slow = 0;
        for hour in 0..240 {
            let a_tenant = 0.01 * 1.02_f64.powi(hour);
            for _ in 0..10 {
                let before = size.now().now.get();
                let took = f64::from(u32::try_from(before).unwrap()) * a_tenant;
                slow += u32::from(took > 2.0 && before > 6);
                size.see(before, took);
            }
        }
        assert_eq!(size.now().now.get(), 6, "1.1 s a tenant: it is as small as it may be");
        assert!(slow < 60, "{slow} of 2,400");
    }

    #[test]
    fn one_giant_tenant_does_not_make_the_others_batches_smaller() {
        let mut size = hundred();
        for _ in 0..100 {
            size.see(100, 30.0);
            assert_eq!(size.batches(3, 0.01, 0.0), 100);
        }
    }

    #[test]
    fn noise_around_the_middle_moves_nothing_and_noise_around_the_target_settles() {
        let noise = |step: usize| [0.8, 1.2, 1.0, 1.1, 0.9, 1.3, 0.7][step % 7];
        let mut size = hundred();
        for step in 0..1_000 {
            size.see(size.now, 1.5 * noise(step));
        }
        assert_eq!(size.now().now.get(), 100);
        let mut size = hundred();
        let mut sizes = Vec::new();
        for step in 0..2_000 {
            let a_tenant = 0.03 * noise(step);
            sizes.push(size.batches(1, a_tenant, 0.0));
        }
        let rest = sizes[100];
        assert!((50..=66).contains(&rest), "{rest}");
        let moved = sizes[100..].iter().filter(|size| **size != rest).count();
        assert_eq!(moved, 0);
    }

    #[test]
    fn an_outage_leaves_no_trace_for_long() {
        let mut size = hundred();
        // Each query runs into the time limit of the server.
        assert_eq!(size.batches(20, 0.0, 30.0), 6);
        let mut batches = 0;
        while size.now().now.get() < 100 {
            size.batches(1, 0.001, 0.02);
            batches += 1;
        }
        assert!((80..=120).contains(&batches), "{batches}");
    }
}
