//! `AgentRun`: one attempt at one step. Created and written by the controller alone.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    coding_task::AgentSpec,
    rules,
    shared::{
        CONDITIONS_MAX, Condition, LocalSecretRef, MESSAGE_CHARS_MAX, PullRequestStatus,
        TolerationSpec, UsageStatus,
    },
};
use crate::domain::RunPhase;

/// One attempt at one step of a task: at most one pod, one outcome. Node and epoch are in the spec
/// so that they are durable before any node hears of the run.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "agents.wearn.dev",
    version = "v1alpha1",
    kind = "AgentRun",
    plural = "agentruns",
    shortname = "ar",
    category = "agents",
    namespaced,
    status = "AgentRunStatus",
    derive = "PartialEq",
    doc = "One attempt at one step of a CodingTask, in a pod of its own. Made by the controller; read-only for everybody else.",
    selectable = ".status.phase",
    selectable = ".spec.taskRef.name",
    selectable = ".spec.nodeName",
    printcolumn(name = "Task", type_ = "string", json_path = ".spec.taskRef.name"),
    printcolumn(name = "Step", type_ = "string", json_path = ".spec.step"),
    printcolumn(name = "Attempt", type_ = "integer", json_path = ".spec.attempt"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "Exit", type_ = "integer", json_path = ".status.exitCode"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.nodeName"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = Rule::new("self == oldSelf").message("spec of an AgentRun cannot change; a new attempt is a new AgentRun, made by the controller"))]
#[serde(rename_all = "camelCase")]
pub struct AgentRunSpec {
    /// The task.
    pub task_ref: TaskReference,
    /// plan, implement, test or pull-request.
    #[schemars(length(max = 63), regex(pattern = "^(plan|implement|test|pull-request)$"))]
    pub step: String,
    /// Serial number within task and step; never restarts.
    #[schemars(range(min = 1))]
    pub attempt: i32,
    /// Node that runs it.
    #[schemars(length(min = 1, max = 253))]
    pub node_name: String,
    /// Term of the controller that decided.
    #[schemars(range(min = 0))]
    pub epoch: i64,
    /// Step timeout, Go-style.
    #[schemars(length(min = 2, max = 20))]
    #[x_kube(validation = Rule::new(rules::STEP_TIMEOUT).message("spec.timeout must be a duration of whole hours, minutes and seconds between 1s and 168h, for example 30m"))]
    pub timeout: String,
    /// Image of the agent container.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
    /// Secrets with which its images are pulled: the task's and the chart's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub image_pull_secrets: Vec<LocalSecretRef>,
    /// Limits and requests, as resolved.
    pub resources: ResolvedResources,
    /// The agent program, as resolved.
    pub agent: AgentSpec,
    /// Model; left out: the agent's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub model: Option<String>,
    /// Turn limit; left out: the agent's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_turns: Option<i32>,
    /// Node selector.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Tolerations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub tolerations: Vec<TolerationSpec>,
    /// Isolation asked for, as resolved.
    pub sandbox: ResolvedSandbox,
    /// Name of the run whose output is this run's feedback; its text is in that run's status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub feedback_from: Option<String>,
    /// Made while the step before was running: its pod waits at the start gate until that step has ended well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub prepared: bool,
}

/// The task of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskReference {
    /// Name of the CodingTask.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its uid.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
}

/// Limits and requests of the pod, all Kubernetes quantities.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedResources {
    /// CPU limit.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new(rules::QUANTITY).message("must be a Kubernetes quantity, for example 500m, 4 or 8Gi"))]
    pub cpu: String,
    /// Memory limit.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new(rules::QUANTITY).message("must be a Kubernetes quantity, for example 500m, 4 or 8Gi"))]
    pub memory: String,
    /// Workspace size limit.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new(rules::QUANTITY).message("must be a Kubernetes quantity, for example 500m, 4 or 8Gi"))]
    pub storage: String,
    /// CPU request.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new(rules::QUANTITY).message("must be a Kubernetes quantity, for example 500m, 4 or 8Gi"))]
    pub cpu_request: String,
    /// Memory request.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new(rules::QUANTITY).message("must be a Kubernetes quantity, for example 500m, 4 or 8Gi"))]
    pub memory_request: String,
}

