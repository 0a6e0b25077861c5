//! Messages that must reach the supervisor's disk: kept here and sent again after each connect, in
//! order, until acknowledged.
//!
//! Bounded: an attempt whose messages are not taken gets 503 for further ones, so a supervisor that
//! is away costs the gateway no more than [`BYTES_MAX`] and [`RESERVED_BYTES`]. Who repeats a message
//! that waits already waits with it.

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
/// Further messages of the node for what an attempt came to, which must find its place whatever waits
/// before it: results, published commits and pull requests of hundreds of attempts.
const RESERVED: usize = 1024;
/// Further such messages of one attempt: it has one result, and few steps publish twice.
const RESERVED_PER_ATTEMPT: usize = 16;
/// Further bytes for them: hundreds of results with the longest outputs (about 40 KiB each).
const RESERVED_BYTES: usize = 16 * 1024 * 1024;

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
    /// Who waits for it: usually one, and those who have asked again.
    acked: Vec<oneshot::Sender<()>>,
}

impl Waiting {
    /// Number of event records in it.
    fn records(&self) -> usize {
        match &self.event {
            DurableEvent::Events { records, .. } => records.len(),
            _ => 0,
        }
    }

    /// One more who waits for it.
    fn ticket(&mut self) -> Ticket {
        let (acked, answer) = oneshot::channel();
        self.acked.retain(|asked| !asked.is_closed());
        self.acked.push(acked);
        Ticket { answer, records: self.records() }
    }
}

/// Whether `event` was queued as `queued` before, by a call whose answer nobody waited for. A batch is
/// named by its first number: what is asked again may have grown meanwhile. Of results an attempt has
/// only one.
fn repeats(event: &DurableEvent, queued: &DurableEvent) -> bool {
    match (event, queued) {
        (DurableEvent::Events { first, .. }, DurableEvent::Events { first: queued, .. }) => {
            first == queued
        }
        (DurableEvent::Result { .. }, DurableEvent::Result { .. }) => true,
        (event, queued) => event == queued,
    }
}

/// Whether an event says what an attempt came to.
fn is_reserved_for(event: &DurableEvent) -> bool {
    match event {
        DurableEvent::Published { .. }
        | DurableEvent::PullRequestOpened(_)
        | DurableEvent::Result { .. } => true,
        DurableEvent::Redeemed(_) | DurableEvent::AtGate(_) | DurableEvent::Events { .. } => false,
    }
}

#[derive(Debug, Default)]
struct Queue {
    next_id: u64,
    bytes: usize,
    waiting: BTreeMap<u64, Waiting>,
}

impl Queue {
    /// The message of `run` that `event` repeats: the last of its kind, for an older one was superseded.
    fn repeated(&mut self, run: &RunKey, event: &DurableEvent) -> Option<&mut Waiting> {
        let kind = std::mem::discriminant(event);
        let mut of_run = self.waiting.values_mut().rev().filter(|waiting| waiting.run == *run);
        let last = of_run.find(|waiting| std::mem::discriminant(&waiting.event) == kind)?;
        repeats(event, &last.event).then_some(last)
    }

    /// Whether there is room for `event` of `run`.
    fn has_room(&self, run: &RunKey, event: &DurableEvent, bytes: usize) -> bool {
        let (more, more_of_run, more_bytes) = if is_reserved_for(event) {
            (RESERVED, RESERVED_PER_ATTEMPT, RESERVED_BYTES)
        } else {
            (0, 0, 0)
        };
        let of_run = self.waiting.values().filter(|waiting| waiting.run == *run).count();
        self.waiting.len() < MESSAGES_MAX + more
            && of_run < MESSAGES_PER_ATTEMPT_MAX + more_of_run
            && self.bytes + bytes <= BYTES_MAX + more_bytes
            && bytes <= EVENT_BYTES_MAX
    }
}

/// The messages that wait. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Outbox {
    queue: Arc<Mutex<Queue>>,
    news: Arc<Notify>,
}

/// A message on its way.
#[derive(Debug)]
pub struct Ticket {
    answer: oneshot::Receiver<()>,
    records: usize,
}

impl Ticket {
    /// Number of event records in the message that is waited for.
    pub fn records(&self) -> usize {
        self.records
    }

    /// Waits until the supervisor has the message on disk. False when it never will: the attempt
    /// is over.
    pub async fn acked(self) -> bool {
        self.answer.await.is_ok()
    }
}

