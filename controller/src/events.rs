//! Kubernetes events, best effort: they tell people what happened and carry no decision, so they
//! never hold one up.

use agent_operator::{
    crd::{AgentRun, CodingTask},
    domain::{RunRef, text::truncate},
};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{clock, plan::EventNote};

/// Events that wait to be written; beyond it they are dropped, and counted in the log.
const QUEUE_MAX: usize = 1024;
/// Kubernetes' limit for the note of an event.
const NOTE_BYTES_MAX: usize = 1024;
/// Longest wait for one event to be written.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an event waits before it is written: what happens is followed at once by the writes of what comes next, and
/// people do not wait for events as the next step waits for its pod.
const BEHIND: Duration = Duration::from_millis(200);
/// Events after which the recorder begins anew. It keeps each for six minutes, to count what repeats instead of writing it
/// again, and looks through all of them for each; of a busy fleet these are tens of thousands. What repeats, a task that is
/// tried again and again, does so within fewer.
const REMEMBERED_MAX: usize = 512;
/// Pause between two lines about dropped events: when they are dropped, it is by the hundred.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// An event that waits to be written.
struct Waiting {
    about: ObjectReference,
    note: EventNote,
    since: Instant,
}

/// Takes events without waiting.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::Sender<Waiting>,
    dropped: Arc<AtomicU64>,
}

/// Writes events; to be run as one task.
pub struct EventWriter {
    queue: mpsc::Receiver<Waiting>,
    client: Client,
    reporter: Reporter,
    recorder: Recorder,
    /// Events that the recorder keeps at most.
    remembered: usize,
    dropped: Arc<AtomicU64>,
    /// When dropped events were last told of.
    told: Option<Instant>,
}

/// A queue and its writer. `identity` names this process in the events.
pub fn events(client: Client, identity: &str) -> (Events, EventWriter) {
    let (sender, queue) = mpsc::channel(QUEUE_MAX);
    let reporter = Reporter {
        controller: "agents.wearn.dev/controller".to_owned(),
        instance: Some(truncate(identity, 128).to_owned()),
    };
    let dropped = Arc::<AtomicU64>::default();
    let recorder = Recorder::new(client.clone(), reporter.clone());
    let events = Events { queue: sender, dropped: Arc::clone(&dropped) };
    (events, EventWriter { queue, client, reporter, recorder, remembered: 0, dropped, told: None })
}

impl Events {
    /// Queues an event about a task or, if the note names one, about a run of it.
    pub fn publish(&self, task: &CodingTask, note: EventNote) {
        let reference = note.run.as_ref().map_or_else(|| task.object_ref(&()), run_reference);
        self.queue(reference, note);
    }

    /// Queues an event about a run.
    pub fn publish_run(&self, run: &AgentRun, note: EventNote) {
        self.queue(run.object_ref(&()), note);
    }

    fn queue(&self, about: ObjectReference, note: EventNote) {
        let waiting = Waiting { about, note, since: clock::instant() };
        if self.queue.try_send(waiting).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl EventWriter {
    /// Writes events until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        while let Some(Some(next)) = shutdown.run_until_cancelled(self.next()).await {
            self.write(next).await;
            self.tell_of_dropped();
        }
    }

    async fn write(&mut self, Waiting { about, note, .. }: Waiting) {
        let event = Event {
            type_: if note.warning { EventType::Warning } else { EventType::Normal },
            reason: note.reason,
            note: Some(truncate(&note.note, NOTE_BYTES_MAX).to_owned()),
            action: note.action,
            secondary: None,
        };
        let write = self.recorder().publish(&event, &about);
        match tokio::time::timeout(CALL_TIMEOUT, write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = %error, "write an event"),
            Err(_) => tracing::warn!("write an event: no answer in time"),
        }
    }

    /// The recorder for one more event.
    fn recorder(&mut self) -> &Recorder {
        if self.remembered >= REMEMBERED_MAX {
            self.recorder = Recorder::new(self.client.clone(), self.reporter.clone());
            self.remembered = 0;
        }
        self.remembered += 1;
        &self.recorder
    }

    /// The next event, once it is due; none when nobody is left to queue one.
    async fn next(&mut self) -> Option<Waiting> {
        let next = self.queue.recv().await?;
        tokio::time::sleep_until(next.since + BEHIND).await;
        Some(next)
    }

    /// They are dropped while the queue is full, so an event that was written is always near.
    fn tell_of_dropped(&mut self) {
        let now = clock::instant();
        if self.told.is_some_and(|told| now.duration_since(told) < TOLD_EVERY) {
            return;
        }
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            tracing::warn!(dropped, "events were dropped: more came than could be written");
            self.told = Some(now);
        }
    }
}

fn run_reference(run: &RunRef) -> ObjectReference {
    ObjectReference {
        api_version: Some(AgentRun::api_version(&()).into_owned()),
        kind: Some(AgentRun::kind(&()).into_owned()),
        namespace: Some(run.namespace.clone()),
        name: Some(run.name.clone()),
        uid: Some(run.uid.to_string()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests;
