//! One life of a supervisor, over doubles of the API server and of the gateway that outlive it.

use super::*;

pub(super) const LIMIT: Duration = Duration::from_secs(20);
/// A restart moves no deadline by more than this.
pub(super) const DEADLINE_KEPT_TO: Duration = Duration::from_millis(100);
/// How long a supervisor is away in tests of what it says of the time.
pub(super) const AWAY: Duration = Duration::from_secs(7);

/// Pods by name, with finalizers and uids like a real server.
#[derive(Default)]
pub(super) struct FakePods {
    pub(super) pods: Mutex<HashMap<String, Pod>>,
    pub(super) creations: Mutex<u32>,
    /// The next creation works, but its answer is lost.
    pub(super) lose_answer: AtomicBool,
    /// How often a run was read.
    pub(super) looks: AtomicU32,
    /// All calls, in order.
    pub(super) calls: Mutex<Vec<&'static str>>,
    /// The run's phase; none while there is no run.
    pub(super) phase: Mutex<Option<RunPhase>>,
    /// What the gateway tells in its greeting.
    pub(super) gateway_knows: Mutex<Vec<RunKey>>,
    /// The node's enforcer, if it has one.
    pub(super) enforcer: Mutex<Option<Arc<dyn Enforcer>>>,
    /// The gateway in the supervisor's own pod, of the next life.
    pub(super) own_gateway: Mutex<Option<SocketAddr>>,
    /// Runs whose pods are to be counted one by one, not held to one.
    pub(super) many: AtomicBool,
    /// The delivery that an argument sets.
    pub(super) delivery: Mutex<Option<Delivery>>,
    /// Where the clocks of the next life stand still; none: they are the system's.
    pub(super) still_at: Mutex<Option<Now>>,
}

impl FakePods {
    pub(super) fn called(&self, call: &'static str) {
        self.calls.lock().unwrap().push(call);
    }

    pub(super) fn only(&self) -> Option<Pod> {
        let pods = self.pods.lock().unwrap();
        assert!(pods.len() <= 1 || self.many.load(Ordering::SeqCst), "never a second pod");
        pods.values().next().cloned()
    }

    /// Lets the clocks of the next life stand still, `later` than those of the one before; gives where.
    pub(super) fn stand_still(&self, later: Duration) -> Now {
        let mut still_at = self.still_at.lock().unwrap();
        let before = still_at.unwrap_or_else(clock::now);
        let wall = before.wall.checked_add(later).unwrap();
        *still_at.insert(Now { boot: before.boot.plus(later), wall })
    }

    pub(super) fn set_status(&self, status: serde_json::Value) -> Pod {
        self.set_status_of("", status)
    }

    /// As [`Self::set_status`], of the pod whose name begins so.
    pub(super) fn set_status_of(&self, prefix: &str, status: serde_json::Value) -> Pod {
        let mut pods = self.pods.lock().unwrap();
        let mut of_prefix = pods.iter_mut().filter(|(name, _)| name.starts_with(prefix));
        let (_, pod) = of_prefix.next().expect("a pod");
        pod.spec.as_mut().unwrap().node_name = Some("node-a".into());
        pod.status = Some(serde_json::from_value(status).unwrap());
        pod.clone()
    }
}

#[async_trait]
impl PodApi for FakePods {
    async fn create(&self, pod: &Pod) -> Result<Pod, PodError> {
        self.called("create pod");
        let mut pods = self.pods.lock().unwrap();
        let name = pod.metadata.name.clone().unwrap();
        if pods.contains_key(&name) {
            return Err(PodError::Exists);
        }
        *self.creations.lock().unwrap() += 1;
        let mut pod = pod.clone();
        let number = if self.many.load(Ordering::SeqCst) { name.as_str() } else { "uid" };
        pod.metadata.uid = Some(format!("pod-{number}"));
        pods.insert(name, pod.clone());
        if self.lose_answer.swap(false, Ordering::SeqCst) {
            return Err(PodError::TimeOut);
        }
        Ok(pod)
    }

    async fn get(&self, _: &str, name: &str) -> Result<Option<Pod>, PodError> {
        self.called("get pod");
        Ok(self.pods.lock().unwrap().get(name).cloned())
    }

