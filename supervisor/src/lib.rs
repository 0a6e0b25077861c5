//! Supervisor and gateway of agent-operator: what runs on every node.
//!
//! The daemon ([`daemon`], [`session`], [`steps`], [`pod`], [`streams`], [`ledger`]) and the gateway
//! ([`gateway`]) are two processes that share no memory; they meet at [`link`] alone. The enforcer
//! ([`enforcer`]) is a third one, which takes one kind of order ([`enforcer::contract`]).
//! Daemon and gateway watch for secrets with [`scrub`].

pub mod args;
pub mod clock;
pub mod daemon;
pub mod enforcer;
pub mod gateway;
pub mod health;
pub mod ledger;
pub mod link;
pub mod metrics;
pub mod pod;
pub mod room;
pub mod scrub;
pub mod session;
pub mod steps;
pub mod streams;
#[cfg(test)]
pub(crate) mod testing;
