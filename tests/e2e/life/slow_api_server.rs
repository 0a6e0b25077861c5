//! An API server that stands still, and one that answers now and then (classes 9 and 12).

use std::{fs, path::PathBuf, time::Duration};

use kube::ResourceExt as _;
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::{task::JoinHandle, time::sleep};

use crate::support::{
    cluster::{Cluster, NAMESPACE},
    eventually, processes,
    release::part_pid,
    secrets::{GIT_KEY, MODEL_KEY},
    task::{command_agent, merge, task, unique},
};

/// Counts seconds into a file until the test makes another one.
const SCRIPT: &str = "[ \"$AGENT_STEP\" = implement ] || { echo in step $AGENT_STEP; exit 0; }; n=0; until [ -e go.txt ]; do n=$((n+1)); echo tick $n >> ticks.txt; sleep 1; done";
/// How long the API server stands still, in the step's own seconds: longer than the controller's
/// Lease, shorter than what a cluster takes for the loss of its nodes.
const STILL_TICKS: usize = 12;
/// The same number of seconds on a machine that is busy several times over.
const TICKS_LIMIT: Duration = Duration::from_secs(90);
/// Of these the slow API server is a sequence: too long a pause for a person, too short a one for
/// the Lease.
const PAUSE: Duration = Duration::from_millis(1500);
const WORK: Duration = Duration::from_millis(500);

#[tokio::test]
#[ignore = "needs the local cluster: tests/run life"]
async fn a_running_step_and_a_waiting_task_outlive_an_api_server_that_stands_still_and_a_slow_one()
{
    let cluster = Cluster::connect().await;
    let (running, waiting) = (unique("runs-on"), unique("waits-on"));
    let mut spec = command_agent(SCRIPT);
    merge(&mut spec, &json!({"test": {"command": ["test", "-s", "ticks.txt"]}}));
    cluster.create(NAMESPACE, &task(&running, "Count.", &spec)).await;
    let mut spec = command_agent("[ $AGENT_STEP = implement ] && date > done.txt; echo done");
    merge(&mut spec, &json!({"test": {"command": ["test", "-s", "done.txt"]}}));
    for key in ["anthropicApiKeyRef", "gitCredentialsRef"] {
        merge(&mut spec, &json!({key: {"name": waiting}}));
    }
    cluster.create(NAMESPACE, &task(&waiting, "Wait.", &spec)).await;
    cluster.condition(NAMESPACE, &waiting, ("Accepted", "False", "SecretMissing")).await;
    let step = Step::running(&cluster, &running).await;

    let server = part_pid("kube-apiserver").await;
    {
        let _still = Still::stop(server);
        let before = step.ticks();
        eventually("the step counts on without the API server", TICKS_LIMIT, || async {
            let ticks = step.ticks();
            if ticks >= before + STILL_TICKS { Ok(()) } else { Err(format!("{ticks} ticks")) }
        })
        .await;
        step.let_go();
    }
    let slow = Slow::make(server);
    let keys = [(GIT_KEY, cluster.forge.token()), (MODEL_KEY, "any")];
    cluster.secret(NAMESPACE, &waiting, &keys).await;
    for name in [&running, &waiting] {
        let done = cluster.complete(NAMESPACE, name).await;
        let retries = done.status.and_then(|status| status.retries).expect("counts");
        let counts = (retries.application, retries.infrastructure, retries.provider);
        assert_eq!(counts, (0, 0, 0), "{}", cluster.describe(NAMESPACE, name).await);
        let runs = cluster.runs(NAMESPACE, name).await;
        let attempts: Vec<_> = runs.iter().map(|run| run.spec.attempt).collect();
        assert_eq!(attempts, [1, 1, 1, 1], "{}", cluster.describe(NAMESPACE, name).await);
    }
    drop(slow);
    let pod = cluster.pods(NAMESPACE).get(&step.pod).await.expect("the pod is kept for a while");
    assert_eq!(pod.uid(), Some(step.uid), "the step was never made again");
    cluster.delete_secret(NAMESPACE, &waiting).await;
}

/// The running implement step, seen from the machine.
struct Step {
    pod: String,
    uid: String,
    tree: PathBuf,
}

impl Step {
    async fn running(cluster: &Cluster, task: &str) -> Self {
        let run = cluster.run_in_phase(NAMESPACE, task, "implement", "Running").await;
        let pod = run.status.and_then(|status| status.pod_name).expect("a pod");
        let uid = cluster.pods(NAMESPACE).get(&pod).await.expect("the pod").uid().expect("a uid");
        let shell = eventually("the agent's shell counts", TICKS_LIMIT, || async {
            let pids = processes::of_pod(&uid);
            let shell = pids.iter().find(|(_, name)| name == "sh").map(|(pid, _)| *pid);
            let tree = shell.map(|pid| PathBuf::from(format!("/proc/{pid}/cwd")));
            tree.filter(|tree| tree.join("ticks.txt").exists()).ok_or_else(|| format!("{pids:?}"))
        })
        .await;
        Self { pod, uid, tree: shell }
    }

    fn ticks(&self) -> usize {
        let text = fs::read_to_string(self.tree.join("ticks.txt"));
        text.expect("the step is alive").lines().count()
    }

    fn let_go(&self) {
        fs::write(self.tree.join("go.txt"), "go").expect("the step is let go");
    }
}

/// A process that stands still until the value goes, also when the test fails.
struct Still(i32);

impl Still {
    fn stop(pid: i32) -> Self {
        assert!(processes::signal(pid, Signal::SIGSTOP), "the API server is there");
        Self(pid)
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        processes::signal(self.0, Signal::SIGCONT);
    }
}

/// A process that works a little and pauses a little, until the value goes.
struct Slow(JoinHandle<()>);

impl Slow {
    fn make(pid: i32) -> Self {
        Self(tokio::spawn(async move {
            loop {
                let still = Still::stop(pid);
                sleep(PAUSE).await;
                drop(still);
                sleep(WORK).await;
            }
        }))
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        // What stands still at that moment goes on: the task's own values go with it.
        self.0.abort();
    }
}
