//! A supervisor makes agent pods as the template has them and nothing else, also where the namespace's
//! pod security is off.

use agent_operator_supervisor::ledger::Delivery;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    pods,
    policies::{Installed, agent_pod, agent_pod_with},
    server::{eventually, from_json, refusal, set},
};

/// Where in the pod or its container, what stands there instead, and words of the refusal.
type Row = (&'static str, Value, &'static str);

const RESTRICTED: &str = "every container of an agent pod is restricted";
const CONTAINER: &str = "has limits of CPU and memory";
const NODE: &str = "shares no namespace with its node";
const ACCOUNT: &str = "no service account of its own";
const VOLUMES: &str = "the volumes of an agent pod";
const OWNER: &str = "is owned by its AgentRun";
const ONE: &str = "an agent pod has one container";
const PROFILE: &str = "the runtime's own seccomp profile";
/// An account of the namespace besides its default one.
const OTHER_ACCOUNT: &str = "builder";
const PRIORITY: &str = "the priority class of agents";
/// The API server's own words: without its ban of escalation the policy refuses the rest.
const EXCLUSIVE: &str = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";

/// What no container has, neither the agent's nor the one that installs the runner.
fn container_rows() -> Vec<Row> {
    let device = json!({"limits": {"cpu": "1", "memory": "1Gi", "example.com/kvm": "1"}});
    let probe = json!({"httpGet": {"port": 80, "host": "10.0.0.1"}});
    let mount = |field: &str, value: &str| {
        let mut mount = json!({"name": "workspace", "mountPath": "/x"});
        set(&mut mount, &format!("/{field}"), value.into());
        json!([mount])
    };
    vec![
        ("/securityContext/privileged", json!(true), EXCLUSIVE),
        ("/securityContext", json!({"privileged": true}), RESTRICTED),
        ("/securityContext/allowPrivilegeEscalation", Value::Null, RESTRICTED),
        ("/securityContext/readOnlyRootFilesystem", json!(false), RESTRICTED),
        ("/securityContext/runAsNonRoot", json!(false), RESTRICTED),
        ("/securityContext/runAsUser", json!(0), RESTRICTED),
        ("/securityContext/runAsUser", Value::Null, RESTRICTED),
        (
            "/securityContext/capabilities",
            json!({"drop": ["ALL"], "add": ["NET_ADMIN"]}),
            RESTRICTED,
        ),
        ("/securityContext/capabilities", json!({"drop": ["NET_RAW"]}), RESTRICTED),
        ("/securityContext/seccompProfile", json!({"type": "Unconfined"}), RESTRICTED),
        ("/securityContext/seccompProfile", Value::Null, RESTRICTED),
        ("/securityContext/appArmorProfile", json!({"type": "Unconfined"}), RESTRICTED),
        ("/securityContext/seLinuxOptions", json!({"type": "spc_t"}), RESTRICTED),
        ("/securityContext/windowsOptions", json!({"runAsUserName": "x"}), RESTRICTED),
        ("/securityContext", Value::Null, RESTRICTED),
        ("/ports", json!([{"containerPort": 80, "hostPort": 80}]), CONTAINER),
        ("/envFrom", json!([{"secretRef": {"name": "s"}}]), CONTAINER),
        (
            "/env",
            json!([{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]),
            CONTAINER,
        ),
        ("/volumeMounts", mount("subPath", "a"), CONTAINER),
        ("/volumeMounts", mount("mountPropagation", "HostToContainer"), CONTAINER),
        ("/resources", json!({"limits": {"cpu": "1"}}), CONTAINER),
        ("/resources", device, CONTAINER),
        // What the API server itself lets one of the two not have.
        ("/lifecycle", json!({"preStop": {"exec": {"command": ["x"]}}}), "lifecycle|ports, hooks"),
        ("/livenessProbe", probe.clone(), "livenessProbe|hooks, probes"),
        ("/readinessProbe", probe.clone(), "readinessProbe|hooks, probes"),
        ("/startupProbe", probe, "startupProbe|hooks, probes"),
        ("/restartPolicy", json!("Always"), "restartPolicy|hooks, probes"),
    ]
}

fn rows() -> Vec<Row> {
    let account_token = json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t", "audience": "x"}}]}});
    let volume = |source: Value| {
        let mut volume = json!({"name": "workspace"});
        volume.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        volume
    };
    let owner = |kind: &str| json!([{"apiVersion": "v1", "kind": kind, "name": "x", "uid": "x", "controller": true}]);
    vec![
        ("/spec/hostNetwork", json!(true), NODE),
        ("/spec/hostPID", json!(true), NODE),
        ("/spec/hostIPC", json!(true), NODE),
        ("/spec/shareProcessNamespace", json!(true), NODE),
        ("/spec/hostAliases", json!([{"ip": "10.0.0.1", "hostnames": ["x"]}]), NODE),
        (
            "/spec/securityContext/sysctls",
            json!([{"name": "kernel.shm_rmid_forced", "value": "1"}]),
            NODE,
        ),
        ("/spec/securityContext/seccompProfile", json!({"type": "Unconfined"}), PROFILE),
        ("/spec/securityContext/seccompProfile", Value::Null, PROFILE),
        ("/spec/securityContext/appArmorProfile", json!({"type": "Unconfined"}), PROFILE),
        // The API server takes it for the field.
        (
            "/metadata/annotations/container.apparmor.security.beta.kubernetes.io~1agent",
            json!("unconfined"),
            RESTRICTED,
        ),
        ("/spec/securityContext/seLinuxOptions", json!({"type": "spc_t"}), PROFILE),
        ("/spec/securityContext/windowsOptions", json!({"runAsUserName": "x"}), PROFILE),
        ("/spec/securityContext/supplementalGroups", json!([0]), PROFILE),
        ("/spec/resourceClaims", json!([{"name": "gpu", "resourceClaimName": "x"}]), PROFILE),
        ("/spec/priorityClassName", json!("system-node-critical"), PRIORITY),
        ("/spec/dnsPolicy", json!("ClusterFirst"), NODE),
        ("/spec/enableServiceLinks", json!(true), NODE),
        ("/spec/automountServiceAccountToken", Value::Null, ACCOUNT),
        ("/spec/serviceAccountName", json!(OTHER_ACCOUNT), ACCOUNT),
        ("/spec/volumes/0", volume(json!({"hostPath": {"path": "/"}})), VOLUMES),
        ("/spec/volumes/0", volume(json!({"emptyDir": {}})), VOLUMES),
        ("/spec/volumes/0", volume(json!({"secret": {"secretName": "s"}})), VOLUMES),
        ("/spec/volumes/0", volume(json!({"nfs": {"server": "x", "path": "/"}})), VOLUMES),
        ("/spec/volumes/0", volume(account_token), VOLUMES),
        ("/spec/restartPolicy", json!("Always"), "runs once, and ends"),
        ("/spec/activeDeadlineSeconds", Value::Null, "runs once, and ends"),
        ("/metadata/ownerReferences", Value::Null, OWNER),
        ("/metadata/ownerReferences", owner("ConfigMap"), OWNER),
        ("/metadata/finalizers", json!(["agents.wearn.dev/outcome", "example.com/x"]), OWNER),
        ("/metadata/labels/agents.wearn.dev~1run", Value::Null, OWNER),
    ]
}

/// Sets the value at a pointer with indices and escapes; null removes it.
fn put(pod: &mut Value, pointer: &str, value: Value) {
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    let last = last.replace("~1", "/");
    match pod.pointer_mut(parent).unwrap() {
        Value::Array(items) => items[last.parse::<usize>().unwrap()] = value,
        Value::Object(fields) if value.is_null() => drop(fields.remove(&last)),
        Value::Object(fields) => drop(fields.insert(last, value)),
        other => panic!("{pointer}: {other}"),
    }
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn supervisor_makes_no_pod_but_one_of_the_template() {
    let Some(installed) = Installed::new().await else { return };
    let accounts: Api<ServiceAccount> =
        Api::namespaced(installed.admin.clone(), &installed.namespace);
    let account = from_json(json!({"metadata": {"name": OTHER_ACCOUNT}}));
    accounts.create(&PostParams::default(), &account).await.unwrap();
    let supervisor = installed.supervisor(Some("node-a")).await;
    let api: Api<Pod> = Api::namespaced(supervisor, &installed.namespace);
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    api.create(&dry, &agent_pod("own", "node-a")).await.expect("the template itself passes");
    api.create(&dry, &installed_pod(|_| ())).await.expect("and where nodes know no image volumes");
    let refused = async |what: &str, pod: &Pod, words: &str| {
        let message = refusal(api.create(&dry, pod).await);
        assert!(words.split('|').any(|words| message.contains(words)), "{what}: {message}");
    };
    let rows = rows();
    assert!(rows.len() > 25);
    for (at, value, words) in rows {
        let pod = agent_pod_with("own", "node-a", |pod| put(pod, at, value.clone()));
        refused(&format!("{at} = {value}"), &pod, words).await;
    }
    let rows = container_rows();
    assert!(rows.len() > 25);
    for (at, value, words) in rows {
        let change = |pod: &mut Value, container: &str| {
            put(pod, &format!("{container}{at}"), value.clone());
        };
        for (delivery, pod) in [
            ("image", agent_pod_with("own", "node-a", |pod| change(pod, "/spec/containers/0"))),
            ("agent's", installed_pod(|pod| change(pod, "/spec/containers/0"))),
            ("installer's", installed_pod(|pod| change(pod, "/spec/initContainers/0"))),
        ] {
            refused(&format!("{delivery}: {at} = {value}"), &pod, words).await;
        }
    }
    for containers in ["containers", "initContainers"] {
        let more = installed_pod(|pod| {
            let mut second = pod["spec"][containers][0].clone();
            set(&mut second, "/name", json!("second"));
            pod["spec"][containers].as_array_mut().unwrap().push(second);
        });
        refused(containers, &more, ONE).await;
        // What the API server lets nobody have without something else.
        let bare = installed_pod(|pod| {
            pod["spec"][containers][0]["securityContext"]["procMount"] = json!("Unmasked");
            pod["spec"]["hostUsers"] = json!(false);
        });
        refused("procMount", &bare, RESTRICTED).await;
        let device = installed_pod(|pod| {
            let claim = json!({"name": "disk", "persistentVolumeClaim": {"claimName": "x"}});
            pod["spec"]["volumes"].as_array_mut().unwrap().push(claim);
            pod["spec"][containers][0]["volumeDevices"] =
                json!([{"name": "disk", "devicePath": "/dev/x"}]);
        });
        refused("volumeDevices", &device, CONTAINER).await;
    }
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn a_supervisor_gives_its_pods_the_priority_that_the_chart_gives_agents_and_no_other() {
    let own_classes = vec!["priorityClasses.create=true".to_owned()];
    let Some(installed) = Installed::begin(own_classes).await else { return };
    let supervisor = installed.supervisor(Some("node-a")).await;
    let api: Api<Pod> = Api::namespaced(supervisor, &installed.namespace);
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let of = |class: Value| {
        agent_pod_with("own", "node-a", |pod| put(pod, "/spec/priorityClassName", class))
    };
    let class = |of: &str| json!(format!("{}-{of}", installed.release()));
    for other in [class("system"), Value::Null] {
        eventually("another class is refused", async || {
            let message = api.create(&dry, &of(other.clone())).await.err()?.to_string();
            message.contains(PRIORITY).then_some(())
        })
        .await;
    }
    api.create(&dry, &of(class("agent"))).await.expect("the class of agents passes");
}

/// The pod of a node that knows no image volumes, changed.
fn installed_pod(change: impl FnOnce(&mut Value)) -> Pod {
    let assignment = pods::assignment("x", "node-a");
    let mut pod = serde_json::to_value(pods::pod_by(&assignment, Delivery::InitContainer)).unwrap();
    set(&mut pod, "/metadata/namespace", Value::Null);
    change(&mut pod);
    from_json(pod)
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn supervisor_changes_nothing_in_the_spec_of_its_own_pod() {
    let Some(installed) = Installed::new().await else { return };
    let supervisor = installed.supervisor(Some("node-a")).await;
    let pods: Api<Pod> = Api::namespaced(supervisor, &installed.namespace);
    pods.create(&PostParams::default(), &agent_pod("own", "node-a")).await.unwrap();
    let image = json!({"spec": {"containers": [{"name": "agent", "image": "attacker.example/x"}]}});
    let result = pods.patch("own", &PatchParams::default(), &Patch::Strategic(image)).await;
    let message = refusal(result);
    assert!(message.contains("changes nothing in the spec"), "{message}");
}
