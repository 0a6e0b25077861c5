//! A controller that cannot open anything more, in the middle of two tasks: it says what it lacks, and goes
//! on by itself once it has it (class 37). Supervisor and gateway are tried so in `supervisor/tests/want.rs`.

use agent_operator_doubles::process::NO_DESCRIPTORS;
use kube::{
    ResourceExt as _,
    api::{ListParams, LogParams},
};
use serde_json::json;

use super::{
    harm::{
        victim::{Node, Victim},
        want::Want,
    },
    say,
    trial::{SOON, Trial, assert_untouched},
};
use crate::support::{
    cluster::{Cluster, NAMESPACE, SYSTEM, phase},
    eventually, grpcurl, logs,
};

const NODE: Node = Node::A;
/// Rows of the step in whose middle it happens, four a second: longer than the other task's timeout.
const ROWS: u64 = 160;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the local cluster: tests/run faults"]
async fn f37_a_controller_without_descriptors_says_what_is_missing_loses_nothing_and_recovers() {
    let trial = Trial::begin("want").await;
    let token = grpcurl::token(NAMESPACE, "viewer").await;
    let (ticking, sleeping) = trial.two_on(NODE, ROWS).await;
    let want = Want::of(Victim::Controller);
    assert!(want.is_some(), "a controller runs");
    // The kernel accepts whoever dials; the controller cannot.
    let request = json!({"namespace": NAMESPACE, "task": ticking});
    let dialled = tokio::spawn(async move {
        let asked = grpcurl::call(Some(&token), logs::FOLLOW, &request);
        tokio::time::timeout(SOON, asked).await.is_ok()
    });
    eventually("it says what is missing", SOON, || async {
        if told_by_controllers(&trial.cluster).await.contains(NO_DESCRIPTORS) {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    })
    .await;
    // The node keeps the deadline whatever the controller lacks.
    trial.agent_is_gone(&sleeping).await;
    drop(want);
    assert!(
        dialled.await.expect("the dial itself"),
        "whoever dialled meanwhile is not left waiting"
    );
    let ended = trial.judge(false).await;
    assert_untouched(&ended[&ticking]);
    assert_eq!(phase(&ended[&sleeping]), "Failed");
}

/// What the present and the last process of each controller have said.
async fn told_by_controllers(cluster: &Cluster) -> String {
    let pods = cluster.pods(SYSTEM);
    let of_controller = ListParams::default().labels("app.kubernetes.io/component=controller");
    let mut told = String::new();
    let mut restarts = 0;
    for pod in pods.list(&of_controller).await.map(|list| list.items).unwrap_or_default() {
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
        restarts += statuses.into_iter().flatten().map(|status| status.restart_count).sum::<i32>();
        for previous in [false, true] {
            let which = LogParams { previous, ..LogParams::default() };
            told += &pods.logs(&pod.name_any(), &which).await.unwrap_or_default();
        }
    }
    if told.contains(NO_DESCRIPTORS) {
        say(&format!("a controller without descriptors said so; restarts so far: {restarts}"));
    }
    told
}
