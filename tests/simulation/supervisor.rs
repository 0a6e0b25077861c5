//! A supervisor process: the real runner, machines, workers, ledger, guards and pod watch, over a
//! session and a link to the gateway that carry the real messages.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use agent_operator::{
    domain::{Epoch, NodeName, RunKey, ids::InstanceId, limits::HEARTBEAT_INTERVAL},
    proto::v1::{self, controller_message::Message as Down, supervisor_message::Message as Up},
};
use agent_operator_supervisor::{
    clock,
    enforcer::{
        client::{ClientError, Enforcer},
        contract::{Answer, CloseOrder},
    },
    ledger::Ledger,
    link::contract::ToGateway,
    metrics::Metrics,
    pod::{client::KubePods, client::PodApi, logs::Waker, watch},
    session::{self, wire},
    steps::{
        guard::{Act, Guarded, Guards, Hand},
        runner::{INPUTS_MAX, Input, Outgoing, Runner, Settings},
        workers::{GatewayAddress, Tools},
    },
    streams::{Retention, Streams},
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    clock::{OnNode, on_node, set_boot},
    cluster::Node,
    director::place_of,
    gateway::Gateway,
    world::{NAMESPACE, World},
};

/// Attempts at once.
const SLOTS: u32 = 4;
/// Messages in flight.
const WIRE_MAX: usize = 16;

/// One life of a supervisor.
pub struct Supervisor {
    pub client: String,
    task: JoinHandle<()>,
    world: Arc<World>,
}

/// What a supervisor is started on.
pub struct Place {
    pub world: Arc<World>,
    pub node: String,
    pub machine: Arc<Node>,
    pub dir: PathBuf,
    pub boot: u32,
}

impl Supervisor {
    /// Starts the `life`-th process on a node.
    pub fn start(place: &Place, life: u32) -> Self {
        let client = format!("{}#{life}", place.node);
        let number = place_of(&place.node);
        set_boot(place.boot);
        let (inputs, queue) = mpsc::channel(INPUTS_MAX);
        let runner = on_node(number, || runner(place, &client, inputs.clone()));
        let world = Arc::clone(&place.world);
        let kube = world.api().client(&client);
        let settings = session::Settings {
            address: String::new(),
            token_file: PathBuf::new(),
            node: NodeName::from(place.node.as_str()),
            boot_id: clock::boot_id().unwrap(),
            instance: InstanceId::new(client.clone()),
            slots: SLOTS,
        };
        let gateway = Arc::clone(&world.gateways[&place.node]);
        let line = Line {
            world: Arc::clone(&world),
            node: place.node.clone(),
            settings,
            inputs: inputs.clone(),
        };
        let node = NodeName::from(place.node.as_str());
        let task = tokio::spawn(OnNode::new(number, async move {
            let shutdown = CancellationToken::new();
            let watch = watch::run(kube, NAMESPACE.to_owned(), node, inputs.clone());
            tokio::select! {
                ended = runner.run(queue, &shutdown) => ended.unwrap(),
                () = watch => {}
                () = line.run() => {}
                () = link(&gateway, &inputs) => {}
            }
        }));
        Self { client, task, world }
    }

    /// SIGKILL.
    pub fn kill(self) {
        self.world.faults().dead.insert(self.client.clone());
        self.task.abort();
    }

    /// Whether it has ended by itself, which it never should.
    pub fn is_over(&self) -> bool {
        self.task.is_finished()
    }
}

fn runner(place: &Place, client: &str, inputs: mpsc::Sender<Input>) -> Runner {
    std::fs::create_dir_all(&place.dir).unwrap();
    let (ledger, memory, oddities) = Ledger::open(&place.dir).unwrap();
    let pods: Arc<dyn PodApi> = Arc::new(KubePods::new(place.world.api().client(client)));
    let tools = Arc::new(Tools {
        pods: Arc::clone(&pods),
        streams: Arc::new(no_streams(&place.dir)),
        containers: Arc::clone(&place.machine) as _,
        waker: Arc::new(Waker::new()),
        pod_log_dir: place.dir.join("logs"),
        gateway: GatewayAddress::new("10.96.0.1:8080".to_owned()),
        runner_image: "registry.test/runner:1".to_owned(),
        priority_class: None,
        enforcer: Some(Arc::new(ClosedNetwork)),
        own_gateway: None,
        inputs,
        runtime: Handle::current(),
        tasks: TaskTracker::new(),
    });
    let settings = Settings {
        node: NodeName::from(place.node.as_str()),
        slots: SLOTS,
        delivery: None,
        pod_retention: Duration::from_secs(20),
        facts_missing: oddities.facts_may_be_missing(),
        forbidden: vec!["10.244.0.3:8081".parse().unwrap()],
    };
    let gateway = Arc::clone(&place.world.gateways[&place.node]);
    let guards = Guards::new(Arc::new(SimHand { pods, gateway })).unwrap();
    Runner::new(settings, ledger, memory, tools, guards, Arc::new(Metrics::new())).unwrap()
}

/// Streams are no part of the simulation: they are read and written by blocking threads. Their folder
/// is a file, so none can be opened, which costs an attempt its log and nothing else.
fn no_streams(dir: &Path) -> Streams {
    let folder = dir.join("streams");
    let _ = std::fs::remove_file(&folder);
    let streams = Streams::open(&folder, Retention::default()).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::write(&folder, "").unwrap();
    streams
}

/// A node whose enforcer does what it is told.
struct ClosedNetwork;

#[async_trait::async_trait]
impl Enforcer for ClosedNetwork {
    async fn close(&self, _: &CloseOrder) -> Result<Answer, ClientError> {
        // Nobody takes rules away here: whoever asks again finds them.
        Ok(Answer::Closed { device: "veth".to_owned(), index: Some(7), anew: false })
    }
}

