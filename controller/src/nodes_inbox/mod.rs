//! What nodes say, made durable: a report ends in the status of its AgentRun, is acknowledged only
//! then, and nothing else of it is kept. What this process misses, the node says again.
//!
//! One dispatcher takes the events and hands those of one run to one of a few workers, so that the
//! reports of a run stay in order and a slow API server holds up neither sessions nor other runs.

mod acts;
mod job;
mod record;
mod worker;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use agent_operator::domain::{RunKey, RunUid};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    apply::Applier,
    clock,
    credentials::Credentials,
    fleet::{Judging, KnownAttempt, NodeEvent, NodeView},
    lease::EpochFloor,
    observe::{Change, Observer},
};

use job::Job;
use worker::Worker;

/// Workers: one call is in flight for each, which the API server's fairness easily takes.
const WORKERS: u16 = 8;
/// Jobs that wait for one worker; a full queue holds up the dispatcher, and so the sessions.
const JOBS_MAX: usize = 256;

/// The consumer of node events.
pub struct Inbox {
    /// Looks at tasks and runs.
    pub observer: Observer,
    /// Writes and answers.
    pub applier: Applier,
    /// Reads Secrets again for a gateway that lost them.
    pub credentials: Credentials,
    /// Learns of the epochs that nodes have obeyed.
    pub floor: EpochFloor,
}

/// Part of the inbox ended by itself, which it never does while the process is healthy.
#[derive(Debug, thiserror::Error)]
pub enum InboxError {
    /// The sessions' side is gone.
    #[error("take node events: the channel is closed")]
    EventsClosed,
    /// A worker is gone.
    #[error("hand a job to a worker: it is gone")]
    WorkerGone,
}

impl Inbox {
    /// Consumes events until `shutdown`.
    pub async fn run(
        self,
        mut events: mpsc::Receiver<NodeEvent>,
        shutdown: CancellationToken,
    ) -> Result<(), InboxError> {
        let mut tasks = JoinSet::new();
        let mut workers = Vec::new();
        for _ in 0..WORKERS {
            let (sender, jobs) = mpsc::channel(JOBS_MAX);
            let worker = Worker::new(
                self.observer.clone(),
                self.applier.clone(),
                self.credentials.clone(),
                jobs,
            );
            tasks.spawn(worker.run(shutdown.clone()));
            workers.push(sender);
        }
        let workers = Workers(workers);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                event = events.recv() => {
                    let event = event.ok_or(InboxError::EventsClosed)?;
                    self.take(event, &workers).await?;
                }
            }
        }
    }

    async fn take(&self, event: NodeEvent, workers: &Workers) -> Result<(), InboxError> {
        match event {
            NodeEvent::Connected { node, known, judging } => {
                self.connected(node, known, judging, workers).await
            }
            NodeEvent::Disconnected { node } => {
                self.observer.memory.disconnected(&node, clock::instant());
                self.observer.world.announce(Change::Session(node.to_string()));
                Ok(())
            }
            NodeEvent::Report { node, report } => {
                let uid = report.run.uid.clone();
                workers.send(&uid, Job::Report { node, report }).await
            }
            NodeEvent::AssignmentAck { node, run, refused: Some((reason, message)) } => {
                let uid = run.uid.clone();
                workers.send(&uid, Job::Refused { node, run, reason, message }).await
            }
            NodeEvent::AssignmentAck { refused: None, .. } => Ok(()),
            NodeEvent::Preflight { node, report } => {
                let now = clock::timestamp();
                let task = self.observer.memory.preflights.answered(&node, *report, now);
                if let Some((namespace, name)) = task {
                    self.observer.world.announce(Change::Task { namespace, name });
                }
                Ok(())
            }
            NodeEvent::NeedCredentials { node, runs } => {
                for run in runs {
                    let uid = run.uid.clone();
                    workers.send(&uid, Job::Credentials { node: node.clone(), run }).await?;
                }
                Ok(())
            }
        }
    }

    /// A new session: everything that its ledger holds is checked against the runs, and the runs of
    /// the node are handed out again, which is harmless for those that it has.
    async fn connected(
        &self,
        node: NodeView,
        known: Vec<KnownAttempt>,
        judging: Judging,
        workers: &Workers,
    ) -> Result<(), InboxError> {
        // The own epoch may come back too; it is no higher than the Lease's.
        self.floor.raise(node.highest_epoch);
        let keys = known.iter().map(key_of);
        self.observer.memory.connected(&node.name, keys);
        for attempt in known {
            let uid = attempt.run.uid.clone();
            let (node, judging) = (node.name.clone(), judging.clone());
            let job = Job::Known { node, attempt: Box::new(attempt), judging };
            workers.send(&uid, job).await?;
        }
        // Nothing is permitted before the stores are filled, whatever the node names.
        let opened = Job::Opened { node: node.name.clone(), judging };
        workers.send(&RunUid::from(node.name.as_str()), opened).await?;
        self.observer.world.announce(Change::Session(node.name.to_string()));
        Ok(())
    }
}

fn key_of(attempt: &KnownAttempt) -> RunKey {
    RunKey { uid: attempt.run.uid.clone(), attempt: attempt.attempt }
}

struct Workers(Vec<mpsc::Sender<Job>>);

impl Workers {
    async fn send(&self, run: &RunUid, job: Job) -> Result<(), InboxError> {
        let mut hasher = DefaultHasher::new();
        run.hash(&mut hasher);
        let index = usize::try_from(hasher.finish() % u64::from(WORKERS)).unwrap_or(0);
        let worker = self.0.get(index).ok_or(InboxError::WorkerGone)?;
        worker.send(job).await.map_err(|_| InboxError::WorkerGone)
    }
}
