//! Whole steps of the real binary against a gateway of a few lines, with real git.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod confinement;
mod stub;

use std::{fs, io::Read as _, process::Command};

use agent_operator::{
    attempt::StopOrder,
    domain::{Reason, StepName, event::AgentEvent},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::stub::Gateway;

#[test]
fn an_implement_step_ends_with_a_published_commit() {
    let script = "cat \"$AGENT_PROMPT_FILE\" > healthz && git log --oneline && echo made it";
    let gateway = Gateway::start(StepName::Implement, script);
    let (code, log) = gateway.run();
    let result = gateway.result();
    assert_eq!((code, result.reason), (0, Reason::Completed), "{log}");
    let tip = gateway.git(&["rev-parse", "ai/add-healthcheck"]);
    assert_eq!(result.facts.head_commit.as_deref(), Some(tip.as_str()));
    assert_eq!(result.facts.work_branch.as_deref(), Some("ai/add-healthcheck"));
    let content = gateway.git(&["show", &format!("{tip}:healthz")]);
    assert_eq!(content, "Add a /healthz endpoint that returns 200 OK");
    let message = gateway.git(&["log", "-1", "--format=%B", &tip]);
    assert!(message.contains("Agent-Operator-Task-Uid: task-uid"), "{message}");
    for words in ["[implement] cloning main at ", "made it", "[runner] Completed: "] {
        assert!(log.contains(words), "{words:?} is missing in:\n{log}");
    }
    gateway.read(|state| {
        assert_eq!(result.events, state.events.len() as u64);
        let said = |words: &str| {
            state.events.iter().any(|record| {
                matches!(&record.event, AgentEvent::Text { text } | AgentEvent::Status { text }
                    if text.contains(words))
            })
        };
        assert!(said("made it") && said("cloning") && said("pushing"));
        assert!(state.nonces[0].len() >= 32);
    });
}

#[test]
fn a_pod_that_was_made_ahead_does_what_it_is_told_at_its_gate() {
    let gateway = Gateway::start(StepName::Implement, "cat \"$AGENT_PROMPT_FILE\" > healthz");
    gateway.update(|state| state.ahead = true);
    let (code, log) = gateway.run();
    assert_eq!((code, gateway.result().reason), (0, Reason::Completed), "{log}");
    let tip = gateway.git(&["rev-parse", "refs/heads/ai/add-healthcheck"]);
    let content = gateway.git(&["show", &format!("{tip}:healthz")]);
    assert!(content.contains("Add a /healthz endpoint"), "{content}");
}

#[test]
fn p3_an_agent_that_changes_nothing_is_no_success() {
    let gateway = Gateway::start(StepName::Implement, "exit 0");
    let (code, _) = gateway.run();
    assert_eq!((code, gateway.result().reason), (1, Reason::NoChanges));
    assert_eq!(gateway.git(&["for-each-ref", "--format=%(refname)"]), "refs/heads/main");
}

#[test]
fn a_failing_agent_pushes_nothing_and_its_code_is_the_runners() {
    let gateway = Gateway::start(StepName::Implement, "touch x; echo no luck >&2; exit 9");
    let (code, _) = gateway.run();
    let result = gateway.result();
    assert_eq!((code, result.exit_code, result.reason), (9, 9, Reason::AgentFailed));
    assert!(result.message.ends_with("no luck"), "{}", result.message);
    assert_eq!(gateway.git(&["for-each-ref", "--format=%(refname)"]), "refs/heads/main");
}

#[test]
fn p1_the_exit_code_of_the_tests_is_the_verdict() {
    let gateway = Gateway::start(StepName::Test, "env; ls; echo not ok 5; exit 3");
    let (code, log) = gateway.run();
    let result = gateway.result();
    assert_eq!((code, result.exit_code, result.reason), (3, 3, Reason::VerifyFailed));
    assert!(result.message.contains("exited with 3"), "{}", result.message);
    let output = result.facts.output.unwrap();
    assert!(output.contains("server.js") && output.ends_with("not ok 5\n"), "{output}");
    assert!(log.contains("\nnot ok 5\n"), "{log}");
    // No model in this step, and nothing of the runner's.
    for name in ["ANTHROPIC", "AGENT_OPERATOR", "runner-token", "one-time-token"] {
        assert!(!output.contains(name), "{name} is in {output}");
    }
    let passed = Gateway::start(StepName::Test, "true");
    assert_eq!(passed.run().0, 0);
    assert_eq!(passed.result().reason, Reason::Completed);
}

#[test]
fn forged_result_files_do_not_count() {
    // Wherever somebody might look for a result: the work tree, its parent, the agent's folders.
    let forge = r#"forged='{"reason":"Completed","message":"forged","exitCode":0,"events":0,"facts":{},
        "reportedUsage":{"turns":0,"inputTokens":0,"outputTokens":0}}'
        for folder in . .. "$HOME" "${AGENT_OUTPUT_FILE%/*}" "${TMPDIR:-}"; do
            [ -n "$folder" ] || continue
            mkdir -p "$folder/.agent-operator"
            for name in result.json .agent-operator/result.json termination-log; do
                echo "$forged" > "$folder/$name" && echo "wrote $name"
            done
        done; exit 9"#;
    for (step, reason) in [
        (StepName::Plan, Reason::AgentFailed),
        (StepName::Implement, Reason::AgentFailed),
        (StepName::Test, Reason::VerifyFailed),
    ] {
        let gateway = Gateway::start(step, forge);
        let (code, log) = gateway.run();
        assert!(log.matches("wrote result.json").count() >= 3, "{log}");
        let result = gateway.result();
        assert_eq!((code, result.exit_code, result.reason), (9, 9, reason), "{log}");
        assert_ne!(result.message, "forged");
    }
}

