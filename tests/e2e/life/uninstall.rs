//! The release goes, comes back under another namespace, and goes again (class 24); and a task
//! namespace is deleted in mid-step.

use std::{collections::BTreeSet, fs, time::Duration};

use crate::support::{
    cluster::{Cluster, NAMESPACE, SYSTEM, phase},
    env, eventually, processes,
    release::{self, RELEASE, must, run},
    task::{command_agent, task, unique},
};

/// Namespaces of the second installation.
const OTHER: &str = "other-name";
const OTHER_TASKS: &str = "other-tasks";
/// A step that only ends when it is ended.
const ENDLESS: &str = "echo in step $AGENT_STEP; sleep 7907";
/// Longest wait for objects that others remove: kubelets, the garbage collector.
const GONE_LIMIT: Duration = Duration::from_mins(2);

#[tokio::test]
#[ignore = "needs the local cluster: tests/run life"]
async fn an_uninstalled_release_leaves_only_what_it_says_and_can_be_installed_anywhere() {
    let undo = async {
        for leftover in [
            &["uninstall", RELEASE, "-n", OTHER, "--ignore-not-found", "--no-hooks"][..],
            &["uninstall", "second", "-n", OTHER, "--ignore-not-found", "--no-hooks"],
        ] {
            let _ = run("helm", leftover).await;
        }
        let gone =
            ["delete", "namespace", OTHER, OTHER_TASKS, "--ignore-not-found", "--timeout=120s"];
        let _ = run("kubectl", &gone).await;
    };
    release::restored(there_and_back, undo).await;
}

async fn there_and_back(values: String) {
    let cluster = Cluster::connect().await;
    let chart = release::chart().to_string_lossy().into_owned();
    refuses_a_second_release(&chart, &values).await;

    let name = unique("uninstalled");
    cluster.create(NAMESPACE, &task(&name, "Wait.", &command_agent(ENDLESS))).await;
    let running = cluster.run_in_phase(NAMESPACE, &name, "plan", "Running").await;
    let pod = running.status.and_then(|status| status.pod_name).expect("a pod");
    let pod =
        cluster.pods(NAMESPACE).get(&pod).await.expect("the pod").metadata.uid.expect("a uid");
    must("helm", &["uninstall", RELEASE, "-n", SYSTEM, "--wait", "--timeout", "5m"]).await;
    let ended = cluster.tasks(NAMESPACE).get(&name).await.expect("the task is kept");
    assert_eq!(phase(&ended), "Failed");
    let message = ended.status.and_then(|status| status.message).unwrap_or_default();
    assert!(message.contains("agent-operator is being uninstalled"), "{message}");
    assert!(processes::of_pod(&pod).is_empty(), "processes of the step are left");
    nothing_is_left_in(SYSTEM).await;
    for node in kept_on_nodes() {
        assert!(
            node.contains("git") && node.contains("supervisor"),
            "{node:?}: it says it keeps them"
        );
    }

    let task_namespaces = format!("taskNamespaces={{{OTHER_TASKS}}}");
    let more = ["--set", &task_namespaces, "--set", "uninstall.purgeNodes=true"];
    release::install(&chart, OTHER, &values, &more).await;
    cluster.copy_secret("agent-secrets", OTHER_TASKS).await;
    let moved = unique("moved");
    let quick = command_agent(
        "echo in step $AGENT_STEP; [ \"$AGENT_STEP\" = implement ] && date > change.txt; exit 0",
    );
    cluster.create(OTHER_TASKS, &task(&moved, "Change a file.", &quick)).await;
    cluster.complete(OTHER_TASKS, &moved).await;
    must("helm", &["uninstall", RELEASE, "-n", OTHER, "--wait", "--timeout", "5m"]).await;
    nothing_is_left_in(OTHER).await;
    for node in kept_on_nodes() {
        assert!(node.is_empty(), "on a node is left: {node:?}");
    }
}

/// What is in the folder of `supervisor.hostPath`, for each node. They all are on this machine.
fn kept_on_nodes() -> Vec<BTreeSet<String>> {
    let nodes = env("AO_NODES");
    let nodes = nodes.split(' ').map(|node| {
        let folder = format!("{}/{node}/host/var/lib/agent-operator", env("AO_STATE"));
        let found = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
        found.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    });
    nodes.collect()
}

