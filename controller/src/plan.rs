//! What a decision says: effects as data. Carried out in `apply` alone.

use std::time::Duration;

use agent_operator::{
    crd::{AgentRunSpec, CodingTaskStatus},
    domain::{Attempt, NodeName, Reason, RunPhase, RunRef, assignment::TaskBudget},
};
use serde::Serialize;

/// Everything that is to be done for one task now. Empty when there is nothing to do (I6).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Runs to create, before anything else; at most one: the next live run, or the one that is made ahead.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub run_creates: Vec<RunCreate>,
    /// Runs whose end or silence the controller itself has to record.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub run_updates: Vec<RunUpdate>,
    /// A node that is asked what stands in the way of the task, before anything of it is started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preflight: Option<NodeName>,
    /// The task's whole status; none when it is right as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Box<CodingTaskStatus>>,
    /// What nodes are told, after the writes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<NodeCommand>,
    /// Kubernetes events, best effort.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<EventNote>,
    /// When to look again even if nothing happens; none: only when something happens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requeue_after: Option<Duration>,
    /// Whether the task waits for room on a node: it is looked at again when a run ends anywhere.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub waits_for_node: bool,
}

impl Plan {
    /// Whether carrying out the plan hands the task's credentials to a node.
    pub fn needs_credentials(&self) -> bool {
        self.run_creates.iter().any(|create| !create.spec.prepared)
            || self.preflight.is_some()
            || self.commands.iter().any(|command| matches!(command.order, Order::Assign))
    }

    /// Whether the plan writes to the API server.
    pub fn writes(&self) -> bool {
        self.status.is_some() || !self.run_creates.is_empty() || !self.run_updates.is_empty()
    }
}

/// A run to create. Its name is a function of (task uid, step, attempt), so a repeated create is
/// harmless. It is assigned to its node as soon as it exists.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunCreate {
    /// Name.
    pub name: String,
    /// Spec; the epoch in it is the one of the term that creates it, set by `apply`.
    pub spec: AgentRunSpec,
}

/// A run whose state the controller records by itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunUpdate {
    /// The run.
    pub run: RunRef,
    /// The new phase.
    pub phase: RunPhase,
    /// Why it ended, for a terminal phase.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// One sentence.
    pub message: String,
}

/// Something that a node is told about a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeCommand {
    /// The node.
    pub node: NodeName,
    /// The run.
    pub run: RunRef,
    /// Its attempt number.
    pub attempt: Attempt,
    /// What about it.
    pub order: Order,
}

/// The orders that decisions give.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum Order {
    /// Run it; `apply` builds the whole assignment from the run, the task and its credentials.
    Assign,
    /// Keep it ready behind its gate: the assignment without credentials. Before [`Self::Cancel`]: find out what there
    /// is of it, and let nothing begin.
    Hold,
    /// The node has it already: the same order under the present term, without credentials. A gateway
    /// that lacks them asks for them.
    Confirm,
    /// End it.
    Cancel {
        /// Reason that it ends with.
        reason: Reason,
        /// One sentence.
        message: String,
    },
    /// What is left of the task's budget is not what the node was told: somebody has raised it.
    Budget {
        /// What is left; none means unlimited.
        left: Option<TaskBudget>,
    },
    /// Everything about it is recorded: its pod may go.
    Forget,
}

/// What is to be done about the pods that nodes cannot release themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Releases {
    /// Pods that lose our finalizer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<PodRelease>,
    /// When to look again even if nothing happens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub look_again_after: Option<Duration>,
}

/// A pod that loses our finalizer, if it is still as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRelease {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The version that was read.
    pub resource_version: String,
    /// The finalizers that it keeps: those of others.
    pub finalizers: Vec<String>,
}

/// A Kubernetes event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventNote {
    /// What it is about; none: the task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<RunRef>,
    /// Whether it tells of trouble.
    pub warning: bool,
    /// CamelCase word.
    pub reason: String,
    /// What was being done, in CamelCase.
    pub action: String,
    /// A sentence.
    pub note: String,
}
