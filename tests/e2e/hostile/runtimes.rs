//! A RuntimeClass with a kernel of its own (gVisor): the step that asked for it runs under it, and attacks as it may, gets
//! nothing either.

use agent_operator::crd::agent_run::SandboxReached;
use kube::{Api, core::DynamicObject};
use serde_json::json;

use super::{
    attacks,
    judge::{self, Scene},
    list::Attack,
    place::address_of,
    rig::{Rig, add_seen, assert_held_off},
    say,
    trial::{self, Knocking, Neighbour},
};
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

/// What a step of this runtime attacks: everything from inside but changes, which no kernel has a part in.
const GROUPS: [&str; 7] = ["credentials", "gateway", "network", "k8s", "git", "process", "runner"];
/// What does not apply to it, and why. All else has to be tried, and held off.
const NOT_THERE: [(&str, &str); 4] = [
    (
        "proc-unshare-user",
        "the namespace is one of gVisor's own kernel: the node's has none more, and no more of it is within reach",
    ),
    (
        "proc-fork-bomb",
        "its processes are tasks of gVisor's kernel; on the node they are the sandbox's, which the pod's limit ends as a whole",
    ),
    ("k8s-devices", "its /dev/fuse is gVisor's own, and leads to no device of the node"),
    (
        "run-linger",
        "its processes are none of the node, where they are looked for; they end with their kernel",
    ),
];

/// What succeeds there, as docs/threat-model.md says: gVisor shows the descriptors of every process of a container to all of
/// them, whatever PID 1 has asked for.
const OPEN_THERE: [&str; 1] = ["cred-pid1-fd"];

fn applies(attack: &Attack) -> bool {
    NOT_THERE.iter().all(|(id, _)| *id != attack.id)
}

/// Makes a RuntimeClass of this test's own; its name.
async fn make_class(classes: &Api<DynamicObject>) -> String {
    let class = unique("gvisor");
    let object = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": class}, "handler": HANDLER});
    put(classes, object).await;
    class
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run hostile"]
async fn no_other_attack_than_the_known_one_succeeds_from_inside_a_step_of_another_runtime_class() {
    let cluster = Cluster::connect().await;
    let rig = Rig::set_up(&cluster).await;
    let classes = untyped(&cluster, "node.k8s.io", "RuntimeClass", None);
    let class = make_class(&classes).await;
    let marker = unique("attack-gvisor");
    let scene = Scene::set(&cluster, &marker).await;
    let (model_key, git_token) = cluster.agent_secrets().await;
    let mut parameters = rig.parameters(&cluster, &scene, &[model_key, git_token]).await;
    parameters["gifts"] = json!(trial::gifts_path());
    parameters["namespace"] = json!(NAMESPACE);
    parameters["without"] = NOT_THERE.iter().map(|(id, _)| *id).collect();
    // Under the node's kernel, where its token can be taken.
    let neighbour_name = format!("{marker}-neighbour");
    let neighbour =
        Neighbour::settle(&cluster, &neighbour_name, &rig.image, &scene.repository).await;
    let sandbox = json!({"sandbox": {"runtimeClassName": class}});
    let task = trial::attacking(&marker, &rig.image, &scene.repository, &parameters, &sandbox);
    cluster.create(NAMESPACE, &task).await;
    let pod = trial::give(&cluster, &neighbour, &marker).await;
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref());
    assert_eq!(of_pod, Some(class.as_str()));
    let knocking = Knocking::at(&address_of(&pod));
    trial::ended(&cluster, std::slice::from_ref(&marker)).await;
    let left = neighbour.leave(&cluster).await;

    let (mut outcomes, scores) = attacks::told(&cluster, &marker).await;
    let mut effects = scene.effects(&cluster).await;
    add_seen(&mut effects, knocking.opened().await, None);
    effects.extend(attacks::forgeries(&cluster, &marker).await);
    attacks::add_hung_up(&cluster, &marker, &mut outcomes, &mut effects).await;
    judge::settle(&mut outcomes, &effects);
    say(&format!("beside it {left}"));
    remove(&classes, &class).await;
    cluster.forge.delete_repository(&scene.repository).await;
    rig.clear(&cluster).await;
    assert_held_off(&GROUPS, applies, &OPEN_THERE, &outcomes, &scores);
}

#[test]
fn what_does_not_apply_is_of_the_list_and_has_a_reason() {
    let all = super::list::of(&GROUPS);
    for (id, reason) in NOT_THERE {
        assert!(all.iter().any(|attack| attack.id == id) && reason.len() > 20, "{id}");
    }
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run hostile"]
async fn a_step_of_another_runtime_class_sees_another_kernel_and_its_task_completes() {
    let cluster = Cluster::connect().await;
    let classes = untyped(&cluster, "node.k8s.io", "RuntimeClass", None);
    let class = make_class(&classes).await;
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
