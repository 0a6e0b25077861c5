//! One slot for each attempt: its operations take turns, its streams are counted, and all of them
//! end when it ends.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use agent_operator::domain::RunKey;
use tokio::sync::{MutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::error::GitError;

/// Git processes that serve one attempt at a time: a clone uses one, parallel tools a few.
const STREAMS_PER_ATTEMPT_MAX: usize = 4;
/// Git processes that serve sandboxes of this node at a time, each of tens of megabytes.
const STREAMS_MAX: usize = 32;

/// All slots.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Mutex<HashMap<RunKey, Arc<Slot>>>,
    streams: Arc<Semaphore>,
}

impl Default for Slots {
    fn default() -> Self {
        Self { slots: Mutex::default(), streams: Arc::new(Semaphore::new(STREAMS_MAX)) }
    }
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
                node_streams: Arc::clone(&self.streams),
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
    node_streams: Arc<Semaphore>,
}

/// The right to one stream; given back when dropped.
#[derive(Debug)]
pub(super) struct StreamPermit {
    _attempt: OwnedSemaphorePermit,
    _node: OwnedSemaphorePermit,
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

    /// A stream, if this attempt and this node have one left.
    pub(super) fn stream(&self) -> Option<StreamPermit> {
        let attempt = Arc::clone(&self.streams).try_acquire_owned().ok()?;
        let node = Arc::clone(&self.node_streams).try_acquire_owned().ok()?;
        Some(StreamPermit { _attempt: attempt, _node: node })
    }
}
