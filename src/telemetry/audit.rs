//! The audit: one record for each act that somebody may have to account for, written once, by the
//! process that did it, as a log line with the target `audit` and fields whose names stay.
//!
//! No filter leaves these lines out (see `logs`). A record says who (task, run, attempt) and what,
//! never what was in it: no prompt, no body, no credential.

use super::ids::trace_of;
use crate::domain::{Assignment, Epoch};

/// Target of the lines.
pub const TARGET: &str = "audit";

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act<'a> {
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
            Self::Assigned { .. } => "assigned",
            Self::CredentialHandedOut { .. } => "credential_handed_out",
            Self::Pushed { .. } => "pushed",
            Self::PullRequestOpened { .. } => "pull_request_opened",
            Self::Refused { .. } => "refused",
        }
    }
}

/// Writes the record of `act` for the attempt `of`.
pub fn record(of: &Assignment, act: &Act<'_>) {
    // Each call site of the macro has one list of fields, so the common ones are repeated by a macro.
    macro_rules! line {
        ($($field:tt)*) => {
            tracing::info!(
                target: TARGET,
                act = act.as_str(),
                namespace = of.run.namespace,
                task = of.task.name,
                task_uid = %of.task.uid,
                run = of.run.name,
                run_uid = %of.run.uid,
                step = of.step.as_str(),
                attempt = of.attempt.0,
                trace_id = %trace_of(&of.task.uid),
                $($field)*
            )
        };
    }
    match *act {
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
