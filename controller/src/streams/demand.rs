//! What followers miss and nodes may still have: the store lost it, or never had it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use agent_operator::domain::{NodeName, RunUid};
use tokio::sync::watch;

/// Runs that are asked for at once; beyond, all are forgotten, and whoever still waits asks again by
/// following again.
const WANTED_MAX: usize = 4096;

#[derive(Debug, Default)]
struct Inner {
    /// Connections for streams of each node.
    connected: HashMap<NodeName, usize>,
    wanted: HashSet<RunUid>,
}

/// Runs that are wanted, and the nodes that can be asked.
#[derive(Debug)]
pub struct Demand {
    inner: Mutex<Inner>,
    changes: watch::Sender<u64>,
}

impl Default for Demand {
    fn default() -> Self {
        Self { inner: Mutex::default(), changes: watch::channel(0).0 }
    }
}

/// A node's connection, until it is dropped.
#[derive(Debug)]
pub struct Connected {
    demand: Arc<Demand>,
    node: NodeName,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut inner = self.demand.lock();
        if let Some(count) = inner.connected.get_mut(&self.node) {
            *count -= 1;
            if *count == 0 {
                inner.connected.remove(&self.node);
            }
        }
    }
}

impl Demand {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a node sends streams.
    pub fn connect(self: &Arc<Self>, node: &NodeName) -> Connected {
        *self.lock().connected.entry(node.clone()).or_default() += 1;
        Connected { demand: Arc::clone(self), node: node.clone() }
    }

    /// Whether a node sends streams now.
    pub fn is_connected(&self, node: &NodeName) -> bool {
        self.lock().connected.contains_key(node)
    }

    /// Asks for the streams of a run.
    pub fn want(&self, run: &RunUid) {
        let mut inner = self.lock();
        if inner.wanted.len() >= WANTED_MAX {
            inner.wanted.clear();
        }
        let new = inner.wanted.insert(run.clone());
        drop(inner);
        if new {
            self.changes.send_modify(|version| *version += 1);
        }
    }

    /// Wakes when a run is asked for.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The wanted runs that are `mine`; they count as answered.
    pub fn take(&self, mine: impl Fn(&RunUid) -> bool) -> Vec<RunUid> {
        let mut inner = self.lock();
        let all = std::mem::take(&mut inner.wanted);
        let (taken, left): (HashSet<_>, HashSet<_>) = all.into_iter().partition(mine);
        inner.wanted = left;
        drop(inner);
        taken.into_iter().collect()
    }
}
