//! What has to hold while somebody attacks: the promises of the reliability page for every task of the test, the
//! attacker's own as well, and beside them a release, nodes and neighbours that nobody has disturbed.

use std::{collections::BTreeMap, path::PathBuf, process::Command, time::Duration};

use agent_operator::domain::{Attempt, RunKey, RunUid, names};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt, api::ListParams};

use super::{haystacks, say, trial::Left};
use crate::{
    faults::trial::{Trial, assert_untouched},
    support::{
        cluster::{Cluster, NAMESPACE, SYSTEM},
        env, eventually, processes,
        release::run,
    },
};

/// I9: nothing is left without a live owner after this.
const RELEASED_LIMIT: Duration = Duration::from_mins(1);
/// Where a node keeps mirrors and quarantines.
const GIT: &str = "host/var/lib/agent-operator";
/// What nodes say of themselves when somebody took too much.
const PRESSURES: [&str; 3] = ["DiskPressure", "MemoryPressure", "PIDPressure"];

/// Starts of each container of the release.
type Starts = BTreeMap<String, i32>;

/// Everything that is watched in one test.
pub(super) struct Watch {
    trial: Trial,
    starts: Starts,
}

impl Watch {
    /// Watches all tasks whose names begin with `prefix`.
    pub(super) async fn begin(cluster: &Cluster, prefix: &str) -> Self {
        Self { trial: Trial::watch(prefix).await, starts: starts(cluster).await }
    }

    /// Waits until all these tasks have ended, and judges.
    pub(super) async fn judge(self, cluster: &Cluster, tasks: &[String], neighbour: &Left) {
        for task in tasks {
            self.trial.adopt(task, None).await;
        }
        self.trial.adopt(&neighbour.name, Some(neighbour.rows)).await;
        let all = [tasks, std::slice::from_ref(&neighbour.name)].concat();
        let ended = self.trial.judge(false).await;
        assert_untouched(&ended[&neighbour.name]);
        assert!(neighbour.failed.is_empty(), "beside the attacks: {:?}", neighbour.failed);
        for task in &all {
            released(cluster, task).await;
        }
        undisturbed(cluster, &self.starts).await;
        say(&format!("{} tasks kept every promise; {neighbour}", all.len()));
    }
}

/// I9: no pod that is held, no process, no quarantine.
async fn released(cluster: &Cluster, task: &str) {
    eventually(&format!("everything of {task} is released"), RELEASED_LIMIT, || async {
        let pods = cluster.task_pods(NAMESPACE, task).await;
        let held = |pod: &&Pod| pod.finalizers().iter().any(|one| one == names::POD_FINALIZER);
        let mut left: Vec<String> = pods
            .iter()
            .filter(held)
            .map(|pod| format!("finalizer of {}", pod.name_any()))
            .collect();
        let uids = pods.iter().filter_map(ResourceExt::uid);
        left.extend(uids.flat_map(|uid| processes::of_pod(&uid)).map(|found| format!("{found:?}")));
        left.extend(quarantines(cluster, task).await);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

/// Folders of what the runs of a task have pushed, on any node.
pub(super) async fn quarantines(cluster: &Cluster, task: &str) -> Vec<String> {
    let runs = cluster.runs(NAMESPACE, task).await;
    let folders: Vec<PathBuf> =
        haystacks::node_folders().into_iter().map(|node| node.join(GIT)).collect();
    let name = |run: &agent_operator::crd::AgentRun| {
        let uid = RunUid::from(run.uid().unwrap_or_default());
        let attempt = Attempt(u32::try_from(run.spec.attempt).expect("a small number"));
        names::sha256_hex(RunKey { uid, attempt }.to_string().as_bytes())
    };
    let mut find = Command::new("find");
    find.args(&folders).args(["-type", "d", "("]);
    for (index, run) in runs.iter().enumerate() {
        if index > 0 {
            find.arg("-o");
        }
        find.args(["-name", &name(run)]);
    }
    // Folders go while they are looked at.
    let output = find.args([")", "-prune", "-print"]).output().expect("find runs");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

async fn starts(cluster: &Cluster) -> Starts {
    let mut starts = Starts::new();
    for pod in haystacks::pods(cluster, SYSTEM).await {
        let name = pod.name_any();
        let statuses = pod.status.and_then(|status| status.container_statuses);
        for status in statuses.into_iter().flatten() {
            starts.insert(format!("{name}/{}", status.name), status.restart_count);
        }
    }
    assert!(starts.len() >= 3, "controller, supervisor and gateway run, not {starts:?}");
    starts
}

/// I11 and the nodes: the same processes as before, none of which has panicked, on nodes that lack nothing.
async fn undisturbed(cluster: &Cluster, before: &Starts) {
    assert_eq!(&starts(cluster).await, before, "containers of the release and their starts");
    for pod in haystacks::pods(cluster, SYSTEM).await {
        let line = ["logs", "-n", SYSTEM, &pod.name_any(), "--all-containers"];
        let log = run("kubectl", &line).await.unwrap_or_default();
        let panics: Vec<&str> = log.lines().filter(|line| line.contains("panicked at")).collect();
        assert!(panics.is_empty(), "{}: {panics:?}", pod.name_any());
    }
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    for node in nodes.list(&ListParams::default()).await.expect("nodes").items {
        let name = node.name_any();
        assert!(env("AO_NODES").contains(&name), "{name}");
        let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
        for condition in conditions {
            let bad = match condition.type_.as_str() {
                "Ready" => condition.status != "True",
                kind => PRESSURES.contains(&kind) && condition.status != "False",
            };
            assert!(!bad, "{name}: {condition:?}");
        }
    }
}
