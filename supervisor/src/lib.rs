//! Supervisor and gateway of agent-operator.

pub mod gateway;
pub mod link;
