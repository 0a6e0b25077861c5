//! Messages that must reach the supervisor's disk: kept here and sent again after each connect, in
//! order, until acknowledged.
//!
//! Bounded: an attempt whose messages are not taken gets 503 for further ones, so a supervisor that
//! is away costs the gateway no more than [`BYTES_MAX`].

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use agent_operator::domain::RunKey;
use tokio::sync::{Notify, oneshot};

use crate::link::contract::{DurableEvent, FRAME_BYTES_MAX, FromGateway};

/// Most unacknowledged messages of the node.
const MESSAGES_MAX: usize = 4096;
/// Most unacknowledged messages of one attempt: a runner waits for each, so more is an attack.
const MESSAGES_PER_ATTEMPT_MAX: usize = 64;
/// Most unacknowledged bytes, by their JSON form.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// Longest event: a frame has to hold it with its envelope, or no connection would ever pass it.
const EVENT_BYTES_MAX: usize = FRAME_BYTES_MAX - 64 * 1024;

/// No more messages are taken until some are acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node's supervisor does not take messages at present")]
pub struct Full;

#[derive(Debug)]
struct Waiting {
    run: RunKey,
    event: DurableEvent,
    bytes: usize,
    acked: oneshot::Sender<()>,
}

#[derive(Debug, Default)]
struct Queue {
    next_id: u64,
    bytes: usize,
    waiting: BTreeMap<u64, Waiting>,
}

/// The messages that wait. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Outbox {
    queue: Arc<Mutex<Queue>>,
    news: Arc<Notify>,
}

/// A message on its way.
#[derive(Debug)]
pub struct Ticket(oneshot::Receiver<()>);

impl Ticket {
    /// Waits until the supervisor has the message on disk. False when it never will: the attempt
    /// is over.
    pub async fn acked(self) -> bool {
        self.0.await.is_ok()
    }
}

impl Outbox {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message.
    pub fn send(&self, run: &RunKey, event: DurableEvent) -> Result<Ticket, Full> {
        let bytes = serde_json::to_vec(&event).map_or(0, |json| json.len());
        let mut queue = self.queue();
        let of_run = queue.waiting.values().filter(|waiting| waiting.run == *run).count();
        if queue.waiting.len() >= MESSAGES_MAX
            || of_run >= MESSAGES_PER_ATTEMPT_MAX
            || queue.bytes + bytes > BYTES_MAX
            || bytes > EVENT_BYTES_MAX
        {
            return Err(Full);
        }
        let id = queue.next_id;
        queue.next_id += 1;
        queue.bytes += bytes;
        let (acked, ticket) = oneshot::channel();
        queue.waiting.insert(id, Waiting { run: run.clone(), event, bytes, acked });
        drop(queue);
        self.news.notify_one();
        Ok(Ticket(ticket))
    }

    /// The supervisor has message `id` on disk. An unknown id is a repetition.
    pub fn ack(&self, id: u64) {
        let mut queue = self.queue();
        if let Some(waiting) = queue.waiting.remove(&id) {
            queue.bytes -= waiting.bytes;
            // The asker may have given up; its repetition is answered by the attempt's state.
            let _ = waiting.acked.send(());
        }
    }

    /// Drops the messages of an attempt that is over; who waits is told so.
    pub fn forget(&self, run: &RunKey) {
        let mut queue = self.queue();
        let mut freed = 0;
        queue.waiting.retain(|_, waiting| {
            let keep = waiting.run != *run;
            if !keep {
                freed += waiting.bytes;
            }
            keep
        });
        queue.bytes -= freed;
    }

    /// The first message with an id of at least `from`, and its id.
    pub fn first_from(&self, from: u64) -> Option<(u64, FromGateway)> {
        let queue = self.queue();
        let (id, waiting) = queue.waiting.range(from..).next()?;
        let message = FromGateway::Durable {
            id: *id,
            run: waiting.run.clone(),
            event: waiting.event.clone(),
        };
        Some((*id, message))
    }

    /// Waits for a new message. May return without one.
    pub async fn news(&self) {
        self.news.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use agent_operator::domain::{Attempt, RunUid, report::PullRequest};

    use super::*;

    fn key(uid: &str) -> RunKey {
        RunKey { uid: RunUid::from(uid), attempt: Attempt(1) }
    }

    fn event(number: i64) -> DurableEvent {
        DurableEvent::PullRequestOpened(PullRequest { url: "https://x/1".to_owned(), number })
    }

    #[tokio::test]
    async fn messages_stay_in_order_until_they_are_acknowledged() {
        let outbox = Outbox::default();
        let first = outbox.send(&key("a"), event(1)).unwrap();
        let _second = outbox.send(&key("a"), event(2)).unwrap();
        for _ in 0..2 {
            let (id, _) = outbox.first_from(0).unwrap();
            assert_eq!(id, 0, "not acknowledged, so it is sent again after a reconnect");
        }
        assert_eq!(outbox.first_from(1).unwrap().0, 1);
        outbox.ack(0);
        outbox.ack(0);
        assert!(first.acked().await);
        assert_eq!(outbox.first_from(0).unwrap().0, 1);
    }

    #[tokio::test]
    async fn who_waits_for_an_attempt_that_is_over_is_told_so() {
        let outbox = Outbox::default();
        let ticket = outbox.send(&key("a"), event(1)).unwrap();
        let other = outbox.send(&key("b"), event(1)).unwrap();
        outbox.forget(&key("a"));
        assert!(!ticket.acked().await);
        outbox.ack(1);
        assert!(other.acked().await);
        assert_eq!(outbox.queue().bytes, 0);
    }

    #[test]
    fn one_attempt_cannot_fill_the_queue() {
        let outbox = Outbox::default();
        for _ in 0..MESSAGES_PER_ATTEMPT_MAX {
            outbox.send(&key("a"), event(1)).unwrap();
        }
        assert_eq!(outbox.send(&key("a"), event(1)).unwrap_err(), Full);
        assert!(outbox.send(&key("b"), event(1)).is_ok());
    }
}
