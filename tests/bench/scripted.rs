//! Supervisors by script over real sessions: TLS, token, TokenReview and every message are real, nodes and pods are not.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use agent_operator::domain::{
    Assignment, Epoch, NodeName, PreflightReport, Reason, RunKey, RunPhase,
    ids::{InstanceId, PodUid},
    report::{Outcome, Report, RunState, SandboxStatus, Started},
};
use agent_operator_supervisor::{
    clock,
    metrics::Metrics,
    session::{self, Session, dial::TlsDial},
    steps::runner::{Input, Known, Outgoing, Snapshot},
    streams::{Retention, Streams},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    site::{SYSTEM, Site},
    support::outcome,
};

/// Attempts of one node; the most that a supervisor takes.
pub const SLOTS: u32 = 1000;
/// Word in a prompt whose steps end at once.
pub const CYCLE: &str = "cycle";
/// Queue of what comes in.
const INPUTS_MAX: usize = 4096;

/// Number of the report with an attempt's outcome.
const LAST: u64 = 2;

/// An attempt on a scripted node.
struct Held {
    assignment: Assignment,
    end: Option<Outcome>,
    /// Highest number that the controller has acknowledged.
    acknowledged: u64,
}

#[derive(Default)]
struct Inner {
    attempts: BTreeMap<RunKey, Held>,
    highest: Epoch,
    outgoing: Option<mpsc::Sender<Outgoing>>,
    /// Outcomes that the controller has acknowledged, which it does once they are written.
    recorded: u64,
}

/// A node on which every attempt runs until it is told to end, or ends at once if its task says so.
pub struct Scripted {
    inner: Mutex<Inner>,
    over: CancellationToken,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

impl Scripted {
    /// Starts a node that dials the controller at `address` for as long as it is held.
    pub async fn start(site: &Site, name: &str, address: &str) -> Arc<Self> {
        let token_file = site.node(name).await;
        let over = CancellationToken::new();
        let node = Arc::new(Self { inner: Mutex::default(), over: over.clone() });
        let (inputs, mut queue) = mpsc::channel(INPUTS_MAX);
        let session = session(site, name, address, token_file, inputs);
        tokio::spawn(session::run(session, over));
        let weak = Arc::downgrade(&node);
        tokio::spawn(async move {
            while let Some(input) = queue.recv().await {
                let Some(node) = weak.upgrade() else { return };
                for said in node.hear(input) {
                    let outgoing = node.inner().outgoing.clone();
                    if let Some(outgoing) = outgoing {
                        // A session that has ended asks again by its next Hello.
                        let _ = outgoing.send(said).await;
                    }
                }
            }
        });
        node
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Attempts that run.
    pub fn live(&self) -> Vec<Assignment> {
        let inner = self.inner();
        let live = inner.attempts.values().filter(|held| held.end.is_none());
        live.map(|held| held.assignment.clone()).collect()
    }

    /// How many run. Thousands of assignments are not copied to be counted: that took more of the machine than what
    /// was measured.
    pub fn count(&self) -> usize {
        self.inner().attempts.values().filter(|held| held.end.is_none()).count()
    }

    /// Steps whose outcome is written.
    pub fn recorded(&self) -> u64 {
        self.inner().recorded
    }

    /// Ends an attempt; the controller hears of it with the next session.
    pub fn end_unheard(&self, run: &RunKey) {
        if let Some(held) = self.inner().attempts.get_mut(run) {
            held.end = Some(outcome(&held.assignment, Reason::Completed));
        }
    }

    fn hear(&self, input: Input) -> Vec<Outgoing> {
        let mut inner = self.inner();
        match input {
            Input::Snapshot(answer) => {
                let _ = answer.send(inner.snapshot());
                Vec::new()
            }
            Input::SessionUp { outgoing, .. } => {
                inner.outgoing = Some(outgoing);
                inner.attempts.values().flat_map(Held::unheard).collect()
            }
            Input::SessionDown => {
                inner.outgoing = None;
                Vec::new()
            }
            Input::Assign { assignment, .. } => inner.assign(*assignment),
            Input::ReportAck { run, sequence } => {
                let Inner { attempts, recorded, .. } = &mut *inner;
                if let Some(held) = attempts.get_mut(&run) {
                    *recorded += u64::from(held.acknowledged < LAST && sequence >= LAST);
                    held.acknowledged = held.acknowledged.max(sequence);
                }
                Vec::new()
            }
            Input::Forget(run) => {
                inner.attempts.remove(&run);
                Vec::new()
            }
            Input::Preflight { order, .. } => {
                let report =
                    PreflightReport { key: order.key, findings: Vec::new(), notes: Vec::new() };
                vec![Outgoing::Preflight(Box::new(report))]
            }
            _ => Vec::new(),
        }
    }
}

impl Inner {
    fn snapshot(&self) -> Snapshot {
        let known =
            self.attempts.iter().filter(|(_, held)| held.end.is_none() || held.acknowledged < LAST);
        let known = known.map(|(key, held)| Known {
            run: held.assignment.run.clone(),
            key: key.clone(),
            epoch: held.assignment.epoch,
            phase: held.end.as_ref().map_or(RunPhase::Running, Outcome::phase),
        });
        let known: Vec<_> = known.collect();
        let running = u32::try_from(known.len()).unwrap();
        Snapshot { known, highest_epoch: self.highest, delivery: None, running }
    }

