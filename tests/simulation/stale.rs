//! F13: lists and watches that stay behind, each placed before a certain decision of a controller or supervisor.

use std::time::Duration;

use agent_operator_doubles::history::Fact;

use super::{
    Verdict,
    cluster::all,
    conclude,
    director::{Director, NODES},
    on_paused_time,
};

/// The task.
const TASK: &str = "sample";
/// The controller's next life.
const NEXT: &str = "controller-0#2";
/// Other delays for each.
const SEEDS: u64 = 4;
/// Longest wait for anything on the way there.
const LIMIT: Duration = Duration::from_mins(1);
/// Long enough for a new term, sessions, a preflight, and a decision that is repeated.
const DECIDES: Duration = Duration::from_secs(20);

/// Plays `story` with one controller, and judges.
fn play(name: &str, seed: u64, story: impl AsyncFnOnce(&mut Director)) -> Verdict {
    let dir = format!("agent-operator-stale-{name}-{}-{seed}", std::process::id());
    let dir = std::env::temp_dir().join(dir);
    let verdict = on_paused_time(async {
        let mut director = Director::start(seed, &dir, 1, false);
        story(&mut director).await;
        director.calm();
        conclude(director).await
    });
    let _ = std::fs::remove_dir_all(dir);
    verdict
}

/// How often a run of this step and attempt was made, whoever made it.
fn made(verdict: &Verdict, run: &str) -> usize {
    let prefix = format!("Create agentruns/{TASK}-{run}-");
    verdict
        .history
        .count(|fact| matches!(fact, Fact::Wrote { what, .. } if what.starts_with(&prefix)))
}

/// How many attempts ended as though their pods had gone.
fn lost(verdict: &Verdict) -> usize {
    let unseen = |reason: &str| matches!(reason, "ExitCodeUnknown" | "Deleted");
    verdict
        .history
        .count(|fact| matches!(fact, Fact::Recorded { reason: Some(reason), .. } if unseen(reason)))
}

/// Waits until a run is in this phase.
async fn wait_for(director: &mut Director, phase: &str) {
    let began = tokio::time::Instant::now();
    let is = |run: &serde_json::Value| run["status"]["phase"].as_str() == Some(phase);
    while !all(&director.world, "agentruns").iter().any(is) {
        assert!(began.elapsed() < LIMIT, "no run is {phase}");
        director.pass(Duration::from_millis(50)).await;
    }
}

#[test]
fn f13_a_run_that_went_with_its_task_is_not_made_again_by_who_has_not_heard_of_that() {
    for seed in 0..SEEDS {
        let verdict = play("task", seed, async |director| {
            // The task waits for a node, so that it can be deleted before its first run.
            director.world.faults().cut_up.extend(NODES.map(str::to_owned));
            director.pass(Duration::from_secs(2)).await;
            director.task(TASK);
            director.pass(Duration::from_secs(2)).await;
            director.outdate("controller", "codingtasks");
            director.delete("codingtasks", TASK);
            director.world.faults().cut_up.clear();
            director.pass(DECIDES).await;
        });
        let text = || verdict.history.text();
        assert_eq!(verdict.violations, [], "seed {seed}:\n{}", text());
        assert_eq!(made(&verdict, "plan-1"), 1, "seed {seed}:\n{}", text());
    }
}

#[test]
fn f13_a_controller_whose_lists_are_older_than_a_live_run_makes_no_second_one() {
    for seed in 0..SEEDS {
        let verdict = play("run", seed, async |director| {
            director.pass(Duration::from_secs(2)).await;
            director.task(TASK);
            for plural in ["codingtasks", "agentruns"] {
                director.outdate(NEXT, plural);
            }
            wait_for(director, "Running").await;
            director.kill_controller(0);
            director.pass(DECIDES).await;
            let of_next = |fact: &Fact| matches!(fact, Fact::Wrote { by, .. } if by == NEXT);
            assert!(director.world.history().count(of_next) > 0, "it has decided nothing");
        });
        let text = || verdict.history.text();
        assert_eq!(verdict.violations, [], "seed {seed}:\n{}", text());
        assert_eq!(made(&verdict, "plan-1"), 1, "seed {seed}:\n{}", text());
    }
}

#[test]
fn f13_a_supervisor_whose_list_is_older_than_a_pod_does_not_take_it_for_gone() {
    for seed in 0..SEEDS {
        let verdict = play("pod", seed, async |director| {
            director.pass(Duration::from_secs(2)).await;
            for next_life in ["node-a#2", "node-b#2"] {
                director.outdate(next_life, "pods");
            }
            director.task(TASK);
            wait_for(director, "Running").await;
            for node in NODES {
                director.kill_supervisor(node);
            }
            // A supervisor is away for up to half a minute.
            director.pass(Duration::from_secs(30) + DECIDES).await;
        });
        let text = || verdict.history.text();
        assert_eq!(verdict.violations, [], "seed {seed}:\n{}", text());
        assert_eq!(lost(&verdict), 0, "seed {seed}:\n{}", text());
    }
}
