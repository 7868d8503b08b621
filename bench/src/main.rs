//! Runs the bench: see the crate's documentation.

use std::process::ExitCode;

fn main() -> ExitCode {
    bench::main()
}
