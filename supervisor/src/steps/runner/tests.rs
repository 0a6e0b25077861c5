//! Whole attempts: the real runner, ledger, machine, workers and streams over a double of the API
//! server and of the gateway.

use std::{
    cell::Cell,
    collections::HashMap,
    path::Path,
    sync::{
        Mutex,
        atomic::Ordering,
        atomic::{AtomicBool, AtomicU32},
    },
};

use agent_operator::{
    attempt::GateRequest,
    domain::{RunUid, Usage, ids::PodUid, report::RunState},
};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::*;
use crate::{
    ledger::disk::{Disk, RealDisk},
    link::contract::{DurableEvent, Grant, Redemption},
    pod::{
        adoption::RunOnServer,
        cgroup::Cgroups,
        client::{PodApi, PodError},
        digest::digest,
        logs::Waker,
    },
    steps::{
        machine::SEQUENCE_FINISHED,
        moment::{BootTime, Now},
        workers::GatewayAddress,
    },
    streams::{Retention, Streams},
    testing::{assignment, completed, credential, redemption},
};

const LIMIT: Duration = Duration::from_secs(20);
/// A restart moves no deadline by more than this.
const DEADLINE_KEPT_TO: Duration = Duration::from_millis(100);
/// How long a supervisor is away in tests of what it says of the time.
const AWAY: Duration = Duration::from_secs(7);

/// Pods by name, with finalizers and uids like a real server.
#[derive(Default)]
struct FakePods {
    pods: Mutex<HashMap<String, Pod>>,
    creations: Mutex<u32>,
    /// The next creation works, but its answer is lost.
    lose_answer: AtomicBool,
    /// How often a run was read.
    looks: AtomicU32,
    /// All calls, in order.
    calls: Mutex<Vec<&'static str>>,
    /// The run's phase; none while there is no run.
    phase: Mutex<Option<RunPhase>>,
    /// What the gateway tells in its greeting.
    gateway_knows: Mutex<Vec<RunKey>>,
    /// Runs whose pods are to be counted one by one, not held to one.
    many: AtomicBool,
    /// The delivery that an argument sets.
    delivery: Mutex<Option<Delivery>>,
    /// Where the clocks of the next life stand still; none: they are the system's.
    still_at: Mutex<Option<Now>>,
}

impl FakePods {
    fn called(&self, call: &'static str) {
        self.calls.lock().unwrap().push(call);
    }

    fn only(&self) -> Option<Pod> {
        let pods = self.pods.lock().unwrap();
        assert!(pods.len() <= 1 || self.many.load(Ordering::SeqCst), "never a second pod");
        pods.values().next().cloned()
    }

    /// Lets the clocks of the next life stand still, `later` than those of the one before; gives where.
    fn stand_still(&self, later: Duration) -> Now {
        let mut still_at = self.still_at.lock().unwrap();
        let before = still_at.unwrap_or_else(clock::now);
        let wall = before.wall.checked_add(later).unwrap();
        *still_at.insert(Now { boot: before.boot.plus(later), wall })
    }

    fn set_status(&self, status: serde_json::Value) -> Pod {
        self.set_status_of("", status)
    }

