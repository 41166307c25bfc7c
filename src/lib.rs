//! preheat keeps every active tenant's Redis keys warm from Postgres.
//!
//! The map, in reading order; data goes down once and nothing calls back up:
//!
//! 1. [`domain`]: the words and the rules. No I/O, no async, no clock.
//! 2. [`definition`]: turns job files into checked jobs, or lists every problem in them.
//! 3. [`engine`]: decides when a job runs and how a run goes; [`engine::ports`] is what it needs from outside.
//! 4. [`audit`]: compares the cache with the database. [`invalidate`]: removes keys on request, fences first.
//!    [`estimate`]: says what a run would do, for `preheat plan`. [`overview`]: what an operator asks of a worker.
//!    [`keys`]: writes typed key builders for applications.
//! 5. [`adapter`]: implements the engine's ports with Postgres, Redis, the clock and the bell.
//! 6. [`observe`]: turns each event into one log line and its metrics, in one place.
//! 7. [`http`]: the control plane.
//! 8. [`config`], [`telemetry`], [`app`], [`cli`]: settings, logs, wiring, commands.
//!
//! `preheat demo` is a cargo feature: it alone needs the member `sandbox`, which starts servers.
//! `ARCHITECTURE.md` follows one run from start to end; `tests/it/architecture.rs` holds the modules to this map.

pub mod adapter;
pub mod app;
pub mod audit;
pub mod cli;
pub mod config;
pub mod definition;
pub mod domain;
pub mod engine;
pub mod estimate;
pub mod http;
pub mod invalidate;
pub mod keys;
pub mod observe;
pub mod overview;
pub mod telemetry;
