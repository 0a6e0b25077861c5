//! A node is gone and comes back, with nobody's word that it is fenced: first cut off and without its
//! kubelet and runtime while its steps run on, then by a power cut that ends everything on it.

use nix::sys::signal::Signal;

use super::{
    harm::{
        cut::{Cut, Direction, Link, Place},
        victim::{Node, Victim, pods_of, shims_of},
    },
    trial::{SOON, Trial, assert_untouched, on},
};
use crate::support::{
    cluster::{NAMESPACE, SYSTEM, phase},
    eventually, processes, release,
};

/// The node that is lost; the other one carries the control plane.
const LOST: Node = Node::B;
/// Rows of a step that is in its middle when the node goes.
const ROWS: u64 = 60;
const CONTROLLER: &str = "app.kubernetes.io/component=controller";

/// Moves the controller off the node that is about to be lost.
async fn controller_is_elsewhere(trial: &Trial) {
    let lost = LOST.name();
    let cordon = release::must("kubectl", &["cordon", lost]).await;
    drop(cordon);
    let pods = trial.cluster.pods(SYSTEM);
    let by_label = kube::api::ListParams::default().labels(CONTROLLER);
    for pod in pods.list(&by_label).await.expect("the release's pods").items {
        if pod.spec.and_then(|spec| spec.node_name).as_deref() == Some(lost) {
            let name = pod.metadata.name.expect("a name");
            release::must("kubectl", &["-n", SYSTEM, "delete", "pod", &name]).await;
        }
    }
    release::rolled_out(SYSTEM).await;
    release::must("kubectl", &["uncordon", lost]).await;
}

/// Waits until the implement step has its outcome.
async fn implement_has_ended(trial: &Trial, task: &str) {
    eventually("the step's end is told", SOON, || async {
        let runs = trial.cluster.runs(NAMESPACE, task).await;
        let implement = runs.iter().find(|run| run.spec.step == "implement");
        let phase = implement.and_then(|run| run.status.as_ref()?.phase.clone());
        if phase.as_deref() == Some("Succeeded") { Ok(()) } else { Err(format!("{phase:?}")) }
    })
    .await;
}

async fn node_is_back() {
    let wait = ["wait", "--for=condition=Ready", "node", LOST.name(), "--timeout=180s"];
    release::must("kubectl", &wait).await;
    release::rolled_out(SYSTEM).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the local cluster: tests/run faults"]
async fn f12_f14_a_node_that_is_cut_off_goes_on_and_is_not_replaced() {
    let trial = Trial::begin("lost-link").await;
    controller_is_elsewhere(&trial).await;
    let (ticking, sleeping) = trial.two_on(LOST, ROWS).await;

    let cut = Cut::new(Place::node(LOST), Link::Everything, Direction::Both);
    let kubelet = Victim::Kubelet(LOST).kill();
    let containerd = Victim::Containerd(LOST).kill();
    trial.held_up_by(&ticking, "Scheduled", "NodeUnknown").await;
    trial.agent_is_gone(&sleeping).await;
    assert_eq!(trial.cluster.runs(NAMESPACE, &ticking).await.len(), 2, "nothing is replaced");
    drop(cut);
    implement_has_ended(&trial, &ticking).await;
    // Last, so that what was printed without a runtime is copied when everybody else knows the end.
    drop(containerd);
    drop(kubelet);
    node_is_back().await;

    let ended = trial.judge(true).await;
    assert_untouched(&ended[&ticking]);
    assert_eq!(phase(&ended[&sleeping]), "Failed");
    let runs = ended[&sleeping].status.clone().expect("a status").agent_runs;
    assert_eq!(runs.len(), 1, "{runs:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the local cluster: tests/run faults"]
async fn f7_a_power_cut_costs_one_attempt_of_the_infrastructures_budget() {
    let trial = Trial::begin("lost-power").await;
    controller_is_elsewhere(&trial).await;
    let ticking = trial.ticking(ROWS, &on(LOST)).await;
    trial.running(&ticking, "implement").await;

    let cut = Cut::new(Place::node(LOST), Link::Everything, Direction::Both);
    let kubelet = Victim::Kubelet(LOST).kill();
    let containerd = Victim::Containerd(LOST).kill();
    // Shims first: a power cut leaves nobody who could tell how a container ended.
    eventually("everything on the node is dead", SOON, || async {
        let left = [shims_of(LOST), pods_of(LOST)].concat();
        for pid in &left {
            processes::signal(*pid, Signal::SIGKILL);
        }
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    trial.held_up_by(&ticking, "Scheduled", "NodeUnknown").await;
    assert_eq!(trial.cluster.runs(NAMESPACE, &ticking).await.len(), 2, "nothing is replaced");
    drop(cut);
    drop(containerd);
    drop(kubelet);
    node_is_back().await;

    let ended = trial.judge(false).await;
    let status = ended[&ticking].status.clone().expect("a status");
    assert_eq!(status.phase.as_deref(), Some("Complete"), "{status:#?}");
    let retries = status.retries.expect("counts");
    assert_eq!((retries.application, retries.infrastructure), (0, 1));
    assert_eq!(status.agent_runs.len(), 5, "{:?}", status.agent_runs);
}
