//! `controller uninstall`: what has to happen before the release goes, run by the chart as a Job in
//! front of `helm uninstall`.
//!
//! Live tasks are cancelled by the controller that still runs, then the controller is stopped, then
//! the agent pods and what the controller made at run time are deleted. Every step may be repeated,
//! has a limit, and says what it does. Custom resources, task namespaces and Secrets of users stay.
//! What is on the nodes stays too, unless the chart asks for its removal: then the supervisors are
//! stopped here as well, and [`await_purge`] waits for the pods that remove it.

use std::{fmt::Write as _, time::Duration};

use agent_operator::{
    crd::{AgentRun, CodingTask},
    domain::names,
};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    coordination::v1::Lease,
    core::v1::{ConfigMap, Namespace, Pod, Secret},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::Instant;

use crate::{args::UninstallArgs, clock};

mod purge;

pub use purge::await_purge;

/// Longest wait for one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two looks at what is still there.
const POLL: Duration = Duration::from_secs(1);
/// How often it is said that nothing has changed.
const REMIND: Duration = Duration::from_secs(10);
/// The termination grace of controller and supervisors, and some more for a busy node.
const STOP_WAIT: Duration = Duration::from_secs(40);
/// Kubelets end a deleted pod within its grace of seconds.
const PODS_WAIT: Duration = Duration::from_secs(45);
/// Names in a message at most.
const NAMES_MAX: usize = 10;
/// Why tasks end, for their status.
const REASON: &str = "agent-operator is being uninstalled";

/// Why an uninstallation did not come to its end. Every message says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// The API server refused or failed.
    #[error(
        "{action} {name}; put that right and run helm uninstall again, or leave it behind with helm uninstall --no-hooks"
    )]
    Call {
        /// What was tried.
        action: &'static str,
        /// On what.
        name: String,
        /// Why it failed.
        #[source]
        source: Box<kube::Error>,
    },
    /// No answer in time.
    #[error("{action} {name}: the API server did not answer; run helm uninstall again")]
    Timeout {
        /// What was tried.
        action: &'static str,
        /// On what.
        name: String,
    },
    /// The controller does not stop.
    #[error(
        "pods of Deployment {0} do not end: see kubectl describe, then run helm uninstall again"
    )]
    ControllerRemains(String),
    /// Pods do not go.
    #[error(
        "agent pods are still there: {0}. Their nodes do not answer: bring them back, or delete the pods with kubectl delete pod --force, then run helm uninstall again"
    )]
    PodsRemain(String),
    /// Folders on nodes do not go.
    #[error(
        "what the release kept is still on these nodes: {0}; bring them back, or delete them with kubectl delete node, then run helm uninstall again, or leave it there with helm uninstall --no-hooks"
    )]
    FoldersRemain(String),
}

