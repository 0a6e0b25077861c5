//! The next step's pod, made while the step before is running: it waits behind its gate, knows nothing and
//! holds nothing, and each step is run once.

use agent_operator::crd::AgentRun;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::support::{
    cluster::{Cluster, NAMESPACE, SYSTEM, TASK_LIMIT, run_phase},
    eventually,
    release::must,
    task::{command_agent, merge, task, unique},
};

/// Takes its time in the steps during which the next pod is made.
const SCRIPT: &str = r#"
case "$AGENT_STEP" in
  plan) sleep 6 ;;
  implement) if [ -f first ]; then echo x > second; else echo x > first; fi; sleep 6 ;;
esac
echo "did $AGENT_STEP"
"#;

fn spec(test: &str) -> Value {
    let mut spec = command_agent(SCRIPT);
    let test = json!({"command": ["sh", "-c", test]});
    merge(&mut spec, &json!({"prepareNextStep": true, "test": test}));
    spec
}

/// How often a credential was handed out for a run, by the audit of the gateways.
async fn handed_out(run: &str) -> usize {
    let selector = "app.kubernetes.io/component=supervisor";
    let logs = ["-n", SYSTEM, "logs", "-l", selector, "-c", "gateway", "--tail=-1"];
    let text = must("kubectl", &logs).await;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["run"] == run && line["act"] == "credential_handed_out").count()
}

/// Waits until the pod of a run of `step` stands at its gate, while `before` is still running.
async fn at_gate(cluster: &Cluster, name: &str, step: &str, before: &str) -> AgentRun {
    eventually(&format!("{step} of {name} waits at its gate"), TASK_LIMIT, || async {
        let runs = cluster.runs(NAMESPACE, name).await;
        let run = runs.iter().find(|run| run.spec.step == step && run_phase(run) == "Pending");
        let run = run.ok_or(cluster.describe(NAMESPACE, name).await)?;
        for pod in cluster.task_pods(NAMESPACE, name).await {
            let of_run = pod
                .owner_references()
                .iter()
                .any(|owner| run.uid().as_deref() == Some(owner.uid.as_str()));
            let log = cluster.log(NAMESPACE, &pod.name_any()).await;
            if of_run && log.contains("waiting at the start gate") {
                let runs = cluster.runs(NAMESPACE, name).await;
                let former = runs.iter().find(|run| run.spec.step == before).expect("it runs");
                assert_eq!(run_phase(former), "Running", "the step before had ended already");
                return Ok(run.clone());
            }
        }
        Err(format!("{} has no pod at its gate", run.name_any()))
    })
    .await
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn the_next_pod_waits_behind_its_gate_without_credentials_and_each_step_is_run_once() {
    let cluster = Cluster::connect().await;
    let name = unique("prepared");
    cluster.create(NAMESPACE, &task(&name, "Change a file.", &spec("test -f first"))).await;
    let held = at_gate(&cluster, &name, "implement", "plan").await;
    assert!(held.spec.prepared);
    let started = held.status.clone().and_then(|status| status.start_time);
    assert_eq!(started, None, "its gate is closed");
    assert_eq!(handed_out(&held.name_any()).await, 0, "no credential before its turn");
    at_gate(&cluster, &name, "test", "implement").await;
    assert!(handed_out(&held.name_any()).await > 0, "it got its own at its gate");

    let done = cluster.complete(NAMESPACE, &name).await.status.expect("a status");
    let runs = cluster.runs(NAMESPACE, &name).await;
    let steps: Vec<&str> = runs.iter().map(|run| run.spec.step.as_str()).collect();
    assert_eq!(steps, ["plan", "implement", "test", "pull-request"]);
    let ahead: Vec<bool> = runs.iter().map(|run| run.spec.prepared).collect();
    assert_eq!(ahead, [false, true, true, false]);
    assert_eq!(runs[1].uid(), held.uid(), "the pod that waited is the one that ran");
    assert_eq!(done.retry_count, Some(0));
    let branch = done.repositories[0].work_branch.clone().expect("a work branch");
    assert_eq!(cluster.forge.pull_requests(&branch).await.len(), 1);
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn failing_tests_lead_back_with_nothing_left_of_what_was_made_ahead() {
    let cluster = Cluster::connect().await;
    let name = unique("prepared-red");
    cluster.create(NAMESPACE, &task(&name, "Change a file.", &spec("ls second"))).await;
    let done = cluster.complete(NAMESPACE, &name).await.status.expect("a status");
    assert_eq!(done.retry_count, Some(1));
    let runs = cluster.runs(NAMESPACE, &name).await;
    let steps: Vec<&str> = runs.iter().map(|run| run.spec.step.as_str()).collect();
    assert_eq!(steps, ["plan", "implement", "test", "implement", "test", "pull-request"]);
    for run in &runs {
        assert!(["Succeeded", "Failed"].contains(&run_phase(run).as_str()), "{}", run.name_any());
        let again = run.spec.step == "implement" && run.spec.attempt == 2;
        assert!(!again || run.spec.feedback_from.is_some(), "the second try knows what failed");
    }
    let branch = done.repositories[0].work_branch.clone().expect("a work branch");
    assert_eq!(cluster.forge.pull_requests(&branch).await.len(), 1);
}
