//! Nodes that do what a script says.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use agent_operator::domain::{
    Assignment, Attempt, Credential, Epoch, NodeName, PreflightOrder, PreflightReport, Reason,
    RunKey, Usage,
    ids::{BootId, InstanceId, PodUid},
    preflight::Finding,
    report::{
        LogSummary, Outcome, PullRequest, Report, RunState, SandboxStatus, Started, StepFacts,
    },
    step::StepName,
};
use agent_operator_controller::fleet::{
    Command, Judging, KnownAttempt, NodeEvent, NodeView, Nodes, SendError,
};
use jiff::Timestamp;
use tokio::sync::mpsc;

/// What a scripted node does with a step.
pub type Script = Box<dyn Fn(&Assignment) -> Option<Outcome> + Send + Sync>;

/// Scripted nodes.
pub struct Fleet {
    nodes: Vec<NodeName>,
    slots: u32,
    script: Script,
    inner: Mutex<FleetInner>,
}

#[derive(Default)]
struct FleetInner {
    events: Option<mpsc::Sender<NodeEvent>>,
    /// All controllers that were attached, the last one as `events`.
    attached: Vec<mpsc::Sender<NodeEvent>>,
    /// How often a node began an attempt.
    started: BTreeMap<RunKey, u32>,
    /// Every command with a name of its kind, in order.
    commands: Vec<(NodeName, Command)>,
    /// Attempts the nodes hold: what became of them, if it is not acknowledged.
    ledger: BTreeMap<RunKey, (NodeName, Assignment, Option<Outcome>)>,
    acknowledged: Vec<RunKey>,
    highest: Epoch,
    findings: Vec<Finding>,
}

impl Fleet {
    pub fn new(nodes: &[&str], script: Script) -> Arc<Self> {
        Self::with_slots(nodes, 4, script)
    }

    /// Nodes for this many attempts each.
    pub fn with_slots(nodes: &[&str], slots: u32, script: Script) -> Arc<Self> {
        let nodes = nodes.iter().copied().map(NodeName::from).collect();
        Arc::new(Self { nodes, slots, script, inner: Mutex::default() })
    }

    /// How often the nodes began each attempt.
    pub fn started(&self) -> BTreeMap<RunKey, u32> {
        self.inner.lock().unwrap().started.clone()
    }

    /// What preflights find from now on.
    pub fn find(&self, findings: Vec<Finding>) {
        self.inner.lock().unwrap().findings = findings;
    }

    fn view(&self, name: &NodeName) -> NodeView {
        NodeView {
            name: name.clone(),
            instance: InstanceId::from("instance"),
            boot: BootId::from("boot"),
            slots: self.slots,
            running: 0,
            highest_epoch: self.inner.lock().unwrap().highest,
            runner_delivery: "imageVolume".to_owned(),
            asks_preflights: true,
            holds: true,
        }
    }

    /// All nodes say hello to a controller, and then report what it does not know.
    pub(super) async fn attach(&self, events: mpsc::Sender<NodeEvent>) {
        {
            let mut inner = self.inner.lock().unwrap();
            inner.events = Some(events.clone());
            inner.attached.retain(|events| !events.is_closed());
            inner.attached.push(events.clone());
        }
        for name in &self.nodes {
            let held: Vec<_> = {
                let inner = self.inner.lock().unwrap();
                let held = inner
                    .ledger
                    .iter()
                    .filter(|(key, (node, ..))| node == name && !inner.acknowledged.contains(key));
                held.map(|(_, (_, assignment, outcome))| (assignment.clone(), outcome.clone()))
                    .collect()
            };
            let known = held
                .iter()
                .map(|(assignment, outcome)| KnownAttempt {
                    run: assignment.run.clone(),
                    attempt: assignment.attempt,
                    epoch: assignment.epoch,
                    phase: outcome
                        .as_ref()
                        .map_or("Running", |o| o.phase().as_str())
                        .parse()
                        .unwrap(),
                })
                .collect();
            let node = self.view(name);
            let judging = Judging::default();
            events.send(NodeEvent::Connected { node, known, judging }).await.unwrap();
            for (assignment, outcome) in held {
                if let Some(outcome) = outcome {
                    let report = finished(&assignment, outcome);
                    events.send(NodeEvent::Report { node: name.clone(), report }).await.unwrap();
                }
            }
        }
    }

