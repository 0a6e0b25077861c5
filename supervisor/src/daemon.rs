//! Wires the supervisor's tasks. Each is owned here; the unexpected end of one ends the process, for
//! a half-dead supervisor looks healthy.
//!
//! | task | takes | gives |
//! |---|---|---|
//! | runner (own thread) | inputs | orders to link, session and workers; the ledger |
//! | guards (own thread) | deadlines of the runner | acts for enforcement |
//! | enforcement (own thread) | acts of the guards | orders to the gateway, deletions of pods |
//! | session | orders of the controller, reports of the runner | inputs, messages |
//! | stream upload (in the session) | spools | chunks on a second connection |
//! | link | messages of the gateway | inputs, frames |
//! | watch, one a namespace | the node's pods | inputs |
//! | workers, one an effect | effects of the machines | inputs |
//! | retention | the clock | dropped spools |
//! | health | HTTP | answers of the runner |

use std::{path::Path, sync::Arc, time::Duration};

use agent_operator::{
    api_client,
    domain::{NodeName, RunKey, ids::InstanceId, names},
    telemetry::Tracer,
};
use anyhow::Context as _;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    args::Args,
    clock,
    enforcer::client::{Enforcer, SocketEnforcer},
    health,
    ledger::{Ledger, Memory, Oddities},
    link,
    metrics::Metrics,
    pod::{
        cgroup::Cgroups,
        client::{KubePods, PodApi},
        logs::Waker,
        watch,
    },
    session::{self, Session, dial::TlsDial},
    steps::{
        guard::{Guards, hand::OwnThread},
        runner::{self, INPUTS_MAX, Input, Runner, Settings},
        workers::{GatewayAddress, Tools},
    },
    streams::{Retention, Streams},
};

/// Pause between two rounds of retention.
const RETENTION_PACE: Duration = Duration::from_mins(1);
/// The same while little room is left.
const PRESSED_PACE: Duration = Duration::from_secs(1);
/// Random bytes of an instance id.
const INSTANCE_BYTES: usize = 8;

/// Runs the supervisor until `shutdown` or until a part of it fails.
pub async fn run(args: Args, tracer: Tracer, shutdown: CancellationToken) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::new());
    let config = kube::Config::infer().await.context("no access to the API server")?;
    let client = api_client::client(config.clone()).context("could not make an API client")?;
    let (inputs, queue) = mpsc::channel(INPUTS_MAX);
    let kept = Retention { age: args.stream_retention.get(), bytes: args.streams_mib << 20 };
    let streams =
        Streams::open(&args.data_dir.join("streams"), kept).context("no place for streams")?;
    let streams = Arc::new(streams);
    let (ledger, memory, facts_missing) = open_ledger(&args.data_dir, &metrics)?;
    let tools = tools(&args, client.clone(), Arc::clone(&streams), inputs.clone());
    let guards = guards(&args, config)?;
    let settings = Settings { facts_missing, ..runner_settings(&args) };
    let runner = Runner::new(settings, ledger, memory, tools, guards, Arc::clone(&metrics))?
        .with_tracer(tracer);

    let mut tasks = JoinSet::new();
    tasks.spawn(on_own_thread(runner, queue, shutdown.clone()));
    let dial = TlsDial::new(
        client.clone(),
        &args.pod_namespace,
        args.controller_ca_configmap.clone(),
        &args.controller_address,
    )?;
    let session = Session {
        settings: session_settings(&args)?,
        dial: Arc::new(dial),
        inputs: inputs.clone(),
        streams: Arc::clone(&streams),
        metrics: Arc::clone(&metrics),
    };
    let (of_session, of_link) = (shutdown.clone(), shutdown.clone());
    tasks.spawn(async move {
        session::run(session, of_session).await;
        Ok("session")
    });
    let (socket, to_runner) = (args.gateway_socket.clone(), inputs.clone());
    tasks.spawn(async move {
        link::client::run(socket, to_runner, of_link).await;
        Ok("link")
    });
    for namespace in args.task_namespaces.clone() {
        let node = NodeName::new(args.node_name.clone());
        let (client, inputs, shutdown) = (client.clone(), inputs.clone(), shutdown.clone());
        tasks.spawn(async move {
            let watch = watch::run(client, namespace, node, inputs);
            shutdown.run_until_cancelled(watch).await;
            Ok("watch")
        });
    }
    let retention = retention(streams, inputs.clone());
    let of_retention = shutdown.clone();
    tasks.spawn(async move {
        of_retention.run_until_cancelled(retention).await;
        Ok("retention")
    });
    let health = health::run(args.http_address, metrics, inputs, enforcer(&args), shutdown.clone());
    tasks.spawn(async move {
        health.await.context("health server failed")?;
        Ok("health")
    });
    supervise(tasks, &shutdown).await
}

/// Waits for the tasks; the first that ends without being asked to takes the others with it.
async fn supervise(
    mut tasks: JoinSet<anyhow::Result<&'static str>>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let mut failure = None;
    while let Some(ended) = tasks.join_next().await {
        let asked = shutdown.is_cancelled();
        let error = match ended {
            Ok(Ok(_)) if asked => continue,
            Ok(Ok(task)) => anyhow::anyhow!("task {task} ended unexpectedly"),
            Ok(Err(error)) => error,
            Err(error) => anyhow::Error::new(error).context("a task died"),
        };
        failure.get_or_insert(error);
        shutdown.cancel();
    }
    failure.map_or(Ok(()), Err)
}

