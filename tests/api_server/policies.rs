//! The chart's admission policies and rights, tried with real bound tokens of supervisors on two nodes.

use agent_operator::crd::AgentRun;
use k8s_openapi::api::{
    authentication::v1::TokenRequest,
    core::v1::{Node, Pod, Secret, ServiceAccount},
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    chart::{apply, tasks_in},
    pods,
    server::{admin, client, eventually, from_json, namespace, refusal, render, sample, set},
};

/// An installed chart whose policies look at one namespace only, so that tests do not meet.
pub(crate) struct Installed {
    /// An administrator.
    pub(crate) admin: Client,
    /// Namespace of the tasks; the release has its name.
    pub(crate) namespace: String,
    /// Namespace of the release.
    pub(crate) system: String,
}

impl Installed {
    /// Name of the release, and prefix of its objects.
    pub(crate) fn release(&self) -> &str {
        &self.namespace
    }

    pub(crate) async fn new() -> Option<Self> {
        let installed = Self::begin(Vec::new()).await?;
        installed.wait_for_policies().await;
        Some(installed)
    }

    /// With further values, and without waiting until the policies are in force.
    pub(crate) async fn begin(values: Vec<String>) -> Option<Self> {
        let admin = client().await?;
        let (system, namespace) = (namespace(&admin).await, namespace(&admin).await);
        let values = [tasks_in(&namespace), values].concat();
        let mut documents = render(&namespace, &system, &values);
        let own = json!({"matchLabels": {"kubernetes.io/metadata.name": namespace}});
        for document in &mut documents {
            if document["kind"] == "ValidatingAdmissionPolicyBinding" {
                document["spec"]["matchResources"] = json!({ "namespaceSelector": own });
            }
        }
        apply(&admin, &documents, false).await;
        let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), &namespace);
        let account = from_json(json!({"metadata": {"name": "default"}}));
        accounts.create(&PostParams::default(), &account).await.unwrap();
        Some(Self { admin, namespace, system })
    }

    /// Policies reach the admission chain a moment after they are stored.
    async fn wait_for_policies(&self) {
        let runs: Api<AgentRun> = Api::namespaced(self.admin.clone(), &self.namespace);
        let mut run = sample("agentrun", &self.namespace);
        set(&mut run, "/metadata/name", json!("probe"));
        let run: AgentRun = from_json(run);
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        eventually("the run policy is in force", async || {
            runs.create(&dry, &run).await.err().map(drop)
        })
        .await;
        self.wait_for_pod_policies().await;
    }

    async fn wait_for_pod_policies(&self) {
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let unbound = self.supervisor(None).await;
        let pods: Api<Pod> = Api::namespaced(unbound, &self.namespace);
        eventually("the node policy and the rights are in force", async || {
            let message = pods.create(&dry, &agent_pod("probe", "node-a")).await.err()?.to_string();
            message.contains("names no node").then_some(())
        })
        .await;
        let wrong = agent_pod_with("probe", "probe", |pod| pod["spec"]["hostIPC"] = json!(true));
        let pods: Api<Pod> = Api::namespaced(self.supervisor(Some("probe")).await, &self.namespace);
        eventually("the policy of agent pods is in force", async || {
            let message = pods.create(&dry, &wrong).await.err()?.to_string();
            message.contains("-agent-pods").then_some(())
        })
        .await;
        let pods: Api<Pod> = Api::namespaced(self.controller().await, &self.namespace);
        let admin: Api<Pod> = Api::namespaced(self.admin.clone(), &self.namespace);
        admin.create(&PostParams::default(), &agent_pod("canary", "node-a")).await.unwrap();
        let label = Patch::Merge(json!({"metadata": {"labels": {"x": "y"}}}));
        let params = PatchParams { dry_run: true, ..PatchParams::default() };
        eventually("the pod policy of the controller is in force", async || {
            let message = pods.patch("canary", &params, &label).await.err()?.to_string();
            message.contains("nothing of a pod").then_some(())
        })
        .await;
    }

    /// A client with a token of the supervisor's account; bound to a pod of `node` if one is given.
    pub(crate) async fn supervisor(&self, node: Option<&str>) -> Client {
        let bound = match node {
            Some(node) => Some(self.bound_to(node).await),
            None => None,
        };
        let token = self.token(&[], bound.as_ref()).await;
        let mut config = admin().await.unwrap();
        config.auth_info = kube::config::AuthInfo {
            token: Some(token.into()),
            ..kube::config::AuthInfo::default()
        };
        Client::try_from(config).unwrap()
    }

    /// A token of the supervisor's account, for the API server itself where no audience is given.
    pub(crate) async fn token(&self, audiences: &[&str], bound: Option<&Value>) -> String {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin.clone(), &self.system);
        let request: TokenRequest =
            from_json(json!({"spec": {"audiences": audiences, "boundObjectRef": bound}}));
        let account = format!("{}-supervisor", self.release());
        let token = accounts.create_token_request(&account, &PostParams::default(), &request).await;
        token.unwrap().status.unwrap().token
    }

    /// A supervisor's pod on `node`, as the reference of a bound token.
    pub(crate) async fn bound_to(&self, node: &str) -> Value {
        let nodes: Api<Node> = Api::all(self.admin.clone());
        let object: Node = from_json(json!({"metadata": {"name": node}}));
        if let Err(error) = nodes.create(&PostParams::default(), &object).await {
            assert!(error.to_string().contains("already exists"), "{error}");
        }
        let pods: Api<Pod> = Api::namespaced(self.admin.clone(), &self.system);
        let pod = from_json(json!({
            "metadata": {"name": format!("supervisor-{node}")},
            "spec": {
                "serviceAccountName": format!("{}-supervisor", self.release()),
                "nodeName": node,
                "containers": [{"name": "c", "image": "x"}],
            },
        }));
        let pod = pods.create(&PostParams::default(), &pod).await.unwrap();
        json!({"apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid})
    }

    /// A client that acts as the controller's account.
    pub(crate) async fn controller(&self) -> Client {
        let mut config: Config = admin().await.unwrap();
        config.auth_info.impersonate =
            Some(format!("system:serviceaccount:{}:{}-controller", self.system, self.release()));
        Client::try_from(config).unwrap()
    }
}

/// The required node affinity that pins a pod to `nodes`.
fn pinned(nodes: &[&str]) -> Value {
    let field = json!({"key": "metadata.name", "operator": "In", "values": nodes});
    json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchFields": [field]}],
    }}})
}