    pub async fn say(&self, event: NodeEvent) {
        let events = self.inner.lock().unwrap().events.clone().unwrap();
        events.send(event).await.unwrap();
    }

    /// The attempts that a node holds and that go on, by step.
    pub fn hanging(&self) -> Vec<Assignment> {
        let inner = self.inner.lock().unwrap();
        let ledger = inner.ledger.values();
        ledger.filter(|(_, _, end)| end.is_none()).map(|(_, a, _)| a.clone()).collect()
    }

    /// An attempt ends while no controller is there to be told.
    pub fn end_unheard(&self, assignment: &Assignment, outcome: Outcome) {
        let mut inner = self.inner.lock().unwrap();
        inner.ledger.get_mut(&assignment.key()).unwrap().2 = Some(outcome);
    }

    pub async fn finish(&self, assignment: &Assignment, outcome: Outcome) {
        let report = finished(assignment, outcome.clone());
        self.end_unheard(assignment, outcome);
        self.say(NodeEvent::Report { node: assignment.node.clone(), report }).await;
    }

    pub fn assignments(&self) -> Vec<(Assignment, Vec<Credential>)> {
        let inner = self.inner.lock().unwrap();
        let of = |(_, command): &(NodeName, Command)| match command {
            Command::Assign { assignment, credentials, .. } => {
                Some(((**assignment).clone(), credentials.clone()))
            }
            _ => None,
        };
        inner.commands.iter().filter_map(of).collect()
    }

    pub fn preflights(&self) -> Vec<(PreflightOrder, Vec<Credential>)> {
        let inner = self.inner.lock().unwrap();
        let of = |(_, command): &(NodeName, Command)| match command {
            Command::Preflight { order, credentials } => {
                Some(((**order).clone(), credentials.clone()))
            }
            _ => None,
        };
        inner.commands.iter().filter_map(of).collect()
    }

    pub fn cancels(&self) -> Vec<(RunKey, Reason)> {
        let inner = self.inner.lock().unwrap();
        let of = |(_, command): &(NodeName, Command)| match command {
            Command::Cancel { run, reason, .. } => Some((run.clone(), *reason)),
            _ => None,
        };
        inner.commands.iter().filter_map(of).collect()
    }

    pub fn commands(&self) -> Vec<Command> {
        self.inner.lock().unwrap().commands.iter().map(|(_, command)| command.clone()).collect()
    }
}

impl FleetInner {
    fn tell_all(&self, event: &NodeEvent) {
        for events in self.attached.clone() {
            let event = event.clone();
            tokio::spawn(async move {
                let _ = events.send(event).await;
            });
        }
    }
}

impl Nodes for Fleet {
    fn snapshot(&self) -> Vec<NodeView> {
        self.nodes.iter().map(|name| self.view(name)).collect()
    }

