//! What a node is told to do: one attempt at one step, complete and without any credential.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    ids::{Attempt, Epoch, NodeName, RunKey, RunRef, TaskRef},
    step::StepName,
};

/// An order to run one attempt on one node. Journalled by the supervisor before it acts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assignment {
    /// The run to execute.
    pub run: RunRef,
    /// Its task.
    pub task: TaskRef,
    /// The step.
    pub step: StepName,
    /// The attempt number.
    pub attempt: Attempt,
    /// Term of the controller that decided.
    pub epoch: Epoch,
    /// The node that must run it.
    pub node: NodeName,
    /// Step timeout in seconds, counted from the opening of the start gate.
    pub timeout_seconds: u64,
    /// Seconds from acceptance to an open gate before the run is `Unstarted`.
    pub start_deadline_seconds: u64,
    /// Seconds between the order to stop and SIGKILL.
    pub grace_seconds: u64,
    /// The pod's shape.
    pub pod: PodRequest,
    /// What the runner does in it.
    pub work: Work,
    /// The repository it works on.
    pub repository: Repository,
    /// Isolation that the task asks for.
    pub sandbox: SandboxPolicy,
    /// What is left of the task's budget; none means unlimited.
    pub budget: Option<TaskBudget>,
    /// Made ahead: its gate stays closed, and it gets nothing of the task, until the same order comes without this.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
}

impl Assignment {
    /// The key of commands, reports and grants.
    pub fn key(&self) -> RunKey {
        RunKey { uid: self.run.uid.clone(), attempt: self.attempt }
    }

    /// The step's timeout.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds)
    }

    /// The start deadline.
    pub fn start_deadline(&self) -> Duration {
        Duration::from_secs(self.start_deadline_seconds)
    }

    /// The grace period.
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_seconds)
    }
}

/// The listed, user-settable fields of an agent pod; everything else comes from the template.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRequest {
    /// Image of the agent container.
    pub image: String,
    /// Names of image pull Secrets in the task's namespace.
    pub image_pull_secrets: Vec<String>,
    /// CPU limit, a Kubernetes quantity.
    pub cpu_limit: String,
    /// Memory limit, a Kubernetes quantity.
    pub memory_limit: String,
    /// Size limit of the workspace volume, a Kubernetes quantity.
    pub storage_limit: String,
    /// CPU request, a Kubernetes quantity.
    pub cpu_request: String,
    /// Memory request, a Kubernetes quantity.
    pub memory_request: String,
    /// Node selector labels.
    pub node_selector: BTreeMap<String, String>,
    /// Tolerations.
    pub tolerations: Vec<Toleration>,
    /// Runtime class; none means the cluster's default.
    pub runtime_class_name: Option<String>,
}

/// A pod toleration, as in the core API; empty strings mean unset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Toleration {
    /// Taint key; empty tolerates every key with `Exists`.
    pub key: String,
    /// `Exists` or `Equal`.
    pub operator: String,
    /// Taint value for `Equal`.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule`, `NoExecute`, or empty for all.
    pub effect: String,
    /// For `NoExecute`: how long the pod stays.
    pub toleration_seconds: Option<i64>,
}

/// What the runner does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Work {
    /// The user's instructions.
    pub prompt: String,
    /// The plan step's text, for later steps.
    pub plan: Option<String>,
    /// Output of the failed attempt before, for a retry.
    pub feedback: Option<String>,
    /// Which agent runs.
    pub agent: AgentKind,
    /// Model name; none leaves it to the agent's default.
    pub model: Option<String>,
    /// Turn limit; none leaves it to the agent's default.
    pub max_turns: Option<u32>,
    /// Test command; none means it is detected from the repository.
    pub test_command: Option<Vec<String>>,
    /// The issue that the task comes from; its text goes to the agent as data.
    #[serde(default)]
    pub issue: Option<IssueRef>,
    /// Nothing was verified: there was nothing to test by, and the task goes on all the same. Its pull
    /// request says so.
    #[serde(default)]
    pub unverified: bool,
}

/// An issue at the forge of the task's repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IssueRef {
    /// Owner of the repository that the issue is in, as the user wrote it.
    pub owner: String,
    /// Name of that repository, as the user wrote it.
    pub repo: String,
    /// Number of the issue.
    pub number: i64,
}

impl fmt::Display for IssueRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}#{}", self.owner, self.repo, self.number)
    }
}

/// The agent program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum AgentKind {
    /// The Claude Code CLI from the runner volume.
    ClaudeCode,
    /// Any program of the agent image; it reads the prompt from the file in `AGENT_PROMPT_FILE`.
    Command {
        /// Program and arguments.
        command: Vec<String>,
    },
}

/// A repository as a step sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Repository {
    /// Name within the task; the first is `main`.
    pub name: String,
    /// Clone URL as the user wrote it.
    pub url: String,
    /// Branch the work starts from and the pull request goes to.
    pub base_branch: String,
    /// Branch for the agent's commits, as resolved so far.
    pub work_branch: String,
    /// Commit of the base branch that the plan was made on; none before the plan step.
    pub base_commit: Option<String>,
    /// Tip of the work branch as the task knows it; none before the first push.
    pub head_commit: Option<String>,
}

/// How far egress enforcement is demanded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EgressPolicy {
    /// The step does not start unless egress is proven closed.
    Required,
    /// The step starts and the level reached is reported.
    #[default]
    BestEffort,
}

/// Isolation that the task asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SandboxPolicy {
    /// Egress enforcement.
    pub egress: EgressPolicy,
    /// Refuse to start without a pids limit.
    pub require_pids_limit: bool,
    /// Hosts (`name` or `name:port`) reachable through the gateway's CONNECT besides the chart's.
    pub allowed_hosts: Vec<String>,
}

/// What is left of a task's budget when the step starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskBudget {
    /// Tokens left; none means unlimited.
    pub tokens: Option<u64>,
    /// Micro-dollars left; none means unlimited.
    pub cost_micro_usd: Option<u64>,
}
