//! Doubles of a node's gateway and of the forge. The gateway keeps the contract of
//! `supervisor/src/link/contract.rs`: what it tells is repeated until it is on the supervisor's disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use agent_operator::{
    attempt::{GateRequest, ProbeOrder, ProbeReport, StepResult, StopOrder},
    domain::{Epoch, PreflightReport, RunKey, Usage, names::sha256_hex, report::PullRequest},
};
use agent_operator_supervisor::link::contract::{
    DurableEvent, FromGateway, Grant, Redemption, Survivor, ToGateway,
};
use tokio::{sync::mpsc, time::Instant};

/// What the gateway cannot do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It is down, or does not know yet: the runner asks again.
    Again,
    /// For good.
    Refused,
}

struct Held {
    grant: Grant,
    credentials: bool,
    at_gate: bool,
    /// What the supervisor wants probed.
    probe: Option<ProbeOrder>,
    opened: Option<(IpAddr, Instant)>,
    stop: Option<StopOrder>,
    /// The redemption was by an earlier process of this gateway.
    after_restart: bool,
}

/// The gate is open.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// Until when the step may go on.
    pub deadline: Instant,
    /// What of the step's time is gone, where the gateway was restarted since the redemption; otherwise
    /// none may be.
    pub gone: Duration,
}

#[derive(Default)]
struct Inner {
    up: bool,
    instance: u64,
    attempts: BTreeMap<RunKey, Held>,
    named: BTreeSet<RunKey>,
    /// Of these the supervisor has no record.
    unclaimed: BTreeSet<RunKey>,
    synced: bool,
    permit: Option<(Epoch, Instant)>,
    pending: BTreeMap<u64, (RunKey, DurableEvent)>,
    serial: u64,
    link: Option<mpsc::UnboundedSender<FromGateway>>,
    /// Attempts whose credentials came while they were held.
    early: Vec<RunKey>,
}

/// One node's gateway.
pub struct Gateway {
    inner: Mutex<Inner>,
}

impl Gateway {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { inner: Mutex::new(Inner { up: true, ..Inner::default() }) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// SIGKILL: all that it knew is gone.
    pub fn kill(&self) {
        let mut inner = self.inner();
        let early = std::mem::take(&mut inner.early);
        *inner = Inner { instance: inner.instance + 1, early, ..Inner::default() };
    }

    /// The attempts whose credentials came before their turn.
    pub fn early(&self) -> Vec<RunKey> {
        self.inner().early.clone()
    }

    pub fn start(&self) {
        self.inner().up = true;
    }

    /// The attempts that it would let do anything.
    pub fn live(&self) -> Vec<RunKey> {
        self.inner().attempts.keys().cloned().collect()
    }

    /// A connection of the supervisor: the greeting's attempts, and what the gateway says from here
    /// on. None while it is down.
    pub fn connect(&self) -> Option<(Vec<RunKey>, mpsc::UnboundedReceiver<FromGateway>)> {
        let mut inner = self.inner();
        if !inner.up {
            return None;
        }
        let (link, said) = mpsc::unbounded_channel();
        for (id, (run, event)) in &inner.pending {
            let (id, run, event) = (*id, run.clone(), event.clone());
            let _ = link.send(FromGateway::Durable { id, run, event });
        }
        inner.link = Some(link);
        inner.named.clear();
        Some((inner.attempts.keys().cloned().collect(), said))
    }

