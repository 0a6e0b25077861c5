//! What can happen to an attempt, and what its machine wants done about it.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use agent_operator::{
    attempt::{GateRequest, StepResult, StopOrder},
    domain::{
        Assignment, Epoch, Reason, RunRef, Usage,
        assignment::TaskBudget,
        ids::PodUid,
        report::{LogSummary, PullRequest, Refusal, RunState},
    },
};

use super::{
    egress::Closing,
    hindrance::Hindrance,
    moment::{BootTime, Now},
    record::{Exit, Record},
};
use crate::link::contract::Redemption;

/// What the machine may know besides state and event.
#[derive(Clone, Debug)]
pub struct Context<'a> {
    /// The present.
    pub now: Now,
    /// The node's boot.
    pub boot_id: &'a agent_operator::domain::ids::BootId,
    /// The log as recorded so far.
    pub log: LogSummary,
    /// How long a forgotten attempt's pod stays, so that its log can be read.
    pub pod_retention: Duration,
}

/// The controller's word that an attempt has to end.
#[derive(Debug)]
pub struct End {
    /// What it ends with.
    pub reason: Reason,
    /// One sentence for people.
    pub message: String,
    /// Time until SIGKILL; none: that of its assignment.
    pub grace: Option<Duration>,
}

/// A pod as the API server shows it, reduced to what decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodDigest {
    /// The run that owns the pod; none when no object of that kind does.
    pub run: Option<RunRef>,
    /// The pod's uid.
    pub uid: PodUid,
    /// Whether it is bound to a node.
    pub scheduled: bool,
    /// The scheduler's words, while it cannot place the pod.
    pub unschedulable: Option<String>,
    /// The pod's address.
    pub ip: Option<IpAddr>,
    /// The agent container's id, without the runtime's prefix.
    pub container_id: Option<String>,
    /// Why the container waits, in the kubelet's words (image pull, mount, create errors).
    pub waiting: Option<Hindrance>,
    /// The kubelet's words when this node cannot mount image volumes.
    pub image_volume_broken: Option<String>,
    /// Whether the pod is being deleted.
    pub deleting: bool,
    /// Whether our finalizer keeps it.
    pub held: bool,
    /// Reason of the condition `DisruptionTarget`, where it is true.
    pub disruption: Option<String>,
    /// The end of the agent container, or of a pod whose container never ran.
    pub exit: Option<Exit>,
}

/// Why a pod could not be made. Whatever may heal is retried before this is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateFailure {
    /// The API server refuses the pod as it is: no node can run it.
    Invalid(String),
    /// Admission, quota or policy refuses it now.
    Refused(Hindrance),
    /// Another object holds the name.
    Foreign(String),
    /// There was one, and nobody knows how it ended.
    Vanished,
    /// The creation was called off before there was a pod.
    Aborted,
}

/// A timer of an attempt; one of each kind at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Timer {
    /// The gate must be open by now.
    Start,
    /// The scheduler had its time.
    Unschedulable,
    /// The step's deadline.
    Deadline,
    /// The grace after an order to stop, or after the result, is over.
    Grace,
    /// The deleted pod should be gone by now.
    Stuck,
    /// The forgotten pod has been kept long enough.
    Retention,
    /// The gateway had its time to tell of a result from before this process.
    Hearing,
    /// The rules of the pod's network are to be made again.
    Egress,
}

/// What happens to an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was just accepted (the acceptance is already on disk).
    Accepted,
    /// The supervisor has started and found it in the ledger.
    Restarted {
        /// SHA-256 of a fresh one-time token, for the case that there is no pod yet.
        one_time_hash: String,
    },
    /// The assignment came again under a higher epoch.
    EpochRaised(Epoch),
    /// Made ahead, it is told to begin: the whole order.
    Released(Box<Assignment>),
    /// Its gateway has been told all that it needs to begin.
    MayOpen,
    /// Another amount is left of the task's budget.
    BudgetChanged(Option<TaskBudget>),
    /// Its pod exists and is ours.
    PodCreated {
        /// The pod's uid.
        uid: PodUid,
        /// SHA-256 of the one-time token that the pod carries.
        one_time_hash: String,
    },
    /// Its pod could not be made.
    PodCreateFailed(CreateFailure),
    /// Its pod could not be made yet; it is tried again.
    PodCreateDelayed(Hindrance),
    /// The pod was seen.
    PodObserved(Box<PodDigest>),
    /// A live GET says that the pod does not exist.
    PodGone,
    /// The one-time token was redeemed.
    Redeemed(Redemption),
    /// The runner stands at the gate.
    AtGate(GateRequest),
    /// The node's enforcer has closed the pod's egress, or cannot.
    EgressAnswered(Closing),
    /// The node's enforcer does not answer yet; it is asked again.
    EgressDelayed(Hindrance),
    /// The enforcer has made the rules of the running step's pod again.
    EgressRenewed {
        /// There were none.
        missing: bool,
    },
    /// Which of the probe's targets accepted a connection of this supervisor.
    Listening(Vec<SocketAddr>),
    /// New counts.
    Counters {
        /// Consumption.
        usage: Usage,
        /// Refused requests.
        refusals: Vec<Refusal>,
    },
    /// A commit stands upstream.
    Published {
        /// Work branch as resolved.
        work_branch: String,
        /// Its tip.
        head_commit: String,
    },
    /// The pull request exists.
    PullRequestOpened(PullRequest),
    /// The runner's result.
    Result {
        /// The runner's words.
        result: Box<StepResult>,
        /// Consumption.
        usage: Usage,
        /// Refused requests.
        refusals: Vec<Refusal>,
    },
    /// The gateway holds no result of it from before this process.
    NothingPending,
    /// Nothing of the container runs any more, by its cgroup.
    CgroupEmpty,
    /// A timer has fired.
    Timer(Timer),
    /// The controller ends the attempt.
    CancelOrdered {
        /// `Cancelled`, `Deleted` or `BudgetExceeded`.
        reason: Reason,
        /// One sentence.
        message: String,
        /// Time for the runner to stop by itself.
        grace: Duration,
    },
    /// The controller has recorded the report with this number.
    Acked(u64),
    /// The controller needs nothing of the attempt any more.
    Forget,
}

