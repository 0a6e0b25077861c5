//! What the controller sees: the stores that the watches fill, own writes laid over them, and what
//! the nodes' sessions say. Reads only.
//!
//! Everybody who only wants to look uses [`World`]: [`World::tasks`] is the reflector's store, [`World::task`],
//! [`World::run`] and [`World::runs_of`] look through own writes as well, and [`World::subscribe`] tells of changes.

pub mod overlay;
pub mod watch;

mod pods;
mod runs;
mod views;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use agent_operator::{
    crd::{AgentRun, CodingTask, coding_task::AgentRunSummary},
    domain::{NodeName, RunKey, RunPhase, RunUid},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt as _,
    runtime::reflector::{ObjectRef, Store, store::WriterDropped},
};
use tokio::sync::{OnceCell, broadcast};

pub use pods::HeldPods;
pub use views::{ViewError, run_view};
pub use watch::{Change, WatchEnded, Watches, watches};

use crate::{
    clock,
    decide::{Amounts, CredentialState, NodeFacts, Observed, RunView, Used},
    fleet::{Nodes, memory::NodeMemory},
    settings::Settings,
};
use overlay::Overlay;
use runs::Runs;

/// Longest wait for a live read that confirms an absence.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a task cannot be observed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// An object has contents that this version does not understand.
    #[error("read {kind} {name}")]
    Understand {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What is wrong.
        #[source]
        source: ViewError,
    },
    /// An absence could not be confirmed.
    #[error("confirm that {0} is gone")]
    Confirm(String, #[source] Box<kube::Error>),
    /// The pods of a namespace could not be listed.
    #[error("list the pods of namespace {0}")]
    ListPods(String, #[source] Box<kube::Error>),
    /// An absence could not be confirmed in time.
    #[error("wait for the answer whether {0} is gone")]
    Wait(String),
}

/// Tasks, runs and nodes as this process knows them.
pub struct World {
    tasks: Store<CodingTask>,
    runs: Runs,
    nodes: Store<Node>,
    fresh_tasks: Overlay<CodingTask>,
    /// Runs that went without an outcome, by the uid of their task, until that is gone. A person deletes
    /// few, and a task makes none after it.
    vanished: Mutex<HashMap<String, Vec<AgentRunSummary>>>,
    /// Room that decisions took whose runs are being created, by namespace and name.
    reserved: Mutex<HashMap<(String, String), (NodeName, Amounts)>>,
    changes: broadcast::Sender<Change>,
    filled: OnceCell<()>,
}

impl World {
    fn new(
        tasks: Store<CodingTask>,
        nodes: Store<Node>,
        changes: broadcast::Sender<Change>,
    ) -> Self {
        Self {
            tasks,
            runs: Runs::default(),
            nodes,
            fresh_tasks: Overlay::default(),
            vanished: Mutex::default(),
            reserved: Mutex::default(),
            changes,
            filled: OnceCell::new(),
        }
    }

    /// The store of all tasks.
    pub fn tasks(&self) -> Store<CodingTask> {
        self.tasks.clone()
    }

    /// Changes from now on. A subscriber that lags has to look at everything again.
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// Tells all subscribers of a change; nobody listening is fine.
    pub fn announce(&self, change: Change) {
        let _ = self.changes.send(change);
    }

    /// Waits until all stores have been filled once.
    pub async fn ready(&self) -> Result<(), WriterDropped> {
        // A store remembers the waker of one waiter only, so one waits for all of us.
        let filled = async {
            self.tasks.wait_until_ready().await?;
            self.runs.filled().await;
            self.nodes.wait_until_ready().await
        };
        self.filled.get_or_try_init(|| filled).await.copied()
    }

    /// A task by name.
    pub fn task(&self, namespace: &str, name: &str) -> Option<Arc<CodingTask>> {
        let stored = self.tasks.get(&ObjectRef::new(name).within(namespace))?;
        Some(self.fresh_tasks.newest(stored))
    }

    /// A run by name.
    pub fn run(&self, namespace: &str, name: &str) -> Option<Arc<AgentRun>> {
        self.runs.named(namespace, name)
    }

    /// A node by name.
    fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.nodes.get(&ObjectRef::new(name))
    }

    /// A run by uid.
    pub fn run_by_uid(&self, uid: &RunUid) -> Option<Arc<AgentRun>> {
        self.runs.with_uid(uid)
    }

    /// All runs of a task, by its uid.
    pub fn runs_of(&self, namespace: &str, task_uid: &str) -> Vec<Arc<AgentRun>> {
        let mut runs = self.runs.of_task(task_uid);
        runs.retain(|run| run.metadata.namespace.as_deref() == Some(namespace));
        runs
    }

    /// All runs that were given to a node and have not ended.
    pub fn live_runs_on(&self, node: &str) -> Vec<Arc<AgentRun>> {
        let mut runs = self.runs.on_node(node);
        runs.retain(|run| !run.has_ended());
        runs
    }

    /// All runs that were given to a node.
    pub fn runs_on(&self, node: &str) -> Vec<Arc<AgentRun>> {
        self.runs.on_node(node)
    }

    /// Takes note of an own write of a task.
    pub fn wrote_task(&self, mut task: CodingTask) {
        watch::slim(&mut task);
        self.fresh_tasks.put(Arc::new(task));
    }

    /// Takes note of an own write, or a live read, of a run.
    pub fn wrote_run(&self, mut run: AgentRun) -> Arc<AgentRun> {
        watch::slim(&mut run);
        let run = Arc::new(run);
        self.runs.wrote(&run);
        run
    }

    /// Takes note of a run that is gone. One without an outcome must not be made anew on the word of a
    /// task that is older than the deletion: what it ran may not have ended.
    fn run_gone(&self, run: &Arc<AgentRun>) {
        let run = self.runs.gone(run);
        let (namespace, task_uid) = (run.namespace().unwrap_or_default(), &run.spec.task_ref.uid);
        let task = self.tasks.get(&ObjectRef::new(&run.spec.task_ref.name).within(&namespace));
        if run.has_ended() || task.is_none_or(|task| task.uid().as_ref() != Some(task_uid)) {
            return;
        }
        let summary = AgentRunSummary {
            name: run.name_any(),
            step: run.spec.step.clone(),
            attempt: run.spec.attempt,
            phase: RunPhase::Pending.as_str().to_owned(),
            reason: None,
            usage: None,
        };
        let mut vanished = self.vanished.lock().unwrap_or_else(PoisonError::into_inner);
        let of_task = vanished.entry(task_uid.clone()).or_default();
        if of_task.iter().all(|known| known.name != summary.name) {
            of_task.push(summary);
        }
    }

    fn task_gone(&self, task: &CodingTask) {
        let uid = task.uid().unwrap_or_default();
        self.fresh_tasks.remove(&uid);
        self.vanished.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid);
    }

    /// The runs of a task that went without an outcome, as the task's status would list them.
    fn vanished(&self, task_uid: &str) -> Vec<AgentRunSummary> {
        let vanished = self.vanished.lock().unwrap_or_else(PoisonError::into_inner);
        vanished.get(task_uid).cloned().unwrap_or_default()
    }

    /// Keeps room on a node for a run that is about to be created.
    pub fn reserve(&self, namespace: &str, run: &str, node: NodeName, amounts: Amounts) {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        reserved.insert((namespace.to_owned(), run.to_owned()), (node, amounts));
    }

    /// Gives the room back: the run exists, or its creation failed.
    pub fn release(&self, namespace: &str, run: &str) {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        reserved.remove(&(namespace.to_owned(), run.to_owned()));
    }

    /// What live runs, and reservations, use on each node.
    pub fn used(&self) -> BTreeMap<NodeName, Used> {
        let reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        self.runs.used(&reserved)
    }
}

