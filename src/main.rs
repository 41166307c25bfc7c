//! The `preheat` program: command line → exit code.

fn main() {}
