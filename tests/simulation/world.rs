//! What all parts of a simulation share: randomness, history, the state of every line between them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    time::Duration,
};

use agent_operator_doubles::history::{Fact, History};
use futures::future::BoxFuture;
use serde_json::Value;
use tokio::sync::mpsc;

use super::{
    api::{
        ApiServer, Call, End, Fate, Network, Refusal, Verb,
        server::{Link, Passage},
    },
    clock,
    controller::Handle,
    gateway::{Forge, Gateway},
};

/// Namespace of the tasks.
pub const NAMESPACE: &str = "agents";

/// How the API server is away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outage {
    /// It is not.
    #[default]
    None,
    /// It answers 503.
    Unavailable,
    /// It does not answer.
    Silent,
}

/// A controller is killed at one of its writes.
#[derive(Clone, Copy, Debug)]
pub struct KillAt {
    /// The number of the write, from 0.
    pub write: usize,
    /// Whether the write takes effect before.
    pub applied: bool,
}

/// What is broken right now.
#[derive(Default)]
pub struct Faults {
    /// Connections of processes that were killed.
    pub dead: BTreeSet<String>,
    /// The API server.
    pub outage: Outage,
    /// Processes without a way to the API server.
    pub cut_api: BTreeSet<String>,
    /// Nodes whose words do not reach controllers.
    pub cut_up: BTreeSet<String>,
    /// Nodes that controllers' words do not reach.
    pub cut_down: BTreeSet<String>,
    /// For processes whose names begin so, and a resource: the version that their lists show, and behind
    /// which their watches stay.
    pub outdated: BTreeMap<(&'static str, &'static str), u64>,
    /// Of 1000 requests and messages, how many go wrong.
    pub chaos: u32,
    /// A kill that waits for its write.
    pub kill_at: Option<KillAt>,
    /// Writes of controllers so far, Leases and events left out.
    pub writes: usize,
}

/// Everything that is shared.
pub struct World {
    rng: Mutex<fastrand::Rng>,
    history: Mutex<History>,
    faults: Mutex<Faults>,
    api: OnceLock<ApiServer>,
    /// Controllers that can be dialled, by slot.
    pub controllers: Mutex<BTreeMap<usize, Arc<Handle>>>,
    /// Gateways, by node.
    pub gateways: BTreeMap<String, Arc<Gateway>>,
    /// The forge.
    pub forge: Forge,
    kills: mpsc::UnboundedSender<String>,
}

impl World {
    /// A world with these nodes. Names of processes that are to be killed come out of the receiver.
    pub fn new(seed: u64, nodes: &[&str]) -> (Arc<Self>, mpsc::UnboundedReceiver<String>) {
        let (kills, killed) = mpsc::unbounded_channel();
        let gateways = nodes.iter().map(|node| ((*node).to_owned(), Gateway::new())).collect();
        let world = Arc::new(Self {
            rng: Mutex::new(fastrand::Rng::with_seed(seed)),
            history: Mutex::default(),
            faults: Mutex::default(),
            api: OnceLock::new(),
            controllers: Mutex::default(),
            gateways,
            forge: Forge::default(),
            kills,
        });
        let server = ApiServer::new(Way(Arc::clone(&world)), clock::of_api_server);
        assert!(world.api.set(server).is_ok());
        (world, killed)
    }

    pub fn api(&self) -> &ApiServer {
        self.api.get().unwrap()
    }

