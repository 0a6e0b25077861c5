//! Leader election by a Lease, with an epoch that is raised in the same write.

use agent_operator::domain::Epoch;
use tokio::{sync::watch, time::Instant};

/// A term of leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// Its number.
    pub epoch: Epoch,
    /// When it ends unless renewed, by this process's monotonic clock.
    pub valid_until: Instant,
}

/// Whether this process leads, for everybody who has to ask before a write.
#[derive(Clone, Debug)]
pub struct Leadership(watch::Receiver<Option<Term>>);

impl Leadership {
    /// Wraps the election's channel.
    pub fn new(terms: watch::Receiver<Option<Term>>) -> Self {
        Self(terms)
    }

    /// The present term, if it holds at `now`.
    pub fn term(&self, now: Instant) -> Option<Term> {
        self.0.borrow().filter(|term| now < term.valid_until)
    }

    /// Waits for the next change of term.
    pub async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.0.changed().await
    }
}