    async fn run(&self, _: &str, name: &str) -> Result<Option<RunOnServer>, PodError> {
        self.called("get run");
        self.looks.fetch_add(1, Ordering::SeqCst);
        let Some(phase) = *self.phase.lock().unwrap() else { return Ok(None) };
        let started = clock::now().wall.checked_sub(Duration::from_secs(20)).unwrap();
        let of_sample = assignment().run;
        let uid = if name == of_sample.name { of_sample.uid } else { RunUid::from(name) };
        Ok(Some(RunOnServer {
            uid,
            attempt: assignment().attempt,
            node: "node-a".into(),
            epoch: Epoch(2),
            timeout: Some(assignment().timeout()),
            phase,
            started_at: (phase == RunPhase::Running).then_some(started),
        }))
    }

    async fn delete(&self, _: &str, name: &str, uid: &PodUid) -> Result<(), PodError> {
        self.called("delete pod");
        let mut pods = self.pods.lock().unwrap();
        if let Some(pod) = pods.get_mut(name) {
            assert_eq!(pod.metadata.uid.as_deref(), Some(uid.as_str()));
            let time = jiff::Timestamp::UNIX_EPOCH;
            pod.metadata.deletion_timestamp =
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(time));
            // As the kubelet does: the container ends.
            pod.status = Some(serde_json::from_value(terminated(137)).unwrap());
            if pod.metadata.finalizers.as_ref().is_none_or(Vec::is_empty) {
                pods.remove(name);
            }
        }
        Ok(())
    }

    async fn remove_finalizer(&self, _: &str, name: &str, _: &PodUid) -> Result<(), PodError> {
        self.called("release pod");
        let mut pods = self.pods.lock().unwrap();
        if let Some(pod) = pods.get_mut(name) {
            pod.metadata.finalizers = None;
            if pod.metadata.deletion_timestamp.is_some() {
                pods.remove(name);
            }
        }
        Ok(())
    }
}

pub(super) fn started() -> serde_json::Value {
    json!({"phase": "Running", "podIP": "10.244.0.7", "containerStatuses": [
        {"name": "agent", "image": "", "imageID": "", "ready": true, "restartCount": 0,
         "containerID": "containerd://c0ffee", "state": {"running": {}}}]})
}

pub(super) fn terminated(code: i32) -> serde_json::Value {
    json!({"phase": "Running", "podIP": "10.244.0.7", "containerStatuses": [
        {"name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 0,
         "containerID": "containerd://c0ffee",
         "state": {"terminated": {"exitCode": code, "reason": "Error"}}}]})
}

thread_local! {
    /// Where the clocks of a runner's thread stand still.
    static STILL: Cell<Now> = const {
        Cell::new(Now { boot: BootTime(0), wall: jiff::Timestamp::UNIX_EPOCH })
    };
}

/// Runs on a thread of its own whose clocks stand still: what it says of the time that is left does not
/// depend on when it comes to say it.
pub(super) fn run_still(
    runner: Runner,
    queue: mpsc::Receiver<Input>,
    shutdown: &CancellationToken,
    at: Now,
) -> Result<(), RunnerError> {
    std::thread::scope(|threads| {
        let running = threads.spawn(|| {
            STILL.set(at);
            let boot_id = || unreachable!("a runner asks for it once, when it is made");
            clock::simulate(clock::Simulated { now: || STILL.get(), boot_id });
            runner.run_blocking(queue, shutdown)
        });
        running.join().expect("the runner itself does not fail")
    })
}

/// Asserts that the time which was left at one moment and at a later one ends at the same moment.
pub(super) fn assert_kept((then, left_then): (Now, Duration), (now, left_now): (Now, Duration)) {
    let (before, after) = (then.boot.plus(left_then), now.boot.plus(left_now));
    let apart = before.since(after).max(after.since(before));
    assert!(apart <= DEADLINE_KEPT_TO, "{apart:?} apart: {left_then:?} then, {left_now:?} now");
}

/// Leaves deadlines to the runner, whose own part these tests are about.
pub(super) struct NoHand;

impl crate::steps::guard::Hand for NoHand {
    fn begin(
        &self,
        _: &RunKey,
        _: crate::steps::guard::Act,
        _: &crate::steps::guard::Guarded,
        _: CancellationToken,
    ) {
    }
}

