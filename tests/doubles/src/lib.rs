//! Test doubles for what cannot run beside the tests.
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
//! Beside it, [`history`] judges what witnesses saw of the whole system under faults.

pub mod conversation;
pub mod history;
pub mod script;
pub mod server;
pub mod wire;

pub use server::{Options, Recorded, ScriptedModel};
