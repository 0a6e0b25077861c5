//! The four steps.

use std::time::Duration;

use agent_operator::{
    attempt::{PullRequestAnswer, PullRequestRequest},
    domain::{
        Reason, StepName,
        limits::OUTPUT_BYTES_MAX,
        report::StepFacts,
        text::{head_and_tail, printable, truncate},
    },
};
use serde::Deserialize;

use crate::{
    agent::{self, AgentOutput, StepFiles},
    attempt::until_stopped,
    context::Context,
    result::{Failure, StepEnd},
    verify::verify,
    workspace::{Committed, Workspace, publish, subject},
};

/// What the contract takes of a title.
const TITLE_BYTES_MAX: usize = 256;
/// What the contract takes of a body.
const BODY_BYTES_MAX: usize = 60_000;
/// Opening a pull request waits for the forge.
const PULL_REQUEST_LIMIT: Duration = Duration::from_mins(2);

/// Runs the step to its end.
pub(crate) fn run(context: &Context<'_>) -> StepEnd {
    let result = Workspace::clone(context).and_then(|workspace| match context.spec.step {
        StepName::Plan => with_agent(context, &workspace, plan),
        StepName::Implement => with_agent(context, &workspace, implement),
        StepName::Test => {
            verify(context, &workspace.directory, context.spec.test_command.as_deref())
        }
        StepName::PullRequest => with_agent(context, &workspace, pull_request),
    });
    let mut end = result.unwrap_or_else(StepEnd::from).stopped_by(context.stop.order());
    end.facts.base_commit = Some(context.spec.repository.base_commit.clone());
    end
}

