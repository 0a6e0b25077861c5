//! Chart and programs against one another: what the chart writes, the programs read; the pod that a
//! supervisor builds, the chart's policies and the restricted profile let through.

use agent_operator::domain::{Assignment, Secret};
use agent_operator_controller::settings::Settings;
use agent_operator_doubles::assignment;
use agent_operator_supervisor::{
    gateway::args::Config,
    ledger::Delivery,
    pod::build::{NodeSettings, pod},
};
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    policies::Installed,
    server::{client, from_json, namespace, refusal, render},
};

/// A file of a rendered ConfigMap.
fn file(documents: &[Value], config_map: &str, key: &str) -> String {
    let map = documents.iter().find(|document| {
        document["kind"] == "ConfigMap" && document["metadata"]["name"] == config_map
    });
    map.unwrap()["data"][key].as_str().unwrap().to_owned()
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn programs_read_the_configuration_that_the_chart_writes() {
    let Some(_) = client().await else { return };
    let full = [
        "upstreams=[{\"host\": \"github.com\", \"baseURL\": \"http://10.0.0.2:3000\", \"forge\": \"gitea\"}]",
        "agent.sandbox={\"runtimeClassName\": \"gvisor\", \"egressPolicy\": \"Required\", \"requirePidsLimit\": true}",
        "agent.limits={\"cpu\": 2, \"memory\": \"1Gi\", \"storage\": \"1Gi\"}",
        "agent.tolerations=[{\"key\": \"gpu\", \"operator\": \"Exists\"}]",
        "agent.nodeSelector={\"disk\": \"ssd\"}",
        "agent.imagePullSecrets=[{\"name\": \"pull\"}]",
        "gateway.limits={\"connections\": 1, \"connectionsPerPod\": 1, \"requestsPerSecond\": 1, \"modelCalls\": 1, \"modelBodyBytes\": 1, \"tunnels\": 1, \"tunnelUploadBytes\": 1}",
        "llm={\"baseURL\": \"http://10.0.0.1:8088/v\", \"host\": \"api.anthropic.com\", \"serverTools\": [\"web_search\"]}",
    ];
    let full: Vec<String> = full.iter().map(|&value| value.to_owned()).collect();
    for set in [Vec::new(), full] {
        let documents = render("ao", "ao-system", &set);
        let settings = file(&documents, "ao-controller", "settings.yaml");
        let settings =
            Settings::parse(&settings).unwrap_or_else(|error| panic!("{error}\n{settings}"));
        assert!(settings.enables("agent-system"));
        let config = file(&documents, "ao-gateway", "gateway.yaml");
        let config = Config::parse(&config).unwrap_or_else(|error| panic!("{error}\n{config}"));
        assert!(config.egress.allowed_hosts.iter().any(|host| host.contains("npm")));
        // The two halves of one value: a Secret goes where the gateway sends it.
        assert_eq!(settings.llm_host, config.llm.host);
        assert_eq!(settings.upstream_hosts.len(), config.upstreams.len());
    }
}

/// An assignment as the controller sends it.
fn assignment(namespace: &str) -> Assignment {
    from_json(assignment::assignment(&json!({
        "run": {"namespace": namespace, "name": "add-healthcheck-impl-1-0a1b2c3d"},
        "task": {"name": "add-healthcheck"},
        "step": "implement", "epoch": 3,
        "pod": {"imagePullSecrets": ["pull"], "nodeSelector": {"pool": "agents"}},
    })))
}

/// Makes a namespace refuse whatever is not restricted, and gives it the account that pods need.
async fn restrict(admin: &Client, namespace: &str, account: bool) {
    let label =
        json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    let namespaces: Api<Namespace> = Api::all(admin.clone());
    namespaces.patch(namespace, &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
    if account {
        let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), namespace);
        let object = from_json(json!({"metadata": {"name": "default"}}));
        accounts.create(&PostParams::default(), &object).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn pod_of_a_step_fits_the_policies_and_the_restricted_profile() {
    let Some(installed) = Installed::new().await else { return };
    let namespace = &installed.namespace;
    let pods: Api<Pod> = Api::namespaced(installed.supervisor(Some("node-a")).await, namespace);
    restrict(&installed.admin, namespace, false).await;
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    for delivery in [Delivery::ImageVolume, Delivery::InitContainer] {
        let settings = NodeSettings {
            gateway: "10.96.0.7:8080".parse().unwrap(),
            runner_image: "registry.example/runner:1".to_owned(),
            delivery,
            priority_class: None,
        };
        let built = pod(&assignment(namespace), &settings, &Secret::new("one-time"));
        pods.create(&dry, &built).await.unwrap_or_else(|error| panic!("{delivery:?}: {error}"));
        let mut privileged = built.clone();
        let container = &mut privileged.spec.as_mut().unwrap().containers[0];
        container.security_context.as_mut().unwrap().privileged = Some(true);
        container.security_context.as_mut().unwrap().allow_privilege_escalation = None;
        let message = refusal(pods.create(&dry, &privileged).await);
        assert!(message.contains("restricted"), "the profile must be in force: {message}");
    }
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn controller_pod_fits_the_restricted_profile_and_supervisor_asks_for_no_more_than_host_paths()
 {
    let Some(client) = client().await else { return };
    let namespace = namespace(&client).await;
    restrict(&client, &namespace, true).await;
    let documents = render("plain", &namespace, &super::chart::tasks_in("tasks"));
    let template = |kind: &str, name: &str| {
        let found = documents
            .iter()
            .find(|document| document["kind"] == kind && document["metadata"]["name"] == name);
        let mut pod = found.unwrap()["spec"]["template"].clone();
        pod["metadata"]["name"] = json!("probe");
        pod["spec"]["serviceAccountName"] = json!("default");
        pod
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let controller: Pod = from_json(template("Deployment", "plain-controller"));
    pods.create(&dry, &controller).await.unwrap();

    // Without its host paths and the container that prepares them, the rest is restricted too.
    let mut supervisor = template("DaemonSet", "plain-supervisor");
    let message = refusal(pods.create(&dry, &from_json(supervisor.clone())).await);
    assert!(message.contains("hostPath"), "{message}");
    for volume in supervisor["spec"]["volumes"].as_array_mut().unwrap() {
        if !volume["hostPath"].is_null() {
            *volume = json!({"name": volume["name"], "emptyDir": {}});
        }
    }
    supervisor["spec"]["initContainers"] = json!([]);
    pods.create(&dry, &from_json(supervisor)).await.unwrap();
}
