//! The `preheat` program: command line → exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    preheat::cli::main()
}