/// Everything that an observation is put together from.
#[derive(Clone)]
pub struct Observer {
    /// For live reads that confirm an absence.
    pub client: Client,
    /// Stores and own writes.
    pub world: Arc<World>,
    /// Sessions.
    pub nodes: Arc<dyn Nodes>,
    /// What was sent to whom.
    pub memory: Arc<NodeMemory>,
    /// Chart values.
    pub settings: Arc<Settings>,
}

impl Observer {
    /// Observes one task. Usually without any call: only what is missing though it should be there
    /// is asked for, because a cache that does not have it proves nothing.
    pub async fn observe(
        &self,
        task: &CodingTask,
        now: Timestamp,
    ) -> Result<Observed, ObserveError> {
        let mut view =
            views::task(task).map_err(|source| understand("CodingTask", task, source))?;
        for gone in self.world.vanished(view.uid.as_str()) {
            if view.status.agent_runs.iter().all(|listed| listed.name != gone.name) {
                view.status.agent_runs.push(gone);
            }
        }
        let objects = self.world.runs_of(&view.namespace, view.uid.as_str());
        let mut runs = Vec::with_capacity(objects.len());
        for object in &objects {
            runs.push(self.run_view(object)?);
        }
        let mut lost_runs = Vec::new();
        for summary in &view.status.agent_runs {
            let ended = matches!(summary.phase.as_str(), "Succeeded" | "Failed");
            if ended || runs.iter().any(|run| run.run.name == summary.name) {
                continue;
            }
            match self.live_run(&view.namespace, &summary.name).await? {
                Some(run) if run.spec.task_ref.uid == view.uid.as_str() => {
                    let run = self.world.wrote_run(run);
                    runs.push(self.run_view(&run)?);
                }
                Some(_) | None => lost_runs.push(summary.name.clone()),
            }
        }
        runs.sort_by_key(|run| (run.step, run.attempt));
        let mut nodes = self.node_facts(&runs, now);
        for node in &mut nodes {
            self.confirm_gone(node, &runs).await?;
        }
        let preflight = self.memory.preflights.view(&view.uid, view.generation);
        Ok(Observed {
            task: view,
            runs,
            lost_runs,
            nodes,
            credentials: CredentialState::Unread,
            preflight,
            settings: Arc::clone(&self.settings),
        })
    }

