//! A controller without its process.

use std::{sync::Arc, time::Duration};

use agent_operator::domain::Epoch;
use agent_operator_controller::{
    fleet::Nodes,
    lease::{Election, ElectionConfig, EpochFloor, Leadership, Term, identity},
    metrics::Metrics,
    observe,
    reconcile::{self, Deps},
    settings::Settings,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{Fleet, Ground, LIMIT};

/// A controller's deciding side, as `run.rs` wires it.
pub struct Controller {
    pub leadership: Leadership,
    pub fleet: Arc<Fleet>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl Controller {
    pub async fn start(ground: &Ground, fleet: Arc<Fleet>) -> Self {
        let config =
            ElectionConfig::new(&ground.namespace, "controller", identity("controller").unwrap());
        let floor = EpochFloor::default();
        let (election, leadership) = Election::new(ground.client.clone(), config, floor.clone());
        let mut controller = Self::with(ground, fleet, leadership, floor).await;
        let token = controller.shutdown.clone();
        controller.tasks.spawn(async move { election.run(token).await });
        controller
    }

    /// A controller without a Lease, which believes that it leads under `epoch` for good.
    pub async fn leading(ground: &Ground, fleet: Arc<Fleet>, epoch: Epoch) -> Self {
        let valid_until = tokio::time::Instant::now() + Duration::from_hours(1);
        let (terms, seen) = tokio::sync::watch::channel(Some(Term { epoch, valid_until }));
        let mut controller =
            Self::with(ground, fleet, Leadership::new(seen), EpochFloor::default()).await;
        let token = controller.shutdown.clone();
        controller.tasks.spawn(async move {
            token.cancelled().await;
            drop(terms);
        });
        controller
    }

    async fn with(
        ground: &Ground,
        fleet: Arc<Fleet>,
        leadership: Leadership,
        floor: EpochFloor,
    ) -> Self {
        let mut settings = Settings::default();
        "registry.test/agent:1".clone_into(&mut settings.agent.image);
        "100m".clone_into(&mut settings.agent.requests.cpu);
        "256Mi".clone_into(&mut settings.agent.requests.memory);
        settings.task_namespaces = vec![ground.namespace.clone()];
        let shutdown = CancellationToken::new();
        let (events, receiver) = mpsc::channel(256);
        let identity = identity("controller").unwrap();
        let (world, watches) = observe::watches(ground.client.clone());
        let deps = Deps {
            client: ground.client.clone(),
            settings: Arc::new(settings),
            world,
            watches,
            nodes: Arc::clone(&fleet) as Arc<dyn Nodes>,
            leadership: leadership.clone(),
            floor,
            identity,
            metrics: Metrics::new(),
        };
        let mut tasks = JoinSet::new();
        let token = shutdown.clone();
        tasks.spawn(async move { reconcile::run(deps, receiver, token).await.unwrap() });
        fleet.attach(events).await;
        Self { leadership, fleet, shutdown, tasks }
    }

    /// SIGTERM: the Lease is let go.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }

    /// SIGKILL: nothing is let go.
    pub async fn kill(mut self) {
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
    }

    pub async fn epoch(&self) -> Epoch {
        let mut leadership = self.leadership.clone();
        let wait = async {
            loop {
                if let Some(term) = leadership.term(tokio::time::Instant::now()) {
                    return term.epoch;
                }
                leadership.changed().await.unwrap();
            }
        };
        tokio::time::timeout(LIMIT, wait).await.expect("a term begins")
    }
}
