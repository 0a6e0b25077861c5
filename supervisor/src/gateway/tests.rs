//! The whole gateway on loopback, driven as a sandbox and as a supervisor would.

mod audit;
mod charged;
mod connect;
mod flood;
mod gate;
mod heads;
mod held;
mod journey;
mod model;
mod proxied;
mod raw;
mod reports;
mod restart;
mod rig;
mod telemetry;
mod tokens;
