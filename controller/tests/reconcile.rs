//! The deciding side against a real kube-apiserver and etcd, with scripted nodes: election, passes,
//! reports and credentials as they meet real conflicts, schemas and watches.

// Helpers of tests fail by panicking, as the tests themselves do.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)]

#[path = "reconcile/anything.rs"]
mod anything;
#[path = "reconcile/figures.rs"]
mod figures;
#[path = "reconcile/killed_at_writes.rs"]
mod killed_at_writes;
#[path = "reconcile/leadership.rs"]
mod leadership;
#[path = "reconcile/refused_writes.rs"]
mod refused_writes;
#[path = "../../tests/schema/mod.rs"]
mod schema;
#[path = "reconcile/support.rs"]
mod support;

use std::{sync::Arc, time::Duration};

use agent_operator::{
    crd::AgentRun,
    crd::CodingTask,
    domain::{
        Attempt, Epoch, Reason, RunKey, RunRef, StepName,
        preflight::{Finding, Problem},
        report::RunState,
    },
};
use agent_operator_controller::{
    args::{Cli, Command as Subcommand},
    fleet::{Command, NodeEvent},
    uninstall,
};
use clap::Parser as _;
use futures::StreamExt as _;
use k8s_openapi::api::{
    core::v1::{Node, Secret},
    events::v1::Event,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;
use support::{Controller, Fleet, all_well, audited, eventually, ground, hang_at, outcome};
use tokio::time::Instant;

/// What was read of Secrets stands in the audit once for each run that got it, and never what was in them.
fn assert_reads_audited(task: &CodingTask, controller: &Controller) {
    for (assignment, credentials) in controller.fleet.assignments() {
        let mut records = audited(task, "secret_read");
        records.retain(|record| record["run_uid"] == assignment.run.uid.as_str());
        let read: Vec<_> = records
            .iter()
            .map(|record| [&record["secret"], &record["key"], &record["host"], &record["node"]])
            .collect();
        let wanted: Vec<_> =
            [("github-token", "github.com"), ("anthropic-api-key", "api.anthropic.com")]
                .into_iter()
                .take(credentials.len())
                .map(|(key, host)| json!(["agent-secrets", key, host, assignment.node.as_str()]))
                .collect();
        assert_eq!(json!(read), json!(wanted), "{:?}", assignment.step);
        assert!(!format!("{records:?}").contains("canary"));
    }
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn the_sample_completes_with_one_status_write_for_each_step() {
    let Some(ground) = ground().await else { return };
    ground.node("node-a").await;
    ground.node("node-b").await;
    ground.secret().await;
    let controller =
        Controller::start(&ground, Fleet::new(&["node-a", "node-b"], all_well())).await;
    controller.epoch().await;

    let versions = tokio::spawn({
        let config = watcher::Config::default().fields("metadata.name=sample");
        let mut events = Box::pin(watcher(ground.tasks(), config).touched_objects());
        async move {
            let mut versions = std::collections::BTreeSet::new();
            while let Some(Ok(task)) = events.next().await {
                versions.insert(task.resource_version());
                if task.status.is_some_and(|status| status.phase.as_deref() == Some("Complete")) {
                    break;
                }
            }
            versions.len()
        }
    });
    ground.task("sample", json!({})).await;
    let task = ground.phase("sample", "Complete").await;
    let status = task.status.clone().unwrap();
    assert_eq!(status.pull_request.unwrap().number, 7);
    assert_eq!(status.usage.unwrap().turns, 4);
    assert_eq!(status.plan.unwrap().text, "output of plan 1");
    assert_eq!(status.repositories[0].head_commit.as_deref(), Some("c".repeat(40).as_str()));

    let runs = ground.all_runs().await;
    assert_eq!(runs.len(), 4);
    for run in &runs {
        let status = run.status.clone().unwrap();
        assert_eq!((status.phase.as_deref(), status.exit_code), (Some("Succeeded"), Some(0)));
        assert!(status.pod_name.is_some() && !run.spec.node_name.is_empty());
        assert_eq!(run.owner_references()[0].name, "sample");
        // Creation, Running and outcome: generation stays 1, so count by managed fields' manager.
        assert_eq!(run.metadata.generation, Some(1));
    }
    // The creation and one write for each started step, and one for the end.
    let versions = tokio::time::timeout(Duration::from_secs(10), versions).await.unwrap().unwrap();
    assert!(versions <= 6, "{versions} versions of the task");

    // Credentials: the test step gets no model key, and a trailing newline is not part of a key.
    for (assignment, credentials) in controller.fleet.assignments() {
        let ids: Vec<_> = credentials.iter().map(|credential| credential.id.as_str()).collect();
        if assignment.step == StepName::Test {
            assert_eq!(ids, ["git/main"]);
        } else {
            assert_eq!(ids, ["git/main", "model/anthropic"]);
            assert_eq!(credentials[1].value.expose(), "sk-canary");
            assert_eq!(credentials[1].host, "api.anthropic.com");
        }
        assert_eq!(credentials[0].host, "github.com");
        assert!(!serde_json::to_string(&assignment).unwrap().contains("canary"));
    }

    assert_reads_audited(&task, &controller);

    // Converged: nothing is written any more (I6).
    let before = task.metadata.resource_version;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(ground.tasks().get("sample").await.unwrap().metadata.resource_version, before);
    let events: Api<Event> = Api::namespaced(ground.client.clone(), &ground.namespace);
    let reasons: Vec<_> = events
        .list(&ListParams::default())
        .await
        .unwrap()
        .into_iter()
        .filter_map(|event| event.reason)
        .collect();
    for phase in ["Planning", "Implementing", "Testing", "PullRequest", "Complete", "Running"] {
        assert!(reasons.iter().any(|reason| reason == phase), "{phase} in {reasons:?}");
    }
    controller.stop().await;
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn reserved_keys_of_a_task_reach_neither_its_runs_nor_the_orders_that_pods_are_made_of() {
    let Some(ground) = ground().await else { return };
    ground.node("node-a").await;
    ground.secret().await;
    let fleet = Fleet::new(&["node-a"], all_well());
    let controller = Controller::leading(&ground, fleet, Epoch(1)).await;
    let keys = json!({
        "agents.wearn.dev/task": "planted", "agents.wearn.dev/run": "planted",
        "agents.wearn.dev/step": "planted", "agents.wearn.dev/attempt": "planted",
        "agents.wearn.dev/epoch": "planted", "agents.wearn.dev/spec-hash": "planted",
        "agents.wearn.dev/allowed-hosts": "planted", "app.kubernetes.io/managed-by": "planted",
    });
    let owner = json!([{
        "apiVersion": "agents.wearn.dev/v1alpha1", "kind": "AgentRun", "name": "planted",
        "uid": "planted", "controller": true, "blockOwnerDeletion": true,
    }]);
    let metadata = json!({"labels": keys, "annotations": keys, "ownerReferences": owner});
    let task = ground.task_with("sample", metadata, json!({})).await;
    assert_eq!(task.labels()["agents.wearn.dev/task"], "planted", "the API server takes them");
    ground.phase("sample", "Complete").await;

    let runs = ground.all_runs().await;
    assert_eq!(runs.len(), 4);
    for run in runs {
        let labels: Vec<_> = run.labels().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let wanted = [
            ("agents.wearn.dev/step", run.spec.step.as_str()),
            ("agents.wearn.dev/task", "sample"),
            ("app.kubernetes.io/managed-by", "agent-operator"),
        ];
        assert_eq!(labels, wanted);
        assert!(run.annotations().is_empty(), "{:?}", run.annotations());
        let [owner] = run.owner_references() else { panic!("{:?}", run.owner_references()) };
        let of_task = ("CodingTask", "sample", task.metadata.uid.as_deref().unwrap());
        assert_eq!((owner.kind.as_str(), owner.name.as_str(), owner.uid.as_str()), of_task);
        assert!(!serde_json::to_string(&run).unwrap().contains("planted"));
    }
    // A pod is made of its assignment and of nothing else.
    let assignments = controller.fleet.assignments();
    assert_eq!(assignments.len(), 4);
    for (assignment, _) in assignments {
        assert!(!serde_json::to_string(&assignment).unwrap().contains("planted"));
    }
    controller.stop().await;
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn f1_a_killed_controller_is_replaced_without_a_second_run() {
    let Some(ground) = ground().await else { return };
    ground.node("node-a").await;
    ground.secret().await;
    let fleet = Fleet::new(&["node-a"], hang_at(StepName::Implement));
    let first = Controller::start(&ground, fleet.clone()).await;
    let before = first.epoch().await;
    ground.task("sample", json!({})).await;
    ground.phase("sample", "Implementing").await;
    let hanging = eventually("the step hangs", async || fleet.hanging().pop()).await;
    first.kill().await;
    // The step ends while no controller is there.
    let killed = Instant::now();
    let second = Controller::start(&ground, fleet.clone()).await;
    let after = second.epoch().await;
    assert!(killed.elapsed() < Duration::from_secs(7), "{:?}", killed.elapsed());
    assert!(after > before, "{after} after {before}");
    eventually("the run is handed out again under the new term", async || {
        let again = |(assignment, _): &(agent_operator::domain::Assignment, _)| {
            assignment.run == hanging.run && assignment.epoch == after
        };
        fleet.assignments().iter().any(again).then_some(())
    })
    .await;
    fleet.finish(&hanging, outcome(&hanging, Reason::Completed)).await;
    ground.phase("sample", "Complete").await;
    assert_eq!(ground.all_runs().await.len(), 4);
    second.stop().await;
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn f25_a_missing_secret_is_a_condition_and_its_appearance_is_noticed() {
    let Some(ground) = ground().await else { return };
    ground.node("node-a").await;
    let controller = Controller::start(&ground, Fleet::new(&["node-a"], all_well())).await;
    ground.task("sample", json!({})).await;
    let task = ground.phase("sample", "Pending").await;
    let conditions = task.status.unwrap().conditions;
    let accepted = conditions.iter().find(|condition| condition.type_ == "Accepted").unwrap();
    assert_eq!((accepted.status.as_str(), accepted.reason.as_str()), ("False", "SecretMissing"));
    assert!(accepted.message.contains("agent-secrets"), "{}", accepted.message);
    assert!(ground.all_runs().await.is_empty());
    ground.secret().await;
    ground.phase("sample", "Complete").await;
    controller.stop().await;
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn f36_what_a_node_finds_in_the_way_is_a_condition_and_a_mended_task_goes_on() {
    let Some(ground) = ground().await else { return };
    ground.node("node-a").await;
    ground.secret().await;
    let fleet = Fleet::new(&["node-a"], all_well());
    let message = "the server said 401".to_owned();
    fleet.find(vec![Finding { problem: Problem::GitCredentialsRejected, message }]);
    let controller = Controller::start(&ground, Arc::clone(&fleet)).await;
    ground.task("sample", json!({})).await;
    let task = ground.phase("sample", "Pending").await;
    let conditions = task.status.unwrap().conditions;
    let found = conditions.iter().find(|condition| condition.type_ == "Preflighted").unwrap();
    assert_eq!(
        (found.status.as_str(), found.reason.as_str(), found.observed_generation),
        ("False", "GitCredentialsRejected", task.metadata.generation)
    );
    assert!(found.message.contains("the server said 401"), "{}", found.message);
    assert!(ground.all_runs().await.is_empty());
    let (order, credentials) = fleet.preflights().remove(0);
    assert!(order.needs_model && order.needs_test_command);
    assert_eq!(order.repository.work_branch, "ai/sample");
    assert_eq!(credentials.len(), 2, "those of the first step");
    fleet.find(Vec::new());
    ground.phase("sample", "Complete").await;
    controller.stop().await;
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn a_secret_does_not_go_to_a_host_that_its_owner_did_not_allow() {
    let Some(ground) = ground().await else { return };
    ground.node("node-a").await;
    ground.secret().await;
    let fleet = Fleet::new(&["node-a"], all_well());
    let controller = Controller::start(&ground, fleet.clone()).await;
    let repository = json!({"url": "https://evil.example/a/b.git"});
    ground.task("foreign", json!({"repository": repository})).await;
    let task = ground.phase("foreign", "Pending").await;
    let status = task.status.unwrap();
    let accepted = status.conditions.iter().find(|c| c.type_ == "Accepted").unwrap();
    assert_eq!(accepted.reason, "HostNotAllowed");
    assert!(accepted.message.contains("agents.wearn.dev/allowed-hosts"), "{}", accepted.message);
    assert!(fleet.commands().is_empty());
    let secrets: Api<Secret> = Api::namespaced(ground.client.clone(), &ground.namespace);
    let hosts = "github.com, EVIL.example";
    let patch = json!({"metadata": {"annotations": {"agents.wearn.dev/allowed-hosts": hosts}}});
    secrets.patch("agent-secrets", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    ground.phase("foreign", "Complete").await;
    controller.stop().await;
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn f24_deleting_a_task_cancels_its_step_at_once() {
    let Some(ground) = ground().await else { return };
    ground.node("node-a").await;
    ground.secret().await;
    let fleet = Fleet::new(&["node-a"], hang_at(StepName::Plan));
    let controller = Controller::start(&ground, fleet.clone()).await;
    ground.task("sample", json!({})).await;
    let hanging = eventually("the step hangs", async || fleet.hanging().pop()).await;
    ground.tasks().delete("sample", &DeleteParams::default()).await.unwrap();
    let cancels = eventually("the step is cancelled", async || {
        Some(fleet.cancels()).filter(|cancels| !cancels.is_empty())
    })
    .await;
    assert_eq!(cancels[0], (hanging.key(), Reason::Deleted));
    controller.stop().await;
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn a_failing_test_is_implemented_again_and_a_terminal_run_never_changes() {
    let Some(ground) = ground().await else { return };
    ground.node("node-a").await;
    ground.secret().await;
    let script: support::Script = Box::new(|assignment| {
        let fails = assignment.step == StepName::Test && assignment.attempt == Attempt(1);
        Some(outcome(assignment, if fails { Reason::VerifyFailed } else { Reason::Completed }))
    });
    let fleet = Fleet::new(&["node-a"], script);
    let controller = Controller::start(&ground, fleet.clone()).await;
    ground.task("sample", json!({})).await;
    let task = ground.phase("sample", "Complete").await;
    assert_eq!(task.status.unwrap().retry_count, Some(1));
    let again = fleet
        .assignments()
        .into_iter()
        .map(|(assignment, _)| assignment)
        .find(|a| a.step == StepName::Implement && a.attempt == Attempt(2))
        .unwrap();
    assert_eq!(again.work.feedback.as_deref(), Some("output of test 1"));
    assert_eq!(again.work.plan.as_deref(), Some("output of plan 1"));

    // A late and contradicting report of an ended run is acknowledged and changes nothing.
    let before = run_of(&ground.all_runs().await, &again.run);
    let reports_before = acknowledged(&fleet, &again.key());
    fleet.finish(&again, outcome(&again, Reason::AgentFailed)).await;
    eventually("it is acknowledged", async || {
        (acknowledged(&fleet, &again.key()) > reports_before).then_some(())
    })
    .await;
    assert_eq!(run_of(&ground.all_runs().await, &again.run).status, before.status);

    // A report of a run that does not exist is acknowledged and forgotten.
    let mut unknown = again.clone();
    unknown.run.uid = "00000000-0000-0000-0000-000000000000".into();
    let report = agent_operator::domain::report::Report {
        run: unknown.run.clone(),
        attempt: unknown.attempt,
        epoch: unknown.epoch,
        sequence: 9,
        state: RunState::Finished(Box::new(outcome(&unknown, Reason::Completed))),
    };
    fleet.say(NodeEvent::Report { node: unknown.node.clone(), report: Box::new(report) }).await;
    eventually("it is forgotten", async || {
        let key = unknown.key();
        let forgets = |command: &Command| matches!(command, Command::Forget { run } if *run == key);
        fleet.commands().iter().any(forgets).then_some(())
    })
    .await;
    controller.stop().await;
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn f24_pods_of_a_fenced_or_vanished_node_lose_our_finalizer_and_only_that() {
    let Some(ground) = ground().await else { return };
    for node in ["node-a", "fenced", "silent", "vanished"] {
        ground.node(node).await;
    }
    for node in ["node-a", "fenced", "silent", "vanished"] {
        ground.held_pod(node, &["agents.wearn.dev/outcome", "example.com/hold"]).await;
    }
    let controller = Controller::start(&ground, Fleet::new(&["node-a"], all_well())).await;
    controller.epoch().await;
    let nodes: Api<Node> = Api::all(ground.client.clone());
    let uid = nodes.get("fenced").await.unwrap().uid().unwrap();
    let annotate = json!({"metadata": {"annotations": {"agents.wearn.dev/fence": uid}}});
    nodes.patch("fenced", &PatchParams::default(), &Patch::Merge(&annotate)).await.unwrap();
    let copied = json!({"metadata": {"annotations": {"agents.wearn.dev/fence": "another uid"}}});
    nodes.patch("silent", &PatchParams::default(), &Patch::Merge(&copied)).await.unwrap();
    nodes.delete("vanished", &DeleteParams::default()).await.unwrap();
    for node in ["fenced", "vanished"] {
        eventually(&format!("the pod of {node} is released"), async || {
            (ground.finalizers(node).await == ["example.com/hold"]).then_some(())
        })
        .await;
    }
    // A connected node's supervisor does it, and silence alone says nothing.
    for node in ["node-a", "silent"] {
        assert_eq!(ground.finalizers(node).await.len(), 2, "{node}");
    }
    controller.stop().await;
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn an_uninstallation_ends_tasks_frees_pods_and_may_be_repeated() {
    let Some(ground) = ground().await else { return };
    ground.node("node-a").await;
    ground.secret().await;
    let fleet = Fleet::new(&["node-a"], hang_at(StepName::Plan));
    let controller = Controller::start(&ground, fleet.clone()).await;
    ground.task("sample", json!({})).await;
    let hanging = eventually("the step hangs", async || fleet.hanging().pop()).await;
    ground.held_pod("node-a", &["agents.wearn.dev/outcome"]).await;
    let tls: Secret = serde_json::from_value(json!({"metadata": {"name": "x-tls"}})).unwrap();
    let secrets: Api<Secret> = Api::namespaced(ground.client.clone(), &ground.namespace);
    secrets.create(&PostParams::default(), &tls).await.unwrap();

    let space = ground.namespace.as_str();
    let line = ["uninstall", "--namespace", space, "--task-namespace", space];
    let more = ["--task-namespace=gone-before", "--tls-service-name=x", "--lease-name=x"];
    let cli = Cli::try_parse_from([&["controller"][..], &line, &more].concat()).unwrap();
    let Some(Subcommand::Uninstall(args)) = cli.command else { panic!("uninstall") };
    let (client, once) = (ground.client.clone(), args.clone());
    let working = tokio::spawn(async move { uninstall::uninstall(client, &once).await });
    let cancels = eventually("the step is cancelled", async || {
        Some(fleet.cancels()).filter(|cancels| !cancels.is_empty())
    })
    .await;
    assert_eq!(cancels[0], (hanging.key(), Reason::Cancelled));
    fleet.finish(&hanging, outcome(&hanging, Reason::Cancelled)).await;
    working.await.unwrap().unwrap();

    let task = ground.phase("sample", "Failed").await;
    let message = task.status.unwrap().message.unwrap();
    assert!(message.contains("Cancelled"), "{message}");
    assert!(ground.pods().list(&ListParams::default()).await.unwrap().items.is_empty());
    assert!(secrets.get_opt("x-tls").await.unwrap().is_none());
    assert!(secrets.get_opt("agent-secrets").await.unwrap().is_some(), "a user's Secret stays");
    uninstall::uninstall(ground.client.clone(), &args).await.unwrap();
    controller.stop().await;
}

fn run_of(runs: &[AgentRun], wanted: &RunRef) -> AgentRun {
    runs.iter().find(|run| run.name_any() == wanted.name).unwrap().clone()
}

fn acknowledged(fleet: &Fleet, wanted: &RunKey) -> usize {
    let commands = fleet.commands();
    let acks = commands.iter().filter(
        |command| matches!(command, Command::ReportAck { run, sequence: 2 } if run == wanted),
    );
    acks.count()
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn ten_tasks_share_two_nodes_and_no_node_holds_more_than_it_can() {
    let Some(ground) = ground().await else { return };
    ground.node("node-a").await;
    ground.node("node-b").await;
    ground.secret().await;
    let fleet = Fleet::new(&["node-a", "node-b"], all_well());
    let controller = Controller::start(&ground, fleet.clone()).await;
    for index in 0..10 {
        ground.task(&format!("task-{index}"), json!({})).await;
    }
    for index in 0..10 {
        ground.phase(&format!("task-{index}"), "Complete").await;
    }
    let runs = ground.all_runs().await;
    assert_eq!(runs.len(), 40);
    for node in ["node-a", "node-b"] {
        assert!(runs.iter().any(|run| run.spec.node_name == node), "{node} idled");
    }
    controller.stop().await;
}
