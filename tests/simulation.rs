//! The real controller and the real supervisors in one process under paused time, over an API server
//! in memory, with faults drawn from a seed. See `simulation/mod.rs`.

// Helpers of tests fail by panicking, as the tests themselves do.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)]
#![allow(
    clippy::similar_names,
    clippy::struct_field_names,
    reason = "the words of the API server stay"
)]

#[macro_use]
mod conformance;
#[path = "simulation/mod.rs"]
mod simulation;
