//! A node without its enforcer: rules that are there stay, new steps wait for it; a release without one
//! starts no step that requires a closed network, and says what to install.

use std::time::Duration;

use agent_operator::crd::AgentRunStatus;
use serde_json::json;

use crate::{
    scenarios::start_faults::{assert_helps, assert_no_harm, goes_on, held_up},
    support::{
        cluster::{Cluster, NAMESPACE, SYSTEM},
        egress, env, eventually, release,
        task::{command_agent, merge, task, unique},
    },
};

const ENFORCER: &str = "daemonset/agent-operator-enforcer";
/// Nothing of the enforcer is there, or all of it, within this time.
const ROLLED: Duration = Duration::from_mins(1);

fn level(status: &AgentRunStatus) -> Option<&str> {
    status.sandbox.as_ref()?.egress.as_deref()
}

async fn plan_of(cluster: &Cluster, name: &str) -> (AgentRunStatus, String) {
    let run = cluster.run_in_phase(NAMESPACE, name, "plan", "Succeeded").await;
    let status = run.status.expect("a status");
    let log = cluster.log(NAMESPACE, status.pod_name.as_deref().expect("a pod")).await;
    (status, log)
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run life"]
async fn without_an_enforcer_a_task_that_requires_a_closed_network_waits_and_others_say_what_they_had()
 {
    release::restored(
        |values| async move {
            let more = ["--set", "enforcer.enabled=false"];
            release::install(&release::chart().to_string_lossy(), SYSTEM, &values, &more).await;
            let cluster = Cluster::connect().await;
            let targets = egress::targets(&cluster).await;
            let script = format!("{}echo step $AGENT_STEP", egress::scan(&targets));

            let required = unique("required");
            cluster.create(NAMESPACE, &task(&required, "Wait.", &command_agent("echo hi"))).await;
            let message = held_up(&cluster, NAMESPACE, &required, "EgressOpen").await;
            assert_helps(&message, &["enforcer.enabled", "NetworkPolicy", "BestEffort", ":8081"]);
            assert_no_harm(&cluster, NAMESPACE, &required).await;

            let open = unique("best-effort");
            let mut spec = command_agent(&script);
            merge(&mut spec, &json!({"sandbox": {"egressPolicy": "BestEffort"}}));
            cluster.create(NAMESPACE, &task(&open, "Reach out.", &spec)).await;
            let (status, log) = plan_of(&cluster, &open).await;
            assert_eq!(level(&status), Some("Unenforced"));
            // The control of the scan that reaches nothing where the network is closed.
            let reached = egress::reached(&log, targets.len());
            assert!(reached.iter().any(|what| what.ends_with(" 10250")), "{reached:?}");
            assert!(reached.iter().any(|what| what.ends_with(" 8081")), "{reached:?}");
            assert!(reached.iter().any(|what| what.ends_with(" 443")), "{reached:?}");
            println!("with an open network {} of {} are reached", reached.len(), targets.len());
            cluster.delete(NAMESPACE, &open).await;
            cluster.delete(NAMESPACE, &required).await;
        },
        async {},
    )
    .await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run life"]
async fn rules_outlive_their_enforcer_and_new_steps_wait_for_the_next_one() {
    let cluster = Cluster::connect().await;
    let targets = egress::targets(&cluster).await;
    let name = unique("enforcer-away");
    // Scans once the enforcer is away.
    let script = format!("echo ready; sleep 20\n{}echo step $AGENT_STEP", egress::scan(&targets));
    cluster.create(NAMESPACE, &task(&name, "Reach out.", &command_agent(&script))).await;
    cluster.run_in_phase(NAMESPACE, &name, "plan", "Running").await;
    let away = r#"{"spec":{"template":{"spec":{"nodeSelector":{"nobody":"has-this"}}}}}"#;
    release::must("kubectl", &["-n", SYSTEM, "patch", ENFORCER, "-p", away]).await;
    let later = unique("waits");
    let ended = tokio::spawn(async move {
        gone().await;
        let cluster = Cluster::connect().await;
        cluster.create(NAMESPACE, &task(&later, "Wait.", &command_agent("echo hi"))).await;
        let message = held_up(&cluster, NAMESPACE, &later, "EgressOpen").await;
        assert!(message.contains("enforcer does not answer"), "{message}");
        let (status, log) = plan_of(&cluster, &name).await;
        assert_eq!(egress::reached(&log, targets.len()), Vec::<String>::new());
        assert_eq!(level(&status), Some("Enforced"));
        (name, later)
    })
    .await;
    let back = r#"[{"op": "remove", "path": "/spec/template/spec/nodeSelector/nobody"}]"#;
    release::must("kubectl", &["-n", SYSTEM, "patch", ENFORCER, "--type=json", "-p", back]).await;
    let (name, later) = ended.expect("the test itself");
    goes_on(&cluster, NAMESPACE, &later).await;
    cluster.delete(NAMESPACE, &name).await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run life"]
async fn a_step_whose_rules_somebody_takes_away_ends_and_is_repeated_behind_new_ones() {
    let cluster = Cluster::connect().await;
    let name = unique("flushed");
    // Longer than its supervisor takes to look at the rules again.
    let script = "echo in step $AGENT_STEP; sleep 90";
    cluster.create(NAMESPACE, &task(&name, "Wait.", &command_agent(script))).await;
    cluster.run_in_phase(NAMESPACE, &name, "plan", "Running").await;
    for node in env("AO_NODES").split(' ') {
        let network = node.replace("node-", "--net=/run/netns/ao-");
        // The node without the step may have no table.
        let line = [&network, "nft", "delete", "table", "netdev", "agent_operator"];
        let _ = release::run("nsenter", &line).await;
    }
    let ended = cluster.run_in_phase(NAMESPACE, &name, "plan", "Failed").await;
    let status = ended.status.expect("a status");
    assert_eq!(status.reason.as_deref(), Some("Disrupted"));
    assert_eq!(level(&status), Some("Unenforced"), "what was proven at its gate holds no more");
    let message = status.message.unwrap_or_default();
    assert!(message.contains("rules of its pod were gone"), "{message}");
    let (status, _) = plan_of(&cluster, &name).await;
    assert_eq!(level(&status), Some("Enforced"));
    cluster.delete(NAMESPACE, &name).await;
}

/// Waits until no pod of the enforcer is left.
async fn gone() {
    let selector = "app.kubernetes.io/component=enforcer";
    eventually("the enforcer is gone", ROLLED, || async {
        let list = ["-n", SYSTEM, "get", "pods", "-l", selector, "-o", "name"];
        let left = release::must("kubectl", &list).await;
        if left.trim().is_empty() || left.contains("No resources") { Ok(()) } else { Err(left) }
    })
    .await;
}
