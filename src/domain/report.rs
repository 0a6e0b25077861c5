//! What a supervisor tells the controller about a run, and how the run ended.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    ids::{Attempt, Epoch, PodUid, RunRef},
    outcome::{Reason, RunPhase},
    start_fault::{StartFault, StartTrouble},
    usage::Usage,
};

/// One report on a run; repeated until acknowledged, harmless when repeated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The run.
    pub run: RunRef,
    /// Its attempt number.
    pub attempt: Attempt,
    /// Epoch of the assignment.
    pub epoch: Epoch,
    /// Serial within (run, supervisor ledger); acknowledged by this number.
    pub sequence: u64,
    /// What is known.
    pub state: RunState,
}

/// Two clocks that differ by no more are one: so much is the way of a message, and keeping time.
const SAME_CLOCK: SignedDuration = SignedDuration::from_secs(2);

impl Report {
    /// The report with its times moved from the wall clock of its sender, which showed `sent_at` when
    /// it was sent, into that of the receiver, which shows `now`. Decisions compare these times with
    /// the receiver's own, and the clocks of nodes differ.
    #[must_use]
    pub fn moved(mut self, sent_at: Timestamp, now: Timestamp) -> Self {
        let ahead = now.duration_since(sent_at);
        if ahead.abs() > SAME_CLOCK {
            let moved = |at: Timestamp| at.saturating_add(ahead).unwrap_or(at);
            match &mut self.state {
                RunState::Running(started) => started.started_at = moved(started.started_at),
                RunState::Finished(outcome) => {
                    outcome.started_at = outcome.started_at.map(moved);
                    outcome.completed_at = moved(outcome.completed_at);
                }
                RunState::Waiting(_) | RunState::Unknown { .. } | RunState::ExitMismatch { .. } => {
                }
            }
        }
        self
    }
}

/// Where a run stands on its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum RunState {
    /// It has not started yet, and something keeps it from starting.
    Waiting(StartTrouble),
    /// The start gate has opened.
    Running(Started),
    /// It is over; never changes afterwards.
    Finished(Box<Outcome>),
    /// The pod cannot be killed or found out about; not terminal.
    Unknown {
        /// What is known, for people.
        message: String,
    },
    /// The kubelet's record of the exit contradicts the runner's. The outcome stays as it is.
    #[serde(rename_all = "camelCase")]
    ExitMismatch {
        /// Exit code by the runner's report.
        reported: i32,
        /// Exit code by the kubelet's record.
        recorded: i32,
    },
}

/// The facts at the opening of the start gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Started {
    /// Name of the pod.
    pub pod_name: String,
    /// Uid of the pod.
    pub pod_uid: PodUid,
    /// By the wall clock of whoever has the report, see [`Report::moved`].
    pub started_at: Timestamp,
    /// Isolation reached.
    pub sandbox: SandboxStatus,
}

/// The one terminal record of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// Why it ended.
    pub reason: Reason,
    /// One sentence for people.
    pub message: String,
    /// What kept it from starting; only with [`Reason::Unstarted`].
    #[serde(default)]
    pub start_fault: Option<StartFault>,
    /// Exit code as the runtime or the runner recorded it; none when unknown.
    pub exit_code: Option<i32>,
    /// Name of the pod; none when no pod was made.
    pub pod_name: Option<String>,
    /// When the gate opened; none when it never did.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Timestamp,
    /// What the step produced.
    pub result: StepFacts,
    /// Consumption as counted by the gateway.
    pub usage: Usage,
    /// Isolation reached.
    pub sandbox: SandboxStatus,
    /// The log's size and holes.
    pub log: LogSummary,
    /// What the gateway refused, by kind.
    pub refusals: Vec<Refusal>,
}

impl Outcome {
    /// The terminal phase that this outcome means.
    pub fn phase(&self) -> RunPhase {
        if self.reason == Reason::Completed { RunPhase::Succeeded } else { RunPhase::Failed }
    }
}

/// Typed results of a step; which are set depends on the step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StepFacts {
    /// Plan text, or output of the failing command; at most `OUTPUT_BYTES_MAX`.
    pub output: Option<String>,
    /// The command whose exit code decided (test step, `Command` agent).
    pub command: Option<Vec<String>>,
    /// Base commit the step worked from.
    pub base_commit: Option<String>,
    /// Tip of the work branch upstream after the step.
    pub head_commit: Option<String>,
    /// Work branch as resolved by the gateway.
    pub work_branch: Option<String>,
    /// The pull request.
    pub pull_request: Option<PullRequest>,
}

/// A pull request at the forge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullRequest {
    /// Web address, from the forge's API.
    pub url: String,
    /// Number within the repository.
    pub number: i64,
}

/// Whether a step's network was proven closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EgressLevel {
    /// Nothing but the gateway was within reach when the step began.
    Enforced,
    /// Something else was, or nothing was proven.
    Unenforced,
}

impl EgressLevel {
    /// The word of the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enforced => "Enforced",
            Self::Unenforced => "Unenforced",
        }
    }
}

/// Isolation that a step really had.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SandboxStatus {
    /// Runtime class of the pod; none is the cluster's default.
    pub runtime_class: Option<String>,
    /// `Enforced` or `Unenforced`.
    pub egress: Option<String>,
    /// Pids limit of the pod's cgroup; none is unlimited.
    pub pids_limit: Option<i64>,
    /// Whether the pod has its own user namespace.
    pub user_namespace: Option<bool>,
    /// Landlock ABI applied to the agent; none is none.
    pub landlock: Option<i32>,
    /// Whether the runner's filter of system calls holds around the agent.
    pub seccomp_filter: Option<bool>,
}

/// The log as the node recorded it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LogSummary {
    /// Bytes of the LOG channel, gaps included.
    pub bytes: u64,
    /// Number of gap records.
    pub gaps: u32,
}

/// A kind of request that the gateway refused, counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// Bounded set: `egress`, `model`, `git`, `auth`, `limit`.
    pub kind: String,
    /// Host or path pattern; at most 253 bytes.
    pub target: String,
    /// How often.
    pub count: u64,
}
