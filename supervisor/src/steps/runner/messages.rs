//! What comes to the runner through its one queue, and what it says to the controller.

use std::{collections::BTreeSet, time::Duration};

use agent_operator::domain::{
    Assignment, Credential, Epoch, PreflightOrder, PreflightReport, Reason, RunKey, RunPhase,
    RunRef, assignment::TaskBudget, report::Report,
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    ledger::Delivery,
    link::contract::{FromGateway, ToGateway},
    steps::{
        event::{Event, PodDigest},
        stranger::Look,
    },
};

/// What happens on the node.
#[derive(Debug)]
pub enum Input {
    /// The controller assigns an attempt.
    Assign {
        /// The order.
        assignment: Box<Assignment>,
        /// Its credentials, in passage.
        credentials: Vec<Credential>,
        /// The run was created for this very order, so no earlier life of this supervisor can have
        /// heard of it.
        first: bool,
    },
    /// The controller ends an attempt.
    Cancel {
        /// The attempt.
        run: RunKey,
        /// Term of the controller.
        epoch: Epoch,
        /// Reason to end with.
        reason: Reason,
        /// One sentence.
        message: String,
        /// Time for the runner; none: the assignment's.
        grace: Option<Duration>,
    },
    /// The controller has recorded a report.
    ReportAck {
        /// The attempt.
        run: RunKey,
        /// The report's number.
        sequence: u64,
    },
    /// Credentials that the gateway asked for, in passage.
    Credentials {
        /// The attempt.
        run: RunKey,
        /// Term of the controller.
        epoch: Epoch,
        /// All of them.
        credentials: Vec<Credential>,
    },
    /// A changed budget.
    Budget {
        /// The attempt.
        run: RunKey,
        /// Term of the controller.
        epoch: Epoch,
        /// What is left.
        budget: Option<TaskBudget>,
    },
    /// The controller asks what stands in the way of a task.
    Preflight {
        /// The order.
        order: Box<PreflightOrder>,
        /// The task's credentials, in passage.
        credentials: Vec<Credential>,
    },
    /// Permission to write upstream.
    Permit {
        /// Term of the controller.
        epoch: Epoch,
        /// For how long from now.
        valid: Duration,
    },
    /// The controller needs nothing of the attempt any more.
    Forget(RunKey),
    /// A session is up; what is to be said goes here.
    SessionUp {
        /// Term of the controller.
        epoch: Epoch,
        /// The session's queue.
        outgoing: mpsc::Sender<Outgoing>,
    },
    /// The session with this queue is over.
    SessionDown,
    /// Asks what the ledger holds.
    Snapshot(oneshot::Sender<Snapshot>),
    /// The link to the gateway is up; what is to be said goes here.
    LinkUp(mpsc::Sender<ToGateway>),
    /// The link to the gateway is down.
    LinkDown,
    /// The gateway speaks.
    Gateway(FromGateway),
    /// What the gateway has said, and what the enforcer had dropped of the pod by then.
    Counted {
        /// The gateway's words.
        message: FromGateway,
        /// Packets; none where nobody could say.
        dropped: Option<u64>,
    },
    /// A worker has news of an attempt.
    Attempt {
        /// The attempt.
        run: RunKey,
        /// The news.
        event: Box<Event>,
    },
    /// The watch shows a pod.
    PodSeen {
        /// The attempt that it belongs to.
        run: RunKey,
        /// The pod.
        digest: Box<PodDigest>,
    },
    /// The watch shows the end of a pod object.
    PodMissing(RunKey),
    /// The watch has listed a namespace anew; pods that it did not show may be gone.
    PodsListed {
        /// The namespace.
        namespace: String,
        /// The attempts with a pod.
        seen: BTreeSet<RunKey>,
    },
    /// The attempts in the memory of the gateway that the link comes up to next.
    GatewayKnows(Vec<RunKey>),
    /// Run and pod of an attempt without an entry were looked at.
    Looked {
        /// The attempt.
        run: RunKey,
        /// What the API server has.
        look: Box<Look>,
    },
    /// A new pod should have been scheduled by now.
    CheckScheduled(RunKey),
    /// Image volumes do not work on this node.
    SwitchDelivery(String),
}

/// What the session says to the controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// Answer to an assignment.
    AssignmentAck {
        /// The attempt.
        run: RunKey,
        /// Its epoch.
        epoch: Epoch,
        /// Reason and sentence of a refusal; none: journalled and started.
        refused: Option<(String, String)>,
    },
    /// A report.
    Report(Box<Report>),
    /// The gateway lacks credentials.
    NeedCredentials(Vec<RunKey>),
    /// What the gateway found in the way of a task.
    Preflight(Box<PreflightReport>),
}

/// An attempt that the controller has not acknowledged the end of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The run.
    pub run: RunRef,
    /// The attempt.
    pub key: RunKey,
    /// Its epoch.
    pub epoch: Epoch,
    /// Where it stands.
    pub phase: RunPhase,
}

/// What a Hello tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Attempts.
    pub known: Vec<Known>,
    /// Highest epoch obeyed.
    pub highest_epoch: Epoch,
    /// How the runner gets into pods.
    pub delivery: Option<Delivery>,
    /// Attempts without an outcome.
    pub running: u32,
}