    /// Takes what the supervisor says.
    pub fn hear(&self, message: ToGateway) {
        let mut inner = self.inner();
        if !inner.up {
            return;
        }
        match message {
            ToGateway::Register(grant) => inner.register(*grant),
            ToGateway::Synced => {
                inner.synced = true;
                let named = std::mem::take(&mut inner.named);
                inner.attempts.retain(|run, _| named.contains(run));
            }
            ToGateway::Describe { run } => {
                inner.named.insert(run.clone());
                inner.unclaimed.insert(run.clone());
                inner.describe(&run);
            }
            ToGateway::Credentials { run, .. } => {
                if let Some(held) = inner.attempts.get_mut(&run) {
                    held.credentials = true;
                    if held.grant.assignment.held {
                        inner.early.push(run);
                    }
                }
            }
            ToGateway::Probe { run, order } => {
                if let Some(held) = inner.attempts.get_mut(&run) {
                    held.probe = Some(order);
                }
            }
            ToGateway::OpenGate { run, pod_ip, remaining_millis } => {
                if let Some(held) = inner.attempts.get_mut(&run) {
                    let end = Instant::now() + Duration::from_millis(remaining_millis);
                    held.opened = Some((pod_ip, end));
                }
            }
            ToGateway::Permit { epoch, valid_millis } => {
                let until = Instant::now() + Duration::from_millis(valid_millis);
                if inner.permit.is_none_or(|(known, _)| known <= epoch) {
                    inner.permit = Some((epoch, until));
                }
            }
            ToGateway::Stop { run, order } => {
                if let Some(held) = inner.attempts.get_mut(&run) {
                    held.stop = Some(order);
                }
            }
            ToGateway::Revoke { run } => {
                inner.attempts.remove(&run);
                inner.pending.retain(|_, (of, _)| *of != run);
            }
            ToGateway::Preflight { order, .. } => {
                let report =
                    PreflightReport { key: order.key, findings: Vec::new(), notes: Vec::new() };
                inner.say(FromGateway::Preflighted(Box::new(report)));
            }
            ToGateway::Ack { id } => {
                inner.pending.remove(&id);
            }
            ToGateway::Hello { .. } | ToGateway::Budget { .. } => {}
        }
    }

    /// Redeems a pod's token.
    pub fn redeem(&self, token: &str, nonce: &str, ip: IpAddr) -> Result<RunKey, Denied> {
        let mut inner = self.inner();
        let hash = sha256_hex(token.as_bytes());
        let found = inner.attempts.iter_mut().find(|(_, held)| held.grant.one_time_hash == hash);
        let Some((run, held)) = found else {
            let again = !inner.up || !inner.synced;
            return Err(if again { Denied::Again } else { Denied::Refused });
        };
        let run = run.clone();
        if let Some(known) = &held.grant.redemption {
            return if known.nonce_hash == nonce { Ok(run) } else { Err(Denied::Refused) };
        }
        let redemption = Redemption {
            nonce_hash: nonce.to_owned(),
            pod_ip: ip,
            runner_hash: format!("runner-{nonce}"),
            agent_hash: format!("agent-{nonce}"),
        };
        held.grant.redemption = Some(redemption.clone());
        inner.emit(&run, DurableEvent::Redeemed(redemption));
        Ok(run)
    }

    /// The runner stands at the gate; none: it is not open yet.
    pub fn gate(&self, run: &RunKey, ip: IpAddr) -> Result<Option<Opening>, Denied> {
        let mut inner = self.inner();
        let held = inner.held(run)?;
        if let Some((of, deadline)) = held.opened {
            let left = deadline.saturating_duration_since(Instant::now());
            let gone = held.grant.assignment.timeout().saturating_sub(left);
            let gone = if held.after_restart { gone } else { Duration::ZERO };
            return if of == ip {
                Ok(Some(Opening { deadline, gone }))
            } else {
                Err(Denied::Refused)
            };
        }
        let request = GateRequest { canary_before: Some(true), ..GateRequest::default() };
        if !std::mem::replace(&mut held.at_gate, true) {
            inner.emit(run, DurableEvent::AtGate(request));
        } else if let Some(ProbeOrder { targets, .. }) = held.probe.take() {
            let probe = Some(ProbeReport { tried: targets, reached: Vec::new() });
            inner.emit(run, DurableEvent::AtGate(GateRequest { probe, ..request }));
        }
        Ok(None)
    }

    /// The order to stop, if there is one.
    pub fn stop(&self, run: &RunKey) -> Option<StopOrder> {
        self.inner().attempts.get(run)?.stop.clone()
    }

    /// The assignment of an attempt that may write upstream right now.
    pub fn writer(&self, run: &RunKey) -> Result<Grant, Denied> {
        let mut inner = self.inner();
        let permitted = inner.permit.is_some_and(|(_, until)| Instant::now() < until);
        let permitted = permitted && !inner.unclaimed.contains(run);
        let held = inner.held(run)?;
        if !held.credentials {
            inner.say(FromGateway::NeedCredentials { run: run.clone() });
            return Err(Denied::Again);
        }
        if permitted { Ok(held.grant.clone()) } else { Err(Denied::Again) }
    }

    /// Says that something happened; the number by which to ask whether it is on disk.
    pub fn tell(&self, run: &RunKey, event: DurableEvent) -> Result<u64, Denied> {
        let mut inner = self.inner();
        inner.held(run)?;
        Ok(inner.emit(run, event))
    }

