//! The attempt API: what agent-runner and the agent may ask of their node's gateway over HTTP.
//!
//! | route | token | meaning |
//! |---|---|---|
//! | `POST /v1/redeem` | one-time | [`RedeemRequest`] > [`Redeemed`]: trades the pod spec's token for two others |
//! | `GET /v1/step` | runner | [`StepSpec`]: what to do |
//! | `POST /v1/gate` | runner | [`GateRequest`] > [`GateAnswer`]; held up to [`POLL_SECONDS_MAX`] |
//! | `GET /v1/orders` | runner | [`Orders`]; held up to [`POLL_SECONDS_MAX`] until there is one |
//! | `POST /v1/events` | runner | [`EventsRequest`] > [`EventsAnswer`] |
//! | `POST /v1/publish` | runner | [`PublishRequest`] > [`Published`]: quarantine to the work branch |
//! | `POST /v1/pull-request` | runner | [`PullRequestRequest`] > [`PullRequestAnswer`] |
//! | `POST /v1/result` | runner | [`StepResult`] > 204 once the node has it on disk |
//! | `/git/<repository>.git/...` | agent | git smart HTTP: fetch; push into this attempt's quarantine |
//! | `/llm/...` | agent | the model API |
//! | `CONNECT host:port` | agent | allowed hosts, as an HTTP proxy |
//!
//! Tokens travel as `Authorization: Bearer`; git and the proxy use Basic with the agent's token as
//! password. Errors are [`ApiError`] as JSON; 503 with `Retry-After` means: the same again later.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::domain::{
    Attempt, Reason, RunRef, StartFault, StepName, TaskRef, Usage,
    assignment::AgentKind,
    event::EventRecord,
    report::{SandboxStatus, StepFacts},
};

/// Environment variable of the agent pod: base URL of the gateway, an IP address and port.
pub const ENV_GATEWAY: &str = "AGENT_OPERATOR_GATEWAY";
/// Environment variable of the agent pod: the one-time token. Worth nothing once redeemed.
pub const ENV_TOKEN: &str = "AGENT_OPERATOR_TOKEN";
/// Where the runner volume is mounted: `agent-runner` and `claude`, read-only.
pub const RUNNER_DIR: &str = "/opt/agent-operator";
/// The work tree's parent; an emptyDir.
pub const WORKSPACE_DIR: &str = "/workspace";
/// HOME of the agent; an emptyDir.
pub const HOME_DIR: &str = "/home/agent";
/// Name of the agent container in the pod.
pub const CONTAINER_NAME: &str = "agent";
/// Longest time that a long poll is held.
pub const POLL_SECONDS_MAX: u64 = 20;
/// Most event records in one request: keeps a request below 4 MiB with usual records.
pub const EVENTS_PER_REQUEST_MAX: usize = 256;
/// Longest title of an issue: GitHub's limit of 256 characters.
pub const ISSUE_TITLE_BYTES_MAX: usize = 1024;
/// Longest text of an issue: it is part of every model call, and longer ones hold logs.
pub const ISSUE_BODY_BYTES_MAX: usize = 32 * 1024;
/// Largest JSON body of the attempt API.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Trades the one-time token. The same nonce from the same address may repeat it until the gate
/// opens, so that a lost answer does not kill the attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RedeemRequest {
    /// At least 128 random bits of the runner's own, in hex.
    pub nonce: String,
    /// How often the runner has asked before. One that it has given up waiting for may still be
    /// answered, and must not replace the tokens of a later one.
    #[serde(default)]
    pub call: u32,
}

/// The attempt's two tokens.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Redeemed {
    /// For the runner alone: step, gate, events, publish, result.
    pub runner_token: String,
    /// For the agent: model, git, allowed hosts.
    pub agent_token: String,
}

/// What the runner has to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepSpec {
    /// The run.
    pub run: RunRef,
    /// Its task.
    pub task: TaskRef,
    /// The step.
    pub step: StepName,
    /// The attempt number.
    pub attempt: Attempt,
    /// The user's instructions.
    pub prompt: String,
    /// The plan, for later steps.
    pub plan: Option<String>,
    /// Output of the failed attempt before.
    pub feedback: Option<String>,
    /// Which agent to run.
    pub agent: AgentKind,
    /// Model name.
    pub model: Option<String>,
    /// Turn limit.
    pub max_turns: Option<u32>,
    /// Test command; none: detect it.
    pub test_command: Option<Vec<String>>,
    /// The issue that the task comes from, for plan and implement: data, written by anybody.
    #[serde(default)]
    pub issue: Option<IssueText>,
    /// Nothing was verified, and the task goes on all the same.
    #[serde(default)]
    pub unverified: bool,
    /// The repository.
    pub repository: StepRepository,
    /// Author and committer of the runner's commits.
    pub identity: GitIdentity,
    /// Seconds between the order to stop and SIGKILL.
    pub grace_seconds: u64,
    /// A port that listens on the node and that no sandbox may reach: tried before egress is closed
    /// and again after it, so that the probe is seen to be able to fail.
    #[serde(default)]
    pub canary: Option<SocketAddr>,
    /// Made ahead: what to do is not known yet. Asked for again once the gate is open.
    #[serde(default)]
    pub held: bool,
}

