//! With a volume the controller keeps the logs of finished runs although both are gone: the node that they ran on, and the
//! controller's own pod.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    harm::{
        cut::{Cut, Direction, Link, Place},
        victim::Node,
    },
    say,
    trial::{SOON, on},
};
use crate::support::{
    cluster::{Cluster, NAMESPACE, SYSTEM},
    env, eventually, grpcurl,
    leaders::CONTROLLER,
    logs::{self, Rows},
    release::{self, must, run},
    task::{command_agent, merge, task, unique},
};

/// The node that goes. The volume is on the other one, and so is the controller.
const LOST: Node = Node::B;
/// Rows of the implement step.
const ROWS: u64 = 500;

/// A folder of node a as a volume: the local cluster has nobody who would make one for a claim.
struct Volume {
    name: String,
    folder: PathBuf,
}

impl Volume {
    async fn make() -> Self {
        let name = unique("ao-volume");
        let folder = Path::new(&env("AO_STATE")).join(Node::A.name()).join(&name);
        fs::create_dir_all(&folder).expect("a folder of node a");
        let volume = Self { name, folder };
        let manifest = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(manifest.path(), volume.manifest().to_string()).expect("it is written");
        must("kubectl", &["create", "-f", &manifest.path().to_string_lossy()]).await;
        volume
    }

    fn manifest(&self) -> Value {
        let on_node_a = json!({"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": [Node::A.name()]},
        ]}]});
        json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": self.name},
            "spec": {
                "capacity": {"storage": "4Gi"},
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": self.name,
                "local": {"path": self.folder},
                "nodeAffinity": {"required": on_node_a},
            },
        })
    }
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run faults"]
async fn a_finished_task_is_followed_from_the_volume_after_its_node_and_the_controllers_pod_are_gone()
 {
    let volume = Volume::make().await;
    let class = volume.name.clone();
    let work = move |values: String| async move { followed_from(&class, &values).await };
    let undo = async {
        // It goes once its claim has gone with the release that has none.
        let _ = run("kubectl", &["delete", "pv", &volume.name, "--wait=false"]).await;
    };
    release::restored(work, undo).await;
    eventually("the volume is gone", SOON, || async {
        run("kubectl", &["wait", "--for=delete", "pv", &volume.name, "--timeout=5s"]).await
    })
    .await;
    fs::remove_dir_all(&volume.folder).expect("nobody uses it");
}

async fn followed_from(class: &str, values: &str) {
    let class = format!("controller.persistence.storageClassName={class}");
    let with_volume = ["--set", "controller.persistence.enabled=true", "--set", &class];
    release::install(&release::chart().to_string_lossy(), SYSTEM, values, &with_volume).await;
    release::refresh_ca().await;
    let cluster = Cluster::connect().await;
    let name = unique("kept");
    let script = format!(
        "[ \"$AGENT_STEP\" = implement ] || {{ echo 'tell it'; exit 0; }}; date > change.txt; \
         i=0; while [ $i -lt {ROWS} ]; do echo \"row $i \"; i=$((i+1)); done"
    );
    let mut spec = command_agent(&script);
    merge(&mut spec, &json!({"test": {"command": ["test", "-s", "change.txt"]}}));
    merge(&mut spec, &on(LOST));
    cluster.create(NAMESPACE, &task(&name, "Tell.", &spec)).await;
    cluster.complete(NAMESPACE, &name).await;
    for run in cluster.runs(NAMESPACE, &name).await {
        assert_eq!(run.spec.node_name, LOST.name());
    }
    let token = grpcurl::token(NAMESPACE, "viewer").await;
    let before = told(&token, &name).await;

    let cut = Cut::new(Place::node(LOST), Link::Everything, Direction::Both);
    must("kubectl", &["-n", SYSTEM, "delete", "pod", "-l", CONTROLLER]).await;
    let rollout = ["rollout", "status", "deployment/agent-operator-controller", "--timeout=180s"];
    must("kubectl", &[&["-n", SYSTEM], &rollout[..]].concat()).await;
    let after = told(&token, &name).await;
    say(&format!(
        "controller with a volume, its pod replaced and the node gone: {ROWS} rows written, {} told, {} doubled, {} gaps",
        after.rows.len(),
        after.disordered(),
        after.gaps.len()
    ));
    drop(cut);
    for told in [before, after] {
        assert_eq!(told.gaps, Vec::<String>::new());
        assert_eq!(told.rows, (0..ROWS).collect::<Vec<_>>(), "each row once and in order");
    }
    // Whatever comes next finds both nodes at work.
    let ready = ["wait", "--for=condition=Ready", "node", LOST.name(), "--timeout=180s"];
    must("kubectl", &ready).await;
}

/// What a person is told who follows the task from its start.
async fn told(token: &str, name: &str) -> Rows {
    let request = json!({"namespace": NAMESPACE, "task": name, "follow": true});
    let events = eventually("the task is told to its end", SOON, || async {
        grpcurl::call(Some(token), logs::FOLLOW, &request).await
    })
    .await;
    Rows::of(&events)
}
