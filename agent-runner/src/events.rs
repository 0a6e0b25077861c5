//! Typed events of the agent: bounded, batched, sent at least once.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use agent_operator::{
    attempt::{BODY_BYTES_MAX, EVENTS_PER_REQUEST_MAX, EventsAnswer, EventsRequest},
    domain::{
        event::{AgentEvent, EventRecord},
        limits::EVENT_BYTES_MAX,
        text::head_and_tail,
    },
};

use crate::{attempt::CallError, clock};

/// Events waiting for the gateway: some minutes of a busy agent, small beside its own memory.
const QUEUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long events gather before they are sent; readers see it as latency.
const FLUSH_INTERVAL: Duration = Duration::from_millis(200);
/// Pause after a refused or failed request.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// A batch stays well below the largest body.
const BATCH_BYTES_MAX: usize = BODY_BYTES_MAX / 2;
/// What stands for a dropped tool output.
const LEFT_OUT: &str = "[left out: events came faster than they could be sent]";

/// Queue of events between the agent's reader and the sender thread.
#[derive(Default)]
pub(crate) struct Events {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(EventRecord, usize)>,
    bytes: usize,
    sending: usize,
    acknowledged: u64,
    dropped: u64,
    refused: bool,
}

impl Events {
    /// Queues `event`; never blocks. When the queue is full, the oldest tool outputs go first.
    pub(crate) fn push(&self, event: AgentEvent) {
        let (record, bytes) = bounded(EventRecord { time: clock::wall_now(), event });
        let mut state = self.lock();
        if state.refused {
            return;
        }
        if state.bytes + bytes > QUEUE_BYTES_MAX {
            state.shed(bytes);
        }
        state.bytes += bytes;
        state.waiting.push_back((record, bytes));
        drop(state);
        self.changed.notify_all();
    }

    /// Number of events that the node has.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.lock().acknowledged
    }

    /// Waits until all events are sent, at most for `limit`.
    pub(crate) fn flush(&self, limit: Duration) {
        let pending =
            |state: &mut State| !state.refused && (!state.waiting.is_empty() || state.sending > 0);
        drop(self.changed.wait_timeout_while(self.lock(), limit, pending));
    }

    /// Sends events by `send` until it is refused for good. Runs on a thread of its own.
    pub(crate) fn send_all(
        &self,
        mut send: impl FnMut(&EventsRequest) -> Result<EventsAnswer, CallError>,
    ) {
        loop {
            let mut request = self.next_batch();
            while !request.records.is_empty() {
                match send(&request) {
                    Ok(answer) => self.acknowledge(&mut request, answer.next),
                    Err(error) if error.is_retryable() => pause(RETRY_PAUSE),
                    Err(_) => return self.refuse(),
                }
            }
            pause(FLUSH_INTERVAL);
        }
    }

    fn next_batch(&self) -> EventsRequest {
        let empty = |state: &mut State| state.waiting.is_empty();
        let mut state =
            self.changed.wait_while(self.lock(), empty).unwrap_or_else(PoisonError::into_inner);
        let mut records = Vec::new();
        let mut batch_bytes = 0;
        while let Some((_, bytes)) = state.waiting.front() {
            if records.len() == EVENTS_PER_REQUEST_MAX
                || (batch_bytes + bytes > BATCH_BYTES_MAX && !records.is_empty())
            {
                break;
            }
            let Some((record, bytes)) = state.waiting.pop_front() else { break };
            batch_bytes += bytes;
            state.bytes -= bytes;
            records.push(record);
        }
        state.sending = records.len();
        EventsRequest { first: state.acknowledged, records }
    }

    fn acknowledge(&self, request: &mut EventsRequest, next: u64) {
        let last = request.first + request.records.len() as u64;
        // A number outside the batch would lose or double events; the batch counts as taken whole.
        let next = if (request.first..=last).contains(&next) { next } else { last };
        let taken = usize::try_from(next - request.first).unwrap_or(request.records.len());
        if taken == 0 {
            pause(FLUSH_INTERVAL);
        }
        request.records.drain(..taken);
        request.first = next;
        let mut state = self.lock();
        state.acknowledged = next;
        state.sending = request.records.len();
        drop(state);
        self.changed.notify_all();
    }

    fn refuse(&self) {
        let mut state = self.lock();
        state.refused = true;
        state.waiting.clear();
        drop(state);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Counters and queue change under one lock and without calls that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Makes room for `bytes`: tool outputs first, then whole events, oldest first.
    fn shed(&mut self, bytes: usize) {
        for (record, size) in &mut self.waiting {
            if self.bytes + bytes <= QUEUE_BYTES_MAX {
                return;
            }
            if let AgentEvent::ToolResult { output, .. } = &mut record.event
                && output.len() > LEFT_OUT.len()
            {
                let saved = (output.len() - LEFT_OUT.len()).min(*size);
                LEFT_OUT.clone_into(output);
                *size -= saved;
                self.bytes -= saved;
            }
        }
        while self.bytes + bytes > QUEUE_BYTES_MAX {
            let Some((_, size)) = self.waiting.pop_front() else { return };
            self.bytes -= size;
            self.dropped += 1;
        }
        let text = format!("[{} events left out: they came too fast]", self.dropped);
        let record = EventRecord { time: clock::wall_now(), event: AgentEvent::Status { text } };
        let (record, size) = bounded(record);
        self.bytes += size;
        self.waiting.push_front((record, size));
    }
}

/// Cuts the record's text until its JSON fits [`EVENT_BYTES_MAX`]; returns its size too.
fn bounded(mut record: EventRecord) -> (EventRecord, usize) {
    let mut limit = EVENT_BYTES_MAX;
    loop {
        let size = serde_json::to_vec(&record).map_or(0, |json| json.len());
        if size <= EVENT_BYTES_MAX || limit < 64 {
            return (record, size);
        }
        // Escapes can make a byte six, so one cut may not do.
        limit /= 2;
        let cut = |text: &mut String| *text = head_and_tail(text, limit);
        match &mut record.event {
            AgentEvent::Status { text } | AgentEvent::Text { text } => cut(text),
            AgentEvent::ToolCall { id, name, input } => [id, name, input].into_iter().for_each(cut),
            AgentEvent::ToolResult { id, output, .. } => [id, output].into_iter().for_each(cut),
            AgentEvent::Usage { .. } => return (record, size),
        }
    }
}

fn pause(duration: Duration) {
    let _ = clock::sleep_until(clock::boot_now() + duration);
}

#[cfg(test)]
mod tests;
