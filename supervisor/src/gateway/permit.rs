//! Permission to write upstream: given by the controller under its epoch, valid for a few seconds.
//!
//! A gateway that is cut off from the leader loses it by itself, so a node that was replaced can
//! keep a commit in quarantine but can no longer move a branch or open a pull request.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use agent_operator::domain::Epoch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Longest validity that is believed: a permission must lapse soon after the leader is gone, also
/// when a faulty sender names a huge number.
const VALID_MAX: Duration = Duration::from_secs(30);

/// Why nothing may be written upstream at this moment. Retryable: the link may heal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PermitError {
    /// None was given since the start.
    #[error("no permission to write upstream has been given yet; the commit waits in quarantine")]
    Missing,
    /// The last one is too old.
    #[error("the permission to write upstream has lapsed; the commit waits in quarantine")]
    Lapsed,
    /// It was asked for by an attempt that its supervisor has no record of.
    #[error("the node has lost its records of the attempt; the commit waits in quarantine")]
    Unclaimed,
    /// It was asked for by an attempt that has to end.
    #[error("the attempt was told to end; the commit stays in quarantine")]
    Ended,
}

/// A permission with an older epoch than one already seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("refuse a permission of epoch {offered}: epoch {seen} has been seen")]
pub struct StaleEpoch {
    /// The epoch offered.
    pub offered: Epoch,
    /// The highest epoch seen.
    pub seen: Epoch,
}

#[derive(Clone, Copy, Debug)]
struct Given {
    epoch: Epoch,
    valid_until: Instant,
}

/// Whether the supervisor has a record of an attempt: then its Hellos name it, so that the controller has
/// it ended before it permits the node to write, if it was given up. Cheap to clone; claimed by default.
#[derive(Clone, Debug, Default)]
pub struct Claim {
    lost: Arc<AtomicBool>,
}

impl Claim {
    /// The supervisor asks about an attempt of which it has no record, or has one again.
    pub fn set(&self, claimed: bool) {
        self.lost.store(!claimed, Ordering::Release);
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }
}

/// The live permission, shared by everything that writes upstream. Cheap to clone; ask
/// [`Permit::check`] right before each write, never once for several.
#[derive(Clone, Debug, Default)]
pub struct Permit {
    given: Arc<Mutex<Option<Given>>>,
    /// Whoever this handle is for may write until then, ...
    ended: CancellationToken,
    /// ... and only while this stands.
    claim: Claim,
}

impl Permit {
    /// No permission at all: the state after a start.
    pub fn none() -> Self {
        Self::default()
    }

    /// A permission for tests and tools that run without a controller.
    pub fn granted(epoch: Epoch, valid: Duration) -> Self {
        let permit = Self::none();
        // A fresh permit has seen no epoch, so none is stale.
        let _ = permit.renew(epoch, valid, Instant::now());
        permit
    }

    /// The same permission for an attempt that has it only until `ended`, and only while its supervisor
    /// claims it. What comes of either while a write is being prepared counts, although the node's own
    /// permission is renewed behind it.
    #[must_use]
    pub fn of_attempt(&self, ended: &CancellationToken, claim: &Claim) -> Self {
        Self { given: Arc::clone(&self.given), ended: ended.clone(), claim: claim.clone() }
    }

    /// Takes a renewal that was received at `now` and holds for `valid`.
    pub fn renew(&self, epoch: Epoch, valid: Duration, now: Instant) -> Result<(), StaleEpoch> {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = given.map(|given| given.epoch).filter(|seen| *seen > epoch) {
            return Err(StaleEpoch { offered: epoch, seen });
        }
        *given = Some(Given { epoch, valid_until: now + valid.min(VALID_MAX) });
        Ok(())
    }

    /// The epoch under which a write may go out now.
    pub fn check(&self) -> Result<Epoch, PermitError> {
        self.check_at(Instant::now())
    }

    /// [`Permit::check`] at a given time.
    pub fn check_at(&self, now: Instant) -> Result<Epoch, PermitError> {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        match *given {
            _ if self.ended.is_cancelled() => Err(PermitError::Ended),
            _ if self.claim.is_lost() => Err(PermitError::Unclaimed),
            None => Err(PermitError::Missing),
            Some(given) if given.valid_until <= now => Err(PermitError::Lapsed),
            Some(given) => Ok(given.epoch),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_permission_lapses_by_itself() {
        let permit = Permit::none();
        assert_eq!(permit.check(), Err(PermitError::Missing));
        permit.renew(Epoch(2), Duration::from_secs(5), Instant::now()).unwrap();
        assert_eq!(permit.check(), Ok(Epoch(2)));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(permit.check(), Err(PermitError::Lapsed));
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_has_to_end_or_that_nobody_claims_has_no_permission_whatever_its_node_has()
     {
        let (permit, ended) = (Permit::none(), CancellationToken::new());
        let claim = Claim::default();
        let of_attempt = permit.of_attempt(&ended, &claim);
        permit.renew(Epoch(2), Duration::from_secs(5), Instant::now()).unwrap();
        assert_eq!(of_attempt.check(), Ok(Epoch(2)));
        claim.set(false);
        assert_eq!(of_attempt.check(), Err(PermitError::Unclaimed));
        claim.set(true);
        assert_eq!(of_attempt.check(), Ok(Epoch(2)));
        ended.cancel();
        assert_eq!(of_attempt.check(), Err(PermitError::Ended));
        assert_eq!(permit.check(), Ok(Epoch(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_epoch_neither_gives_nor_prolongs_permission() {
        let permit = Permit::granted(Epoch(7), Duration::from_secs(5));
        let stale = permit.renew(Epoch(6), Duration::from_mins(1), Instant::now());
        assert_eq!(stale, Err(StaleEpoch { offered: Epoch(6), seen: Epoch(7) }));
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!(permit.check(), Err(PermitError::Lapsed));
    }

    #[tokio::test(start_paused = true)]
    async fn a_huge_validity_is_cut() {
        let permit = Permit::granted(Epoch(1), Duration::from_millis(u64::MAX));
        tokio::time::advance(VALID_MAX).await;
        assert_eq!(permit.check(), Err(PermitError::Lapsed));
    }
}
