//! The `preheat` program: runs a command line and returns its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    preheat::cli::main()
}
