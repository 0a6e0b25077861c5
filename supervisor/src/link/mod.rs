//! The socket between supervisor and gateway.

pub mod client;
pub mod contract;
pub mod frame;