    fn send(&self, node: &NodeName, command: Command) -> Result<(), SendError> {
        let mut inner = self.inner.lock().unwrap();
        inner.commands.push((node.clone(), command.clone()));
        match command {
            Command::Assign { assignment, .. } => {
                if assignment.epoch < inner.highest {
                    // As a supervisor: told, and not obeyed.
                    let refused = Some(("StaleEpoch".to_owned(), "an older epoch".to_owned()));
                    inner.tell_all(&NodeEvent::AssignmentAck {
                        node: node.clone(),
                        run: assignment.key(),
                        refused,
                    });
                    return Ok(());
                }
                inner.highest = assignment.epoch;
                if inner.ledger.contains_key(&assignment.key()) {
                    return Ok(());
                }
                let outcome = (self.script)(&assignment);
                let key = assignment.key();
                *inner.started.entry(key.clone()).or_default() += 1;
                inner.ledger.insert(key, (node.clone(), (*assignment).clone(), outcome.clone()));
                // A session has one controller; that of two at once is not known here, so both hear it.
                for events in inner.attached.clone() {
                    let (node, assignment) = (node.clone(), assignment.clone());
                    let outcome = outcome.clone();
                    tokio::spawn(async move {
                        let report = Box::new(started(&assignment));
                        let _ = events.send(NodeEvent::Report { node: node.clone(), report }).await;
                        if let Some(outcome) = outcome {
                            let report = finished(&assignment, outcome);
                            let _ = events.send(NodeEvent::Report { node, report }).await;
                        }
                    });
                }
            }
            Command::Preflight { order, .. } => {
                let report = PreflightReport {
                    key: order.key,
                    findings: inner.findings.clone(),
                    notes: Vec::new(),
                };
                let report = Box::new(report);
                inner.tell_all(&NodeEvent::Preflight { node: node.clone(), report });
            }
            Command::ReportAck { run, sequence: 2 } => inner.acknowledged.push(run),
            _ => {}
        }
        Ok(())
    }
}

fn started(assignment: &Assignment) -> Report {
    report(
        assignment,
        1,
        RunState::Running(Started {
            pod_name: format!("{}-pod", assignment.run.name),
            pod_uid: PodUid::from("pod"),
            started_at: Timestamp::from_second(1_800_000_000).unwrap(),
            sandbox: SandboxStatus::default(),
        }),
    )
}

fn finished(assignment: &Assignment, outcome: Outcome) -> Box<Report> {
    Box::new(report(assignment, 2, RunState::Finished(Box::new(outcome))))
}

fn report(assignment: &Assignment, sequence: u64, state: RunState) -> Report {
    Report {
        run: assignment.run.clone(),
        attempt: assignment.attempt,
        epoch: assignment.epoch,
        sequence,
        state,
    }
}

/// How a step ends.
pub fn outcome(assignment: &Assignment, reason: Reason) -> Outcome {
    let well = reason == Reason::Completed;
    let step = assignment.step;
    Outcome {
        reason,
        message: format!("step {step} ended"),
        start_fault: None,
        exit_code: Some(i32::from(!well)),
        pod_name: Some(format!("{}-pod", assignment.run.name)),
        started_at: Some(Timestamp::from_second(1_800_000_000).unwrap()),
        completed_at: Timestamp::from_second(1_800_000_010).unwrap(),
        result: StepFacts {
            output: Some(format!("output of {step} {}", assignment.attempt)),
            command: (step == StepName::Test).then(|| vec!["npm".to_owned(), "test".to_owned()]),
            base_commit: (step == StepName::Plan).then(|| "b".repeat(40)),
            head_commit: (step == StepName::Implement && well).then(|| "c".repeat(40)),
            work_branch: (step == StepName::Implement).then(|| "ai/sample".to_owned()),
            pull_request: (step == StepName::PullRequest && well).then(|| PullRequest {
                url: "https://github.com/jcwearn/example-repo/pull/7".to_owned(),
                number: 7,
            }),
        },
        usage: Usage { turns: 1, input_tokens: 100, ..Usage::default() },
        sandbox: SandboxStatus::default(),
        log: LogSummary { bytes: 10, gaps: 0 },
        refusals: Vec::new(),
    }
}

/// A script in which every step ends well.
pub fn all_well() -> Script {
    Box::new(|assignment| Some(outcome(assignment, Reason::Completed)))
}

/// A script in which `step` hangs the first time and all else ends well.
pub fn hang_at(step: StepName) -> Script {
    Box::new(move |assignment| {
        let hangs = assignment.step == step && assignment.attempt == Attempt(1);
        (!hangs).then(|| outcome(assignment, Reason::Completed))
    })
}
