//! Typed events of an agent, one JSON object a line on the EVENTS channel.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::usage::Usage;

/// One line of the EVENTS channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventRecord {
    /// When the runner saw it (the sandbox's clock; for display only).
    pub time: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub event: AgentEvent,
}

/// What an agent did. All text is bounded by `limits::EVENT_BYTES_MAX` a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum AgentEvent {
    /// The runner itself: cloned, running tests, committed.
    Status {
        /// One line for people.
        text: String,
    },
    /// Text of the assistant.
    Text {
        /// The text.
        text: String,
    },
    /// The agent calls a tool.
    ToolCall {
        /// Pairs the call with its result.
        id: String,
        /// Tool name.
        name: String,
        /// Arguments as JSON text.
        input: String,
    },
    /// A tool answered.
    ToolResult {
        /// The call's id.
        id: String,
        /// What it printed.
        output: String,
        /// Whether it failed.
        #[serde(rename = "isError")]
        is_error: bool,
    },
    /// What the agent itself says it used; for display, budgets never rest on it.
    Usage {
        /// The figures.
        usage: Usage,
    },
}
