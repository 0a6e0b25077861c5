//! Permission to write upstream: given by the controller under its epoch, valid for a few seconds.
//!
//! A gateway that is cut off from the leader loses it by itself, so a node that was replaced can
//! keep a commit in quarantine but can no longer move a branch or open a pull request. It goes by the
//! boot-time clock: a node that was suspended wakes up without it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use agent_operator::domain::Epoch;
use tokio_util::sync::CancellationToken;

use crate::{clock, steps::moment::BootTime};

/// Longest validity that is believed: a permission must lapse soon after the leader is gone, also
/// when a faulty sender names a huge number.
const VALID_MAX: Duration = Duration::from_secs(30);
/// How often a write that is under way looks whether it still may.
const LOOK: Duration = Duration::from_millis(200);

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
    valid_until: BootTime,
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

/// The live permission, shared by everything that writes upstream. Cheap to clone; each write goes
/// through [`Permit::during`], never several through one.
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
        let _ = permit.renew(epoch, valid, clock::boot());
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
    pub fn renew(&self, epoch: Epoch, valid: Duration, now: BootTime) -> Result<(), StaleEpoch> {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = given.map(|given| given.epoch).filter(|seen| *seen > epoch) {
            return Err(StaleEpoch { offered: epoch, seen });
        }
        *given = Some(Given { epoch, valid_until: now.plus(valid.min(VALID_MAX)) });
        Ok(())
    }

    /// The epoch under which a write may go out now.
    pub fn check(&self) -> Result<Epoch, PermitError> {
        self.check_at(clock::boot())
    }

    /// [`Permit::check`] at a given time.
    pub fn check_at(&self, now: BootTime) -> Result<Epoch, PermitError> {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        match *given {
            _ if self.ended.is_cancelled() => Err(PermitError::Ended),
            _ if self.claim.is_lost() => Err(PermitError::Unclaimed),
            None => Err(PermitError::Missing),
            Some(given) if given.valid_until <= now => Err(PermitError::Lapsed),
            Some(given) => Ok(given.epoch),
        }
    }
    /// Does `write` while the permission stands. A write that is under way when it ends is given up and
    /// not awaited: whoever replaces the attempt waits for the permission to lapse, not for a slow push.
    /// Renewals prolong it.
    pub async fn during<T>(&self, write: impl Future<Output = T>) -> Result<T, PermitError> {
        self.check()?;
        tokio::select! {
            biased;
            written = write => Ok(written),
            error = self.lost() => Err(error),
        }
    }

    async fn lost(&self) -> PermitError {
        loop {
            if let Err(error) = self.check() {
                return error;
            }
            tokio::select! {
                () = self.ended.cancelled() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: BootTime = BootTime(1_000_000_000);

    fn after(seconds: u64) -> BootTime {
        NOW.plus(Duration::from_secs(seconds))
    }

    #[test]
    fn a_permission_lapses_by_itself() {
        let permit = Permit::none();
        assert_eq!(permit.check_at(NOW), Err(PermitError::Missing));
        permit.renew(Epoch(2), Duration::from_secs(5), NOW).unwrap();
        assert_eq!(permit.check_at(after(4)), Ok(Epoch(2)));
        assert_eq!(permit.check_at(after(5)), Err(PermitError::Lapsed));
    }

    #[test]
    fn an_attempt_that_has_to_end_or_that_nobody_claims_has_no_permission_whatever_its_node_has() {
        let (permit, ended) = (Permit::none(), CancellationToken::new());
        let claim = Claim::default();
        let of_attempt = permit.of_attempt(&ended, &claim);
        permit.renew(Epoch(2), Duration::from_secs(5), NOW).unwrap();
        assert_eq!(of_attempt.check_at(NOW), Ok(Epoch(2)));
        claim.set(false);
        assert_eq!(of_attempt.check_at(NOW), Err(PermitError::Unclaimed));
        claim.set(true);
        assert_eq!(of_attempt.check_at(NOW), Ok(Epoch(2)));
        ended.cancel();
        assert_eq!(of_attempt.check_at(NOW), Err(PermitError::Ended));
        assert_eq!(permit.check_at(NOW), Ok(Epoch(2)));
    }

    #[test]
    fn an_older_epoch_neither_gives_nor_prolongs_permission() {
        let permit = Permit::none();
        permit.renew(Epoch(7), Duration::from_secs(5), NOW).unwrap();
        let stale = permit.renew(Epoch(6), Duration::from_mins(1), NOW);
        assert_eq!(stale, Err(StaleEpoch { offered: Epoch(6), seen: Epoch(7) }));
        assert_eq!(permit.check_at(after(6)), Err(PermitError::Lapsed));
    }

    #[test]
    fn a_huge_validity_is_cut() {
        let permit = Permit::none();
        permit.renew(Epoch(1), Duration::from_millis(u64::MAX), NOW).unwrap();
        assert_eq!(permit.check_at(NOW.plus(VALID_MAX)), Err(PermitError::Lapsed));
    }

    #[tokio::test]
    async fn a_write_without_permission_is_not_begun() {
        let begun = std::cell::Cell::new(false);
        let written = Permit::none().during(async { begun.set(true) }).await;
        assert_eq!((written, begun.get()), (Err(PermitError::Missing), false));
    }

    #[tokio::test]
    async fn a_write_that_is_under_way_is_given_up_when_its_attempt_has_to_end_or_nobody_claims_it()
    {
        let (ended, claim) = (CancellationToken::new(), Claim::default());
        let node = Permit::granted(Epoch(1), VALID_MAX);
        let permit = node.of_attempt(&ended, &claim);
        assert_eq!(permit.during(async { 7 }).await, Ok(7));
        let unclaimed = async {
            claim.set(false);
            std::future::pending::<()>().await;
        };
        assert_eq!(permit.during(unclaimed).await, Err(PermitError::Unclaimed));
        claim.set(true);
        let stopped = async {
            ended.cancel();
            std::future::pending::<()>().await;
        };
        assert_eq!(permit.during(stopped).await, Err(PermitError::Ended));
    }

    #[tokio::test]
    async fn a_write_that_is_under_way_is_given_up_when_the_permission_lapses_and_not_before() {
        let permit = Permit::granted(Epoch(1), VALID_MAX);
        assert_eq!(permit.during(tokio::time::sleep(LOOK * 2)).await, Ok(()));
        let lapses = async {
            permit.renew(Epoch(1), Duration::ZERO, clock::boot()).unwrap();
            std::future::pending::<()>().await;
        };
        assert_eq!(permit.during(lapses).await, Err(PermitError::Lapsed));
    }
}
