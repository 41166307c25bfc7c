//! The `preheat` program: command line → exit code.

use std::process::ExitCode;

/// Batches come and go on all threads; its memory goes back sooner and it is faster at it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    preheat::cli::main()
}
