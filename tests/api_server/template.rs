//! A supervisor makes agent pods as the template has them and nothing else, also where the namespace's
//! pod security is off.

use agent_operator_supervisor::ledger::Delivery;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    pods,
    policies::{Installed, agent_pod, agent_pod_with},
    server::{refusal, set},
};

/// Where in the pod, what stands there instead, and words of the refusal.
type Row = (&'static str, Value, &'static str);

const CONTEXT: &str = "/spec/containers/0/securityContext";
const RESTRICTED: &str = "every container of an agent pod is restricted";
const CONTAINER: &str = "has limits of CPU and memory";
const NODE: &str = "shares no namespace with its node";
const ACCOUNT: &str = "no service account of its own";
const VOLUMES: &str = "the volumes of an agent pod";
const OWNER: &str = "is owned by its AgentRun";
const ONE: &str = "an agent pod has one container";

fn rows() -> Vec<Row> {
    let account_token = json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t", "audience": "x"}}]}});
    let volume = |source: Value| {
        let mut volume = json!({"name": "workspace"});
        volume.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        volume
    };
    let owner = |kind: &str| json!([{"apiVersion": "v1", "kind": kind, "name": "x", "uid": "x", "controller": true}]);
    vec![
        // Not to be had together with a ban of escalation.
        (CONTEXT, json!({"privileged": true}), RESTRICTED),
        ("CONTEXT/allowPrivilegeEscalation", Value::Null, RESTRICTED),
        ("CONTEXT/readOnlyRootFilesystem", json!(false), RESTRICTED),
        ("CONTEXT/runAsNonRoot", json!(false), RESTRICTED),
        ("CONTEXT/runAsUser", json!(0), RESTRICTED),
        ("CONTEXT/runAsUser", Value::Null, RESTRICTED),
        ("CONTEXT/capabilities", json!({"drop": ["ALL"], "add": ["NET_ADMIN"]}), RESTRICTED),
        ("CONTEXT/capabilities", json!({"drop": ["NET_RAW"]}), RESTRICTED),
        ("CONTEXT/seccompProfile", json!({"type": "Unconfined"}), RESTRICTED),
        (CONTEXT, Value::Null, RESTRICTED),
        ("/spec/containers/0/ports", json!([{"containerPort": 80, "hostPort": 80}]), CONTAINER),
        ("/spec/containers/0/envFrom", json!([{"secretRef": {"name": "s"}}]), CONTAINER),
        (
            "/spec/containers/0/env",
            json!([{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]),
            CONTAINER,
        ),
        (
            "/spec/containers/0/lifecycle",
            json!({"preStop": {"exec": {"command": ["x"]}}}),
            CONTAINER,
        ),
        ("/spec/containers/0/resources", json!({"limits": {"cpu": "1"}}), CONTAINER),
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
        ("/spec/dnsPolicy", json!("ClusterFirst"), NODE),
        ("/spec/enableServiceLinks", json!(true), NODE),
        ("/spec/automountServiceAccountToken", Value::Null, ACCOUNT),
        ("/spec/serviceAccountName", json!("NAMESPACE-supervisor"), ACCOUNT),
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
    let pointer = pointer.replace("CONTEXT", CONTEXT);
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
    let supervisor = installed.supervisor(Some("node-a")).await;
    let api: Api<Pod> = Api::namespaced(supervisor, &installed.namespace);
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    api.create(&dry, &agent_pod("own", "node-a")).await.expect("the template itself passes");
    let space = &installed.namespace;
    let by_init_container =
        pods::pod_by(&pods::assignment(space, "node-a"), Delivery::InitContainer);
    api.create(&dry, &by_init_container).await.expect("and where nodes know no image volumes");
    let rows = rows();
    assert!(rows.len() > 30);
    for (at, value, words) in rows {
        let value = match value.as_str() {
            Some(text) => text.replace("NAMESPACE", &installed.namespace).into(),
            None => value,
        };
        let pod = agent_pod_with("own", "node-a", |pod| put(pod, at, value.clone()));
        let message = refusal(api.create(&dry, &pod).await);
        assert!(message.contains(words), "{at} = {value}: {message}");
    }
    let more = agent_pod_with("own", "node-a", |pod| {
        let mut second = pod["spec"]["containers"][0].clone();
        set(&mut second, "/name", json!("second"));
        pod["spec"]["containers"].as_array_mut().unwrap().push(second);
    });
    let message = refusal(api.create(&dry, &more).await);
    assert!(message.contains(ONE), "{message}");
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