impl Outbox {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message, or waits with the one that it repeats.
    pub fn send(&self, run: &RunKey, event: DurableEvent) -> Result<Ticket, Full> {
        let bytes = serde_json::to_vec(&event).map_or(0, |json| json.len());
        let mut queue = self.queue();
        if let Some(queued) = queue.repeated(run, &event) {
            return Ok(queued.ticket());
        }
        if !queue.has_room(run, &event, bytes) {
            return Err(Full);
        }
        let id = queue.next_id;
        queue.next_id += 1;
        queue.bytes += bytes;
        let mut waiting = Waiting { run: run.clone(), event, bytes, acked: Vec::new() };
        let ticket = waiting.ticket();
        queue.waiting.insert(id, waiting);
        drop(queue);
        self.news.notify_one();
        Ok(ticket)
    }

    /// The supervisor has message `id` on disk. An unknown id is a repetition.
    pub fn ack(&self, id: u64) {
        let mut queue = self.queue();
        if let Some(waiting) = queue.waiting.remove(&id) {
            queue.bytes -= waiting.bytes;
            for asked in waiting.acked {
                // Who has given up asks again, and is answered by the attempt's state.
                let _ = asked.send(());
            }
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
    use agent_operator::domain::{
        Attempt, RunUid, Usage,
        event::{AgentEvent, EventRecord},
        report::PullRequest,
    };

    use super::*;
    use crate::{clock, testing};

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

    fn batch(first: u64, records: usize) -> DurableEvent {
        let record = EventRecord {
            time: clock::now().wall,
            event: AgentEvent::Text { text: "x".to_owned() },
        };
        DurableEvent::Events { first, records: vec![record; records] }
    }

    fn result(turns: u64) -> DurableEvent {
        let usage = Usage { turns, ..Usage::default() };
        let result = Box::new(testing::completed());
        DurableEvent::Result { result, usage, refusals: Vec::new() }
    }

    fn fill(outbox: &Outbox, run: &RunKey) {
        for number in 0..MESSAGES_PER_ATTEMPT_MAX {
            outbox.send(run, batch(number as u64, 1)).unwrap();
        }
    }

    #[test]
    fn one_attempt_cannot_fill_the_queue() {
        let outbox = Outbox::default();
        fill(&outbox, &key("a"));
        assert_eq!(outbox.send(&key("a"), batch(1000, 1)).unwrap_err(), Full);
        assert!(outbox.send(&key("b"), batch(0, 1)).is_ok());
    }

    #[tokio::test]
    async fn who_asks_again_waits_with_the_message_that_is_queued() {
        let outbox = Outbox::default();
        let run = key("a");
        drop(outbox.send(&run, batch(0, 2)).unwrap());
        let (again, grown) = (outbox.send(&run, batch(0, 2)), outbox.send(&run, batch(0, 3)));
        let (again, grown) = (again.unwrap(), grown.unwrap());
        assert_eq!((again.records(), grown.records()), (2, 2), "only these are on their way");
        drop(outbox.send(&run, result(1)).unwrap());
        let counted_on = outbox.send(&run, result(2)).unwrap();
        assert_eq!(outbox.queue().waiting.len(), 2);
        outbox.ack(0);
        outbox.ack(1);
        assert!(again.acked().await && grown.acked().await && counted_on.acked().await);
        assert_eq!(outbox.queue().bytes, 0);
    }

    #[test]
    fn a_commit_that_was_published_before_another_one_is_told_once_more() {
        let outbox = Outbox::default();
        for number in [1, 2, 1] {
            drop(outbox.send(&key("a"), event(number)).unwrap());
        }
        drop(outbox.send(&key("a"), event(1)).unwrap());
        assert_eq!(outbox.queue().waiting.len(), 3, "the last word is the one that counts");
    }

    #[test]
    fn what_an_attempt_came_to_finds_its_place_in_a_full_queue() {
        let outbox = Outbox::default();
        let run = key("a");
        fill(&outbox, &run);
        assert!(outbox.send(&run, result(1)).is_ok());
        assert!(outbox.send(&run, event(1)).is_ok());
        for number in (2..).take(RESERVED_PER_ATTEMPT - 2) {
            outbox.send(&run, event(number)).unwrap();
        }
        assert_eq!(outbox.send(&run, event(1000)).unwrap_err(), Full, "the reserve has an end");
    }
}
