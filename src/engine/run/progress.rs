//! How far a run is.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::domain::report::Report;

/// How far a run is; it only grows.
#[derive(Debug, Default)]
pub struct Progress {
    tenants_total: AtomicU64,
    tenants_done: AtomicU64,
    keys: AtomicU64,
    bytes: AtomicU64,
}

/// A [`Progress`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgressNow {
    /// How many tenants the run covers; 0 until the list is read.
    pub tenants_total: u64,
    /// How many tenants it is done with, whatever their outcome.
    pub tenants_done: u64,
    /// Keys written.
    pub keys: u64,
    /// Bytes written.
    pub bytes: u64,
}

impl Progress {
    /// Sets how many tenants the run covers.
    pub fn expect(&self, tenants: u64) {
        self.tenants_total.store(tenants, Ordering::Relaxed);
    }

    /// A part of the run ended.
    pub fn add(&self, part: &Report) {
        self.tenants_done.fetch_add(part.tenants.done(), Ordering::Relaxed);
        self.keys.fetch_add(part.keys.written, Ordering::Relaxed);
        self.bytes.fetch_add(part.bytes, Ordering::Relaxed);
    }

    /// Another part of the run is so far.
    pub(crate) fn add_now(&self, part: ProgressNow) {
        self.tenants_done.fetch_add(part.tenants_done, Ordering::Relaxed);
        self.keys.fetch_add(part.keys, Ordering::Relaxed);
        self.bytes.fetch_add(part.bytes, Ordering::Relaxed);
    }

    /// As it is now.
    pub fn now(&self) -> ProgressNow {
        ProgressNow {
            tenants_total: self.tenants_total.load(Ordering::Relaxed),
            tenants_done: self.tenants_done.load(Ordering::Relaxed),
            keys: self.keys.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}
