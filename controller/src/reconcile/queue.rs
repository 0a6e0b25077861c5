//! Which tasks are to be looked at: all of them when a term begins, then those that a change
//! concerns, which come first. Orders that follow from a deletion alone are given right here, since there is no task
//! left to reconcile.

use std::{
    collections::{BTreeSet, VecDeque},
    convert::Infallible,
    sync::Arc,
};

use agent_operator::{
    crd::{AgentRun, CodingTask},
    domain::{Attempt, NodeName, Reason, RunKey, RunUid, TaskUid},
};
use futures::{Stream, stream};
use kube::{ResourceExt as _, runtime::reflector::ObjectRef};
use tokio::sync::broadcast::{
    self,
    error::{RecvError, TryRecvError},
};

use super::{
    backlog::{Backlog, Name, OVERDUE},
    task::Context,
};
use crate::{decide::Delivery, fleet::Command, observe::Change};

struct Queue {
    context: Arc<Context>,
    changes: broadcast::Receiver<Change>,
    /// What something happened to: handed out at once.
    ready: VecDeque<Name>,
    /// The rest.
    backlog: Backlog,
}

/// The stream that drives passes. It never ends by itself while the process lives.
pub(super) fn tasks_to_look_at(
    context: Arc<Context>,
) -> impl Stream<Item = Result<ObjectRef<CodingTask>, Infallible>> + Send + 'static {
    let changes = context.observer.world.subscribe();
    let (ready, backlog) = (VecDeque::new(), Backlog::default());
    let mut queue = Queue { context, changes, ready, backlog };
    queue.everything();
    stream::unfold(queue, |mut queue| async move {
        let (namespace, name) = queue.next().await?;
        Some((Ok(ObjectRef::new(&name).within(&namespace)), queue))
    })
}

impl Queue {
    async fn next(&mut self) -> Option<Name> {
        let context = Arc::clone(&self.context);
        loop {
            self.take_what_came()?;
            if let Some(name) = self.ready.pop_front() {
                return Some(name);
            }
            if let Some(name) = self.backlog.next(context.passes.ended()) {
                return Some(name);
            }
            let waiting = !self.backlog.is_empty();
            let received = tokio::select! {
                received = self.changes.recv() => received,
                () = context.passes.next_end(), if waiting => continue,
                () = tokio::time::sleep(OVERDUE), if waiting => return self.backlog.next_anyway(),
            };
            match received {
                Ok(change) => self.take(change),
                Err(RecvError::Lagged(missed)) => self.look_at_all(missed),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// Takes all changes that are there; none when there will be no more.
    fn take_what_came(&mut self) -> Option<()> {
        loop {
            match self.changes.try_recv() {
                Ok(change) => self.take(change),
                Err(TryRecvError::Lagged(missed)) => self.look_at_all(missed),
                Err(TryRecvError::Empty) => return Some(()),
                Err(TryRecvError::Closed) => return None,
            }
        }
    }

    fn look_at_all(&mut self, missed: u64) {
        tracing::info!(missed, "look at all tasks: too many changes at once");
        self.everything();
    }

    fn everything(&mut self) {
        let mut tasks = self.context.observer.world.tasks().state();
        // Who came first is placed first. Times have whole seconds and the store no order of its own,
        // so the name decides between equals.
        tasks.sort_by_cached_key(|task| {
            (task.creation_timestamp().map(|time| time.0), name_of(task.as_ref()))
        });
        self.backlog.extend(tasks.iter().map(|task| name_of(task.as_ref())));
    }

    fn take(&mut self, change: Change) {
        match change {
            Change::Task { namespace, name } => self.ready.push_back((namespace, name)),
            Change::TaskGone(task) => self.task_gone(&task),
            Change::Run(run) => {
                self.ready.push_back(task_of(&run));
                if run.has_ended() {
                    self.room_may_be_free();
                }
            }
            Change::RunGone(run) => {
                self.run_gone(&run, "the AgentRun was deleted");
                self.ready.push_back(task_of(&run));
                self.room_may_be_free();
            }
            Change::Node(name) => {
                let connected = self
                    .context
                    .observer
                    .nodes
                    .snapshot()
                    .iter()
                    .any(|node| node.name.as_str() == name);
                if !connected {
                    // It may have been fenced.
                    let runs = self.context.observer.world.live_runs_on(&name);
                    self.tasks_of(&runs);
                }
                self.room_may_be_free();
            }
            Change::Session(name) => {
                // Ended ones too: the node may not have heard that it can forget them.
                let runs = self.context.observer.world.runs_on(&name);
                self.tasks_of(&runs);
                self.room_may_be_free();
            }
        }
    }

    fn tasks_of(&mut self, runs: &[Arc<AgentRun>]) {
        let tasks: BTreeSet<_> = runs.iter().map(|run| task_of(run)).collect();
        self.backlog.extend(tasks);
    }

    /// Whoever waits for room is looked at again, one behind the other: there may be thousands, and room for one.
    fn room_may_be_free(&mut self) {
        self.backlog.extend(self.context.waiting());
    }

    fn task_gone(&mut self, task: &CodingTask) {
        let (namespace, _) = name_of(task);
        let uid = TaskUid::from(task.uid().unwrap_or_default());
        self.context.observer.memory.preflights.done(&uid);
        let runs = self.context.observer.world.runs_of(&namespace, &task.uid().unwrap_or_default());
        for run in runs {
            self.run_gone(&run, "the CodingTask was deleted");
        }
        self.room_may_be_free();
    }

    /// Ends what still runs of a run that nobody wants any more. The pod is deleted by its owner
    /// reference as well; this is only faster, and kills tokens at once.
    fn run_gone(&self, run: &AgentRun, why: &str) {
        let Some(uid) = run.uid() else { return };
        let key = RunKey {
            uid: RunUid::from(uid),
            attempt: Attempt(u32::try_from(run.spec.attempt).unwrap_or(0)),
        };
        let node = NodeName::from(run.spec.node_name.as_str());
        let observer = &self.context.observer;
        let Ok(epoch) = self.context.applier.epoch() else { return };
        let phase = run.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            if observer.nodes.send(&node, Command::Forget { run: key.clone() }).is_ok() {
                observer.memory.forgotten(&node, &key);
            }
            return;
        }
        let cancel = Command::Cancel {
            run: key.clone(),
            epoch,
            reason: Reason::Deleted,
            message: why.to_owned(),
        };
        if observer.nodes.send(&node, cancel).is_ok() {
            observer.memory.sent(&node, &key, Delivery::CancelSent);
        }
    }
}

fn name_of(task: &CodingTask) -> Name {
    (task.namespace().unwrap_or_default(), task.name_any())
}

fn task_of(run: &AgentRun) -> Name {
    (run.namespace().unwrap_or_default(), run.spec.task_ref.name.clone())
}
