//! The watches that fill the stores. They run for the life of the process, leading or not, so that a
//! new term starts with warm stores and reads are served in between.

use std::{collections::HashSet, fmt::Debug, pin::pin, sync::Arc, time::Duration};

use agent_operator::crd::{AgentRun, CodingTask};
use backon::ExponentialBuilder;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt as _,
        reflector::{self, ObjectRef, Store, store::Writer},
        watcher::{self, Event, ExponentialBackoff, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::World;

/// Watch calls end after this time, and a silent one 5 s later: a half-open connection is noticed
/// within 15 s instead of kube's 295.
const WATCH_SECONDS: u32 = 10;
/// First pause after a watch that failed.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// Longest pause, without its jitter: decisions rest on what the watches have brought, so an API server
/// that is back is heard within seconds and not, as by kube's own backoff, up to a minute later. Few
/// processes watch so.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// The whole object once more, as `kubectl apply` leaves it.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
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
    let (_, runs) = reflector::store();
    let (node_store, nodes) = reflector::store();
    let (changes, _) = broadcast::channel(CHANGES_MAX);
    let world = Arc::new(World::new(task_store, node_store, changes));
    (Arc::clone(&world), Watches { client, world, tasks, runs, nodes })
}

impl Watches {
    /// Watches until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), WatchEnded> {
        let Self { client, world, tasks, runs, nodes } = self;
        let all = Api::all(client.clone());
        let task_world = Arc::clone(&world);
        let watch_tasks = follow(all, tasks, "codingtasks", slim, move |told| match told {
            Told::Gone(task) => {
                task_world.task_gone(&task);
                task_world.announce(Change::TaskGone(task));
            }
            Told::There(task) => {
                task_world.fresh_tasks.seen(&task);
                task_world.announce(Change::Task {
                    namespace: task.namespace().unwrap_or_default(),
                    name: task.name_any(),
                });
            }
            Told::Filled => {}
        });
        let run_world = Arc::clone(&world);
        let all = Api::all(client.clone());
        let watch_runs = follow(all, runs, "agentruns", slim, move |told| match told {
            Told::Gone(run) => {
                run_world.run_gone(&run);
                run_world.announce(Change::RunGone(run));
            }
            Told::There(run) => {
                run_world.runs.seen(&run);
                run_world.announce(Change::Run(run));
            }
            Told::Filled => run_world.runs.fill(),
        });
        let all = Api::all(client);
        let watch_nodes = follow(all, nodes, "nodes", slim_node, move |told| match told {
            Told::There(node) | Told::Gone(node) => world.announce(Change::Node(node.name_any())),
            Told::Filled => {}
        });
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            ended = watch_tasks => Err(ended),
            ended = watch_runs => Err(ended),
            ended = watch_nodes => Err(ended),
        }
    }
}

/// Drops what nobody here reads and what can take more memory than all the rest of an object.
pub(super) fn slim<K: Resource>(object: &mut K) {
    let meta = object.meta_mut();
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove(LAST_APPLIED);
    }
}

/// Of a node's status only its size counts here; it names every image that the node has, and changes
/// every few seconds.
fn slim_node(node: &mut Node) {
    slim(node);
    if let Some(status) = node.status.take() {
        node.status = Some(NodeStatus { allocatable: status.allocatable, ..NodeStatus::default() });
    }
}

/// Pauses between the tries of a watch that fails.
pub(crate) fn backoff() -> ExponentialBackoff {
    let pauses = ExponentialBuilder::default()
        .with_min_delay(BACKOFF_MIN)
        .with_max_delay(BACKOFF_MAX)
        .with_jitter()
        .without_max_times();
    ExponentialBackoff::from(pauses)
}

/// What a watch has brought.
enum Told<K> {
    /// An object appeared or changed.
    There(Arc<K>),
    /// An object is gone.
    Gone(Arc<K>),
    /// All that was there when the watch began has been told.
    Filled,
}

/// Keeps a store by a watch and tells of each change after the store has it. Objects that do not
/// parse are left out alone, instead of failing the whole list.
async fn follow<K>(
    api: Api<DeserializeGuard<K>>,
    mut writer: Writer<K>,
    what: &'static str,
    slim: impl Fn(&mut K),
    tell: impl Fn(Told<K>),
) -> WatchEnded
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let config = watcher::Config::default().timeout(WATCH_SECONDS);
    let mut events = pin!(watcher(api, config).backoff(backoff()));
    let store = writer.as_reader();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if let Some(event) = parsed(event, what, &slim) {
                    take(&mut writer, &store, &event, &tell);
                }
            }
            Err(error) => tracing::warn!(what, error = %error, "watch"),
        }
    }
    WatchEnded(what)
}

fn take<K>(writer: &mut Writer<K>, store: &Store<K>, event: &Event<K>, tell: &impl Fn(Told<K>))
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let before = match event {
        Event::InitDone => store.state(),
        _ => Vec::new(),
    };
    writer.apply_watcher_event(event);
    match event {
        Event::Apply(object) => {
            // The store's own, not a second one that lives for as long as somebody holds the change.
            let stored = store.get(&ObjectRef::from_obj(object));
            tell(Told::There(stored.unwrap_or_else(|| Arc::new(object.clone()))));
        }
        Event::Delete(object) => tell(Told::Gone(Arc::new(object.clone()))),
        Event::Init | Event::InitApply(_) => {}
        Event::InitDone => {
            let now = store.state();
            let uids: HashSet<_> = now.iter().filter_map(|object| object.uid()).collect();
            for object in before {
                if object.uid().is_none_or(|uid| !uids.contains(&uid)) {
                    tell(Told::Gone(object));
                }
            }
            for object in now {
                tell(Told::There(object));
            }
            tell(Told::Filled);
        }
    }
}

fn parsed<K: Resource<DynamicType = ()>>(
    event: Event<DeserializeGuard<K>>,
    what: &'static str,
    slim: &impl Fn(&mut K),
) -> Option<Event<K>> {
    let checked = |guard: DeserializeGuard<K>| match guard.0 {
        Ok(mut object) => {
            slim(&mut object);
            Some(object)
        }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_is_kept_without_the_record_of_who_wrote_which_field_and_the_copy_of_kubectl() {
        let mut node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n", "uid": "u", "resourceVersion": "7",
                "annotations": {LAST_APPLIED: "{}", "example.com/a": "b"},
                "managedFields": [{"manager": "m", "operation": "Apply",
                    "fieldsV1": {"f:spec": {"f:taints": {}}}}]},
        }))
        .unwrap();
        slim(&mut node);
        assert_eq!(node.metadata.managed_fields, None);
        let kept: Vec<_> = node.annotations().keys().collect();
        assert_eq!(kept, ["example.com/a"]);
        let identity = (node.uid(), node.resource_version());
        assert_eq!(identity, (Some("u".to_owned()), Some("7".to_owned())));
    }

    #[test]
    fn a_node_is_kept_with_its_size_alone() {
        let mut node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n", "labels": {"a": "b"}},
            "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]},
            "status": {"allocatable": {"cpu": "4"}, "images": [{"names": ["i"], "sizeBytes": 1}]},
        }))
        .unwrap();
        slim_node(&mut node);
        let status = node.status.unwrap();
        assert_eq!(status.allocatable.unwrap()["cpu"].0, "4");
        assert_eq!(status.images, None);
        assert_eq!(node.spec.unwrap().taints.unwrap().len(), 1);
        assert_eq!(node.metadata.labels.unwrap()["a"], "b");
    }
}
