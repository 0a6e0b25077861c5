//! The few calls that the supervisor makes on pods, behind a trait so that a whole attempt can be
//! tested without an API server. Every call has a time limit, every write a precondition.

use std::time::Duration;

use agent_operator::{
    attempt::{CONTAINER_NAME, ENV_TOKEN},
    crd::AgentRun,
    domain::{Attempt, RunKey, RunUid, ids::PodUid, names, text::error_chain},
};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::json;

use super::{adoption::RunOnServer, build::ANNOTATION_ATTEMPT};

/// Limit of one call: an API server that needs longer is treated as away, and the call repeated.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Seconds that the kubelet gives a container at deletion: the runner has had its grace before. Not
/// 0, which would take the object away while the processes still live.
const DELETE_GRACE_SECONDS: u32 = 1;
/// The API server's words for a request that an admission policy or plugin refused.
const FORBIDDEN: &str = "is forbidden: ";
/// The API server's words for a request that an admission webhook refused.
const DENIED: &str = "denied the request";
/// The API server's words for an admission webhook that gives no answer: a 500, but no outage of its
/// own, so it is said as a refusal instead of being waited out in silence.
const NO_WEBHOOK: &str = "failed calling webhook";
/// Field manager of our writes.
const MANAGER: &str = "agent-operator-supervisor";

/// A call on pods failed.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// No answer in time; the call may have worked all the same.
    #[error("the API server did not answer within {CALL_TIMEOUT:?}")]
    TimeOut,
    /// The API server could not be reached or is overloaded.
    #[error("could not reach the API server: {0}")]
    Unavailable(String),
    /// The object is refused as it is (422, 400).
    #[error("invalid: {0}")]
    Invalid(String),
    /// Admission, policy or quota (403), or the namespace is gone (404 on create).
    #[error("refused: {0}")]
    Refused(String),
    /// An object of that name exists (409).
    #[error("an object of that name exists")]
    Exists,
    /// The precondition does not hold: another object has the name, or it changed meanwhile.
    #[error("the object is not the one that was meant")]
    Precondition,
}

/// Calls on pods.
#[async_trait]
pub trait PodApi: Send + Sync {
    /// Creates the pod; its uid.
    async fn create(&self, pod: &Pod) -> Result<Pod, PodError>;

    /// A live read; none when it does not exist.
    async fn get(&self, namespace: &str, name: &str) -> Result<Option<Pod>, PodError>;

    /// A live read of a run; none when it does not exist.
    async fn run(&self, namespace: &str, name: &str) -> Result<Option<RunOnServer>, PodError>;

    /// Orders the deletion of the pod with this uid. A pod that does not exist is no error.
    async fn delete(&self, namespace: &str, name: &str, uid: &PodUid) -> Result<(), PodError>;

    /// Releases our finalizer of the pod with this uid. A pod that does not exist is no error.
    async fn remove_finalizer(
        &self,
        namespace: &str,
        name: &str,
        uid: &PodUid,
    ) -> Result<(), PodError>;
}

/// What a pod under our name turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// Ours: same owner, attempt and spec.
    Ours {
        /// Its uid.
        uid: PodUid,
        /// SHA-256 of the one-time token that it carries.
        one_time_hash: String,
    },
    /// Somebody else's; says what differs.
    Foreign(String),
}

/// Compares the pod that holds our name with the one we would make.
pub fn judge(existing: &Pod, wanted: &Pod) -> Adoption {
    let annotation = |pod: &Pod, key: &str| {
        pod.metadata.annotations.as_ref().and_then(|all| all.get(key)).cloned()
    };
    if owner(existing).is_none() || owner(existing) != owner(wanted) {
        return Adoption::Foreign("it has another owner".to_owned());
    }
    for (what, key) in [("attempt", ANNOTATION_ATTEMPT), ("spec", names::ANNOTATION_SPEC_HASH)] {
        if annotation(existing, key) != annotation(wanted, key) {
            return Adoption::Foreign(format!("its {what} differs"));
        }
    }
    match identity(existing) {
        Some((uid, one_time_hash)) => Adoption::Ours { uid, one_time_hash },
        None => Adoption::Foreign("it carries no token".to_owned()),
    }
}

/// Uid and token hash of a pod that this run owns, whatever else it looks like.
pub fn owned(existing: &Pod, run: &RunUid) -> Option<(PodUid, String)> {
    (owner(existing).as_deref() == Some(run.as_str())).then(|| identity(existing))?
}

fn owner(pod: &Pod) -> Option<String> {
    let mut owners = pod.metadata.owner_references.iter().flatten();
    owners.find(|owner| owner.controller == Some(true)).map(|owner| owner.uid.clone())
}

