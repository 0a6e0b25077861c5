//! Links that are cut: between a supervisor and its controller, in one direction and in both (class 14),
//! and between a supervisor and the API server alone (class 15).

use kube::ResourceExt as _;
use serde_json::json;

use super::{
    harm::{
        cut::{API_SERVER, CONTROLLER, Cut, Direction, Place},
        victim::Node,
    },
    trial::{Trial, assert_untouched, on},
};
use crate::support::cluster::{NAMESPACE, phase};

/// The node whose supervisor is cut off.
const NODE: Node = Node::B;
/// Rows of a step that goes on for some ten seconds behind the cut.
const ROWS: u64 = 40;
/// Rows of a step that ends after the permission to write has lapsed. A node that is not heard is still told that it may
/// write until the controller has noticed: the node lease of 15 s, and 5 s for the permission itself.
const ROWS_ONE_WAY: u64 = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the local cluster: tests/run faults"]
async fn f14_steps_go_on_and_time_out_without_a_controller_and_are_told_once_it_is_back() {
    let trial = Trial::begin("cut-both").await;
    let (ticking, sleeping) = trial.two_on(NODE, ROWS).await;
    let run = trial.running(&ticking, "implement").await.name_any();
    let cut = Cut::new(Place::supervisor(NODE), CONTROLLER, Direction::Both);
    trial.agent_is_gone(&sleeping).await;
    trial.held_up_by(&ticking, "Scheduled", "NodeUnknown").await;
    trial.commit_waits(NODE, &run).await;
    assert_eq!(trial.published(&ticking).await, None, "a node that is cut off publishes nothing");
    // Work for any node goes to one that answers.
    let other = trial.ticking(1, &json!({})).await;
    let done = trial.end_of(&other).await;
    for run in trial.cluster.runs(NAMESPACE, &other).await {
        assert_ne!(run.spec.node_name, NODE.name(), "a silent node gets no work");
    }
    drop(cut);
    let ended = trial.judge(false).await;
    assert_untouched(&done);
    assert_untouched(&ended[&ticking]);
    assert_timed_out(&ended[&sleeping]);
}

fn assert_timed_out(task: &agent_operator::crd::CodingTask) {
    assert_eq!(phase(task), "Failed");
    let runs = task.status.clone().expect("a status").agent_runs;
    assert_eq!(runs.len(), 1, "{runs:?}");
}

/// Packets vanish in one direction only: what the other end still hears must not keep it waiting.
async fn one_way(name: &str, direction: Direction) {
    let trial = Trial::begin(name).await;
    let ticking = trial.ticking(ROWS_ONE_WAY, &on(NODE)).await;
    let run = trial.running(&ticking, "implement").await.name_any();
    let cut = Cut::new(Place::supervisor(NODE), CONTROLLER, direction);
    trial.held_up_by(&ticking, "Scheduled", "NodeUnknown").await;
    trial.commit_waits(NODE, &run).await;
    assert_eq!(trial.published(&ticking).await, None, "a node that is cut off publishes nothing");
    drop(cut);
    let ended = trial.judge(false).await;
    assert_untouched(&ended[&ticking]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the local cluster: tests/run faults"]
async fn f14_a_supervisor_that_hears_but_is_not_heard_loses_nothing() {
    one_way("cut-out", Direction::Out).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the local cluster: tests/run faults"]
async fn f14_a_supervisor_that_is_heard_but_hears_nothing_loses_nothing() {
    one_way("cut-in", Direction::In).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the local cluster: tests/run faults"]
async fn f15_steps_end_and_are_recorded_while_their_supervisor_has_no_api_server() {
    let trial = Trial::begin("cut-api").await;
    let (ticking, sleeping) = trial.two_on(NODE, ROWS).await;
    let cut = Cut::new(Place::supervisor(NODE), API_SERVER, Direction::Both);
    // Both outcomes take the way by the controller.
    let failed = trial.end_of(&sleeping).await;
    trial.cluster.run_in_phase(NAMESPACE, &ticking, "implement", "Succeeded").await;
    drop(cut);
    let ended = trial.judge(false).await;
    assert_timed_out(&failed);
    assert_untouched(&ended[&ticking]);
}