/// The pod that a supervisor really makes, changed.
pub(crate) fn agent_pod_with(name: &str, node: &str, change: impl FnOnce(&mut Value)) -> Pod {
    let mut pod = serde_json::to_value(pods::pod(&pods::assignment("x", node))).unwrap();
    pod["metadata"]["name"] = name.into();
    set(&mut pod, "/metadata/namespace", Value::Null);
    change(&mut pod);
    from_json(pod)
}

pub(crate) fn agent_pod(name: &str, node: &str) -> Pod {
    agent_pod_with(name, node, |_| ())
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn supervisor_makes_pods_for_its_own_node_only() {
    let Some(installed) = Installed::new().await else { return };
    let supervisor = installed.supervisor(Some("node-a")).await;
    let pods: Api<Pod> = Api::namespaced(supervisor, &installed.namespace);
    let create = async |pod: &Pod| pods.create(&PostParams::default(), pod).await;
    create(&agent_pod("own", "node-a")).await.unwrap();
    let wrong: Vec<(&str, Pod, &str)> = vec![
        ("another node", agent_pod("a", "node-b"), "pinned to its own node"),
        (
            "no affinity",
            agent_pod_with("b", "node-a", |pod| set(pod, "/spec/affinity", Value::Null)),
            "pinned to its own node",
        ),
        (
            "two terms, of which one is enough",
            agent_pod_with("d", "node-a", |pod| {
                pod["spec"]["affinity"] = pinned(&["node-a"]);
                let other = pinned(&["node-b"]);
                let path = "/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
                let term = other.pointer(path).unwrap()[0].clone();
                pod["spec"]["affinity"]
                    .pointer_mut(path)
                    .unwrap()
                    .as_array_mut()
                    .unwrap()
                    .push(term);
            }),
            "pinned to its own node",
        ),
        (
            "preferred only",
            agent_pod_with("e", "node-a", |pod| {
                let field = json!({"key": "metadata.name", "operator": "In", "values": ["node-a"]});
                pod["spec"]["affinity"] = json!({"nodeAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {"weight": 1, "preference": {"matchFields": [field]}},
                    ],
                }});
            }),
            "pinned to its own node",
        ),
        (
            "past the scheduler",
            agent_pod_with("f", "node-a", |pod| {
                pod["spec"]["affinity"] = pinned(&["node-a"]);
                pod["spec"]["nodeName"] = json!("node-b");
            }),
            "leaves spec.nodeName to the scheduler",
        ),
        (
            "without our label",
            agent_pod_with("g", "node-a", |pod| {
                let labels = pod["metadata"]["labels"].as_object_mut().unwrap();
                labels.remove("app.kubernetes.io/managed-by");
            }),
            "app.kubernetes.io/managed-by",
        ),
    ];
    for (what, pod, words) in wrong {
        let message = refusal(create(&pod).await);
        assert!(message.contains(words), "{what}: {message}");
    }
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn supervisor_changes_and_deletes_pods_of_its_own_node_only() {
    let Some(installed) = Installed::new().await else { return };
    let namespace = &installed.namespace;
    let own: Api<Pod> = Api::namespaced(installed.supervisor(Some("node-a")).await, namespace);
    let admin: Api<Pod> = Api::namespaced(installed.admin.clone(), namespace);
    own.create(&PostParams::default(), &agent_pod("own", "node-a")).await.unwrap();
    admin.create(&PostParams::default(), &agent_pod("foreign", "node-b")).await.unwrap();
    let bystander = from_json(
        json!({"metadata": {"name": "bystander"}, "spec": {"containers": [{"name": "c", "image": "x"}]}}),
    );
    admin.create(&PostParams::default(), &bystander).await.unwrap();

    let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    for name in ["foreign", "bystander"] {
        let message = refusal(own.patch(name, &PatchParams::default(), &release).await);
        assert!(message.contains("own node"), "{message}");
        let message = own.delete(name, &DeleteParams::default()).await.unwrap_err().to_string();
        assert!(message.contains("own node"), "{message}");
    }
    own.patch("own", &PatchParams::default(), &release).await.unwrap();
    own.delete("own", &DeleteParams::default()).await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn supervisor_token_is_good_for_nothing_else() {
    let Some(installed) = Installed::new().await else { return };
    let namespace = installed.namespace.clone();
    let supervisor = installed.supervisor(Some("node-a")).await;
    let pods: Api<Pod> = Api::namespaced(supervisor.clone(), &namespace);
    let secrets: Api<Secret> = Api::namespaced(supervisor.clone(), &namespace);
    let forbidden = |what: &str, message: String| {
        assert!(message.contains("forbidden"), "{what}: {message}");
    };
    let list = ListParams::default();
    forbidden("list secrets", secrets.list(&list).await.unwrap_err().to_string());
    forbidden("get a secret", secrets.get("agent-secrets").await.unwrap_err().to_string());
    let everywhere: Api<Pod> = Api::all(supervisor.clone());
    forbidden("pods of the cluster", everywhere.list(&list).await.unwrap_err().to_string());
    let all = pods.delete_collection(&DeleteParams::default(), &list).await;
    forbidden("delete all", all.err().unwrap().to_string());
    let status = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
    let result = pods.patch_status("canary", &PatchParams::default(), &status).await;
    forbidden("pod status", result.unwrap_err().to_string());
    let runs: Api<AgentRun> = Api::namespaced(supervisor.clone(), &namespace);
    let run: AgentRun = from_json(sample("agentrun", &namespace));
    forbidden("a run", runs.create(&PostParams::default(), &run).await.unwrap_err().to_string());
    let request = http::Request::get("/api/v1/nodes/node-a/proxy/pods").body(Vec::new()).unwrap();
    forbidden("kubelet", supervisor.request_text(request).await.unwrap_err().to_string());
    pods.get("canary").await.expect("what it needs must work, or the refusals prove nothing");
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn runs_are_written_by_the_controller_alone_and_deleted_by_anyone_with_the_right() {
    let Some(installed) = Installed::new().await else { return };
    let namespace = &installed.namespace;
    let controller: Api<AgentRun> = Api::namespaced(installed.controller().await, namespace);
    let admin: Api<AgentRun> = Api::namespaced(installed.admin.clone(), namespace);
    let mut object = sample("agentrun", namespace);
    set(&mut object, "/metadata/finalizers", json!(["example.com/hold"]));
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    let run: AgentRun = from_json(object);
    let params = PatchParams::default();
    let status = Patch::Merge(json!({"status": {"phase": "Running"}}));

    let message = refusal(admin.create(&PostParams::default(), &run).await);
    assert!(message.contains("by the controller alone"), "{message}");
    controller.create(&PostParams::default(), &run).await.unwrap();
    let message = refusal(admin.patch_status(&name, &params, &status).await);
    assert!(message.contains("by the controller alone"), "{message}");
    let label = Patch::Merge(json!({"metadata": {"labels": {"agents.wearn.dev/task": "other"}}}));
    let message = refusal(admin.patch(&name, &params, &label).await);
    assert!(message.contains("by the controller alone"), "{message}");
    controller.patch_status(&name, &params, &status).await.unwrap();

    admin.delete(&name, &DeleteParams::foreground()).await.unwrap();
    let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    admin.patch(&name, &params, &release).await.unwrap();
    let gone = admin.get_opt(&name).await.unwrap();
    assert!(gone.is_none(), "garbage collection must not be held up");
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn controller_may_only_take_our_finalizer_from_pods() {
    let Some(installed) = Installed::new().await else { return };
    let namespace = &installed.namespace;
    let controller: Api<Pod> = Api::namespaced(installed.controller().await, namespace);
    let admin: Api<Pod> = Api::namespaced(installed.admin.clone(), namespace);
    let pod = agent_pod_with("held", "node-a", |pod| {
        pod["metadata"]["finalizers"] = json!(["agents.wearn.dev/outcome", "example.com/hold"]);
    });
    admin.create(&PostParams::default(), &pod).await.unwrap();
    let params = PatchParams::default();
    for (change, words) in [
        (
            json!({"metadata": {"finalizers": ["agents.wearn.dev/outcome"]}}),
            "only remove the finalizer",
        ),
        (
            json!({"metadata": {"finalizers": ["agents.wearn.dev/outcome", "example.com/hold", "example.com/new"]}}),
            "only remove the finalizer",
        ),
        (json!({"metadata": {"annotations": {"a": "b"}}}), "nothing of a pod"),
        (json!({"spec": {"activeDeadlineSeconds": 5}}), "nothing of a pod"),
    ] {
        let message = refusal(controller.patch("held", &params, &Patch::Merge(&change)).await);
        assert!(message.contains(words), "{change}: {message}");
    }
    let release = json!({"metadata": {"finalizers": ["example.com/hold"]}});
    controller.patch("held", &params, &Patch::Merge(&release)).await.unwrap();
    let result = controller.create(&PostParams::default(), &agent_pod("mine", "node-a")).await;
    assert!(refusal(result).contains("forbidden"));
    let result = controller.delete("held", &DeleteParams::default()).await;
    assert!(result.unwrap_err().to_string().contains("forbidden"));
}
