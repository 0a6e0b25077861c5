//! The controller of agent-operator.

pub mod fleet;
pub mod lease;
