//! Steps by the real Claude Code CLI, with the scripted model behind the gateway's `/llm`.
//!
//! Needs the CLI: `AGENT_OPERATOR_TEST_CLAUDE` names its binary; else the one that
//! `deploy/images/build` keeps in its cache is taken, which is why they run beside the cluster's tests.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test program")]
#![allow(dead_code, reason = "the stub serves two programs")]

#[path = "claude/repository_settings.rs"]
mod repository_settings;
mod stub;

use std::{
    env, fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use agent_operator::domain::{Reason, StepName, assignment::AgentKind, event::AgentEvent};
use agent_operator_doubles::{Options, Recorded, ScriptedModel};

use crate::stub::Gateway;

/// The CLI refuses to run unattended as root; the pod's user is 1000 as well.
const USER: u32 = 1000;

fn cli() -> PathBuf {
    let named = env::var_os("AGENT_OPERATOR_TEST_CLAUDE").map(PathBuf::from);
    let found = named.or_else(|| {
        let cache = PathBuf::from(env::var_os("HOME")?).join(".cache/agent-operator/npm");
        let mut packages: Vec<_> = fs::read_dir(cache).ok()?.flatten().collect();
        packages.retain(|entry| entry.file_name().to_string_lossy().contains("claude-code-linux"));
        packages.sort_by_key(std::fs::DirEntry::file_name);
        Some(packages.pop()?.path().join("claude"))
    });
    found
        .filter(|path| path.is_file())
        .expect("a Claude Code CLI: run deploy/images/build, or set AGENT_OPERATOR_TEST_CLAUDE")
}

struct Run {
    gateway: Arc<Gateway>,
    code: i32,
    log: String,
    requests: Vec<Recorded>,
}

/// Runs `step` of a task with `prompt` by the CLI, as the pod's user where this one may change.
fn run(step: StepName, prompt: &str, prepare: impl FnOnce(&Gateway)) -> Run {
    let cli = cli();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let options = Options { expect_key: Some("real-key".to_owned()) };
    let model = ScriptedModel::start("127.0.0.1:0".parse().unwrap(), options);
    let model = runtime.block_on(model).unwrap();
    let gateway = Gateway::start(step, "");
    gateway.update(|state| state.model = Some(model.address().to_string()));
    {
        let mut spec = gateway.spec.lock().unwrap();
        spec.agent = AgentKind::ClaudeCode;
        prompt.clone_into(&mut spec.prompt);
    }
    seed_example(&gateway, prepare);
    let folder = &gateway.folder;
    let binary = folder.join("agent-runner");
    fs::copy(env!("CARGO_BIN_EXE_agent-runner"), &binary).unwrap();
    fs::create_dir_all(folder.join("runner")).unwrap();
    fs::copy(cli, folder.join("runner/claude")).unwrap();
    let mut command = gateway.runner_at(&binary, as_user());
    hand_over(folder, &["workspace", "home"]);
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    Run {
        code: output.status.code().unwrap(),
        log: String::from_utf8(output.stdout).unwrap(),
        requests: model.requests(),
        gateway,
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// What starts a program as [`USER`], where this process may.
fn as_user() -> &'static [&'static str] {
    let words: &[_] = &["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups"];
    if is_root() { words } else { &[] }
}

/// Gives folders of `folder` to [`USER`].
fn hand_over(folder: &Path, names: &[&str]) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    for name in names.iter().filter(|_| is_root()) {
        chown(folder.join(name), Some(USER), Some(USER)).unwrap();
    }
}

/// Makes the served repository the local forge's example, with what `prepare` adds to it.
fn seed_example(gateway: &Gateway, prepare: impl FnOnce(&Gateway)) {
    let work = gateway.folder.join("seed");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/local/example-repo/.");
    let copied = Command::new("cp").arg("-r").arg(example).arg(&work).status().unwrap();
    assert!(copied.success());
    prepare(gateway);
    stub::git(&work, &["add", "--all"]);
    stub::git(&work, &["commit", "--quiet", "--message=example"]);
    let bare = gateway.folder.join("repositories/main.git");
    stub::git(&work, &["push", "--quiet", bare.to_str().unwrap(), "main"]);
    let commit = stub::git(&work, &["rev-parse", "HEAD"]);
    let mut spec = gateway.spec.lock().unwrap();
    spec.repository.base_commit.clone_from(&commit);
    spec.repository.start_commit = commit;
}

#[test]
#[ignore = "needs the Claude Code CLI: tests/run e2e"]
fn the_cli_plans() {
    let run = run(StepName::Plan, "Add a /healthz endpoint", |_| {});
    let result = run.gateway.result();
    assert_eq!((run.code, result.reason), (0, Reason::Completed), "{}", run.log);
    assert!(result.facts.output.unwrap().starts_with("## Plan"));
    assert!(result.reported_usage.turns >= 2 && result.reported_usage.output_tokens > 0);
    assert!(run.log.contains("→ Bash: "), "{}", run.log);
    run.gateway.read(|state| {
        let has = |wanted: fn(&AgentEvent) -> bool| state.events.iter().any(|r| wanted(&r.event));
        assert!(has(|event| matches!(event, AgentEvent::ToolCall { name, .. } if name == "Bash")));
        assert!(has(|event| matches!(event, AgentEvent::ToolResult { is_error: false, .. })));
        assert!(has(|event| matches!(event, AgentEvent::Usage { .. })));
        // The agent's token went to the model's route and to git, the runner's to neither.
        let model: Vec<_> =
            state.requests.iter().filter(|(p, _)| p.contains("/messages")).collect();
        assert!(!model.is_empty());
        assert!(model.iter().all(|(_, token)| token.as_deref() == Some("agent-token")));
    });
    println!("{}", run.log);
}

#[test]
#[ignore = "needs the Claude Code CLI: tests/run e2e"]
fn the_cli_implements_and_gets_the_tests_output_on_a_retry() {
    let prepare = |gateway: &Gateway| {
        gateway.spec.lock().unwrap().feedback = Some("not ok 5 - /healthz".to_owned());
    };
    let run = run(StepName::Implement, "Add a /healthz endpoint", prepare);
    let result = run.gateway.result();
    assert_eq!((run.code, result.reason), (0, Reason::Completed), "{}", run.log);
    let files = run.gateway.git(&["show", "--name-only", "--format=", "ai/add-healthcheck"]);
    assert_eq!(files, "server.js\ntest/healthz.test.js");
    assert!(run.requests.iter().any(|request| request.prompt.contains("not ok 5 - /healthz")));
}

#[test]
#[ignore = "needs the Claude Code CLI: tests/run e2e"]
fn the_cli_writes_title_and_body() {
    let run = run(StepName::PullRequest, "Add a /healthz endpoint", |_| {});
    let request = run.gateway.read(|state| state.pull_request.clone()).expect(&run.log);
    assert_eq!(request.title, agent_operator_doubles::script::PULL_REQUEST_TITLE);
    assert!(request.body.contains("## Testing"));
}

#[test]
#[ignore = "needs the Claude Code CLI: tests/run e2e"]
fn an_unavailable_model_is_reported_as_such() {
    let prompt = "Add a /healthz endpoint [[script:overloaded]]";
    let shorten = |gateway: &Gateway| gateway.update(|state| state.remaining_millis = 240_000);
    let run = run(StepName::Plan, prompt, shorten);
    let result = run.gateway.result();
    assert_eq!(result.reason, Reason::ProviderUnavailable, "{}", run.log);
}
