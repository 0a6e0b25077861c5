//! What is fetched for one attempt, the repository and its issue: started as soon as the credentials
//! are there, so that the runner does not wait for it; asked for again by `GET /v1/step` when it
//! failed.

use std::time::Duration;

use agent_operator::{
    attempt::{IssueText, StepRepository},
    domain::Reason,
};
use tokio::sync::watch;

/// What a step starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// The repository.
    pub repository: StepRepository,
    /// The task's issue, for the steps that read it.
    pub issue: Option<IssueText>,
}

/// Why a step cannot start yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Reason that the step should end with.
    pub reason: Option<Reason>,
    /// One sentence with the remedy.
    pub message: String,
    /// Whether another try may succeed.
    pub retryable: bool,
    /// How long to wait before it, if somebody said so.
    pub wait: Option<Duration>,
}

#[derive(Clone, Debug)]
enum Progress {
    Idle,
    Running,
    Ready(Box<Prepared>),
    Failed(Failure),
}

/// Progress of the preparation, shared by who runs it and who waits for it.
#[derive(Debug)]
pub struct Preparation(watch::Sender<Progress>);

impl Default for Preparation {
    fn default() -> Self {
        Self(watch::Sender::new(Progress::Idle))
    }
}

impl Preparation {
    /// True when the caller has to run the preparation now and [`Preparation::finish`] it.
    pub fn begin(&self) -> bool {
        self.0.send_if_modified(|progress| {
            let due = match progress {
                Progress::Idle => true,
                Progress::Failed(failure) => failure.retryable,
                Progress::Running | Progress::Ready(_) => false,
            };
            if due {
                *progress = Progress::Running;
            }
            due
        })
    }

    /// New credentials may succeed where earlier ones failed for good.
    pub fn forget_failure(&self) {
        self.0.send_if_modified(|progress| {
            let failed = matches!(progress, Progress::Failed(_));
            if failed {
                *progress = Progress::Idle;
            }
            failed
        });
    }

    /// Ends what [`Preparation::begin`] started.
    pub fn finish(&self, result: Result<Prepared, Failure>) {
        self.0.send_replace(match result {
            Ok(prepared) => Progress::Ready(Box::new(prepared)),
            Err(failure) => Progress::Failed(failure),
        });
    }

    /// The repository, if it is ready.
    pub fn ready(&self) -> Option<StepRepository> {
        match &*self.0.borrow() {
            Progress::Ready(prepared) => Some(prepared.repository.clone()),
            _ => None,
        }
    }

    /// Waits for the end of a running preparation.
    pub async fn wait(&self) -> Result<Prepared, Failure> {
        let mut progress = self.0.subscribe();
        let over =
            |progress: &Progress| matches!(progress, Progress::Ready(_) | Progress::Failed(_));
        // The sender lives as long as `self`, so the wait cannot fail.
        match progress.wait_for(over).await.as_deref() {
            Ok(Progress::Ready(prepared)) => Ok((**prepared).clone()),
            Ok(Progress::Failed(failure)) => Err(failure.clone()),
            _ => Err(Failure {
                reason: None,
                message: "the preparation was given up".to_owned(),
                retryable: true,
                wait: None,
            }),
        }
    }
}