    pub fn rng(&self) -> MutexGuard<'_, fastrand::Rng> {
        self.rng.lock().unwrap()
    }

    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap()
    }

    /// Whether something happens that happens `of_1000` times in a thousand.
    pub fn chance(&self, of_1000: u32) -> bool {
        of_1000 > 0 && self.rng().u32(0..1000) < of_1000
    }

    /// A time between two numbers of milliseconds.
    pub fn between(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng().u64(from..=to))
    }

    /// Sleeps for a time between two numbers of milliseconds.
    pub async fn pause(&self, from: u64, to: u64) {
        let time = self.between(from, to);
        tokio::time::sleep(time).await;
    }

    /// Writes down a fact of this moment.
    pub fn tell(&self, fact: Fact) {
        self.history.lock().unwrap().push(clock::truth(), fact);
    }

    /// Writes down what was done, for people who read.
    pub fn note(&self, what: impl Into<String>) {
        self.tell(Fact::Note { what: what.into() });
    }

    pub fn history(&self) -> History {
        self.history.lock().unwrap().clone()
    }

    /// Takes a message from a node to controllers, or back; none when the connection breaks.
    pub async fn carry(&self, node: &str, up: bool) -> Option<()> {
        self.pause(0, 4).await;
        let chaos = self.faults().chaos;
        if self.chance(chaos / 4) {
            self.pause(100, 3000).await;
        }
        // Both ends notice a dead connection by its keepalive.
        for _ in 0..50 {
            let cut = {
                let faults = self.faults();
                if up { faults.cut_up.contains(node) } else { faults.cut_down.contains(node) }
            };
            if !cut {
                return (!self.chance(chaos / 8)).then_some(());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        None
    }
}

/// The part of a connection's name that outlives the process.
pub fn process(client: &str) -> &str {
    client.split_once('#').map_or(client, |(process, _)| process)
}

fn is_tested(client: &str) -> bool {
    client.starts_with("controller") || client.starts_with("node")
}

/// The ways to the API server.
struct Way(Arc<World>);

impl Way {
    fn unavailable(code: u16, reason: &'static str) -> End {
        let retry_after = (code == 429).then_some(1);
        End::Refuse(Refusal::new(code, reason, "injected by the simulation"), retry_after)
    }

    /// Counts a controller's write; whether its writer dies of it.
    fn dies_at(&self, call: &Call) -> Option<KillAt> {
        if !call.is_write() || !call.client.starts_with("controller") || is_noise(call) {
            return None;
        }
        let mut faults = self.0.faults();
        faults.writes += 1;
        let number = faults.writes - 1;
        faults.kill_at.take_if(|kill| kill.write == number)
    }

    /// The version of its resource at which a process is kept.
    fn outdated(&self, call: &Call) -> Option<u64> {
        let faults = self.0.faults();
        let mut of = faults.outdated.iter();
        let found =
            of.find(|((who, what), _)| call.client.starts_with(who) && call.kind.plural == *what);
        found.map(|(_, version)| *version)
    }

    fn chaos(&self, call: &Call, fate: &mut Fate) {
        let pick = self.0.rng().u32(0..11);
        match pick {
            0 => fate.end = Self::unavailable(503, "ServiceUnavailable"),
            1 => fate.end = Self::unavailable(429, "TooManyRequests"),
            2 => fate.end = Self::unavailable(500, "InternalError"),
            3 => fate.end = End::Lose { applied: true, silent: false },
            4 => fate.end = End::Lose { applied: false, silent: false },
            5 => fate.before = self.0.between(500, 6000),
            6 => fate.after = self.0.between(500, 6000),
            // It takes effect when its sender has long given up, or somebody else leads.
            7 => fate.before = self.0.between(3000, 20_000),
            8 if call.verb == Verb::List => fate.end = End::Stale(self.0.rng().u64(1..40)),
            9 | 10 => {
                fate.end = End::Lose { applied: pick == 9, silent: true };
                self.kill(call);
            }
            _ => {}
        }
    }

    fn kill(&self, call: &Call) {
        self.0.note(format!("{} dies of {:?} {}", call.client, call.verb, call.kind.plural));
        let _ = self.0.kills.send(call.client.clone());
    }
}

/// Requests that carry no decision.
fn is_noise(call: &Call) -> bool {
    matches!(call.kind.plural, "leases" | "events")
}

impl Network for Way {
    fn fate(&self, call: &Call) -> Fate {
        if !is_tested(&call.client) {
            return Fate::default();
        }
        let mut fate =
            Fate { before: self.0.between(1, 8), after: self.0.between(1, 8), end: End::Answer };
        if let Some(version) = self.outdated(call).filter(|_| call.verb == Verb::List) {
            let behind = self.0.api().with(|store| store.version()).saturating_sub(version);
            fate.end = End::Stale(behind);
            return fate;
        }
        if let Some(kill) = self.dies_at(call) {
            fate.end = End::Lose { applied: kill.applied, silent: true };
            fate.before = Duration::ZERO;
            self.kill(call);
            return fate;
        }
        let (outage, chaos) = {
            let faults = self.0.faults();
            (faults.outage, faults.chaos)
        };
        match outage {
            Outage::Unavailable => fate.end = Self::unavailable(503, "ServiceUnavailable"),
            Outage::Silent => {
                fate.end = End::Lose { applied: false, silent: false };
                fate.after = Duration::from_secs(14);
            }
            Outage::None if self.0.chance(chaos) => self.chaos(call, &mut fate),
            Outage::None => {}
        }
        fate
    }

    fn served(&self, call: &Call, result: Result<&Value, &Refusal>) {
        if let (true, Ok(object)) =
            (call.is_write() && is_tested(&call.client) && !is_noise(call), result)
        {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let what = format!("{:?} {}/{name}", call.verb, call.kind.plural);
            self.0.tell(Fact::Wrote { by: call.client.clone(), what });
        }
    }

    fn link(&self, client: &str) -> Link {
        let faults = self.0.faults();
        if faults.dead.contains(client) {
            Link::Dead
        } else if faults.cut_api.contains(process(client)) || faults.outage == Outage::Silent {
            if is_tested(client) { Link::Cut } else { Link::Up }
        } else {
            Link::Up
        }
    }

    fn holds(&self, call: &Call) -> bool {
        self.outdated(call).is_some()
    }

    fn passage_of_event(&self, client: &str) -> Passage {
        let chaos = if is_tested(client) { self.0.faults().chaos } else { 0 };
        match self.0.chance(chaos / 2) {
            false => Passage::Once,
            true if self.0.chance(500) => Passage::Twice,
            true => Passage::Broken,
        }
    }

    fn delay_of_event(&self, client: &str) -> BoxFuture<'static, ()> {
        let time = if is_tested(client) {
            let chaos = self.0.faults().chaos;
            if self.0.chance(chaos / 2) { self.0.between(200, 8000) } else { self.0.between(0, 6) }
        } else {
            Duration::ZERO
        };
        Box::pin(async move {
            if !time.is_zero() {
                tokio::time::sleep(time).await;
            }
        })
    }
}
