//! One test's part of the API server.

use std::{path::PathBuf, sync::Once};

use agent_operator::{
    crd::{AgentRun, CodingTask, all_crds},
    telemetry::logs,
};
use k8s_openapi::{
    api::core::v1::{Namespace, Node, Pod, Secret, ServiceAccount},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    client::{Body, ClientBuilder},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::sync::{MutexGuard, OnceCell};

use super::{Log, eventually, from_json};

/// A task is seen by every controller of the cluster, so tests take turns.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// One test's part of the API server, or none after saying that the test is skipped.
pub struct Ground {
    pub client: Client,
    pub namespace: String,
    _turn: MutexGuard<'static, ()>,
}

pub async fn ground() -> Option<Ground> {
    let client = client().await?;
    let turn = TURN.lock().await;
    clear(&client).await;
    let namespace: Namespace = from_json(json!({"metadata": {"generateName": "reconcile-"}}));
    let namespace = Api::all(client.clone())
        .create(&PostParams::default(), &namespace)
        .await
        .unwrap()
        .name_any();
    Some(Ground { client, namespace, _turn: turn })
}

async fn client() -> Option<Client> {
    static PROVIDER: Once = Once::new();
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    PROVIDER.call_once(|| {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "error".to_owned());
        let log = logs::json_to(&filter, || Log).unwrap();
        tracing::subscriber::set_global_default(log).unwrap();
    });
    // A developer's own cluster is never taken: KUBECONFIG counts only beside the folder that
    // `deploy/local/apiserver` prints.
    let of = |name| std::env::var_os(name).map(PathBuf::from);
    let Some(path) = of("AO_APISERVER_STATE").and_then(|_| of("KUBECONFIG")) else {
        let required = std::env::var_os("AO_REQUIRE_APISERVER").is_some_and(|value| value == "1");
        assert!(!required, "a kube-apiserver is required: eval \"$(deploy/local/apiserver up)\"");
        eprintln!("skipped: no kube-apiserver; eval \"$(deploy/local/apiserver up)\" starts one");
        return None;
    };
    let client = Client::try_from(config(path).await).unwrap();
    INSTALLED.get_or_init(|| install(client.clone())).await;
    Some(client)
}

async fn config(path: PathBuf) -> Config {
    let file = Kubeconfig::read_from(path).unwrap();
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap()
}

async fn install(client: Client) {
    let api: Api<CustomResourceDefinition> = Api::all(client);
    for crd in all_crds() {
        let params = PatchParams::apply("api-tests").force();
        api.patch(&crd.name_any(), &params, &Patch::Apply(&crd)).await.unwrap();
        eventually("the definition is served", async || {
            let found = api.get(&crd.name_any()).await.unwrap();
            let conditions = found.status.unwrap_or_default().conditions.unwrap_or_default();
            conditions.iter().any(|c| c.type_ == "Established" && c.status == "True").then_some(())
        })
        .await;
    }
}

/// What earlier tests left; no garbage collector runs here.
async fn clear(client: &Client) {
    let tasks: Api<CodingTask> = Api::all(client.clone());
    for task in tasks.list(&ListParams::default()).await.unwrap() {
        let api: Api<CodingTask> = Api::namespaced(client.clone(), &task.namespace().unwrap());
        let _ = api.delete(&task.name_any(), &DeleteParams::default()).await;
    }
    let runs: Api<AgentRun> = Api::all(client.clone());
    for run in runs.list(&ListParams::default()).await.unwrap() {
        let api: Api<AgentRun> = Api::namespaced(client.clone(), &run.namespace().unwrap());
        let _ = api.delete(&run.name_any(), &DeleteParams::default()).await;
    }
    let nodes: Api<Node> = Api::all(client.clone());
    for node in nodes.list(&ListParams::default()).await.unwrap() {
        let _ = nodes.delete(&node.name_any(), &DeleteParams::default()).await;
    }
}

impl Ground {
    /// Shows method and path of every request of controllers that are started from here on.
    pub async fn watch_requests(
        &mut self,
        see: impl Fn(&str, &str) + Clone + Send + Sync + 'static,
    ) {
        let path = PathBuf::from(std::env::var_os("KUBECONFIG").unwrap());
        let layer = tower::util::MapRequestLayer::new(move |request: http::Request<Body>| {
            see(request.method().as_str(), request.uri().path());
            request
        });
        let builder = ClientBuilder::try_from(config(path).await).unwrap();
        self.client = builder.with_layer(&layer).build();
    }

