//! Looks for another leader beside a session whose controller gives no permission to write any more.
//!
//! Such a controller has lost its term: either nobody leads (the API server is away), and then this
//! session is the best there is, or another replica does and this one cannot see it. So the session
//! stays until another controller has accepted a second one. What leads answers within one lease.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use agent_operator::domain::{limits::LEASE_DURATION, text::error_chain};
use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::time::Instant;

use super::{Opened, Session, SessionError};
/// Silence after which permission counts as withdrawn: another replica can lead one lease after the
/// last renewal, and it takes a moment to begin.
const UNPERMITTED_MAX: Duration = LEASE_DURATION.saturating_mul(2);
/// First pause between two rounds of looking.
const PAUSE_MIN: Duration = Duration::from_secs(5);
/// Longest: an outage of the API server takes minutes, and all nodes look at the same time.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Tries of one round: the Service leads to any of the replicas, also to the one of this session.
const TRIES: u32 = 4;

/// Notes that the controller leads.
pub(super) fn note(permitted: &Mutex<Instant>) {
    *permitted.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
}

impl Session {
    /// Waits until permissions stay away and another controller has accepted a session.
    pub(super) async fn seek(&self, permitted: &Mutex<Instant>) -> Opened {
        let last = || *permitted.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let due = last() + UNPERMITTED_MAX;
            if due > Instant::now() {
                tokio::time::sleep_until(due).await;
                continue;
            }
            let mut pauses = ExponentialBuilder::default()
                .with_min_delay(PAUSE_MIN)
                .with_max_delay(PAUSE_MAX)
                .with_jitter()
                .without_max_times()
                .build();
            while last() + UNPERMITTED_MAX <= Instant::now() {
                for _ in 0..TRIES {
                    match self.open_pointed().await {
                        Ok(opened) => return opened,
                        Err(error) => {
                            tracing::debug!(error = %error_chain(&error), "no other controller leads");
                        }
                    }
                }
                tokio::time::sleep(pauses.next().unwrap_or(PAUSE_MAX)).await;
            }
        }
    }

    /// Opens a session by the Service, or where the replica behind it says that the leader is.
    async fn open_pointed(&self) -> Result<Opened, SessionError> {
        match self.open(&self.settings.address).await {
            Err(SessionError::Rejected { leader: Some(leader), .. }) => self.open(&leader).await,
            other => other,
        }
    }
}
