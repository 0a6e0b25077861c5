//! `throughput`: whole steps a second through the real controller, beside 10 to 5,000 live tasks and with 1 to 1,000
//! supervisors by script. Steps end at once, and no pods are made: what pods cost is in `requests` and `gap`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::batch::v1::Job;
use kube::Api;
use tokio::task::JoinSet;

use crate::{
    audit,
    cycles::{Bare, Cycles},
    gateway::Gateway,
    kubelet::Kubelet,
    live::Plant,
    measure::{ROUNDS, Samples, Scale, now},
    peers::{JobController, PEERS, Pace},
    plant::job,
    processes::block_on,
    site::{CONTROLLER, Site},
    table::Row,
};

/// Tasks at work where the most is looked for: more than the controller decides at once.
const MANY: usize = 64;
/// Tasks at work beside others that live.
const FEW: usize = 10;
/// Writers of the floor among which the best number is looked for.
const WRITERS: [usize; 3] = [8, 16, 64];
/// From a change of what is at work to its measurement.
const SETTLE: Duration = Duration::from_secs(1);
/// Kubernetes' controller takes longer to find its way.
const SETTLE_JOBS: Duration = Duration::from_secs(4);
/// The full run as a whole is to take ten minutes; what has not come to be within this time is left out.
const GROWTH: Duration = Duration::from_secs(150);
const AT_TASKS: [&str; 4] = [
    "throughput at 10 tasks",
    "throughput at 100 tasks",
    "throughput at 1,000 tasks",
    "throughput at 5,000 tasks",
];

/// Jobs that never end, each one pod after the other.
struct Jobs {
    ended: Arc<AtomicU64>,
    _around: JoinSet<()>,
}

impl Jobs {
    async fn start(site: &Site) -> Self {
        site.namespace(PEERS).await;
        let kubelet = Kubelet::new(
            site.client.clone(),
            PEERS,
            "node-0",
            Gateway::new(),
            &site.path("cgroup"),
        )
        .prompt();
        let (ended, mut around) = (kubelet.ended(), JoinSet::new());
        around.spawn(kubelet.run());
        let jobs: Api<Job> = Api::namespaced(site.client.clone(), PEERS);
        for number in 0..MANY {
            let mut endless = job(&format!("job-{number}"));
            endless["spec"]["completions"] = serde_json::json!(1_000_000);
            site.create(&jobs, endless).await;
        }
        Self { ended, _around: around }
    }

    /// Pods a second while a controller of this pace is there.
    async fn rate(&self, site: &Site, pace: Pace, window: Duration) -> f64 {
        let _controller = JobController::start(site, pace);
        tokio::time::sleep(SETTLE_JOBS).await;
        rate(window, || self.ended.load(Ordering::Relaxed)).await
    }
}

/// How much a number grows in a second.
async fn rate(window: Duration, of: impl Fn() -> u64) -> f64 {
    let (before, began) = (of(), now());
    tokio::time::sleep(window).await;
    (of() - before) as f64 / began.elapsed().as_secs_f64()
}

/// Steps a second with so many tasks at work, and milliseconds of a core that the controller used for each.
async fn ours(plant: &Plant, cycles: &Cycles, at_work: usize, window: Duration) -> (f64, f64) {
    cycles.set(at_work);
    tokio::time::sleep(SETTLE).await;
    let used = plant.core_seconds();
    let steps = rate(window, || plant.nodes.iter().map(|node| node.recorded()).sum()).await;
    let used = plant.core_seconds() - used;
    cycles.none().await;
    (steps, used * 1000.0 / (steps * window.as_secs_f64()).max(1.0))
}

/// Beside so many live tasks: ours, and the same writes by a bare client in the same rounds.
#[derive(Default)]
struct At {
    steps: Samples,
    floor: Samples,
    core: Samples,
}

impl At {
    async fn round(&mut self, plant: &Plant, cycles: &Cycles, bare: &Bare, window: Duration) {
        let (steps, core) = ours(plant, cycles, FEW, window).await;
        self.steps.add(steps);
        self.core.add(core);
        self.floor.add(bare.rate(FEW, window).await);
    }
}

#[derive(Default)]
struct Measured {
    most: Samples,
    floor: Samples,
    by_default: Samples,
    tuned: Samples,
    at: Vec<At>,
    at_nodes: At,
}

