//! The Claude Code CLI: started, and its `stream-json` output turned into lines and typed events.

mod stream;

use std::{collections::BTreeMap, ffi::OsString, path::Path};

use agent_operator::domain::Reason;

use self::stream::{Finished, Stream};
use super::{AgentFailure, AgentOutput, StepFiles, environment};
use crate::{
    confine::Invocation, context::Context, output::Shown, process::Errors, result::Failure,
};

/// Name of the CLI in the runner volume.
const PROGRAM: &str = "claude";
/// What is kept of the CLI's error output, for the message of a failure.
const ERROR_BYTES_MAX: usize = 4 * 1024;

/// Settings of every run. What a repository brings is content: its settings (hooks, key helpers,
/// environment) and MCP servers are not loaded at all, see `--setting-sources` below.
const SETTINGS: &str = r#"{"disableAllHooks":true,"includeCoAuthoredBy":false}"#;

/// Tools that make no sense in a run that ends with its prompt, or put changes elsewhere than into
/// the work tree that is committed.
const DISALLOWED_TOOLS: &str =
    "EnterWorktree,ExitWorktree,CronCreate,CronDelete,CronList,ScheduleWakeup";

/// Variables that keep the CLI from calling anything but the model, and from waiting.
const QUIET: [(&str, &str); 6] = [
    ("DISABLE_TELEMETRY", "1"),
    ("DISABLE_ERROR_REPORTING", "1"),
    ("DISABLE_AUTOUPDATER", "1"),
    ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
    // One prompt, one run: no background task outlives it.
    ("CLAUDE_CODE_DISABLE_BACKGROUND_TASKS", "1"),
    ("CI", "true"),
];

/// Runs the CLI in `directory`, with the instructions on its standard input.
pub(super) fn run(
    context: &Context<'_>,
    files: &StepFiles,
    directory: &Path,
) -> Result<AgentOutput, AgentFailure> {
    let prompt = files.instructions();
    let invocation = Invocation {
        command: command_line(context),
        directory: directory.to_owned(),
        environment: claude_environment(context, files),
        only_port: None,
    };
    context.status("starting Claude Code");
    let mut stream = Stream::new(context.printer, context.events);
    let mut errors = Shown::new(context.printer, ERROR_BYTES_MAX);
    let ended = context
        .run(&invocation, prompt.as_bytes(), &mut stream, Errors::Apart(&mut errors))
        .map_err(|error| Failure::new(Reason::AgentFailed, error.to_string()))?;
    let (finished, usage) = stream.finish();
    let fail = |failure| Err(AgentFailure { failure, usage });
    if let Some(stopping) = ended.stopped {
        return fail(stopping.into());
    }
    let code = ended.exit_code;
    match finished {
        Some(Finished { text, error: None, .. }) if code == 0 => {
            Ok(AgentOutput { text, usage, command: None })
        }
        Some(finished) => fail(finished.into_failure(code)),
        None => {
            let errors = errors.finish();
            let last = errors.trim().lines().next_back().unwrap_or("it said nothing");
            let message = format!("Claude Code exited with {code} and without a result: {last}");
            fail(Failure::with_exit_code(Reason::AgentFailed, message, code))
        }
    }
}

fn command_line(context: &Context<'_>) -> Vec<String> {
    let program = context.layout.runner.join(PROGRAM);
    let mut command = vec![program.to_string_lossy().into_owned()];
    let fixed = [
        "--print",
        "--dangerously-skip-permissions",
        "--output-format",
        "stream-json",
        "--verbose",
        "--setting-sources",
        "user",
        "--strict-mcp-config",
        "--disallowedTools",
        DISALLOWED_TOOLS,
        "--no-session-persistence",
        "--settings",
        SETTINGS,
    ];
    command.extend(fixed.map(str::to_owned));
    if let Some(model) = &context.spec.model {
        command.extend(["--model".to_owned(), model.clone()]);
    }
    if let Some(turns) = context.spec.max_turns {
        command.extend(["--max-turns".to_owned(), turns.to_string()]);
    }
    command
}

fn claude_environment(context: &Context<'_>, files: &StepFiles) -> BTreeMap<String, OsString> {
    let mut environment = environment(context, files);
    for (name, value) in QUIET {
        environment.insert(name.to_owned(), value.into());
    }
    environment
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fixture;

    #[test]
    fn model_and_turn_limit_are_passed_on() {
        let mut fixture = Fixture::new();
        fixture.spec.model = Some("some-model".to_owned());
        fixture.spec.max_turns = Some(12);
        let line = command_line(&fixture.context()).join(" ");
        assert!(line.contains("--model some-model --max-turns 12"), "{line}");
        assert!(line.contains("--output-format stream-json --verbose"), "{line}");
        assert!(serde_json::from_str::<serde_json::Value>(SETTINGS).is_ok());
    }

    #[test]
    fn the_prompt_is_not_on_the_command_line() {
        let fixture = Fixture::new();
        let context = fixture.context();
        assert!(!command_line(&context).join(" ").contains("healthz"));
    }
}
