//! A node is gone and comes back, with nobody's word that it is fenced: first cut off and without its
//! kubelet and runtime while its steps run on, then by a power cut that ends everything on it.

use std::{fs, path::PathBuf};

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
    env, eventually, grpcurl, logs, processes, release,
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

/// Waits until the runtime, which was started again, has copied what a step has printed meanwhile.
async fn runtime_goes_on(task: &str) {
    let pods = PathBuf::from(env("AO_STATE")).join(LOST.name()).join("host/var/log/pods");
    let last = format!("row {} ", ROWS - 1);
    eventually("the log of the step goes on", SOON, || async {
        let folders = fs::read_dir(&pods).expect("the node's logs").flatten();
        let mut of_task = folders.filter(|it| it.file_name().to_string_lossy().contains(task));
        let whole = of_task.any(|folder| {
            fs::read_to_string(folder.path().join("agent/0.log"))
                .is_ok_and(|log| log.contains(&last))
        });
        if whole { Ok(()) } else { Err(format!("no {last:?} below {}", pods.display())) }
    })
    .await;
}

/// The runtime lets go what nobody has taken from a container that has ended. Of a step that ended while there was none,
/// that is the runner's last word: the log says that it is missing, and how much it was.
async fn last_words_are_a_gap(trial: &Trial, task: &str) {
    let run = trial.cluster.runs(NAMESPACE, task).await.remove(0);
    let token = grpcurl::token(NAMESPACE, "viewer").await;
    let request = json!({"namespace": NAMESPACE, "run": run.name_any(), "follow": true});
    // Until the node has given the rest up, it is not there yet for whoever follows.
    let gap = eventually("the node says what is missing", SOON, || async {
        let events = grpcurl::call(Some(&token), logs::FOLLOW, &request).await?;
        let mut gaps = events.iter().map(|event| &event["gap"]).filter(|gap| gap.is_object());
        let (gap, more) = (gaps.next().cloned().unwrap_or_default(), gaps.count());
        assert_eq!(more, 0, "one hole: {events:#?}");
        if gap["reason"] == "NotCopied" { Ok(gap) } else { Err(format!("{events:#?}")) }
    })
    .await;
    let offset = |of: &str| gap[of].as_str().and_then(|digits| digits.parse::<u64>().ok());
    let lost = offset("to").expect("an offset") - offset("from").expect("an offset");
    // By its own clock, or by the supervisor's order.
    let of_order = run.status.and_then(|status| status.message).expect("an outcome");
    let words = ["the step's timeout has passed", &of_order];
    let sizes = words.map(|words| format!("[runner] TimedOut: {words}\n").len() as u64);
    assert!(sizes.contains(&lost), "{sizes:?}: {gap}");
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
    // Before the link: it would tell the ends of containers after everybody else.
    drop(containerd);
    runtime_goes_on(&ticking).await;
    drop(cut);
    drop(kubelet);
    node_is_back().await;
    last_words_are_a_gap(&trial, &sleeping).await;

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
