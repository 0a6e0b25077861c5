//! With a volume for the controller's cache a finished log outlives controller and node; without one it
//! is a gap of its size.

use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{
    cluster::{Cluster, NAMESPACE, SYSTEM},
    eventually, grpcurl, logs, processes,
    release::{self, must},
    task::{command_agent, merge, task, unique},
};

const ROWS: usize = 2000;
const SUPERVISOR: &str = "app.kubernetes.io/component=supervisor";

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn a_finished_log_on_a_volume_outlives_the_disk_of_its_node() {
    let values = release::values().await;
    let values = values.path().to_str().expect("UTF-8").to_owned();
    let volume = Volume::make().await;
    let tested = tokio::spawn(on_the_volume(values.clone(), volume.name.clone())).await;
    release::install(&release::chart().to_string_lossy(), SYSTEM, &values, &[]).await;
    volume.remove().await;
    let (token, run) = tested.expect("the test itself");
    let told = follow(&token, &run).await;
    assert_eq!(told.rows, Vec::<u64>::new(), "nobody has it any more");
    assert!(told.gaps.len() == 1 && told.gaps[0].contains("NotRetained"), "{:?}", told.gaps);
}

async fn on_the_volume(values: String, claim: String) -> (String, String) {
    let claim = format!("controller.persistence.existingClaim={claim}");
    let more = ["--set", "controller.persistence.enabled=true", "--set", &claim];
    release::install(&release::chart().to_string_lossy(), SYSTEM, &values, &more).await;
    let cluster = Cluster::connect().await;
    let name = unique("kept");
    let script = format!(
        "[ \"$AGENT_STEP\" = plan ] || {{ echo change > change.txt; exit 0; }}; \
         i=0; while [ $i -lt {ROWS} ]; do echo \"row $i \"; i=$((i+1)); done"
    );
    let mut spec = command_agent(&script);
    merge(&mut spec, &json!({"nodeSelector": {"kubernetes.io/hostname": "node-b"}}));
    cluster.create(NAMESPACE, &task(&name, "Talk.", &spec)).await;
    cluster.complete(NAMESPACE, &name).await;
    let token = logs::viewer_token(&cluster, &unique("volume")).await;
    let plan = cluster.runs(NAMESPACE, &name).await.remove(0);
    let run = plan.metadata.name.expect("a name");
    assert_whole(&follow(&token, &run).await);

    // The node comes back with an empty disk, and the controller in a new pod.
    let supervisor =
        processes::find_program(&cluster, SUPERVISOR, Some("node-b"), "supervisor run").await;
    let [pid] = supervisor[..] else { panic!("{supervisor:?}") };
    let streams = Path::new("/proc").join(pid.to_string());
    let streams = streams.join("root/var/lib/agent-operator/supervisor/streams");
    for attempt in fs::read_dir(&streams).expect("the node's streams").flatten() {
        fs::remove_dir_all(attempt.path()).expect("the streams of an attempt go");
    }
    processes::signal(pid, Signal::SIGKILL);
    let restart = ["rollout", "restart", "deployment/agent-operator-controller", "-n", SYSTEM];
    must("kubectl", &restart).await;
    release::rolled_out(SYSTEM).await;
    let told = follow(&token, &run).await;
    println!(
        "figure: a volume, the node's disk lost, the controller's pod new: {} of {ROWS} rows, {} gaps",
        told.rows.len(),
        told.gaps.len()
    );
    assert_whole(&told);
    (token, run)
}

fn assert_whole(told: &logs::Rows) {
    assert_eq!(told.gaps, Vec::<String>::new());
    assert_eq!(told.rows, (0..ROWS as u64).collect::<Vec<_>>(), "each row once and in order");
}

/// Everything of a finished run that there is.
async fn follow(token: &str, run: &str) -> logs::Rows {
    let request = json!({"namespace": NAMESPACE, "run": run, "follow": true});
    let events: Vec<Value> =
        eventually("the controller answers", Duration::from_mins(2), || async {
            grpcurl::call(Some(token), logs::FOLLOW, &request).await
        })
        .await;
    logs::Rows::of(&events)
}

/// A folder of this machine as a volume, with its claim in the release's namespace.
struct Volume {
    name: String,
    _folder: tempfile::TempDir,
}

impl Volume {
    async fn make() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        // The controller is not root, and a volume of this kind is not given to it.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("open to all");
        let name = unique("streams");
        let amount = json!({"storage": "1Gi"});
        let common = json!({"storageClassName": "", "accessModes": ["ReadWriteOnce"]});
        let mut volume = json!({"capacity": amount, "hostPath": {"path": folder.path()},
            "claimRef": {"namespace": SYSTEM, "name": name}});
        merge(&mut volume, &common);
        let mut claim = json!({"resources": {"requests": amount}, "volumeName": name});
        merge(&mut claim, &common);
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": volume},
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim",
             "metadata": {"name": name, "namespace": SYSTEM}, "spec": claim},
        ]});
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        write!(file, "{objects}").expect("the objects are written");
        must("kubectl", &["apply", "-f", &file.path().to_string_lossy()]).await;
        Self { name, _folder: folder }
    }

    async fn remove(&self) {
        must("kubectl", &["delete", "pvc", &self.name, "-n", SYSTEM]).await;
        must("kubectl", &["delete", "pv", &self.name]).await;
    }
}
