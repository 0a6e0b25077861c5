//! The contract between supervisor and gateway: JSON frames over a Unix socket that the gateway
//! listens on. The two processes share no memory and may be of different versions for the minutes of
//! an upgrade, so every frame is versioned by the opening [`ToGateway::Hello`].
//!
//! Order after each connect: both sides say Hello; the supervisor registers every live attempt and
//! then says [`ToGateway::Synced`]. Until then the gateway answers unknown tokens with 503, so a
//! restarted gateway never fails an agent. What carries an `id` is repeated by the gateway until
//! [`ToGateway::Ack`] says that the supervisor has it on disk.
//!
//! A connection that opens with [`ToGateway::Stop`] instead carries that one order and leaves the
//! link as it is: deadlines do not depend on the link's queue.

use std::{net::SocketAddr, time::Duration};

use agent_operator::{
    attempt::{GateRequest, ProbeOrder, StepResult, StopOrder},
    domain::{
        Assignment, Credential, Epoch, PreflightOrder, PreflightReport, RunKey, Usage,
        assignment::TaskBudget,
        event::EventRecord,
        report::{PullRequest, Refusal},
    },
};
use serde::{Deserialize, Serialize};

/// Version of this contract; another major version is refused by both sides.
pub const LINK_VERSION: u32 = 1;

/// Longest frame: a full event request plus its envelope.
pub const FRAME_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Supervisor to gateway.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum ToGateway {
    /// Opens the connection.
    Hello {
        /// [`LINK_VERSION`] of the sender.
        version: u32,
    },
    /// Makes an attempt known, or updates it; idempotent.
    Register(Box<Grant>),
    /// Every live attempt has been registered; attempts not named since Hello are dropped.
    Synced,
    /// Keeps an attempt that the sender has lost its record of, and asks for what the gateway knows
    /// of it; said before [`Self::Synced`], answered by [`FromGateway::Survivor`].
    Describe {
        /// The attempt.
        run: RunKey,
    },
    /// Credentials of an attempt, in memory only.
    Credentials {
        /// The attempt.
        run: RunKey,
        /// All of them; replaces earlier ones.
        credentials: Vec<Credential>,
    },
    /// Has the runner at the gate try what it must not reach.
    Probe {
        /// The attempt.
        run: RunKey,
        /// What to try.
        order: ProbeOrder,
    },
    /// Opens the start gate.
    OpenGate {
        /// The attempt.
        run: RunKey,
        /// The pod's address as the kubelet reports it; must equal the redeemer's.
        #[serde(rename = "podIp")]
        pod_ip: std::net::IpAddr,
        /// Milliseconds until the step's deadline.
        #[serde(rename = "remainingMillis")]
        remaining_millis: u64,
    },
    /// Permission to write upstream under `epoch` for the next `valid_millis`.
    Permit {
        /// Term of the controller that gave it.
        epoch: Epoch,
        /// How long it holds from receipt.
        #[serde(rename = "validMillis")]
        valid_millis: u64,
    },
    /// A raised budget for a live attempt.
    Budget {
        /// The attempt.
        run: RunKey,
        /// What is left.
        budget: Option<TaskBudget>,
    },
    /// Tells the runner to stop; the agent's token is dead at once, the runner's lives on.
    Stop {
        /// The attempt.
        run: RunKey,
        /// The order.
        order: StopOrder,
    },
    /// The attempt is over: tokens, credentials and quarantine are gone after this.
    Revoke {
        /// The attempt.
        run: RunKey,
    },
    /// Asks what stands in the way of a task. Answered by [`FromGateway::Preflighted`], unless either
    /// process ends before: then it is asked again.
    Preflight {
        /// The order.
        order: Box<PreflightOrder>,
        /// The task's credentials, in memory only and dropped with the answer.
        credentials: Vec<Credential>,
    },
    /// The supervisor has the message `id` on disk.
    Ack {
        /// The message's id.
        id: u64,
    },
}

