//! `CodingTask`: what a user asks for.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    quantity::QuantityText,
    rules,
    shared::{
        CONDITIONS_MAX, Condition, LocalSecretRef, MESSAGE_CHARS_MAX, PullRequestStatus,
        SecretKeyRef, TolerationSpec, UsageStatus,
    },
};
use crate::domain::names::{BRANCH_BYTES_MAX, WORK_BRANCH_BYTES_MAX};

/// Most runs that a task's status lists: a task with every retry used and each run placed several
/// times stays far below it, and the object stays below 200 KiB.
pub const RUNS_MAX: usize = 512;

/// A task for a coding agent: plan, implement, test, and open a pull request.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "agents.wearn.dev",
    version = "v1alpha1",
    kind = "CodingTask",
    plural = "codingtasks",
    shortname = "ct",
    category = "agents",
    namespaced,
    status = "CodingTaskStatus",
    derive = "PartialEq",
    doc = "A task for a coding agent: it is planned, implemented, tested and handed over as a pull request.",
    selectable = ".status.phase",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Finished\")].reason"
    ),
    printcolumn(name = "Retries", type_ = "integer", json_path = ".status.retryCount"),
    printcolumn(name = "PR", type_ = "integer", json_path = ".status.pullRequest.number"),
    printcolumn(name = "Step", type_ = "string", json_path = ".status.stepName", priority = 1),
    printcolumn(name = "Repo", type_ = "string", json_path = ".spec.repository.url", priority = 1),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.nodeName", priority = 1),
    printcolumn(
        name = "Cost (uUSD)",
        type_ = "integer",
        json_path = ".status.usage.costMicroUSD",
        priority = 1
    ),
    printcolumn(
        name = "PR URL",
        type_ = "string",
        json_path = ".status.pullRequest.url",
        priority = 1
    ),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("!has(oldSelf.budget) || has(self.budget)").message("spec.budget may only be raised; set higher limits instead of removing it"),
    validation = Rule::new("!has(self.repository.workBranch) || !has(self.repository.branch) || self.repository.workBranch != self.repository.branch").message("spec.repository.workBranch must differ from spec.repository.branch; the agent never writes to the base branch"),
    validation = Rule::new("!has(self.repository.workBranch) || has(self.repository.branch) || self.repository.workBranch != 'main'").message("spec.repository.workBranch must differ from the base branch main; the agent never writes to the base branch"),
    validation = Rule::new("!has(self.repository.workBranch) || (!self.repository.workBranch.startsWith((has(self.repository.branch) ? self.repository.branch : 'main') + '/') && !(has(self.repository.branch) ? self.repository.branch : 'main').startsWith(self.repository.workBranch + '/'))").message("spec.repository.workBranch must not lie below spec.repository.branch or above it (main and main/x cannot both exist in git); choose for example ai/my-task"),
    validation = Rule::new("!has(self.sandbox) || !has(self.sandbox.allowedHosts) || !self.sandbox.allowedHosts.exists(h, h == 'api.anthropic.com' || h == 'api.anthropic.com:443' || self.repository.url.startsWith('https://' + h + '/') || (h.endsWith(':443') && self.repository.url.startsWith('https://' + h.replace(':443', '') + '/')) || self.repository.url.startsWith('http://' + h + '/'))").message("spec.sandbox.allowedHosts must not name the host of spec.repository.url or of the model; the gateway serves both without a tunnel, remove them"),
    validation = Rule::new("has(self.agent) == has(oldSelf.agent) && (!has(self.agent) || self.agent == oldSelf.agent)").message("spec.agent cannot change after creation; create a new CodingTask"),
    validation = Rule::new("has(self.test) == has(oldSelf.test) && (!has(self.test) || self.test == oldSelf.test)").message("spec.test cannot change after creation; create a new CodingTask")
)]
#[serde(rename_all = "camelCase")]
pub struct CodingTaskSpec {
    /// Where the request came from.
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.source cannot change after creation; create a new CodingTask"))]
    pub source: TaskSource,
    /// The repository to work on.
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.repository cannot change after creation; create a new CodingTask"))]
    pub repository: RepositorySpec,
    /// Instructions for the agent, at most 64 KiB.
    #[schemars(length(min = 1, max = 65_536))]
    #[x_kube(
        validation = Rule::new("bytes(self).size() <= 65536").message("spec.prompt is longer than 64 KiB (65536 bytes); shorten it, or put the text into a file of the repository and name that"),
        validation = Rule::new("self.size() == 0 || self.trim() != ''").message("spec.prompt has no text; say what the agent is to do"),
        validation = Rule::new("!self.contains('\\u0000')").message("spec.prompt must not contain NUL characters, which no program can be given; remove them"),
        validation = Rule::new("self == oldSelf").message("spec.prompt cannot change after creation; create a new CodingTask")
    )]
    pub prompt: String,
    /// Image of the agent pod: any glibc Linux image with git. Default: the chart's `images.agent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new(rules::IMAGE).message("spec.agentImage must be an image reference in lower case without https://, for example ghcr.io/owner/agent:1.2"))]
    pub agent_image: Option<String>,
    /// Secrets in the task's namespace with which the image is pulled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub image_pull_secrets: Vec<LocalSecretRef>,
    /// The agent program. Default: Claude Code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentSpec>,
    /// Model and turn limit by step. Default: the agent's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelSpec>,
    /// Limits of each step's pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourcesSpec>,
    /// Secret with the model's API key. Only the node's gateway ever uses it.
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.anthropicApiKeyRef cannot change after creation; change the Secret's value instead"))]
    pub anthropic_api_key_ref: SecretKeyRef,
    /// Secret with the token for git and the forge. Only the node's gateway ever uses it.
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.gitCredentialsRef cannot change after creation; change the Secret's value instead"))]
    pub git_credentials_ref: SecretKeyRef,
    /// How often a failed implementation is tried again. Default: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 20))]
    pub max_retries: Option<i32>,
    /// Longest time of one step, Go-style (`30m`, `1h30m`); its clock starts when the step may start. Default: 30m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20))]
    #[x_kube(validation = Rule::new(rules::STEP_TIMEOUT).message("spec.stepTimeout must be a duration of whole hours, minutes and seconds between 1s and 168h, for example 30m or 1h30m"))]
    pub step_timeout: Option<String>,
    /// Longest time of the whole task, Go-style. Default: 6h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20))]
    #[x_kube(validation = Rule::new(rules::TASK_TIMEOUT).message("spec.taskTimeout must be a duration of whole hours, minutes and seconds between 1s and 720h, for example 6h or 1h30m"))]
    pub task_timeout: Option<String>,
    /// How the work is tested. Default: detected from the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<TestSpec>,
    /// True stops the task after the running step; false goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    /// True makes the pods of implement and test while the step before is running, and holds them at their start gate: less time between two steps, for two pods at once. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prepare_next_step: Option<bool>,
    /// Hard limits for the whole task; may only be raised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<BudgetSpec>,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new(rules::NODE_LABELS).message("spec.nodeSelector has a key or value that no label can have; write both as kubectl get nodes --show-labels does"))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the step's pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub tolerations: Vec<TolerationSpec>,
    /// Isolation of the step's pods. Default: chart values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxSpec>,
}

