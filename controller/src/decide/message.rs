//! Sentences for people, always made of the same parts: which step, which attempt, which command,
//! which exit code, and the last lines.

use std::{fmt::Write as _, time::Duration};

use agent_operator::{
    crd::AgentRunStatus,
    domain::{
        Attempt, GoDuration, NodeName, Reason, StepName,
        limits::MESSAGE_BYTES_MAX,
        text::{head_and_tail, printable, tail, truncate},
    },
};

use super::retry::REPLACE_BACKOFF_MAX;

/// Longest words of a server in a message, remedy included: the rest is the sentence around them.
const TROUBLE_BYTES_MAX: usize = 1536;
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

/// A step that something keeps from starting, with the way out and what is done meanwhile.
pub(super) fn held_up(step: StepName, trouble: &str, task_timeout: Duration) -> String {
    let trouble = head_and_tail(trouble, TROUBLE_BYTES_MAX);
    bounded(&format!(
        "step {step} cannot start: {trouble}; it is tried again after a pause that doubles up to {}, without using up a retry, until the task's timeout of {}",
        duration(REPLACE_BACKOFF_MAX),
        duration(task_timeout)
    ))
}

/// What is done while no node can take a step.
pub(super) fn waits_for_node(pause: Duration, task_timeout: Duration) -> String {
    format!(
        "nodes are looked at again when they change and at least every {}, until the task's timeout of {}",
        duration(pause),
        duration(task_timeout)
    )
}

fn duration(duration: Duration) -> GoDuration {
    GoDuration::from_secs(duration.as_secs())
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