/// What follows an agent that ended well.
type Finish = fn(&Context<'_>, &Workspace, &StepFiles, AgentOutput) -> Result<StepEnd, Failure>;

fn with_agent(
    context: &Context<'_>,
    workspace: &Workspace,
    finish: Finish,
) -> Result<StepEnd, Failure> {
    let files = StepFiles::write(context, &workspace.directory).map_err(|error| {
        Failure::new(Reason::InvalidTask, format!("the workspace cannot be written: {error}"))
    })?;
    let (result, usage) = match agent::run(context, &files, &workspace.directory) {
        Ok(output) => {
            let usage = output.usage;
            (context.check_stop().and_then(|()| finish(context, workspace, &files, output)), usage)
        }
        Err(failed) => (Err(failed.failure), failed.usage),
    };
    let end = result.unwrap_or_else(StepEnd::from);
    Ok(StepEnd { reported_usage: usage, ..end })
}

fn plan(
    context: &Context<'_>,
    _: &Workspace,
    _: &StepFiles,
    output: AgentOutput,
) -> Result<StepEnd, Failure> {
    let text = printable(output.text.trim());
    if text.is_empty() {
        return Err(Failure::new(Reason::AgentFailed, "the agent ended without a plan"));
    }
    context.status("the plan is written");
    let facts = StepFacts {
        output: Some(head_and_tail(&text, OUTPUT_BYTES_MAX)),
        command: output.command,
        ..StepFacts::default()
    };
    Ok(StepEnd::completed("the plan is written", facts))
}

fn implement(
    context: &Context<'_>,
    workspace: &Workspace,
    _: &StepFiles,
    output: AgentOutput,
) -> Result<StepEnd, Failure> {
    let Committed::Tip(commit) = workspace.commit(context)? else {
        return Err(Failure::new(Reason::NoChanges, "the agent ended well but changed nothing"));
    };
    workspace.push(context)?;
    let published = publish(context, &commit)?;
    let short = &published.head_commit[..published.head_commit.len().min(12)];
    let message = format!("{} is at {short}", published.work_branch);
    context.status(&message);
    let facts = StepFacts {
        command: output.command,
        head_commit: Some(published.head_commit),
        work_branch: Some(published.work_branch),
        ..StepFacts::default()
    };
    Ok(StepEnd::completed(message, facts))
}

fn pull_request(
    context: &Context<'_>,
    _: &Workspace,
    files: &StepFiles,
    output: AgentOutput,
) -> Result<StepEnd, Failure> {
    let request = match files.read_pull_request().map(|text| written(&text)) {
        Ok(Some(request)) => request,
        Ok(None) => {
            context.status("the agent's pull request file is malformed: using the prompt");
            from_prompt(context)
        }
        Err(_) => {
            context.status("the agent wrote no pull request file: using the prompt");
            from_prompt(context)
        }
    };
    context.status(&format!("opening the pull request: {}", request.title));
    let client = context.client.clone();
    let opened: PullRequestAnswer = until_stopped(context.stop, Duration::MAX, move || {
        client.post("/v1/pull-request", &request, PULL_REQUEST_LIMIT)
    })
    .map_err(|error| error.into_failure(Reason::PushRefused))?;
    let message = format!("pull request {}", opened.url);
    context.status(&message);
    let facts =
        StepFacts { command: output.command, pull_request: Some(opened), ..StepFacts::default() };
    Ok(StepEnd::completed(message, facts))
}

#[derive(Deserialize)]
struct Written {
    title: String,
    #[serde(default)]
    body: String,
}

/// Title and body from the agent's file, cut and cleaned.
fn written(text: &str) -> Option<PullRequestRequest> {
    let written: Written = serde_json::from_str(text).ok()?;
    let title = printable(&written.title.split_whitespace().collect::<Vec<_>>().join(" "));
    if title.is_empty() {
        return None;
    }
    Some(bounded(&title, &printable(&written.body.replace("\r\n", "\n"))))
}

/// Title and body without the agent's help.
fn from_prompt(context: &Context<'_>) -> PullRequestRequest {
    let spec = context.spec;
    let mut body = printable(spec.prompt.trim());
    if let Some(plan) = &spec.plan {
        body.push_str("\n\n## Plan\n\n");
        body.push_str(&printable(plan.trim()));
    }
    if !spec.unverified {
        body.push_str("\n\nThe repository's tests pass on this branch.\n");
    }
    bounded(&subject(&spec.prompt), &body)
}

fn bounded(title: &str, body: &str) -> PullRequestRequest {
    PullRequestRequest {
        title: truncate(title, TITLE_BYTES_MAX).to_owned(),
        body: head_and_tail(body, BODY_BYTES_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fixture;

    #[test]
    fn title_and_body_are_bounded_and_clean() {
        let request =
            written(r#"{"title": " Add\n\u001b[31m /healthz ", "body": "a\r\nb"}"#).unwrap();
        assert_eq!(request.title, "Add \u{fffd}[31m /healthz");
        assert_eq!(request.body, "a\nb");
        let long = format!(r#"{{"title": "{0}", "body": "{0}"}}"#, "x".repeat(100_000));
        let request = written(&long).unwrap();
        assert_eq!(request.title.len(), TITLE_BYTES_MAX);
        assert!(request.body.len() <= BODY_BYTES_MAX);
    }

    #[test]
    fn a_malformed_file_is_told_from_a_good_one() {
        for text in ["", "{}", "[]", r#"{"title": 1}"#, r#"{"title": " ", "body": "x"}"#] {
            assert!(written(text).is_none(), "{text}");
        }
    }

    #[test]
    fn without_the_agents_help_the_prompt_speaks() {
        let mut fixture = Fixture::new();
        fixture.spec.plan = Some("1. do it".to_owned());
        let request = from_prompt(&fixture.context());
        assert_eq!(request.title, "Add a /healthz endpoint");
        assert!(request.body.contains("## Plan\n\n1. do it"));
        assert!(request.body.contains("tests pass"));
        fixture.spec.unverified = true;
        assert!(!from_prompt(&fixture.context()).body.contains("tests pass"));
    }
}
