//! `Follow`: one task or run told as a stream of events, from the disk store and the catalogue.
//!
//! Each follower reads for itself, at the pace at which its peer takes the events: a slow one waits
//! on its own connection and holds nothing but one batch of lines.

mod cursor;
mod lines;
mod outbox;
mod tell;
mod wait;

pub(super) use self::outbox::outbox;

use std::{collections::HashSet, sync::Arc, time::Duration};

use agent_operator::domain::{RunUid, stream::Channel};
use tokio::{sync::watch, time::Instant};
use tonic::Status;

use self::{
    cursor::Cursor,
    lines::{Batch, Line},
    outbox::Outbox,
};
use super::status::from_store;
use crate::{
    catalog::{Catalog, RunView, TaskView},
    clock,
    streams::{StreamKey, StreamStore},
};

/// How long a run that has ended is given to deliver the rest of its log: covers one reconnect of
/// its node.
const LOG_WAIT: Duration = Duration::from_secs(5);

/// The same for its events, once the log is complete.
const EVENTS_WAIT: Duration = Duration::from_secs(1);

/// How long nodes may take to find a controller that has just started, and to send again what it has
/// not: their backoff and one round of streams.
const NODES_WAIT: Duration = Duration::from_secs(30);

/// What is followed.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// A task with all its runs.
    Task(Arc<TaskView>),
    /// One run.
    Run(Arc<RunView>),
}

/// From where on.
#[derive(Clone, Debug)]
pub(super) enum From {
    /// The first byte.
    Start,
    /// This many log lines before the end.
    Tail(usize),
    /// Behind an earlier event.
    Cursor(String),
}

/// Why following stopped early.
pub(super) enum Stop {
    /// The follower has gone.
    Gone,
    /// It has to be told.
    Status(Status),
    /// It takes nothing.
    Stalled,
}

impl std::convert::From<Status> for Stop {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// How a run was left.
enum Left {
    /// Everything of it has been told.
    Over,
    /// Everything that is there now has been told, and nobody wants to wait.
    Pausing,
}

/// What one look at both channels of a run gave.
#[derive(Default)]
struct Look {
    told: bool,
    /// Channels that have ended.
    ended: HashSet<Channel>,
    /// Channels of which the store has nothing.
    absent: HashSet<Channel>,
}

/// One call.
pub(super) struct Follower {
    pub(super) catalog: Catalog,
    pub(super) store: Arc<StreamStore>,
    target: Target,
    stay: bool,
    cursor: Cursor,
    visited: HashSet<RunUid>,
    out: Arc<Outbox>,
}

impl Follower {
    /// Prepares a call; refuses a cursor that does not belong to the target.
    pub(super) async fn new(
        catalog: Catalog,
        store: Arc<StreamStore>,
        target: Target,
        from: From,
        stay: bool,
        out: Arc<Outbox>,
    ) -> Result<Self, Status> {
        let (visited, cursor) = (HashSet::new(), Cursor::default());
        let mut follower = Self { catalog, store, target, stay, cursor, visited, out };
        match from {
            From::Start => {}
            From::Tail(count) => follower.go_to_tail(count).await?,
            From::Cursor(text) => follower.go_to_cursor(&text)?,
        }
        Ok(follower)
    }

    fn go_to_cursor(&mut self, text: &str) -> Result<(), Status> {
        let cursor: Cursor = text
            .parse()
            .map_err(|error: cursor::BadCursor| Status::invalid_argument(error.to_string()))?;
        if let Some(uid) = &cursor.run {
            let runs = self.runs();
            let Some(at) = runs.iter().position(|run| run.uid == *uid) else {
                return Err(Status::out_of_range(
                    "the cursor's run is gone; follow from the start",
                ));
            };
            self.visited = runs[..at].iter().map(|run| run.uid.clone()).collect();
        }
        self.cursor = cursor;
        Ok(())
    }