/// Gateway to supervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum FromGateway {
    /// Opens the connection.
    Hello {
        /// [`LINK_VERSION`] of the sender.
        version: u32,
        /// New at each start of the gateway.
        instance: String,
        /// The attempts in the gateway's memory.
        #[serde(default)]
        live: Vec<RunKey>,
    },
    /// What the gateway knows of an attempt that the supervisor asked about.
    Survivor(Box<Survivor>),
    /// Must be kept on disk and acknowledged.
    Durable {
        /// Unique within (gateway instance).
        id: u64,
        /// The attempt.
        run: RunKey,
        /// What happened.
        #[serde(flatten)]
        event: DurableEvent,
    },
    /// Latest counts of an attempt; a later one replaces an earlier one.
    Counters {
        /// The attempt.
        run: RunKey,
        /// Consumption.
        usage: Usage,
        /// Refused requests.
        refusals: Vec<Refusal>,
    },
    /// What stands in the way of a task.
    Preflighted(Box<PreflightReport>),
    /// The attempt's credentials are not in memory (gateway restarted).
    NeedCredentials {
        /// The attempt.
        run: RunKey,
    },
}

/// Events of an attempt that survive a crash of either side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "event")]
pub enum DurableEvent {
    /// The one-time token was redeemed.
    Redeemed(Redemption),
    /// The runner waits at the start gate.
    AtGate(GateRequest),
    /// Event records from serial number `first` on.
    Events {
        /// Serial number of the first record.
        first: u64,
        /// The records.
        records: Vec<EventRecord>,
    },
    /// A commit stands upstream.
    Published {
        /// Work branch as resolved.
        #[serde(rename = "workBranch")]
        work_branch: String,
        /// Its tip.
        #[serde(rename = "headCommit")]
        head_commit: String,
    },
    /// The pull request exists.
    PullRequestOpened(PullRequest),
    /// The runner's result. Carries the final counts.
    Result {
        /// The runner's words.
        result: Box<StepResult>,
        /// Consumption as counted by the gateway.
        usage: Usage,
        /// Refused requests.
        refusals: Vec<Refusal>,
    },
}

/// An attempt in the gateway's memory whose record the supervisor has lost.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Survivor {
    /// The attempt, whole.
    pub assignment: Assignment,
    /// Its redemption, if there was one.
    pub redemption: Option<Redemption>,
    /// Set once the gate has opened: milliseconds left until the deadline.
    pub open_remaining_millis: Option<u64>,
    /// Consumption so far.
    pub usage: Usage,
    /// Refusals so far.
    pub refusals: Vec<Refusal>,
}

impl Survivor {
    /// Time left until the deadline; none before the gate has opened.
    pub fn open_remaining(&self) -> Option<Duration> {
        self.open_remaining_millis.map(Duration::from_millis)
    }
}

/// What an attempt may do. Holds hashes of tokens, never tokens, and no credential.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// The attempt, whole.
    pub assignment: Assignment,
    /// SHA-256 (hex) of the one-time token in the pod spec.
    pub one_time_hash: String,
    /// What is known of an earlier redemption.
    pub redemption: Option<Redemption>,
    /// Set once the gate has opened: milliseconds left until the deadline.
    pub open_remaining_millis: Option<u64>,
    /// Consumption counted before a restart.
    pub usage: Usage,
    /// Refusals counted before a restart.
    pub refusals: Vec<Refusal>,
    /// Serial number of the next event record the supervisor expects.
    pub next_event: u64,
    /// The port that the runner tries before egress is closed.
    #[serde(default)]
    pub canary: Option<SocketAddr>,
    /// The probe that the runner has been asked for.
    #[serde(default)]
    pub probe: Option<ProbeOrder>,
}

/// The result of a redemption: enough to recognise both tokens after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Redemption {
    /// SHA-256 (hex) of the runner's nonce.
    pub nonce_hash: String,
    /// Address that redeemed.
    pub pod_ip: std::net::IpAddr,
    /// SHA-256 (hex) of the runner's token.
    pub runner_hash: String,
    /// SHA-256 (hex) of the agent's token.
    pub agent_hash: String,
}