fn open_ledger(dir: &Path, metrics: &Metrics) -> anyhow::Result<(Ledger, Memory, bool)> {
    let (ledger, memory, oddities) = Ledger::open(dir).context("could not open the ledger")?;
    let Oddities { torn_bytes, damaged_lines, unknown_lines, foreign, fresh: _ } = oddities;
    for (kind, count) in [
        ("ledger_torn", torn_bytes.min(1)),
        ("ledger_damaged", damaged_lines),
        ("ledger_unknown", unknown_lines),
        ("ledger_foreign", u64::from(foreign)),
    ] {
        (0..count).for_each(|_| metrics.drop_one(kind));
    }
    metrics.ledger_room.set(i64::from(ledger.check_room().is_ok()));
    if oddities != Oddities::default() {
        tracing::warn!(?oddities, "the ledger was not whole");
    }
    tracing::info!(attempts = memory.attempts.len(), epoch = %memory.highest_epoch, "ledger open");
    Ok((ledger, memory, oddities.facts_may_be_missing()))
}

/// The node's enforcer, where the release has one.
fn enforcer(args: &Args) -> Option<Arc<dyn Enforcer>> {
    let socket = args.enforcer_socket.clone()?;
    Some(Arc::new(SocketEnforcer::new(socket)))
}

fn tools(
    args: &Args,
    client: kube::Client,
    streams: Arc<Streams>,
    inputs: mpsc::Sender<Input>,
) -> Arc<Tools> {
    Arc::new(Tools {
        pods: Arc::new(KubePods::new(client)),
        streams,
        containers: Arc::new(Cgroups::new(&args.cgroup_root)),
        waker: Arc::new(Waker::new()),
        pod_log_dir: args.pod_log_dir.clone(),
        gateway: GatewayAddress::new(args.gateway_service.clone()),
        runner_image: args.runner_image.clone(),
        priority_class: args.agent_priority_class.clone(),
        enforcer: enforcer(args),
        own_gateway: args.own_gateway(),
        inputs,
        runtime: Handle::current(),
        tasks: TaskTracker::new(),
    })
}

/// Deadlines with a gateway connection and an API client of their own.
fn guards(args: &Args, config: kube::Config) -> anyhow::Result<Guards> {
    let hand = OwnThread::start(args.gateway_socket.clone(), move || {
        let client = api_client::client(config).inspect_err(|error| {
            tracing::error!(%error, "deadlines are enforced without an API client of their own");
        });
        Some(Arc::new(KubePods::new(client.ok()?)) as Arc<dyn PodApi>)
    });
    let hand = hand.context("deadlines cannot be enforced")?;
    Guards::new(Arc::new(hand)).context("deadlines cannot be guarded")
}

fn runner_settings(args: &Args) -> Settings {
    Settings {
        node: NodeName::new(args.node_name.clone()),
        slots: args.slots,
        delivery: args.runner_delivery.fixed(),
        pod_retention: args.pod_retention.get(),
        facts_missing: false,
        forbidden: args.forbidden(),
    }
}

fn session_settings(args: &Args) -> anyhow::Result<session::Settings> {
    let mut bytes = [0_u8; INSTANCE_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    Ok(session::Settings {
        address: args.controller_address.clone(),
        token_file: args.token_file.clone(),
        node: NodeName::new(args.node_name.clone()),
        boot_id: clock::boot_id()?,
        instance: InstanceId::new(&names::sha256_hex(&bytes)[..2 * INSTANCE_BYTES]),
        slots: args.slots,
    })
}

async fn on_own_thread(
    runner: Runner,
    queue: mpsc::Receiver<Input>,
    shutdown: CancellationToken,
) -> anyhow::Result<&'static str> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new()
        .name("runner".to_owned())
        .spawn(move || {
            // Nobody listens any more when the process is already ending.
            let _ = done.send(runner.run_blocking(queue, &shutdown));
        })
        .context("could not start the runner's thread")?;
    let ended: Result<(), runner::RunnerError> = result.await.context("the runner died")?;
    ended.context("the runner failed")?;
    Ok("runner")
}

/// Drops old streams of attempts that the ledger is done with.
async fn retention(streams: Arc<Streams>, inputs: mpsc::Sender<Input>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(RETENTION_PACE) => {}
            // At once when room is short, but not again and again when nothing can be dropped.
            () = streams.budget.pressed.notified() => tokio::time::sleep(PRESSED_PACE).await,
        }
        let (answer, snapshot) = oneshot::channel();
        if inputs.send(Input::Snapshot(answer)).await.is_err() {
            return;
        }
        let Ok(snapshot) = snapshot.await else { return };
        let live = move |run: &RunKey| snapshot.known.iter().any(|known| known.key == *run);
        let (streams, now) = (Arc::clone(&streams), clock::now().wall);
        // Deleting gigabytes takes its time on a busy disk.
        let work = move || streams.retain(now.into(), live);
        if tokio::task::spawn_blocking(work).await.is_err() {
            return;
        }
    }
}
