//! What a decision is made from: plain data, read once and consistent enough.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use agent_operator::{
    crd::{AgentRunSpec, AgentRunStatus, CodingTaskSpec, CodingTaskStatus, coding_task::AgentType},
    domain::{
        Attempt, NodeName, PreflightReport, Reason, RunKey, RunPhase, RunRef, RunUid, StepName,
        TaskUid, assignment::TaskBudget,
    },
};
use jiff::Timestamp;

use crate::{
    fleet::NodeView,
    settings::{Settings, quantity_milli},
};

/// Everything that [`super::decide`] may look at.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The task.
    pub task: TaskView,
    /// Its runs, by step and attempt.
    pub runs: Vec<RunView>,
    /// Names of runs that the status lists as live, but that a live read did not find.
    pub lost_runs: Vec<String>,
    /// All nodes, by name.
    pub nodes: Vec<NodeFacts>,
    /// Whether the task's credentials can be had.
    pub credentials: CredentialState,
    /// How the task's preflight stands.
    pub preflight: PreflightView,
    /// Chart values.
    pub settings: Arc<Settings>,
}

/// A task as read.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: TaskUid,
    /// Generation of its spec.
    pub generation: i64,
    /// When it was created.
    pub created: Timestamp,
    /// Whether somebody has deleted it.
    pub deleting: bool,
    /// Why it is to end though it is not finished: the value of its annotation
    /// `agents.wearn.dev/cancel`.
    pub cancel: Option<String>,
    /// What was asked for.
    pub spec: CodingTaskSpec,
    /// What was written before.
    pub status: CodingTaskStatus,
}

/// A run as read.
#[derive(Clone, Debug, PartialEq)]
pub struct RunView {
    /// Its object.
    pub run: RunRef,
    /// When it was created, to the second.
    pub created: Timestamp,
    /// Its step.
    pub step: StepName,
    /// Its attempt number.
    pub attempt: Attempt,
    /// Its phase.
    pub phase: RunPhase,
    /// Why it ended.
    pub reason: Option<Reason>,
    /// What its node knows of it.
    pub delivery: Delivery,
    /// What the node was last told to be left of the task's budget, once it was [`Delivery::Sent`].
    pub told_budget: Option<TaskBudget>,
    /// What was asked for.
    pub spec: AgentRunSpec,
    /// What became of it.
    pub status: AgentRunStatus,
}

impl RunView {
    /// The key of commands.
    pub fn key(&self) -> RunKey {
        RunKey { uid: self.run.uid.clone(), attempt: self.attempt }
    }

    /// Its uid.
    pub fn uid(&self) -> &RunUid {
        &self.run.uid
    }

    /// Whether a pod of it may still run.
    pub fn is_live(&self) -> bool {
        !self.phase.is_terminal()
    }

    /// The node that it was given to.
    pub fn node(&self) -> NodeName {
        NodeName::from(self.spec.node_name.as_str())
    }

    /// Whether it was made ahead and nothing of its step has begun: it has no open gate on record.
    pub fn never_began(&self) -> bool {
        self.spec.prepared && self.status.start_time.is_none()
    }
}

/// How far a run has come to its node, as far as this process knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delivery {
    /// Neither sent in this term nor named by the node's supervisor.
    #[default]
    Unsent,
    /// Named by the supervisor, but not yet confirmed under the present term.
    Known,
    /// Sent under the present term to the present session, to be held at its gate.
    Held,
    /// Sent under the present term to the present session.
    Sent,
    /// An order to end it was sent as well.
    CancelSent,
    /// The node was told that it may forget the run.
    Forgotten,
}

/// A node: what Kubernetes says, and what its supervisor says.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeFacts {
    /// Its name.
    pub name: NodeName,
    /// Its supervisor's session; none: not connected.
    pub session: Option<NodeView>,
    /// Since when there has been no session, as far as this process knows.
    pub absent_since: Option<Timestamp>,
    /// Whether the Node object exists.
    pub exists: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Taints.
    pub taints: Vec<Taint>,
    /// Cordoned.
    pub unschedulable: bool,
    /// What pods may request in all; none when the node does not say.
    pub allocatable: Option<Amounts>,
    /// What live runs of all tasks use.
    pub used: Used,
    /// Why the node can surely do nothing any more; a sentence.
    pub fenced: Option<String>,
}

/// A taint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value; empty when it has none.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// Amounts of what pods request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Thousandths of a byte (quantities allow them).
    pub memory_milli: u64,
}

/// What runs use on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Live runs.
    pub slots: u32,
    /// Their requests.
    pub amounts: Amounts,
}

