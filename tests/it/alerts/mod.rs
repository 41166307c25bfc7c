//! The alerts with their tests and runbook, and the board: what they read exists, and they say when they should.

mod board;
mod documents;
mod expression;
mod prometheus;
mod rules;

use serde::de::DeserializeOwned;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A file of the repository.
fn read(path: &str) -> String {
    std::fs::read_to_string(format!("{ROOT}/{path}"))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml<T: DeserializeOwned>(path: &str) -> T {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Fails the test if there are problems, and names them all.
#[expect(clippy::needless_pass_by_value, reason = "callers hand over what they collected")]
fn none(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}
