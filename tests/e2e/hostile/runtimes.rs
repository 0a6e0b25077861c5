//! A RuntimeClass with a kernel of its own (gVisor): the step that asked for it runs under it.

use agent_operator::crd::agent_run::SandboxReached;
use serde_json::json;

use super::say;
use crate::{
    scenarios::start_faults::{put, remove, untyped},
    support::{
        cluster::{Cluster, NAMESPACE},
        task::{command_agent, merge, task, unique},
    },
};

/// Handler of the local nodes for it (`deploy/local/lib/node.sh`).
const HANDLER: &str = "gvisor";
/// What its kernel says while it starts.
const ITS_WORDS: &str = "Starting gVisor";
/// Says which kernel it runs on, and what that says of itself.
const SCRIPT: &str = r#"[ "$AGENT_STEP" != implement ] || date > change.txt
echo "kernel: $(cat /proc/version)"; dmesg 2>&1 | head -n 3 | sed 's/^/says: /'; exit 0"#;

/// What a task of this class says in its plan step, and what was reached in its sandbox.
async fn kernel_of(cluster: &Cluster, class: Option<&str>) -> (String, SandboxReached) {
    let name = unique("kernel");
    let mut spec = command_agent(SCRIPT);
    merge(&mut spec, &json!({"test": {"command": ["true"]}, "maxRetries": 0}));
    if let Some(class) = class {
        merge(&mut spec, &json!({"sandbox": {"runtimeClassName": class}}));
    }
    cluster.create(NAMESPACE, &task(&name, "Say which kernel this is.", &spec)).await;
    cluster.complete(NAMESPACE, &name).await;
    let run = cluster.runs(NAMESPACE, &name).await.into_iter().next().expect("a plan run");
    let status = run.status.expect("a status");
    let log = cluster.log(NAMESPACE, &status.pod_name.expect("a pod")).await;
    (log, status.sandbox.expect("what was reached"))
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run hostile"]
async fn a_step_of_another_runtime_class_sees_another_kernel_and_its_task_completes() {
    let cluster = Cluster::connect().await;
    let class = unique("gvisor");
    let classes = untyped(&cluster, "node.k8s.io", "RuntimeClass", None);
    let object = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": class}, "handler": HANDLER});
    put(&classes, object).await;
    let machine = std::fs::read_to_string("/proc/version").expect("this machine's kernel");
    let machine = format!("kernel: {}", machine.trim());

    let (control, of_machine) = kernel_of(&cluster, None).await;
    assert!(control.contains(&machine) && !control.contains(ITS_WORDS), "{control}");
    assert_eq!(of_machine.runtime_class, None);

    let (other, reached) = kernel_of(&cluster, Some(&class)).await;
    say(&format!("under {HANDLER}: {reached:?}"));
    assert!(other.contains("kernel: ") && !other.contains(&machine), "{other}");
    assert!(other.contains(ITS_WORDS), "{other}");
    assert_eq!(reached.runtime_class.as_deref(), Some(class.as_str()));
    // Its network is closed as any other's; what that kernel does not have is not claimed.
    assert_eq!(reached.egress.as_deref(), Some("Enforced"));
    assert_eq!((reached.landlock, reached.seccomp_filter), (None, Some(true)));
    remove(&classes, &class).await;
}
