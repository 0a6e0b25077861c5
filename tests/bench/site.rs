//! An API server of its own for one bench, and what stands around our processes on it: accounts, nodes, files.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use agent_operator::crd::{CodingTask, all_crds};
use k8s_openapi::{
    api::{
        authentication::v1::TokenRequest,
        core::v1::{Namespace, Node, Pod, Secret, ServiceAccount},
        rbac::v1::ClusterRoleBinding,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{measure::eventually, processes::Process};

/// Namespace of our processes.
pub const SYSTEM: &str = "agent-operator-system";
/// Namespace of the tasks.
pub const TASKS: &str = "agent-system";
/// Account of the controller.
pub const CONTROLLER: &str = "agent-operator-controller";
/// Account of the supervisors.
pub const SUPERVISOR: &str = "agent-operator-supervisor";
/// Account of Kubernetes' own controller of Jobs.
pub const JOBS: &str = "job-controller";
/// Ports of our processes: above those of `deploy/local/apiserver`, below those that the kernel gives to connections
/// (`net.ipv4.ip_local_port_range`), or a node that dials a controller while it starts could be given its port.
const FIRST_PORT: u16 = 30_000;
const PORTS: u16 = 2_768;
/// Limit of what the server does in the background.
const LIMIT: Duration = Duration::from_mins(1);

/// kube-apiserver and etcd; taken down when it is dropped.
pub struct Site {
    pub client: Client,
    /// Files of our processes.
    pub dir: tempfile::TempDir,
    /// The server's folder.
    state: PathBuf,
    kubeconfig: Kubeconfig,
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/local/apiserver")
}

fn apiserver(command: &str, folder: &Path) -> String {
    let output = Command::new(script())
        .arg(command)
        .arg("--dir")
        .arg(folder)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "deploy/local/apiserver {command} failed; it needs Go, or its tools in the cache"
    );
    String::from_utf8(output.stdout).unwrap()
}

impl Drop for Site {
    fn drop(&mut self) {
        apiserver("down", &self.state);
    }
}

pub fn from_json<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// A port that nobody has right now, and that no connection is given before its process listens.
pub fn free_port() -> u16 {
    static TURN: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id();
    let mut ports = (0..PORTS).map(|_| {
        let turn = first.wrapping_add(TURN.fetch_add(1, Ordering::Relaxed)) % u32::from(PORTS);
        FIRST_PORT + u16::try_from(turn).unwrap()
    });
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port")
}

impl Site {
    /// Starts the server and makes what every bench needs.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("apiserver");
        apiserver("up", &state);
        let kubeconfig = Kubeconfig::read_from(state.join("kubeconfig/admin.yaml")).unwrap();
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig.clone(), &options).await.unwrap();
        let client = Client::try_from(config).unwrap();
        let site = Self { client, dir, state, kubeconfig };
        site.install().await;
        for namespace in [SYSTEM, TASKS] {
            site.namespace(namespace).await;
        }
        for account in [CONTROLLER, SUPERVISOR, JOBS] {
            site.account(account).await;
        }
        let secret = json!({
            "metadata": {"name": "agent-secrets"},
            "stringData": {"anthropic-api-key": "sk-bench", "github-token": "ghp-bench"},
        });
        site.create::<Secret>(&Api::namespaced(site.client.clone(), TASKS), secret).await;
        site
    }

    /// Makes a namespace with the account that pods need; no controller makes it here.
    pub async fn namespace(&self, name: &str) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        self.create(&namespaces, json!({"metadata": {"name": name}})).await;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), name);
        self.create(&accounts, json!({"metadata": {"name": "default"}})).await;
    }

    /// Ends the server and starts it again with the present alone: no watch goes on from where it was.
    pub async fn restart(&self) {
        let state = self.state.clone();
        tokio::task::spawn_blocking(move || apiserver("restart", &state)).await.unwrap();
    }

    /// The server's audit log.
    pub fn audit_log(&self) -> PathBuf {
        self.state.join("logs/audit.log")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn install(&self) {
        let api: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        for crd in all_crds() {
            let params = PatchParams::apply("bench").force();
            api.patch(&crd.name_any(), &params, &Patch::Apply(&crd)).await.unwrap();
            eventually("the definition is served", LIMIT, async || {
                let found = api.get(&crd.name_any()).await.unwrap();
                let conditions = found.status.unwrap_or_default().conditions.unwrap_or_default();
                conditions
                    .iter()
                    .any(|c| c.type_ == "Established" && c.status == "True")
                    .then_some(())
            })
            .await;
        }
    }

    pub async fn create<K>(&self, api: &Api<K>, object: Value) -> K
    where
        K: Clone + DeserializeOwned + std::fmt::Debug + Serialize,
    {
        api.create(&PostParams::default(), &from_json(object)).await.unwrap()
    }

    /// An account that may do anything: rights are not what is measured. With a kubeconfig of its name.
    async fn account(&self, name: &str) {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), SYSTEM);
        self.create(&accounts, json!({"metadata": {"name": name}})).await;
        let binding = json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": SYSTEM}],
        });
        self.create::<ClusterRoleBinding>(&Api::all(self.client.clone()), binding).await;
        let token = self.token(name, json!({"expirationSeconds": 86400, "audiences": []})).await;
        let cluster = self.kubeconfig.clusters[0].cluster.clone().unwrap();
        let file = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": name}}],
            "clusters": [{"name": "bench", "cluster": {
                "server": cluster.server, "certificate-authority-data": cluster.certificate_authority_data}}],
            "users": [{"name": name, "user": {"token": token}}],
        });
        std::fs::write(self.kubeconfig(name), file.to_string()).unwrap();
    }

    /// The kubeconfig of an account.
    pub fn kubeconfig(&self, account: &str) -> PathBuf {
        self.path(&format!("{account}.kubeconfig"))
    }

    async fn token(&self, account: &str, spec: Value) -> String {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), SYSTEM);
        let request: TokenRequest = from_json(json!({"metadata": {}, "spec": spec}));
        let made =
            accounts.create_token_request(account, &PostParams::default(), &request).await.unwrap();
        made.status.unwrap().token
    }

    /// A node, with the token of its supervisor in a file.
    pub async fn node(&self, name: &str) -> PathBuf {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let allocatable = json!({"cpu": "2000", "memory": "8Ti", "pods": "5000"});
        self.create(
            &nodes,
            json!({"metadata": {"name": name}, "status": {"allocatable": allocatable}}),
        )
        .await;
        // The server taints new nodes as not ready, and no node controller takes that back.
        let ready = Patch::Merge(json!({"spec": {"taints": null}}));
        nodes.patch(name, &PatchParams::default(), &ready).await.unwrap();
        let pod = json!({
            "metadata": {"name": format!("supervisor-{name}")},
            "spec": {
                "nodeName": name, "serviceAccountName": SUPERVISOR, "automountServiceAccountToken": false,
                "containers": [{"name": "supervisor", "image": "registry.test/supervisor:1"}],
            },
        });
        let pod: Pod = self.create(&Api::namespaced(self.client.clone(), SYSTEM), pod).await;
        let bound =
            json!({"kind": "Pod", "apiVersion": "v1", "name": pod.name_any(), "uid": pod.uid()});
        let spec = json!({"audiences": ["agent-operator"], "expirationSeconds": 86400, "boundObjectRef": bound});
        let file = self.path(&format!("{name}.token"));
        std::fs::write(&file, self.token(SUPERVISOR, spec).await).unwrap();
        file
    }

    pub fn tasks(&self) -> Api<CodingTask> {
        Api::namespaced(self.client.clone(), TASKS)
    }

    pub async fn task(&self, name: &str, prompt: &str) -> CodingTask {
        self.create(&self.tasks(), task(name, prompt)).await
    }
}

