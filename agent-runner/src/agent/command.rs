//! An agent that is any program of the image. It reads its files by the `AGENT_*_FILE` variables
//! and writes its output to `AGENT_OUTPUT_FILE`, or just prints it.

use std::path::Path;

use agent_operator::domain::{Reason, Usage, event::AgentEvent, limits::OUTPUT_BYTES_MAX};

use super::{AgentFailure, AgentOutput, StepFiles, environment};
use crate::{
    confine::Invocation, context::Context, output::Shown, process::Errors, result::Failure,
    verify::shell_words,
};

/// Runs `command` in `directory`.
pub(crate) fn run(
    context: &Context<'_>,
    files: &StepFiles,
    directory: &Path,
    command: &[String],
) -> Result<AgentOutput, AgentFailure> {
    let shown = shell_words(command);
    context.status(&format!("running {shown}"));
    let invocation = Invocation {
        command: command.to_vec(),
        directory: directory.to_owned(),
        environment: environment(context, files),
        only_port: None,
    };
    let mut output = Shown::new(context.printer, OUTPUT_BYTES_MAX);
    let mut errors = Shown::new(context.printer, OUTPUT_BYTES_MAX);
    let ended = context
        .run(&invocation, b"", &mut output, Errors::Apart(&mut errors))
        .map_err(|error| Failure::new(Reason::AgentFailed, error.to_string()))?;
    if let Some(stopping) = ended.stopped {
        return Err(Failure::from(stopping).into());
    }
    let (printed, errors) = (output.finish(), errors.finish());
    if ended.exit_code != 0 {
        let last = errors.trim().lines().next_back().unwrap_or_default();
        let message = format!("`{shown}` exited with {}: {last}", ended.exit_code);
        let message = message.trim_end_matches([':', ' ']);
        let failure = Failure::with_exit_code(Reason::AgentFailed, message, ended.exit_code);
        return Err(failure.into());
    }
    let text = files.read_output().unwrap_or(printed);
    context.events.push(AgentEvent::Text { text: text.clone() });
    Ok(AgentOutput { text, usage: Usage::default(), command: Some(command.to_vec()) })
}
