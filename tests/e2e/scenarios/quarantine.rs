//! What an agent pushes is looked at before it goes upstream, and a refusal is told to the user.

use serde_json::json;

use crate::support::{
    cluster::{Cluster, NAMESPACE, phase},
    eventually,
    task::{command_agent, merge, task, unique},
};

/// Changes a workflow beside something harmless.
const SCRIPT: &str = "[ \"$AGENT_STEP\" = implement ] || { echo in step $AGENT_STEP; exit 0; }
    mkdir -p .github/workflows; echo 'on: push' > .github/workflows/deploy.yml; echo x > harmless.txt";

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn a_change_of_a_workflow_is_refused_with_its_path_and_nothing_of_it_goes_upstream() {
    let cluster = Cluster::connect().await;
    let name = unique("protected");
    let mut spec = command_agent(SCRIPT);
    merge(&mut spec, &json!({"test": {"command": ["true"]}, "maxRetries": 0}));
    cluster.create(NAMESPACE, &task(&name, "Change a workflow.", &spec)).await;
    let done = cluster.finished(NAMESPACE, &name).await;
    assert_eq!(phase(&done), "Failed");
    let message = done.status.and_then(|status| status.message).unwrap_or_default();
    for wanted in ["PushRefused", ".github/workflows/deploy.yml", "gateway.git.protectedPaths"] {
        assert!(message.contains(wanted), "{wanted} is not in {message:?}");
    }
    assert_eq!(cluster.forge.branches(&format!("ai/{name}")).await, Vec::<String>::new());

    let runs = cluster.runs(NAMESPACE, &name).await;
    let refused = runs.iter().find(|run| run.spec.step == "implement").expect("an implement run");
    let status = refused.status.clone().unwrap_or_default();
    let counted = |target: &str| {
        status.refusals.iter().any(|one| one.kind == "git" && one.target.contains(target))
    };
    assert!(counted("protected path .github/workflows/deploy.yml"), "{:?}", status.refusals);
    let run_name = refused.metadata.name.clone();
    eventually("the event tells of it", std::time::Duration::from_secs(20), || async {
        let events = cluster.events(NAMESPACE).await;
        let told = events.iter().any(|event| {
            event.involved_object.name == run_name
                && event.reason.as_deref() == Some("Refused")
                && event.message.as_deref().is_some_and(|text| text.contains("deploy.yml"))
        });
        if told { Ok(()) } else { Err(format!("{} events", events.len())) }
    })
    .await;
}
