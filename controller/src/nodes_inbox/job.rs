//! What one node said about one run, as something to work off, now or later.

use std::time::Duration;

use agent_operator::domain::{
    NodeName, RunKey,
    report::{Report, RunState},
};
use tokio::time::Instant;

use crate::{
    apply::ApplyError,
    clock,
    credentials::CredentialError,
    fleet::{Judging, KnownAttempt, SendError},
    observe::ObserveError,
};

/// Interval at which jobs that failed are tried again: one write a run in this time at most.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Longest time between two tries of the same job.
const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(30);
/// Least time before a write is tried again that the API server refused for its contents (403, 413,
/// 422): it will again.
const REFUSED_INTERVAL: Duration = RETRY_INTERVAL_MAX;

/// Something to work off.
#[derive(Clone, Debug)]
pub(super) enum Job {
    /// Record it, then acknowledge.
    Report {
        /// Who said it.
        node: NodeName,
        /// What.
        report: Box<Report>,
    },
    /// Check that an attempt in a ledger is still wanted.
    Known {
        /// Whose ledger.
        node: NodeName,
        /// The attempt.
        attempt: Box<KnownAttempt>,
        /// Told of the verdict.
        judging: Judging,
    },
    /// A session has opened.
    Opened {
        /// With whom.
        node: NodeName,
        /// Told that it was taken note of.
        judging: Judging,
    },
    /// An assignment was not taken.
    Refused {
        /// By whom.
        node: NodeName,
        /// Which.
        run: RunKey,
        /// Word of the wire.
        reason: String,
        /// Sentence.
        message: String,
    },
    /// Send the credentials again.
    Credentials {
        /// To whom.
        node: NodeName,
        /// For which attempt.
        run: RunKey,
    },
}

impl Job {
    /// Jobs of the same key replace one another while they wait.
    pub(super) fn key(&self) -> (u8, String) {
        match self {
            Self::Report { report, .. } => {
                let kind = match report.state {
                    RunState::Finished(_) => 0,
                    RunState::Waiting(_) | RunState::Running(_) | RunState::Unknown { .. } => 1,
                    RunState::ExitMismatch { .. } => 5,
                };
                (kind, report.run.uid.to_string())
            }
            Self::Known { attempt, .. } => (2, attempt.run.uid.to_string()),
            Self::Refused { run, .. } => (3, run.uid.to_string()),
            Self::Credentials { run, .. } => (4, run.uid.to_string()),
            Self::Opened { node, .. } => (6, node.to_string()),
        }
    }
}

/// Why a job is tried again later.
#[derive(Debug, thiserror::Error)]
pub(super) enum JobError {
    /// Reading.
    #[error("look at the run")]
    Observe(#[from] ObserveError),
    /// Writing.
    #[error("write or answer")]
    Apply(#[from] ApplyError),
    /// Secrets.
    #[error("read credentials")]
    Credentials(#[from] CredentialError),
    /// An order that must not be lost.
    #[error("have an attempt ended")]
    Cancel(#[from] SendError),
}

impl JobError {
    /// Whether the API server has refused what was written for its contents.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Apply(error) if matches!(error.code(), Some(403 | 413 | 422)))
    }
}

/// A job that waits for another try.
pub(super) struct Parked {
    pub(super) job: Job,
    /// How often it was tried.
    pub(super) tries: u32,
    /// When it is tried again at the earliest.
    pub(super) due: Instant,
}

impl Parked {
    /// A job that has failed by `error`, after so many tries before.
    pub(super) fn after(job: Job, tries: u32, error: &JobError) -> Self {
        let wait =
            RETRY_INTERVAL.saturating_mul(2_u32.saturating_pow(tries)).min(RETRY_INTERVAL_MAX);
        let wait = if error.is_refusal() { wait.max(REFUSED_INTERVAL) } else { wait };
        Self { job, tries: tries.saturating_add(1), due: clock::instant() + wait }
    }
}
