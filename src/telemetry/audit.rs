//! The audit: one record for each act that somebody may have to account for, written once, by the
//! process that did it, as a log line with the target `audit` and fields whose names stay.
//!
//! No filter leaves these lines out (see `logs`). A record says who (task, run, attempt) and what,
//! never what was in it: no prompt, no body, no credential.

use super::ids::trace_of;
use crate::domain::{Assignment, Epoch, TaskUid};

/// Target of the lines.
pub const TARGET: &str = "audit";

/// Whom an act is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject<'a> {
    /// Namespace of the task and its runs.
    pub namespace: &'a str,
    /// The task.
    pub task: &'a str,
    /// Its uid.
    pub task_uid: &'a TaskUid,
    /// The run; empty for what is done before there is one.
    pub run: &'a str,
    /// Its uid; empty with it.
    pub run_uid: &'a str,
    /// The step.
    pub step: &'a str,
    /// The attempt; 0 where there is no run.
    pub attempt: u32,
}

impl<'a> From<&'a Assignment> for Subject<'a> {
    fn from(of: &'a Assignment) -> Self {
        Self {
            namespace: &of.run.namespace,
            task: &of.task.name,
            task_uid: &of.task.uid,
            run: &of.run.name,
            run_uid: of.run.uid.as_str(),
            step: of.step.as_str(),
            attempt: of.attempt.0,
        }
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act<'a> {
    /// The controller has read a key of a Secret, to send it to a node.
    SecretRead {
        /// Name of the Secret.
        secret: &'a str,
        /// The key in it.
        key: &'a str,
        /// The only host that it goes to.
        host: &'a str,
        /// The node that gets it.
        node: &'a str,
    },
    /// A node has taken an attempt on; it stands in the node's journal.
    Assigned {
        /// The node.
        node: &'a str,
        /// Term of the controller that ordered it.
        epoch: Epoch,
    },
    /// A node's gateway holds a credential for the attempt from now on.
    CredentialHandedOut {
        /// Its id within the attempt.
        id: &'a str,
        /// What it is for.
        purpose: &'a str,
        /// The only host that it goes to.
        host: &'a str,
    },
    /// The work branch has moved upstream.
    Pushed {
        /// Repository as the task names it.
        repository: &'a str,
        /// The branch.
        branch: &'a str,
        /// Its tip.
        commit: &'a str,
    },
    /// A pull request was opened.
    PullRequestOpened {
        /// Its address.
        url: &'a str,
    },
    /// A request of the sandbox was refused. The first of each kind and target; how many there were
    /// stands in `status.refusals`.
    Refused {
        /// Kind, as in `status.refusals`.
        kind: &'a str,
        /// Target, as there.
        target: &'a str,
    },
}

impl Act<'_> {
    /// The word of the field `act`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::SecretRead { .. } => "secret_read",
            Self::Assigned { .. } => "assigned",
            Self::CredentialHandedOut { .. } => "credential_handed_out",
            Self::Pushed { .. } => "pushed",
            Self::PullRequestOpened { .. } => "pull_request_opened",
            Self::Refused { .. } => "refused",
        }
    }
}

/// Writes the record of `act` for the attempt `of`.
pub fn record<'a>(of: impl Into<Subject<'a>>, act: &Act<'_>) {
    let of = of.into();
    // Each call site of the macro has one list of fields, so the common ones are repeated by a macro.
    macro_rules! line {
        ($($field:tt)*) => {
            tracing::info!(
                target: TARGET,
                act = act.as_str(),
                namespace = of.namespace,
                task = of.task,
                task_uid = %of.task_uid,
                run = of.run,
                run_uid = of.run_uid,
                step = of.step,
                attempt = of.attempt,
                trace_id = %trace_of(of.task_uid),
                $($field)*
            )
        };
    }
    match *act {
        Act::SecretRead { secret, key, host, node } => {
            line!(secret, key, host, node, "secret read");
        }
        Act::Assigned { node, epoch } => line!(node, epoch = epoch.0, "attempt taken on"),
        Act::CredentialHandedOut { id, purpose, host } => {
            line!(credential = id, purpose, host, "credential handed out");
        }
        Act::Pushed { repository, branch, commit } => {
            line!(repository, branch, commit, "work branch pushed");
        }
        Act::PullRequestOpened { url } => line!(url, "pull request opened"),
        Act::Refused { kind, target } => line!(kind, refused = target, "request refused"),
    }
}
