//! The work tree: cloned from the gateway, committed, pushed into quarantine. Every git call runs
//! as a child like the agent itself, for what it reads there (hooks, filters, configuration) is the
//! agent's.

use std::{
    collections::BTreeMap, ffi::OsString, fmt::Write as _, fs, path::PathBuf, time::Duration,
};

use agent_operator::{
    attempt::Published,
    domain::{
        Reason, commit_text,
        names::TRAILER_TASK_UID,
        text::{head_and_tail, printable, tail},
    },
};

use crate::{
    attempt::until_stopped,
    confine::{EXIT_NOT_FOUND, Invocation},
    context::Context,
    output::Capture,
    process::{Errors, Sink},
    result::Failure,
};

/// What is kept of git's output: its last words say what went wrong.
const GIT_OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// How much of git's error output goes into a message.
const GIT_ERROR_BYTES_MAX: usize = 1024;
/// Longest subject line, as git's own tools expect it.
const SUBJECT_CHARS_MAX: usize = 72;
/// Publishing waits for the forge and for a fresh permission to write.
const PUBLISH_LIMIT: Duration = Duration::from_mins(2);

/// Settings of our own git calls. They come by the environment, which beats the repository's own
/// configuration. No hook, no watcher, no other transport, no signature, no prompt.
const SETTINGS: [(&str, &str); 11] = [
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("protocol.allow", "never"),
    ("protocol.http.allow", "always"),
    ("protocol.version", "2"),
    ("submodule.recurse", "false"),
    ("fetch.recurseSubmodules", "false"),
    ("commit.gpgSign", "false"),
    ("credential.helper", ""),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
];

/// What a git without its transport for http says.
const NO_HTTP: &str = "remote-http' is not a git command";

/// A cloned repository.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The work tree.
    pub(crate) directory: PathBuf,
    url: String,
}

/// What git said.
#[derive(Debug)]
struct GitOutput {
    exit_code: i32,
    stdout: String,
    stderr: String,
}

impl GitOutput {
    fn last_words(&self) -> String {
        let text = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        tail(text.trim(), GIT_ERROR_BYTES_MAX).to_owned()
    }
}

/// What a commit came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Committed {
    /// The tip to publish.
    Tip(String),
    /// The work tree is what it was.
    Nothing,
}

impl Workspace {
    /// Clones the start commit onto the work branch.
    pub(crate) fn clone(context: &Context<'_>) -> Result<Self, Failure> {
        let repository = &context.spec.repository;
        let (start, base) = (&repository.start_commit, &repository.base_commit);
        if !is_commit_id(start) || !is_commit_id(base) || !is_plain_name(&repository.name) {
            return Err(Failure::new(
                Reason::InvalidTask,
                "the repository's description is malformed",
            ));
        }
        let url = format!("{}/git/{}.git", context.gateway.trim_end_matches('/'), repository.name);
        let workspace = Self { directory: context.layout.workspace.join(&repository.name), url };
        fs::create_dir_all(&workspace.directory).map_err(|error| {
            Failure::new(Reason::InvalidTask, format!("the workspace cannot be written: {error}"))
        })?;
        let short = &start[..start.len().min(12)];
        context.status(&format!("cloning {} at {short}", repository.name));
        let branch = format!("--initial-branch={}", repository.work_branch);
        workspace.must(context, &["init", "--quiet", &branch], Reason::InvalidTask)?;
        workspace.must(
            context,
            &["remote", "add", "origin", &workspace.url],
            Reason::InvalidTask,
        )?;
        workspace.fetch(context, start, base)?;
        let base_ref = format!("refs/remotes/origin/{}", repository.base_branch);
        workspace.must(context, &["update-ref", &base_ref, base], Reason::AgentFailed)?;
        workspace.must(context, &["reset", "--quiet", "--hard", start], Reason::AgentFailed)?;
        Ok(workspace)
    }

    fn fetch(&self, context: &Context<'_>, start: &str, base: &str) -> Result<(), Failure> {
        let mut arguments =
            vec!["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--", &self.url, start];
        if base != start {
            arguments.push(base);
        }
        let output = self.transfer(context, &arguments)?;
        if output.exit_code == 0 {
            return Ok(());
        }
        if output.stderr.contains(NO_HTTP) {
            let message = "git of the agent image cannot fetch over http (it has no \
                           git-remote-http); use an image with the whole of git";
            return Err(Failure::new(Reason::InvalidTask, message));
        }
        let refused = ["error: 401", "error: 403", "error: 404"];
        let reason = if output.is_transient() {
            Reason::ProviderUnavailable
        } else if refused.iter().any(|words| output.stderr.contains(words)) {
            Reason::InvalidTask
        } else {
            Reason::AgentFailed
        };
        Err(Failure::new(
            reason,
            format!("the repository cannot be cloned: {}", output.last_words()),
        ))
    }

