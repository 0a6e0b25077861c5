//! Figures of `docs/reliability.md` that need a real API server.

use std::time::Duration;

use agent_operator::domain::{Reason, StepName};
use futures::{StreamExt as _, stream};
use serde_json::json;
use tokio::time::Instant;

use super::support::{Controller, Fleet, ground, hang_at, outcome};

/// Live tasks; a quick look with fewer: `AO_FIGURE_TASKS=50`.
const TASKS: u32 = 1000;
/// What must be reached, by the promise.
const GOAL: Duration = Duration::from_secs(1);
/// Limit of the whole preparation: some five thousand writes beside everything else.
const LIMIT: Duration = Duration::from_mins(8);
/// Requests at once while tasks are made.
const AT_ONCE: usize = 16;

/// Waits until `enough`, looking often: the time of the first true look is the figure.
async fn until(what: &str, enough: impl Fn() -> bool) {
    let wait = async {
        while !enough() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.unwrap_or_else(|_| panic!("not in {LIMIT:?}: {what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn figure_a_restarted_controller_decides_beside_a_thousand_live_tasks() {
    let Some(ground) = ground().await else { return };
    let count = std::env::var("AO_FIGURE_TASKS").ok().and_then(|text| text.parse().ok());
    let count: u32 = count.unwrap_or(TASKS);
    let tasks = usize::try_from(count).unwrap();
    ground.node_with("node-a", json!({"cpu": "2000", "memory": "4Ti"})).await;
    ground.secret().await;
    let fleet = Fleet::with_slots(&["node-a"], count, hang_at(StepName::Plan));
    let first = Controller::start(&ground, fleet.clone()).await;
    first.epoch().await;
    let made = stream::iter(0..tasks)
        .map(|number| {
            let ground = &ground;
            async move { ground.task(&format!("task-{number}"), json!({})).await }
        })
        .buffer_unordered(AT_ONCE);
    assert_eq!(made.count().await, tasks);
    until("all steps run", || fleet.hanging().len() == tasks).await;
    first.stop().await;
    let before = ground.all_runs().await.len();

    // One step ends meanwhile: the right decision is its task's next step, and nothing else.
    let ended = fleet.hanging().swap_remove(tasks / 2);
    fleet.end_unheard(&ended, outcome(&ended, Reason::Completed));
    let began = Instant::now();
    let second = Controller::start(&ground, fleet.clone()).await;
    until("the next step is handed out", || {
        let assignments = fleet.assignments();
        assignments.iter().rev().any(|(assignment, _)| assignment.step == StepName::Implement)
    })
    .await;
    let took = began.elapsed();
    let runs = ground.all_runs().await;
    let doubled = runs.iter().filter(|run| run.spec.step == "plan").count() - tasks;
    println!(
        "figure: controller restart to first right decision beside {tasks} live tasks: {:.2} of the goal of \
         {GOAL:?}, {doubled} runs doubled",
        took.as_secs_f64() / GOAL.as_secs_f64()
    );
    assert_eq!((before, doubled), (tasks, 0));
    second.stop().await;
}
