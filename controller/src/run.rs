//! The running controller: everything is made here, and every task is owned here.

use std::{path::Path, sync::Arc, time::Duration};

use agent_operator::{api_client, domain::RunUid, listen, telemetry::Tracer};
use anyhow::Context as _;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    args::RunArgs,
    catalog::{self, Catalog},
    clock,
    fleet::{Nodes, sessions::Sessions, watchdog},
    grpc::{
        self, Edge, Peers,
        auth::{Authority, KubeReviewer},
    },
    health::{self, Health},
    lease::{self, Election, ElectionConfig, EpochFloor, Leadership},
    metrics::Metrics,
    observe,
    reconcile::{self, Deps},
    settings::Settings,
    streams::{Limits, StreamStore},
    tls::{Tls, TlsSettings},
};

/// Events of nodes that wait for the deciding side. When it is full, sessions wait, and their nodes
/// with them; nothing is lost.
const NODE_EVENTS_MAX: usize = 1024;

/// Pause between two looks at what the stream store need not keep.
const SWEEP_PERIOD: Duration = Duration::from_mins(1);

/// How long a run that no longer exists keeps its streams: for whoever follows it right now.
const SWEEP_IDLE: Duration = Duration::from_mins(10);

/// Pause before certificates are asked for again while the API server is away.
const TLS_RETRY: Duration = Duration::from_secs(2);

/// The tasks of the process. The name goes into the sentence with which it ends.
type Tasks = JoinSet<(&'static str, anyhow::Result<()>)>;

/// Runs until SIGTERM or SIGINT, or until a part ends by itself, which is an error.
pub async fn run(args: RunArgs, tracer: Tracer) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut tasks = Tasks::new();
    let started = start(&args, tracer, &stop, &mut tasks).await;
    if let Err(error) = started {
        stop.cancel();
        while tasks.join_next().await.is_some() {}
        return Err(error);
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "started");
    supervise(tasks, stop).await
}

/// Waits for a signal or the first end, then for all others.
async fn supervise(mut tasks: Tasks, stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut outcome = Ok(());
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM, shutting down"),
        _ = interrupt.recv() => tracing::info!("SIGINT, shutting down"),
        Some(ended) = tasks.join_next() => outcome = unexpected(ended),
    }
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok((name, Ok(()))) => tracing::debug!(part = name, "ended"),
            Ok((name, Err(error))) => {
                tracing::warn!(part = name, error = format!("{error:#}"), "ended badly");
            }
            Err(error) => tracing::error!(%error, "a task panicked"),
        }
    }
    outcome
}

/// A half-dead daemon looks healthy, so the end of one task is the end of all.
fn unexpected(
    ended: Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>,
) -> anyhow::Result<()> {
    let (name, result) = ended.context("a task of the controller panicked")?;
    result.with_context(|| format!("task {name} failed"))?;
    anyhow::bail!("task {name} ended by itself")
}

async fn start(
    args: &RunArgs,
    tracer: Tracer,
    stop: &CancellationToken,
    tasks: &mut Tasks,
) -> anyhow::Result<()> {
    let settings = Arc::new(settings(args)?);
    let client = client(args.kubeconfig.as_deref()).await?;
    let metrics = Metrics::new();
    let catalog = Catalog::traced(metrics.clone(), tracer);
    let health = Health::new(catalog.clone(), metrics.clone());
    let http = listen::bind(args.http_address)
        .await
        .with_context(|| format!("listen on {}", args.http_address))?;
    let serving = health::serve(http, health.clone(), stop.clone());
    tasks.spawn(async { ("http", serving.await.context("serve HTTP")) });

    let store = Arc::new(open_store(args).await?);
    let (events, node_events) = mpsc::channel(NODE_EVENTS_MAX);
    let sessions = Sessions::new(events);
    let (identity, floor) = (lease::identity(&args.identity)?, EpochFloor::default());
    let config = ElectionConfig::new(&args.namespace, &args.lease_name, &identity)
        .at(args.advertised_address());
    let (election, leadership) = Election::new(client.clone(), config, floor.clone());
    let (world, watches) = observe::watches(client.clone());
    let deps = Deps {
        client: client.clone(),
        settings: settings.clone(),
        world,
        watches,
        nodes: Arc::new(sessions.clone()) as Arc<dyn Nodes>,
        leadership: leadership.clone(),
        floor,
        identity,
        metrics: metrics.clone(),
    };

    let reconciling = reconcile::run(deps, node_events, stop.clone());
    tasks.spawn(async { ("reconcile", reconciling.await.context("reconcile")) });
    tasks.spawn(quiet("election", election.run(stop.clone())));
    let node_lease = settings.node_lease.get();
    let watching = watchdog::run(sessions.clone(), node_lease, metrics.clone(), stop.clone());
    tasks.spawn(quiet("watchdog", watching));
    let watching = catalog::run(client.clone(), catalog.clone(), stop.clone());
    tasks.spawn(quiet("catalog", watching));
    let gauge = leading(leadership.clone(), metrics.clone(), stop.clone());
    tasks.spawn(quiet("leading", gauge));
    let sweeping = sweep(store.clone(), catalog.clone(), metrics.clone(), stop.clone());
    tasks.spawn(quiet("sweeper", sweeping));

    let authority = Authority::new(KubeReviewer::new(client.clone()), args.supervisor_user());
    let edge = Edge { authority, sessions, leadership, catalog, store, metrics };
    let port = port(args.clone(), client, edge, health, stop.clone());
    tasks.spawn(async { ("grpc", Box::pin(port).await) });
    Ok(())
}

