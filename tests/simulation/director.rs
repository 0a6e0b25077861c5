//! Starts, breaks and mends everything.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use agent_operator_doubles::history::Fact;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};

use super::{
    api::{
        Refusal,
        kinds::kind,
        store::{Admission, Deletion},
    },
    clock,
    cluster::{self, Node, all, key},
    controller::Controller,
    supervisor::{Place, Supervisor},
    world::{NAMESPACE, Outage, World, process},
};

/// The nodes.
pub const NODES: [&str; 2] = ["node-a", "node-b"];
/// Retries that a task may have.
const RETRIES_MAX: u32 = 3;
/// Name of the Lease of controllers that stand for one election.
const LEASE: &str = "controller";
/// The annotation that ends a task.
const CANCEL: &str = "agents.wearn.dev/cancel";
/// The annotation by which a person vouches that a node is down.
const FENCE: &str = "agents.wearn.dev/fence";

/// Later than any simulation lasts.
const FOR_GOOD: Duration = Duration::from_hours(1000);

/// What is mended, and when.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mend {
    Controller(usize),
    Supervisor(String),
    Gateway(String),
    Power(String),
    Outage,
    Api(String),
    Up(String),
    Down(String),
    Fence(String),
    Resume(String),
}

struct NodeParts {
    place: Place,
    life: u32,
    supervisor: Option<Supervisor>,
}

/// All processes, and what has to be mended.
pub struct Director {
    pub world: Arc<World>,
    /// Whether each controller has a Lease of its own, so that all of them lead at once.
    pub apart: bool,
    controllers: Vec<(u32, Option<Controller>)>,
    nodes: BTreeMap<String, NodeParts>,
    mends: Vec<(Instant, Mend)>,
    killed: mpsc::UnboundedReceiver<String>,
}

