//! What `deploy/` has for operators: it is valid, and what it says of the program is true.

mod image;
mod kubernetes;
mod systemd;

use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn path(file: &str) -> PathBuf {
    Path::new(ROOT).join(file)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}