/// Where a request came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("self.type != 'github-issue' || has(self.github)").message("spec.source.type github-issue needs spec.source.github with owner, repo and issueNumber"),
    validation = Rule::new("self.type != 'chat' || has(self.chat)").message("spec.source.type chat needs spec.source.chat with sessionId and userId"),
    validation = Rule::new("self.type == 'github-issue' || !has(self.github)").message("spec.source.github is only for spec.source.type github-issue; remove it or change the type"),
    validation = Rule::new("self.type == 'chat' || !has(self.chat)").message("spec.source.chat is only for spec.source.type chat; remove it or change the type")
)]
#[serde(rename_all = "camelCase")]
pub struct TaskSource {
    /// `github-issue` or `chat`.
    #[serde(rename = "type")]
    pub type_: SourceType,
    /// For `github-issue`: the issue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub github: Option<GithubSource>,
    /// For `chat`: the conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<ChatSource>,
}

/// Kind of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SourceType {
    /// An issue at GitHub.
    GithubIssue,
    /// A conversation.
    Chat,
}

/// An issue at GitHub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GithubSource {
    /// Owner of the repository.
    #[schemars(length(min = 1, max = 100))]
    #[x_kube(validation = Rule::new(rules::FORGE_NAME).message("spec.source.github.owner must be as in the repository's address, of letters, digits and . _ -"))]
    pub owner: String,
    /// Name of the repository.
    #[schemars(length(min = 1, max = 100))]
    #[x_kube(validation = Rule::new(rules::FORGE_NAME).message("spec.source.github.repo must be as in the repository's address, of letters, digits and . _ -"))]
    pub repo: String,
    /// Number of the issue.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub issue_number: i64,
}

