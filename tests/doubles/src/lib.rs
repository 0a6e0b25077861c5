//! Test doubles for what cannot run beside the tests.
//!
//! [`half_open`]: a connection that dies without a word.
//!
//! [`process`]: a process of ours that is left without file descriptors or memory.
//!
//! [`fuzz`]: damaged input for parsers, for a bounded time.
//!
//! [`runtime_events`]: what a container runtime says of starts and ends. [`audit`]: what an API server says of requests.
//!
//! [`assignment`]: an order of the controller. [`git_http`]: an upstream of git.
//!
//! The scripted model speaks Anthropic's Messages API and answers by script instead of by model,
//! so that the real Claude Code CLI runs whole steps without the real service. It keeps no state
//! between requests but a record of them: each answer follows from the conversation alone.
//!
//! - [`server`]: routes, authentication, the record of requests.
//! - [`conversation`]: what a request says about step, turn and script.
//! - [`script`]: the answer to it.
//! - [`wire`]: the answer as JSON or as server-sent events.
//!
//! `network` (a feature) is a company's network: a proxy with a password, and a certificate authority of its own.
//! `collector` (a feature) takes traces by OTLP over gRPC and keeps them for tests to look at.
//! Beside it, [`history`] judges what witnesses saw of the whole system under faults.

pub mod assignment;
pub mod audit;
#[cfg(feature = "collector")]
pub mod collector;
pub mod conversation;
pub mod fuzz;
pub mod git_http;
pub mod half_open;
pub mod history;
#[cfg(feature = "network")]
pub mod network;
pub mod process;
pub mod runtime_events;
pub mod script;
pub mod server;
pub mod wire;

pub use server::{Options, Recorded, ScriptedModel};