async fn refuses_a_second_release(chart: &str, values: &str) {
    let namespaces = format!("taskNamespaces={{{OTHER_TASKS}}}");
    let line = ["install", "second", chart, "-n", OTHER, "--create-namespace", "--values", values];
    let more = ["--set", &namespaces, "--dry-run=server"];
    let refused =
        run("helm", &[&line[..], &more[..]].concat()).await.expect_err("a second release");
    assert!(refused.contains(RELEASE), "it names the release that is there: {refused}");
}

/// Everything of every kind that the release labelled, wherever it is, everything at all in its
/// namespace, and the enforcer's table in the kernels of the nodes.
async fn nothing_is_left_in(namespace: &str) {
    eventually("nothing of the release is left", GONE_LIMIT, || async {
        let mut left = left_of(namespace).await;
        left.extend(tables_left().await);
        if left.is_empty() { Ok(()) } else { Err(left.join(" ")) }
    })
    .await;
}

/// Nodes whose kernel has the enforcer's table.
async fn tables_left() -> Vec<String> {
    let nodes = env("AO_NODES");
    let mut left = Vec::new();
    for node in nodes.split(' ') {
        let network = node.replace("node-", "--net=/run/netns/ao-");
        let tables = must("nsenter", &[&network, "nft", "list", "tables"]).await;
        left.extend(tables.contains("agent_operator").then(|| format!("rules/{node}")));
    }
    left
}

async fn left_of(namespace: &str) -> Vec<String> {
    let kinds = |namespaced: &'static str| async move {
        let line = ["api-resources", "--verbs=list", namespaced, "-o", "name"];
        let kinds = must("kubectl", &line).await;
        // The release is what `events` tell of; they end by themselves within the hour.
        let kinds: Vec<_> =
            kinds.lines().filter(|kind| !kind.starts_with("events")).map(str::to_owned).collect();
        kinds.join(",")
    };
    let (inside, outside) = (kinds("--namespaced=true").await, kinds("--namespaced=false").await);
    let label = format!("app.kubernetes.io/instance={RELEASE}");
    let mut found = String::new();
    for line in [
        &["get", &inside, "-n", namespace, "-o", "name"][..],
        &["get", &inside, "-A", "-l", &label, "-o", "name"],
        &["get", &inside, "-A", "-l", "agents.wearn.dev/run", "-o", "name"],
        &["get", &outside, "-l", &label, "-o", "name"],
    ] {
        found += &must("kubectl", &[line, &["--ignore-not-found"]].concat()).await;
    }
    // Kept on purpose: definitions and task namespaces; and what each namespace has by itself.
    let kept = |name: &str| {
        name.starts_with("customresourcedefinition.")
            || name.starts_with("namespace/")
            || ["configmap/kube-root-ca.crt", "serviceaccount/default"].contains(&name)
            // What `helm test` left for its logs; Helm removes no hooks.
            || name == "pod/agent-operator-test"
    };
    // kubectl mixes warnings in, which have spaces.
    let names = found.lines().filter(|line| line.contains('/') && !line.contains(' '));
    names.filter(|name| !kept(name)).map(str::to_owned).collect()
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run life"]
async fn a_task_namespace_that_is_deleted_ends_its_tasks_and_goes() {
    const SECOND: &str = "agent-second";
    let cluster = Cluster::connect().await;
    let values = release::values().await;
    cluster.copy_secret("agent-secrets", SECOND).await;
    let name = unique("homeless");
    cluster.create(SECOND, &task(&name, "Wait.", &command_agent(ENDLESS))).await;
    let running = cluster.run_in_phase(SECOND, &name, "plan", "Running").await;
    let pod = running.status.and_then(|status| status.pod_name).expect("a pod");
    let uid = cluster.pods(SECOND).get(&pod).await.expect("the pod").metadata.uid.expect("a uid");
    let deleted = run("kubectl", &["delete", "namespace", SECOND, "--timeout=120s"]).await;
    let why =
        run("kubectl", &["get", "namespace", SECOND, "-o", "yaml", "--ignore-not-found"]).await;
    let left = processes::of_pod(&uid);
    // The chart makes it anew, with the rights in it.
    let values = values.path().to_str().expect("UTF-8").to_owned();
    if deleted.is_ok() {
        release::install(&release::chart().to_string_lossy(), SYSTEM, &values, &[]).await;
    }
    assert!(deleted.is_ok(), "{deleted:?}: {why:?}");
    assert!(left.is_empty(), "processes of the step are left");
}
