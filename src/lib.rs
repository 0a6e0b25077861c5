//! Shared library of agent-operator: what controller, supervisor, gateway and agent-runner agree on.
//!
//! - [`domain`]: plain types and rules, without I/O, Kubernetes or gRPC.
//! - [`attempt`]: the HTTP contract between agent-runner and gateway.
//! - `api_client`: the client for the API server (feature `client`).
//! - [`core_dumps`]: no process of ours leaves its memory behind.
//! - `crd`: the custom resources (feature `crd`).
//! - `listen`: ports on nodes of either family of addresses (feature `telemetry`).
//! - `proto`, `convert`: the gRPC wire and its only translation (feature `proto`).
//! - `telemetry`: logs, traces and metrics of the long-running processes (feature `telemetry`).

#[cfg(feature = "client")]
pub mod api_client;
pub mod attempt;
#[cfg(feature = "proto")]
pub mod convert;
pub mod core_dumps;
#[cfg(feature = "crd")]
pub mod crd;
pub mod domain;
#[cfg(feature = "telemetry")]
pub mod listen;
#[cfg(feature = "proto")]
pub mod proto;
#[cfg(feature = "telemetry")]
pub mod telemetry;