fn identity(pod: &Pod) -> Option<(PodUid, String)> {
    let (uid, token) = pod.metadata.uid.clone().zip(token(pod))?;
    Some((PodUid::new(uid), names::sha256_hex(token.as_bytes())))
}

/// The attempt that a pod of ours belongs to, by its owner and its annotation.
pub fn run_key(pod: &Pod) -> Option<RunKey> {
    let attempt = pod.metadata.annotations.as_ref()?.get(ANNOTATION_ATTEMPT)?.parse().ok()?;
    Some(RunKey { uid: RunUid::new(owner(pod)?), attempt: Attempt(attempt) })
}

fn token(pod: &Pod) -> Option<String> {
    let containers = &pod.spec.as_ref()?.containers;
    let agent = containers.iter().find(|container| container.name == CONTAINER_NAME)?;
    agent.env.iter().flatten().find(|env| env.name == ENV_TOKEN)?.value.clone()
}

/// Calls on the real API server.
#[derive(Clone)]
pub struct KubePods {
    client: Client,
}

impl KubePods {
    /// Over `client`, whose own retries must be off (a late retry of ours would be unfenced).
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    fn api(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

async fn limited<T>(
    call: impl Future<Output = Result<T, kube::Error>> + Send,
) -> Result<T, PodError> {
    tokio::time::timeout(CALL_TIMEOUT, call).await.map_err(|_| PodError::TimeOut)?.map_err(classify)
}

fn classify(error: kube::Error) -> PodError {
    let kube::Error::Api(status) = error else {
        return PodError::Unavailable(error_chain(&error));
    };
    let words = status.message.clone();
    match status.code {
        // An admission policy answers 422 too (webhooks: 400), but that may heal elsewhere or later.
        400 | 422 if words.contains(FORBIDDEN) || words.contains(DENIED) => {
            PodError::Refused(words)
        }
        400 | 422 => PodError::Invalid(words),
        401 | 403 | 404 => PodError::Refused(words),
        500 if words.contains(NO_WEBHOOK) => PodError::Refused(words),
        409 if status.reason == "AlreadyExists" => PodError::Exists,
        409 => PodError::Precondition,
        _ => PodError::Unavailable(words),
    }
}

#[async_trait]
impl PodApi for KubePods {
    async fn create(&self, pod: &Pod) -> Result<Pod, PodError> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let params =
            PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        limited(self.api(namespace).create(&params, pod)).await
    }

    async fn get(&self, namespace: &str, name: &str) -> Result<Option<Pod>, PodError> {
        limited(self.api(namespace).get_opt(name)).await
    }

    async fn run(&self, namespace: &str, name: &str) -> Result<Option<RunOnServer>, PodError> {
        let runs: Api<AgentRun> = Api::namespaced(self.client.clone(), namespace);
        let found = limited(runs.get_opt(name)).await?;
        let unreadable = || PodError::Invalid(format!("AgentRun {name} does not parse"));
        found.map(|run| RunOnServer::read(&run).ok_or_else(unreadable)).transpose()
    }

    async fn delete(&self, namespace: &str, name: &str, uid: &PodUid) -> Result<(), PodError> {
        let params = DeleteParams {
            grace_period_seconds: Some(DELETE_GRACE_SECONDS),
            preconditions: Some(Preconditions {
                uid: Some(uid.as_str().to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match limited(self.api(namespace).delete(name, &params)).await {
            // Another uid under this name: the pod that was meant is gone.
            Ok(_) | Err(PodError::Precondition) => Ok(()),
            Err(PodError::Refused(_)) if self.get(namespace, name).await?.is_none() => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn remove_finalizer(
        &self,
        namespace: &str,
        name: &str,
        uid: &PodUid,
    ) -> Result<(), PodError> {
        // Takes this one value out of the list, whatever else is in it, so nothing has to be read first
        // and a second release changes nothing. The uid refuses a later pod of the same name.
        let patch = json!({"metadata": {
            "uid": uid.as_str(),
            "$deleteFromPrimitiveList/finalizers": [names::POD_FINALIZER],
        }});
        let params =
            PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        match limited(self.api(namespace).patch(name, &params, &Patch::Strategic(patch))).await {
            Ok(_) => Ok(()),
            Err(error @ (PodError::Refused(_) | PodError::Invalid(_) | PodError::Precondition)) => {
                let found = self.get(namespace, name).await?;
                let held = |pod: Pod| pod.metadata.uid.as_deref() == Some(uid.as_str());
                if found.is_some_and(held) { Err(error) } else { Ok(()) }
            }
            Err(error) => Err(error),
        }
    }
}
