//! The kubelet rotates a log that is being followed; the followed log is whole, or its gaps are told.

use serde_json::json;

use crate::support::{
    cluster::{Cluster, NAMESPACE},
    grpcurl, logs,
    task::{command_agent, task, unique},
};

/// Lines of about 1 KiB: some 24 MiB, several files at any size that a kubelet rotates at below that.
const LINES: usize = 24_000;

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn a_log_that_the_kubelet_rotates_is_followed_whole() {
    let cluster = Cluster::connect().await;
    let name = unique("rotated");
    // Paced by size and not by time: eight parts with a second between them give the kubelet its turns.
    let script = format!(
        "[ \"$AGENT_STEP\" = plan ] || {{ echo change > change.txt; exit 0; }}; \
         pad=$(printf '%1000s' x); i=0; while [ $i -lt {LINES} ]; do echo \"row $i $pad\"; i=$((i+1)); \
         [ $((i % 3000)) -ne 0 ] || sleep 1; done"
    );
    cluster.create(NAMESPACE, &task(&name, "Write much.", &command_agent(&script))).await;
    cluster.complete(NAMESPACE, &name).await;
    let token = logs::viewer_token(&cluster, &unique("reader")).await;
    let plan = cluster.runs(NAMESPACE, &name).await.remove(0);
    let run = plan.metadata.name.expect("a name");
    let request = json!({"namespace": NAMESPACE, "run": run, "follow": true});
    let events = grpcurl::call(Some(&token), logs::FOLLOW, &request).await.expect("the whole log");
    let told = logs::Rows::of(&events);
    println!(
        "kubelet rotation: {LINES} rows written, {} told, {} doubled or out of order, {} gaps {:?}",
        told.rows.len(),
        told.disordered(),
        told.gaps.len(),
        told.gaps
    );
    assert_eq!(told.disordered(), 0);
    let whole = told.rows.len() == LINES;
    assert!(whole || !told.gaps.is_empty(), "rows are missing and no gap stands in their place");
}