/// An issue as the forge shows it. Whoever may open issues there has written it, so it is never an
/// instruction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IssueText {
    /// `owner/repo#number`.
    pub reference: String,
    /// Its title, one line of at most [`ISSUE_TITLE_BYTES_MAX`].
    pub title: String,
    /// Its text, at most [`ISSUE_BODY_BYTES_MAX`]; a mark in it says how much was left out.
    pub body: String,
}

/// The repository as the runner reaches it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepRepository {
    /// Name within the task, and in the path `/git/<name>.git`.
    pub name: String,
    /// Base branch.
    pub base_branch: String,
    /// Base commit, resolved upstream by the gateway with this attempt's credential.
    pub base_commit: String,
    /// Work branch.
    pub work_branch: String,
    /// Commit to check out: the work branch's tip where the task has one, else the base commit.
    pub start_commit: String,
    /// Whether this step may push.
    pub may_push: bool,
}

/// Identity of commits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GitIdentity {
    /// Name.
    pub name: String,
    /// E-mail address.
    pub email: String,
}

/// The runner stands at the start gate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GateRequest {
    /// Isolation as seen from inside.
    pub sandbox: SandboxStatus,
    /// Interface index of the pod's peer on the host (`/sys/class/net/eth0/iflink`); none where the
    /// pod's network shows none, or has more than one interface.
    pub iflink: Option<u32>,
    /// Whether the canary was reached before egress was closed; none: this runner probes nothing.
    #[serde(default)]
    pub canary_before: Option<bool>,
    /// Where it was not: targets of the probe that accepted a connection of this node's supervisor,
    /// whom no wall holds. Only the supervisor says so; from a runner it is dropped.
    #[serde(default)]
    pub listening: Option<Vec<SocketAddr>>,
    /// Packets of the pod that the enforcer had dropped when the probe was over. Only the supervisor says
    /// so, too.
    #[serde(default)]
    pub dropped_before: Option<u64>,
    /// What was reached after it was closed; none: not tried yet.
    #[serde(default)]
    pub probe: Option<ProbeReport>,
}

/// Asks the runner to try what must be out of its reach, before anything hostile runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeOrder {
    /// Addresses that listen and that the sandbox must not reach; the canary is one of them.
    pub targets: Vec<SocketAddr>,
    /// How long an open network may take to close: policies of some networks start late.
    pub patience_millis: u64,
}

/// What the runner reached of a [`ProbeOrder`] in its last try.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeReport {
    /// Addresses that were tried.
    pub tried: Vec<SocketAddr>,
    /// Those of them that accepted a connection.
    pub reached: Vec<SocketAddr>,
}

/// Whether the step may start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "gate")]
pub enum GateAnswer {
    /// Ask again.
    Closed,
    /// Try these addresses, and say with the next request what was reached.
    Probe(ProbeOrder),
    /// Go.
    Open {
        /// Milliseconds left until the step's deadline.
        #[serde(rename = "remainingMillis")]
        remaining_millis: u64,
    },
    /// Do not start.
    Stop(StopOrder),
}

/// The order to stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StopOrder {
    /// Reason that the run will end with.
    pub reason: Reason,
    /// One sentence for the log.
    pub message: String,
    /// Milliseconds until SIGKILL.
    pub grace_millis: u64,
}

/// Orders that wait for the runner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Orders {
    /// Stop now.
    pub stop: Option<StopOrder>,
}

/// Event records from `first` on; records already known are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventsRequest {
    /// Serial number of the first record, from 0 within the attempt.
    pub first: u64,
    /// At most [`EVENTS_PER_REQUEST_MAX`] records.
    pub records: Vec<EventRecord>,
}

/// How far the node has the events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventsAnswer {
    /// Serial number expected next.
    pub next: u64,
}

/// Moves a quarantined commit to the work branch upstream, by compare-and-swap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishRequest {
    /// Repository name.
    pub repository: String,
    /// The commit that was pushed into quarantine.
    pub commit: String,
}

/// Where the commit stands upstream now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Published {
    /// The branch, perhaps with a suffix of its own (see `names::disambiguated_branch`).
    pub work_branch: String,
    /// The branch's tip.
    pub head_commit: String,
}

/// Asks for the pull request to be opened, or found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullRequestRequest {
    /// Title; at most 256 bytes are used.
    pub title: String,
    /// Body; at most 60,000 bytes are used (GitHub's limit is 65,536 characters).
    pub body: String,
}

/// The pull request.
pub type PullRequestAnswer = crate::domain::report::PullRequest;

/// The runner's typed result, sent once the agent and everything it started is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepResult {
    /// Why the step ended.
    pub reason: Reason,
    /// One sentence for people.
    pub message: String,
    /// Exit code that the runner will exit with.
    pub exit_code: i32,
    /// What kept the step from starting; only with [`Reason::Unstarted`], and where it has a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_fault: Option<StartFault>,
    /// What the step produced.
    pub facts: StepFacts,
    /// What the agent itself says it used; kept for comparison, the gateway's count decides.
    pub reported_usage: Usage,
    /// Number of event records sent.
    pub events: u64,
    /// Bytes that were written, or are still to be written, to the container's output: so many its log has once the
    /// runtime has taken all of them. None: the runner does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub printed: Option<u64>,
}

/// An error of the attempt API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiError {
    /// Reason that the step should end with if it cannot go on; none for a plain client error.
    pub reason: Option<Reason>,
    /// One sentence with the remedy.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
}
