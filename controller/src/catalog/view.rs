//! What is kept of a task and of a run.

use agent_operator::{
    crd::{AgentRun, CodingTask, conditions},
    domain::{NodeName, RunPhase, RunUid, StepName, TaskUid, Usage},
};
use jiff::Timestamp;

/// Phase of an object that has no status yet.
const PENDING: &str = "Pending";

/// A task, as far as it is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskView {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: TaskUid,
    /// Phase.
    pub phase: String,
    /// One sentence on where it stands.
    pub message: String,
    /// Why it ended as it did, once it has.
    pub reason: String,
    /// Whether it has ended.
    pub finished: bool,
    /// When it was made.
    pub created_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// Consumption.
    pub usage: Usage,
    /// Names of its runs in order of creation, as far as its status lists them.
    pub runs: Vec<String>,
}

/// A run, as far as it is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunView {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: RunUid,
    /// Name of its task.
    pub task: String,
    /// Uid of its task.
    pub task_uid: TaskUid,
    /// Step.
    pub step: String,
    /// Position of the step, from 1; 0 for a step that this version does not know.
    pub step_number: i32,
    /// Attempt.
    pub attempt: u32,
    /// Phase.
    pub phase: String,
    /// Why it ended.
    pub reason: String,
    /// One sentence.
    pub message: String,
    /// Node.
    pub node: NodeName,
    /// Pod.
    pub pod: String,
    /// Exit code, when known.
    pub exit_code: Option<i32>,
    /// When it was made.
    pub created_at: Option<Timestamp>,
    /// When the start gate opened.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// Consumption.
    pub usage: Usage,
    /// Size of the log as the node recorded it, once the run has ended.
    pub log_bytes: Option<u64>,
}

impl RunView {
    /// Whether the run has ended.
    pub fn is_terminal(&self) -> bool {
        self.phase.parse::<RunPhase>().is_ok_and(RunPhase::is_terminal)
    }

    /// A pending run in namespace `ns` for tests; its uid is `uid-<name>`.
    #[cfg(test)]
    pub(crate) fn sample(name: &str, task: &str, attempt: u32) -> Self {
        Self {
            namespace: "ns".into(),
            name: name.into(),
            uid: format!("uid-{name}").into(),
            task: task.into(),
            task_uid: format!("uid-{task}").into(),
            step: "plan".into(),
            step_number: 1,
            attempt,
            phase: PENDING.into(),
            node: "n1".into(),
            ..Self::default()
        }
    }
}

impl TaskView {
    /// A pending task in namespace `ns` for tests; its uid is `uid-<name>`.
    #[cfg(test)]
    pub(crate) fn sample(name: &str) -> Self {
        Self {
            namespace: "ns".into(),
            name: name.into(),
            uid: format!("uid-{name}").into(),
            phase: PENDING.into(),
            ..Self::default()
        }
    }
}

impl From<CodingTask> for TaskView {
    fn from(task: CodingTask) -> Self {
        let status = task.status.unwrap_or_default();
        let condition = |type_| conditions::find(&status.conditions, type_);
        let finished = condition(conditions::FINISHED).is_some_and(|known| known.status == "True");
        let reason = condition(conditions::SUCCEEDED).filter(|_| finished);
        Self {
            namespace: task.metadata.namespace.unwrap_or_default(),
            name: task.metadata.name.unwrap_or_default(),
            uid: task.metadata.uid.unwrap_or_default().into(),
            phase: status.phase.unwrap_or_else(|| PENDING.to_owned()),
            message: status.message.unwrap_or_default(),
            reason: reason.map(|known| known.reason.clone()).unwrap_or_default(),
            finished,
            created_at: task.metadata.creation_timestamp.map(|time| time.0),
            completed_at: status.completion_time,
            usage: status.usage.map(Usage::from).unwrap_or_default(),
            runs: status.agent_runs.into_iter().map(|run| run.name).collect(),
        }
    }
}

impl From<AgentRun> for RunView {
    fn from(run: AgentRun) -> Self {
        let (spec, status) = (run.spec, run.status.unwrap_or_default());
        Self {
            namespace: run.metadata.namespace.unwrap_or_default(),
            name: run.metadata.name.unwrap_or_default(),
            uid: run.metadata.uid.unwrap_or_default().into(),
            task: spec.task_ref.name,
            task_uid: spec.task_ref.uid.into(),
            step_number: spec.step.parse().map_or(0, StepName::number),
            step: spec.step,
            attempt: u32::try_from(spec.attempt).unwrap_or(0),
            phase: status.phase.unwrap_or_else(|| PENDING.to_owned()),
            reason: status.reason.unwrap_or_default(),
            message: status.message.unwrap_or_default(),
            node: spec.node_name.into(),
            pod: status.pod_name.unwrap_or_default(),
            exit_code: status.exit_code,
            created_at: run.metadata.creation_timestamp.map(|time| time.0),
            started_at: status.start_time,
            completed_at: status.completion_time,
            usage: status.usage.map(Usage::from).unwrap_or_default(),
            log_bytes: status.log.and_then(|log| u64::try_from(log.bytes).ok()),
        }
    }
}