    async fn go_to_tail(&mut self, count: usize) -> Result<(), Status> {
        let runs = self.runs();
        let mut left = count;
        for (at, run) in runs.iter().enumerate().rev() {
            let log = StreamKey { run: run.uid.clone(), channel: Channel::Log };
            let (offset, found) =
                self.blocking(move |store| lines::tail(store, &log, left)).await?;
            left = left.saturating_sub(found);
            if left > 0 && at > 0 {
                continue;
            }
            let events = StreamKey { run: run.uid.clone(), channel: Channel::Events };
            // Events carry no line of the log, so a run that is cut starts with its events' end.
            let behind = if offset == 0 { None } else { self.store.position(&events) };
            self.cursor = Cursor {
                run: Some(run.uid.clone()),
                log: offset,
                events: behind.map_or(0, |position| position.offset),
                ..Cursor::default()
            };
            self.visited = runs[..at].iter().map(|run| run.uid.clone()).collect();
            break;
        }
        Ok(())
    }

    /// Tells everything, until the end, the present, or the follower's departure.
    pub(super) async fn run(mut self) -> Result<(), Stop> {
        let mut changes = self.catalog.changes();
        loop {
            changes.borrow_and_update();
            let finished = self.finished();
            let Some(run) = self.next_run() else {
                if finished {
                    return self.tell_end().await;
                }
                self.tell_task_phase().await?;
                if !self.stay {
                    return Ok(());
                }
                self.wait(&mut changes, None).await?;
                continue;
            };
            match self.drive(&run.uid).await? {
                Left::Pausing => return Ok(()),
                Left::Over => drop(self.visited.insert(run.uid.clone())),
            }
        }
    }

    /// The run to go on with: the cursor's, or the first one that has not been told.
    fn next_run(&mut self) -> Option<Arc<RunView>> {
        let next = self.runs().into_iter().find(|run| !self.visited.contains(&run.uid))?;
        if self.cursor.run.as_ref() != Some(&next.uid) {
            let task_phase = std::mem::take(&mut self.cursor.task_phase);
            self.cursor = Cursor { run: Some(next.uid.clone()), task_phase, ..Cursor::default() };
        }
        Some(next)
    }

    /// All runs of the target, oldest first.
    fn runs(&self) -> Vec<Arc<RunView>> {
        match &self.target {
            Target::Task(_) => {
                self.task().map_or_else(Vec::new, |task| self.catalog.runs_of(&task))
            }
            Target::Run(run) => vec![self.catalog.run(&run.uid).unwrap_or_else(|| run.clone())],
        }
    }

    /// The task as it is now; none when it is gone, or another one has its name.
    fn task(&self) -> Option<Arc<TaskView>> {
        let Target::Task(task) = &self.target else { return None };
        self.catalog.task(&task.namespace, &task.name).filter(|now| now.uid == task.uid)
    }

    /// Whether nothing more will come of the target.
    fn finished(&self) -> bool {
        match &self.target {
            Target::Task(_) => self.task().is_none_or(|task| task.finished),
            Target::Run(run) => self.catalog.run(&run.uid).is_none_or(|run| run.is_terminal()),
        }
    }

    /// Whether a newer run of the task exists.
    fn superseded(&self, uid: &RunUid) -> bool {
        self.runs().last().is_some_and(|last| last.uid != *uid)
    }

    /// Tells one run as far as it goes.
    async fn drive(&mut self, uid: &RunUid) -> Result<Left, Stop> {
        let mut changes = self.catalog.changes();
        let mut arrivals = self.subscribe(uid)?;
        let mut quiet_since = clock::instant();
        let mut look = Look { told: true, ..Look::default() };
        loop {
            changes.borrow_and_update();
            let run = self.catalog.run(uid);
            // A run that was deleted will not say more than what is here.
            let terminal = run.as_deref().is_none_or(RunView::is_terminal);
            let superseded = self.superseded(uid);
            if let Some(run) = run.as_deref().filter(|_| !terminal) {
                if !superseded {
                    self.tell_task_phase().await?;
                }
                self.tell_run_phase(run).await?;
            }
            // Files are read when something came, not at each change of any object.
            let arrived = arrivals.has_changed();
            if look.told || !matches!(arrived, Ok(false)) {
                if arrived.is_err() {
                    // Retention took the run out of the store; a new entry may come.
                    arrivals = self.subscribe(uid)?;
                }
                arrivals.borrow_and_update();
                look = self.look(uid, false).await?;
                if look.told {
                    quiet_since = clock::instant();
                }
                continue;
            }
            if terminal || superseded || !self.stay {
                let demand = self.store.demand();
                let reachable = run.as_deref().is_some_and(|run| demand.is_connected(&run.node));
                let until = self.patience(&look, run.as_deref(), quiet_since);
                // What ended without a word may be at its node, if that can be asked; nothing else of
                // the present is waited for.
                let wait = self.stay || (terminal && !look.absent.is_empty() && reachable);
                if wait && !look.is_over() && clock::instant() < until {
                    if terminal && !look.absent.is_empty() {
                        self.store.demand().want(uid);
                    }
                    self.wait_either(&mut changes, &mut arrivals, Some(until)).await?;
                    continue;
                }
                self.close(uid, run.as_deref(), terminal).await?;
                let over = terminal || superseded;
                return Ok(if over { Left::Over } else { Left::Pausing });
            }
            self.wait_either(&mut changes, &mut arrivals, None).await?;
        }
    }

