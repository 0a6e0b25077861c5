//! F1: the controller is killed before and after every write of a whole task.

use std::{collections::BTreeMap, time::Duration};

use agent_operator_doubles::history::Fact;
use serde_json::{Value, json};

use super::{Verdict, cluster::all, conclude, director::Director, on_paused_time, world::KillAt};

/// Writes that a kill may cost beyond those of a run without one.
const EXTRA_MAX: usize = 3;
/// The task.
const TASK: &str = "sample";

struct Run {
    writes: usize,
    pods: usize,
    state: Value,
    killed: bool,
    verdict: Verdict,
}

fn run(kill: Option<KillAt>) -> Run {
    let name =
        kill.map_or_else(|| "calm".to_owned(), |kill| format!("{}-{}", kill.write, kill.applied));
    let dir =
        std::env::temp_dir().join(format!("agent-operator-kills-{}-{name}", std::process::id()));
    let run = on_paused_time(async {
        let mut director = Director::start(1, &dir, 1, false);
        director.world.faults().kill_at = kill;
        director.pass(Duration::from_secs(2)).await;
        director.task(TASK);
        let world = std::sync::Arc::clone(&director.world);
        while !director.open_tasks().is_empty() {
            director.pass(Duration::from_secs(1)).await;
        }
        let state = state(&world);
        let verdict = conclude(director).await;
        let pods = verdict.history.count(|fact| matches!(fact, Fact::Started { .. }));
        let killed = world.faults().kill_at.is_none();
        Run { writes: world.faults().writes, pods, state, killed, verdict }
    });
    let _ = std::fs::remove_dir_all(dir);
    run
}

/// What is left of a task, without what differs from run to run: times, uids, and names made of them.
fn state(world: &super::world::World) -> Value {
    let runs: BTreeMap<_, _> = all(world, "agentruns")
        .into_iter()
        .map(|run| {
            let status = &run["status"];
            let facts =
                json!([status["phase"], status["reason"], status["exitCode"], status["output"]]);
            (format!("{} {}", run["spec"]["step"], run["spec"]["attempt"]), facts)
        })
        .collect();
    let task = all(world, "codingtasks").remove(0);
    let status = &task["status"];
    json!({
        "runs": runs,
        "phase": status["phase"],
        "plan": status["plan"],
        "pullRequest": status["pullRequest"],
        "retries": status["retries"],
        "step": status["currentStep"],
        "usage": status["usage"],
    })
}

#[test]
fn f1_a_controller_killed_at_any_write_of_a_task_changes_nothing_of_its_end() {
    let calm = run(None);
    assert!(calm.verdict.violations.is_empty(), "{:#?}", calm.verdict.violations);
    assert_eq!(calm.state["phase"], "Complete", "{}", calm.verdict.history.text());
    assert!(calm.writes >= 12, "a task of four steps has {} writes", calm.writes);
    let mut most = 0;
    for write in 0..calm.writes {
        for applied in [false, true] {
            let when = format!("killed {} write {write}", if applied { "after" } else { "before" });
            let killed = run(Some(KillAt { write, applied }));
            let text = || killed.verdict.history.text();
            assert!(killed.killed, "{when}: there was no such write");
            assert_eq!(killed.verdict.violations, [], "{when}:\n{}", text());
            assert_eq!(killed.state, calm.state, "{when}:\n{}", text());
            assert_eq!(killed.pods, calm.pods, "{when}:\n{}", text());
            let extra = killed.writes.saturating_sub(calm.writes);
            assert!(extra <= EXTRA_MAX, "{when}: {extra} writes more\n{}", text());
            most = most.max(extra);
        }
    }
    eprintln!("{} writes, at most {most} more after a kill", calm.writes);
}
