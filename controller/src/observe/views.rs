//! Kubernetes objects to plain data.

use agent_operator::{
    crd::{AgentRun, AgentRunSpec, CodingTask},
    domain::{
        Attempt, NodeName, Reason, RunPhase, RunRef, RunUid, TaskUid,
        names::{ANNOTATION_CANCEL, ANNOTATION_FENCE},
        outcome::UnknownName,
        step::UnknownStep,
    },
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::{Resource, ResourceExt as _};

use crate::{
    decide::{Amounts, Delivery, NodeFacts, RunView, Taint, TaskView, Used},
    settings::quantity_milli,
};

/// Taint by which an administrator says that a node is out of service (Kubernetes' own).
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// What an object lacks, or says in a way this version does not know.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ViewError {
    /// The API server always sets it.
    #[error("metadata.{0} is missing")]
    Metadata(&'static str),
    /// Not one of the steps.
    #[error("spec.step")]
    Step(#[source] UnknownStep),
    /// Not a positive number.
    #[error("spec.attempt is {0}")]
    Attempt(i32),
    /// Not one of the phases.
    #[error("status.phase")]
    Phase(#[source] UnknownName),
}

/// A task.
pub(super) fn task(task: &CodingTask) -> Result<TaskView, ViewError> {
    let meta = task.meta();
    Ok(TaskView {
        namespace: task.namespace().ok_or(ViewError::Metadata("namespace"))?,
        name: task.name_any(),
        uid: TaskUid::from(task.uid().ok_or(ViewError::Metadata("uid"))?),
        generation: meta.generation.unwrap_or(0),
        created: created(task)?,
        deleting: meta.deletion_timestamp.is_some(),
        cancel: task.annotations().get(ANNOTATION_CANCEL).cloned(),
        spec: task.spec.clone(),
        status: task.status.clone().unwrap_or_default(),
    })
}

/// A run. What its node knows of it is not in the object.
pub fn run_view(run: &AgentRun) -> Result<RunView, ViewError> {
    let status = run.status.clone().unwrap_or_default();
    let attempt = u32::try_from(run.spec.attempt)
        .ok()
        .filter(|attempt| *attempt > 0)
        .ok_or(ViewError::Attempt(run.spec.attempt))?;
    let phase = match status.phase.as_deref() {
        None => RunPhase::Pending,
        Some(phase) => phase.parse().map_err(ViewError::Phase)?,
    };
    Ok(RunView {
        run: run_ref(run)?,
        created: created(run)?,
        step: run.spec.step.parse().map_err(ViewError::Step)?,
        attempt: Attempt(attempt),
        phase,
        // A reason of a later version stays unknown; the decision fails closed on it.
        reason: status.reason.as_deref().and_then(|reason| reason.parse::<Reason>().ok()),
        delivery: Delivery::Unsent,
        told_budget: None,
        spec: run.spec.clone(),
        status,
    })
}

/// The identity of a run.
fn run_ref(run: &AgentRun) -> Result<RunRef, ViewError> {
    Ok(RunRef {
        namespace: run.namespace().ok_or(ViewError::Metadata("namespace"))?,
        name: run.name_any(),
        uid: RunUid::from(run.uid().ok_or(ViewError::Metadata("uid"))?),
    })
}

fn created(object: &impl kube::ResourceExt) -> Result<Timestamp, ViewError> {
    object.creation_timestamp().map(|time| time.0).ok_or(ViewError::Metadata("creationTimestamp"))
}

/// What a run requests.
pub(super) fn amounts(spec: &AgentRunSpec) -> Amounts {
    Amounts {
        cpu_milli: quantity_milli(&spec.resources.cpu_request).unwrap_or_default(),
        memory_milli: quantity_milli(&spec.resources.memory_request).unwrap_or_default(),
    }
}

/// A node as Kubernetes has it.
pub(super) fn node(node: &Node) -> NodeFacts {
    let spec = node.spec.clone().unwrap_or_default();
    let taints: Vec<Taint> = spec
        .taints
        .unwrap_or_default()
        .into_iter()
        .map(|taint| Taint {
            key: taint.key,
            value: taint.value.unwrap_or_default(),
            effect: taint.effect,
        })
        .collect();
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let amount = |name: &str| quantity_milli(&allocatable?.get(name)?.0);
    NodeFacts {
        name: NodeName::from(node.name_any()),
        session: None,
        absent_since: None,
        exists: true,
        labels: node.labels().clone(),
        unschedulable: spec.unschedulable.unwrap_or(false),
        allocatable: amount("cpu")
            .zip(amount("memory"))
            .map(|(cpu_milli, memory_milli)| Amounts { cpu_milli, memory_milli }),
        used: Used::default(),
        fenced: fence(node, &taints),
        taints,
    }
}

/// A node of which there is no object.
pub(super) fn missing_node(name: NodeName) -> NodeFacts {
    NodeFacts {
        name,
        session: None,
        absent_since: None,
        exists: false,
        labels: std::collections::BTreeMap::new(),
        taints: Vec::new(),
        unschedulable: false,
        allocatable: None,
        used: Used::default(),
        fenced: None,
    }
}

fn fence(node: &Node, taints: &[Taint]) -> Option<String> {
    if taints.iter().any(|taint| taint.key == OUT_OF_SERVICE) {
        return Some(format!("it has the taint {OUT_OF_SERVICE}"));
    }
    // The uid in the annotation keeps a copied annotation from fencing another node.
    let uid = node.uid()?;
    (node.annotations().get(ANNOTATION_FENCE) == Some(&uid))
        .then(|| format!("it is annotated {ANNOTATION_FENCE}"))
}