impl UninstallError {
    fn code(&self) -> Option<u16> {
        match self {
            Self::Call { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Prepares the release for its removal.
pub async fn uninstall(client: Client, args: &UninstallArgs) -> Result<(), UninstallError> {
    let work = Work { client, args };
    let namespaces = work.namespaces().await?;
    work.end_tasks(&namespaces).await?;
    work.stop_controller().await?;
    work.remove_pods(&namespaces).await?;
    work.remove_own_objects().await?;
    let folders = match &args.stop_daemon_set {
        Some(name) => {
            work.stop_supervisors(name).await?;
            "next: the folders on the nodes"
        }
        None => "and on each node the folder of supervisor.hostPath",
    };
    tracing::info!(
        "done; kept: the custom resource definitions with their tasks and runs, the task namespaces, Secrets of users; {folders}"
    );
    Ok(())
}

struct Work<'a> {
    client: Client,
    args: &'a UninstallArgs,
}

impl Work<'_> {
    /// The task namespaces that exist. In one that is gone there is nothing to do, and no right.
    async fn namespaces(&self) -> Result<Vec<String>, UninstallError> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let mut found = Vec::new();
        for name in &self.args.task_namespace {
            if call("look for namespace", name, api.get_opt(name)).await?.is_some() {
                found.push(name.clone());
            } else {
                tracing::info!(namespace = name, "the task namespace is gone already");
            }
        }
        Ok(found)
    }

    /// Cancels unfinished tasks and waits for their runs to end. A time that runs out is no error:
    /// without a controller or a node nobody records an end, and the pods go all the same.
    async fn end_tasks(&self, namespaces: &[String]) -> Result<(), UninstallError> {
        let mut progress = Progress::until(self.args.wait.get());
        loop {
            let mut left = Vec::new();
            for namespace in namespaces {
                // Also those that were created meanwhile.
                left.extend(self.cancel_tasks(namespace).await?);
                let runs: Vec<AgentRun> = self.list("list AgentRuns of", namespace, None).await?;
                left.extend(runs.iter().filter(|run| !run.has_ended()).map(full_name));
            }
            if !progress.goes_on("cancelled; waiting for the end of", &left) {
                if !left.is_empty() {
                    tracing::warn!(left = shown(&left), "did not end in time; going on without");
                }
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Cancels the unfinished tasks of a namespace; their names.
    async fn cancel_tasks(&self, namespace: &str) -> Result<Vec<String>, UninstallError> {
        let tasks: Vec<CodingTask> = self.list("list CodingTasks of", namespace, None).await?;
        let api: Api<CodingTask> = Api::namespaced(self.client.clone(), namespace);
        let mut unfinished = Vec::new();
        for task in tasks.iter().filter(|task| !finished(task)) {
            let name = full_name(task);
            if !task.annotations().contains_key(names::ANNOTATION_CANCEL) {
                let patch =
                    json!({"metadata": {"annotations": {names::ANNOTATION_CANCEL: REASON}}});
                let (plain, patch) = (PatchParams::default(), Patch::Merge(patch));
                let task = task.name_any();
                let cancelled = api.patch_metadata(&task, &plain, &patch);
                ignore(&[404], call("cancel CodingTask", &name, cancelled).await)?;
                tracing::info!(task = name, "cancelled");
            }
            unfinished.push(name);
        }
        Ok(unfinished)
    }

    /// Takes the controller down, so that nothing is started, or made again, behind our back.
    async fn stop_controller(&self) -> Result<(), UninstallError> {
        let (name, namespace) = (&self.args.deployment, &self.args.namespace);
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), namespace);
        let found = call("look for Deployment", name, api.get_opt(name)).await?;
        let Some(deployment) = found else { return Ok(()) };
        tracing::info!(deployment = name, "stopping the controller");
        let scale = Patch::Merge(json!({"spec": {"replicas": 0}}));
        let plain = PatchParams::default();
        let scaled = api.patch_scale(name, &plain, &scale);
        ignore(&[404], call("scale down Deployment", name, scaled).await)?;
        let labels = selector(&deployment.spec.unwrap_or_default().selector);
        let left = self.wait_for_pods(&labels, "waiting for the controller").await?;
        if left.is_empty() { Ok(()) } else { Err(UninstallError::ControllerRemains(name.clone())) }
    }

    /// Takes the supervisors and gateways down: what they write to must not be removed under them.
    /// One that does not go is on a node that does not answer, which [`await_purge`] tells about.
    async fn stop_supervisors(&self, name: &str) -> Result<(), UninstallError> {
        let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), &self.args.namespace);
        let found = call("look for DaemonSet", name, api.get_opt(name)).await?;
        let Some(set) = found else { return Ok(()) };
        tracing::info!(daemon_set = name, "stopping the supervisors");
        let now = DeleteParams::default();
        ignore(&[404], call("delete DaemonSet", name, api.delete(name, &now)).await)?;
        let labels = selector(&set.spec.unwrap_or_default().selector);
        let left = self.wait_for_pods(&labels, "waiting for the supervisors").await?;
        if !left.is_empty() {
            tracing::warn!(left = shown(&left), "supervisors did not end; going on without");
        }
        Ok(())
    }