/// A conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChatSource {
    /// Id of the session.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = Rule::new(rules::ONE_LINE).message("spec.source.chat.sessionId must be one line without control characters"))]
    pub session_id: String,
    /// Id of the user.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = Rule::new(rules::ONE_LINE).message("spec.source.chat.userId must be one line without control characters"))]
    pub user_id: String,
}

/// The repository of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepositorySpec {
    /// Clone URL, http or https, without credentials.
    #[schemars(length(min = 10, max = 2048))]
    #[x_kube(
        validation = Rule::new(rules::CLONE_URL).message("spec.repository.url must be an http or https clone URL without user name or password, for example https://github.com/owner/repo.git (ssh URLs are not supported)"),
        validation = Rule::new(rules::CLONE_URL_PATH).message("spec.repository.url must not contain '.', '..' or '.git' as a folder; write the address as the forge shows it"),
        validation = Rule::new(rules::CLONE_URL_AWAY).message("spec.repository.url must not name this machine or a link-local address; write the forge's host name")
    )]
    pub url: String,
    /// Branch that the work starts from and the pull request goes to. Default: main.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = BRANCH_BYTES_MAX))]
    #[x_kube(validation = Rule::new(rules::BRANCH).message("spec.repository.branch must be a git branch name of letters, digits and . _ / + -, without refs/heads/, for example main"))]
    pub branch: Option<String>,
    /// Branch for the agent's changes. Default: ai/<task-name>.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = WORK_BRANCH_BYTES_MAX))]
    #[x_kube(validation = Rule::new(rules::BRANCH).message("spec.repository.workBranch must be a git branch name of letters, digits and . _ / + -, without refs/heads/, for example ai/my-task"))]
    pub work_branch: Option<String>,
}

/// The agent program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("self.type != 'Command' || has(self.command)").message("spec.agent.type Command needs spec.agent.command, for example [\"./agent.sh\"]"),
    validation = Rule::new("self.type == 'Command' || !has(self.command)").message("spec.agent.command is only for spec.agent.type Command; remove it or change the type")
)]
#[serde(rename_all = "camelCase")]
pub struct AgentSpec {
    /// `ClaudeCode` or `Command`.
    #[serde(rename = "type")]
    pub type_: AgentType,
    /// For `Command`: program and arguments, from the agent image. The prompt is in the file that `AGENT_PROMPT_FILE` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(max = 16_384)))]
    #[x_kube(
        merge_strategy = ListMerge::Atomic,
        validation = Rule::new(rules::COMMAND).message("spec.agent.command must begin with a program and contain no NUL characters, for example [\"make\", \"test\"]")
    )]
    pub command: Option<Vec<String>>,
}

/// Kind of agent program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AgentType {
    /// The Claude Code CLI, which the runner volume brings.
    ClaudeCode,
    /// Any program of the agent image.
    Command,
}

