//! The walls inside the agent pod: a child of the runner cannot end or slow it down.

use std::time::Duration;

use serde_json::json;

use super::start_faults::{assert_helps, goes_on, held_up, put, remove, untyped};
use crate::support::{
    cluster::{Cluster, NAMESPACE},
    eventually,
    task::{command_agent, merge, task, unique},
};

/// Each attack on PID 1 of the pod prints a line. That each succeeds without the walls is shown by
/// the runner's own tests, on a process of the same user.
const SCRIPT: &str = r#"
try() { name=$1; shift; if "$@" >/dev/null 2>&1; then echo "attack $name reached."; else echo "attack $name held."; fi; }
try signal kill -0 1
try limit prlimit --pid 1 --cpu=1:2
try nice renice -n 5 -p 1
try nice-of-user renice -n 5 -u 1000
try affinity taskset -p 1 1
try scheduler chrt --batch -p 0 1
try io-priority ionice -c 3 -p 1
try environment cat /proc/1/environ
try memory head -c 1 /proc/1/mem
try descriptors ls /proc/1/fd/
try oom-score sh -c 'echo 900 > /proc/self/oom_score_adj'
try root touch /attacked
[ "$AGENT_STEP" = implement ] && echo tried > tried.txt
echo "attacks over $AGENT_STEP."
"#;
/// Attacks a step.
const ATTACKS: usize = 12;
/// First Landlock ABI that keeps signals inside; the local nodes' kernel has it.
const SIGNALS: i32 = 6;
/// `podPidsLimit` of the local nodes' kubelets.
const PIDS: i64 = 1024;

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn a_hostile_child_cannot_touch_pid_1_and_the_status_says_what_holds_it() {
    let cluster = Cluster::connect().await;
    let name = unique("walls");
    let mut spec = command_agent(SCRIPT);
    merge(&mut spec, &json!({"test": {"command": ["sh", "-c", SCRIPT]}}));
    merge(&mut spec, &json!({"sandbox": {"requirePidsLimit": true}}));
    cluster.create(NAMESPACE, &task(&name, "Attack the runner.", &spec)).await;
    cluster.complete(NAMESPACE, &name).await;
    for run in cluster.runs(NAMESPACE, &name).await {
        let status = run.status.expect("a status");
        let sandbox = status.sandbox.expect("what was reached");
        assert!(sandbox.landlock >= Some(SIGNALS), "{sandbox:?}");
        assert_eq!(sandbox.seccomp_filter, Some(true));
        assert_eq!(sandbox.pids_limit, Some(PIDS));
        let log = cluster.log(NAMESPACE, &status.pod_name.expect("a pod")).await;
        // The runner shows the script as well, so only whole lines count.
        let ends = |end: &str| {
            let lines = log.lines().filter(|line| line.starts_with("attack "));
            lines.filter(|line| line.ends_with(end)).count()
        };
        assert_eq!((ends(" held."), ends(" reached.")), (ATTACKS, 0), "{log}");
    }
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn a_task_waits_for_its_runtime_class_and_never_runs_without_it() {
    let cluster = Cluster::connect().await;
    let (class, name) = (unique("class"), unique("runtime-class"));
    let mut spec = command_agent("echo step $AGENT_STEP");
    merge(&mut spec, &json!({"sandbox": {"runtimeClassName": class}}));
    cluster.create(NAMESPACE, &task(&name, "Say something.", &spec)).await;
    let message = held_up(&cluster, NAMESPACE, &name, "RuntimeClassMissing").await;
    assert_helps(&message, &[&format!("RuntimeClass \"{class}\" not found"), "runtimeClassName"]);
    assert!(cluster.task_pods(NAMESPACE, &name).await.is_empty(), "no pod of another class");

    // The handler of the nodes' own runtime stands in for one with a kernel of its own.
    let classes = untyped(&cluster, "node.k8s.io", "RuntimeClass", None);
    let object = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": class}, "handler": "runc"});
    put(&classes, object).await;
    eventually("a pod of the class runs", Duration::from_mins(2), || async {
        let pods = cluster.task_pods(NAMESPACE, &name).await;
        let used: Vec<_> =
            pods.into_iter().filter_map(|pod| pod.spec?.runtime_class_name).collect();
        let of_class = !used.is_empty() && used.iter().all(|used| *used == class);
        if of_class { Ok(()) } else { Err(format!("{used:?}")) }
    })
    .await;
    goes_on(&cluster, NAMESPACE, &name).await;
    remove(&classes, &class).await;
}
