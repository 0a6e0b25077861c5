//! The control: the same program in a pod that has what attackers wish for. An attack that does not succeed
//! here has rotted, and says nothing where it is held off.

use std::{fs, path::Path, time::Duration};

use kube::{ResourceExt as _, api::DeleteParams};
use serde_json::{Value, json};

use super::{
    list::{self, Outcomes},
    parameters::NODE,
    place::{PROGRAM, Place, address_of},
    say,
};
use crate::support::{cluster::Cluster, env, eventually};

/// All attacks one behind the other on a busy machine.
const LIMIT: Duration = Duration::from_mins(5);
/// How long the pod stays when its attacks are over, for who looks at it from outside.
const STAY_SECONDS: u64 = 60;
/// Group of which a plain pod can try nothing.
const WITHOUT_CONTROL: &str = "alone";

/// What careless people leave in a sandbox.
const PREPARE: &str = r#"git config --global http.https://github.com/.extraHeader "Bearer $CANARY"
echo "$CANARY" > /etc/hostile-credential; mount -o remount,size=1g /dev/shm; exec "$@""#;

/// A pod that attacks without a wall around it.
pub(super) struct Control {
    pub(super) address: String,
    name: String,
}

/// What a gateway without rules is run by, on port 8080.
fn open_gateway(image: &str, parameters: &Value, canary: &str, forge_login: &str) -> Value {
    json!({
        "name": "gateway",
        "image": image,
        "command": ["python3", "/hostile/open_gateway.py", parameters.to_string()],
        "env": [
            {"name": "CANARY", "value": canary},
            {"name": "FORGE_LOGIN", "value": forge_login},
        ],
        "securityContext": {"runAsUser": 0, "runAsGroup": 0},
    })
}

/// A plain pod on `node` that listens on port 8080.
pub(super) async fn peer(
    cluster: &Cluster,
    place: &Place,
    image: &str,
    (name, node): (&str, &str),
) -> String {
    let parameters =
        json!({"sinks": [], "forges": [], "models": [], "repository": "", "repositoryName": ""});
    let pod = json!({
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 0,
            "containers": [open_gateway(image, &parameters, "", "")],
        },
    });
    address_of(&place.start(cluster, &pod).await)
}

impl Control {
    /// Starts it.
    pub(super) async fn start(
        cluster: &Cluster,
        place: &Place,
        image: &str,
        (parameters, groups): (&Value, &[&str]),
        (canary, forge_login): (&str, &str),
    ) -> Self {
        let state = env("AO_STATE");
        let mut whole = parameters.clone();
        let token = "open";
        whole["control"] = json!(true);
        whole["stay"] = json!(STAY_SECONDS);
        whole["token"] = json!(token);
        whole["gateway"] = json!("http://127.0.0.1:8080");
        whole["gifts"] =
            json!({"oneTime": token, "otherOneTime": token, "other": token, "dead": token});
        whole["namespace"] = json!(place.name);
        let text = whole.to_string();
        let mut arguments = vec!["python3", PROGRAM, &text];
        arguments.extend(groups.iter().filter(|group| **group != WITHOUT_CONTROL));
        let command = [&["sh", "-c", PREPARE, "sh"][..], &arguments[..]].concat();
        let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path});
        let host = |name: &str, path: String| json!({"name": name, "hostPath": {"path": path}});
        let pod = json!({
            "metadata": {"name": "control"},
            "spec": {
                "nodeSelector": {"kubernetes.io/hostname": NODE},
                "restartPolicy": "Never",
                "shareProcessNamespace": true,
                "terminationGracePeriodSeconds": 0,
                "containers": [
                    open_gateway(image, &whole, canary, forge_login),
                    {
                        "name": "attack",
                        "image": image,
                        "command": command,
                        "env": [{"name": "CANARY", "value": canary}],
                        "securityContext": {"privileged": true, "runAsUser": 0, "runAsGroup": 0},
                        "volumeMounts": [
                            mount("pods", "/var/log/pods"),
                            mount("socket", "/run/containerd/containerd.sock"),
                            mount("node", "/run/agent-operator"),
                        ],
                    },
                ],
                "volumes": [
                    host("pods", "/var/log/pods".to_owned()),
                    host("socket", format!("{state}/{NODE}/containerd.sock")),
                    host("node", format!("{state}/{NODE}")),
                ],
            },
        });
        let pod = place.start(cluster, &pod).await;
        lift_process_limit(&pod.uid().expect("a uid"));
        Self { address: address_of(&pod), name: pod.name_any() }
    }

    /// Takes it away, with what it has taken of the machine.
    pub(super) async fn remove(&self, cluster: &Cluster, place: &Place) {
        let now = DeleteParams::default().grace_period(0);
        cluster.pods(&place.name).delete(&self.name, &now).await.expect("the control");
    }

    /// Waits for the end of the attacks; what the program saw of them.
    pub(super) async fn outcomes(&self, cluster: &Cluster, place: &Place) -> Outcomes {
        let log = eventually("the control has attacked", LIMIT, || async {
            let parameters =
                kube::api::LogParams { container: Some("attack".to_owned()), ..Default::default() };
            let log = cluster.pods(&place.name).logs(&self.name, &parameters).await;
            let log = log.map_err(|error| error.to_string())?;
            if list::scores(&log).is_empty() { Err(log) } else { Ok(log) }
        })
        .await;
        say(&format!("control: the attacker counts {:?}", list::scores(&log)));
        list::outcomes(&log)
    }
}

/// The kubelet limits the processes of every pod; the control has to be without.
fn lift_process_limit(uid: &str) {
    let systemd_form = uid.replace('-', "_");
    let mut folders = vec![Path::new("/sys/fs/cgroup").to_owned()];
    while let Some(folder) = folders.pop() {
        let name = folder.to_string_lossy().into_owned();
        if name.contains(uid) || name.contains(&systemd_form) {
            // The other trees of version 1 have no such file.
            let _ = fs::write(folder.join("pids.max"), "max");
        }
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        folders.extend(
            entries
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
}
