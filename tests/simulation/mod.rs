//! One number is one run: tasks go through their steps while controllers, supervisors, gateways and
//! nodes are killed, cut off and slowed down, at moments drawn from the number. At the end everything
//! is mended; then every task has to end, nothing may be written any more, and the history is checked.
//!
//! Real: election, watches, passes, inbox, sessions, watchdog of the controller; runner, machines,
//! workers, ledger, guards, pod watch of the supervisor; every message of the wire and of the link.
//! Doubles: the API server ([`api`], held to the real one by `tests/conformance`), kubelets and
//! garbage collector ([`cluster`]), gateway and forge ([`gateway`]), what runs in a pod ([`sandbox`]).
//! Logs are left out: they are read by blocking threads.
//!
//! Everything runs on one thread under paused time, and randomness comes from the seed
//! (`tests/seeded`), so a seed replays exactly.

mod api;
mod clock;
mod cluster;
mod conformance;
mod controller;
mod director;
mod fenced;
mod gateway;
mod kills;
mod sandbox;
mod seeds;
mod stale;
mod supervisor;
mod world;

use std::{path::Path, time::Duration};

use agent_operator::domain::limits::{GRACE, INFRASTRUCTURE_RETRIES};
use agent_operator_doubles::history::{Fact, History, Rules, Violation, Witnesses, check};

use self::director::{Director, NODES};

/// What a history is held to. The kubelet's double looks once a second.
const RULES: Rules = Rules {
    grace: GRACE,
    slack: Duration::from_secs(1),
    skew: Duration::ZERO,
    infrastructure_retries: INFRASTRUCTURE_RETRIES,
    // Requests take effect when their senders are long gone.
    witnesses: Witnesses { reports: true, prompt_writes: false },
};
/// Longest time that tasks may need once everything is mended: the provider's budget and the task's
/// own, with room.
const LONGEST: Duration = Duration::from_hours(6);
/// Within this time everything is tidied up after the end of the last task.
const TIDY: Duration = Duration::from_mins(15);
/// What was tidied up may be written down for this long.
const SETTLE: Duration = Duration::from_secs(45);
/// For this long nothing may be written then.
const QUIET: Duration = Duration::from_mins(1);

/// What came of a run.
pub struct Verdict {
    pub violations: Vec<Violation>,
    pub history: History,
    /// How much time passed in it.
    pub simulated: Duration,
}

/// Runs `play` on this thread under paused time.
fn on_paused_time<T>(play: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(play)
}

/// Waits until all tasks have ended and all is tidied up, and judges.
async fn conclude(mut director: Director) -> Verdict {
    let began = tokio::time::Instant::now();
    while !director.open_tasks().is_empty() && began.elapsed() < LONGEST {
        director.pass(Duration::from_secs(2)).await;
    }
    let ended = tokio::time::Instant::now();
    // Pods are kept by the wall clock; one that was set back has to come forward again.
    let limit = TIDY + clock::behind();
    while !is_tidy(&director) && ended.elapsed() < limit {
        director.pass(Duration::from_secs(2)).await;
    }
    director.pass(SETTLE).await;
    let until = clock::truth() + QUIET;
    director.world.tell(Fact::Quiet { until });
    director.pass(QUIET).await;
    tell_leftovers(&director);
    let history = director.world.history();
    let violations = check(&history, &RULES);
    Verdict { violations, history, simulated: clock::elapsed() }
}

/// What is still there (I9), and who is not (I11).
fn tell_leftovers(director: &Director) {
    let world = &director.world;
    for pod in cluster::all(world, "pods") {
        let (meta, status) = (&pod["metadata"], &pod["status"]["phase"]);
        let (name, held) = (&meta["name"], &meta["finalizers"]);
        world.tell(Fact::Left { what: format!("pod {name}, {status}, held by {held},") });
    }
    for node in NODES {
        for run in world.gateways[node].live() {
            world.tell(Fact::Left { what: format!("what the gateway of {node} grants {run:?}") });
        }
    }
    for run in NODES.iter().flat_map(|node| world.gateways[*node].early()) {
        world.tell(Fact::Leaked { place: format!("the gateway, before the turn of {run:?}") });
    }
    for process in director.over() {
        world.tell(Fact::Died { process });
    }
}

/// Whether nothing of any attempt is left on nodes and in gateways (I9).
fn is_tidy(director: &Director) -> bool {
    let world = &director.world;
    let no_pods = cluster::all(world, "pods").is_empty();
    no_pods && NODES.iter().all(|node| world.gateways[*node].live().is_empty())
}

/// Plays the seed.
async fn play(seed: u64, dir: &Path) -> Verdict {
    let controllers = if seed % 4 < 2 { 1 } else { 2 };
    let mut director = Director::start(seed, dir, controllers, seed % 4 == 3);
    let count = director.world.rng().usize(1..=3);
    director.world.faults().chaos = if seed.is_multiple_of(3) { 0 } else { 40 };
    for number in 0..count {
        let wait = director.world.between(0, 4000);
        director.pass(wait).await;
        // No draw of luck, so that seeds of tasks without it stay what they are.
        let ahead = (seed / 4 + u64::try_from(number).unwrap()).is_multiple_of(2);
        director.task_with(&format!("task-{number}"), ahead);
    }
    let faults = director.world.rng().u32(2..14);
    for _ in 0..faults {
        let wait = director.world.between(100, 9000);
        director.pass(wait).await;
        director.fault().await;
    }
    director.pass(Duration::from_secs(5)).await;
    director.calm();
    conclude(director).await
}
