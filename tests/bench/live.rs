//! `recovery` and `memory`: a controller's process beside many live tasks.

use std::{pin::pin, sync::Arc, time::Duration};

use agent_operator::crd::AgentRun;
use agent_operator_supervisor::clock;
use futures::{StreamExt as _, stream};
use kube::{
    Api, Client, Config,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::{sync::watch, time::Instant};

use crate::{
    audit,
    measure::{ROUNDS, Samples, Scale, eventually, millis},
    plant::Plant as RealPlant,
    processes::{PROCESS, Process, block_on},
    scripted::{SLOTS, Scripted},
    site::{CONTROLLER, Controller, Site, TASKS},
    table::Row,
};

/// Creations of tasks at once.
const AT_ONCE: usize = 16;
/// Bytes of a prompt.
const PROMPT_BYTES: usize = 4096;
/// What client-go's defaults wait for when a holder has died: `LeaseDuration`.
const CLIENT_GO_LEASE: Duration = Duration::from_secs(15);
/// Within this time a controller has settled after a change.
const SETTLE: Duration = Duration::from_secs(5);
/// KiB that a task needs at least, by the contract of this bench.
const FLOOR_KIB: f64 = 0.6;

/// A controller with scripted nodes.
pub struct Plant {
    pub site: Site,
    controller: Controller,
    process: Option<Process>,
    pub nodes: Vec<Arc<Scripted>>,
    /// Live tasks.
    pub tasks: usize,
    limit: Duration,
}

impl Plant {
    pub async fn start(slots: usize, limit: Duration) -> Self {
        let site = Site::start().await;
        let controller = Controller::new(&site);
        let process = Some(controller.start());
        let mut nodes = Vec::new();
        for number in 0..slots.div_ceil(usize::try_from(SLOTS).unwrap()) {
            nodes
                .push(Scripted::start(&site, &format!("node-{number}"), &controller.address).await);
        }
        Self { site, controller, process, nodes, tasks: 0, limit }
    }

    /// Adds nodes on which nothing runs yet.
    pub async fn more_nodes(&mut self, count: usize) {
        for number in 0..count {
            let name = format!("further-{number}");
            self.nodes.push(Scripted::start(&self.site, &name, &self.controller.address).await);
        }
        tokio::time::sleep(SETTLE).await;
    }

    pub fn live(&self) -> usize {
        self.nodes.iter().map(|node| node.count()).sum()
    }

    /// Makes tasks until there are `count`, and waits until the first step of each runs.
    pub async fn grow(&mut self, count: usize) {
        let prompt = "x".repeat(PROMPT_BYTES);
        let made = stream::iter(self.tasks..count)
            .map(|number| {
                let (site, prompt) = (&self.site, &prompt);
                async move { site.task(&format!("task-{number}"), prompt).await }
            })
            .buffer_unordered(AT_ONCE);
        made.count().await;
        self.tasks = count;
        eventually("all steps run", self.limit, async || {
            self.process.as_ref()?;
            (self.live() >= count).then_some(())
        })
        .await;
        tokio::time::sleep(SETTLE).await;
    }

    /// What the controller has used of a core so far, in seconds.
    pub fn core_seconds(&self) -> f64 {
        self.process.as_ref().unwrap().core_seconds()
    }

    fn pss_mib(&self) -> f64 {
        self.process.as_ref().unwrap().pss_kib() / 1024.0
    }
}

/// Runs of the second step, as they come to be.
fn second_steps(client: &Client) -> watch::Receiver<usize> {
    let (told, seen) = watch::channel(0);
    let api: Api<AgentRun> = Api::namespaced(client.clone(), TASKS);
    // Without pauses a watch whose server is gone fails and fails again without ever waiting, and the runtime, which waits
    // for that, never ends.
    let mut events =
        Box::pin(watcher(api, watcher::Config::default()).default_backoff().touched_objects());
    tokio::spawn(async move {
        let mut known = std::collections::BTreeSet::new();
        while let Some(event) = events.next().await {
            if let Ok(run) = event
                && run.spec.step == "implement"
                && known.insert(run.metadata.uid)
            {
                told.send_replace(known.len());
            }
        }
    });
    seen
}

/// A bare process that lists all runs and ends. See `processes`.
pub fn list_process(arguments: &[String]) -> anyhow::Result<()> {
    let kubeconfig = Kubeconfig::read_from(&arguments[0])?;
    block_on(async {
        let config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let api: Api<AgentRun> = Api::namespaced(Client::try_from(config)?, TASKS);
        anyhow::ensure!(
            !api.list(&ListParams::default()).await?.items.is_empty(),
            "there are runs"
        );
        Ok(())
    })
}

async fn recover(scale: Scale) -> (Samples, Samples) {
    let (count, limit) = (scale.pick(1000, 50), scale.limit());
    let mut plant = Plant::start(count, limit).await;
    plant.grow(count).await;
    let mut steps = second_steps(&plant.site.client);
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    for round in 1..=scale.pick(ROUNDS, 2) {
        let ended =
            plant.nodes[0].live().into_iter().find(|live| live.step.as_str() == "plan").unwrap();
        let killed = Instant::now();
        plant.process.take().unwrap().kill();
        // The step ends while nobody is there to be told.
        plant.nodes[0].end_unheard(&ended.key());
        plant.process = Some(plant.controller.start());
        let next = tokio::time::timeout(limit, steps.wait_for(|seen| *seen >= round)).await;
        next.expect("the next step is created in time").unwrap();
        ours.add(millis(killed.elapsed()));
        plant.process.as_mut().unwrap().must_live();
        tokio::time::sleep(SETTLE).await;
        floor.add(listed(&plant.site).await);
        assert_eq!(*steps.borrow(), round, "one next step, and no other");
    }
    (ours, floor)
}

/// Lists what the kubeconfig's user sees of runs, in a process of its own.
async fn listed(site: &Site) -> f64 {
    let began = Instant::now();
    let listed = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args([PROCESS, "list"])
        .arg(site.kubeconfig(CONTROLLER))
        .status()
        .await
        .unwrap();
    assert!(listed.success(), "the floor of recovery lists the runs");
    millis(began.elapsed())
}

/// The supervisor of one node beside its live pods.
async fn adopt(scale: Scale) -> (Samples, Samples) {
    let count = scale.pick(100, 10);
    let mut plant = RealPlant::start().await;
    plant.live_tasks(count).await;
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    for _ in 0..scale.pick(ROUNDS, 2) {
        ours.add(millis(plant.restart_supervisor(count).await));
        tokio::time::sleep(SETTLE).await;
        floor.add(listed(&plant.site).await);
    }
    (ours, floor)
}

pub fn recovery(scale: Scale) -> Vec<Row> {
    let (ours, floor) = block_on(recover(scale));
    let (adopted, floor_of_adopted) = block_on(adopt(scale));
    vec![
        Row::new("recovery controller", "ms, SIGKILL to the first right write", ours.median())
            .floor(floor.median())
            .peer(Some(millis(CLIENT_GO_LEASE)))
            .at_most(1000.0)
            .at_most_of_floor(2.0),
        Row::new("recovery controller worst", "ms", ours.at(1.0)).floor(floor.at(1.0)),
        Row::new("recovery supervisor", "ms, SIGKILL to 100 adopted", adopted.median())
            .floor(floor_of_adopted.median())
            .at_most(500.0),
    ]
}

/// The most that the controller takes until `work` is done.
async fn peak_mib(plant: &Plant, work: impl Future<Output = ()>) -> f64 {
    const LOOK: Duration = Duration::from_millis(20);
    let (mut work, mut looks) = (pin!(work), tokio::time::interval(LOOK));
    let mut peak: f64 = 0.0;
    loop {
        tokio::select! {
            () = &mut work => return peak,
            _ = looks.tick() => peak = peak.max(plant.pss_mib()),
        }
    }
}

/// A server that knows the present alone has the controller list everything again.
async fn force_relist(plant: &Plant) {
    let (log, from) = (plant.site.audit_log(), clock::now().wall);
    plant.site.restart().await;
    let listed = |all: &[audit::Request], what: &str| {
        let is_it = |r: &&audit::Request| r.verb == "list" && r.target() == what && r.worked();
        all.iter().filter(is_it).any(|r| audit::is_of(r, CONTROLLER) && r.received > from)
    };
    eventually("the controller lists everything anew", plant.limit, async || {
        let all = audit::read(&log);
        ["codingtasks", "agentruns"].iter().all(|what| listed(&all, what)).then_some(())
    })
    .await;
    tokio::time::sleep(4 * SETTLE).await;
}

/// What `memory` has seen, in MiB but for the session, which is in KiB.
struct Sizes {
    base: f64,
    session: f64,
    /// At each number of tasks.
    at: Vec<f64>,
    /// Peak at a relist, as a part of what stood there before.
    relist: f64,
    /// Peak of a new process that lists everything, as a part of what it settles at.
    first_list: f64,
}

async fn sizes(scale: Scale, counts: &[usize]) -> Sizes {
    let further = scale.pick(100, 5);
    let mut plant = Plant::start(*counts.last().unwrap(), scale.limit()).await;
    tokio::time::sleep(SETTLE).await;
    let base = plant.pss_mib();
    plant.more_nodes(further).await;
    let session = (plant.pss_mib() - base) * 1024.0 / further as f64;
    let mut at = Vec::new();
    for count in counts {
        plant.grow(*count).await;
        at.push(plant.pss_mib());
    }
    let relist = peak_mib(&plant, force_relist(&plant)).await / at.last().unwrap();
    plant.process.take().unwrap().kill();
    plant.process = Some(plant.controller.start());
    let while_listed = scale.pick(Duration::from_secs(40), SETTLE);
    let peak = peak_mib(&plant, tokio::time::sleep(while_listed)).await;
    Sizes { base, session, at, relist, first_list: peak / plant.pss_mib() }
}

pub fn memory(scale: Scale) -> Vec<Row> {
    const NAMES: [&str; 3] =
        ["memory at 1,000 tasks", "memory at 5,000 tasks", "memory at 10,000 tasks"];
    let counts: &[usize] = scale.pick(&[1000, 5000, 10_000], &[50, 100]);
    let Sizes { base, session, at, relist, first_list } = block_on(sizes(scale, counts));
    let (first, last) = (counts[0], *counts.last().unwrap());
    let thousands = (last - first) as f64 / 1000.0;
    let slope = (at.last().unwrap() - at[0]) / thousands;
    let mut rows = vec![
        Row::new("memory base", "MiB Pss, no task", Some(base)).at_most(15.0),
        Row::new("memory session", "KiB a node and its session", Some(session)),
    ];
    if scale == Scale::Full {
        rows.extend(NAMES.iter().zip(&at).map(|(name, pss)| Row::new(name, "MiB Pss", Some(*pss))));
    }
    rows.push(
        Row::new("memory slope", "MiB per 1,000 tasks of 4 KB", Some(slope))
            .floor(Some(FLOOR_KIB * 1000.0 / 1024.0))
            .at_most(2.0),
    );
    let of = "of the settled size";
    rows.push(Row::new("memory peak, forced relist", of, Some(relist)).at_most(1.3));
    rows.push(Row::new("memory peak, first list", of, Some(first_list)).at_most(1.3));
    rows
}
