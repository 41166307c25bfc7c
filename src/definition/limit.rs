//! Every limit of a job file, with its reason.

use std::ops::RangeInclusive;
use std::time::Duration;

/// More is no text that a person wrote.
pub(super) const FILE_BYTES: u64 = 1 << 20;
/// More job files than any product has data to keep warm: it is the wrong folder.
pub(super) const FILES: usize = 1000;
/// A row is looked at once a key.
pub(super) const KEYS: usize = 32;
/// A key stands in every command and every log line.
pub(super) const TEMPLATE_BYTES: usize = 512;
/// A batch's rows are in memory at once.
pub(super) const BATCH: RangeInclusive<u64> = 1..=10_000;
/// More connections than any database should give to a guest.
pub(super) const CONCURRENCY: RangeInclusive<u64> = 1..=1000;
/// Waits double up to ten seconds, so these are minutes.
pub(super) const RETRIES: RangeInclusive<u64> = 0..=20;
/// A key a day and tenant.
pub(super) const DAYS: RangeInclusive<u64> = 1..=366;
/// Redis takes no larger string.
pub(super) const VALUE_BYTES: RangeInclusive<u64> = 2..=512 << 20;
/// No schedule rings more often.
pub(super) const SHORTEST: Duration = Duration::from_secs(1);
/// Columns of a table that may be named, tables of a database: what Postgres has room for.
pub(super) const NAMES: usize = 1600;
