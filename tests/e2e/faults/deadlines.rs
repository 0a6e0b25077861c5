//! Three timers end a step, and each holds with those above it dead: agent-runner's own, the
//! supervisor's, and the kubelet's `activeDeadlineSeconds`.

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{
    cluster::{Cluster, NAMESPACE, phase},
    eventually, processes,
    task::{command_agent, merge, task, unique},
};

/// Limit of each wait: timeout, grace and a busy machine, several times over. Also below the minute
/// after which the kubelet's liveness probe restarts a process that stands still.
const LIMIT: Duration = Duration::from_secs(50);
const SUPERVISOR: &str = "app.kubernetes.io/component=supervisor";
const CONTROLLER: &str = "app.kubernetes.io/component=controller";

/// A running plan step that would sleep for an hour.
struct Sleeper {
    cluster: Cluster,
    task: String,
    node: String,
    pod: String,
    uid: String,
}

impl Sleeper {
    async fn start(prefix: &str, timeout: &str) -> Self {
        let cluster = Cluster::connect().await;
        let name = unique(prefix);
        let mut overrides = command_agent("trap '' TERM; sleep 3607");
        merge(&mut overrides, &json!({"stepTimeout": timeout, "maxRetries": 0}));
        cluster.create(NAMESPACE, &task(&name, "Sleep.", &overrides)).await;
        let running = cluster.run_in_phase(NAMESPACE, &name, "plan", "Running").await;
        let pod = running.status.and_then(|status| status.pod_name).expect("a pod");
        let uid = cluster.pods(NAMESPACE).get(&pod).await.expect("the pod").metadata.uid;
        let node = running.spec.node_name;
        Self { cluster, task: name, node, pod, uid: uid.expect("a uid") }
    }

    async fn signal_supervisor(&self, signal: Signal) {
        let node = Some(self.node.as_str());
        let signalled =
            processes::signal_program(&self.cluster, SUPERVISOR, node, "supervisor run", signal);
        assert_eq!(signalled.await, 1, "one supervisor gets {signal}");
    }

    async fn signal_controller(&self, signal: Signal) {
        let signalled =
            processes::signal_program(&self.cluster, CONTROLLER, None, "controller", signal);
        assert_eq!(signalled.await, 1, "one controller gets {signal}");
    }

    /// Freezes PID 1 of the sandbox; what it started runs on.
    fn freeze_runner(&self) {
        let runner =
            processes::of_pod(&self.uid).into_iter().find(|(_, comm)| comm == "agent-runner");
        let (pid, _) = runner.expect("an agent-runner");
        processes::signal(pid, Signal::SIGSTOP);
    }

    async fn nothing_is_left(&self) {
        eventually("nothing of the pod runs", LIMIT, || async {
            let mut left = processes::of_pod(&self.uid);
            left.retain(|(_, comm)| comm != "pause");
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
    }

    async fn ends_as_timed_out(&self) {
        let done = self.cluster.finished(NAMESPACE, &self.task).await;
        assert_eq!(phase(&done), "Failed");
        let runs = self.cluster.runs(NAMESPACE, &self.task).await;
        let described = self.cluster.describe(NAMESPACE, &self.task).await;
        assert_eq!(runs.len(), 1, "{described}");
        let status = runs[0].status.clone().expect("a status");
        assert_eq!(status.reason.as_deref(), Some("TimedOut"), "{described}");
    }
}

/// Lets stopped processes of the release go on, also when the test fails.
struct GoOn(Vec<i32>);

impl Drop for GoOn {
    fn drop(&mut self) {
        for pid in &self.0 {
            processes::signal(*pid, Signal::SIGCONT);
        }
    }
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run faults"]
async fn agent_runner_ends_a_step_at_its_deadline_while_supervisor_and_controller_stand_still() {
    let sleeper = Sleeper::start("deadline-runner", "8s").await;
    let stopped = stopped(&sleeper, true).await;
    sleeper.signal_supervisor(Signal::SIGSTOP).await;
    sleeper.signal_controller(Signal::SIGSTOP).await;
    sleeper.nothing_is_left().await;
    drop(stopped);
    sleeper.ends_as_timed_out().await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run faults"]
async fn the_supervisor_ends_a_step_whose_agent_runner_stands_still() {
    let sleeper = Sleeper::start("deadline-supervisor", "8s").await;
    sleeper.freeze_runner();
    sleeper.nothing_is_left().await;
    sleeper.ends_as_timed_out().await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run faults"]
async fn the_kubelet_ends_a_step_whose_agent_runner_and_supervisor_stand_still() {
    let sleeper = Sleeper::start("deadline-kubelet", "20s").await;
    let pods = sleeper.cluster.pods(NAMESPACE);
    let template = pods.get(&sleeper.pod).await.expect("the pod").spec.expect("a spec");
    let last_resort = template.active_deadline_seconds.expect("every pod of ours has one");
    // Start deadline, timeout, grace and margin: too long for a test, so it is shortened. The API
    // server allows just that.
    assert!(last_resort >= 20 + 10, "{last_resort} s");
    let stopped = stopped(&sleeper, false).await;
    sleeper.freeze_runner();
    sleeper.signal_supervisor(Signal::SIGSTOP).await;
    let shorter = Patch::Merge(json!({"spec": {"activeDeadlineSeconds": 1}}));
    pods.patch(&sleeper.pod, &PatchParams::default(), &shorter).await.expect("a shorter deadline");
    sleeper.nothing_is_left().await;
    eventually("the kubelet says why", LIMIT, || async {
        let pod = pods.get(&sleeper.pod).await.map_err(|error| error.to_string())?;
        let reason = pod.status.and_then(|status| status.reason).unwrap_or_default();
        if reason == "DeadlineExceeded" { Ok(()) } else { Err(reason) }
    })
    .await;
    drop(stopped);
    sleeper.ends_as_timed_out().await;
}

/// The processes that a test is about to stop.
async fn stopped(sleeper: &Sleeper, controller: bool) -> GoOn {
    let (cluster, node) = (&sleeper.cluster, Some(sleeper.node.as_str()));
    let mut pids = processes::find_program(cluster, SUPERVISOR, node, "supervisor run").await;
    if controller {
        pids.extend(processes::find_program(cluster, CONTROLLER, None, "controller").await);
    }
    GoOn(pids)
}
