//! A controller process: the real election, watches, passes, inbox, sessions and watchdog.

use std::sync::{Arc, Mutex};

use agent_operator::domain::NodeName;
use agent_operator_controller::{
    fleet::{Nodes, sessions::Sessions, watchdog},
    grpc::{
        auth::{Authority, ReviewError, Reviewed, Reviewer},
        session::{self, Answers, Context, Inbound},
    },
    lease::{Election, ElectionConfig, EpochFloor, identity},
    metrics::Metrics,
    observe,
    reconcile::{self, Deps},
    settings::Settings,
};
use async_trait::async_trait;
use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::world::{NAMESPACE, World};

/// Events of nodes that wait.
const EVENTS_MAX: usize = 1024;

/// Nobody shows a token in a simulation.
struct NoReviews;

#[async_trait]
impl Reviewer for NoReviews {
    async fn review_token(&self, _: &str) -> Result<Option<Reviewed>, ReviewError> {
        Err(ReviewError { what: "token", problem: "no reviews here".to_owned() })
    }

    async fn may_read_logs(&self, _: &Reviewed, _: &str) -> Result<bool, ReviewError> {
        Ok(false)
    }
}

/// What a supervisor reaches when it dials.
pub struct Handle {
    context: Context,
    calls: Mutex<JoinSet<()>>,
}

impl Handle {
    /// Serves a session. It ends with the process.
    pub fn serve(&self, node: &str, inbound: impl Inbound + 'static, answers: Answers) {
        let call = session::serve(self.context.clone(), NodeName::from(node), inbound, answers);
        let mut calls = self.calls.lock().unwrap();
        while calls.try_join_next().is_some() {}
        calls.spawn(call);
    }
}

/// One life of a controller.
pub struct Controller {
    pub client: String,
    slot: usize,
    stop: CancellationToken,
    task: JoinHandle<()>,
    world: Arc<World>,
}

/// The settings of every controller.
pub fn settings() -> Settings {
    let mut settings = Settings::default();
    "registry.test/agent:1".clone_into(&mut settings.agent.image);
    "100m".clone_into(&mut settings.agent.requests.cpu);
    "256Mi".clone_into(&mut settings.agent.requests.memory);
    settings.task_namespaces = vec![NAMESPACE.to_owned()];
    settings.start_deadline = agent_operator::domain::GoDuration::from_secs(60);
    settings.task_end_pod_ttl = agent_operator::domain::GoDuration::from_secs(20);
    settings
}

impl Controller {
    /// Starts the `life`-th process in `slot`; it stands for election by the Lease of this name.
    pub fn start(world: &Arc<World>, slot: usize, life: u32, lease: &str) -> Self {
        let client_name = format!("controller-{slot}#{life}");
        let client = world.api().client(&client_name);
        let stop = CancellationToken::new();
        let (events, node_events) = mpsc::channel(EVENTS_MAX);
        let sessions = Sessions::new(events);
        let floor = EpochFloor::default();
        let identity = identity(&format!("controller-{slot}")).unwrap();
        let config = ElectionConfig::new(NAMESPACE, lease, &identity);
        let (election, leadership) = Election::new(client.clone(), config, floor.clone());
        let (of_store, watches) = observe::watches(client.clone());
        let metrics = Metrics::new();
        let settings = Arc::new(settings());
        let node_lease = settings.node_lease.get();
        let deps = Deps {
            client,
            settings,
            world: of_store,
            watches,
            nodes: Arc::new(sessions.clone()) as Arc<dyn Nodes>,
            leadership: leadership.clone(),
            floor,
            identity,
            metrics: metrics.clone(),
        };
        let context = Context {
            authority: Authority::new(NoReviews, String::new()),
            sessions: sessions.clone(),
            leadership,
            metrics: metrics.clone(),
            stop: stop.clone(),
        };
        let handle = Arc::new(Handle { context, calls: Mutex::default() });
        world.controllers.lock().unwrap().insert(slot, handle);
        let token = stop.clone();
        let task = tokio::spawn(async move {
            let deciding = reconcile::run(deps, node_events, token.clone());
            let watching = watchdog::run(sessions, node_lease, metrics, token.clone());
            let (deciding, (), ()) = tokio::join!(deciding, watching, election.run(token.clone()));
            deciding.unwrap();
        });
        Self { client: client_name, slot, stop, task, world: Arc::clone(world) }
    }

    /// SIGKILL.
    pub fn kill(self) {
        self.world.faults().dead.insert(self.client.clone());
        self.task.abort();
        hang_up(&self.world, self.slot);
    }

    /// SIGTERM: the Lease is let go.
    pub async fn stop(self) {
        self.stop.cancel();
        let limit = std::time::Duration::from_secs(10);
        let Self { client, slot, task, world, .. } = self;
        let abort = task.abort_handle();
        let _ = tokio::time::timeout(limit, task).await;
        abort.abort();
        world.faults().dead.insert(client);
        hang_up(&world, slot);
    }

    /// Whether it has ended by itself, which it never should.
    pub fn is_over(&self) -> bool {
        self.task.is_finished()
    }
}

/// Ends all calls of a process that is no more.
fn hang_up(world: &World, slot: usize) {
    if let Some(handle) = world.controllers.lock().unwrap().remove(&slot) {
        handle.calls.lock().unwrap().abort_all();
    }
}
