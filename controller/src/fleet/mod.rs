//! Supervisors as the controller sees them: who is connected, what can be sent to them, what they
//! say. In memory only; rebuilt from Hellos after a restart. Wire types do not reach this module.
//!
//! This is the boundary between the gRPC edge (which implements [`Nodes`] and emits [`NodeEvent`])
//! and the deciding side (which uses them).

pub mod judging;
pub mod memory;
pub mod preflights;
pub mod sessions;
pub mod watchdog;

use agent_operator::domain::{
    Assignment, Attempt, Credential, Epoch, NodeName, PreflightOrder, PreflightReport, Reason,
    RunKey, RunPhase, RunRef,
    assignment::TaskBudget,
    ids::{BootId, InstanceId},
    report::Report,
};

/// A connected node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Its name.
    pub name: NodeName,
    /// The supervisor process.
    pub instance: InstanceId,
    /// The node's boot.
    pub boot: BootId,
    /// Most agent pods at once.
    pub slots: u32,
    /// Attempts that are live there, as last reported.
    pub running: u32,
    /// Highest epoch the node has obeyed; the Lease must never fall below it.
    pub highest_epoch: Epoch,
    /// `imageVolume` or `initContainer`; `auto`: not tried yet.
    pub runner_delivery: String,
    /// Whether it is of a version that can be asked for a preflight.
    pub asks_preflights: bool,
    /// Whether it is of a version that can hold an attempt at its gate.
    pub holds: bool,
}

pub use judging::Judging;

/// An attempt that a supervisor named in its Hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownAttempt {
    /// The run as an object.
    pub run: RunRef,
    /// Its attempt.
    pub attempt: Attempt,
    /// Epoch of the assignment.
    pub epoch: Epoch,
    /// Where it stands in the ledger.
    pub phase: RunPhase,
}

/// What the deciding side sends to a node.
#[derive(Clone, Debug)]
pub enum Command {
    /// Run an attempt; idempotent.
    Assign {
        /// The order.
        assignment: Box<Assignment>,
        /// Its credentials, in memory only; none for a node that has the attempt already.
        credentials: Vec<Credential>,
        /// The run was created for this very order: no node was ever told of it before.
        first: bool,
    },
    /// End an attempt.
    Cancel {
        /// The attempt.
        run: RunKey,
        /// Term of the controller.
        epoch: Epoch,
        /// `Cancelled`, `Deleted` or `BudgetExceeded`.
        reason: Reason,
        /// One sentence.
        message: String,
    },
    /// The report is recorded in the run's status (or the run is gone).
    ReportAck {
        /// The attempt.
        run: RunKey,
        /// The report's number.
        sequence: u64,
    },
    /// Credentials that the node's gateway has lost.
    Credentials {
        /// The attempt.
        run: RunKey,
        /// Term of the controller.
        epoch: Epoch,
        /// All of them.
        credentials: Vec<Credential>,
    },
    /// Say what stands in the way of a task.
    Preflight {
        /// The order.
        order: Box<PreflightOrder>,
        /// The task's credentials, in memory only.
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
    /// The run is recorded or gone: release the pod's finalizer and let retention take the rest.
    Forget {
        /// The attempt.
        run: RunKey,
    },
}

/// What nodes say.
#[derive(Clone, Debug)]
pub enum NodeEvent {
    /// A supervisor has opened its session.
    Connected {
        /// The node.
        node: NodeView,
        /// What its ledger holds.
        known: Vec<KnownAttempt>,
        /// Told when each of these has been judged, and the opening itself taken note of.
        judging: Judging,
    },
    /// The session is gone, or silent for longer than the node lease.
    Disconnected {
        /// The node.
        node: NodeName,
    },
    /// Answer to [`Command::Assign`].
    AssignmentAck {
        /// The node.
        node: NodeName,
        /// The attempt.
        run: RunKey,
        /// Why it was refused, and a sentence; none: journalled.
        refused: Option<(String, String)>,
    },
    /// A report; to be answered by [`Command::ReportAck`] once recorded.
    Report {
        /// The node.
        node: NodeName,
        /// The report.
        report: Box<Report>,
    },
    /// Answer to [`Command::Preflight`].
    Preflight {
        /// The node.
        node: NodeName,
        /// What stands in the way.
        report: Box<PreflightReport>,
    },
    /// The gateway of the node has lost credentials.
    NeedCredentials {
        /// The node.
        node: NodeName,
        /// The attempts.
        runs: Vec<RunKey>,
    },
}

/// A command could not be handed over; the next reconcile sees the node's state and tries again.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SendError {
    /// No session with this node.
    #[error("node {0} is not connected")]
    NotConnected(NodeName),
    /// The session's queue is full.
    #[error("the session of node {0} is congested")]
    Congested(NodeName),
}

/// The connected nodes.
pub trait Nodes: Send + Sync {
    /// All connected nodes.
    fn snapshot(&self) -> Vec<NodeView>;

    /// Queues a command on a node's session without waiting.
    fn send(&self, node: &NodeName, command: Command) -> Result<(), SendError>;
}
