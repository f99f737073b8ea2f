//! What the allocator sees: allocations a request and a frame, and the heap of idle streams.
//!
//! Run by the benchmark `compare`; alone: `cargo bench --bench heap [-- --quick] [--only PART]`.

mod fan_in;
mod idle;
mod streams;
#[path = "../support/mod.rs"]
mod support;

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() {
    let only = support::option("--only").unwrap_or_default();
    if only == "idle_table" {
        return idle::table();
    }
    if "heap".starts_with(&*only) {
        streams::run();
        fan_in::run();
    }
    if "idle".starts_with(&*only) {
        idle::run();
    }
}

/// Bytes allocated and not freed.
fn live() -> isize {
    let stats = HEAP.stats();
    stats.bytes_allocated as isize - stats.bytes_deallocated as isize
}

/// Allocations so far, reallocations included.
fn allocations() -> usize {
    let stats = HEAP.stats();
    stats.allocations + stats.reallocations
}