/// Model and turn limit by step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelSpec {
    /// Model for every step that names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new(rules::MODEL).message("spec.model.default must be a model name of letters, digits and . _ : / @ + - [ ], starting with a letter or digit"))]
    pub default: Option<String>,
    /// Model for the plan step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new(rules::MODEL).message("spec.model.plan must be a model name of letters, digits and . _ : / @ + - [ ], starting with a letter or digit"))]
    pub plan: Option<String>,
    /// Model for the implement step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new(rules::MODEL).message("spec.model.implement must be a model name of letters, digits and . _ : / @ + - [ ], starting with a letter or digit"))]
    pub implement: Option<String>,
    /// Kept for compatibility: the test step runs no model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new(rules::MODEL).message("spec.model.test must be a model name of letters, digits and . _ : / @ + - [ ], starting with a letter or digit"))]
    pub test: Option<String>,
    /// Model for the pull-request step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new(rules::MODEL).message("spec.model.pullRequest must be a model name of letters, digits and . _ : / @ + - [ ], starting with a letter or digit"))]
    pub pull_request: Option<String>,
    /// Turn limit for every step that has none of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_turns: Option<i32>,
    /// Turn limit of the plan step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub plan_max_turns: Option<i32>,
    /// Turn limit of the implement step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub implement_max_turns: Option<i32>,
    /// Turn limit of the pull-request step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub pull_request_max_turns: Option<i32>,
}

/// Limits of each step's pod; requests are the chart's `agent.requests`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(rules::CPU).message("spec.resources.cpu must be between 10m (a hundredth of a CPU) and 1k, for example 500m or 4"),
    validation = Rule::new(rules::MEMORY).message("spec.resources.memory must be between 64Mi and 1Pi; a number alone counts bytes, write for example 8Gi"),
    validation = Rule::new(rules::STORAGE).message("spec.resources.storage must be between 64Mi and 1Pi; a number alone counts bytes, write for example 20Gi")
)]
#[serde(rename_all = "camelCase")]
pub struct ResourcesSpec {
    /// CPU limit. Default: 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<QuantityText>,
    /// Memory limit. Default: 8Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<QuantityText>,
    /// Size limit of the workspace. Default: 20Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<QuantityText>,
}

/// How the work is tested.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TestSpec {
    /// Program and arguments, run in the repository's root; exit code 0 passes. Default: detected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(max = 16_384)))]
    #[x_kube(
        merge_strategy = ListMerge::Atomic,
        validation = Rule::new(rules::COMMAND).message("spec.test.command must begin with a program and contain no NUL characters, for example [\"make\", \"test\"]")
    )]
    pub command: Option<Vec<String>>,
    /// What a repository without tests means: `Fail` (the default) or `Proceed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_unverifiable: Option<OnUnverifiable>,
}

/// What a repository without tests means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnUnverifiable {
    /// The task fails.
    #[default]
    Fail,
    /// The pull request is opened and says that nothing was verified.
    Proceed,
}

/// Hard limits for the whole task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!has(oldSelf.maxTokens) || (has(self.maxTokens) && self.maxTokens >= oldSelf.maxTokens)").message("spec.budget.maxTokens may only be raised; leave it as it was or set a higher number"),
    validation = Rule::new("!has(oldSelf.maxCostUSD) || (has(self.maxCostUSD) && quantity(string(self.maxCostUSD)).compareTo(quantity(string(oldSelf.maxCostUSD))) >= 0)").message("spec.budget.maxCostUSD may only be raised; leave it as it was or set a higher amount"),
    validation = Rule::new(rules::DOLLARS).message("spec.budget.maxCostUSD must be between 1m (a thousandth of a dollar) and 1M dollars, for example 2 or 500m")
)]
#[serde(rename_all = "camelCase")]
pub struct BudgetSpec {
    /// Most tokens, all kinds counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_000_i64))]
    pub max_tokens: Option<i64>,
    /// Most money in US dollars, a quantity such as `2` or `500m`.
    #[serde(default, rename = "maxCostUSD", skip_serializing_if = "Option::is_none")]
    pub max_cost_usd: Option<QuantityText>,
    /// `Pause` (the default) waits for a raised budget; `Fail` ends the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_exceeded: Option<OnExceeded>,
}

/// What an exceeded budget means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnExceeded {
    /// Wait for a raised budget.
    #[default]
    Pause,
    /// End the task.
    Fail,
}

