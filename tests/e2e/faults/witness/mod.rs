//! Witnesses that are not the system: they write down what happens to the tasks of one test.

mod audit;
mod runtime;

pub(crate) use audit::tell_task;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use agent_operator::{
    attempt::CONTAINER_NAME,
    crd::AgentRun,
    domain::{Attempt, RunUid, names},
};
use agent_operator_doubles::history::{Fact, History};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use tokio::task::JoinSet;

use crate::support::env;

/// How often a waiting test looks whether its moment has come.
const LOOK: Duration = Duration::from_millis(20);

/// A moment in the life of a step, at which a fault may be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    /// The run is durable; its node has not heard of it.
    RunMade,
    /// The supervisor has made the pod.
    PodMade,
    /// The agent's container runs.
    ContainerStarted,
    /// It has ended; its outcome is not written.
    ContainerEnded,
    /// The outcome is written; the next step is not decided.
    OutcomeWritten,
}

impl Point {
    pub(crate) const ALL: [Self; 5] = [
        Self::RunMade,
        Self::PodMade,
        Self::ContainerStarted,
        Self::ContainerEnded,
        Self::OutcomeWritten,
    ];
}

/// What the witnesses have seen so far.
#[derive(Default)]
struct Seen {
    containers: Vec<runtime::Seen>,
    requests: Vec<audit::Request>,
}

struct Shared {
    /// Names of all objects of the test begin so.
    prefix: String,
    seen: Mutex<Seen>,
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The witnesses of one test; they stop when this is dropped.
pub(crate) struct Witnesses {
    shared: Arc<Shared>,
    _watching: JoinSet<()>,
}

impl Witnesses {
    /// Starts to watch everything whose name begins with `prefix`.
    pub(crate) fn watch(prefix: &str) -> Self {
        let shared = Arc::new(Shared { prefix: prefix.to_owned(), seen: Mutex::default() });
        let mut watching = JoinSet::new();
        let log = audit::Log::from_its_end();
        watching.spawn(audit::follow(log, Arc::clone(&shared)));
        for node in env("AO_NODES").split_whitespace() {
            watching.spawn(runtime::follow(node.to_owned(), Arc::clone(&shared)));
        }
        Self { shared, _watching: watching }
    }

    fn count(&self, point: Point) -> usize {
        let seen = self.shared.seen();
        match point {
            Point::RunMade => seen.requests.iter().filter(|r| r.made("agentruns")).count(),
            Point::PodMade => seen.requests.iter().filter(|r| r.made("pods")).count(),
            Point::OutcomeWritten => seen.requests.iter().filter(|r| r.is_outcome()).count(),
            Point::ContainerStarted => seen.containers.iter().filter(|c| c.exit.is_none()).count(),
            Point::ContainerEnded => seen.containers.iter().filter(|c| c.exit.is_some()).count(),
        }
    }

    /// Waits until the next `point` is seen, at most `limit`; whether it was.
    pub(crate) async fn next(&self, point: Point, limit: Duration) -> bool {
        let before = self.count(point);
        let waiting = async {
            while self.count(point) == before {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(limit, waiting).await.is_ok()
    }

    /// Writes of the system to objects of the test so far.
    pub(crate) fn writes(&self) -> usize {
        self.shared.seen().requests.iter().filter(|request| request.is_ours()).count()
    }

    /// All that was seen as one history. `runs` and `pods` are the objects at the end: an API server
    /// that is killed has not logged every write that it made, and a runtime that is killed has not
    /// told of every end.
    pub(crate) fn history(&self, now: Timestamp, runs: &[AgentRun], pods: &[Pod]) -> History {
        let seen = self.shared.seen();
        let mut history = History::default();
        for request in &seen.requests {
            request.tell(&mut history);
        }
        let by_pod: BTreeMap<String, String> =
            runs.iter().map(|run| (pod_name(run), run.name_any())).collect();
        let mut told = BTreeMap::new();
        for container in &seen.containers {
            // A pod that no run explains keeps its own name, which nobody has assigned.
            let run = by_pod.get(&container.pod).unwrap_or(&container.pod);
            container.tell(run, &mut history);
            let (started, ended) = told.entry(container.pod_uid.as_str()).or_insert((false, false));
            if container.exit.is_some() { *ended = true } else { *started = true }
        }
        for run in runs {
            audit::tell_final(run, &seen.requests, now, &mut history);
        }
        for pod in pods {
            let uid = pod.uid().unwrap_or_default();
            let (started, ended) = told.get(uid.as_str()).copied().unwrap_or_default();
            let run = by_pod.get(&pod.name_any()).cloned().unwrap_or_else(|| pod.name_any());
            tell_kubelets_record(pod, &run, (started, ended), &mut history);
        }
        history
    }
}

fn pod_name(run: &AgentRun) -> String {
    let attempt = Attempt(u32::try_from(run.spec.attempt).expect("a small number"));
    names::pod_name(&run.name_any(), &RunUid::from(run.uid().unwrap_or_default()), attempt)
}

/// What the kubelet says of a container whose start or end no event told of.
fn tell_kubelets_record(
    pod: &Pod,
    run: &str,
    (started, ended): (bool, bool),
    history: &mut History,
) {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.clone());
    let mut statuses = statuses.unwrap_or_default();
    statuses.retain(|status| status.name == CONTAINER_NAME);
    let Some(state) = statuses.pop().and_then(|status| status.state) else { return };
    let (run, uid) = (run.to_owned(), pod.uid().unwrap_or_default());
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
    let begun = state.running.and_then(|running| running.started_at);
    let begun = begun.or_else(|| state.terminated.as_ref().and_then(|end| end.started_at.clone()));
    if let Some(begun) = begun.filter(|_| !started) {
        // Kubernetes cuts to seconds; a start that seems to precede its assignment would be a finding.
        let at = begun.0.checked_add(Duration::from_millis(999)).expect("a moment");
        history.push(at, Fact::Started { run: run.clone(), pod: uid.clone(), node });
    }
    if let Some(end) = state.terminated.filter(|_| !ended) {
        let at = end.finished_at.map(|at| at.0).expect("an end has a time");
        // The words of a runtime that was away at the end, and of a kubelet that was.
        let lost = matches!(end.reason.as_deref(), Some("Unknown" | "ContainerStatusUnknown"));
        let exit_code = (!lost).then_some(end.exit_code);
        history.push(at, Fact::Ended { run, pod: uid, exit_code });
    }
}