    fn assign(&mut self, assignment: Assignment) -> Vec<Outgoing> {
        self.highest = self.highest.max(assignment.epoch);
        let key = assignment.key();
        let epoch = assignment.epoch;
        let ack = Outgoing::AssignmentAck { run: key.clone(), epoch, refused: None };
        let ends = assignment.work.prompt.contains(CYCLE);
        let end = ends.then(|| outcome(&assignment, Reason::Completed));
        let held = self.attempts.entry(key).or_insert(Held { assignment, end, acknowledged: 0 });
        held.assignment.epoch = epoch;
        std::iter::once(ack).chain(held.unheard()).collect()
    }
}

impl Held {
    /// What the controller has not acknowledged.
    fn unheard(&self) -> Vec<Outgoing> {
        let started = RunState::Running(Started {
            pod_name: format!("{}-pod", self.assignment.run.name),
            pod_uid: PodUid::from("pod"),
            started_at: clock::now().wall,
            sandbox: SandboxStatus::default(),
        });
        let ended = self.end.clone().map(|end| RunState::Finished(Box::new(end)));
        let all = std::iter::once((1, started)).chain(ended.map(|end| (LAST, end)));
        let unheard = all.filter(|(sequence, _)| *sequence > self.acknowledged);
        unheard
            .map(|(sequence, state)| Outgoing::Report(Box::new(self.report(sequence, state))))
            .collect()
    }

    fn report(&self, sequence: u64, state: RunState) -> Report {
        let Assignment { run, attempt, epoch, .. } = &self.assignment;
        Report { run: run.clone(), attempt: *attempt, epoch: *epoch, sequence, state }
    }
}

fn session(
    site: &Site,
    name: &str,
    address: &str,
    token_file: PathBuf,
    inputs: mpsc::Sender<Input>,
) -> Session {
    let map = "agent-operator-ca".to_owned();
    let dial = TlsDial::new(site.client.clone(), SYSTEM, map, address).unwrap();
    let streams =
        Streams::open(&site.path(&format!("{name}-streams")), Retention::default()).unwrap();
    Session {
        settings: session::Settings {
            address: address.to_owned(),
            token_file,
            node: NodeName::from(name),
            boot_id: clock::boot_id().unwrap(),
            instance: InstanceId::from(name),
            slots: SLOTS,
        },
        dial: Arc::new(dial),
        inputs,
        streams: Arc::new(streams),
        metrics: Arc::new(Metrics::new()),
    }
}