    /// All nodes with what is used on them right now.
    pub fn node_facts(&self, runs: &[RunView], now: Timestamp) -> Vec<NodeFacts> {
        let named = runs.iter().filter(|run| run.is_live()).map(RunView::node);
        self.facts_with(named, now)
    }

    /// All nodes, and those that are `named` whether or not they exist.
    fn facts_with(&self, named: impl Iterator<Item = NodeName>, now: Timestamp) -> Vec<NodeFacts> {
        let mut sessions: BTreeMap<NodeName, _> =
            self.nodes.snapshot().into_iter().map(|view| (view.name.clone(), view)).collect();
        let mut used = self.world.used();
        let instant = clock::instant();
        let mut facts: BTreeMap<NodeName, NodeFacts> = BTreeMap::new();
        for node in self.world.nodes.state() {
            let node = views::node(&node);
            facts.insert(node.name.clone(), node);
        }
        for name in sessions.keys().cloned().chain(named).collect::<Vec<_>>() {
            facts.entry(name.clone()).or_insert_with(|| views::missing_node(name));
        }
        for (name, node) in &mut facts {
            node.session = sessions.remove(name);
            let absent_since = || self.memory.absent_since(name, instant, now);
            node.absent_since = node.session.is_none().then(absent_since);
            node.used = used.remove(name).unwrap_or_default();
        }
        facts.into_values().collect()
    }

    fn run_view(&self, run: &AgentRun) -> Result<RunView, ObserveError> {
        let mut view =
            views::run_view(run).map_err(|source| understand("AgentRun", run, source))?;
        let key = RunKey { uid: view.run.uid.clone(), attempt: view.attempt };
        view.delivery = self.memory.delivery(&view.node(), &key);
        view.told_budget = self.memory.told_budget(&view.node(), &key);
        Ok(view)
    }

    /// A node that neither is connected nor in the store, but has a live run: gone means fenced, so
    /// the API server is asked.
    async fn confirm_gone(
        &self,
        node: &mut NodeFacts,
        runs: &[RunView],
    ) -> Result<(), ObserveError> {
        let concerns = runs.iter().any(|run| run.is_live() && run.node() == node.name);
        if concerns { self.confirm_absent(node).await } else { Ok(()) }
    }

    async fn confirm_absent(&self, node: &mut NodeFacts) -> Result<(), ObserveError> {
        if node.exists || node.session.is_some() {
            return Ok(());
        }
        let api: Api<Node> = Api::all(self.client.clone());
        let found = live(&format!("node {}", node.name), api.get_opt(node.name.as_str())).await?;
        if found.is_none() {
            node.fenced = Some("its Node object is gone".to_owned());
        }
        Ok(())
    }

    /// A run by a live read.
    pub async fn live_run(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<AgentRun>, ObserveError> {
        let api: Api<AgentRun> = Api::namespaced(self.client.clone(), namespace);
        live(&format!("AgentRun {name}"), api.get_opt(name)).await
    }
}

fn understand(
    kind: &'static str,
    object: &impl kube::ResourceExt,
    source: ViewError,
) -> ObserveError {
    ObserveError::Understand { kind, name: object.name_any(), source }
}

async fn live<T>(
    what: &str,
    request: impl Future<Output = kube::Result<Option<T>>>,
) -> Result<Option<T>, ObserveError> {
    tokio::time::timeout(CALL_TIMEOUT, request)
        .await
        .map_err(|_| ObserveError::Wait(what.to_owned()))?
        .map_err(|error| ObserveError::Confirm(what.to_owned(), Box::new(error)))
}