/// What the machine wants done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Put on disk before anything that follows.
    Journal(Record),
    /// Make the attempt known to the gateway, or update it.
    RegisterGrant,
    /// Make the pod; answered by `PodCreated` or `PodCreateFailed`.
    CreatePod,
    /// Give up making the pod; answered by `PodCreated` or `PodCreateFailed`.
    AbortCreate,
    /// Look at the pod now; answered by `PodObserved` or `PodGone`.
    ObservePod,
    /// Spool the container's log from here on.
    OpenStreams {
        /// The pod.
        uid: PodUid,
    },
    /// Have the node's enforcer close the pod's egress; answered by `EgressAnswered`.
    CloseEgress {
        /// The pod.
        uid: PodUid,
        /// The address that redeemed the pod's token.
        pod_ip: IpAddr,
        /// Interface index of the pod's peer on the host, by the runner.
        iflink: Option<u32>,
        /// Ask until the start deadline; else a short while.
        required: bool,
    },
    /// Have the enforcer make the rules of the pod again, with the gateway's addresses of now; answered by
    /// `EgressRenewed` where it could.
    RenewEgress {
        /// The pod.
        uid: PodUid,
        /// The address that redeemed the pod's token.
        pod_ip: IpAddr,
        /// Index of the device on which the rules hang: the address may be another pod's by now.
        device: u32,
    },
    /// Somebody has taken the rules of a running step's pod away.
    EgressReopened,
    /// Try the probe's targets from here, where nothing is closed; answered by `Listening`.
    TryTargets,
    /// Have the runner try what it must not reach; answered by `AtGate`.
    Probe {
        /// How long an open network may take to close.
        patience: Duration,
    },
    /// Open the start gate.
    OpenGate {
        /// The pod's address by the kubelet.
        pod_ip: IpAddr,
        /// Time until the deadline.
        remaining: Duration,
    },
    /// Tell the controller; repeated by the runner until acknowledged.
    Report {
        /// The report's number.
        sequence: u64,
        /// What is known.
        state: Box<RunState>,
    },
    /// Tell the runner in the sandbox to stop.
    StopRunner(StopOrder),
    /// Watch the container's cgroup closely; answered by `CgroupEmpty`.
    WatchCgroup {
        /// The pod.
        uid: PodUid,
        /// The container, where known.
        container_id: Option<String>,
        /// A missing cgroup counts as empty (the pod is gone, no record of its end will come).
        missing_is_empty: bool,
    },
    /// Delete the pod; repeated until the API server has it.
    DeletePod {
        /// Precondition.
        uid: PodUid,
    },
    /// Release the pod's finalizer; repeated until done.
    RemoveFinalizer {
        /// Precondition.
        uid: PodUid,
    },
    /// End the attempt at the gateway.
    Revoke,
    /// The container has ended: read its log to its end and complete the streams. Again when more is known of
    /// the end.
    CloseStreams,
    /// Arm a timer, replacing one of the same kind.
    ArmTimer {
        /// Which.
        timer: Timer,
        /// When.
        at: BootTime,
    },
    /// The image volume does not work on this node: deliver the runner by init container.
    SwitchDelivery {
        /// The kubelet's words.
        message: String,
    },
    /// The kubelet's exit code differs from the runner's.
    ExitMismatch {
        /// The runner's.
        reported: i32,
        /// The kubelet's.
        recorded: i32,
    },
    /// The attempt leaves the ledger.
    Drop,
}
