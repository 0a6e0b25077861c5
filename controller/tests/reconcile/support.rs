//! The controller's deciding side on a real API server, with scripted nodes instead of supervisors.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, Once},
    time::Duration,
};

use agent_operator::{
    crd::{AgentRun, CodingTask, all_crds},
    domain::{
        Assignment, Attempt, Credential, Epoch, NodeName, PreflightOrder, PreflightReport, Reason,
        RunKey, Usage,
        ids::{BootId, InstanceId, PodUid},
        preflight::Finding,
        report::{
            LogSummary, Outcome, PullRequest, Report, RunState, SandboxStatus, Started, StepFacts,
        },
        step::StepName,
    },
    telemetry::logs,
};
use agent_operator_controller::{
    fleet::{Command, Judging, KnownAttempt, NodeEvent, NodeView, Nodes, SendError},
    lease::{Election, ElectionConfig, EpochFloor, Leadership, Term, identity},
    metrics::Metrics,
    observe,
    reconcile::{self, Deps},
    settings::Settings,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Namespace, Node, Pod, Secret, ServiceAccount},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    client::{Body, ClientBuilder},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{
    sync::{MutexGuard, OnceCell, mpsc},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// How long something may take that happens in the background.
const LIMIT: Duration = Duration::from_secs(30);

/// A task is seen by every controller of the cluster, so tests take turns.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What has been logged; the audit always is.
static LOGGED: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Keeps what is logged, and shows it with a test that fails.
struct Log;

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOGGED.lock().unwrap().extend_from_slice(bytes);
        eprint!("{}", String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Audit records of one act for the runs of a task.
pub fn audited(task: &CodingTask, act: &str) -> Vec<Value> {
    let logged = String::from_utf8(LOGGED.lock().unwrap().clone()).unwrap();
    let lines = logged.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let uid = task.metadata.uid.as_deref().unwrap();
    lines
        .filter(|line| line["target"] == "audit" && line["act"] == act && line["task_uid"] == uid)
        .collect()
}

/// One test's part of the API server, or none after saying that the test is skipped.
pub struct Ground {
    pub client: Client,
    pub namespace: String,
    _turn: MutexGuard<'static, ()>,
}

pub async fn ground() -> Option<Ground> {
    let client = client().await?;
    let turn = TURN.lock().await;
    clear(&client).await;
    let namespace: Namespace = from_json(json!({"metadata": {"generateName": "reconcile-"}}));
    let namespace = Api::all(client.clone())
        .create(&PostParams::default(), &namespace)
        .await
        .unwrap()
        .name_any();
    Some(Ground { client, namespace, _turn: turn })
}

async fn client() -> Option<Client> {
    static PROVIDER: Once = Once::new();
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    PROVIDER.call_once(|| {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "error".to_owned());
        let log = logs::json_to(&filter, || Log).unwrap();
        tracing::subscriber::set_global_default(log).unwrap();
    });
    // A developer's own cluster is never taken: KUBECONFIG counts only beside the folder that
    // `deploy/local/apiserver` prints.
    let of = |name| std::env::var_os(name).map(PathBuf::from);
    let Some(path) = of("AO_APISERVER_STATE").and_then(|_| of("KUBECONFIG")) else {
        let required = std::env::var_os("AO_REQUIRE_APISERVER").is_some_and(|value| value == "1");
        assert!(!required, "a kube-apiserver is required: eval \"$(deploy/local/apiserver up)\"");
        eprintln!("skipped: no kube-apiserver; eval \"$(deploy/local/apiserver up)\" starts one");
        return None;
    };
    let client = Client::try_from(config(path).await).unwrap();
    INSTALLED.get_or_init(|| install(client.clone())).await;
    Some(client)
}

async fn config(path: PathBuf) -> Config {
    let file = Kubeconfig::read_from(path).unwrap();
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap()
}

async fn install(client: Client) {
    let api: Api<CustomResourceDefinition> = Api::all(client);
    for crd in all_crds() {
        let params = PatchParams::apply("api-tests").force();
        api.patch(&crd.name_any(), &params, &Patch::Apply(&crd)).await.unwrap();
        eventually("the definition is served", async || {
            let found = api.get(&crd.name_any()).await.unwrap();
            let conditions = found.status.unwrap_or_default().conditions.unwrap_or_default();
            conditions.iter().any(|c| c.type_ == "Established" && c.status == "True").then_some(())
        })
        .await;
    }
}

/// What earlier tests left; no garbage collector runs here.
async fn clear(client: &Client) {
    let tasks: Api<CodingTask> = Api::all(client.clone());
    for task in tasks.list(&ListParams::default()).await.unwrap() {
        let api: Api<CodingTask> = Api::namespaced(client.clone(), &task.namespace().unwrap());
        let _ = api.delete(&task.name_any(), &DeleteParams::default()).await;
    }
    let runs: Api<AgentRun> = Api::all(client.clone());
    for run in runs.list(&ListParams::default()).await.unwrap() {
        let api: Api<AgentRun> = Api::namespaced(client.clone(), &run.namespace().unwrap());
        let _ = api.delete(&run.name_any(), &DeleteParams::default()).await;
    }
    let nodes: Api<Node> = Api::all(client.clone());
    for node in nodes.list(&ListParams::default()).await.unwrap() {
        let _ = nodes.delete(&node.name_any(), &DeleteParams::default()).await;
    }
}

impl Ground {
    /// Shows method and path of every request of controllers that are started from here on.
    pub async fn watch_requests(
        &mut self,
        see: impl Fn(&str, &str) + Clone + Send + Sync + 'static,
    ) {
        let path = PathBuf::from(std::env::var_os("KUBECONFIG").unwrap());
        let layer = tower::util::MapRequestLayer::new(move |request: http::Request<Body>| {
            see(request.method().as_str(), request.uri().path());
            request
        });
        let builder = ClientBuilder::try_from(config(path).await).unwrap();
        self.client = builder.with_layer(&layer).build();
    }

    pub fn tasks(&self) -> Api<CodingTask> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn runs(&self) -> Api<AgentRun> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub async fn node(&self, name: &str) {
        self.node_with(name, json!({"cpu": "2", "memory": "4Gi"})).await;
    }

    pub async fn node_with(&self, name: &str, allocatable: Value) {
        let node: Node = from_json(json!({
            "metadata": {"name": name},
            "status": {"allocatable": allocatable},
        }));
        let api: Api<Node> = Api::all(self.client.clone());
        api.create(&PostParams::default(), &node).await.unwrap();
        // The server taints new nodes as not ready, and no node controller runs to take that back.
        let ready = json!({"spec": {"taints": null}});
        api.patch(name, &PatchParams::default(), &Patch::Merge(&ready)).await.unwrap();
    }

    /// A pod as a supervisor of `node` makes it, of a run that does not exist, with these finalizers.
    pub async fn held_pod(&self, node: &str, finalizers: &[&str]) {
        // No controller makes it here.
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        let account = from_json(json!({"metadata": {"name": "default"}}));
        let _ = accounts.create(&PostParams::default(), &account).await;
        let fields = json!([{"key": "metadata.name", "operator": "In", "values": [node]}]);
        let pinned = json!({"nodeSelectorTerms": [{"matchFields": fields}]});
        let pod: Pod = from_json(json!({
            "metadata": {
                "name": node,
                "labels": {
                    "app.kubernetes.io/managed-by": "agent-operator",
                    "agents.wearn.dev/run": "gone",
                },
                "finalizers": finalizers,
                "ownerReferences": [{
                    "apiVersion": "agents.wearn.dev/v1alpha1",
                    "kind": "AgentRun",
                    "name": "gone",
                    "uid": "00000000-0000-0000-0000-00000000dead",
                    "controller": true,
                }],
            },
            "spec": {
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": pinned}},
                "automountServiceAccountToken": false,
                "containers": [{"name": "agent", "image": "registry.test/agent:1"}],
            },
        }));
        self.pods().create(&PostParams::default(), &pod).await.unwrap();
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub async fn finalizers(&self, pod: &str) -> Vec<String> {
        self.pods().get(pod).await.unwrap().metadata.finalizers.unwrap_or_default()
    }

    pub async fn secret(&self) {
        let secret: Secret = from_json(json!({
            "metadata": {"name": "agent-secrets"},
            "stringData": {"anthropic-api-key": "sk-canary\n", "github-token": "ghp-canary"},
        }));
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        api.create(&PostParams::default(), &secret).await.unwrap();
    }

    pub async fn task(&self, name: &str, more: Value) -> CodingTask {
        self.task_with(name, json!({}), more).await
    }

    /// Creates a task with further metadata as well.
    pub async fn task_with(&self, name: &str, metadata: Value, more: Value) -> CodingTask {
        let mut object = json!({
            "apiVersion": "agents.wearn.dev/v1alpha1",
            "kind": "CodingTask",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "source": {"type": "chat", "chat": {"sessionId": "manual-test", "userId": "jackson"}},
                "repository": {"url": "https://github.com/jcwearn/example-repo.git", "branch": "main"},
                "prompt": "Add a /healthz endpoint that returns 200 OK",
                "anthropicApiKeyRef": {"name": "agent-secrets", "key": "anthropic-api-key"},
                "gitCredentialsRef": {"name": "agent-secrets", "key": "github-token"},
            },
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            object["spec"][field] = value.clone();
        }
        for (field, value) in metadata.as_object().into_iter().flatten() {
            object["metadata"][field] = value.clone();
        }
        self.tasks().create(&PostParams::default(), &from_json(object)).await.unwrap()
    }

    /// Waits until the task's phase is `phase`.
    pub async fn phase(&self, name: &str, phase: &str) -> CodingTask {
        let api = self.tasks();
        eventually(&format!("{name} is {phase}"), async || {
            let task = api.get(name).await.unwrap();
            let present = task.status.as_ref().and_then(|status| status.phase.clone());
            (present.as_deref() == Some(phase)).then_some(task)
        })
        .await
    }

    pub async fn all_runs(&self) -> Vec<AgentRun> {
        self.runs().list(&ListParams::default()).await.unwrap().items
    }
}

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

/// What a scripted node does with a step.
pub type Script = Box<dyn Fn(&Assignment) -> Option<Outcome> + Send + Sync>;

/// Scripted nodes.
pub struct Fleet {
    nodes: Vec<NodeName>,
    slots: u32,
    script: Script,
    inner: Mutex<FleetInner>,
}

#[derive(Default)]
struct FleetInner {
    events: Option<mpsc::Sender<NodeEvent>>,
    /// All controllers that were attached, the last one as `events`.
    attached: Vec<mpsc::Sender<NodeEvent>>,
    /// How often a node began an attempt.
    started: BTreeMap<RunKey, u32>,
    /// Every command with a name of its kind, in order.
    commands: Vec<(NodeName, Command)>,
    /// Attempts the nodes hold: what became of them, if it is not acknowledged.
    ledger: BTreeMap<RunKey, (NodeName, Assignment, Option<Outcome>)>,
    acknowledged: Vec<RunKey>,
    highest: Epoch,
    findings: Vec<Finding>,
}

impl Fleet {
    pub fn new(nodes: &[&str], script: Script) -> Arc<Self> {
        Self::with_slots(nodes, 4, script)
    }

    /// Nodes for this many attempts each.
    pub fn with_slots(nodes: &[&str], slots: u32, script: Script) -> Arc<Self> {
        let nodes = nodes.iter().copied().map(NodeName::from).collect();
        Arc::new(Self { nodes, slots, script, inner: Mutex::default() })
    }

    /// How often the nodes began each attempt.
    pub fn started(&self) -> BTreeMap<RunKey, u32> {
        self.inner.lock().unwrap().started.clone()
    }

    /// What preflights find from now on.
    pub fn find(&self, findings: Vec<Finding>) {
        self.inner.lock().unwrap().findings = findings;
    }

    fn view(&self, name: &NodeName) -> NodeView {
        NodeView {
            name: name.clone(),
            instance: InstanceId::from("instance"),
            boot: BootId::from("boot"),
            slots: self.slots,
            running: 0,
            highest_epoch: self.inner.lock().unwrap().highest,
            runner_delivery: "imageVolume".to_owned(),
            asks_preflights: true,
            holds: true,
        }
    }

    /// All nodes say hello to a controller, and then report what it does not know.
    async fn attach(&self, events: mpsc::Sender<NodeEvent>) {
        {
            let mut inner = self.inner.lock().unwrap();
            inner.events = Some(events.clone());
            inner.attached.retain(|events| !events.is_closed());
            inner.attached.push(events.clone());
        }
        for name in &self.nodes {
            let held: Vec<_> = {
                let inner = self.inner.lock().unwrap();
                let held = inner
                    .ledger
                    .iter()
                    .filter(|(key, (node, ..))| node == name && !inner.acknowledged.contains(key));
                held.map(|(_, (_, assignment, outcome))| (assignment.clone(), outcome.clone()))
                    .collect()
            };
            let known = held
                .iter()
                .map(|(assignment, outcome)| KnownAttempt {
                    run: assignment.run.clone(),
                    attempt: assignment.attempt,
                    epoch: assignment.epoch,
                    phase: outcome
                        .as_ref()
                        .map_or("Running", |o| o.phase().as_str())
                        .parse()
                        .unwrap(),
                })
                .collect();
            let node = self.view(name);
            let judging = Judging::default();
            events.send(NodeEvent::Connected { node, known, judging }).await.unwrap();
            for (assignment, outcome) in held {
                if let Some(outcome) = outcome {
                    let report = finished(&assignment, outcome);
                    events.send(NodeEvent::Report { node: name.clone(), report }).await.unwrap();
                }
            }
        }
    }

    pub async fn say(&self, event: NodeEvent) {
        let events = self.inner.lock().unwrap().events.clone().unwrap();
        events.send(event).await.unwrap();
    }

    /// The attempts that a node holds and that go on, by step.
    pub fn hanging(&self) -> Vec<Assignment> {
        let inner = self.inner.lock().unwrap();
        let ledger = inner.ledger.values();
        ledger.filter(|(_, _, end)| end.is_none()).map(|(_, a, _)| a.clone()).collect()
    }

    /// An attempt ends while no controller is there to be told.
    pub fn end_unheard(&self, assignment: &Assignment, outcome: Outcome) {
        let mut inner = self.inner.lock().unwrap();
        inner.ledger.get_mut(&assignment.key()).unwrap().2 = Some(outcome);
    }

    pub async fn finish(&self, assignment: &Assignment, outcome: Outcome) {
        let report = finished(assignment, outcome.clone());
        self.end_unheard(assignment, outcome);
        self.say(NodeEvent::Report { node: assignment.node.clone(), report }).await;
    }

    pub fn assignments(&self) -> Vec<(Assignment, Vec<Credential>)> {
        let inner = self.inner.lock().unwrap();
        let of = |(_, command): &(NodeName, Command)| match command {
            Command::Assign { assignment, credentials, .. } => {
                Some(((**assignment).clone(), credentials.clone()))
            }
            _ => None,
        };
        inner.commands.iter().filter_map(of).collect()
    }

    pub fn preflights(&self) -> Vec<(PreflightOrder, Vec<Credential>)> {
        let inner = self.inner.lock().unwrap();
        let of = |(_, command): &(NodeName, Command)| match command {
            Command::Preflight { order, credentials } => {
                Some(((**order).clone(), credentials.clone()))
            }
            _ => None,
        };
        inner.commands.iter().filter_map(of).collect()
    }

    pub fn cancels(&self) -> Vec<(RunKey, Reason)> {
        let inner = self.inner.lock().unwrap();
        let of = |(_, command): &(NodeName, Command)| match command {
            Command::Cancel { run, reason, .. } => Some((run.clone(), *reason)),
            _ => None,
        };
        inner.commands.iter().filter_map(of).collect()
    }

    pub fn commands(&self) -> Vec<Command> {
        self.inner.lock().unwrap().commands.iter().map(|(_, command)| command.clone()).collect()
    }
}

impl FleetInner {
    fn tell_all(&self, event: &NodeEvent) {
        for events in self.attached.clone() {
            let event = event.clone();
            tokio::spawn(async move {
                let _ = events.send(event).await;
            });
        }
    }
}

impl Nodes for Fleet {
    fn snapshot(&self) -> Vec<NodeView> {
        self.nodes.iter().map(|name| self.view(name)).collect()
    }

    fn send(&self, node: &NodeName, command: Command) -> Result<(), SendError> {
        let mut inner = self.inner.lock().unwrap();
        inner.commands.push((node.clone(), command.clone()));
        match command {
            Command::Assign { assignment, .. } => {
                if assignment.epoch < inner.highest {
                    // As a supervisor: told, and not obeyed.
                    let refused = Some(("StaleEpoch".to_owned(), "an older epoch".to_owned()));
                    inner.tell_all(&NodeEvent::AssignmentAck {
                        node: node.clone(),
                        run: assignment.key(),
                        refused,
                    });
                    return Ok(());
                }
                inner.highest = assignment.epoch;
                if inner.ledger.contains_key(&assignment.key()) {
                    return Ok(());
                }
                let outcome = (self.script)(&assignment);
                let key = assignment.key();
                *inner.started.entry(key.clone()).or_default() += 1;
                inner.ledger.insert(key, (node.clone(), (*assignment).clone(), outcome.clone()));
                // A session has one controller; that of two at once is not known here, so both hear it.
                for events in inner.attached.clone() {
                    let (node, assignment) = (node.clone(), assignment.clone());
                    let outcome = outcome.clone();
                    tokio::spawn(async move {
                        let report = Box::new(started(&assignment));
                        let _ = events.send(NodeEvent::Report { node: node.clone(), report }).await;
                        if let Some(outcome) = outcome {
                            let report = finished(&assignment, outcome);
                            let _ = events.send(NodeEvent::Report { node, report }).await;
                        }
                    });
                }
            }
            Command::Preflight { order, .. } => {
                let report = PreflightReport {
                    key: order.key,
                    findings: inner.findings.clone(),
                    notes: Vec::new(),
                };
                let report = Box::new(report);
                inner.tell_all(&NodeEvent::Preflight { node: node.clone(), report });
            }
            Command::ReportAck { run, sequence: 2 } => inner.acknowledged.push(run),
            _ => {}
        }
        Ok(())
    }
}

fn started(assignment: &Assignment) -> Report {
    report(
        assignment,
        1,
        RunState::Running(Started {
            pod_name: format!("{}-pod", assignment.run.name),
            pod_uid: PodUid::from("pod"),
            started_at: Timestamp::from_second(1_800_000_000).unwrap(),
            sandbox: SandboxStatus::default(),
        }),
    )
}

fn finished(assignment: &Assignment, outcome: Outcome) -> Box<Report> {
    Box::new(report(assignment, 2, RunState::Finished(Box::new(outcome))))
}

fn report(assignment: &Assignment, sequence: u64, state: RunState) -> Report {
    Report {
        run: assignment.run.clone(),
        attempt: assignment.attempt,
        epoch: assignment.epoch,
        sequence,
        state,
    }
}

/// How a step ends.
pub fn outcome(assignment: &Assignment, reason: Reason) -> Outcome {
    let well = reason == Reason::Completed;
    let step = assignment.step;
    Outcome {
        reason,
        message: format!("step {step} ended"),
        start_fault: None,
        exit_code: Some(i32::from(!well)),
        pod_name: Some(format!("{}-pod", assignment.run.name)),
        started_at: Some(Timestamp::from_second(1_800_000_000).unwrap()),
        completed_at: Timestamp::from_second(1_800_000_010).unwrap(),
        result: StepFacts {
            output: Some(format!("output of {step} {}", assignment.attempt)),
            command: (step == StepName::Test).then(|| vec!["npm".to_owned(), "test".to_owned()]),
            base_commit: (step == StepName::Plan).then(|| "b".repeat(40)),
            head_commit: (step == StepName::Implement && well).then(|| "c".repeat(40)),
            work_branch: (step == StepName::Implement).then(|| "ai/sample".to_owned()),
            pull_request: (step == StepName::PullRequest && well).then(|| PullRequest {
                url: "https://github.com/jcwearn/example-repo/pull/7".to_owned(),
                number: 7,
            }),
        },
        usage: Usage { turns: 1, input_tokens: 100, ..Usage::default() },
        sandbox: SandboxStatus::default(),
        log: LogSummary { bytes: 10, gaps: 0 },
        refusals: Vec::new(),
    }
}

/// A script in which every step ends well.
pub fn all_well() -> Script {
    Box::new(|assignment| Some(outcome(assignment, Reason::Completed)))
}

/// A script in which `step` hangs the first time and all else ends well.
pub fn hang_at(step: StepName) -> Script {
    Box::new(move |assignment| {
        let hangs = assignment.step == step && assignment.attempt == Attempt(1);
        (!hangs).then(|| outcome(assignment, Reason::Completed))
    })
}

pub fn from_json<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Repeats `attempt` until it gives something, within a limit.
pub async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let repeat = async {
        loop {
            if let Some(result) = attempt().await {
                return result;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, repeat).await.unwrap_or_else(|_| panic!("not in {LIMIT:?}: {what}"))
}
