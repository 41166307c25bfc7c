//! preheat keeps every active tenant's Redis keys warm from Postgres.
//!
//! The map, in reading order; data goes down once and nothing calls back up:
//!
//! 1. [`domain`]: the words and the rules. No I/O, no async, no clock.
//! 2. [`definition`]: job files → checked jobs, or every problem in them.
//! 3. [`engine`]: when a job runs and how a run goes; what it needs of the world is [`engine::ports`].
//! 4. [`audit`]: the cache against the database. [`invalidate`]: removal on request, fences first.
//! 5. [`adapter`]: the world behind those ports: Postgres, Redis, the clock, the bell.
//! 6. [`observe`]: one event, one place: a log line and its metrics.
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
pub mod observe;
pub mod telemetry;
