//! The wall clock of supervisor and controller steps by an hour, forwards and back, in the middle of a step (class 17).

use std::time::Duration;

use agent_operator::domain::limits::LEASE_DURATION;
use agent_operator_supervisor::clock;
use jiff::Timestamp;
use serde_json::json;

use super::{
    harm::{
        victim::{Node, Victim},
        wall_clock,
    },
    say,
    trial::{SOON, on},
};
use crate::support::{
    cluster::{Cluster, NAMESPACE, SYSTEM, phase},
    eventually, leaders, processes, release,
    task::{command_agent, merge, task, unique},
};

const NODE: Node = Node::B;
/// The processes whose clock steps, and a folder that each may write.
const CLOCKS: [(Victim, &str); 2] = [
    (Victim::Supervisor(NODE), "/var/lib/agent-operator/supervisor"),
    (Victim::Controller, "/var/lib/agent-operator"),
];
/// How far.
const HOUR: i64 = 3600;
/// Timeout of the steps in whose middle it happens.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Terms of which one at least goes on while the clocks step.
const TERMS_MAX: usize = 5;
/// What a person who looks every fifth of a second may be off on a busy machine. An hour would be more.
const LOOKS: Duration = Duration::from_secs(3);

#[tokio::test]
#[ignore = "needs the local cluster: tests/run faults"]
async fn f17_a_wall_clock_that_steps_by_an_hour_ends_no_step_early_or_late_and_no_term() {
    release::restored(|values| async move { step(&values).await }, async {}).await;
}

fn set(seconds: i64) {
    for (victim, folder) in CLOCKS {
        wall_clock::set(victim, folder, seconds);
    }
}

async fn step(values: &str) {
    let [(_, of_supervisor), (_, of_controller)] = CLOCKS;
    let supervisor = format!("supervisor.extraEnv={}", wall_clock::environment(of_supervisor));
    let controller = format!("controller.extraEnv={}", wall_clock::environment(of_controller));
    let more = ["--set-json", &supervisor, "--set-json", &controller];
    release::install(&release::chart().to_string_lossy(), SYSTEM, values, &more).await;
    release::refresh_ca().await;
    for (victim, folder) in CLOCKS {
        wall_clock::plant(victim, folder).await;
    }
    for (victim, _) in CLOCKS {
        eventually(&format!("{victim} runs with a clock of its own"), SOON, || async {
            wall_clock::planted(victim)
        })
        .await;
    }
    release::rolled_out(SYSTEM).await;
    let cluster = Cluster::connect().await;
    outlasted(&cluster).await;
    let forwards = timed_out_beside(&cluster, HOUR).await;
    whole_task(&cluster).await;
    let back = timed_out_beside(&cluster, 0).await;
    say(&format!(
        "wall clock by an hour forwards and back: steps of {TIMEOUT:?} seen to run for {forwards:.1?} and {back:.1?}"
    ));
}

/// A term goes on while the clock steps forwards and back. On a busy machine a term may also end because the API server
/// does not answer in time; a term that ends for the clock's sake does so each time.
async fn outlasted(cluster: &Cluster) {
    let mut ended = Vec::new();
    while ended.len() < TERMS_MAX {
        let term = eventually("somebody leads", SOON, || leaders::lead(cluster)).await;
        for seconds in [HOUR, 0] {
            set(seconds);
            renewed(cluster, seconds).await;
        }
        match leaders::lead(cluster).await {
            Ok(now) if now == term => return,
            now => ended.push((term, now)),
        }
    }
    panic!("a lease is no matter of the wall clock: {ended:?}");
}

/// Waits until the Lease is renewed by a clock that is so far ahead, and what was renewed before has run out.
async fn renewed(cluster: &Cluster, seconds: i64) {
    let began = clock::instant();
    eventually("the Lease is renewed by the clock as it is set", SOON, || async {
        let ahead = leaders::renewed(cluster).await?.duration_since(clock::now().wall).as_secs();
        let by_it = (ahead - seconds).abs() < HOUR / 2;
        let good = by_it && began.elapsed() > LEASE_DURATION;
        if good { Ok(()) } else { Err(format!("{ahead} s ahead")) }
    })
    .await;
}

/// Sets the clocks while a step runs that its timeout will end. How long it ran, as seen from outside.
async fn timed_out_beside(cluster: &Cluster, seconds: i64) -> Duration {
    let name = unique("stepped");
    let mut spec = command_agent("sleep 3617");
    let limits = json!({"stepTimeout": format!("{}s", TIMEOUT.as_secs()), "maxRetries": 0});
    merge(&mut spec, &limits);
    merge(&mut spec, &on(NODE));
    cluster.create(NAMESPACE, &task(&name, "Sleep.", &spec)).await;
    let running = cluster.run_in_phase(NAMESPACE, &name, "plan", "Running").await;
    let began = clock::instant();
    let pod = running.status.and_then(|status| status.pod_name).expect("a pod");
    let uid = cluster.pods(NAMESPACE).get(&pod).await.expect("the pod").metadata.uid;
    let uid = uid.expect("a uid");
    set(seconds);
    let end = eventually("nothing of the step runs", SOON, || async {
        let mut left = processes::of_pod(&uid);
        left.retain(|(_, comm)| comm != "pause");
        if left.is_empty() { Ok(clock::instant()) } else { Err(format!("{left:?}")) }
    })
    .await;
    let ran = end - began;
    assert!(ran + LOOKS >= TIMEOUT, "ended early: after {ran:?}");
    assert!(ran <= TIMEOUT + LOOKS, "ended late: after {ran:?}");
    let done = cluster.finished(NAMESPACE, &name).await;
    assert_eq!(phase(&done), "Failed");
    let runs = cluster.runs(NAMESPACE, &name).await;
    let told = cluster.describe(NAMESPACE, &name).await;
    assert_eq!(runs.len(), 1, "{told}");
    let reason = runs[0].status.clone().and_then(|status| status.reason);
    assert_eq!(reason.as_deref(), Some("TimedOut"), "{told}");
    ran
}

/// A whole task while both clocks are wrong; also shows that they are.
async fn whole_task(cluster: &Cluster) {
    let name = unique("ahead");
    let mut spec =
        command_agent("[ \"$AGENT_STEP\" != implement ] || date > change.txt; echo done");
    merge(&mut spec, &json!({"test": {"command": ["test", "-s", "change.txt"]}}));
    merge(&mut spec, &on(NODE));
    cluster.create(NAMESPACE, &task(&name, "Go on.", &spec)).await;
    let done = cluster.complete(NAMESPACE, &name).await;
    let told = cluster.describe(NAMESPACE, &name).await;
    let runs = cluster.runs(NAMESPACE, &name).await;
    assert_eq!(runs.len(), 4, "{told}");
    let ahead = |time: Option<Timestamp>| {
        let time = time.expect("a time");
        time.duration_since(clock::now().wall).as_secs() > HOUR - 5 * 60
    };
    let started = runs[0].status.as_ref().and_then(|status| status.start_time);
    assert!(ahead(started), "the supervisor's clock is ahead: {started:?}");
    let ended = done.status.as_ref().and_then(|status| status.completion_time);
    assert!(ahead(ended), "the controller's clock is ahead: {ended:?}");
}
