//! The examples, as a reader of them would run them.

mod clinic;