/// Writes of the controller for a step, by the server's own record: those of runs and tasks, and events.
async fn writes(plant: &Plant, cycles: &Cycles, window: Duration) -> (f64, f64) {
    let moment = || {
        let steps = plant.nodes.iter().map(|node| node.recorded()).sum::<u64>();
        (agent_operator_supervisor::clock::now().wall, steps)
    };
    cycles.set(FEW);
    tokio::time::sleep(SETTLE).await;
    let (from, before) = moment();
    tokio::time::sleep(window).await;
    let (to, after) = moment();
    cycles.none().await;
    let steps = (after - before) as f64;
    let all = audit::read(&plant.site.audit_log());
    let in_time = |r: &&audit::Request| r.received >= from && r.received < to;
    let ours = |r: &&audit::Request| audit::is_of(r, CONTROLLER) && (r.is_write() || r.is_read());
    let since: Vec<_> = all.iter().filter(in_time).filter(ours).collect();
    eprintln!("requests of {steps} steps: {:#?}", audit::kinds(since.iter().copied()));
    let count =
        |apart| since.iter().filter(|r| r.apart() == apart && r.is_write()).count() as f64 / steps;
    (count(None), count(Some("events")))
}

async fn measure(scale: Scale) -> (Measured, f64) {
    let sizes: &[usize] = scale.pick(&[10, 100, 1000, 5000], &[10, 50]);
    let (window, rounds) =
        scale.pick((Duration::from_secs(3), ROUNDS), (Duration::from_secs(1), 1));
    let mut plant = Plant::start(*sizes.last().unwrap() + MANY, scale.limit()).await;
    let cycles = Cycles::new(&plant.site.client);
    let mut measured = Measured::default();

    // An example of what is written, before it is removed.
    cycles.set(1);
    let bare = Bare::new(&plant.site.client).await;
    cycles.none().await;
    let (writes, events) = writes(&plant, &cycles, window).await;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a handful")]
    let bare = bare.with_events(events.round() as usize);
    let jobs = Jobs::start(&plant.site).await;
    let mut best = (0.0, WRITERS[0]);
    for writers in WRITERS {
        let found = bare.rate(writers, window).await;
        if found > best.0 {
            best = (found, writers);
        }
    }
    for _ in 0..rounds {
        measured.most.add(ours(&plant, &cycles, MANY, window).await.0);
        measured.floor.add(bare.rate(best.1, window).await);
        measured.by_default.add(jobs.rate(&plant.site, Pace::Default, window).await);
        measured.tuned.add(jobs.rate(&plant.site, Pace::Tuned, window).await);
    }
    for size in sizes {
        // Those at work live too.
        if tokio::time::timeout(GROWTH, plant.grow(size - FEW)).await.is_err() {
            eprintln!("{size} live tasks did not come to be in {GROWTH:?}; {} live", plant.live());
            return (measured, writes);
        }
        let mut at = At::default();
        for _ in 0..rounds {
            at.round(&plant, &cycles, &bare, window).await;
        }
        measured.at.push(at);
    }
    plant.more_nodes(scale.pick(1000, 5)).await;
    for _ in 0..rounds {
        measured.at_nodes.round(&plant, &cycles, &bare, window).await;
    }
    (measured, writes)
}

pub fn run(scale: Scale) -> Vec<Row> {
    let (measured, writes) = block_on(measure(scale));
    let Measured { most, floor, by_default, tuned, at, at_nodes } = measured;
    let unit = "steps/s";
    let mut rows = vec![
        Row::new("throughput", "steps/s, 64 tasks at work", most.median())
            .floor(floor.median())
            .peer(by_default.median())
            .at_least_of_floor(0.9),
        Row::new("throughput, Jobs tuned", "steps/s, 64 tasks at work", most.median())
            .floor(floor.median())
            .peer(tuned.median()),
        Row::new("throughput writes", "writes of the controller a step", Some(writes)),
    ];
    let row = |name, at: &At| Row::new(name, unit, at.steps.median()).floor(at.floor.median());
    if scale == Scale::Full {
        rows.extend(AT_TASKS.iter().zip(&at).map(|(name, at)| row(name, at)));
    }
    let ends = at.first().zip(at.get(AT_TASKS.len() - 1));
    let lost = |of: fn(&At) -> &Samples| {
        let (first, last) = ends?;
        let (first, last) = of(first).median().zip(of(last).median())?;
        Some((1.0 - last / first).max(0.0) * 100.0)
    };
    let core = |at: Option<&At>| at.and_then(|at| at.core.median());
    rows.extend([
        Row::new("throughput slope", "% lost from 10 to 5,000 tasks", lost(|at| &at.steps))
            .floor(lost(|at| &at.floor))
            .at_most(5.0),
        Row::new("throughput core", "ms of a core a step, 10 tasks", core(at.first())),
        Row::new("throughput core, most tasks", "ms of a core a step", core(at.last())),
        row("throughput at 1,000 nodes", &at_nodes),
    ]);
    rows
}
