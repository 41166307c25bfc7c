//! The worker in real life: the real program with real servers.

mod changes;
mod connections;
mod fleet;
mod fleet_as_one;
mod history;
mod life;
mod openapi;
mod pause;
mod rejected;
mod reload;
mod restart;
mod schedules;
mod shutdown;
mod start;
mod tenants;
mod traces;
