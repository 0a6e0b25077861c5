//! What the rest of the process knows of the election: the present term, who leads instead, and the
//! epoch below which no term may fall.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

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
pub struct Leadership {
    terms: watch::Receiver<Option<Term>>,
    leader: watch::Receiver<Option<Leader>>,
    address: Option<Arc<str>>,
}

/// Another replica that holds the Lease, as it was last read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// `host:port` of its gRPC port; none when it did not say.
    pub address: Option<String>,
}

impl Leadership {
    /// Wraps a channel of terms, for a process that never hears of another leader.
    pub fn new(terms: watch::Receiver<Option<Term>>) -> Self {
        Self::beside(terms, watch::channel(None).1)
    }

    /// Wraps the election's channels.
    pub fn beside(
        terms: watch::Receiver<Option<Term>>,
        leader: watch::Receiver<Option<Leader>>,
    ) -> Self {
        Self { terms, leader, address: None }
    }

    /// The same for a process that nodes reach at `address` (`host:port`), whoever else stands behind
    /// the Service.
    #[must_use]
    pub fn at(self, address: Option<String>) -> Self {
        Self { address: address.map(Arc::from), ..self }
    }

    /// Where nodes reach this very process; none where it was not told.
    pub fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    /// The present term, if it holds at `now`.
    pub fn term(&self, now: Instant) -> Option<Term> {
        self.terms.borrow().filter(|term| now < term.valid_until)
    }

    /// Waits for the next change of term.
    pub async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.terms.changed().await
    }

    /// The replica that leads instead of this one, as far as it is known. None while this one leads,
    /// and while nobody is known to: the API server may be away, and then everybody goes on with what
    /// they have.
    pub fn other(&self) -> Option<Leader> {
        self.leader.borrow().clone()
    }

    /// Waits until another replica is known to lead.
    pub async fn superseded(&self) -> Leader {
        let mut leader = self.leader.clone();
        match leader.wait_for(Option::is_some).await.map(|other| other.clone()) {
            Ok(Some(other)) => other,
            // The election has ended, and nobody will tell any more.
            Ok(None) | Err(_) => pending().await,
        }
    }
}

/// The highest epoch that a supervisor reported: a Lease that was deleted and made again must not
/// bring the epoch below it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct EpochFloor(Arc<AtomicU64>);

impl EpochFloor {
    /// Takes note of an epoch that a node has obeyed.
    pub fn raise(&self, epoch: Epoch) {
        self.0.fetch_max(epoch.0, Ordering::SeqCst);
    }

    /// The highest epoch noted.
    pub fn get(&self) -> Epoch {
        Epoch(self.0.load(Ordering::SeqCst))
    }
}
