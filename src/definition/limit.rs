//! Every limit of a job file, with its reason.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Nobody writes a larger file by hand.
pub(super) const FILE_BYTES: u64 = 1 << 20;
/// No product has this many kinds of data to keep warm: the folder must be the wrong one.
pub(super) const FILES: usize = 1000;
/// Each row is processed once for each key.
pub(super) const KEYS: usize = 32;
/// Every command and every log line about a key contains it.
pub(super) const TEMPLATE_BYTES: usize = 512;
/// A batch's rows are in memory at once.
pub(super) const BATCH: RangeInclusive<u64> = 1..=10_000;
/// No database should give a guest more connections.
pub(super) const CONCURRENCY: RangeInclusive<u64> = 1..=1000;
/// The waits double up to ten seconds, so 20 retries take minutes.
pub(super) const RETRIES: RangeInclusive<u64> = 0..=20;
/// Each tenant has a key for each day.
pub(super) const DAYS: RangeInclusive<u64> = 1..=366;
/// Redis takes no larger string.
pub(super) const VALUE_BYTES: RangeInclusive<u64> = 2..=512 << 20;
/// Each row carries the values of all columns that order it; a Postgres index has no more columns.
pub(super) const ORDER: usize = 32;
/// No schedule rings more often than this.
pub(super) const SHORTEST: Duration = Duration::from_secs(1);
/// The limit for columns in `[encode]` and for tables in `tables`: no Postgres table has more
/// columns.
pub(super) const NAMES: usize = 1600;
