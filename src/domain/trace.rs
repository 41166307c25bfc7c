//! The parts of a run's trace: its batches, and the trace of the request that started the run.

use std::time::Duration;

/// How many of a run's slowest batches a trace shows, and how many of those that failed.
const MOST: usize = 10;

/// The trace and the span of a request, as the header `traceparent` has them (W3C Trace Context).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace.
    pub trace: [u8; 16],
    /// The caller's span.
    pub span: [u8; 8],
    /// Whether the caller records the trace.
    pub is_sampled: bool,
}

impl TraceParent {
    /// Reads a header; `None` if it is not valid. A header that is not valid is ignored, as the
    /// specification says.
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.trim().split('-');
        let (version, trace, span, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let [version] = hex::<1>(version)?;
        // Version 0 has exactly these parts; a later one may have more, and 255 is forbidden.
        if version == u8::MAX || (version == 0 && parts.next().is_some()) {
            return None;
        }
        let (trace, span, [flags]) = (hex::<16>(trace)?, hex::<8>(span)?, hex::<1>(flags)?);
        let is_valid = trace != [0; 16] && span != [0; 8];
        is_valid.then_some(Self { trace, span, is_sampled: flags & 1 == 1 })
    }
}

/// Lower-case hexadecimal digits, as the specification wants them.
fn hex<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    let digits = text.as_bytes();
    if digits.len() != 2 * BYTES || digits.iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        let [high, low] = pair else { return None };
        *byte = u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?;
    }
    Some(bytes)
}

/// A batch that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchTrace {
    /// When it got its permit, on the monotonic clock.
    pub began_at: Duration,
    /// How long it held its permits: what it took of the database and the cache.
    pub took: Duration,
    /// How much of that it spent until its rows were read.
    pub read: Duration,
    /// How many tenants it was for.
    pub tenants: usize,
    /// The kind of its failure, if it failed.
    pub failed: Option<&'static str>,
}

/// The slowest batches of a run, and the first ones that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchTraces {
    slowest: Vec<BatchTrace>,
    failed: Vec<BatchTrace>,
}

impl BatchTraces {
    /// Adds a batch.
    pub fn add(&mut self, batch: BatchTrace) {
        if batch.failed.is_some() {
            if self.failed.len() < MOST {
                self.failed.push(batch);
            }
            return;
        }
        let place = self.slowest.partition_point(|slower| slower.took >= batch.took);
        if place < MOST {
            self.slowest.truncate(MOST - 1);
            self.slowest.insert(place.min(self.slowest.len()), batch);
        }
    }

    /// Adds those of another part of the run.
    pub fn extend(&mut self, others: Self) {
        let Self { slowest, failed } = others;
        slowest.into_iter().chain(failed).for_each(|batch| self.add(batch));
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &BatchTrace> {
        self.slowest.iter().chain(&self.failed)
    }

    /// How long the slowest batch took.
    pub fn longest(&self) -> Duration {
        self.slowest.first().map_or(Duration::ZERO, |batch| batch.took)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_the_specification_has_it() {
        let parent =
            TraceParent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        assert_eq!(parent.trace[..2], [0x4b, 0xf9]);
        assert_eq!((parent.span[7], parent.is_sampled), (0xb7, true));
        let later = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more";
        assert!(!TraceParent::parse(later).unwrap().is_sampled);
    }

    #[test]
    fn a_header_that_is_not_valid_is_none() {
        for header in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
            "00-ü4bf92f3577b34da6a3ce929d0e0e47-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceParent::parse(header), None, "{header}");
        }
    }

    #[test]
    fn the_slowest_batches_are_kept_and_the_first_that_failed() {
        let batch = |millis: u64, failed| BatchTrace {
            began_at: Duration::ZERO,
            took: Duration::from_millis(millis),
            read: Duration::ZERO,
            tenants: 1,
            failed,
        };
        let (mut all, mut half) = (BatchTraces::default(), BatchTraces::default());
        for number in 0..50 {
            let part = if number % 2 == 0 { &mut all } else { &mut half };
            // 7 and 50 have no common divisor: all of 0 to 49, mixed.
            part.add(batch(number * 7 % 50, None));
            part.add(batch(number, Some("query")));
        }
        all.extend(half);
        let kept: Vec<_> = all.slowest.iter().map(|batch| batch.took.as_millis()).collect();
        assert_eq!(kept, [49, 48, 47, 46, 45, 44, 43, 42, 41, 40]);
        assert_eq!(all.longest(), Duration::from_millis(49));
        assert_eq!((all.failed.len(), all.iter().count()), (10, 20));
    }
}