/// Isolation asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedSandbox {
    /// RuntimeClass of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub runtime_class_name: Option<String>,
    /// `Required` or `BestEffort`.
    #[schemars(length(max = 32))]
    pub egress_policy: String,
    /// Refuse to start without a pids limit.
    #[serde(default)]
    pub require_pids_limit: bool,
    /// Hosts reachable through the gateway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 260)))]
    pub allowed_hosts: Vec<String>,
}

/// What has become of a run. A terminal phase never changes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("!has(oldSelf.phase) || !(oldSelf.phase in ['Succeeded', 'Failed']) || (has(self.phase) && self.phase == oldSelf.phase && has(self.reason) == has(oldSelf.reason) && (!has(self.reason) || self.reason == oldSelf.reason) && has(self.exitCode) == has(oldSelf.exitCode) && (!has(self.exitCode) || self.exitCode == oldSelf.exitCode))").message("phase, reason and exitCode of a finished AgentRun never change"))]
#[serde(rename_all = "camelCase")]
pub struct AgentRunStatus {
    /// Pending, Running, Succeeded, Failed or Unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub phase: Option<String>,
    /// Why it ended, for example `VerifyFailed`; docs/reference/reasons.md has all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub reason: Option<String>,
    /// One sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MESSAGE_CHARS_MAX))]
    pub message: Option<String>,
    /// Name of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub pod_name: Option<String>,
    /// When the start gate opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<jiff::Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<jiff::Timestamp>,
    /// Exit code of the runner; left out when unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 255))]
    pub exit_code: Option<i32>,
    /// Plan, or output of the failing command: first quarter and last three quarters of 16 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16_384))]
    pub output: Option<String>,
    /// The command whose exit code decided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 16_384)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub command: Vec<String>,
    /// Base commit that the step worked from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub base_commit: Option<String>,
    /// Tip of the work branch upstream after the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub head_commit: Option<String>,
    /// Work branch as resolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub work_branch: Option<String>,
    /// The pull request that the step opened or found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_request: Option<PullRequestStatus>,
    /// Consumption, as the gateway counted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageStatus>,
    /// Isolation reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxReached>,
    /// Size of the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogStatus>,
    /// What the gateway refused, counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub refusals: Vec<RefusalStatus>,
    /// What programs read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = CONDITIONS_MAX))]
    pub conditions: Vec<Condition>,
}

impl AgentRun {
    /// Whether the run has its outcome.
    pub fn has_ended(&self) -> bool {
        self.status.as_ref().is_some_and(AgentRunStatus::has_ended)
    }
}

impl AgentRunStatus {
    /// Whether the phase is a final one. One that this version does not know is none.
    pub fn has_ended(&self) -> bool {
        self.phase
            .as_deref()
            .and_then(|phase| phase.parse().ok())
            .is_some_and(RunPhase::is_terminal)
    }
}

/// Isolation reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SandboxReached {
    /// RuntimeClass of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub runtime_class: Option<String>,
    /// Enforced or Unenforced.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub egress: Option<String>,
    /// Limit of processes; left out: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub pids_limit: Option<i64>,
    /// Whether the pod has a user namespace of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_namespace: Option<bool>,
    /// Landlock ABI applied to the agent. From 6 on it cannot signal the runner.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub landlock: Option<i32>,
    /// Whether the runner's filter of system calls holds around the agent: no look into other
    /// processes, no limits or priorities for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp_filter: Option<bool>,
}

/// Size of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LogStatus {
    /// Bytes, lost ones included.
    #[schemars(range(min = 0))]
    pub bytes: i64,
    /// Number of gaps.
    #[schemars(range(min = 0))]
    pub gaps: i32,
}

/// A kind of request that the gateway refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RefusalStatus {
    /// egress, model, git, auth, limit, protocol, or egress-dropped for packets.
    #[schemars(length(max = 32))]
    pub kind: String,
    /// Host or path pattern.
    #[schemars(length(max = 512))]
    pub target: String,
    /// How often.
    #[schemars(range(min = 0))]
    pub count: i64,
}
