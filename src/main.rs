//! The `fencegate` command.

use std::process::ExitCode;

/// A request makes and frees about twenty objects, half of them above what the system's allocator
/// keeps at hand.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    fencegate::cli::main()
}