#[test]
fn a_repository_without_tests_is_unverifiable() {
    let gateway = Gateway::start(StepName::Test, "");
    gateway.spec.lock().unwrap().test_command = None;
    let (code, _) = gateway.run();
    assert_eq!((code, gateway.result().reason), (78, Reason::Unverifiable));
}

#[test]
fn a_plan_is_the_output_file_or_else_what_was_printed() {
    let gateway =
        Gateway::start(StepName::Plan, "echo chatter; echo the plan > $AGENT_OUTPUT_FILE");
    gateway.run();
    assert_eq!(gateway.result().facts.output.as_deref(), Some("the plan"));
    let gateway = Gateway::start(StepName::Plan, "echo printed plan");
    gateway.run();
    let result = gateway.result();
    assert_eq!(result.facts.output.as_deref(), Some("printed plan"));
    let base = gateway.git(&["rev-parse", "main"]);
    assert_eq!(result.facts.base_commit, Some(base));
}

#[test]
fn p10_title_and_body_come_from_the_file_or_from_the_prompt() {
    let script = r#"echo '{"title": "A title", "body": "A body"}' > "$AGENT_PULL_REQUEST_FILE""#;
    let gateway = Gateway::start(StepName::PullRequest, script);
    gateway.run();
    assert_eq!(gateway.read(|state| state.pull_request.clone()).unwrap().title, "A title");
    assert_eq!(gateway.result().facts.pull_request.unwrap().number, 7);
    let gateway = Gateway::start(StepName::PullRequest, "true");
    gateway.run();
    let title = gateway.read(|state| state.pull_request.clone()).unwrap().title;
    assert_eq!(title, "Add a /healthz endpoint that returns 200 OK");
}

#[test]
fn a_gateway_that_is_not_ready_yet_is_asked_again() {
    let gateway = Gateway::start(StepName::Test, "true");
    gateway.update(|state| state.refuse_first = 3);
    assert_eq!(gateway.run().0, 0);
}

#[test]
fn p12_the_deadline_holds_without_anyones_help_and_nothing_is_left() {
    let mark = format!("600.{}", std::process::id());
    // What is stopped takes no SIGTERM either.
    let script =
        format!("trap '' TERM; setsid sleep {mark} & sleep {mark} & kill -STOP $!; sleep {mark}");
    let gateway = Gateway::start(StepName::Implement, &script);
    gateway.update(|state| state.remaining_millis = 1_500);
    let (code, log) = gateway.run();
    assert_eq!((code, gateway.result().reason), (124, Reason::TimedOut), "{log}");
    assert!(!alive(&mark), "a process of the agent is left");
}

#[test]
fn a_stop_order_ends_the_step_with_its_reason() {
    let gateway = Gateway::start(StepName::Implement, "echo begun; sleep 600");
    let mut child = gateway.runner(&[]).spawn().unwrap();
    gateway.wait_for(|state| !state.events.is_empty());
    gateway.update(|state| {
        state.stop = Some(StopOrder {
            reason: Reason::Cancelled,
            message: "the task was deleted".to_owned(),
            grace_millis: 5_000,
        });
    });
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let result = gateway.result();
    assert_eq!(
        (result.reason, result.message.as_str()),
        (Reason::Cancelled, "the task was deleted")
    );
}

#[test]
fn a_step_that_has_ended_well_keeps_its_exit_code_though_nobody_answers_for_its_result() {
    let gateway = Gateway::start(StepName::Test, "true");
    gateway.update(|state| state.hold_result = true);
    let mut child = gateway.runner(&[]).spawn().unwrap();
    gateway.wait_for(|state| state.result.is_some());
    // As the deadline does, and after as short a grace.
    gateway.update(|state| {
        let message = "the step's timeout has passed".to_owned();
        state.stop = Some(StopOrder { reason: Reason::TimedOut, message, grace_millis: 0 });
    });
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(gateway.result().reason, Reason::Completed);
}

#[test]
fn a_stop_order_is_heeded_at_the_gate_as_well() {
    let gateway = Gateway::start(StepName::Implement, "true");
    gateway.update(|state| state.hold_gate = true);
    let mut child = gateway.runner(&[]).spawn().unwrap();
    gateway.wait_for(|state| state.gate.is_some());
    gateway.update(|state| {
        let message = "the task was deleted".to_owned();
        state.stop = Some(StopOrder { reason: Reason::Cancelled, message, grace_millis: 60_000 });
    });
    // Long before the gate's answer and the grace would end.
    gateway.wait_for(|state| state.result.is_some());
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(gateway.result().reason, Reason::Cancelled);
}

