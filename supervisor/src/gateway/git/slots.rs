//! One slot for each attempt: its operations take turns, its streams are counted, and all of them
//! end when it ends.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use agent_operator::domain::RunKey;
use tokio::sync::{MutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{
    error::GitError,
    heaps::{HeapPermit, Heaps},
};

/// Requests of one attempt at a time: a clone uses one, parallel tools a few. There is no limit for the
/// node beside it, which a few attempts could use up for all: those of one attempt take turns at
/// running git, and [`Heaps`] bounds how many run.
const STREAMS_PER_ATTEMPT_MAX: usize = 4;

/// All slots.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: Mutex<HashMap<RunKey, Arc<Slot>>>,
}

impl Slots {
    /// The attempt's slot.
    pub(super) fn get(&self, run: &RunKey) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(run.clone()).or_insert_with(|| {
            Arc::new(Slot {
                turn: tokio::sync::Mutex::new(()),
                ended: CancellationToken::new(),
                streams: Arc::new(Semaphore::new(STREAMS_PER_ATTEMPT_MAX)),
                serving: Arc::new(Semaphore::new(1)),
            })
        }))
    }

    /// The attempts that have a slot.
    pub(super) fn runs(&self) -> Vec<RunKey> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.keys().cloned().collect()
    }

    /// Ends the attempt's operations and forgets its slot.
    pub(super) fn end(&self, run: &RunKey) -> Option<Arc<Slot>> {
        let slot = self.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(run)?;
        slot.ended.cancel();
        Some(slot)
    }
}

/// One attempt's slot.
#[derive(Debug)]
pub(super) struct Slot {
    turn: tokio::sync::Mutex<()>,
    ended: CancellationToken,
    streams: Arc<Semaphore>,
    serving: Arc<Semaphore>,
}

/// The right to one stream; given back when dropped.
#[derive(Debug)]
pub(super) struct StreamPermit {
    _attempt: OwnedSemaphorePermit,
}

/// The right to run git for a stream; given back when dropped.
#[derive(Debug)]
pub(super) struct StreamHeap {
    _attempt: Option<OwnedSemaphorePermit>,
    _node: HeapPermit,
}

impl Slot {
    /// Waits until no other operation on the attempt's repositories runs.
    pub(super) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Cancelled when the attempt ends.
    pub(super) fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Runs `operation` unless and until the attempt ends; its git child is killed then.
    pub(super) async fn unless_ended<T>(
        &self,
        operation: impl Future<Output = Result<T, GitError>>,
    ) -> Result<T, GitError> {
        match self.ended.run_until_cancelled(operation).await {
            Some(result) => result,
            None => Err(GitError::AttemptEnded),
        }
    }

    /// Whether no stream of the attempt is open.
    pub(super) fn is_idle(&self) -> bool {
        self.streams.available_permits() == STREAMS_PER_ATTEMPT_MAX
    }

    /// A stream, if this attempt has one left.
    pub(super) fn stream(&self) -> Option<StreamPermit> {
        let attempt = Arc::clone(&self.streams).try_acquire_owned().ok()?;
        Some(StreamPermit { _attempt: attempt })
    }

    /// Waits for `count` heaps to run git for a stream: one stream of an attempt after the other, so that
    /// no attempt alone has what all share.
    pub(super) async fn heap(&self, heaps: &Heaps, count: u32) -> StreamHeap {
        // The semaphore is never closed, so an error cannot come.
        let attempt = Arc::clone(&self.serving).acquire_owned().await.ok();
        StreamHeap { _attempt: attempt, _node: heaps.take_for_stream(count).await }
    }
}

#[cfg(test)]
mod tests {
    use agent_operator::domain::Attempt;
    use futures::FutureExt as _;

    use super::*;

    fn key(uid: &str) -> RunKey {
        RunKey { uid: uid.into(), attempt: Attempt(1) }
    }

    #[test]
    fn attempts_that_take_all_the_streams_they_may_have_leave_each_other_theirs() {
        let slots = Slots::default();
        let mut open = Vec::new();
        for number in 0..100 {
            let slot = slots.get(&key(&format!("run-{number}")));
            open.extend((0..STREAMS_PER_ATTEMPT_MAX).map(|_| slot.stream().unwrap()));
            assert!(slot.stream().is_none());
        }
    }

    #[tokio::test]
    async fn the_streams_of_one_attempt_run_one_git_and_leave_another_a_heap() {
        let (slots, heaps) = (Slots::default(), Heaps::default());
        let (greedy, other) = (slots.get(&key("a")), slots.get(&key("b")));
        let held = greedy.heap(&heaps, 1).await;
        let mut next = Box::pin(greedy.heap(&heaps, 1));
        assert!(next.as_mut().now_or_never().is_none());
        drop(other.heap(&heaps, 1).await);
        drop(held);
        next.await;
    }
}
