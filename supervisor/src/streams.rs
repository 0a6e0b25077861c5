//! The byte streams of attempts, kept on the node's disk until retention ends and uploaded from the
//! offset that the controller acknowledges.
//!
//! - [`spool`]: one stream on disk: append-only segments addressed by offset.
//! - [`gaps`]: its holes, with their reasons and exact sizes.
//! - [`budget`]: what all of them may hold together.
//! - [`upload`]: carries all spools over one Stream RPC.
//!
//! This module is the registry of both, and the retention.

pub mod budget;
pub mod gaps;
mod slots;
pub mod spool;
pub mod upload;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use agent_operator::domain::{
    Attempt, RunKey, RunRef, event::EventRecord, report::LogSummary, stream::Channel,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use self::{
    budget::Budget,
    spool::{Spool, SpoolError},
};
use crate::scrub::Watchlist;

/// How much the node keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How long the streams of a finished attempt stay.
    pub age: Duration,
    /// Most bytes of all streams. The oldest finished attempts go first; where live ones alone are
    /// too much, each of them loses its own oldest bytes.
    pub bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        // A day, so that a night's logs are there in the morning; 2 GiB are a small part of any disk.
        Self { age: Duration::from_hours(24), bytes: 2 << 30 }
    }
}

/// File with the attempt's identity, so that streams are uploaded after the ledger forgot it.
const IDENTITY_FILE: &str = "attempt.json";

/// Identity of an attempt's streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    run: RunRef,
    attempt: Attempt,
}

/// How many event records there were up to an offset, lost ones too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Counted {
    next: u64,
    end: u64,
}

/// The number of the event that comes next: what was counted, and what came behind it.
fn next_event(events: &Spool) -> Result<u64, SpoolError> {
    let counted = events.position().and_then(|text| serde_json::from_str::<Counted>(&text).ok());
    let Counted { next, end } = counted.unwrap_or_default();
    // A machine's crash may have taken what was counted; the numbers go on all the same.
    if end > events.extent().end {
        events.rewind(end)?;
    }
    Ok(next + events.count_lines(end)?)
}

/// Both streams of one attempt.
#[derive(Debug)]
pub struct AttemptStreams {
    /// The run.
    pub run: RunRef,
    /// Its attempt.
    pub attempt: Attempt,
    /// The container's output.
    pub log: Spool,
    /// Agent events.
    pub events: Spool,
    next_event: AtomicU64,
    dir: PathBuf,
    secrets: Mutex<Arc<Watchlist>>,
}

impl AttemptStreams {
    /// Masks these secrets in what the log takes from here on. In memory alone: after a restart the
    /// credentials come again with the next session.
    pub fn watch_for(&self, secrets: Watchlist) {
        *self.secrets.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(secrets);
    }

    /// What is masked in the log.
    pub fn secrets(&self) -> Arc<Watchlist> {
        Arc::clone(&self.secrets.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The attempt's key.
    pub fn key(&self) -> RunKey {
        RunKey { uid: self.run.uid.clone(), attempt: self.attempt }
    }

    /// The stream of a channel.
    pub fn spool(&self, channel: Channel) -> &Spool {
        match channel {
            Channel::Log => &self.log,
            Channel::Events => &self.events,
        }
    }

    /// Serial number of the event record expected next.
    pub fn next_event(&self) -> u64 {
        self.next_event.load(Ordering::Acquire)
    }

    /// Keeps the records from `first` on that are not known yet. Without an error they are on disk;
    /// with one a gap of their exact size stands in their place, so asking for them again would not
    /// help: they are to be acknowledged in both cases.
    pub fn append_events(&self, first: u64, records: &[EventRecord]) -> Result<(), SpoolError> {
        let known = usize::try_from(self.next_event().saturating_sub(first)).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        for record in records.iter().skip(known) {
            serde_json::to_writer(&mut bytes, record).map_err(SpoolError::Serialise)?;
            bytes.push(b'\n');
        }
        let stored = self.events.append_durable(&bytes);
        let next = first.saturating_add(records.len() as u64).max(self.next_event());
        self.next_event.store(next, Ordering::Release);
        let counted = Counted { next, end: self.events.extent().end };
        let counted = serde_json::to_string(&counted).map_err(SpoolError::Serialise)?;
        let saved = self.events.save_position(&counted);
        stored.and(saved)
    }

    /// Size and holes of the log so far.
    pub fn log_summary(&self) -> LogSummary {
        let extent = self.log.extent();
        LogSummary { bytes: extent.end, gaps: u32::try_from(extent.gaps).unwrap_or(u32::MAX) }
    }

    fn complete(&self) -> bool {
        self.log.extent().complete && self.events.extent().complete
    }
}

/// What is known of the log of a container that has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogEnd {
    /// Bytes that the runner has printed; none where it could not say so.
    pub printed: Option<u64>,
    /// No more comes into the files. The kubelet has its record of the end, and has it from a runtime that
    /// copies all output before it tells an end (containerd's `Task.Delete` waits for it); or the pod is gone.
    pub recorded: bool,
}

/// Streams by attempt.
#[derive(Debug, Default)]
struct Attempts {
    /// Grows whenever an attempt comes or goes.
    version: u64,
    by_key: BTreeMap<RunKey, Arc<AttemptStreams>>,
}

impl Attempts {
    fn list(&self) -> Vec<Arc<AttemptStreams>> {
        self.by_key.values().map(Arc::clone).collect()
    }
}

/// All streams on this node.
#[derive(Debug)]
pub struct Streams {
    dir: PathBuf,
    retention: Retention,
    /// What is used of it.
    pub budget: Arc<Budget>,
    attempts: Mutex<Attempts>,
    /// Something changed that the uploader should look at.
    pub changed: Arc<Notify>,
}

impl Streams {
    /// Opens what is under `dir`. Folders that cannot be read are left alone.
    pub fn open(dir: &Path, retention: Retention) -> Result<Self, SpoolError> {
        std::fs::create_dir_all(dir)?;
        let streams = Self {
            dir: dir.to_owned(),
            retention,
            budget: Arc::new(Budget::new(retention.bytes)),
            attempts: Mutex::default(),
            changed: Arc::new(Notify::new()),
        };
        for entry in std::fs::read_dir(dir)?.flatten() {
            let identity = std::fs::read(entry.path().join(IDENTITY_FILE)).ok();
            let identity = identity.and_then(|text| serde_json::from_slice::<Identity>(&text).ok());
            if let Some(Identity { run, attempt }) = identity
                && let Err(error) = streams.attempt(&run, attempt)
            {
                tracing::warn!(run = run.name, %error, "could not open the streams of an attempt");
            }
        }
        Ok(streams)
    }