    /// Commits what the agent left, on top of its own commits. The tip carries the task's trailers.
    pub(crate) fn commit(&self, context: &Context<'_>) -> Result<Committed, Failure> {
        let refused = Reason::PushRefused;
        let start = &context.spec.repository.start_commit;
        // Rewritten history could not be published; the agent's work tree is what counts.
        let descends = self.git(context, &["merge-base", "--is-ancestor", start, "HEAD"], b"")?;
        if descends.exit_code != 0 {
            self.must(context, &["reset", "--quiet", "--soft", start], refused)?;
        } else if let Some(what) = self.objection(context)? {
            // The gateway would refuse them, and the work is not to be lost for its wording.
            context.status(&format!("the agent's commits become one, for they have {what}"));
            self.must(context, &["reset", "--quiet", "--soft", start], refused)?;
        }
        self.must(context, &["add", "--all"], refused)?;
        let dirty = self.git(context, &["diff", "--cached", "--quiet"], b"")?.exit_code;
        let changed = self.git(context, &["diff", "--cached", "--quiet", start], b"")?.exit_code;
        match (dirty, changed) {
            (_, 0) => return Ok(Committed::Nothing),
            (1, 1) => {
                let message = commit_message(context);
                let arguments = ["commit", "--quiet", "--no-verify", "--file=-"];
                accepted(&self.git(context, &arguments, message.as_bytes())?, "commit")?;
            }
            (0, 1) => self.sign_tip(context)?,
            _ => return Err(Failure::new(refused, "git cannot compare the work tree")),
        }
        let tip = self.must(context, &["rev-parse", "--verify", "HEAD"], refused)?;
        Ok(Committed::Tip(tip.trim().to_owned()))
    }

    /// Gives the agent's own last commit the trailers, unless it has them.
    fn sign_tip(&self, context: &Context<'_>) -> Result<(), Failure> {
        let format = format!("--format=%(trailers:key={TRAILER_TASK_UID},valueonly)");
        let uids = self.must(context, &["log", "-1", &format], Reason::PushRefused)?;
        if uids.lines().any(|uid| uid.trim() == context.spec.task.uid.as_str()) {
            return Ok(());
        }
        let trailers: Vec<String> = trailers(context)
            .into_iter()
            .map(|(key, value)| format!("--trailer={key}: {value}"))
            .collect();
        let mut arguments = vec!["commit", "--quiet", "--amend", "--no-verify", "--no-edit"];
        arguments.extend(trailers.iter().map(String::as_str));
        accepted(&self.git(context, &arguments, b"")?, "commit")
    }

    /// Pushes the tip into the attempt's quarantine.
    pub(crate) fn push(&self, context: &Context<'_>) -> Result<(), Failure> {
        let branch = &context.spec.repository.work_branch;
        context.status(&format!("pushing {branch}"));
        let refspec = format!("+HEAD:refs/heads/{branch}");
        let arguments = ["push", "--quiet", "--no-verify", "--", &self.url, &refspec];
        let output = self.transfer(context, &arguments)?;
        if output.exit_code != 0 && output.is_transient() {
            let words = output.last_words();
            let message = format!("the push did not reach the gateway: {words}");
            return Err(Failure::new(Reason::ProviderUnavailable, message));
        }
        accepted(&output, "push")
    }

    fn must(
        &self,
        context: &Context<'_>,
        arguments: &[&str],
        reason: Reason,
    ) -> Result<String, Failure> {
        let output = self.git(context, arguments, b"")?;
        if output.exit_code == 0 {
            return Ok(output.stdout);
        }
        let what = arguments.first().copied().unwrap_or("git");
        Err(Failure::new(reason, format!("git {what} failed: {}", output.last_words())))
    }

    fn git(
        &self,
        context: &Context<'_>,
        arguments: &[&str],
        input: &[u8],
    ) -> Result<GitOutput, Failure> {
        self.git_unless(context, arguments, input, &|| false)
    }

    /// As [`Workspace::git`], killed when `given_up` becomes true.
    fn git_unless(
        &self,
        context: &Context<'_>,
        arguments: &[&str],
        input: &[u8],
        given_up: &dyn Fn() -> bool,
    ) -> Result<GitOutput, Failure> {
        let mut stdout = Capture::new(GIT_OUTPUT_BYTES_MAX);
        let (exit_code, stderr) =
            self.git_into(context, arguments, input, &mut stdout, given_up)?;
        Ok(GitOutput { exit_code, stdout: stdout.finish(), stderr })
    }