/// A task that nothing ends by a clock.
pub fn task(name: &str, prompt: &str) -> Value {
    json!({
        "apiVersion": "agents.wearn.dev/v1alpha1", "kind": "CodingTask",
        "metadata": {"name": name},
        "spec": {
            "source": {"type": "chat", "chat": {"sessionId": "bench", "userId": "bench"}},
            "repository": {"url": "https://github.com/jcwearn/example-repo.git", "branch": "main"},
            "prompt": prompt,
            "anthropicApiKeyRef": {"name": "agent-secrets", "key": "anthropic-api-key"},
            "gitCredentialsRef": {"name": "agent-secrets", "key": "github-token"},
            // Nobody here closes a network.
            "sandbox": {"egressPolicy": "BestEffort"},
            // Far above what any bench needs.
            "stepTimeout": "5h",
        },
    })
}

/// A controller's process, with ports and folders that it keeps over its restarts.
pub struct Controller {
    arguments: Vec<String>,
    log: PathBuf,
    /// Where supervisors dial.
    pub address: String,
}

impl Controller {
    pub fn new(site: &Site) -> Self {
        let settings = site.path("settings.yaml");
        let text = json!({
            "taskNamespaces": [TASKS],
            "agent": {"image": "registry.test/agent:1", "requests": {"cpu": "100m", "memory": "256Mi"}},
            // Deletions belong to a task's requests, so they are waited for.
            "taskEndPodTtl": "1s",
        });
        std::fs::write(&settings, text.to_string()).unwrap();
        let (grpc, http) = (free_port(), free_port());
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let arguments = [
            "controller".to_owned(),
            format!("--config={}", text(settings)),
            format!("--namespace={SYSTEM}"),
            format!("--grpc-address=127.0.0.1:{grpc}"),
            format!("--http-address=127.0.0.1:{http}"),
            // As in a pod: name and address stay over the restarts of its container.
            "--advertise-ip=127.0.0.1".to_owned(),
            "--identity=controller-0".to_owned(),
            format!("--data-dir={}", text(site.path("controller"))),
            format!("--kubeconfig={}", text(site.kubeconfig(CONTROLLER))),
        ];
        let log = site.path("controller.log");
        Self { arguments: arguments.into(), log, address: format!("localhost:{grpc}") }
    }

    pub fn start(&self) -> Process {
        Process::start(&self.arguments, &[], self.log.clone())
    }
}