    /// The streams of an attempt, made if they are not there yet.
    pub fn attempt(
        &self,
        run: &RunRef,
        attempt: Attempt,
    ) -> Result<Arc<AttemptStreams>, SpoolError> {
        let key = RunKey { uid: run.uid.clone(), attempt };
        let mut attempts = self.attempts();
        if let Some(known) = attempts.by_key.get(&key) {
            return Ok(Arc::clone(known));
        }
        let dir = self.dir.join(format!("{}.{attempt}", safe(run.uid.as_str())));
        let there = dir.exists();
        let streams = self.open_attempt(run, attempt, &dir).inspect_err(|_| {
            // A full disk gets back what was begun.
            if !there {
                let _ = std::fs::remove_dir_all(&dir);
            }
        })?;
        attempts.by_key.insert(key, Arc::clone(&streams));
        attempts.version += 1;
        self.changed.notify_one();
        Ok(streams)
    }

    fn open_attempt(
        &self,
        run: &RunRef,
        attempt: Attempt,
        dir: &Path,
    ) -> Result<Arc<AttemptStreams>, SpoolError> {
        std::fs::create_dir_all(dir)?;
        let identity = Identity { run: run.clone(), attempt };
        let text = serde_json::to_vec(&identity).map_err(SpoolError::Serialise)?;
        std::fs::write(dir.join(IDENTITY_FILE), text)?;
        let spool = |channel: Channel| {
            let (budget, changed) = (Arc::clone(&self.budget), Arc::clone(&self.changed));
            Spool::open(&dir.join(channel.as_str()), budget, changed)
        };
        let (log, events) = (spool(Channel::Log)?, spool(Channel::Events)?);
        let next_event = AtomicU64::new(next_event(&events)?);
        let secrets = Mutex::default();
        let (run, dir) = (run.clone(), dir.to_owned());
        Ok(Arc::new(AttemptStreams { run, attempt, log, events, next_event, dir, secrets }))
    }

    /// Drops the streams of an attempt.
    pub fn discard(&self, run: &RunKey) {
        let mut attempts = self.attempts();
        let Some(streams) = attempts.by_key.remove(run) else { return };
        attempts.version += 1;
        if let Err(error) = std::fs::remove_dir_all(&streams.dir) {
            tracing::warn!(%error, dir = %streams.dir.display(), "could not drop streams");
        }
    }

    fn attempts(&self) -> MutexGuard<'_, Attempts> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The streams of an attempt, if they are (still) here.
    pub fn known(&self, run: &RunKey) -> Option<Arc<AttemptStreams>> {
        self.attempts().by_key.get(run).map(Arc::clone)
    }

    /// All streams, in order.
    pub fn all(&self) -> Vec<Arc<AttemptStreams>> {
        self.attempts().list()
    }

    /// The same with their version, unless nothing came or went since `version`.
    fn all_since(&self, version: Option<u64>) -> Option<(u64, Vec<Arc<AttemptStreams>>)> {
        let attempts = self.attempts();
        (version != Some(attempts.version)).then(|| (attempts.version, attempts.list()))
    }

    /// Drops complete streams that are too old, or the oldest when there are too many. `live` are
    /// never dropped.
    pub fn retain(&self, now: std::time::SystemTime, live: impl Fn(&RunKey) -> bool) {
        let mut finished: Vec<_> = self
            .all()
            .into_iter()
            .filter(|streams| streams.complete() && !live(&streams.key()))
            .map(|streams| (streams.log.modified().max(streams.events.modified()), streams))
            .collect();
        finished.sort_by_key(|(modified, _)| *modified);
        let mut total = self.budget.used();
        for (modified, streams) in finished {
            // A time in the future (the wall clock was set back) is young, an unreadable one is old.
            let young = |at| now.duration_since(at).map_or(true, |age| age <= self.retention.age);
            let old = !modified.is_some_and(young);
            if !old && total <= self.budget.pressure_mark() {
                continue;
            }
            total = total.saturating_sub(streams.log.stored() + streams.events.stored());
            self.discard(&streams.key());
        }
    }
}

/// A uid as a folder name: Kubernetes' uids pass unchanged, anything else cannot leave the folder.
fn safe(uid: &str) -> String {
    uid.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests;