    /// Until when to wait for what is missing of a run that has ended.
    fn patience(&self, look: &Look, run: Option<&RunView>, quiet_since: Instant) -> Instant {
        let log_is_whole = look.ended.contains(&Channel::Log)
            || run.is_some_and(|run| run.is_terminal() && self.has_log(run));
        if log_is_whole {
            return quiet_since + EVENTS_WAIT;
        }
        let patience = quiet_since + LOG_WAIT;
        let connected = run.is_none_or(|run| self.store.demand().is_connected(&run.node));
        if connected { patience } else { patience.max(self.store.opened() + NODES_WAIT) }
    }

    /// Whether the store has the log up to the size that the run's status names.
    fn has_log(&self, run: &RunView) -> bool {
        let key = StreamKey { run: run.uid.clone(), channel: Channel::Log };
        let here = self.store.position(&key).map_or(0, |position| position.offset);
        run.log_bytes.is_some_and(|bytes| here >= bytes)
    }

    /// Tells the rest of a run, what is missing of it, and how it ended.
    async fn close(
        &mut self,
        uid: &RunUid,
        run: Option<&RunView>,
        terminal: bool,
    ) -> Result<(), Stop> {
        while self.look(uid, true).await?.told {}
        if let Some(run) = run.filter(|_| terminal) {
            let missing = run.log_bytes.filter(|bytes| self.cursor.log < *bytes);
            if let Some(to) = missing {
                self.tell_missing_log(run, to).await?;
            }
            self.tell_run_phase(run).await?;
        }
        Ok(())
    }

    /// Tells at most one batch of each channel.
    async fn look(&mut self, uid: &RunUid, flush: bool) -> Result<Look, Stop> {
        let mut look = Look::default();
        for channel in Channel::ALL {
            let key = StreamKey { run: uid.clone(), channel };
            let offset = match channel {
                Channel::Log => self.cursor.log,
                Channel::Events => self.cursor.events,
            };
            let batch = self.blocking(move |store| lines::read(store, &key, offset, flush)).await?;
            match batch {
                Batch::Lines(lines) => {
                    look.told = true;
                    self.tell_lines(uid, channel, lines).await?;
                }
                Batch::Gap(gap) => {
                    look.told = true;
                    self.tell_gap(uid, channel, gap).await?;
                }
                Batch::End => drop(look.ended.insert(channel)),
                Batch::Absent => drop(look.absent.insert(channel)),
                Batch::Waiting => {}
            }
        }
        Ok(look)
    }

    async fn tell_lines(
        &mut self,
        uid: &RunUid,
        channel: Channel,
        lines: Vec<Line>,
    ) -> Result<(), Stop> {
        let run = self.catalog.run(uid);
        for line in lines {
            self.tell_line(run.as_deref(), channel, line).await?;
        }
        Ok(())
    }

    fn subscribe(&self, uid: &RunUid) -> Result<watch::Receiver<u64>, Stop> {
        self.store.subscribe(uid).map_err(|error| Stop::Status(from_store(&error)))
    }
}

impl Look {
    /// Whether both channels have ended.
    fn is_over(&self) -> bool {
        Channel::ALL.iter().all(|channel| self.ended.contains(channel))
    }
}
