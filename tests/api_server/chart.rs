//! The chart as the API server sees it.

use std::{collections::BTreeSet, fmt::Write as _};

use k8s_openapi::api::{
    core::v1::{Namespace, Pod, ServiceAccount},
    rbac::v1::ClusterRole,
};
use kube::{
    Api, Client, Discovery,
    api::{
        DeleteParams, DynamicObject, Patch, PatchParams, PostParams, TypeMeta, ValidationDirective,
    },
    core::GroupVersionKind,
    discovery::Scope,
};
use serde_json::{Value, json};

use super::server::{client, from_json, kubeconfig, namespace, render, try_render};

/// The arguments that have tasks in `namespace`, which is there already.
pub(crate) fn tasks_in(namespace: &str) -> Vec<String> {
    vec![
        format!("taskNamespaces={}", json!([namespace])),
        "createTaskNamespaces=false".to_owned(),
        "crds.install=false".to_owned(),
    ]
}

/// Applies documents of a chart as Helm does, strictly: an unknown field is an error.
pub(crate) async fn apply(client: &Client, documents: &[Value], dry_run: bool) {
    let discovery = Discovery::new(client.clone()).run().await.unwrap();
    let mut params = PatchParams::apply("api-tests").force();
    params.dry_run = dry_run;
    params.field_validation = Some(ValidationDirective::Strict);
    // What belongs to `helm test` is not installed with the rest.
    let hook = |document: &&Value| !document["metadata"]["annotations"]["helm.sh/hook"].is_null();
    for document in documents.iter().filter(|document| !hook(document)) {
        let object: DynamicObject = from_json(document.clone());
        let types: TypeMeta = object.types.clone().unwrap();
        let kind = GroupVersionKind::try_from(&types).unwrap();
        let (resource, capabilities) = discovery.resolve_gvk(&kind).unwrap();
        let api: Api<DynamicObject> = if capabilities.scope == Scope::Namespaced {
            let namespace = object.metadata.namespace.as_deref();
            let namespace = namespace.unwrap_or_else(|| panic!("{kind:?} without a namespace"));
            Api::namespaced_with(client.clone(), namespace, &resource)
        } else {
            Api::all_with(client.clone(), &resource)
        };
        let name = object.metadata.name.clone().unwrap();
        api.patch(&name, &params, &Patch::Apply(&object))
            .await
            .unwrap_or_else(|error| panic!("{} {name}: {error}", types.kind));
    }
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn chart_is_valid_with_its_defaults_and_with_every_option() {
    let Some(client) = client().await else { return };
    let (system, tasks) = (namespace(&client).await, namespace(&client).await);
    let mut set = tasks_in(&tasks);
    apply(&client, &render("plain", &system, &set), true).await;
    let values = [
        json!({"controller.replicas": 1, "controller.persistence.enabled": true}),
        json!({"controller.service": {"type": "NodePort", "nodePort": 30443, "annotations": {"a": "b"}}}),
        json!({"controller.tls.extraSANs": ["10.0.0.1", "ao.example.com"], "imagePullSecrets": [{"name": "x"}]}),
        json!({"supervisor.tolerations": [{"operator": "Exists"}], "supervisor.priorityClassName": "system-node-critical"}),
        json!({"gateway.caBundle": {"configMap": "ca", "key": "ca.crt"}, "gateway.limits": {"tunnels": 3}}),
        json!({"gateway.proxy": {"https": "http://proxy.example:3128", "credentialsSecret": {"name": "proxy"}}}),
        json!({"enforcer": {"enabled": true, "podAnnotations": {"a": "b"}, "extraEnv": []}}),
        json!({"priorityClasses.create": true, "headroom.enabled": true, "metrics.services": true}),
        json!({"metrics.dashboard": {"enabled": true, "annotations": {"grafana_folder": "Agents"}}}),
        json!({"egress.deniedNetworks": ["203.0.113.0/24", "198.51.100.7", "2001:db8::/32", "::1", "64:ff9b::/96"]}),
        json!({"egress.allowedHosts": ["localhost", "1.example", "a-b.example:8443"], "defaults.stepTimeout": "167h60m"}),
        json!({"tracing": {"endpoint": "http://collector.observability:4317", "ratio": 0.5}, "logFormat": "text"}),
        json!({"supervisor.updateStrategy": "OnDelete", "controller.podDisruptionBudget.maxUnavailable": "50%"}),
        json!({"upstreams": [{"host": "github.com", "baseURL": "http://10.0.0.2:3000", "forge": "gitea"}]}),
        json!({"agent.sandbox": {"runtimeClassName": "gvisor", "egressPolicy": "Required", "requirePidsLimit": true}}),
        json!({"networkPolicies.metricsFrom": [{"namespaceSelector": {}}], "policies.agentRunWriters": ["dev@example.com"]}),
    ];
    for value in values.iter().flat_map(|values| values.as_object().unwrap()) {
        set.push(format!("{}={}", value.0, value.1));
    }
    apply(&client, &render("full", &system, &set), true).await;
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn wrong_values_are_refused_by_the_chart_itself() {
    let Some(_) = client().await else { return };
    for (value, words) in [
        ("foo=1", "'foo' not allowed"),
        ("controller.replica=2", "'replica' not allowed"),
        ("agent.limits.cpu=\"lots\"", "/agent/limits/cpu"),
        ("taskNamespaces=[]", "/taskNamespaces"),
        ("upstreams=[{\"host\": \"x\"}]", "/upstreams/0"),
        ("defaults.stepTimeout=\"1y\"", "/defaults/stepTimeout"),
        ("supervisor.hostPath=\"/a b; rm\"", "/supervisor/hostPath"),
        ("gateway.proxy.https=\"https://proxy:3128\"", "/gateway/proxy/https"),
        ("gateway.proxy.https=\"http://me:pw@proxy:3128\"", "/gateway/proxy/https"),
        ("gateway.proxy.noProxy=[\"a b\"]", "/gateway/proxy/noProxy/0"),
        ("gateway.caBundle.inline=\"no certificate\"", "/gateway/caBundle/inline"),
        (
            "gateway.caBundle={\"inline\": \"-----BEGIN CERTIFICATE-----\", \"configMap\": \"ca\"}",
            "/gateway/caBundle",
        ),
        (
            "controller.podDisruptionBudget.maxUnavailable=\"half\"",
            "/controller/podDisruptionBudget",
        ),
        ("controller.persistence.enabled=true", "controller.replicas=1"),
        ("headroom.priority=5", "/headroom/priority"),
        ("logFormat=\"xml\"", "/logFormat"),
        ("tracing.endpoint=\"collector:4317\"", "/tracing/endpoint"),
        ("tracing.ratio=2", "/tracing/ratio"),
        ("agent.priorityClassName=\"No Class\"", "/agent/priorityClassName"),
        (
            "defaults.stepTimeout=\"168h1s\"",
            "defaults.stepTimeout is 168h1s: a step may take at most 168h",
        ),
        ("defaults.taskTimeout=\"0h0m\"", "/defaults/taskTimeout"),
        ("limits.taskEndPodTTL=\"0s\"", "/limits/taskEndPodTTL"),
        ("supervisor.streams.retention=\"0s\"", "/supervisor/streams/retention"),
        ("agent.limits.memory=\"0\"", "/agent/limits/memory"),
        ("agent.requests.cpu=\"0.0m\"", "/agent/requests/cpu"),
        ("egress.allowedHosts=[\"10.0.0.1\"]", "/egress/allowedHosts/0"),
        ("egress.allowedHosts=[\"packages.example:65536\"]", "/egress/allowedHosts/0"),
        ("egress.deniedNetworks=[\"10.0.0.0/33\"]", "/egress/deniedNetworks/0"),
        ("egress.deniedNetworks=[\"2001:db8::/129\"]", "/egress/deniedNetworks/0"),
        ("egress.deniedNetworks=[\"256.0.0.0/8\"]", "/egress/deniedNetworks/0"),
        ("networkPolicies.apiServerPorts=[80]", "/networkPolicies/apiServerPorts/0"),
    ] {
        let message = try_render("wrong", "x", &[value.to_owned()]).unwrap_err();
        assert!(message.contains(words), "{value}: {message}");
    }
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn chart_installs_with_the_longest_names_and_names_no_other_namespace() {
    let Some(client) = client().await else { return };
    // Helm takes release names of at most 53 characters.
    let release = "r".repeat(53);
    let [system, tasks] = ["s", "t"].map(|letter| letter.repeat(63));
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for name in [&system, &tasks] {
        let object: Namespace = from_json(json!({"metadata": {"name": name}}));
        let _ = namespaces.create(&PostParams::default(), &object).await;
    }
    let documents = render(&release, &system, &tasks_in(&tasks));
    apply(&client, &documents, true).await;
    for document in &documents {
        let name = document["metadata"]["name"].as_str().unwrap();
        let room = match document["kind"].as_str().unwrap() {
            // Names of pods, services and their parts are DNS labels; Kubernetes adds to the first two.
            "Deployment" | "DaemonSet" => 52,
            _ => 63,
        };
        assert!(name.len() <= room || document["kind"] == "ClusterRole", "{name}");
        let text = document.to_string();
        assert!(
            !text.contains("agent-operator-system") && !text.contains("agent-system"),
            "{name}"
        );
        let within = document["metadata"]["namespace"].as_str();
        assert!(
            within.is_none_or(|within| within == system || within == tasks),
            "{name} is in {within:?}"
        );
    }
    for name in [&system, &tasks] {
        namespaces.delete(name, &DeleteParams::default()).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn every_object_has_a_name_of_its_own_and_tasks_in_the_releases_namespace_are_refused() {
    let Some(_) = client().await else { return };
    let documents = render("ao", "ao-system", &["taskNamespaces=[\"a\", \"b\"]".to_owned()]);
    let mut seen = BTreeSet::new();
    for document in &documents {
        let of = |field: &str| document["metadata"][field].as_str().unwrap_or_default().to_owned();
        let kind = document["kind"].to_string();
        assert!(
            seen.insert((kind, of("namespace"), of("name"))),
            "twice: {}",
            document["metadata"]
        );
    }
    let both = ["taskNamespaces=[\"a\", \"ao-system\"]".to_owned()];
    let message = try_render("ao", "ao-system", &both).unwrap_err();
    assert!(message.contains("ao-system, the namespace of the release itself"), "{message}");
}

/// What Helm says to a release that it renders beside what is in the cluster, and whether that is good.
fn install(release: &str, namespace: &str, tasks: &str) -> (bool, String) {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/helm/agent-operator");
    let tasks = format!("taskNamespaces={{{tasks}}}");
    let output = std::process::Command::new("helm")
        .args(["template", release, chart, "--namespace", namespace, "--dry-run=server"])
        .args(["--set", "crds.install=false", "--set", &tasks, "--kubeconfig"])
        .arg(kubeconfig().unwrap())
        .output()
        .unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn a_namespace_with_agent_pods_is_not_taken_from_the_release() {
    let Some(client) = client().await else { return };
    let (system, left) = (namespace(&client).await, namespace(&client).await);
    // What the release that is there has written.
    let documents = render("moving", &system, &tasks_in(&left));
    let settings: Vec<_> = documents
        .into_iter()
        .filter(|it| it["kind"] == "ConfigMap" && it["metadata"]["name"] == "moving-controller")
        .collect();
    assert_eq!(settings.len(), 1);
    apply(&client, &settings, false).await;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &left);
    let account = from_json(json!({"metadata": {"name": "default"}}));
    accounts.create(&PostParams::default(), &account).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client, &left);
    for (name, labels) in
        [("a-plan-1", json!({"agents.wearn.dev/run": "a-plan-1"})), ("bystander", json!({}))]
    {
        let pod = from_json(json!({
            "metadata": {"name": name, "labels": labels},
            "spec": {"containers": [{"name": "c", "image": "x"}]},
        }));
        pods.create(&PostParams::default(), &pod).await.unwrap();
    }
    let words = "where agent pods are left (1, for example a-plan-1)";
    let (good, text) = install("moving", &system, "elsewhere");
    assert!(!good && text.contains(&format!("no longer names {left}, {words}")), "{text}");
    // Another test's release may be in the way of these, and says so in other words.
    let (_, text) = install("moving", &system, &format!("elsewhere,{left}"));
    assert!(!text.contains(words), "{text}");
    pods.delete("a-plan-1", &DeleteParams::default().grace_period(0)).await.unwrap();
    let (_, text) = install("moving", &system, "elsewhere");
    assert!(!text.contains(words), "{text}");
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn second_release_is_refused_where_the_first_can_be_seen() {
    let Some(client) = client().await else { return };
    let roles: Api<ClusterRole> = Api::all(client);
    let role: ClusterRole = from_json(json!({"metadata": {
        "name": "first-of-two-releases",
        "labels": {"app.kubernetes.io/name": "agent-operator"},
        "annotations": {
            "meta.helm.sh/release-name": "first", "meta.helm.sh/release-namespace": "first-place",
        },
    }}));
    let _ = roles.create(&PostParams::default(), &role).await;
    let install = |release: &str, namespace: &str| install(release, namespace, "agent-system");
    for (release, namespace) in [("second", "first-place"), ("first", "elsewhere")] {
        let (good, text) = install(release, namespace);
        assert!(!good && text.contains("as release first in namespace first-place"), "{text}");
    }
    let (good, text) = install("first", "first-place");
    assert!(good, "the release itself is upgraded: {text}");
    roles.delete("first-of-two-releases", &DeleteParams::default()).await.unwrap();
    assert!(try_render("second", "elsewhere", &[]).is_ok(), "offline nothing is refused");
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn own_pods_reach_pods_resolver_and_api_server_and_no_metadata_service() {
    let Some(_) = client().await else { return };
    let documents = render("ao", "ao-system", &[]);
    for name in ["ao-supervisor", "ao-controller"] {
        let policy = documents.iter().find(|document| {
            document["kind"] == "NetworkPolicy" && document["metadata"]["name"] == name
        });
        let rules = policy.unwrap()["spec"]["egress"].as_array().unwrap();
        let mut anywhere = BTreeSet::new();
        for rule in rules {
            let Some(peers) = rule["to"].as_array() else {
                let ports = rule["ports"].as_array().expect("a rule for everything has ports");
                anywhere.extend(ports.iter().map(|port| port["port"].as_u64().unwrap()));
                continue;
            };
            // Some data paths take a block of addresses for no pod.
            assert!(peers.contains(&json!({"namespaceSelector": {}})), "{name}: {peers:?}");
            for block in peers.iter().filter(|peer| !peer["ipBlock"].is_null()) {
                let but = block["ipBlock"]["except"][0].as_str().unwrap();
                assert!(["169.254.169.254/32", "fd00:ec2::254/128"].contains(&but), "{but}");
            }
        }
        // Metadata is served at port 80.
        assert_eq!(anywhere, [53, 6443].into(), "{name}");
    }
}

/// Every right that the chart grants, one line each.
fn rights(documents: &[Value]) -> String {
    let mut lines = BTreeSet::new();
    for document in documents {
        let kind = document["kind"].as_str().unwrap();
        if !matches!(kind, "Role" | "ClusterRole") {
            continue;
        }
        let name = document["metadata"]["name"].as_str().unwrap();
        let place = document["metadata"]["namespace"].as_str().unwrap_or("(cluster)");
        for rule in document["rules"].as_array().unwrap() {
            let words = |field: &str| {
                let list = rule[field].as_array().cloned().unwrap_or_default();
                list.iter().map(|item| item.as_str().unwrap().to_owned()).collect::<Vec<_>>()
            };
            for group in words("apiGroups") {
                for resource in words("resources") {
                    let verbs = words("verbs").join(",");
                    let named = words("resourceNames");
                    let mut line = format!("{place} {name}: {resource}");
                    if !group.is_empty() {
                        let _ = write!(line, ".{group}");
                    }
                    if !named.is_empty() {
                        let _ = write!(line, " [{}]", named.join(","));
                    }
                    lines.insert(format!("{line} {verbs}"));
                }
            }
        }
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

/// What no account of the chart may have, as lines of [`rights`].
fn objections(rights: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in rights.lines() {
        let (what, verbs) = line.rsplit_once(' ').unwrap();
        let verbs: Vec<_> = verbs.split(',').collect();
        let any = |wanted: &[&str]| verbs.iter().any(|verb| wanted.contains(verb));
        let makes_pods = what.contains(": pods") && any(&["create"]);
        for (why, holds) in [
            ("a wildcard grants what nobody has thought of", line.contains('*')),
            ("it is exec in every container of the node", what.contains("nodes/proxy")),
            ("one call ends everything", any(&["deletecollection"]) && !what.contains("-edit:")),
            ("all Secrets at once", what.contains(": secrets") && any(&["list", "watch"])),
            ("a pod is a right of its own", makes_pods && !what.contains("-supervisor:")),
            ("it gives itself what it lacks", any(&["bind", "escalate", "impersonate"])),
            ("a token for another account", what.contains("serviceaccounts/token")),
            (
                "a program in a pod",
                ["pods/exec", "pods/attach", "pods/ephemeralcontainers"]
                    .iter()
                    .any(|sub| what.contains(sub)),
            ),
        ] {
            if holds {
                found.push(format!("{line}: {why}"));
            }
        }
    }
    found
}

#[test]
fn a_planted_right_is_objected_to() {
    for planted in [
        "(cluster) agent-operator-supervisor: * get",
        "(cluster) agent-operator-controller: nodes *",
        "agent-system agent-operator-controller: secrets get,list",
        "agent-system agent-operator-supervisor: secrets watch",
        "(cluster) agent-operator-supervisor: nodes/proxy get",
        "agent-system agent-operator-supervisor: pods create,get,deletecollection",
        "agent-system agent-operator-uninstall: pods create",
        "(cluster) agent-operator-controller: clusterroles.rbac.authorization.k8s.io bind",
        "agent-system agent-operator-supervisor: serviceaccounts/token create",
        "agent-system agent-operator-supervisor: pods/exec create",
    ] {
        assert_eq!(objections(planted).len(), 1, "{planted}");
    }
    let agreed = include_str!("rights.txt");
    assert_eq!(objections(agreed), Vec::<String>::new());
    assert!(agreed.lines().count() > 20);
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn rights_of_each_account_are_those_that_were_agreed() {
    let Some(_) = client().await else { return };
    let rendered = render("agent-operator", "agent-operator-system", &[]);
    let found = rights(&rendered);
    assert_eq!(objections(&found), Vec::<String>::new());
    let path = format!("{}/tests/api_server/rights.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("AO_WRITE").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    let agreed = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, agreed, "the chart's rights differ from {path}; is that meant?");
}
