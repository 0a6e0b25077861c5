//! Sentences for people, always made of the same parts: which step, which attempt, which command,
//! which exit code, and the last lines.

use std::fmt::Write as _;

use agent_operator::{
    crd::AgentRunStatus,
    domain::{
        Attempt, NodeName, Reason, StepName,
        limits::MESSAGE_BYTES_MAX,
        text::{printable, tail, truncate},
    },
};

/// Share of a message that output may take: the rest is the sentence before it.
const LAST_LINES_BYTES_MAX: usize = 1024;
/// Longest command shown in a message.
const COMMAND_BYTES_MAX: usize = 256;
/// Longest sentence of a run taken over into the task's message.
const SENTENCE_BYTES_MAX: usize = 512;

/// A step that was handed out and has not ended.
pub(super) fn handed_out(step: StepName, attempt: Attempt, node: &NodeName) -> String {
    format!("step {step} (attempt {attempt}) is with node {node}")
}

/// How a run failed.
pub(super) fn failure(
    step: StepName,
    attempt: Attempt,
    reason: Option<Reason>,
    status: Option<&AgentRunStatus>,
) -> String {
    let reason = reason.map_or("unknown reason", Reason::as_str);
    let mut text = format!("step {step} (attempt {attempt}) failed with {reason}");
    if let Some(status) = status {
        if !status.command.is_empty() {
            let command = status.command.join(" ");
            let _ = write!(text, ": command `{}`", truncate(&command, COMMAND_BYTES_MAX));
        }
        if let Some(code) = status.exit_code {
            let _ = write!(text, ", exit code {code}");
        }
        if let Some(sentence) = status.message.as_deref().filter(|text| !text.is_empty()) {
            let _ = write!(text, ": {}", truncate(sentence, SENTENCE_BYTES_MAX));
        }
        if let Some(output) = status.output.as_deref().map(str::trim_end)
            && !output.is_empty()
        {
            let _ = write!(text, "; last lines:\n{}", tail(output, LAST_LINES_BYTES_MAX));
        }
    }
    bounded(&text)
}

/// `text` without control characters and within the limit of a message.
pub(super) fn bounded(text: &str) -> String {
    truncate(&printable(text), MESSAGE_BYTES_MAX).to_owned()
}
