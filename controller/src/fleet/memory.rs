//! What was sent to which node, and what the node said it has. In memory only: after a restart the
//! supervisors' Hellos rebuild it, and a repeated order does no harm.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use agent_operator::domain::{NodeName, RunKey, assignment::TaskBudget};
use jiff::Timestamp;
use tokio::{
    sync::{RwLock, RwLockReadGuard},
    time::Instant,
};

use super::preflights::Preflights;
use crate::decide::Delivery;

/// Forgotten attempts remembered at most: beyond it all are dropped, and a few Forgets are repeated.
const FORGOTTEN_MAX: usize = 100_000;

/// What this process knows about nodes beyond their sessions.
pub struct NodeMemory {
    inner: Mutex<Inner>,
    /// Preflights that nodes were asked for.
    pub preflights: Preflights,
    /// Held while runs of a silent node are written off.
    giving_up: RwLock<()>,
}

struct Inner {
    /// Absence counts from here: sessions are there for whoever leads, so a process that has waited
    /// for hours knows nothing of nodes when its term begins. Monotonic, as all of absence: a step of
    /// the wall clock must neither end a node's lease nor stretch it.
    term_began: Instant,
    nodes: BTreeMap<NodeName, PerNode>,
    forgotten: HashSet<(NodeName, RunKey)>,
}

#[derive(Default)]
struct PerNode {
    absent_since: Option<Instant>,
    runs: HashMap<RunKey, Delivery>,
    /// What of the budget was told with the order or since.
    budgets: HashMap<RunKey, TaskBudget>,
}

impl PerNode {
    fn drop_run(&mut self, run: &RunKey) {
        self.runs.remove(run);
        self.budgets.remove(run);
    }
}

impl NodeMemory {
    /// An empty memory of a process that started at `started`.
    pub fn new(started: Instant) -> Self {
        let (nodes, forgotten) = Default::default();
        let inner = Inner { term_began: started, nodes, forgotten };
        Self {
            inner: Mutex::new(inner),
            preflights: Preflights::default(),
            giving_up: RwLock::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves at worst an order that is sent twice.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to write something off for the silence of its node: hold this from the look whether the
    /// node is still away until the write is done.
    pub async fn give_up(&self) -> RwLockReadGuard<'_, ()> {
        self.giving_up.read().await
    }

    /// Waits until all is written that was begun before this.
    pub async fn giving_up_is_over(&self) {
        drop(self.giving_up.write().await);
    }

    /// A session has opened: what its ledger names is known there, and nothing else is. What the node
    /// was told to forget may have been lost with the session before, so it is told again.
    pub fn connected(&self, node: &NodeName, known: impl IntoIterator<Item = RunKey>) {
        let mut inner = self.lock();
        inner.forgotten.retain(|(of, _)| of != node);
        let entry = inner.nodes.entry(node.clone()).or_default();
        entry.absent_since = None;
        self.preflights.lost(node);
        entry.budgets.clear();
        entry.runs = known.into_iter().map(|run| (run, Delivery::Known)).collect();
    }

    /// A session is gone.
    pub fn disconnected(&self, node: &NodeName, now: Instant) {
        let mut inner = self.lock();
        let entry = inner.nodes.entry(node.clone()).or_default();
        entry.absent_since.get_or_insert(now);
        self.preflights.lost(node);
        entry.budgets.clear();
        entry.runs.clear();
    }

    /// A new term has begun: what was sent under an older epoch has to be confirmed, and nodes without
    /// a session get the node lease to find this leader.
    pub fn new_term(&self, now: Instant) {
        let mut inner = self.lock();
        inner.term_began = now;
        inner.forgotten.clear();
        for delivery in inner.nodes.values_mut().flat_map(|node| node.runs.values_mut()) {
            *delivery = Delivery::Known;
        }
    }

    /// Takes note of what was sent.
    pub fn sent(&self, node: &NodeName, run: &RunKey, delivery: Delivery) {
        let mut inner = self.lock();
        inner.nodes.entry(node.clone()).or_default().runs.insert(run.clone(), delivery);
    }

    /// Takes note of the budget that was told.
    pub fn tell_budget(&self, node: &NodeName, run: &RunKey, left: Option<TaskBudget>) {
        let mut inner = self.lock();
        let budgets = &mut inner.nodes.entry(node.clone()).or_default().budgets;
        match left {
            Some(left) => drop(budgets.insert(run.clone(), left)),
            None => drop(budgets.remove(run)),
        }
    }

    /// What of the budget the node was last told.
    pub fn told_budget(&self, node: &NodeName, run: &RunKey) -> Option<TaskBudget> {
        self.lock().nodes.get(node)?.budgets.get(run).copied()
    }

    /// The node does not have the run after all.
    pub fn refused(&self, node: &NodeName, run: &RunKey) {
        if let Some(entry) = self.lock().nodes.get_mut(node) {
            entry.drop_run(run);
        }
    }

    /// The node was told to forget the run.
    pub fn forgotten(&self, node: &NodeName, run: &RunKey) {
        let mut inner = self.lock();
        if inner.forgotten.len() >= FORGOTTEN_MAX {
            inner.forgotten.clear();
        }
        inner.forgotten.insert((node.clone(), run.clone()));
        if let Some(entry) = inner.nodes.get_mut(node) {
            entry.drop_run(run);
        }
    }

    /// How far a run has come to its node.
    pub fn delivery(&self, node: &NodeName, run: &RunKey) -> Delivery {
        let inner = self.lock();
        if inner.forgotten.contains(&(node.clone(), run.clone())) {
            return Delivery::Forgotten;
        }
        inner.nodes.get(node).and_then(|node| node.runs.get(run)).copied().unwrap_or_default()
    }

    /// Since when a node without session has had none, by the wall clock as it stands: `instant` and
    /// `now` are the same moment, and only the time that has gone by since is taken from memory.
    pub fn absent_since(&self, node: &NodeName, instant: Instant, now: Timestamp) -> Timestamp {
        let inner = self.lock();
        let since = inner.nodes.get(node).and_then(|node| node.absent_since);
        let since = since.map_or(inner.term_began, |since| since.max(inner.term_began));
        let away = instant.saturating_duration_since(since);
        now.checked_sub(away).unwrap_or(Timestamp::MIN)
    }
}

#[cfg(test)]
mod tests;