    /// Waits for the end of pods of the release; the names of those that are left.
    async fn wait_for_pods(
        &self,
        labels: &str,
        doing: &'static str,
    ) -> Result<Vec<String>, UninstallError> {
        let mut progress = Progress::until(STOP_WAIT);
        loop {
            let pods: Vec<Pod> =
                self.list("list pods of", &self.args.namespace, Some(labels)).await?;
            let left: Vec<_> = pods.iter().map(full_name).collect();
            if !progress.goes_on(doing, &left) {
                return Ok(left);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Deletes all agent pods, those of ended tasks too, and releases our finalizer.
    async fn remove_pods(&self, namespaces: &[String]) -> Result<(), UninstallError> {
        let ours = format!("{}={}", names::LABEL_MANAGED_BY, names::MANAGED_BY);
        let mut progress = Progress::until(PODS_WAIT);
        loop {
            let mut left = Vec::new();
            for namespace in namespaces {
                let pods: Vec<Pod> = self.list("list pods of", namespace, Some(&ours)).await?;
                // Others use that label value as well; an agent pod names its run too.
                for pod in pods.iter().filter(|pod| pod.labels().contains_key(names::LABEL_RUN)) {
                    self.remove_pod(namespace, pod).await?;
                    left.push(full_name(pod));
                }
            }
            if !progress.goes_on("removing agent pods", &left) {
                return if left.is_empty() {
                    Ok(())
                } else {
                    Err(UninstallError::PodsRemain(shown(&left)))
                };
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn remove_pod(&self, namespace: &str, pod: &Pod) -> Result<(), UninstallError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let (name, full) = (pod.name_any(), full_name(pod));
        if pod.metadata.deletion_timestamp.is_none() {
            let params = DeleteParams {
                preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
                ..DeleteParams::default()
            };
            let deleted = call("delete pod", &full, api.delete(&name, &params)).await;
            ignore(&[404, 409], deleted)?;
        }
        let held = pod.finalizers();
        if held.iter().any(|held| held == names::POD_FINALIZER) {
            let kept: Vec<_> = held.iter().filter(|held| *held != names::POD_FINALIZER).collect();
            // Without a version, for the deletion above has just changed it; nobody but us takes
            // finalizers off these pods, and the uid holds it to this one.
            let patch = json!({"metadata": {"uid": pod.uid(), "finalizers": kept}});
            let (plain, patch) = (PatchParams::default(), Patch::Merge(patch));
            let released = api.patch_metadata(&name, &plain, &patch);
            ignore(&[404, 409], call("release pod", &full, released).await)?;
        }
        Ok(())
    }

    /// Deletes what the controller made at run time, which Helm knows nothing of.
    async fn remove_own_objects(&self) -> Result<(), UninstallError> {
        let (args, client) = (self.args, &self.client);
        let tls = format!("{}-tls", args.tls_service_name);
        let leases: Api<Lease> = Api::namespaced(client.clone(), &args.namespace);
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &args.namespace);
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &args.namespace);
        let now = DeleteParams::default();
        let deleted = leases.delete(&args.lease_name, &now);
        ignore(&[404], call("delete Lease", &args.lease_name, deleted).await)?;
        ignore(&[404], call("delete Secret", &tls, secrets.delete(&tls, &now)).await)?;
        let map = &args.ca_config_map;
        ignore(&[404], call("delete ConfigMap", map, maps.delete(map, &now)).await)?;
        tracing::info!("deleted the Lease, the certificate's Secret and the CA's ConfigMap");
        Ok(())
    }

    /// Everything of a kind in a namespace; nothing when the kind is not served any more.
    async fn list<K>(
        &self,
        action: &'static str,
        namespace: &str,
        labels: Option<&str>,
    ) -> Result<Vec<K>, UninstallError>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let params =
            ListParams { label_selector: labels.map(str::to_owned), ..ListParams::default() };
        match call(action, namespace, api.list(&params)).await {
            Ok(found) => Ok(found.items),
            Err(error) if error.code() == Some(404) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// Says how a wait goes: at each change, and now and then.
struct Progress {
    end: Instant,
    left: Option<usize>,
    said: Instant,
}

impl Progress {
    fn until(limit: Duration) -> Self {
        let now = clock::instant();
        Self { end: now + limit, left: None, said: now }
    }

    /// Whether to wait on: something is left, and time is.
    fn goes_on(&mut self, doing: &'static str, left: &[String]) -> bool {
        let now = clock::instant();
        if left.is_empty() || now >= self.end {
            return false;
        }
        if self.left != Some(left.len()) || now >= self.said + REMIND {
            tracing::info!(count = left.len(), left = shown(left), "{doing}");
            (self.left, self.said) = (Some(left.len()), now);
        }
        true
    }
}

/// The labels of a selector, as list calls take them.
fn selector(selector: &LabelSelector) -> String {
    let labels = selector.match_labels.iter().flatten();
    labels.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

fn finished(task: &CodingTask) -> bool {
    let phase = task.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Complete" | "Failed"))
}

fn full_name(object: &impl kube::ResourceExt) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

fn shown(names: &[String]) -> String {
    let mut text = names[..names.len().min(NAMES_MAX)].join(", ");
    if names.len() > NAMES_MAX {
        let _ = write!(text, " and {} more", names.len() - NAMES_MAX);
    }
    text
}

fn ignore<T>(codes: &[u16], result: Result<T, UninstallError>) -> Result<(), UninstallError> {
    match result {
        Err(error) if error.code().is_some_and(|code| codes.contains(&code)) => Ok(()),
        result => result.map(drop),
    }
}

async fn call<T>(
    action: &'static str,
    name: &str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, UninstallError> {
    match tokio::time::timeout(CALL_TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => {
            Err(UninstallError::Call { action, name: name.to_owned(), source: Box::new(source) })
        }
        Err(_) => Err(UninstallError::Timeout { action, name: name.to_owned() }),
    }
}
