//! The worker as it lives: the real program, with real servers.

mod changes;
mod history;
mod life;
mod reload;
mod restart;
mod schedules;
mod shutdown;
mod tenants;
