//! The three values of `runner.delivery`, and a node whose runtime cannot mount image volumes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;

use crate::support::{
    cluster::{Cluster, NAMESPACE, SYSTEM},
    env, images, release,
    task::{command_agent, merge, task, unique},
};

/// The node whose runtime is hindered.
const NODE: &str = "node-b";
const AGENT: &str = "[ \"$AGENT_STEP\" = implement ] && date +%N > done.txt; echo step $AGENT_STEP";

#[tokio::test]
#[ignore = "needs the local cluster: tests/run life"]
async fn each_delivery_gets_the_runner_into_an_image_of_somebody_else() {
    let values = release::values().await;
    let values = values.path().to_str().expect("UTF-8").to_owned();
    let ended = tokio::spawn(every_value(values.clone())).await;
    release::install(&release::chart().to_string_lossy(), SYSTEM, &values, &[]).await;
    ended.expect("the test itself");
}

async fn every_value(values: String) {
    let cluster = Cluster::connect().await;
    let set = async |delivery: &str| {
        let value = format!("runner.delivery={delivery}");
        let more = ["--set", value.as_str()];
        release::install(&release::chart().to_string_lossy(), SYSTEM, &values, &more).await;
    };
    // The node forgets what an earlier run of this test has made it find out.
    set("imageVolume").await;
    assert_eq!(deliveries(&cluster, "fixed-volume").await, ["imageVolume"; 4]);

    set("auto").await;
    {
        let _hindered = Hindered::node_b();
        let name = start(&cluster, "falls-back").await;
        let done = cluster.complete(NAMESPACE, &name).await;
        let retries = done.status.and_then(|status| status.retries).expect("counts");
        assert_eq!((retries.application, retries.infrastructure), (0, 0), "no attempt was charged");
        let runs = cluster.runs(NAMESPACE, &name).await;
        let first = runs[0].status.clone().expect("a status");
        assert_eq!(first.reason.as_deref(), Some("Unstarted"), "{first:?}");
        let message = first.message.expect("a message");
        assert!(message.contains("image volumes do not work on this node"), "{message}");
        assert_eq!(runs.len(), 5, "one try was enough to know: {runs:#?}");
        assert_eq!(delivered(&cluster, &name).await, ["initContainer"; 4]);
    }
    assert_eq!(deliveries(&cluster, "stays").await, ["initContainer"; 4], "found out once");

    set("initContainer").await;
    assert_eq!(deliveries(&cluster, "fixed-init").await, ["initContainer"; 4]);
    set("auto").await;
    assert_eq!(deliveries(&cluster, "tries-again").await, ["imageVolume"; 4]);
}

/// A task on the node, in an image that knows nothing of us.
async fn start(cluster: &Cluster, prefix: &str) -> String {
    let name = unique(prefix);
    let mut spec = command_agent(AGENT);
    let image = images::debian_with_git().await;
    merge(
        &mut spec,
        &json!({"agentImage": image, "test": {"command": ["test", "-s", "done.txt"]}}),
    );
    merge(&mut spec, &json!({"nodeSelector": {"kubernetes.io/hostname": NODE}}));
    cluster.create(NAMESPACE, &task(&name, "Write a file.", &spec)).await;
    name
}

/// How the runner came into the pods of a new task that completes.
async fn deliveries(cluster: &Cluster, prefix: &str) -> Vec<&'static str> {
    let name = start(cluster, prefix).await;
    cluster.complete(NAMESPACE, &name).await;
    delivered(cluster, &name).await
}

/// The same for a task that has ended. Pods of attempts that never started are gone by then.
async fn delivered(cluster: &Cluster, name: &str) -> Vec<&'static str> {
    let pods = cluster.task_pods(NAMESPACE, name).await;
    let ran = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    ran.map(images::delivery_of).collect()
}

/// The folder in which the runtime of [`NODE`] mounts image volumes, made immutable: what it is asked for it cannot
/// do, as one that does not know image volumes. Nothing else may stand in the folder's place: the runtime would then
/// fail to tear the pod down too, which one without image volumes does not.
struct Hindered(PathBuf);

impl Hindered {
    fn node_b() -> Self {
        let state = PathBuf::from(env("AO_STATE")).join("node-b/host/run/containerd/state");
        let folder = find(&state, "image-volumes").unwrap_or_else(|| {
            panic!("no image volume was ever mounted below {}", state.display())
        });
        chattr("+i", &folder).expect("the file system knows the attribute");
        Self(folder)
    }
}

impl Drop for Hindered {
    fn drop(&mut self) {
        let _ = chattr("-i", &self.0);
    }
}

fn chattr(mode: &str, folder: &Path) -> std::io::Result<()> {
    let status = Command::new("chattr").arg(mode).arg(folder).status()?;
    status.success().then_some(()).ok_or_else(|| std::io::Error::other(format!("chattr: {status}")))
}

/// The folder of this name among the runtime's plugins.
fn find(state: &Path, name: &str) -> Option<PathBuf> {
    let plugins = fs::read_dir(state).ok()?.flatten();
    plugins.map(|plugin| plugin.path().join(name)).find(|path| path.is_dir())
}
