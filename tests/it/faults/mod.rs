//! The worker under faults: its servers fail, hang and come back, and its data are hostile. After
//! the fault the cache equals the database again, and no reader has ever got half a value.

mod cache;
mod connections;
mod data;
mod database;
mod keys;
mod load;
