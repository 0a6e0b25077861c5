//! Reconciling: observe, decide, apply, and nothing else.
//!
//! For `main`: make the stores first, share the [`World`] with whoever only reads (`StepService`), and
//! give everything else to [`run`], as one task.
//!
//! ```text
//! let settings = Arc::new(Settings::parse(&text)?);
//! let (world, watches) = observe::watches(client.clone());
//! let floor = EpochFloor::default();
//! let identity = lease::identity(&pod_name)?;
//! let config = ElectionConfig::new(namespace, lease_name, &identity);
//! let (election, leadership) = Election::new(client.clone(), config, floor.clone());
//! tasks.spawn(election.run(shutdown.clone()));
//! tasks.spawn(reconcile::run(
//!     Deps { client, settings, world, watches, nodes, leadership, floor, identity, metrics },
//!     node_events, // mpsc::Receiver<NodeEvent>
//!     shutdown.clone(),
//! ));
//! ```
//!
//! Tasks inside: the watches, the event writer, the inbox with its workers, and while this process
//! leads one pass at a time for each task that changed, and the release of pods on fenced nodes. An end of any of them ends [`run`].

mod backlog;
mod error_policy;
mod fences;
mod queue;
mod task;

use std::sync::Arc;

use agent_operator::{crd::CodingTask, telemetry::logs};
use futures::StreamExt as _;
use kube::{
    Client, ResourceExt as _,
    runtime::controller::{Config, applier},
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{
    apply::Applier,
    clock,
    credentials::Credentials,
    events::events,
    fleet::{NodeEvent, Nodes, memory::NodeMemory},
    lease::{EpochFloor, Leadership, Term},
    metrics::Metrics,
    nodes_inbox::{Inbox, InboxError},
    observe::{Observer, WatchEnded, Watches, World},
    settings::Settings,
};
use error_policy::Failures;
use task::Context;

/// Passes at once: each may hold one connection to the API server, which has no HTTP/2 here.
const CONCURRENCY: u16 = 16;

/// What reconciling needs from the rest of the process.
pub struct Deps {
    /// Kubernetes.
    pub client: Client,
    /// Chart values.
    pub settings: Arc<Settings>,
    /// The stores, from `observe::watches`.
    pub world: Arc<World>,
    /// Their watches, from the same call.
    pub watches: Watches,
    /// The sessions of supervisors.
    pub nodes: Arc<dyn Nodes>,
    /// The gate of every write.
    pub leadership: Leadership,
    /// Shared with the election.
    pub floor: EpochFloor,
    /// Names this process in events.
    pub identity: String,
    /// Counts failed passes.
    pub metrics: Metrics,
}

/// Part of the reconciling ended by itself; the process has to end with it.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A watch.
    #[error("watch objects")]
    Watch(#[from] WatchEnded),
    /// The inbox.
    #[error("take what nodes say")]
    Inbox(#[from] InboxError),
    /// The election.
    #[error("follow the election: it has ended")]
    Election,
    /// A task panicked or was lost.
    #[error("join a task")]
    Join(#[from] tokio::task::JoinError),
}

/// Runs until `shutdown`, or until a part of it ends by itself.
pub async fn run(
    deps: Deps,
    node_events: mpsc::Receiver<NodeEvent>,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let Deps { client, settings, world, watches, nodes, leadership, floor, identity, metrics } =
        deps;
    let memory = Arc::new(NodeMemory::new(clock::instant()));
    let (events, event_writer) = events(client.clone(), &identity);
    let observer = Observer {
        client: client.clone(),
        world: Arc::clone(&world),
        nodes: Arc::clone(&nodes),
        memory: Arc::clone(&memory),
        settings: Arc::clone(&settings),
    };
    let applier = Applier {
        client: client.clone(),
        leadership: leadership.clone(),
        world,
        nodes,
        memory,
        events,
    };
    let credentials = Credentials::new(client, settings);
    let inbox = Inbox {
        observer: observer.clone(),
        applier: applier.clone(),
        credentials: credentials.clone(),
        floor,
    };
    let context = Arc::new(Context::new(observer, applier, credentials, metrics.clone()));

    // Whatever ends first ends the others as well.
    let all = shutdown.child_token();
    let mut tasks: JoinSet<Result<(), RunError>> = JoinSet::new();
    let token = all.clone();
    tasks.spawn(async move { Ok(watches.run(token).await?) });
    let token = all.clone();
    tasks.spawn(async move { Ok(inbox.run(node_events, token).await?) });
    let token = all.clone();
    tasks.spawn(async move {
        event_writer.run(token).await;
        Ok(())
    });
    tasks.spawn(terms(context, leadership, metrics, all.clone()));
    let mut first = Ok(());
    while let Some(ended) = tasks.join_next().await {
        all.cancel();
        let ended = ended.map_err(RunError::from).and_then(|result| result);
        if first.is_ok() {
            first = ended;
        }
    }
    first
}

/// Reconciles while a term holds; everything is looked at again when another one begins.
async fn terms(
    context: Arc<Context>,
    mut leadership: Leadership,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        ready = context.observer.world.ready() => if ready.is_err() { return Ok(()) },
    }
    loop {
        if let Some(term) = leadership.term(clock::instant()) {
            context.observer.memory.new_term(clock::instant());
            context.forget_waiting();
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                ended = term_over(leadership.clone(), term) => ended?,
                () = lead(Arc::clone(&context), metrics.clone()) => {}
                () = fences::release(&context) => {}
            }
            context.forget_waiting();
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            changed = leadership.changed() => changed.map_err(|_| RunError::Election)?,
        }
    }
}

/// Waits until another term, or none, has taken the place of `term`. Renewals do not count; a term
/// that merely runs out stops writes by its own time, and the election says so right after.
async fn term_over(mut leadership: Leadership, term: Term) -> Result<(), RunError> {
    loop {
        leadership.changed().await.map_err(|_| RunError::Election)?;
        let present = leadership.term(clock::instant());
        if present.is_none_or(|present| present.epoch != term.epoch) {
            return Ok(());
        }
    }
}

/// Passes over all tasks, then over those that change.
async fn lead(context: Arc<Context>, metrics: Metrics) {
    let failures = Arc::new(Failures::default());
    let policy = Arc::clone(&failures);
    let store = context.observer.world.tasks();
    let queue = queue::tasks_to_look_at(Arc::clone(&context));
    let of_passes = Arc::clone(&context);
    let config = Config::default().concurrency(CONCURRENCY);
    let timing = metrics.clone();
    let mut passes = Box::pin(applier(
        move |task, context: Arc<Context>| {
            let (failures, timing) = (Arc::clone(&failures), timing.clone());
            let within = logs_of(&task);
            let pass = async move {
                let began = clock::instant();
                let result = context.reconcile(&task).await;
                timing.reconciled(began.elapsed());
                if result.is_ok() {
                    failures.forget(&task);
                }
                result
            };
            Box::pin(pass.instrument(within))
        },
        move |task, error, _| {
            metrics.reconcile_error(error.kind());
            policy.action(&task, error)
        },
        context,
        store,
        queue,
        config,
    ));
    while let Some(pass) = passes.next().await {
        of_passes.passes.note_end();
        if let Err(error) = pass {
            // The error of a pass itself is logged by the policy; this is mostly a task that is gone.
            tracing::debug!(error = %error, "pass");
        }
    }
}

/// Context of the log lines about a task.
fn logs_of(task: &CodingTask) -> tracing::Span {
    let uid = task.uid().unwrap_or_default().into();
    logs::task(&task.namespace().unwrap_or_default(), &task.name_any(), &uid)
}
