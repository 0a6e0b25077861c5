//! What the long-running processes tell about themselves, alike in all three: log lines with task and
//! run, traces by OTLP, and the shapes that their metrics share (feature `telemetry`).
//!
//! - [`args`]: the options, the same in each program.
//! - [`audit`]: records of what somebody may have to account for, among those lines.
//! - [`logs`]: lines on standard error, each with the context that it was written in.
//! - [`ids`]: names of traces and spans, computed from uids, so that nobody has to pass them on.
//! - [`traces`]: spans, told once what they stand for is over.
//! - [`metrics`]: buckets and text form.

pub mod args;
pub mod audit;
pub mod ids;
pub mod logs;
pub mod metrics;
pub mod traces;

pub use self::{
    args::TelemetryArgs,
    traces::{Told, Tracer},
};
