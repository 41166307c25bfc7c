//! The worker as it lives: the real program, with real servers.

mod changes;
mod connections;
mod history;
mod life;
mod reload;
mod restart;
mod schedules;
mod shutdown;
mod start;
mod tenants;
