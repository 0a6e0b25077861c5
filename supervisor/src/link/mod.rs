//! The socket between supervisor and gateway.

pub mod contract;
pub mod frame;
