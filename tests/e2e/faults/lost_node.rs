//! A node is gone and comes back, with nobody's word that it is fenced: first cut off and without its
//! kubelet and runtime while its steps run on, then by a power cut that ends everything on it.

use kube::ResourceExt as _;
use nix::sys::signal::Signal;
use serde_json::json;

use super::{
    harm::{
        cut::{Cut, Direction, Link, Place},
        victim::{Node, Victim, pods_of, shims_of},
    },
    trial::{SOON, Trial, assert_untouched, on},
};
use crate::support::{
    cluster::{NAMESPACE, SYSTEM, phase},
    eventually, grpcurl,
    logs::{self, Rows},
    processes, release,
};

/// The node that is lost; the other one carries the control plane.
const LOST: Node = Node::B;
/// Rows of a step that is in its middle when the node goes.
const ROWS: u64 = 60;
/// More than a runner says of its own at the end of a step.
const OWN_WORDS: u64 = 1024;
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

/// Waits until the implement step has its outcome; the name of its run.
async fn implement_has_ended(trial: &Trial, task: &str) -> String {
    eventually("the step's end is told", SOON, || async {
        let runs = trial.cluster.runs(NAMESPACE, task).await;
        let implement = runs.iter().find(|run| run.spec.step == "implement").expect("a run");
        let phase = implement.status.as_ref().and_then(|status| status.phase.as_deref());
        if phase == Some("Succeeded") {
            Ok(implement.name_any())
        } else {
            Err(format!("{phase:?}"))
        }
    })
    .await
}

/// The runtime lets go what nobody has taken from a container that has ended: the log says how much that is.
async fn what_was_not_copied_is_a_gap(run: &str) {
    let token = grpcurl::token(NAMESPACE, "viewer").await;
    let request = json!({"namespace": NAMESPACE, "run": run, "follow": true});
    let events = eventually("the log is read to its end", SOON, || async {
        grpcurl::call(Some(&token), logs::FOLLOW, &request).await
    })
    .await;
    let told = Rows::of(&events).rows;
    let missing = (0..ROWS).filter(|row| !told.contains(row)).map(|row| format!("row {row} \n"));
    let missing: u64 = missing.map(|line| line.len() as u64).sum();
    assert!(missing > 0, "the runtime was away: {told:?}");
    let gaps: Vec<_> =
        events.iter().map(|event| &event["gap"]).filter(|gap| gap.is_object()).collect();
    let [gap] = gaps[..] else { panic!("one hole, and all behind it: {gaps:?}") };
    let offset = |of: &str| gap[of].as_str().and_then(|digits| digits.parse::<u64>().ok());
    let lost = offset("to").expect("an offset") - offset("from").expect("an offset");
    // What the runner itself said meanwhile is lost, too.
    assert!(lost >= missing && lost < missing + OWN_WORDS, "{gap} for {missing} bytes of rows");
    assert_eq!(gap["reason"], "NotCopied");
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
    let run = implement_has_ended(&trial, &ticking).await;
    drop(containerd);
    drop(kubelet);
    node_is_back().await;
    what_was_not_copied_is_a_gap(&run).await;

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