/// One life of a supervisor over directories and pods that outlive it.
pub(super) struct Life {
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) session: mpsc::Receiver<Outgoing>,
    pub(super) gateway: mpsc::Receiver<ToGateway>,
    /// Also for a test that fails: the runtime waits for the runner's thread.
    pub(super) shutdown: DropGuard,
    pub(super) runner: tokio::task::JoinHandle<Result<(), RunnerError>>,
    pub(super) streams: Arc<Streams>,
    /// Whether orders are the first for their runs: where no ledger was lost.
    pub(super) first: bool,
}

impl Life {
    pub(super) async fn start(dir: &Path, pods: &Arc<FakePods>) -> Self {
        Self::start_on(Box::new(RealDisk), dir, pods).await
    }

    pub(super) async fn start_on(disk: Box<dyn Disk>, dir: &Path, pods: &Arc<FakePods>) -> Self {
        Self::start_traced(disk, dir, pods, Tracer::off()).await
    }

    pub(super) async fn start_traced(
        disk: Box<dyn Disk>,
        dir: &Path,
        pods: &Arc<FakePods>,
        tracer: Tracer,
    ) -> Self {
        let (inputs, queue) = mpsc::channel(INPUTS_MAX);
        let streams = Arc::new(Streams::open(&dir.join("streams"), Retention::default()).unwrap());
        let tools = Arc::new(Tools {
            pods: Arc::clone(pods) as Arc<dyn PodApi>,
            streams: Arc::clone(&streams),
            containers: Arc::new(Cgroups::new(&dir.join("cgroup"))),
            waker: Arc::new(Waker::new()),
            pod_log_dir: dir.join("logs"),
            gateway: GatewayAddress::new("127.0.0.1:8080".into()),
            runner_image: "runner:1".into(),
            priority_class: None,
            enforcer: pods.enforcer.lock().unwrap().clone(),
            own_gateway: *pods.own_gateway.lock().unwrap(),
            inputs: inputs.clone(),
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
        });
        let settings = Settings {
            node: "node-a".into(),
            slots: if pods.many.load(Ordering::SeqCst) { 1000 } else { 1 },
            delivery: *pods.delivery.lock().unwrap(),
            pod_retention: Duration::ZERO,
            facts_missing: false,
            forbidden: Vec::new(),
        };
        let (ledger, memory, oddities) = Ledger::open_on(disk, dir).unwrap();
        // A test that says nothing of a run is about a node whose ledger was never lost.
        let facts_missing = oddities.facts_may_be_missing() && pods.phase.lock().unwrap().is_some();
        let (settings, first) = (Settings { facts_missing, ..settings }, !facts_missing);
        let metrics = Arc::new(Metrics::new());
        let guards = Guards::new(Arc::new(NoHand)).unwrap();
        let runner = Runner::new(settings, ledger, memory, tools, guards, metrics).unwrap();
        let runner = runner.with_tracer(tracer);
        let shutdown = CancellationToken::new();
        let of_runner = shutdown.clone();
        let still_at = *pods.still_at.lock().unwrap();
        let runner = tokio::task::spawn_blocking(move || match still_at {
            Some(at) => run_still(runner, queue, &of_runner, at),
            None => runner.run_blocking(queue, &of_runner),
        });
        let (_, gateway) = mpsc::channel(1);
        let (outgoing, session) = mpsc::channel(1024);
        let shutdown = shutdown.drop_guard();
        let mut life = Self { inputs, session, gateway, shutdown, runner, streams, first };
        life.link(pods).await;
        life.send(Input::SessionUp { epoch: Epoch(3), outgoing }).await;
        life
    }

    /// A new link to the gateway.
    pub(super) async fn link(&mut self, pods: &FakePods) {
        let (to_gateway, gateway) = mpsc::channel(1024);
        self.gateway = gateway;
        let known = pods.gateway_knows.lock().unwrap().clone();
        self.send(Input::GatewayKnows(known)).await;
        self.send(Input::LinkUp(to_gateway)).await;
    }

    pub(super) async fn send(&self, input: Input) {
        self.inputs.send(input).await.unwrap();
    }

    pub(super) async fn assign(&self, assignment: Assignment) {
        self.order(assignment, self.first).await;
    }

    pub(super) async fn order(&self, assignment: Assignment, first: bool) {
        let (assignment, credentials) = (Box::new(assignment), vec![credential()]);
        self.send(Input::Assign { assignment, credentials, first }).await;
    }

    pub(super) async fn durable(&mut self, id: u64, event: DurableEvent) {
        let run = assignment().key();
        self.send(Input::Gateway(FromGateway::Durable { id, run, event })).await;
        self.told(|message| matches!(message, ToGateway::Ack { id: acked } if *acked == id)).await;
    }

