//! The local cluster, by the API server.

use std::{sync::OnceLock, time::Duration};

use agent_operator::crd::{AgentRun, CodingTask};
use k8s_openapi::api::core::v1::{Event, Namespace, Pod, Secret};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, LogParams, PostParams},
};

use super::{eventually, forge::Forge, model::Model};

/// Namespace of the tasks.
pub(crate) const NAMESPACE: &str = "agent-system";
/// Namespace of the release.
pub(crate) const SYSTEM: &str = "agent-operator-system";
/// Longest time that a whole task may take on a busy two-core machine.
pub(crate) const TASK_LIMIT: Duration = Duration::from_mins(4);

/// Everything a scenario talks to.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) forge: Forge,
    pub(crate) model: Model,
}

impl Cluster {
    /// Connects by the environment of `deploy/local/env`.
    pub(crate) async fn connect() -> Self {
        static PROVIDER: OnceLock<()> = OnceLock::new();
        PROVIDER.get_or_init(|| {
            // A second installation in the same process fails, which is as good.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        });
        super::env("AO_NODES");
        let client = Client::try_default().await.expect("a kubeconfig of the local cluster");
        Self { client, forge: Forge::from_env(), model: Model::from_env() }
    }

    pub(crate) fn tasks(&self, namespace: &str) -> Api<CodingTask> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(crate) fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Creates a task and returns it with its uid.
    pub(crate) async fn create(&self, namespace: &str, task: &CodingTask) -> CodingTask {
        self.tasks(namespace)
            .create(&PostParams::default(), task)
            .await
            .unwrap_or_else(|error| panic!("creating task {}: {error}", task.name_any()))
    }

    /// Waits until the task has ended, and returns it.
    pub(crate) async fn finished(&self, namespace: &str, name: &str) -> CodingTask {
        self.finished_within(namespace, name, TASK_LIMIT).await
    }

    /// Waits until the task has ended, at most `limit`.
    pub(crate) async fn finished_within(
        &self,
        namespace: &str,
        name: &str,
        limit: Duration,
    ) -> CodingTask {
        eventually(&format!("task {name} has ended"), limit, || async {
            let task = self.tasks(namespace).get(name).await.map_err(|e| e.to_string())?;
            let phase = phase(&task);
            match phase.as_str() {
                "Complete" | "Failed" => Ok(task),
                _ => Err(format!("{phase}: {}", self.describe(namespace, name).await)),
            }
        })
        .await
    }

    /// Waits until the task has ended well.
    pub(crate) async fn complete(&self, namespace: &str, name: &str) -> CodingTask {
        let task = self.finished(namespace, name).await;
        assert_eq!(phase(&task), "Complete", "{}", self.describe(namespace, name).await);
        task
    }

    /// The task's runs in the order in which the state machine makes them.
    pub(crate) async fn runs(&self, namespace: &str, task: &str) -> Vec<AgentRun> {
        let api: Api<AgentRun> = Api::namespaced(self.client.clone(), namespace);
        let by_task = ListParams::default().fields(&format!("spec.taskRef.name={task}"));
        let mut runs = api.list(&by_task).await.expect("list of runs").items;
        runs.sort_by_key(order_of_work);
        runs
    }

    /// Waits until a run of `step` has reached `phase`, and returns it.
    pub(crate) async fn run_in_phase(
        &self,
        namespace: &str,
        task: &str,
        step: &str,
        phase: &str,
    ) -> AgentRun {
        eventually(&format!("{step} of {task} is {phase}"), TASK_LIMIT, || async {
            self.runs(namespace, task)
                .await
                .into_iter()
                .find(|run| run.spec.step == step && run_phase(run) == phase)
                .ok_or(self.describe(namespace, task).await)
        })
        .await
    }

    /// Pods of a task.
    pub(crate) async fn task_pods(&self, namespace: &str, task: &str) -> Vec<Pod> {
        let label = agent_operator::domain::names::label_value(task);
        let by_label = ListParams::default()
            .labels(&format!("{}={label}", agent_operator::domain::names::LABEL_TASK));
        self.pods(namespace).list(&by_label).await.expect("list of pods").items
    }

    /// The container log of a pod.
    pub(crate) async fn log(&self, namespace: &str, pod: &str) -> String {
        self.pods(namespace).logs(pod, &LogParams::default()).await.unwrap_or_default()
    }

    /// Events of a namespace.
    pub(crate) async fn events(&self, namespace: &str) -> Vec<Event> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        api.list(&ListParams::default()).await.expect("list of events").items
    }

    /// Deletes a task.
    pub(crate) async fn delete(&self, namespace: &str, name: &str) {
        self.tasks(namespace)
            .delete(name, &DeleteParams::default())
            .await
            .unwrap_or_else(|error| panic!("deleting task {name}: {error}"));
    }

    /// Removes a task of a fixed name that an earlier run of a test may have left, and waits for its end.
    pub(crate) async fn forget(&self, namespace: &str, name: &str) {
        let tasks = self.tasks(namespace);
        if tasks.get_opt(name).await.expect("a look at tasks").is_some() {
            self.delete(namespace, name).await;
        }
        eventually(&format!("{name} is gone"), Duration::from_mins(1), || async {
            match tasks.get_opt(name).await {
                Ok(None) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// Creates a Secret in `namespace`, or replaces it.
    pub(crate) async fn put_secret(&self, namespace: &str, secret: &Secret) {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let _ = api.delete(&secret.name_any(), &DeleteParams::default()).await;
        api.create(&PostParams::default(), secret).await.expect("a new Secret");
    }

    /// Model key and forge token of the tasks' Secret.
    pub(crate) async fn agent_secrets(&self) -> (String, String) {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), NAMESPACE);
        let data = api.get("agent-secrets").await.expect("the tasks' Secret").data;
        let data = data.unwrap_or_default();
        let text = |key| String::from_utf8(data[key].0.clone()).expect("text");
        (text("anthropic-api-key"), text("github-token"))
    }

    /// A copy of a Secret of the task namespace in another one.
    pub(crate) async fn copy_secret(&self, name: &str, to: &str) {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), NAMESPACE);
        let secret = api.get(name).await.expect("the tasks' Secret");
        let copy = Secret {
            metadata: kube::api::ObjectMeta {
                name: Some(name.to_owned()),
                annotations: secret.metadata.annotations,
                ..Default::default()
            },
            data: secret.data,
            ..Default::default()
        };
        self.put_secret(to, &copy).await;
    }

    /// Whether the cluster has this namespace.
    pub(crate) async fn has_namespace(&self, name: &str) -> bool {
        let api: Api<Namespace> = Api::all(self.client.clone());
        api.get_opt(name).await.expect("a look at namespaces").is_some()
    }

    /// One line per run, for messages of failed assertions.
    pub(crate) async fn describe(&self, namespace: &str, task: &str) -> String {
        let status = self.tasks(namespace).get(task).await.ok().and_then(|task| task.status);
        let message = status.as_ref().and_then(|s| s.message.clone()).unwrap_or_default();
        let runs: Vec<String> = self
            .runs(namespace, task)
            .await
            .iter()
            .map(|run| {
                let status = run.status.clone().unwrap_or_default();
                format!(
                    "{}: {} {} {} exit {:?}: {}",
                    run.name_any(),
                    run.spec.node_name,
                    run_phase(run),
                    status.reason.unwrap_or_default(),
                    status.exit_code,
                    status.message.unwrap_or_default(),
                )
            })
            .collect();
        format!("task {task}: {message}\n{}", runs.join("\n"))
    }
}

/// The task's phase, empty before the first status.
pub(crate) fn phase(task: &CodingTask) -> String {
    task.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default()
}

/// The run's phase, `Pending` before the first status.
pub(crate) fn run_phase(run: &AgentRun) -> String {
    run.status
        .as_ref()
        .and_then(|status| status.phase.clone())
        .unwrap_or_else(|| "Pending".to_owned())
}

/// Plan, then rounds of implement and test, then the pull request. Times of objects cannot order them: they have a
/// resolution of one second, and a short step takes less.
fn order_of_work(run: &AgentRun) -> (u8, i64, u8) {
    let attempt = i64::from(run.spec.attempt);
    match run.spec.step.as_str() {
        "plan" => (0, attempt, 0),
        "implement" => (1, attempt, 0),
        "test" => (1, attempt, 1),
        _ => (2, attempt, 0),
    }
}