/// The schema's rules on runs, as far as the invariants rest on them.
pub fn rule(admission: Admission<'_>) -> Result<(), Refusal> {
    let Some(before) = admission.before.filter(|_| admission.kind.plural == "agentruns") else {
        return Ok(());
    };
    let after = admission.after;
    let terminal = matches!(before["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let same = |field: &str| before["status"].get(field) == after["status"].get(field);
    if before["spec"] != after["spec"]
        || terminal && !(same("phase") && same("reason") && same("exitCode"))
    {
        return Err(Refusal::new(422, "Invalid", "a finished AgentRun never changes"));
    }
    Ok(())
}

impl Director {
    /// Puts up cluster and processes.
    pub fn start(seed: u64, dir: &Path, controllers: usize, apart: bool) -> Self {
        clock::begin();
        let (world, killed) = World::new(seed, &NODES);
        clock::set_all(&world);
        world.api().with(|store| {
            store.rule(Box::new(rule));
            let mut make = |plural: &str, namespace: Option<&str>, object: Value| {
                store.create(kind(plural), namespace, object).unwrap();
            };
            make("namespaces", None, json!({"metadata": {"name": NAMESPACE}}));
            for node in NODES {
                let status = json!({"allocatable": {"cpu": "4", "memory": "8Gi"}});
                make("nodes", None, json!({"metadata": {"name": node}, "status": status}));
            }
            let data =
                json!({"anthropic-api-key": "c2stY2FuYXJ5", "github-token": "Z2hwLWNhbmFyeQ=="});
            make(
                "secrets",
                Some(NAMESPACE),
                json!({"metadata": {"name": "agent-secrets"}, "data": data}),
            );
        });
        tokio::spawn(cluster::scribe(Arc::clone(&world)));
        tokio::spawn(cluster::collect_garbage(Arc::clone(&world)));
        let nodes = NODES.iter().map(|node| {
            let place = Place {
                world: Arc::clone(&world),
                node: (*node).to_owned(),
                machine: Node::start(&world, node),
                dir: dir.join(node),
                boot: 0,
            };
            ((*node).to_owned(), NodeParts { place, life: 0, supervisor: None })
        });
        let mut director = Self {
            apart,
            controllers: (0..controllers).map(|_| (0, None)).collect(),
            nodes: nodes.collect(),
            mends: Vec::new(),
            killed,
            world,
        };
        (0..controllers).for_each(|slot| director.mend(Mend::Controller(slot)));
        for node in NODES {
            director.mend(Mend::Supervisor(node.to_owned()));
        }
        director
    }

    /// A user creates a task.
    pub fn task(&self, name: &str) {
        self.task_with(name, false);
    }

    /// A user creates a task whose next pods are made ahead, or not.
    pub fn task_with(&self, name: &str, ahead: bool) {
        let mut task = json!({
            "metadata": {"name": name},
            "spec": {
                "source": {"type": "chat", "chat": {"sessionId": "s", "userId": "jackson"}},
                "repository": {"url": "https://github.com/jcwearn/example-repo.git", "branch": "main"},
                "prompt": "Add a /healthz endpoint that returns 200 OK",
                "anthropicApiKeyRef": {"name": "agent-secrets", "key": "anthropic-api-key"},
                "gitCredentialsRef": {"name": "agent-secrets", "key": "github-token"},
                "stepTimeout": "40s",
                "maxRetries": RETRIES_MAX,
                "taskTimeout": "2h",
            },
        });
        if ahead {
            task["spec"]["prepareNextStep"] = json!(true);
        }
        let tasks = kind("codingtasks");
        let made = Fact::TaskMade { task: name.to_owned(), retries_max: RETRIES_MAX };
        self.world.tell(made);
        self.world.api().with(|store| store.create(tasks, Some(NAMESPACE), task)).unwrap();
    }

    /// Lets time pass; whatever is to be mended or killed meanwhile is.
    pub async fn pass(&mut self, time: Duration) {
        let end = Instant::now() + time;
        loop {
            let next = self.mends.iter().map(|(at, _)| *at).min().unwrap_or(end).min(end);
            tokio::select! {
                biased;
                Some(client) = self.killed.recv() => self.kill_process(&client),
                () = tokio::time::sleep_until(next) => {
                    if next >= end {
                        return;
                    }
                    self.mend_due(next);
                }
            }
        }
    }

    fn mend_due(&mut self, now: Instant) {
        let (due, later) =
            std::mem::take(&mut self.mends).into_iter().partition(|(at, _)| *at <= now);
        self.mends = later;
        let due: Vec<(Instant, Mend)> = due;
        for (_, mend) in due {
            self.mend(mend);
        }
    }

    /// Mends everything, for good.
    pub fn calm(&mut self) {
        self.world.faults().chaos = 0;
        self.world.faults().outdated.clear();
        let mut all: Vec<_> = std::mem::take(&mut self.mends);
        all.sort();
        for (_, mend) in all {
            self.mend(mend);
        }
        if self.apart {
            for (_, controller) in self.controllers.iter_mut().skip(1) {
                if let Some(controller) = controller.take() {
                    controller.kill();
                }
            }
        }
        self.world.note("from here on there are no faults");
    }

    fn later(&mut self, from: u64, to: u64, mend: Mend) {
        let at = Instant::now() + self.world.between(from, to);
        self.mends.push((at, mend));
    }

    fn mend(&mut self, mend: Mend) {
        let world = Arc::clone(&self.world);
        match mend {
            Mend::Controller(slot) => {
                let lease = if self.apart { format!("{LEASE}-{slot}") } else { LEASE.to_owned() };
                let (life, running) = &mut self.controllers[slot];
                if running.is_none() {
                    *life += 1;
                    *running = Some(Controller::start(&world, slot, *life, &lease));
                }
            }
            Mend::Supervisor(node) => {
                let parts = self.nodes.get_mut(&node).unwrap();
                if parts.supervisor.is_none() && parts.place.machine.has_power() {
                    parts.life += 1;
                    parts.supervisor = Some(Supervisor::start(&parts.place, parts.life));
                }
            }
            Mend::Gateway(node) => {
                if self.nodes[&node].place.machine.has_power() {
                    world.gateways[&node].start();
                }
            }
            Mend::Power(node) => {
                let parts = self.nodes.get_mut(&node).unwrap();
                parts.place.machine.power_on();
                self.trust(&node);
                self.mend(Mend::Gateway(node.clone()));
                self.mend(Mend::Supervisor(node));
            }
            Mend::Outage => world.faults().outage = Outage::None,
            Mend::Api(process) => {
                world.faults().cut_api.remove(&process);
            }
            Mend::Up(node) => {
                world.faults().cut_up.remove(&node);
            }
            Mend::Down(node) => {
                world.faults().cut_down.remove(&node);
            }
            Mend::Fence(node) => self.trust(&node),
            Mend::Resume(task) => self.patch_task(&task, &json!({"spec": {"suspend": false}})),
        }
    }

    /// SIGKILL of whichever process holds this connection.
    fn kill_process(&mut self, client: &str) {
        let slots: Vec<_> = (0..self.controllers.len()).collect();
        for slot in slots {
            let is_it = |running: &Controller| running.client == client;
            if self.controllers[slot].1.as_ref().is_some_and(is_it) {
                self.kill_controller(slot);
            }
        }
        if self.nodes.contains_key(process(client)) {
            self.kill_supervisor(process(client));
        }
    }

    pub fn kill_controller(&mut self, slot: usize) {
        if let Some(controller) = self.controllers[slot].1.take() {
            controller.kill();
            self.later(100, 12_000, Mend::Controller(slot));
        }
    }

    pub fn kill_supervisor(&mut self, node: &str) {
        let parts = self.nodes.get_mut(node).unwrap();
        if let Some(supervisor) = parts.supervisor.take() {
            supervisor.kill();
            let dir = parts.place.dir.clone();
            let damage = self.world.rng().u32(0..20);
            match damage {
                0 => lose_ledger(&dir),
                1..=4 => tear_ledger(&dir),
                _ => {}
            }
            if damage < 5 {
                let how = if damage == 0 { "lost" } else { "torn" };
                self.world.note(format!("the ledger of {node} is {how}"));
            }
            self.later(100, 30_000, Mend::Supervisor(node.to_owned()));
        }
    }

    fn power_off(&mut self, node: &str) {
        let parts = self.nodes.get_mut(node).unwrap();
        if !parts.place.machine.has_power() {
            return;
        }
        parts.place.machine.power_off();
        parts.place.boot += 1;
        if let Some(supervisor) = parts.supervisor.take() {
            supervisor.kill();
        }
        self.world.gateways[node].kill();
        self.later(5000, 60_000, Mend::Power(node.to_owned()));
        if self.world.chance(500) {
            self.annotate_fence(node, true);
        }
    }

    /// A person fences a node, or trusts it again.
    fn annotate_fence(&self, node: &str, fenced: bool) {
        let place = ("nodes", String::new(), node.to_owned());
        self.world.api().with(|store| {
            let uid = store.get(&place).unwrap()["metadata"]["uid"].clone();
            let value = if fenced { uid } else { Value::Null };
            let change = json!({"metadata": {"annotations": {FENCE: value}}});
            let _ = store.merge(kind("nodes"), &place, &change, false);
        });
    }

    fn trust(&self, node: &str) {
        self.annotate_fence(node, false);
        self.world.tell(Fact::Trusted { node: node.to_owned() });
    }

    fn patch_task(&self, task: &str, change: &Value) {
        let place = ("codingtasks", NAMESPACE.to_owned(), task.to_owned());
        let tasks = kind("codingtasks");
        let _ = self.world.api().with(|store| store.merge(tasks, &place, change, false));
    }

    /// Breaks something.
    pub async fn fault(&mut self) {
        let world = Arc::clone(&self.world);
        let node = NODES[world.rng().usize(0..NODES.len())].to_owned();
        let slot = world.rng().usize(0..self.controllers.len());
        let pick = world.rng().u32(0..100);
        let note = |what: String| world.note(what);
        match pick {
            0..=14 => {
                note(format!("controller {slot} is killed"));
                self.kill_controller(slot);
            }
            15..=18 => {
                note(format!("controller {slot} is stopped"));
                if let Some(controller) = self.controllers[slot].1.take() {
                    controller.stop().await;
                    self.later(0, 3000, Mend::Controller(slot));
                }
            }
            19..=33 => {
                note(format!("supervisor of {node} is killed"));
                self.kill_supervisor(&node);
            }
            34..=41 => {
                note(format!("gateway of {node} is killed"));
                world.gateways[&node].kill();
                self.later(100, 8000, Mend::Gateway(node));
            }
            42..=46 => {
                note(format!("{node} loses its power"));
                self.power_off(&node);
            }
            47..=54 => {
                let outage = if world.chance(500) { Outage::Silent } else { Outage::Unavailable };
                note(format!("API server: {outage:?}"));
                world.faults().outage = outage;
                self.later(500, 40_000, Mend::Outage);
            }
            55..=62 => {
                let cut = if world.chance(500) { node } else { format!("controller-{slot}") };
                note(format!("{cut} is cut off the API server"));
                world.faults().cut_api.insert(cut.clone());
                self.later(500, 40_000, Mend::Api(cut));
            }
            63..=76 => self.partition(&node),
            77..=79 => {
                note("compaction".to_owned());
                world.api().with(super::api::store::Store::compact);
            }
            80..=82 => {
                let seconds = [3600, -3600, 90, -90][world.rng().usize(0..4)];
                clock::step(&world, seconds);
            }
            83..=92 => {
                let chaos = world.rng().u32(0..150);
                note(format!("{chaos} of 1000 requests go wrong"));
                world.faults().chaos = chaos;
            }
            _ => self.user(pick),
        }
    }

    fn partition(&mut self, node: &str) {
        let ways = self.world.rng().usize(0..3);
        let way = ["from", "to", "from and to"][ways];
        self.world.note(format!("no session traffic {way} {node}"));
        if ways != 1 {
            self.world.faults().cut_up.insert(node.to_owned());
            self.later(500, 40_000, Mend::Up(node.to_owned()));
        }
        if ways != 0 {
            self.world.faults().cut_down.insert(node.to_owned());
            self.later(500, 40_000, Mend::Down(node.to_owned()));
        }
        if self.world.chance(500) {
            self.fence_what_runs(node);
            self.later(20_000, 90_000, Mend::Fence(node.to_owned()));
        }
    }

    /// A node is cut off, and fenced for it, until all is mended.
    pub fn cut_off_and_fence(&mut self, node: &str) {
        self.world.faults().cut_up.insert(node.to_owned());
        self.world.faults().cut_down.insert(node.to_owned());
        self.fence_what_runs(node);
        for mend in [Mend::Up, Mend::Down, Mend::Fence] {
            self.mends.push((Instant::now() + FOR_GOOD, mend(node.to_owned())));
        }
    }

    /// A person takes a node for dead that is only cut off, and all that runs there with it. With
    /// leaders who know nothing of one another there is none that could be believed: the other one
    /// has the session.
    fn fence_what_runs(&mut self, node: &str) {
        if self.apart || !self.nodes[node].place.machine.has_power() {
            return;
        }
        self.world.note(format!("{node} is fenced while it runs"));
        self.world.tell(Fact::Fenced { node: node.to_owned() });
        self.annotate_fence(node, true);
    }

    /// People do things.
    fn user(&mut self, pick: u32) {
        let world = Arc::clone(&self.world);
        let objects = match pick {
            97 => all(&world, "agentruns"),
            98.. => all(&world, "pods"),
            _ => all(&world, "codingtasks"),
        };
        if objects.is_empty() {
            return;
        }
        let object = &objects[world.rng().usize(0..objects.len())];
        let place = key(object);
        let name = place.2.clone();
        match pick {
            93 => {
                world.note(format!("task {name} is cancelled"));
                self.patch_task(&name, &json!({"metadata": {"annotations": {CANCEL: "true"}}}));
            }
            94..=95 => {
                world.note(format!("task {name} is suspended"));
                self.patch_task(&name, &json!({"spec": {"suspend": true}}));
                self.later(500, 30_000, Mend::Resume(name));
            }
            96 | 97.. => {
                self.delete(place.0, &name);
            }
            _ => {}
        }
    }

    /// From here on these processes see this resource as it is now: lists show no more, and watches tell
    /// nothing.
    pub fn outdate(&self, who: &'static str, plural: &'static str) {
        let version = self.world.api().with(|store| store.version());
        self.world.faults().outdated.insert((who, plural), version);
    }

    /// A person deletes something.
    pub fn delete(&self, plural: &'static str, name: &str) {
        self.world.note(format!("{plural} {name} is deleted by hand"));
        let place = (plural, NAMESPACE.to_owned(), name.to_owned());
        let deletion = Deletion::default();
        let _ = self.world.api().with(|store| store.delete(kind(plural), &place, &deletion));
    }

    /// Tasks that have not ended.
    pub fn open_tasks(&self) -> Vec<String> {
        let tasks = all(&self.world, "codingtasks");
        let open = tasks.iter().filter(|task| {
            !matches!(task["status"]["phase"].as_str(), Some("Complete" | "Failed"))
        });
        open.map(|task| key(task).2).collect()
    }

    /// Processes that have ended by themselves.
    pub fn over(&self) -> Vec<String> {
        let controllers = self.controllers.iter().filter_map(|(_, running)| running.as_ref());
        let supervisors = self.nodes.values().filter_map(|parts| parts.supervisor.as_ref());
        let ended = controllers.filter(|c| c.is_over()).map(|c| c.client.clone());
        ended.chain(supervisors.filter(|s| s.is_over()).map(|s| s.client.clone())).collect()
    }
}

fn ledger_files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().flatten();
    let mut files: Vec<_> =
        entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}

/// Nothing of the ledger is left.
fn lose_ledger(dir: &Path) {
    for file in ledger_files(dir) {
        let _ = std::fs::remove_file(file);
    }
}

/// The last write was cut short.
fn tear_ledger(dir: &Path) {
    let ledger = dir.join("ledger.jsonl");
    if let Ok(mut file) = std::fs::OpenOptions::new().append(true).open(ledger) {
        let _ = file.write_all(b"{\"a torn");
    }
}

/// The place of a node among the nodes.
pub fn place_of(node: &str) -> usize {
    NODES.iter().position(|name| *name == node).unwrap()
}
