//! The kubelet rotates a log that is being followed; the followed log is whole, live and afterwards.

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use kube::ResourceExt as _;
use serde_json::json;

use crate::support::{
    cluster::{Cluster, NAMESPACE},
    eventually, grpcurl, logs, processes,
    task::{command_agent, task, unique},
};

/// Lines of about 1 KiB, in seven parts of more than the local cluster's `containerLogMaxSize`.
const LINES: usize = 42_000;
const PART: usize = 6000;
/// Between two parts: longer than the pause between two looks of the local cluster's kubelets.
const PAUSE_SECONDS: usize = 4;
/// Pause between two looks at the node's files: a rotated file stays for several rotations.
const LOOK: Duration = Duration::from_millis(500);

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn i5_a_log_that_the_kubelet_rotates_is_followed_whole() {
    let cluster = Cluster::connect().await;
    let name = unique("rotated");
    let script = format!(
        "[ \"$AGENT_STEP\" = plan ] || {{ echo change > change.txt; exit 0; }}; \
         pad=$(printf '%1000s' x); i=0; while [ $i -lt {LINES} ]; do echo \"row $i $pad\"; i=$((i+1)); \
         [ $((i % {PART})) -ne 0 ] || sleep {PAUSE_SECONDS}; done"
    );
    cluster.create(NAMESPACE, &task(&name, "Write much.", &command_agent(&script))).await;
    let plan = cluster.run_in_phase(NAMESPACE, &name, "plan", "Running").await;
    let token = logs::viewer_token(&cluster, &unique("reader")).await;
    let run = plan.metadata.name.clone().expect("a name");
    let request = json!({"namespace": NAMESPACE, "run": run, "follow": true});
    let live = tokio::spawn({
        let (token, request) = (token.clone(), request.clone());
        async move {
            // A new right takes a moment to hold.
            eventually("the log is followed", Duration::from_mins(5), || async {
                grpcurl::call(Some(&token), logs::FOLLOW, &request).await
            })
            .await
        }
    });
    let pod = plan.status.and_then(|status| status.pod_name).expect("a pod");
    let folder = log_folder(&cluster, &plan.spec.node_name, &pod).await;
    let mut rotated = BTreeSet::new();
    while !live.is_finished() {
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        rotated.extend(names.filter_map(|name| stamp(&name).map(str::to_owned)));
        tokio::time::sleep(LOOK).await;
    }
    let live = live.await.expect("the reader");
    let afterwards = grpcurl::call(Some(&token), logs::FOLLOW, &request).await.expect("the log");
    for (when, events) in [("live", live), ("afterwards", afterwards)] {
        let told = logs::Rows::of(&events);
        println!(
            "figure: {} rotations by the kubelet, {when}: {LINES} rows written, {} lost, {} doubled or out of \
             order, {} gaps",
            rotated.len(),
            LINES - told.rows.len().min(LINES),
            told.disordered(),
            told.gaps.len(),
        );
        assert_eq!(told.disordered(), 0, "{when}");
        // On a machine that stands still for seconds output may be dropped, and then says so.
        let whole = told.rows.len() == LINES;
        assert!(
            whole || !told.gaps.is_empty(),
            "{when}: rows are missing, and no gap stands there"
        );
    }
    assert!(!rotated.is_empty(), "the kubelet has not rotated: the test showed nothing");
    cluster.complete(NAMESPACE, &name).await;
}

/// The rotated file that a name stands for, compressed or not.
fn stamp(name: &str) -> Option<&str> {
    let stamp = name.strip_prefix("0.log.")?;
    Some(stamp.trim_end_matches(".tmp").trim_end_matches(".gz"))
}

/// The folder of the agent's log, as the supervisor of its node sees it.
async fn log_folder(cluster: &Cluster, node: &str, pod: &str) -> PathBuf {
    let label = "app.kubernetes.io/component=supervisor";
    let found = processes::find_program(cluster, label, Some(node), "supervisor run").await;
    let pid = found.first().expect("a supervisor");
    let uid = cluster.pods(NAMESPACE).get(pod).await.expect("the pod").uid().expect("a uid");
    let root = PathBuf::from("/proc").join(pid.to_string()).join("root/var/log/pods");
    root.join(format!("{NAMESPACE}_{pod}_{uid}/agent"))
}
