//! A cache whose primary is found through Sentinels, and fails over.

mod failover;
mod finds;