/// The hand of the guarded deadlines: its own way to gateway and pods.
struct SimHand {
    pods: Arc<dyn PodApi>,
    gateway: Arc<Gateway>,
}

impl Hand for SimHand {
    fn begin(&self, run: &RunKey, act: Act, guarded: &Guarded, over: CancellationToken) {
        let (run, guarded, pods) = (run.clone(), guarded.clone(), Arc::clone(&self.pods));
        match act {
            Act::Stop => self.gateway.hear(ToGateway::Stop { run, order: guarded.order }),
            Act::Delete => {
                tokio::spawn(over.run_until_cancelled_owned(async move {
                    let delete = || pods.delete(&guarded.namespace, &guarded.pod, &guarded.uid);
                    while delete().await.is_err() {
                        tokio::time::sleep(Duration::from_millis(500)).await;
                    }
                }));
            }
        }
    }
}

/// The link to the gateway; made again whenever it is gone.
async fn link(gateway: &Arc<Gateway>, inputs: &mpsc::Sender<Input>) {
    loop {
        if let Some((live, mut said)) = gateway.connect() {
            let (orders, mut queue) = mpsc::channel(1024);
            for input in [Input::GatewayKnows(live), Input::LinkUp(orders)] {
                if inputs.send(input).await.is_err() {
                    return;
                }
            }
            loop {
                tokio::select! {
                    order = queue.recv() => match order {
                        Some(order) => gateway.hear(order),
                        None => break,
                    },
                    message = said.recv() => match message {
                        Some(message) => if inputs.send(Input::Gateway(message)).await.is_err() {
                            return;
                        },
                        None => break,
                    },
                }
            }
            if inputs.send(Input::LinkDown).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// The session with whichever controller answers.
struct Line {
    world: Arc<World>,
    node: String,
    settings: session::Settings,
    inputs: mpsc::Sender<Input>,
}

impl Line {
    async fn run(&self) {
        loop {
            // Why it ended does not matter here: it is dialled again.
            let _ = self.once().await;
            if self.inputs.send(Input::SessionDown).await.is_err() {
                return;
            }
            self.world.pause(200, 2000).await;
        }
    }

    async fn carry(&self, up: bool) -> Option<()> {
        self.world.carry(&self.node, up).await
    }

    fn controller(&self) -> Option<Arc<super::controller::Handle>> {
        let controllers = self.world.controllers.lock().unwrap();
        let all: Vec<_> = controllers.values().cloned().collect();
        let pick = self.world.rng().usize(0..all.len().max(1));
        all.get(pick).cloned()
    }

    async fn once(&self) -> Option<()> {
        let controller = self.controller()?;
        let (answer, snapshot) = oneshot::channel();
        self.inputs.send(Input::Snapshot(answer)).await.ok()?;
        let snapshot = snapshot.await.ok()?;
        let highest = snapshot.highest_epoch;
        let hello = Up::Hello(wire::hello(&self.settings, snapshot));
        let (up, inbound) = mpsc::channel(WIRE_MAX);
        let (answers, mut down) = mpsc::channel(WIRE_MAX);
        self.carry(true).await?;
        controller.serve(&self.node, ReceiverStream::new(inbound), answers);
        send(&up, hello).await?;
        let epoch = self.greeted(&mut down).await.filter(|epoch| *epoch >= highest)?;
        let (outgoing, reports) = mpsc::channel(1024);
        self.inputs.send(Input::SessionUp { epoch, outgoing }).await.ok()?;
        tokio::select! {
            end = self.read(&mut down) => end,
            end = self.write(reports, &up) => end,
        }
    }

    async fn greeted(
        &self,
        down: &mut mpsc::Receiver<Result<v1::ControllerMessage, tonic::Status>>,
    ) -> Option<Epoch> {
        let first = tokio::time::timeout(Duration::from_secs(10), down.recv()).await.ok()??;
        self.carry(false).await?;
        match first.ok()?.message? {
            Down::Accepted(accepted) => Some(Epoch(accepted.epoch)),
            _ => None,
        }
    }

    async fn read(
        &self,
        down: &mut mpsc::Receiver<Result<v1::ControllerMessage, tonic::Status>>,
    ) -> Option<()> {
        loop {
            let message = down.recv().await?.ok()?.message?;
            self.carry(false).await?;
            if matches!(message, Down::Rejected(_)) {
                return None;
            }
            let twice = self.is_doubled();
            for message in std::iter::repeat_n(message, if twice { 2 } else { 1 }) {
                self.inputs.send(wire::order(message).unwrap()).await.ok()?;
            }
        }
    }

    async fn write(
        &self,
        mut reports: mpsc::Receiver<Outgoing>,
        up: &mpsc::Sender<Result<v1::SupervisorMessage, tonic::Status>>,
    ) -> Option<()> {
        let mut heartbeat = tokio::time::interval(HEARTBEAT_INTERVAL);
        loop {
            let message = tokio::select! {
                report = reports.recv() => wire::outgoing(&report?),
                _ = heartbeat.tick() => Up::Heartbeat(v1::Heartbeat { running: 0 }),
            };
            self.carry(true).await?;
            if self.is_doubled() {
                send(up, message.clone()).await?;
            }
            send(up, message).await?;
        }
    }

    /// Whether a message arrives twice, as after a repetition that was not needed.
    fn is_doubled(&self) -> bool {
        let chaos = self.world.faults().chaos;
        self.world.chance(chaos / 2)
    }
}

async fn send(
    up: &mpsc::Sender<Result<v1::SupervisorMessage, tonic::Status>>,
    message: Up,
) -> Option<()> {
    up.send(Ok(v1::SupervisorMessage { message: Some(message) })).await.ok()
}