    /// As [`Self::set_status`], of the pod whose name begins so.
    fn set_status_of(&self, prefix: &str, status: serde_json::Value) -> Pod {
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

fn started() -> serde_json::Value {
    json!({"phase": "Running", "podIP": "10.244.0.7", "containerStatuses": [
        {"name": "agent", "image": "", "imageID": "", "ready": true, "restartCount": 0,
         "containerID": "containerd://c0ffee", "state": {"running": {}}}]})
}

fn terminated(code: i32) -> serde_json::Value {
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
fn run_still(
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
fn assert_kept((then, left_then): (Now, Duration), (now, left_now): (Now, Duration)) {
    let (before, after) = (then.boot.plus(left_then), now.boot.plus(left_now));
    let apart = before.since(after).max(after.since(before));
    assert!(apart <= DEADLINE_KEPT_TO, "{apart:?} apart: {left_then:?} then, {left_now:?} now");
}

/// Leaves deadlines to the runner, whose own part these tests are about.
struct NoHand;

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
struct Life {
    inputs: mpsc::Sender<Input>,
    session: mpsc::Receiver<Outgoing>,
    gateway: mpsc::Receiver<ToGateway>,
    shutdown: CancellationToken,
    runner: tokio::task::JoinHandle<Result<(), RunnerError>>,
    streams: Arc<Streams>,
}

impl Life {
    async fn start(dir: &Path, pods: &Arc<FakePods>) -> Self {
        Self::start_on(Box::new(RealDisk), dir, pods).await
    }

    async fn start_on(disk: Box<dyn Disk>, dir: &Path, pods: &Arc<FakePods>) -> Self {
        Self::start_traced(disk, dir, pods, Tracer::off()).await
    }

    async fn start_traced(
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
            enforcer: None,
            own_gateway: None,
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
        let settings = Settings { facts_missing, ..settings };
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
        let (to_gateway, gateway) = mpsc::channel(1024);
        let known = pods.gateway_knows.lock().unwrap().clone();
        inputs.send(Input::GatewayKnows(known)).await.unwrap();
        inputs.send(Input::LinkUp(to_gateway)).await.unwrap();
        let (outgoing, session) = mpsc::channel(1024);
        inputs.send(Input::SessionUp { epoch: Epoch(3), outgoing }).await.unwrap();
        Self { inputs, session, gateway, shutdown, runner, streams }
    }

    async fn send(&self, input: Input) {
        self.inputs.send(input).await.unwrap();
    }

    async fn assign(&self, assignment: Assignment) {
        self.order(assignment, false).await;
    }

    async fn order(&self, assignment: Assignment, first: bool) {
        let (assignment, credentials) = (Box::new(assignment), vec![credential()]);
        self.send(Input::Assign { assignment, credentials, first }).await;
    }

    async fn durable(&mut self, id: u64, event: DurableEvent) {
        let run = assignment().key();
        self.send(Input::Gateway(FromGateway::Durable { id, run, event })).await;
        self.told(|message| matches!(message, ToGateway::Ack { id: acked } if *acked == id)).await;
    }

    /// How runners get into pods, as the next Hello says it.
    async fn delivery(&self) -> Option<Delivery> {
        let (answer, snapshot) = tokio::sync::oneshot::channel();
        self.send(Input::Snapshot(answer)).await;
        snapshot.await.unwrap().delivery
    }

    async fn see(&self, pod: &Pod) {
        let digest = Box::new(digest(pod));
        self.send(Input::PodSeen { run: assignment().key(), digest }).await;
    }

    /// Waits for a message to the gateway; others are skipped.
    async fn told(&mut self, wanted: impl Fn(&ToGateway) -> bool) -> ToGateway {
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
    async fn said(&mut self) -> Outgoing {
        let said = tokio::time::timeout(LIMIT, self.session.recv()).await;
        said.expect("words to the controller in time").expect("the session is up")
    }

    async fn outcome(&mut self) -> agent_operator::domain::report::Outcome {
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
    async fn registered(&mut self) -> Box<Grant> {
        let told = self.told(|message| matches!(message, ToGateway::Register(_))).await;
        let ToGateway::Register(grant) = told else { unreachable!() };
        grant
    }

    /// Takes an assigned attempt to an open gate; the time that it is told to have.
    async fn open_gate(&mut self, pods: &FakePods) -> Duration {
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

    /// As SIGKILL: nothing is said, nothing is closed.
    async fn kill(self) {
        self.shutdown.cancel();
        self.runner.await.unwrap().unwrap();
    }
}

async fn wait_until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("the condition in time");
}

fn result_event() -> DurableEvent {
    let usage = Usage { turns: 2, ..Usage::default() };
    DurableEvent::Result { result: Box::new(completed()), usage, refusals: vec![] }
}

/// The container's cgroup, with a process in it.
fn container_cgroup(dir: &Path) -> std::path::PathBuf {
    let folder = dir.join("cgroup/pids/kubepods/podpod-uid/c0ffee");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("pids.current"), "7\n").unwrap();
    folder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_goes_from_assignment_to_a_released_pod() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let cgroup = container_cgroup(dir.path());
    let mut life = Life::start(dir.path(), &pods).await;
    life.assign(assignment()).await;
    let registered = life.told(|m| matches!(m, ToGateway::Register(_))).await;
    life.told(|m| matches!(m, ToGateway::Credentials { .. })).await;
    assert!(matches!(life.said().await, Outgoing::AssignmentAck { refused: None, .. }));
    life.open_gate(&pods).await;
    let Outgoing::Report(running) = life.said().await else { panic!("a report") };
    assert!(matches!(running.state, RunState::Running(_)));
    life.durable(3, result_event()).await;
    std::fs::write(cgroup.join("pids.current"), "0\n").unwrap();
    let outcome = life.outcome().await;
    assert_eq!((outcome.reason, outcome.exit_code), (Reason::Completed, Some(0)));
    assert_eq!(outcome.usage.turns, 2);
    life.told(|m| matches!(m, ToGateway::Revoke { .. })).await;
    assert!(pods.only().unwrap().metadata.finalizers.is_some(), "kept until recorded");
    life.send(Input::ReportAck { run: assignment().key(), sequence: SEQUENCE_FINISHED }).await;
    wait_until(|| pods.only().unwrap().metadata.finalizers.is_none()).await;
    life.send(Input::Forget(assignment().key())).await;
    wait_until(|| pods.only().is_none()).await;

    let ToGateway::Register(grant) = registered else { unreachable!() };
    let ledger = std::fs::read_to_string(dir.path().join("ledger.jsonl")).unwrap();
    assert!(ledger.contains(&grant.one_time_hash), "the hash is kept");
    assert!(!ledger.contains("CREDENTIAL-CANARY"));
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_token_in_the_pod_is_the_one_that_the_grant_names_and_is_not_in_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let mut life = Life::start(dir.path(), &pods).await;
    life.assign(assignment()).await;
    let grant = life.registered().await;
    wait_until(|| pods.only().is_some()).await;
    let env = pods.only().unwrap().spec.unwrap().containers[0].env.clone().unwrap();
    let token = env.iter().find(|e| e.name == "AGENT_OPERATOR_TOKEN").unwrap().value.clone();
    let token = token.unwrap();
    assert_eq!(agent_operator::domain::names::sha256_hex(token.as_bytes()), grant.one_time_hash);
    let ledger = std::fs::read_to_string(dir.path().join("ledger.jsonl")).unwrap();
    assert!(!ledger.contains(&token));
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_to_the_creation_makes_no_second_pod() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    pods.lose_answer.store(true, Ordering::SeqCst);
    let mut life = Life::start(dir.path(), &pods).await;
    life.assign(assignment()).await;
    life.open_gate(&pods).await;
    assert_eq!(*pods.creations.lock().unwrap(), 1);
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_killed_in_mid_step_comes_back_and_finishes_it() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let cgroup = container_cgroup(dir.path());
    let opened = pods.stand_still(Duration::ZERO);
    let mut life = Life::start(dir.path(), &pods).await;
    life.assign(assignment()).await;
    let left_at_first = life.open_gate(&pods).await;
    life.kill().await;

    let back = pods.stand_still(AWAY);
    let mut life = Life::start(dir.path(), &pods).await;
    let grant = life.registered().await;
    assert_eq!(grant.redemption, Some(redemption()));
    let left = Duration::from_millis(grant.open_remaining_millis.expect("the gate is open"));
    assert_kept((opened, left_at_first), (back, left));
    life.told(|m| matches!(m, ToGateway::Synced)).await;
    life.durable(9, result_event()).await;
    std::fs::write(cgroup.join("pids.current"), "0\n").unwrap();
    assert_eq!(life.outcome().await.reason, Reason::Completed);
    assert_eq!(*pods.creations.lock().unwrap(), 1);
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_runner_in_its_pod_ends_the_nodes_trial_and_a_restart_remembers() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let mut life = Life::start(dir.path(), &pods).await;
    assert_eq!(life.delivery().await, None, "not tried yet");
    life.assign(assignment()).await;
    life.open_gate(&pods).await;
    assert_eq!(life.delivery().await, Some(Delivery::ImageVolume));
    life.kill().await;

    let life = Life::start(dir.path(), &pods).await;
    assert_eq!(life.delivery().await, Some(Delivery::ImageVolume));
    life.send(Input::SwitchDelivery("no such volumes".to_owned())).await;
    assert_eq!(life.delivery().await, Some(Delivery::InitContainer));
    life.kill().await;
    let life = Life::start(dir.path(), &pods).await;
    assert_eq!(life.delivery().await, Some(Delivery::InitContainer), "found out once");
    life.kill().await;

    // Set by hand meanwhile: the finding goes, and the node tries again.
    *pods.delivery.lock().unwrap() = Some(Delivery::InitContainer);
    let life = Life::start(dir.path(), &pods).await;
    assert_eq!(life.delivery().await, Some(Delivery::InitContainer));
    life.kill().await;
    *pods.delivery.lock().unwrap() = None;
    let life = Life::start(dir.path(), &pods).await;
    assert_eq!(life.delivery().await, Some(Delivery::ImageVolume));
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_over_its_deadline_is_stopped_and_its_pod_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    container_cgroup(dir.path());
    let mut life = Life::start(dir.path(), &pods).await;
    let short = Assignment { timeout_seconds: 1, grace_seconds: 1, ..assignment() };
    life.assign(short).await;
    life.open_gate(&pods).await;
    let began = clock::instant();
    let ToGateway::Stop { order, .. } = life.told(|m| matches!(m, ToGateway::Stop { .. })).await
    else {
        unreachable!()
    };
    assert_eq!(order.reason, Reason::TimedOut);
    let outcome = life.outcome().await;
    assert_eq!((outcome.reason, outcome.exit_code), (Reason::TimedOut, Some(137)));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn assignments_are_judged() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let mut life = Life::start(dir.path(), &pods).await;
    let mut other = assignment();
    other.run.uid = "other".into();
    let changed = Assignment { timeout_seconds: 1, ..assignment() };
    for (assignment, answer) in [
        (assignment(), None),
        (assignment(), None),
        (Assignment { epoch: Epoch(5), ..assignment() }, None),
        (assignment(), Some("StaleEpoch")),
        (Assignment { epoch: Epoch(5), ..changed }, Some("Conflict")),
        (Assignment { epoch: Epoch(5), node: "node-b".into(), ..other.clone() }, Some("WrongNode")),
        (Assignment { epoch: Epoch(5), ..other }, Some("NoCapacity")),
    ] {
        life.assign(assignment.clone()).await;
        let refused = match life.said().await {
            Outgoing::AssignmentAck { refused, .. } => refused.map(|(reason, _)| reason),
            other => panic!("{other:?}"),
        };
        assert_eq!(refused.as_deref(), answer, "{:?}", assignment.epoch);
    }
    wait_until(|| pods.only().is_some()).await;
    assert_eq!(*pods.creations.lock().unwrap(), 1);
    let (answer, snapshot) = oneshot::channel();
    life.send(Input::Snapshot(answer)).await;
    let snapshot = snapshot.await.unwrap();
    assert_eq!(snapshot.highest_epoch, Epoch(5));
    assert_eq!((snapshot.known.len(), snapshot.known[0].epoch), (1, Epoch(5)));
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_no_gateway_took_are_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let mut life = Life::start(dir.path(), &pods).await;
    life.send(Input::LinkDown).await;
    life.assign(assignment()).await;
    assert!(matches!(life.said().await, Outgoing::AssignmentAck { refused: None, .. }));
    let (to_gateway, gateway) = mpsc::channel(64);
    life.gateway = gateway;
    life.send(Input::LinkUp(to_gateway)).await;
    life.told(|m| matches!(m, ToGateway::Register(_))).await;
    assert_eq!(life.said().await, Outgoing::NeedCredentials(vec![assignment().key()]));
    let (run, epoch) = (assignment().key(), Epoch(3));
    life.send(Input::Credentials { run, epoch, credentials: vec![credential()] }).await;
    life.told(|m| matches!(m, ToGateway::Credentials { .. })).await;
    life.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_and_log_reach_the_spools_and_complete() {
    use agent_operator::domain::event::{AgentEvent, EventRecord};

    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let mut life = Life::start(dir.path(), &pods).await;
    life.assign(assignment()).await;
    life.open_gate(&pods).await;
    let event = AgentEvent::Status { text: "cloned".into() };
    let records = vec![EventRecord { time: jiff::Timestamp::UNIX_EPOCH, event }];
    life.durable(3, DurableEvent::Events { first: 0, records }).await;
    let name = pods.only().unwrap().metadata.name.unwrap();
    let folder = dir.path().join(format!("logs/agents_{name}_pod-uid/agent"));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("0.log"), "2027-01-15T10:00:00Z stdout F hello\n").unwrap();
    let streams = life.streams.attempt(&assignment().run, assignment().attempt).unwrap();
    wait_until(|| streams.log.extent().end == 6).await;
    life.see(&pods.set_status(terminated(3))).await;
    let outcome = life.outcome().await;
    assert_eq!((outcome.reason, outcome.exit_code), (Reason::AgentFailed, Some(3)));
    assert_eq!(outcome.log.bytes, 6);
    wait_until(|| streams.log.extent().complete && streams.events.extent().complete).await;
    assert_eq!(streams.next_event(), 1);
    life.kill().await;
}

mod epochs;
mod held;
mod lost_ledger;
mod requests;
mod secrets;
mod telemetry;