    /// Takes the runner's result.
    pub fn result(&self, run: &RunKey, result: StepResult) -> Result<u64, Denied> {
        let usage = Usage { turns: 1, ..Usage::default() };
        let refusals = Vec::new();
        self.tell(run, DurableEvent::Result { result: Box::new(result), usage, refusals })
    }

    /// Whether the supervisor has it on disk. No: or the gateway has died since.
    pub fn is_kept(&self, id: u64) -> bool {
        let inner = self.inner();
        id / SERIALS == inner.instance && !inner.pending.contains_key(&id)
    }

    /// Whether this number was given by the present process.
    pub fn is_present(&self, id: u64) -> bool {
        id / SERIALS == self.inner().instance
    }
}

/// Numbers of one life of a gateway.
const SERIALS: u64 = 1_000_000;

impl Inner {
    fn held(&mut self, run: &RunKey) -> Result<&mut Held, Denied> {
        let again = !self.up || !self.synced;
        let found = self.attempts.get_mut(run);
        found.ok_or(if again { Denied::Again } else { Denied::Refused })
    }

    fn register(&mut self, grant: Grant) {
        let run = grant.assignment.key();
        self.named.insert(run.clone());
        self.unclaimed.remove(&run);
        let left = grant.open_remaining_millis.map(Duration::from_millis);
        let ip = grant.redemption.as_ref().map(|redemption| redemption.pod_ip);
        let opened = ip.zip(left.map(|left| Instant::now() + left));
        if let Some(held) = self.attempts.get_mut(&run) {
            held.opened = held.opened.or(opened);
            let redemption = held.grant.redemption.take().or_else(|| grant.redemption.clone());
            held.probe.clone_from(&grant.probe);
            held.grant = Grant { redemption, ..grant };
        } else {
            let (probe, after_restart) = (grant.probe.clone(), grant.redemption.is_some());
            let (credentials, at_gate, stop) = (false, false, None);
            let held = Held { grant, credentials, at_gate, probe, opened, stop, after_restart };
            self.attempts.insert(run, held);
        }
    }

    fn describe(&mut self, run: &RunKey) {
        let Some(held) = self.attempts.get(run) else { return };
        let left = held.opened.map(|(_, end)| end.saturating_duration_since(Instant::now()));
        let survivor = Survivor {
            assignment: held.grant.assignment.clone(),
            redemption: held.grant.redemption.clone(),
            open_remaining_millis: left.map(|left| u64::try_from(left.as_millis()).unwrap()),
            usage: Usage::default(),
            refusals: Vec::new(),
        };
        self.say(FromGateway::Survivor(Box::new(survivor)));
    }

    fn emit(&mut self, run: &RunKey, event: DurableEvent) -> u64 {
        self.serial += 1;
        let id = self.instance * SERIALS + self.serial;
        self.pending.insert(id, (run.clone(), event.clone()));
        self.say(FromGateway::Durable { id, run: run.clone(), event });
        id
    }

    fn say(&mut self, message: FromGateway) {
        if let Some(link) = &self.link
            && link.send(message).is_err()
        {
            self.link = None;
        }
    }
}

/// Work branches and pull requests, by the task's name.
#[derive(Default)]
pub struct Forge {
    tips: Mutex<BTreeMap<String, String>>,
    requests: Mutex<BTreeMap<String, i64>>,
}

impl Forge {
    pub fn tip(&self, task: &str) -> Option<String> {
        self.tips.lock().unwrap().get(task).cloned()
    }

    /// Moves the work branch if it is still where the mover saw it.
    pub fn publish(&self, task: &str, seen: Option<&String>, commit: &str) -> bool {
        let mut tips = self.tips.lock().unwrap();
        let fits = tips.get(task) == seen || tips.get(task).is_some_and(|tip| tip == commit);
        if fits {
            tips.insert(task.to_owned(), commit.to_owned());
        }
        fits
    }

    /// The task's pull request, and whether it was opened by this call.
    pub fn pull_request(&self, task: &str) -> (PullRequest, bool) {
        let mut requests = self.requests.lock().unwrap();
        let next = i64::try_from(requests.len()).unwrap() + 1;
        let fresh = !requests.contains_key(task);
        let number = *requests.entry(task.to_owned()).or_insert(next);
        let url = format!("https://github.com/jcwearn/example-repo/pull/{number}");
        (PullRequest { url, number }, fresh)
    }
}