    pub fn tasks(&self) -> Api<CodingTask> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn runs(&self) -> Api<AgentRun> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub async fn node(&self, name: &str) {
        self.node_with(name, json!({"cpu": "2", "memory": "4Gi"})).await;
    }

    pub async fn node_with(&self, name: &str, allocatable: Value) {
        let node: Node = from_json(json!({
            "metadata": {"name": name},
            "status": {"allocatable": allocatable},
        }));
        let api: Api<Node> = Api::all(self.client.clone());
        api.create(&PostParams::default(), &node).await.unwrap();
        // The server taints new nodes as not ready, and no node controller runs to take that back.
        let ready = json!({"spec": {"taints": null}});
        api.patch(name, &PatchParams::default(), &Patch::Merge(&ready)).await.unwrap();
    }

    /// A pod as a supervisor of `node` makes it, of a run that does not exist, with these finalizers.
    pub async fn held_pod(&self, node: &str, finalizers: &[&str]) {
        // No controller makes it here.
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        let account = from_json(json!({"metadata": {"name": "default"}}));
        let _ = accounts.create(&PostParams::default(), &account).await;
        let fields = json!([{"key": "metadata.name", "operator": "In", "values": [node]}]);
        let pinned = json!({"nodeSelectorTerms": [{"matchFields": fields}]});
        let pod: Pod = from_json(json!({
            "metadata": {
                "name": node,
                "labels": {
                    "app.kubernetes.io/managed-by": "agent-operator",
                    "agents.wearn.dev/run": "gone",
                },
                "finalizers": finalizers,
                "ownerReferences": [{
                    "apiVersion": "agents.wearn.dev/v1alpha1",
                    "kind": "AgentRun",
                    "name": "gone",
                    "uid": "00000000-0000-0000-0000-00000000dead",
                    "controller": true,
                }],
            },
            "spec": {
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": pinned}},
                "automountServiceAccountToken": false,
                "containers": [{"name": "agent", "image": "registry.test/agent:1"}],
            },
        }));
        self.pods().create(&PostParams::default(), &pod).await.unwrap();
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub async fn finalizers(&self, pod: &str) -> Vec<String> {
        self.pods().get(pod).await.unwrap().metadata.finalizers.unwrap_or_default()
    }

    pub async fn secret(&self) {
        let secret: Secret = from_json(json!({
            "metadata": {"name": "agent-secrets"},
            "stringData": {"anthropic-api-key": "sk-canary\n", "github-token": "ghp-canary"},
        }));
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        api.create(&PostParams::default(), &secret).await.unwrap();
    }

    pub async fn task(&self, name: &str, more: Value) -> CodingTask {
        self.task_with(name, json!({}), more).await
    }

    /// Creates a task with further metadata as well.
    pub async fn task_with(&self, name: &str, metadata: Value, more: Value) -> CodingTask {
        let mut object = json!({
            "apiVersion": "agents.wearn.dev/v1alpha1",
            "kind": "CodingTask",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "source": {"type": "chat", "chat": {"sessionId": "manual-test", "userId": "jackson"}},
                "repository": {"url": "https://github.com/jcwearn/example-repo.git", "branch": "main"},
                "prompt": "Add a /healthz endpoint that returns 200 OK",
                "anthropicApiKeyRef": {"name": "agent-secrets", "key": "anthropic-api-key"},
                "gitCredentialsRef": {"name": "agent-secrets", "key": "github-token"},
            },
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            object["spec"][field] = value.clone();
        }
        for (field, value) in metadata.as_object().into_iter().flatten() {
            object["metadata"][field] = value.clone();
        }
        self.tasks().create(&PostParams::default(), &from_json(object)).await.unwrap()
    }

    /// Waits until the task's phase is `phase`.
    pub async fn phase(&self, name: &str, phase: &str) -> CodingTask {
        let api = self.tasks();
        eventually(&format!("{name} is {phase}"), async || {
            let task = api.get(name).await.unwrap();
            let present = task.status.as_ref().and_then(|status| status.phase.clone());
            (present.as_deref() == Some(phase)).then_some(task)
        })
        .await
    }

    pub async fn all_runs(&self) -> Vec<AgentRun> {
        self.runs().list(&ListParams::default()).await.unwrap().items
    }
}