/// Isolation of the step's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxSpec {
    /// RuntimeClass of the pods, for example gvisor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(rules::OBJECT_NAME).message("spec.sandbox.runtimeClassName must be the name of a RuntimeClass of lower-case letters, digits, - and ., for example gvisor"))]
    pub runtime_class_name: Option<String>,
    /// `Required`: no start unless egress is proven closed. `BestEffort`: start and report the level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_policy: Option<EgressPolicySpec>,
    /// Refuse to start where the node's kubelet sets no limit of processes (podPidsLimit).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require_pids_limit: Option<bool>,
    /// Hosts (`name` or `name:port`) that the agent may reach through the gateway, besides the chart's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 260)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new(rules::HOSTS).message("spec.sandbox.allowedHosts takes host names in lower case, each with a port if need be, without wildcards, addresses, paths and https://; write for example registry.example.com or registry.example.com:8443")
    )]
    pub allowed_hosts: Vec<String>,
}

/// How far egress enforcement is demanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EgressPolicySpec {
    /// No start unless egress is proven closed.
    Required,
    /// Start and report the level.
    BestEffort,
}

/// What has become of a task. Written by the controller alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CodingTaskStatus {
    /// Summary: `Pending`, `Planning`, `Implementing`, `Testing`, `PullRequest`, `Complete` or `Failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub phase: Option<String>,
    /// Number of the present step, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub current_step: Option<i32>,
    /// Name of the present step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub step_name: Option<String>,
    /// Number of steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub total_steps: Option<i32>,
    /// Node of the present step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node_name: Option<String>,
    /// Retries of the implement-and-test loop so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub retry_count: Option<i32>,
    /// Retries by the budget they used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<RetryStatus>,
    /// The task's runs, in order of creation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = RUNS_MAX))]
    pub agent_runs: Vec<AgentRunSummary>,
    /// The plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanStatus>,
    /// The repositories; the first is `main`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 32))]
    pub repositories: Vec<RepositoryStatus>,
    /// The pull request of the main repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_request: Option<PullRequestStatus>,
    /// Consumption of all runs, as the gateways counted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageStatus>,
    /// When the first run was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<jiff::Timestamp>,
    /// When the task ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<jiff::Timestamp>,
    /// One sentence on where the task stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MESSAGE_CHARS_MAX))]
    pub message: Option<String>,
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// What programs read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = CONDITIONS_MAX))]
    pub conditions: Vec<Condition>,
}

/// Retries by budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryStatus {
    /// The agent's or the code's own failures.
    #[schemars(range(min = 0))]
    pub application: i32,
    /// Lost nodes, evictions and the like.
    #[schemars(range(min = 0))]
    pub infrastructure: i32,
    /// Model or forge not available.
    #[schemars(range(min = 0))]
    pub provider: i32,
}

/// A run of the task, in short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentRunSummary {
    /// Name of the AgentRun.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its step.
    #[schemars(length(max = 63))]
    pub step: String,
    /// Its attempt number.
    #[schemars(range(min = 0))]
    pub attempt: i32,
    /// Its phase when the task's status was last written. A live run is not followed here, so that a
    /// step costs one write of the task; the AgentRun itself has the present phase.
    #[schemars(length(max = 64))]
    pub phase: String,
    /// Why it ended; kept here so that retry counts survive the loss of an AgentRun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub reason: Option<String>,
    /// What it used; kept here so that the budget survives the loss of an AgentRun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageStatus>,
}

/// The plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanStatus {
    /// `sha256:` and the hash of the text.
    #[schemars(length(max = 128))]
    pub digest: String,
    /// The text, at most 16 KiB.
    #[schemars(length(max = 16_384))]
    pub text: String,
    /// Size of the whole plan before it was cut.
    #[schemars(range(min = 0))]
    pub size_bytes: i64,
}

/// A repository of the task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryStatus {
    /// Name within the task.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Clone URL.
    #[schemars(length(max = 2048))]
    pub url: String,
    /// Commit of the base branch that the work started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub base_commit: Option<String>,
    /// Tip of the work branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub head_commit: Option<String>,
    /// Work branch as resolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub work_branch: Option<String>,
    /// Its pull request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_request: Option<PullRequestStatus>,
}