    /// As [`Workspace::git_unless`], with its output in `stdout`; its exit code and its words.
    fn git_into(
        &self,
        context: &Context<'_>,
        arguments: &[&str],
        input: &[u8],
        stdout: &mut dyn Sink,
        given_up: &dyn Fn() -> bool,
    ) -> Result<(i32, String), Failure> {
        let mut command = vec!["git".to_owned()];
        command.extend(arguments.iter().map(|&argument| argument.to_owned()));
        let invocation = Invocation {
            command,
            directory: self.directory.clone(),
            environment: git_environment(context),
            only_port: Some(context.gateway_port()),
        };
        let mut stderr = Capture::new(GIT_OUTPUT_BYTES_MAX);
        let ended = context
            .processes
            .run_unless(&invocation, input, stdout, Errors::Apart(&mut stderr), given_up)
            .map_err(|error| Failure::new(Reason::AgentFailed, error.to_string()))?;
        if let Some(stopping) = ended.stopped {
            return Err(stopping.into());
        }
        if ended.exit_code == EXIT_NOT_FOUND {
            let words = stderr.finish();
            let message = format!("git of the agent image cannot be run: {}", words.trim());
            return Err(Failure::new(Reason::InvalidTask, message));
        }
        Ok((ended.exit_code, stderr.finish()))
    }
}

/// Asks the gateway to move the work branch upstream; repeated until the step's deadline.
pub(crate) fn publish(context: &Context<'_>, commit: &str) -> Result<Published, Failure> {
    let request = agent_operator::attempt::PublishRequest {
        repository: context.spec.repository.name.clone(),
        commit: commit.to_owned(),
    };
    let client = context.client.clone();
    let answer = until_stopped(context.stop, Duration::MAX, move || {
        client.post("/v1/publish", &request, PUBLISH_LIMIT)
    });
    answer.map_err(|error| error.into_failure(Reason::PushRefused))
}

fn accepted(output: &GitOutput, what: &str) -> Result<(), Failure> {
    if output.exit_code == 0 {
        return Ok(());
    }
    let words = output.last_words();
    Err(Failure::new(Reason::PushRefused, format!("the {what} was refused: {words}")))
}

/// Environment of our own git calls.
fn git_environment(context: &Context<'_>) -> BTreeMap<String, OsString> {
    let mut environment = context.base_environment();
    context.add_git(&mut environment, &SETTINGS);
    for (name, value) in [
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("GIT_ASKPASS", "/bin/false"),
        ("GIT_EDITOR", "/bin/false"),
        ("GIT_OPTIONAL_LOCKS", "0"),
        // Messages are looked into, so they must not be translated.
        ("LC_ALL", "C.UTF-8"),
        ("LANGUAGE", "C"),
    ] {
        environment.insert(name.to_owned(), value.into());
    }
    environment
}

/// Subject line for the task: the first line of its prompt.
pub(crate) fn subject(prompt: &str) -> String {
    let line = prompt.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("");
    let line = printable(line.trim_start_matches(['#', '-', '*', ' ']));
    let line: String = line.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.is_empty() {
        return "Changes by agent-operator".to_owned();
    }
    if line.chars().count() <= SUBJECT_CHARS_MAX {
        return line;
    }
    let cut: String = line.chars().take(SUBJECT_CHARS_MAX - 1).collect();
    // At a word's end where one is near.
    let end = cut.rfind(' ').filter(|at| *at > SUBJECT_CHARS_MAX / 2).unwrap_or(cut.len());
    format!("{}…", cut[..end].trim_end())
}

fn trailers(context: &Context<'_>) -> [(&'static str, String); 3] {
    let spec = context.spec;
    [
        ("Agent-Operator-Task", format!("{}/{}", spec.run.namespace, spec.task.name)),
        (TRAILER_TASK_UID, spec.task.uid.to_string()),
        ("Agent-Operator-Run", spec.run.name.clone()),
    ]
}

fn commit_message(context: &Context<'_>) -> String {
    // The prompt is a person's, and what it quotes need not be.
    let mut message = commit_text::neutralise(&subject(&context.spec.prompt));
    message.push_str("\n\n");
    if context.spec.feedback.is_some() {
        message.push_str("Made in answer to failing tests.\n\n");
    }
    for (key, value) in trailers(context) {
        let _ = writeln!(message, "{key}: {value}");
    }
    head_and_tail(&message, GIT_OUTPUT_BYTES_MAX)
}

/// Whether `text` is a full object id (SHA-1 or SHA-256), and so cannot be an option.
fn is_commit_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether `name` is one path component and no option.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

mod messages;
mod transfer;

#[cfg(test)]
mod tests;