impl Used {
    /// One run more.
    pub fn add(&mut self, amounts: Amounts) {
        self.slots = self.slots.saturating_add(1);
        let sum = &mut self.amounts;
        sum.cpu_milli = sum.cpu_milli.saturating_add(amounts.cpu_milli);
        sum.memory_milli = sum.memory_milli.saturating_add(amounts.memory_milli);
    }

    /// One run less.
    pub fn take(&mut self, amounts: Amounts) {
        self.slots = self.slots.saturating_sub(1);
        let sum = &mut self.amounts;
        sum.cpu_milli = sum.cpu_milli.saturating_sub(amounts.cpu_milli);
        sum.memory_milli = sum.memory_milli.saturating_sub(amounts.memory_milli);
    }
}

/// Whether the task's credentials can be had. Read only when a step is about to be handed out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CredentialState {
    /// Not looked at.
    #[default]
    Unread,
    /// Read and allowed.
    Ready,
    /// Not there, or not allowed.
    Refused {
        /// Reason of the condition.
        reason: &'static str,
        /// What is wrong and how to put it right.
        message: String,
    },
}

/// How a task's preflight stands, for the present generation of its spec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreflightView {
    /// A question that waits for its answer.
    pub asked: Option<PreflightAsked>,
    /// The newest answer.
    pub answer: Option<PreflightAnswer>,
}

/// A question to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreflightAsked {
    /// The node.
    pub node: NodeName,
    /// When it was first asked.
    pub since: Timestamp,
    /// When it was last asked.
    pub last: Timestamp,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreflightAnswer {
    /// What stands in the way.
    pub report: PreflightReport,
    /// When it came.
    pub at: Timestamp,
    /// How many answers there have been, this one included.
    pub tries: u32,
}

impl Observed {
    /// The node of that name.
    pub fn node(&self, name: &NodeName) -> Option<&NodeFacts> {
        self.nodes.iter().find(|node| node.name == *name)
    }

    /// The task's step timeout: task, then chart.
    pub fn step_timeout(&self) -> Duration {
        parsed(self.task.spec.step_timeout.as_deref(), self.settings.step_timeout.get())
    }

    /// The task's timeout: task, then chart.
    pub fn task_timeout(&self) -> Duration {
        parsed(self.task.spec.task_timeout.as_deref(), self.settings.task_timeout.get())
    }
}

/// A duration that the schema has checked. Should one slip through, [`invalid`] has refused
/// the task before this value matters.
fn parsed(text: Option<&str>, default: Duration) -> Duration {
    text.and_then(|text| text.parse::<agent_operator::domain::GoDuration>().ok())
        .map_or(default, agent_operator::domain::GoDuration::get)
}

/// What of `spec` cannot be carried out, as a sentence. The schema's rules say the same; this holds
/// for objects that were stored before those rules.
pub fn invalid(spec: &CodingTaskSpec) -> Option<String> {
    invalid_duration(spec).or_else(|| invalid_quantity(spec)).or_else(|| {
        let agent = spec.agent.as_ref().filter(|agent| agent.type_ == AgentType::Command)?;
        let none = agent.command.as_ref().is_none_or(Vec::is_empty);
        none.then(|| {
            "spec.agent.type Command needs spec.agent.command; create the task anew with one"
                .to_owned()
        })
    })
}

/// The first quantity of `spec` that cannot be read, as a sentence. Above all a budget: one that
/// cannot be read would be no limit at all.
fn invalid_quantity(spec: &CodingTaskSpec) -> Option<String> {
    let resources = spec.resources.clone().unwrap_or_default();
    [
        ("spec.resources.cpu", resources.cpu),
        ("spec.resources.memory", resources.memory),
        ("spec.resources.storage", resources.storage),
        (
            "spec.budget.maxCostUSD",
            spec.budget.as_ref().and_then(|budget| budget.max_cost_usd.clone()),
        ),
    ]
    .into_iter()
    .find_map(|(field, quantity)| {
        let text = quantity?.0;
        quantity_milli(&text).is_none_or(|value| value == 0).then(|| {
            format!("{field}: {text:?} is not a quantity greater than zero; write for example 500m, 4 or 8Gi")
        })
    })
}

/// The first duration of `spec` that cannot be read, as a sentence.
fn invalid_duration(spec: &CodingTaskSpec) -> Option<String> {
    [("spec.stepTimeout", &spec.step_timeout), ("spec.taskTimeout", &spec.task_timeout)]
        .into_iter()
        .find_map(|(field, text)| {
            let error = text.as_deref()?.parse::<agent_operator::domain::GoDuration>().err()?;
            Some(format!("{field}: {error}"))
        })
}