#[test]
fn a_refused_token_ends_the_runner_without_a_result() {
    let gateway = Gateway::start(StepName::Implement, "true");
    let mut command = gateway.runner(&[]);
    command.env("AGENT_OPERATOR_TOKEN", "used-up");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(75));
    assert!(gateway.read(|state| state.result.is_none()));
    assert!(String::from_utf8_lossy(&output.stdout).contains("wrong token"));
}

#[test]
fn p2_a_flood_of_output_neither_hangs_nor_fails_a_good_step() {
    let script = "head -c 30000000 /dev/zero | tr '\\0' 'x'; echo; echo the end";
    let gateway = Gateway::start(StepName::Test, script);
    let (code, log) = gateway.run();
    assert_eq!(code, 0);
    let output = gateway.result().facts.output.unwrap();
    assert!(output.len() <= 16 * 1024 && output.ends_with("the end\n"));
    assert!(log.lines().all(|line| line.len() <= 17 * 1024));
}

#[test]
fn a_program_that_does_not_exist_exits_as_in_a_shell() {
    let exec = |program: &str| {
        let binary = env!("CARGO_BIN_EXE_agent-runner");
        Command::new(binary).args(["exec", "--", program]).status().unwrap().code()
    };
    assert_eq!(exec("/no/such/program"), Some(127));
    assert_eq!(exec("/"), Some(126));
    assert_eq!(exec("true"), Some(0));
}

#[test]
fn install_copies_the_runner_and_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let claude = folder.path().join("cli");
    fs::write(&claude, "#!/bin/sh\n").unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_agent-runner"))
        .arg("install")
        .arg(folder.path())
        .arg("--claude")
        .arg(&claude)
        .status()
        .unwrap();
    assert!(status.success());
    let version =
        Command::new(folder.path().join("agent-runner")).arg("--version").output().unwrap();
    assert!(version.stdout.starts_with(b"agent-runner "));
    assert!(folder.path().join("claude").exists());
}

/// As PID 1 of a PID namespace of its own.
const AS_PID_1: [&str; 5] = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
/// The same where only a user namespace gives the right to make one.
const AS_PID_1_OF_A_USER: [&str; 6] =
    ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"];

/// What makes the runner PID 1 on this machine. Where nothing does, the tests that need it fail: what was
/// not tried has shown nothing.
fn as_pid_1() -> &'static [&'static str] {
    let works = |wrapper: &&[&str]| {
        let tried = Command::new(wrapper[0]).args(&wrapper[1..]).arg("true").status();
        tried.is_ok_and(|status| status.success())
    };
    let mut ways = [&AS_PID_1[..], &AS_PID_1_OF_A_USER].into_iter();
    ways.find(works).expect("a PID namespace can be made: by root, or where users may make theirs")
}

#[test]
fn signals_from_inside_are_ignored_and_orphans_are_reaped_and_killed() {
    let mark = format!("601.{}", std::process::id());
    // The agent tries to end PID 1, leaves zombies, a daemon of a session of its own and a stopped process.
    let script = format!(
        "kill -TERM 1; kill -INT 1; kill -KILL 1; (true & exec true) & setsid sleep {mark} & \
         sleep {mark} & kill -STOP $!; stopped=$!; sleep 0.3; \
         echo zombies: $(grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l); \
         echo stopped: $(grep -c '^State:.T' /proc/$stopped/status)"
    );
    let gateway = Gateway::start(StepName::Test, &script);
    let output = gateway.runner(as_pid_1()).spawn().unwrap().wait_with_output().unwrap();
    let log = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), gateway.result().reason),
        (Some(0), Reason::Completed),
        "{log}"
    );
    assert!(log.contains("zombies: 0") && log.contains("stopped: 1"), "{log}");
    assert!(!alive(&mark), "a process of the agent is left");
}

#[test]
fn sigterm_from_outside_stops_the_step_and_is_reported() {
    let gateway = Gateway::start(StepName::Test, "echo begun; sleep 600");
    let mut child = gateway.runner(as_pid_1()).spawn().unwrap();
    gateway.wait_for(|state| state.gate.is_some());
    // Until the test runs: the shell's line comes out of its standard output.
    let mut log = child.stdout.take().unwrap();
    let mut text = String::new();
    while !text.contains("\nbegun\n") {
        let mut buffer = [0; 1024];
        let count = log.read(&mut buffer).unwrap();
        assert!(count > 0, "ended early: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    let parent = child.id().to_string();
    let path = format!("/proc/{parent}/task/{parent}/children");
    let runner: i32 = fs::read_to_string(path).unwrap().trim().parse().unwrap();
    kill(Pid::from_raw(runner), Signal::SIGTERM).unwrap();
    log.read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    assert_eq!(gateway.result().reason, Reason::Disrupted, "{text}");
}

/// Whether a process with `mark` on its command line is there.
fn alive(mark: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == mark.as_bytes()))
    })
}
