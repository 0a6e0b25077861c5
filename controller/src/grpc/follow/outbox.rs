//! Events on their way to one follower: bounded by bytes, and given up when nobody takes them.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use agent_operator::proto::v1::StepEvent;
use prost::Message as _;
use tokio::{sync::Notify, time::timeout};
use tokio_stream::Stream;
use tonic::Status;

use super::Stop;

/// Bytes that wait for a follower's connection: as much as one batch of lines, little enough that a
/// thousand followers that do not read stay small.
const WAITING_BYTES_MAX: usize = 128 * 1024;

/// How long a follower may take nothing at all before it is dropped. Longer than any hiccup of a
/// network; a person who holds the terminal goes on from the last cursor.
pub(in crate::grpc) const STALL_MAX: Duration = Duration::from_mins(1);

#[allow(clippy::option_option, reason = "not ended, ended well, ended with a status")]
#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<StepEvent>,
    bytes: usize,
    /// Nothing more comes; with a status if it ended early.
    ended: Option<Option<Status>>,
    /// The follower has gone.
    gone: bool,
    reader: Option<Waker>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Something was taken, or the follower has gone. One waits at most: the teller.
    taken: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The teller's end.
#[derive(Debug)]
pub(in crate::grpc) struct Outbox(Arc<Shared>);

/// The connection's end.
#[derive(Debug)]
pub(in crate::grpc) struct Events(Arc<Shared>);

/// Both ends.
pub(in crate::grpc) fn outbox() -> (Outbox, Events) {
    let shared = Arc::<Shared>::default();
    (Outbox(shared.clone()), Events(shared))
}

impl Outbox {
    /// Puts an event on its way; waits for as long as the follower is slow, but not for one that has
    /// stopped.
    pub(super) async fn send(&self, event: StepEvent) -> Result<(), Stop> {
        let size = event.encoded_len();
        loop {
            {
                let mut state = self.0.lock();
                if state.gone {
                    return Err(Stop::Gone);
                }
                // One event always fits, however long.
                if state.waiting.is_empty() || state.bytes + size <= WAITING_BYTES_MAX {
                    state.waiting.push_back(event);
                    state.bytes += size;
                    if let Some(reader) = state.reader.take() {
                        reader.wake();
                    }
                    return Ok(());
                }
            }
            if timeout(STALL_MAX, self.0.taken.notified()).await.is_err() {
                return Err(Stop::Stalled);
            }
        }
    }

    /// Waits until the follower has gone.
    pub(super) async fn closed(&self) {
        while !self.0.lock().gone {
            self.0.taken.notified().await;
        }
    }

    /// Nothing more comes. A follower that has stalled loses what waits for it: its own last cursor is
    /// where it goes on, and its memory is free.
    pub(in crate::grpc) fn end(&self, why: Result<(), Stop>) {
        let mut state = self.0.lock();
        if state.ended.is_some() {
            return;
        }
        state.ended = Some(match why {
            Ok(()) | Err(Stop::Gone) => None,
            Err(Stop::Status(status)) => Some(status),
            Err(Stop::Stalled) => {
                state.waiting = VecDeque::new();
                let text = "the follower took nothing for a minute; go on from the last cursor";
                Some(Status::resource_exhausted(text))
            }
        });
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }
}

impl Stream for Events {
    type Item = Result<StepEvent, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = self.0.lock();
        if let Some(event) = state.waiting.pop_front() {
            state.bytes -= event.encoded_len();
            drop(state);
            self.0.taken.notify_one();
            return Poll::Ready(Some(Ok(event)));
        }
        if let Some(status) = &mut state.ended {
            return Poll::Ready(status.take().map(Err));
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.gone = true;
        state.waiting = VecDeque::new();
        drop(state);
        self.0.taken.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use agent_operator::proto::v1::{LogLine, step_event::Event};
    use tokio_stream::StreamExt as _;

    use super::*;

    fn line(bytes: usize) -> StepEvent {
        let line = LogLine { text: "x".repeat(bytes), partial: false };
        StepEvent { event: Some(Event::Log(line)), ..StepEvent::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_that_takes_nothing_is_dropped_with_a_reason_and_holds_nothing() {
        let (outbox, mut events) = outbox();
        let mut sent = 0;
        let why = loop {
            match outbox.send(line(1000)).await {
                Ok(()) => sent += 1,
                Err(why) => break why,
            }
        };
        assert!(matches!(why, Stop::Stalled));
        assert!((120..=131).contains(&sent), "{sent} events of 1,000 bytes waited");
        outbox.end(Err(why));
        let status = events.next().await.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert!(events.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_follower_gets_everything_in_order() {
        let (outbox, mut events) = outbox();
        let telling = async {
            for size in 0..500 {
                outbox.send(line(size)).await.ok().unwrap();
            }
            outbox.end(Ok(()));
        };
        let reading = async {
            let mut sizes = Vec::new();
            while let Some(Ok(event)) = events.next().await {
                let Some(Event::Log(line)) = event.event else { panic!() };
                sizes.push(line.text.len());
                tokio::time::sleep(STALL_MAX / 2).await;
            }
            sizes
        };
        let ((), sizes) = tokio::join!(telling, reading);
        assert_eq!(sizes, (0..500).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_follower_that_leaves_is_noticed_by_whoever_waits() {
        let (outbox, events) = outbox();
        let leaving = async { drop(events) };
        tokio::join!(outbox.closed(), leaving);
        assert!(matches!(outbox.send(line(1)).await, Err(Stop::Gone)));
    }
}
