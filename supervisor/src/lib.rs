//! Supervisor and gateway of agent-operator.

pub mod clock;
pub mod gateway;
pub mod ledger;
pub mod link;
pub mod metrics;
pub mod pod;
pub mod steps;
pub mod streams;
#[cfg(test)]
pub(crate) mod testing;
