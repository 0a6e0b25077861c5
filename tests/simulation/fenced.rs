//! F8: a node that was only cut off comes back after a person has fenced it and its attempt was replaced.
//! The attempt has its commit ready and has tried to publish it all the time; nothing of it may get
//! upstream, although the permission to write is for the whole node.

use std::time::Duration;

use agent_operator_doubles::history::{Fact, History};
use serde_json::Value;

use super::{Verdict, cluster::all, conclude, director::Director, on_paused_time};

/// How many times it is played, each with other delays.
const SEEDS: u64 = 12;
/// Longest wait for anything on the way there.
const LIMIT: Duration = Duration::from_mins(2);

/// The run that may push and has this phase, with its node.
fn implementing(director: &Director, phase: &str) -> Option<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let runs = all(&director.world, "agentruns");
    let run = runs.iter().find(|run| {
        run["spec"]["step"] == "implement" && run["status"]["phase"].as_str() == Some(phase)
    })?;
    Some((text(&run["metadata"]["uid"]), text(&run["spec"]["nodeName"])))
}

async fn wait_for(director: &mut Director, phase: &str) -> Option<(String, String)> {
    let began = tokio::time::Instant::now();
    while began.elapsed() < LIMIT {
        if let Some(found) = implementing(director, phase) {
            return Some(found);
        }
        director.pass(Duration::from_millis(100)).await;
    }
    None
}

fn published(history: &History, run: &str) -> bool {
    history.count(|fact| matches!(fact, Fact::Published { run: of } if of == run)) > 0
}

/// Plays it; whether the attempt had not published by the time it was given up, and what came of it.
fn run(seed: u64) -> (bool, bool, Verdict) {
    let dir =
        std::env::temp_dir().join(format!("agent-operator-fenced-{}-{seed}", std::process::id()));
    let played = on_paused_time(async {
        let mut director = Director::start(seed, &dir, 1, false);
        director.pass(Duration::from_secs(2)).await;
        director.task("sample");
        let (run, node) = wait_for(&mut director, "Running").await.unwrap();
        director.cut_off_and_fence(&node);
        let (given_up, _) = wait_for(&mut director, "Failed").await.unwrap();
        assert_eq!(given_up, run);
        let waits = !published(&director.world.history(), &run);
        director.calm();
        let verdict = conclude(director).await;
        (waits, published(&verdict.history, &run), verdict)
    });
    let _ = std::fs::remove_dir_all(dir);
    played
}

#[test]
fn f8_a_node_that_was_only_cut_off_publishes_nothing_of_a_replaced_attempt_when_it_is_back() {
    let mut waited = 0;
    for seed in 0..SEEDS {
        let (waits, published, Verdict { violations, history, .. }) = run(seed);
        waited += u32::from(waits);
        let got_through = waits && published;
        assert!(
            violations.is_empty() && !got_through,
            "seed {seed}: {violations:#?}\n{}",
            history.text()
        );
    }
    assert!(waited > 0, "no attempt had a commit waiting when its node came back");
}
