use std::{path::Path, process::Command};

use super::*;
use crate::{
    clock,
    testing::{Fixture, spec},
};
use agent_operator::domain::StepName;

/// Plain git, as the agent would call it.
fn git(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(directory)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .envs([("GIT_AUTHOR_NAME", "a"), ("GIT_COMMITTER_NAME", "a")])
        .envs([("GIT_AUTHOR_EMAIL", "a@b"), ("GIT_COMMITTER_EMAIL", "a@b")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// An implement step whose work tree holds one commit.
pub(super) fn cloned() -> (Fixture, Workspace) {
    let mut fixture = Fixture::new();
    fixture.spec = spec(StepName::Implement);
    let directory = fixture.layout.workspace.join("main");
    fs::create_dir_all(&directory).unwrap();
    git(&directory, &["init", "--quiet", "--initial-branch=ai/add-healthcheck"]);
    fs::write(directory.join("a"), "1\n").unwrap();
    git(&directory, &["add", "--all"]);
    git(&directory, &["commit", "--quiet", "--message=start"]);
    fixture.spec.repository.start_commit = git(&directory, &["rev-parse", "HEAD"]);
    (fixture, Workspace { directory, url: "http://127.0.0.1:1/git/main.git".to_owned() })
}

fn tip(committed: Committed) -> String {
    let Committed::Tip(commit) = committed else { panic!("nothing was committed") };
    commit
}

#[test]
fn changes_are_committed_with_the_tasks_subject_and_trailers() {
    let (fixture, workspace) = cloned();
    fs::write(workspace.directory.join("new"), "2\n").unwrap();
    fs::remove_file(workspace.directory.join("a")).unwrap();
    let commit = tip(workspace.commit(&fixture.context()).unwrap());
    let message = git(&workspace.directory, &["log", "-1", "--format=%an <%ae>%n%B", &commit]);
    assert_eq!(
        message,
        "agent-operator <agent@example.invalid>\nAdd a /healthz endpoint\n\n\
         Agent-Operator-Task: agent-system/add-healthcheck\n\
         Agent-Operator-Task-Uid: task-uid\n\
         Agent-Operator-Run: add-healthcheck-impl-1-0a1b2c3d"
    );
    assert_eq!(git(&workspace.directory, &["status", "--porcelain"]), "");
}

#[test]
fn p3_an_empty_diff_is_its_own_outcome() {
    let (fixture, workspace) = cloned();
    assert_eq!(workspace.commit(&fixture.context()).unwrap(), Committed::Nothing);
    // Also when the agent committed something and took it back.
    fs::write(workspace.directory.join("a"), "2\n").unwrap();
    git(&workspace.directory, &["commit", "--quiet", "--all", "--message=one"]);
    fs::write(workspace.directory.join("a"), "1\n").unwrap();
    assert_eq!(workspace.commit(&fixture.context()).unwrap(), Committed::Nothing);
}

#[test]
fn p3_a_failing_hook_neither_runs_nor_swallows_the_work() {
    let (fixture, workspace) = cloned();
    let hook = workspace.directory.join(".git/hooks/pre-commit");
    fs::create_dir_all(hook.parent().unwrap()).unwrap();
    // The copy brings the mode of a program with it.
    fs::copy(crate::testing::shim(), &hook).unwrap();
    fs::write(&hook, "#!/bin/sh\ntouch ran\nexit 1\n").unwrap();
    fs::write(workspace.directory.join("a"), "2\n").unwrap();
    tip(workspace.commit(&fixture.context()).unwrap());
    assert!(!workspace.directory.join("ran").exists());
}

#[test]
fn p3_a_failing_commit_fails_with_its_reason() {
    let (fixture, workspace) = cloned();
    fs::write(workspace.directory.join("a"), "2\n").unwrap();
    fs::write(workspace.directory.join(".git/index.lock"), "").unwrap();
    let failure = workspace.commit(&fixture.context()).unwrap_err();
    assert_eq!(failure.reason, Reason::PushRefused);
    assert!(failure.message.contains("index.lock"), "{}", failure.message);
}

#[test]
fn the_agents_own_commits_are_kept_and_the_tip_carries_the_trailers() {
    let (fixture, workspace) = cloned();
    let directory = &workspace.directory;
    for name in ["one", "two"] {
        fs::write(directory.join(name), name).unwrap();
        git(directory, &["add", "--all"]);
        git(directory, &["commit", "--quiet", "--message", name]);
    }
    let commit = tip(workspace.commit(&fixture.context()).unwrap());
    let subjects = git(directory, &["log", "--format=%s", &commit]);
    assert_eq!(subjects, "two\none\nstart");
    let message = git(directory, &["log", "-1", "--format=%B"]);
    assert!(message.contains("Agent-Operator-Task-Uid: task-uid"), "{message}");
    // Done again, nothing changes: the trailers are there.
    assert_eq!(tip(workspace.commit(&fixture.context()).unwrap()), commit);
}

#[test]
fn commits_whose_messages_act_at_a_forge_become_one_of_ours_and_none_of_the_work_is_lost() {
    for message in ["Fixes #1", "cc @octocat", "x [skip ci]", "a\u{1b}[2Jb", "a\u{202e}b"] {
        let (mut fixture, workspace) = cloned();
        fixture.spec.prompt = "Fix #12 for @octocat".to_owned();
        let directory = &workspace.directory;
        for (name, message) in [("one", "plain"), ("two", message)] {
            fs::write(directory.join(name), name).unwrap();
            git(directory, &["add", "--all"]);
            git(directory, &["commit", "--quiet", "--message", message]);
        }
        let commit = tip(workspace.commit(&fixture.context()).unwrap());
        let subjects = git(directory, &["log", "--format=%s", &commit]);
        assert_eq!(subjects, "Fix #\u{200b}12 for @\u{200b}octocat\nstart", "{message}");
        let files = git(directory, &["ls-tree", "--name-only", &commit]);
        assert_eq!(files, "a\none\ntwo", "{message}");
        let whole = git(directory, &["log", "-1", "--format=%B", &commit]);
        assert_eq!(commit_text::objection(&whole), None, "{whole}");
    }
}

#[test]
fn commits_that_came_from_the_forge_keep_what_they_say() {
    let (fixture, workspace) = cloned();
    let directory = &workspace.directory;
    let start = &fixture.spec.repository.start_commit;
    git(directory, &["checkout", "--quiet", "-b", "theirs"]);
    fs::write(directory.join("theirs"), "1").unwrap();
    git(directory, &["add", "--all"]);
    git(directory, &["commit", "--quiet", "--message=Fixes #1"]);
    git(directory, &["update-ref", "refs/remotes/origin/main", "HEAD"]);
    git(directory, &["checkout", "--quiet", "-b", "ours", start]);
    git(directory, &["merge", "--quiet", "--no-ff", "--message=merge main", "theirs"]);
    let commit = tip(workspace.commit(&fixture.context()).unwrap());
    // Made within a second, they have no order by time.
    let subjects = git(directory, &["log", "--topo-order", "--format=%s", &commit]);
    assert_eq!(subjects, "merge main\nFixes #1\nstart");
}

#[test]
fn rewritten_history_comes_back_as_one_commit_on_the_start() {
    let (fixture, workspace) = cloned();
    let directory = &workspace.directory;
    fs::write(directory.join("a"), "2\n").unwrap();
    git(directory, &["commit", "--quiet", "--all", "--amend", "--message=rewritten"]);
    let commit = tip(workspace.commit(&fixture.context()).unwrap());
    let parent = git(directory, &["rev-parse", &format!("{commit}^")]);
    assert_eq!(parent, fixture.spec.repository.start_commit);
}

#[test]
fn a_stop_order_ends_git_too() {
    let (fixture, workspace) = cloned();
    fs::write(workspace.directory.join("a"), "2\n").unwrap();
    fixture.stop.request(crate::stop::Stopping {
        reason: Reason::Cancelled,
        message: "enough".to_owned(),
        kill_at: clock::boot_now(),
    });
    let failure = workspace.commit(&fixture.context()).unwrap_err();
    assert_eq!(failure.reason, Reason::Cancelled);
}

#[test]
fn a_subject_is_one_short_line() {
    assert_eq!(subject("\n# Add a /healthz endpoint\nmore"), "Add a /healthz endpoint");
    assert_eq!(subject(" \n"), "Changes by agent-operator");
    let long = subject(&"word ".repeat(100));
    assert!(long.chars().count() <= SUBJECT_CHARS_MAX && long.ends_with("word…"), "{long}");
    assert!(subject(&"ä".repeat(100)).chars().count() <= SUBJECT_CHARS_MAX);
}

#[test]
fn options_and_paths_are_no_names() {
    assert!(is_commit_id(&"a".repeat(40)));
    for text in ["--upload-pack=x", "main", "", &"g".repeat(40)] {
        assert!(!is_commit_id(text), "{text}");
    }
    for name in ["..", "a/b", "-x", "", ".git"] {
        assert!(!is_plain_name(name), "{name}");
    }
    assert!(is_plain_name("main"));
}