    /// How runners get into pods, as the next Hello says it.
    pub(super) async fn delivery(&self) -> Option<Delivery> {
        let (answer, snapshot) = tokio::sync::oneshot::channel();
        self.send(Input::Snapshot(answer)).await;
        snapshot.await.unwrap().delivery
    }

    pub(super) async fn see(&self, pod: &Pod) {
        let digest = Box::new(digest(pod));
        self.send(Input::PodSeen { run: assignment().key(), digest }).await;
    }

    /// Waits for a message to the gateway; others are skipped.
    pub(super) async fn told(&mut self, wanted: impl Fn(&ToGateway) -> bool) -> ToGateway {
        let wait = async {
            loop {
                let message = self.gateway.recv().await.expect("the link is up");
                if wanted(&message) {
                    return message;
                }
            }
        };
        tokio::time::timeout(LIMIT, wait).await.expect("a message to the gateway in time")
    }

    /// Waits for the next words to the controller.
    pub(super) async fn said(&mut self) -> Outgoing {
        let said = tokio::time::timeout(LIMIT, self.session.recv()).await;
        said.expect("words to the controller in time").expect("the session is up")
    }

    pub(super) async fn outcome(&mut self) -> agent_operator::domain::report::Outcome {
        loop {
            if let Outgoing::Report(report) = self.said().await
                && let RunState::Finished(outcome) = report.state
            {
                assert_eq!(report.sequence, SEQUENCE_FINISHED);
                return *outcome;
            }
        }
    }

    /// The next grant that the gateway is told.
    pub(super) async fn registered(&mut self) -> Box<Grant> {
        let told = self.told(|message| matches!(message, ToGateway::Register(_))).await;
        let ToGateway::Register(grant) = told else { unreachable!() };
        grant
    }

    /// Takes an assigned attempt to an open gate; the time that it is told to have.
    pub(super) async fn open_gate(&mut self, pods: &FakePods) -> Duration {
        wait_until(|| pods.only().is_some()).await;
        let from_pod = Redemption { ..redemption() };
        self.durable(1, DurableEvent::Redeemed(from_pod)).await;
        self.durable(2, DurableEvent::AtGate(GateRequest::default())).await;
        // The pod's creation is known to the machine once its observation is taken.
        loop {
            self.see(&pods.set_status(started())).await;
            let open = self.told(|message| matches!(message, ToGateway::OpenGate { .. }));
            if let Ok(ToGateway::OpenGate { remaining_millis, .. }) =
                tokio::time::timeout(Duration::from_millis(200), open).await
            {
                return Duration::from_millis(remaining_millis);
            }
        }
    }

    /// The same behind the rules of an enforcer, which its probe has seen to hold.
    pub(super) async fn open_probed_gate(&mut self, pods: &FakePods) {
        wait_until(|| pods.only().is_some()).await;
        self.durable(1, DurableEvent::Redeemed(redemption())).await;
        let at_gate = GateRequest { canary_before: Some(true), ..GateRequest::default() };
        self.durable(2, DurableEvent::AtGate(at_gate.clone())).await;
        self.told(|message| matches!(message, ToGateway::Probe { .. })).await;
        let tried = vec!["10.244.0.3:8081".parse().unwrap()];
        let probe = Some(ProbeReport { tried, reached: Vec::new() });
        self.durable(3, DurableEvent::AtGate(GateRequest { probe, ..at_gate })).await;
        self.see(&pods.set_status(started())).await;
        self.told(|message| matches!(message, ToGateway::OpenGate { .. })).await;
    }

    /// As SIGKILL: nothing is said, nothing is closed.
    pub(super) async fn kill(self) {
        drop(self.shutdown);
        self.runner.await.unwrap().unwrap();
    }
}

pub(super) async fn wait_until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("the condition in time");
}

pub(super) fn result_event() -> DurableEvent {
    let usage = Usage { turns: 2, ..Usage::default() };
    DurableEvent::Result { result: Box::new(completed()), usage, refusals: vec![] }
}

/// The container's cgroup, with a process in it.
pub(super) fn container_cgroup(dir: &Path) -> std::path::PathBuf {
    let folder = dir.join("cgroup/pids/kubepods/podpod-uid/c0ffee");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("pids.current"), "7\n").unwrap();
    folder
}
