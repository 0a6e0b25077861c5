//! The network of an agent is closed before it starts: it reaches its gateway and nothing else, its task
//! completes all the same, and the status says so.

use super::start_faults::assert_no_harm;
use crate::support::{
    cluster::{Cluster, NAMESPACE},
    egress,
    task::{command_agent, task, unique},
};

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn an_agent_reaches_nothing_but_its_gateway_and_its_task_completes() {
    let cluster = Cluster::connect().await;
    let name = unique("egress");
    let targets = egress::targets(&cluster).await;
    assert!(targets.len() > 15, "{targets:?}");
    let script = format!(
        "{}[ \"$AGENT_STEP\" = implement ] && date +%N > done.txt; echo step $AGENT_STEP",
        egress::scan(&targets)
    );
    cluster.create(NAMESPACE, &task(&name, "Reach out.", &command_agent(&script))).await;
    cluster.complete(NAMESPACE, &name).await;
    let runs = cluster.runs(NAMESPACE, &name).await;
    assert_eq!(runs.len(), 4, "{runs:#?}");
    for run in runs {
        let status = run.status.expect("a status");
        let level = status.sandbox.and_then(|sandbox| sandbox.egress);
        assert_eq!(level.as_deref(), Some("Enforced"), "{}", run.spec.step);
        // Only the test step runs no agent.
        if run.spec.step != "test" {
            let log = cluster.log(NAMESPACE, &status.pod_name.expect("a pod")).await;
            assert_eq!(egress::reached(&log, targets.len()), Vec::<String>::new(), "{log}");
        }
    }
    assert_no_harm(&cluster, NAMESPACE, &name).await;
}
