//! The whole gateway on loopback, driven as a sandbox and as a supervisor would.

mod connect;
mod heads;
mod journey;
mod model;
mod proxied;
mod raw;
mod reports;
mod restart;
mod rig;
mod telemetry;
mod tokens;
