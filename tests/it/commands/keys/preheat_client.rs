//! What generated files import from the crate `preheat-client`.

use std::marker::PhantomData;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    Full,
    Brief,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key<T> {
    pub(super) key: String,
    pub(super) tenant: Option<String>,
    pub(super) ttl: Duration,
    pub(super) family: &'static str,
    pub(super) fill: Fill,
    value: PhantomData<fn() -> T>,
}

impl<T> Key<T> {
    pub(super) fn new(
        key: impl Into<String>,
        tenant: Option<String>,
        ttl: Duration,
        family: &'static str,
        fill: Fill,
    ) -> Self {
        Self { key: key.into(), tenant, ttl, family, fill, value: PhantomData }
    }
}
