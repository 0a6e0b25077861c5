//! Agent events. Their time travels in the envelope (`StepEvent.time`).

use crate::{domain::event::AgentEvent, proto::v1};

use super::{ConvertError, required};

const STATUS: &str = "status";
const TEXT: &str = "text";
const TOOL_CALL: &str = "toolCall";
const TOOL_RESULT: &str = "toolResult";
const USAGE: &str = "usage";

impl TryFrom<v1::AgentEvent> for AgentEvent {
    type Error = ConvertError;

    fn try_from(wire: v1::AgentEvent) -> Result<Self, Self::Error> {
        Ok(match wire.r#type.as_str() {
            STATUS => Self::Status { text: wire.text },
            TEXT => Self::Text { text: wire.text },
            TOOL_CALL => {
                Self::ToolCall { id: wire.tool_call_id, name: wire.tool_name, input: wire.input }
            }
            TOOL_RESULT => Self::ToolResult {
                id: wire.tool_call_id,
                output: wire.output,
                is_error: wire.is_error,
            },
            USAGE => Self::Usage { usage: required("usage", wire.usage)? },
            "" => return Err(ConvertError::missing("type")),
            other => return Err(ConvertError::unknown("type", other)),
        })
    }
}

impl From<&AgentEvent> for v1::AgentEvent {
    fn from(event: &AgentEvent) -> Self {
        let of = |kind: &str| Self { r#type: kind.to_owned(), ..Self::default() };
        match event {
            AgentEvent::Status { text } => Self { text: text.clone(), ..of(STATUS) },
            AgentEvent::Text { text } => Self { text: text.clone(), ..of(TEXT) },
            AgentEvent::ToolCall { id, name, input } => Self {
                tool_call_id: id.clone(),
                tool_name: name.clone(),
                input: input.clone(),
                ..of(TOOL_CALL)
            },
            AgentEvent::ToolResult { id, output, is_error } => Self {
                tool_call_id: id.clone(),
                output: output.clone(),
                is_error: *is_error,
                ..of(TOOL_RESULT)
            },
            AgentEvent::Usage { usage } => Self { usage: Some(usage.into()), ..of(USAGE) },
        }
    }
}
