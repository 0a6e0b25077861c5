//! An upgrade and its rollback with a live step on each node (class 35).

use std::{fs, path::Path, time::Duration};

use agent_operator::crd::AgentRun;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::support::{
    cluster::{Cluster, NAMESPACE, SYSTEM},
    eventually, grpcurl, processes,
    release::{self, RELEASE, must, run},
    task::{command_agent, merge, task, unique},
};

/// Ticks until the test makes the file; what follows, push and report, goes by way of the gateway.
const SCRIPT: &str = "[ \"$AGENT_STEP\" = implement ] || { echo in step $AGENT_STEP; exit 0; }; n=0; until [ -e go.txt ]; do n=$((n+1)); echo \"tick $n.\"; sleep 1; done; echo \"ticks $n.\"";

#[tokio::test]
#[ignore = "needs the local cluster: tests/run life"]
async fn live_steps_survive_an_upgrade_and_its_rollback() {
    release::restored(upgrade_and_back, async {}).await;
}

async fn upgrade_and_back(values: String) {
    let cluster = Cluster::connect().await;
    let mut steps = Vec::new();
    for node in ["node-a", "node-b"] {
        let name = unique("upgraded");
        let mut spec = command_agent(SCRIPT);
        merge(&mut spec, &json!({"nodeSelector": {"kubernetes.io/hostname": node}}));
        merge(&mut spec, &json!({"test": {"command": ["test", "-e", "go.txt"]}}));
        cluster.create(NAMESPACE, &task(&name, "Survive.", &spec)).await;
        steps.push(name);
    }
    let mut live = Vec::new();
    for name in &steps {
        let run = cluster.run_in_phase(NAMESPACE, name, "implement", "Running").await;
        let pod = cluster.pods(NAMESPACE).get(&pod_of(&run)).await.expect("its pod");
        live.push((pod_of(&run), pod.uid().expect("a uid")));
    }
    let before = revision().await;
    let next = next_chart();
    let next = next.path().to_string_lossy().into_owned();
    let annotate =
        ["controller", "supervisor"].map(|name| format!("{name}.podAnnotations.e2e=next"));
    let more = ["--set-string", &annotate[0], "--set-string", &annotate[1]];
    release::install(&next, SYSTEM, &values, &more).await;
    has_the_new_field(true).await;
    survived(&cluster, &live).await;

    must("helm", &["rollback", RELEASE, &before, "-n", SYSTEM]).await;
    release::rolled_out(SYSTEM).await;
    has_the_new_field(false).await;
    survived(&cluster, &live).await;

    // Once more, and now the steps end while their gateways are away: what they send has to wait.
    let gateways = gateways().await;
    let restart = ["rollout", "restart", "daemonset/agent-operator-supervisor", "-n", SYSTEM];
    must("kubectl", &restart).await;
    eventually("the gateways are stopped", Duration::from_mins(1), || async {
        let left: Vec<_> = gateways.iter().flat_map(|uid| processes::of_pod(uid)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    for (pod, uid) in &live {
        let pids = processes::of_pod(uid);
        let shell =
            pids.iter().find(|(_, name)| name == "sh").unwrap_or_else(|| panic!("{pids:?}"));
        let tree = Path::new("/proc").join(shell.0.to_string()).join("cwd");
        fs::write(tree.join("go.txt"), pod).expect("the step is let go");
    }
    let token = grpcurl::token(NAMESPACE, "viewer").await;
    for name in &steps {
        let done = cluster.complete(NAMESPACE, name).await;
        let attempts: Vec<i32> =
            cluster.runs(NAMESPACE, name).await.iter().map(|run| run.spec.attempt).collect();
        assert_eq!(attempts, [1, 1, 1, 1], "{}", cluster.describe(NAMESPACE, name).await);
        let branch = done.status.expect("a status").repositories[0].work_branch.clone();
        let branch = branch.expect("a work branch");
        assert_eq!(cluster.forge.pull_requests(&branch).await.len(), 1);
        whole_log(&token, name).await;
    }
}

/// Whether the definitions are those of the next version. The API server describes a changed definition a moment
/// after it was stored.
async fn has_the_new_field(wanted: bool) {
    eventually("the definitions are those of the release", Duration::from_mins(1), || async {
        match run("kubectl", &["explain", "codingtasks.spec.addedByTheNextVersion"]).await {
            Ok(text) if wanted && text.contains("FIELD: addedByTheNextVersion") => Ok(()),
            Err(text) if !wanted && text.contains("does not exist") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// The pods are those of before, run, and have written since.
async fn survived(cluster: &Cluster, live: &[(String, String)]) {
    for (name, uid) in live {
        let pod = cluster.pods(NAMESPACE).get(name).await.expect("the pod");
        assert_eq!(pod.uid().as_ref(), Some(uid), "{name} is another pod");
        assert_eq!(pod.status.and_then(|status| status.phase).as_deref(), Some("Running"));
        let ticks = cluster.log(NAMESPACE, name).await.lines().count();
        eventually("the step goes on", Duration::from_secs(30), || async {
            let now = cluster.log(NAMESPACE, name).await.lines().count();
            if now > ticks { Ok(()) } else { Err(format!("{now} lines")) }
        })
        .await;
    }
}

/// Every tick came to the controller, once and in order, over three supervisors and controllers.
async fn whole_log(token: &str, task: &str) {
    let request = json!({"namespace": NAMESPACE, "task": task, "follow": true});
    let follow = "agentoperator.v1.StepService/Follow";
    let events = grpcurl::call(Some(token), follow, &request).await.expect("a finished task");
    assert!(!events.iter().any(|event| event["gap"].is_object()), "a gap in the log of {task}");
    let lines = events.iter().filter_map(|event: &Value| event["log"]["text"].as_str());
    let ticks: Vec<_> = lines.filter(|line| line.starts_with("tick")).collect();
    let last = ticks.len() - 1;
    for (index, line) in ticks[..last].iter().enumerate() {
        assert!(line.contains(&format!("tick {}.", index + 1)), "{index}: {line}");
    }
    assert!(ticks[last].contains(&format!("ticks {last}.")), "{}", ticks[last]);
}

fn pod_of(run: &AgentRun) -> String {
    run.status.as_ref().and_then(|status| status.pod_name.clone()).expect("a pod")
}

/// Uids of the pods that hold the gateways.
async fn gateways() -> Vec<String> {
    let label = "app.kubernetes.io/component=supervisor";
    let path = "jsonpath={.items[*].metadata.uid}";
    let uids = must("kubectl", &["get", "pods", "-n", SYSTEM, "-l", label, "-o", path]).await;
    uids.split_whitespace().map(str::to_owned).collect()
}

async fn revision() -> String {
    let text = must("helm", &["status", RELEASE, "-n", SYSTEM, "-o", "json"]).await;
    let status: Value = serde_json::from_str(&text).expect("JSON");
    status["version"].to_string()
}

/// The chart of a next version: another number, and one optional field more.
fn next_chart() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy(&release::chart(), folder.path());
    let of = |path: &str| folder.path().join(path);
    let chart = fs::read_to_string(of("Chart.yaml")).expect("Chart.yaml");
    let version = chart.lines().find(|line| line.starts_with("version: ")).expect("a version");
    fs::write(of("Chart.yaml"), chart.replace(version, "version: 99.0.0")).expect("written");
    let crds = fs::read_to_string(of("templates/crds.yaml")).expect("the definitions");
    let (before, rest) = crds.split_once("name: codingtasks.agents.wearn.dev").expect("the kind");
    let at = rest.find("\n              prompt:\n").expect("a field of its spec");
    let field = "\n              addedByTheNextVersion:\n                type: string";
    let next =
        format!("{before}name: codingtasks.agents.wearn.dev{}{field}{}", &rest[..at], &rest[at..]);
    fs::write(of("templates/crds.yaml"), next).expect("written");
    folder
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("the chart").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).expect("a copy");
        }
    }
}