async fn quiet(
    name: &'static str,
    task: impl Future<Output = ()>,
) -> (&'static str, anyhow::Result<()>) {
    task.await;
    (name, Ok(()))
}

/// Certificates first, which needs the API server; then the port, for as long as the process lives.
async fn port(
    args: RunArgs,
    client: Client,
    edge: Edge,
    health: Health,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let settings = TlsSettings {
        namespace: args.namespace.clone(),
        service: args.tls_service_name.clone(),
        ca_config_map: args.ca_config_map(),
        extra_sans: args.tls_extra_san.clone(),
    };
    let tls = loop {
        match Tls::start(client.clone(), settings.clone()).await {
            Ok(tls) => break tls,
            Err(error) => {
                let error = anyhow::Error::from(error);
                tracing::warn!(error = format!("{error:#}"), "no certificates yet");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(TLS_RETRY) => {}
        }
    };
    let listener = listen::bind(args.grpc_address)
        .await
        .with_context(|| format!("listen on {}", args.grpc_address))?;
    health.set_serving();
    let config = tls.server_config();
    let peers = Peers::new(args.tls_service_name.clone(), tls.ca());
    tokio::select! {
        served = grpc::serve(listener, config, peers, edge, stop.clone()) => served.context("serve gRPC"),
        // Returns only at the end, and then the port has some seconds to close.
        () = tls.keep_fresh(CancellationToken::new()) => Ok(()),
    }
}

fn settings(args: &RunArgs) -> anyhow::Result<Settings> {
    let Some(path) = &args.config else { return Ok(Settings::default()) };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("read settings {}", path.display()))?;
    Settings::parse(&text).with_context(|| format!("use settings {}", path.display()))
}

/// A client for the cluster of `kubeconfig`, else of the surroundings, without hidden retries.
pub async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    let config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .with_context(|| format!("read kubeconfig {}", path.display()))?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("use kubeconfig {}", path.display()))?
        }
        None => Config::infer().await.context("find a cluster")?,
    };
    api_client::client(config).context("make a Kubernetes client")
}

async fn open_store(args: &RunArgs) -> anyhow::Result<StreamStore> {
    let folder = args.data_dir.join("streams");
    let total_bytes = args.stream_store_mib << 20;
    // An eighth, as the default has it: eight floods at once are needed to push out the rest.
    let limits = Limits { total_bytes, stream_bytes: total_bytes / 8 };
    tokio::task::spawn_blocking(move || StreamStore::open(&folder, limits))
        .await
        .context("open the stream store")?
        .with_context(|| format!("open the stream store in {}", args.data_dir.display()))
}

/// Drops the streams of runs that are gone, and keeps the store's size in the metrics.
async fn sweep(
    store: Arc<StreamStore>,
    catalog: Catalog,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval(SWEEP_PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        metrics.set_stored_bytes(store.bytes());
        if !catalog.synced() {
            continue;
        }
        let (store, catalog) = (store.clone(), catalog.clone());
        let swept = tokio::task::spawn_blocking(move || {
            let wanted = |uid: &RunUid| catalog.run(uid).is_some();
            store.sweep(&wanted, SWEEP_IDLE, clock::instant());
        });
        if swept.await.is_err() {
            return;
        }
    }
}

/// Keeps the gauge of leadership.
async fn leading(mut leadership: Leadership, metrics: Metrics, stop: CancellationToken) {
    loop {
        metrics.set_leading(leadership.term(clock::instant()).is_some());
        tokio::select! {
            () = stop.cancelled() => return,
            changed = leadership.changed() => if changed.is_err() {
                // The election has ended, which ends the process; no need to end it twice.
                return stop.cancelled().await;
            }
        }
    }
}
