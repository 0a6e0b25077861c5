//! The watches that fill the stores. They run for the life of the process, leading or not, so that a
//! new term starts with warm stores and reads are served in between.

use std::{collections::HashSet, fmt::Debug, pin::pin, sync::Arc};

use agent_operator::crd::{AgentRun, CodingTask};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt as _,
        reflector::{self, Store, store::Writer},
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::World;

/// Watch calls end after this time, and a silent one 5 s later: a half-open connection is noticed
/// within 15 s instead of kube's 295.
const WATCH_SECONDS: u32 = 10;
/// Changes that a slow subscriber may lag behind before it has to look at everything again.
const CHANGES_MAX: usize = 4096;

/// Something that may call for a decision.
#[derive(Clone, Debug)]
pub enum Change {
    /// A task appeared or changed.
    Task {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A task is gone.
    TaskGone(Arc<CodingTask>),
    /// A run appeared or changed.
    Run(Arc<AgentRun>),
    /// A run is gone.
    RunGone(Arc<AgentRun>),
    /// A node appeared, changed or is gone.
    Node(String),
    /// A node's session came or went, as noted by the inbox.
    Session(String),
}

/// The three watches; to be run as one task.
pub struct Watches {
    client: Client,
    world: Arc<World>,
    tasks: Writer<CodingTask>,
    runs: Writer<AgentRun>,
    nodes: Writer<Node>,
}

/// A watch ended by itself, which it never does while the process is healthy.
#[derive(Debug, thiserror::Error)]
#[error("watch {0}: the stream has ended")]
pub struct WatchEnded(&'static str);

/// Prepares stores and watches; nothing is read before [`Watches::run`].
pub fn watches(client: Client) -> (Arc<World>, Watches) {
    let (task_store, tasks) = reflector::store();
    let (run_store, runs) = reflector::store();
    let (node_store, nodes) = reflector::store();
    let (changes, _) = broadcast::channel(CHANGES_MAX);
    let world = Arc::new(World::new(task_store, run_store, node_store, changes));
    (Arc::clone(&world), Watches { client, world, tasks, runs, nodes })
}

impl Watches {
    /// Watches until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), WatchEnded> {
        let Self { client, world, tasks, runs, nodes } = self;
        let all = Api::all(client.clone());
        let task_world = Arc::clone(&world);
        let watch_tasks = follow(all, tasks, "codingtasks", move |task, gone| {
            if gone {
                task_world.fresh_tasks.remove(&task.uid().unwrap_or_default());
                task_world.announce(Change::TaskGone(task));
            } else {
                task_world.announce(Change::Task {
                    namespace: task.namespace().unwrap_or_default(),
                    name: task.name_any(),
                });
            }
        });
        let run_world = Arc::clone(&world);
        let watch_runs = follow(Api::all(client.clone()), runs, "agentruns", move |run, gone| {
            if gone {
                run_world.fresh_runs.remove(&run.uid().unwrap_or_default());
                run_world.announce(Change::RunGone(run));
            } else {
                run_world.announce(Change::Run(run));
            }
        });
        let watch_nodes = follow(Api::all(client), nodes, "nodes", move |node: Arc<Node>, _| {
            world.announce(Change::Node(node.name_any()));
        });
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            ended = watch_tasks => Err(ended),
            ended = watch_runs => Err(ended),
            ended = watch_nodes => Err(ended),
        }
    }
}

/// Keeps a store by a watch and tells of each change after the store has it. Objects that do not
/// parse are left out alone, instead of failing the whole list.
async fn follow<K>(
    api: Api<DeserializeGuard<K>>,
    mut writer: Writer<K>,
    what: &'static str,
    tell: impl Fn(Arc<K>, bool),
) -> WatchEnded
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let config = watcher::Config::default().timeout(WATCH_SECONDS);
    let mut events = pin!(watcher(api, config).default_backoff());
    let store = writer.as_reader();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if let Some(event) = parsed(event, what) {
                    take(&mut writer, &store, &event, &tell);
                }
            }
            Err(error) => tracing::warn!(what, error = %error, "watch"),
        }
    }
    WatchEnded(what)
}

fn take<K>(writer: &mut Writer<K>, store: &Store<K>, event: &Event<K>, tell: &impl Fn(Arc<K>, bool))
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let before = match event {
        Event::InitDone => store.state(),
        _ => Vec::new(),
    };
    writer.apply_watcher_event(event);
    match event {
        Event::Apply(object) => tell(Arc::new(object.clone()), false),
        Event::Delete(object) => tell(Arc::new(object.clone()), true),
        Event::Init | Event::InitApply(_) => {}
        Event::InitDone => {
            let now = store.state();
            let uids: HashSet<_> = now.iter().filter_map(|object| object.uid()).collect();
            for object in before {
                if object.uid().is_none_or(|uid| !uids.contains(&uid)) {
                    tell(object, true);
                }
            }
            for object in now {
                tell(object, false);
            }
        }
    }
}

fn parsed<K: Resource<DynamicType = ()>>(
    event: Event<DeserializeGuard<K>>,
    what: &'static str,
) -> Option<Event<K>> {
    let checked = |guard: DeserializeGuard<K>| match guard.0 {
        Ok(object) => Some(object),
        Err(invalid) => {
            tracing::warn!(
                what,
                namespace = invalid.metadata.namespace.as_deref(),
                name = invalid.metadata.name.as_deref(),
                error = invalid.error,
                "leave out an object that does not parse"
            );
            None
        }
    };
    match event {
        Event::Apply(object) => checked(object).map(Event::Apply),
        Event::Delete(object) => checked(object).map(Event::Delete),
        Event::Init => Some(Event::Init),
        Event::InitApply(object) => checked(object).map(Event::InitApply),
        Event::InitDone => Some(Event::InitDone),
    }
}
