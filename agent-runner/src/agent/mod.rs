//! Running the task's agent: the Claude Code CLI or any program of the image.

pub(crate) mod claude;
pub(crate) mod command;
pub(crate) mod prompt;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use agent_operator::domain::{Reason, Usage, assignment::AgentKind, limits::OUTPUT_BYTES_MAX};

use crate::{context::Context, files::read_bounded, result::Failure};

/// Where the agent writes title and body of the pull request.
const PULL_REQUEST_FILE: &str = "pull-request.json";
/// Largest pull request file: the body's limit of 60,000 bytes as JSON with escapes.
const PULL_REQUEST_FILE_BYTES_MAX: u64 = 512 * 1024;
/// Files in which repositories speak to coding agents; the first that exists is passed on. The
/// agent's own way of loading them is off, since it would load the repository's settings too.
const GUIDES: [&str; 2] = ["CLAUDE.md", "AGENTS.md"];
/// Longest guide: it is part of every model call.
const GUIDE_BYTES_MAX: u64 = 32 * 1024;
/// Read a little more than is kept, so that the cut is by the usual rule.
const OUTPUT_FILE_BYTES_MAX: u64 = 64 * OUTPUT_BYTES_MAX as u64;

/// Files between runner and agent, outside the work tree.
#[derive(Debug)]
pub(crate) struct StepFiles {
    folder: PathBuf,
    instructions: String,
    has_plan: bool,
    has_feedback: bool,
}

impl StepFiles {
    /// Writes what the agent may read about its work in `directory`.
    pub(crate) fn write(context: &Context<'_>, directory: &Path) -> io::Result<Self> {
        let spec = context.spec;
        let folder = context.layout.files();
        let guide = GUIDES
            .iter()
            .find_map(|name| read_bounded(&directory.join(name), GUIDE_BYTES_MAX).ok());
        let pull_request = folder.join(PULL_REQUEST_FILE);
        let instructions =
            prompt::instructions(spec, guide.as_deref(), &pull_request.to_string_lossy());
        let files = Self {
            folder,
            instructions,
            has_plan: spec.plan.is_some(),
            has_feedback: spec.feedback.is_some(),
        };
        fs::create_dir_all(&files.folder)?;
        fs::write(files.path("prompt.md"), prompt::prompt(spec))?;
        fs::write(files.path("instructions.md"), &files.instructions)?;
        if let Some(plan) = &spec.plan {
            fs::write(files.path("plan.md"), plan)?;
        }
        if let Some(feedback) = &spec.feedback {
            fs::write(files.path("feedback.txt"), feedback)?;
        }
        Ok(files)
    }

    /// The agent's instructions.
    pub(crate) fn instructions(&self) -> &str {
        &self.instructions
    }

    /// What a `Command` agent wrote as its output.
    pub(crate) fn read_output(&self) -> Option<String> {
        let text = read_bounded(&self.path("output.md"), OUTPUT_FILE_BYTES_MAX).ok()?;
        (!text.trim().is_empty()).then_some(text)
    }

    /// The file with title and body of the pull request.
    pub(crate) fn read_pull_request(&self) -> io::Result<String> {
        read_bounded(&self.path(PULL_REQUEST_FILE), PULL_REQUEST_FILE_BYTES_MAX)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn add_to(&self, environment: &mut BTreeMap<String, OsString>) {
        let mut add = |name: &str, file: &str| {
            environment.insert(name.to_owned(), self.path(file).into());
        };
        add("AGENT_PROMPT_FILE", "prompt.md");
        add("AGENT_INSTRUCTIONS_FILE", "instructions.md");
        add("AGENT_OUTPUT_FILE", "output.md");
        add("AGENT_PULL_REQUEST_FILE", PULL_REQUEST_FILE);
        if self.has_plan {
            add("AGENT_PLAN_FILE", "plan.md");
        }
        if self.has_feedback {
            add("AGENT_FEEDBACK_FILE", "feedback.txt");
        }
    }
}

/// What an agent that ended well left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AgentOutput {
    /// Its final text.
    pub(crate) text: String,
    /// What it says it used.
    pub(crate) usage: Usage,
    /// The program whose exit code was looked at, for a `Command` agent.
    pub(crate) command: Option<Vec<String>>,
}

