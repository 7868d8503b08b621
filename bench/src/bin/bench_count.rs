//! Counts allocations: see `bench::count`. A program of its own, for what is measured elsewhere must not be counted.

use std::{alloc::System, process::ExitCode};

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() -> ExitCode {
    bench::count(ALLOCATOR)
}
