//! Replicas that share the tenants, as real processes.

mod chaos;
