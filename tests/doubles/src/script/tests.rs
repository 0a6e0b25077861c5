use std::{fs, path::Path, process::Command};

use super::*;

fn conversation(step: &str, script: &str, turn: usize) -> Conversation {
    Conversation {
        step: Some(step.to_owned()),
        script: Some(script.to_owned()),
        turn,
        tools: vec!["Bash".to_owned()],
        prompt: "The file: `/tmp/f.json`".to_owned(),
        ..Conversation::default()
    }
}

fn command(conversation: &Conversation) -> String {
    let Answer::Tool { input, .. } = answer(conversation) else { panic!("no tool is called") };
    input["command"].as_str().unwrap().to_owned()
}

#[test]
fn every_step_ends_with_text_after_a_few_turns() {
    for step in ["plan", "implement", "pull-request"] {
        for script in ["default", "break-once", "never-green"] {
            let turns = (0..10)
                .take_while(|turn| {
                    matches!(answer(&conversation(step, script, *turn)), Answer::Tool { .. })
                })
                .count();
            assert!((2..=3).contains(&turns), "{step} {script}: {turns}");
        }
    }
}

#[test]
fn requests_without_tools_get_a_harmless_text() {
    let mut title = conversation("implement", "default", 0);
    title.tools.clear();
    assert!(matches!(answer(&title), Answer::Text(_)));
}

#[test]
fn errors_have_the_services_numbers() {
    let status = |script: &str| match answer(&conversation("plan", script, 0)) {
        Answer::Error { status, .. } => status,
        other => panic!("{other:?}"),
    };
    assert_eq!((status("rate-limited"), status("overloaded")), (429, 529));
}

#[test]
fn sleeping_can_be_held_to_the_implement_step() {
    assert_eq!(command(&conversation("plan", "sleep", 0)), "sleep 600");
    assert_ne!(command(&conversation("plan", "sleep-implement", 0)), "sleep 600");
    assert_eq!(command(&conversation("implement", "sleep-implement", 0)), "sleep 600");
}

/// A copy of the repository that the local forge is seeded with.
fn example() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/local/example-repo/.");
    let copied = Command::new("cp").arg("-r").arg(source).arg(folder.path()).status().unwrap();
    assert!(copied.success());
    let made = Command::new("git").args(["init", "--quiet"]).current_dir(folder.path()).status();
    assert!(made.unwrap().success());
    folder
}

fn run(folder: &Path, command: &str) -> bool {
    // node's own runner marks its children by the environment; nested ones would not run.
    let output = Command::new("sh")
        .args(["-c", command])
        .current_dir(folder)
        .env_remove("NODE_TEST_CONTEXT")
        .output();
    output.unwrap().status.success()
}

fn implement_in(folder: &Path, script: &str, has_feedback: bool) {
    let edit = Conversation { has_feedback, ..conversation("implement", script, 1) };
    assert!(run(folder, &command(&edit)), "the edit failed");
}

fn node_is_missing() -> bool {
    let missing = !Command::new("node").arg("--version").output().is_ok_and(|o| o.status.success());
    if missing {
        println!("left out: no node on this machine");
    }
    missing
}

#[test]
fn the_sample_task_makes_the_example_repositorys_tests_pass() {
    if node_is_missing() {
        return;
    }
    let folder = example();
    implement_in(folder.path(), "default", false);
    let source = fs::read_to_string(folder.path().join("server.js")).unwrap();
    assert!(source.contains("'GET /healthz'"));
    assert!(run(folder.path(), "npm test"));
}

#[test]
fn break_once_fails_first_and_is_repaired_with_the_tests_output() {
    if node_is_missing() {
        return;
    }
    let folder = example();
    implement_in(folder.path(), "break-once", false);
    assert!(!run(folder.path(), "npm test"));
    implement_in(folder.path(), "break-once", true);
    assert!(run(folder.path(), "npm test"));
    let source = fs::read_to_string(folder.path().join("server.js")).unwrap();
    assert_eq!(source.matches("GET /healthz").count(), 1);
}

#[test]
fn never_green_changes_something_each_time_and_always_fails() {
    if node_is_missing() {
        return;
    }
    let folder = example();
    let mut before = String::new();
    for round in 0..3 {
        implement_in(folder.path(), "never-green", round > 0);
        let source = fs::read_to_string(folder.path().join("server.js")).unwrap();
        assert_ne!(source, before);
        before = source;
        assert!(!run(folder.path(), "npm test"));
    }
}
