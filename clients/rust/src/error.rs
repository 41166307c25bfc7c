//! The errors of reads and of invalidations.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use crate::problem::Failure;

/// Why a read has no value. None of these is a problem with Redis: a read goes on without it.
///
/// All callers that waited for one load get the same error, so the loader's is shared.
pub enum Error<E> {
    /// The loader failed.
    Load(Arc<E>),
    /// The loader panicked, or the runtime shut down while it was loading.
    Panicked,
    /// Too many callers wait to load. Answer 503.
    Exhausted,
    /// The loader asked for the key that it loads.
    Recursive,
    /// The loader's value cannot be written as JSON, or not be read back as the key's type.
    Value(Arc<serde_json::Error>),
    /// The value of a shared key was to be handed out without a look whose it is.
    Unchecked,
    /// A loader of several keys returned another number of values.
    Count {
        /// How many values were asked for.
        expected: usize,
        /// How many values it returned.
        found: usize,
    },
}

impl<E> Clone for Error<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Load(error) => Self::Load(Arc::clone(error)),
            Self::Panicked => Self::Panicked,
            Self::Exhausted => Self::Exhausted,
            Self::Recursive => Self::Recursive,
            Self::Unchecked => Self::Unchecked,
            Self::Value(error) => Self::Value(Arc::clone(error)),
            Self::Count { expected, found } => Self::Count { expected: *expected, found: *found },
        }
    }
}

impl<E: fmt::Debug> fmt::Debug for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load(error) => f.debug_tuple("Load").field(error).finish(),
            Self::Panicked => f.write_str("Panicked"),
            Self::Exhausted => f.write_str("Exhausted"),
            Self::Recursive => f.write_str("Recursive"),
            Self::Unchecked => f.write_str("Unchecked"),
            Self::Value(error) => f.debug_tuple("Value").field(error).finish(),
            Self::Count { expected, found } => {
                f.debug_struct("Count").field("expected", expected).field("found", found).finish()
            }
        }
    }
}

impl<E> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load(_) => f.write_str("could not load the value"),
            Self::Panicked => f.write_str("the loader panicked or was ended"),
            Self::Exhausted => f.write_str("too many loads are waiting"),
            Self::Recursive => f.write_str("the loader asked for the key that it loads"),
            Self::Unchecked => f.write_str("the value may be another tenant's, and nobody looked"),
            Self::Value(_) => f.write_str("the loader's value is not the key's as JSON"),
            Self::Count { expected, found } => {
                write!(f, "the loader returned {found} values for {expected} keys")
            }
        }
    }
}

impl<E: StdError + 'static> StdError for Error<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Load(error) => Some(error.as_ref()),
            Self::Value(error) => Some(error.as_ref()),
            Self::Panicked
            | Self::Exhausted
            | Self::Recursive
            | Self::Unchecked
            | Self::Count { .. } => None,
        }
    }
}

/// The error of a flight: an [`Error`] without the type of the loader's error.
#[derive(Clone, Debug)]
pub(crate) enum Crash {
    Load(Arc<dyn Any + Send + Sync>),
    Panicked,
    Exhausted,
    Recursive,
    Value(Arc<serde_json::Error>),
    Count { expected: usize, found: usize },
}

impl Crash {
    /// The error of callers whose loader has this type of error, as all callers of the flight have.
    pub(crate) fn into_error<E: Send + Sync + 'static>(self) -> Error<E> {
        match self {
            Self::Load(error) => error.downcast().map_or(Error::Panicked, Error::Load),
            Self::Panicked => Error::Panicked,
            Self::Exhausted => Error::Exhausted,
            Self::Recursive => Error::Recursive,
            Self::Value(error) => Error::Value(error),
            Self::Count { expected, found } => Error::Count { expected, found },
        }
    }
}

/// What is known of a fence after an invalidation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceState {
    /// It moved: nothing old is written from now on, but values that were there may still be.
    Moved,
    /// Perhaps it moved.
    Unknown,
}

/// An invalidation that failed twice. The data are committed, so the caller decides: values may be old until
/// the worker hears of the change, or until their TTL ends.
#[derive(Debug)]
pub struct InvalidationFailed {
    /// Whether the fences of all tenants moved.
    pub fence: FenceState,
    /// How many of the keys are certainly gone.
    pub removed: usize,
    pub(crate) source: Failure,
}

impl fmt::Display for InvalidationFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fence = match self.fence {
            FenceState::Moved => "moved",
            FenceState::Unknown => "may not have moved",
        };
        let removed = self.removed;
        write!(f, "could not invalidate all keys: the fence {fence}, {removed} keys were removed")
    }
}

impl StdError for InvalidationFailed {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.source)
    }
}