/// An agent that did not end well.
#[derive(Debug)]
pub(crate) struct AgentFailure {
    /// Why.
    pub(crate) failure: Failure,
    /// What it says it used until then.
    pub(crate) usage: Usage,
}

impl From<Failure> for AgentFailure {
    fn from(failure: Failure) -> Self {
        Self { failure, usage: Usage::default() }
    }
}

/// Runs the task's agent in `directory`.
pub(crate) fn run(
    context: &Context<'_>,
    files: &StepFiles,
    directory: &Path,
) -> Result<AgentOutput, AgentFailure> {
    match &context.spec.agent {
        AgentKind::ClaudeCode => claude::run(context, files, directory),
        AgentKind::Command { command } if command.is_empty() => {
            Err(Failure::new(Reason::InvalidTask, "spec.agent.command is empty").into())
        }
        AgentKind::Command { command } => command::run(context, files, directory, command),
    }
}

/// Environment of the agent: the image's, the proxy, git, the model, and the files.
fn environment(context: &Context<'_>, files: &StepFiles) -> BTreeMap<String, OsString> {
    let mut environment = context.base_environment();
    context.add_proxy(&mut environment);
    context.add_git(&mut environment, &[]);
    files.add_to(&mut environment);
    let base_url = format!("{}/llm", context.gateway.trim_end_matches('/'));
    for (name, value) in [
        ("AGENT_STEP", context.spec.step.as_str()),
        ("ANTHROPIC_BASE_URL", base_url.as_str()),
        ("ANTHROPIC_API_KEY", context.agent_token),
    ] {
        environment.insert(name.to_owned(), value.into());
    }
    environment
}

#[cfg(test)]
mod tests {
    use agent_operator::domain::StepName;

    use super::*;
    use crate::testing::{Fixture, spec};

    #[test]
    fn the_agent_finds_its_files_by_the_environment() {
        let mut fixture = Fixture::new();
        fixture.spec = spec(StepName::Implement);
        fixture.spec.feedback = Some("it failed".to_owned());
        fs::write(fixture.layout.workspace.join("AGENTS.md"), "use tabs").unwrap();
        let context = fixture.context();
        let files = StepFiles::write(&context, &context.layout.workspace).unwrap();
        let variables = environment(&context, &files);
        let text_of = |name: &str| fs::read_to_string(&variables[name]).unwrap();
        assert_eq!(text_of("AGENT_PROMPT_FILE"), "Add a /healthz endpoint");
        assert_eq!(text_of("AGENT_FEEDBACK_FILE"), "it failed");
        let instructions = text_of("AGENT_INSTRUCTIONS_FILE");
        assert!(instructions.starts_with("Step: implement"));
        assert!(instructions.contains("use tabs"));
        assert!(!variables.contains_key("AGENT_PLAN_FILE"));
        assert_eq!(variables["ANTHROPIC_BASE_URL"], "http://127.0.0.1:1/llm");
        assert_eq!(variables["AGENT_STEP"], "implement");
    }

    #[test]
    fn an_output_file_counts_only_with_something_in_it() {
        let fixture = Fixture::new();
        let files = StepFiles::write(&fixture.context(), &fixture.layout.workspace).unwrap();
        assert_eq!(files.read_output(), None);
        fs::write(files.path("output.md"), " \n").unwrap();
        assert_eq!(files.read_output(), None);
        fs::write(files.path("output.md"), "a plan").unwrap();
        assert_eq!(files.read_output().unwrap(), "a plan");
    }
}
