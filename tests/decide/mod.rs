//! A model of everything around the decision: it carries out plans on plain data, as `apply`, the
//! nodes and the inbox do on a cluster. Shared by the table tests, the goldens and the properties.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of the model")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use agent_operator::{
    crd::{
        AgentRunStatus, CodingTaskSpec, CodingTaskStatus,
        shared::{PullRequestStatus, UsageStatus},
    },
    domain::{
        Attempt, Epoch, NodeName, PreflightKey, PreflightReport, Reason, RunPhase, RunRef, RunUid,
        StepName, TaskUid,
        ids::{BootId, InstanceId},
        preflight::Finding,
    },
};
use agent_operator_controller::{
    decide::{
        Amounts, CredentialState, Delivery, NodeFacts, Observed, PreflightAnswer, PreflightView,
        RunView, TaskView, Used, decide, invariants::violations, progress::budget_left,
        status::is_finished,
    },
    fleet::NodeView,
    plan::{Order, Plan},
    settings::Settings,
};
use jiff::Timestamp;

/// Passes after which a model that still writes is called a hot loop.
const PASSES_MAX: usize = 10;

/// The sample task of the documentation.
pub fn sample_spec() -> CodingTaskSpec {
    serde_json::from_value(serde_json::json!({
        "source": {"type": "chat", "chat": {"sessionId": "manual-test", "userId": "jackson"}},
        "repository": {"url": "https://github.com/jcwearn/example-repo.git", "branch": "main"},
        "prompt": "Add a /healthz endpoint that returns 200 OK",
        "anthropicApiKeyRef": {"name": "agent-secrets", "key": "anthropic-api-key"},
        "gitCredentialsRef": {"name": "agent-secrets", "key": "github-token"},
    }))
    .expect("the sample is valid")
}

/// One task, its runs, and two nodes.
#[derive(Clone)]
pub struct Model {
    pub task: TaskView,
    pub runs: Vec<RunView>,
    pub nodes: Vec<NodeFacts>,
    pub settings: Settings,
    pub credentials: CredentialState,
    /// What a preflight finds.
    pub findings: Vec<Finding>,
    pub preflight: PreflightView,
    pub now: Timestamp,
    /// Runs ever created, by (step, attempt), to notice a number that is used twice.
    pub created: BTreeMap<(StepName, Attempt), u32>,
    /// Plans that were carried out.
    pub plans: Vec<Plan>,
    /// Names of the runs whose nodes were told to begin.
    pub told: BTreeSet<String>,
}

/// A connected node with room for two.
pub fn node(name: &str) -> NodeFacts {
    NodeFacts {
        name: NodeName::from(name),
        session: Some(session(name)),
        absent_since: None,
        exists: true,
        labels: BTreeMap::from([("kubernetes.io/hostname".to_owned(), name.to_owned())]),
        taints: Vec::new(),
        unschedulable: false,
        allocatable: Some(Amounts { cpu_milli: 2000, memory_milli: 4 << 40 }),
        used: Used::default(),
        fenced: None,
    }
}

fn session(name: &str) -> NodeView {
    NodeView {
        name: NodeName::from(name),
        instance: InstanceId::from("instance"),
        boot: BootId::from("boot"),
        slots: 2,
        running: 0,
        highest_epoch: Epoch(1),
        runner_delivery: "imageVolume".to_owned(),
        asks_preflights: true,
        holds: true,
    }
}

impl Model {
    /// The sample task on two idle nodes.
    pub fn new() -> Self {
        let created = Timestamp::from_second(1_800_000_000).expect("in range");
        let mut settings = Settings::default();
        "registry.test/agent:1".clone_into(&mut settings.agent.image);
        "100m".clone_into(&mut settings.agent.requests.cpu);
        "256Mi".clone_into(&mut settings.agent.requests.memory);
        Self {
            task: TaskView {
                namespace: "agent-system".to_owned(),
                name: "add-healthcheck".to_owned(),
                uid: TaskUid::from("0a1b2c3d-0000-0000-0000-000000000001"),
                generation: 1,
                created,
                deleting: false,
                cancel: None,
                spec: sample_spec(),
                status: CodingTaskStatus::default(),
            },
            runs: Vec::new(),
            nodes: vec![node("node-a"), node("node-b")],
            settings,
            credentials: CredentialState::Ready,
            findings: Vec::new(),
            preflight: PreflightView::default(),
            now: created,
            created: BTreeMap::new(),
            plans: Vec::new(),
            told: BTreeSet::new(),
        }
    }

    /// What a decision sees now.
    pub fn observed(&self) -> Observed {
        let mut nodes = self.nodes.clone();
        for node in &mut nodes {
            let live = self.runs.iter().filter(|run| run.is_live() && run.node() == node.name);
            let count = u32::try_from(live.count()).expect("few");
            node.used.slots += count;
        }
        let live = |phase: &str| !matches!(phase, "Succeeded" | "Failed");
        let missing = |name: &str| !self.runs.iter().any(|run| run.run.name == name);
        Observed {
            task: self.task.clone(),
            runs: self.runs.clone(),
            lost_runs: self
                .task
                .status
                .agent_runs
                .iter()
                .filter(|run| live(&run.phase) && missing(&run.name))
                .map(|run| run.name.clone())
                .collect(),
            nodes,
            credentials: self.credentials.clone(),
            preflight: self.preflight.clone(),
            settings: Arc::new(self.settings.clone()),
        }
    }

    /// Decides once, checks the invariants, and carries the plan out.
    pub fn pass(&mut self) -> Plan {
        let observed = self.observed();
        let plan = decide(&observed, self.now);
        assert_eq!(plan, decide(&observed, self.now), "the same observation, another plan");
        let broken = violations(&observed, &plan);
        assert!(broken.is_empty(), "{broken:?} in {plan:#?}");
        self.carry_out(&plan);
        self.plans.push(plan.clone());
        plan
    }

    /// Decides until nothing is written any more; gives all plans that wrote.
    pub fn settle(&mut self) -> Vec<Plan> {
        let mut plans = Vec::new();
        let mut passes = 0;
        loop {
            let plan = self.pass();
            passes += 1;
            assert!(passes < PASSES_MAX, "still busy: {plan:#?}");
            match (plan.writes(), plan.preflight.is_some()) {
                (true, _) => plans.push(plan),
                // Its answer is there already.
                (false, true) => {}
                (false, false) => return plans,
            }
        }
    }

    fn carry_out(&mut self, plan: &Plan) {
        let told_budget = budget_left(&self.observed());
        for create in &plan.run_creates {
            let step: StepName = create.spec.step.parse().expect("a step");
            let attempt = Attempt(u32::try_from(create.spec.attempt).expect("positive"));
            let times = self.created.entry((step, attempt)).or_default();
            *times += 1;
            assert_eq!(*times, 1, "attempt {attempt} of {step} is used twice");
            if !create.spec.prepared {
                self.told.insert(create.name.clone());
            }
            self.runs.push(RunView {
                run: RunRef {
                    namespace: self.task.namespace.clone(),
                    name: create.name.clone(),
                    uid: RunUid::from(format!("uid-{step}-{attempt}")),
                },
                created: self.now,
                step,
                attempt,
                phase: RunPhase::Pending,
                reason: None,
                delivery: if create.spec.prepared { Delivery::Held } else { Delivery::Sent },
                told_budget,
                spec: create.spec.clone(),
                status: AgentRunStatus::default(),
            });
        }
        self.runs.sort_by_key(|run| (run.step, run.attempt));
        for update in &plan.run_updates {
            let now = self.now;
            let run = self.run_mut(&update.run.name);
            run.phase = update.phase;
            run.reason = update.reason;
            run.status.phase = Some(update.phase.as_str().to_owned());
            run.status.reason = update.reason.map(|reason| reason.as_str().to_owned());
            run.status.message = Some(update.message.clone());
            run.status.completion_time = update.phase.is_terminal().then_some(now);
        }
        if plan.preflight.is_some() {
            self.answer_preflight();
        }
        if let Some(status) = &plan.status {
            self.task.status = (**status).clone();
        }
        for command in &plan.commands {
            if command.order == Order::Assign {
                self.told.insert(command.run.name.clone());
            }
            let run = self.run_mut(&command.run.name);
            run.delivery = match command.order {
                Order::Assign | Order::Confirm => {
                    run.told_budget = told_budget;
                    Delivery::Sent
                }
                Order::Hold => Delivery::Held,
                Order::Budget { left } => {
                    run.told_budget = left;
                    run.delivery
                }
                Order::Cancel { .. } => Delivery::CancelSent,
                Order::Forget => Delivery::Forgotten,
            };
        }
    }

    /// The node that was asked answers at once.
    fn answer_preflight(&mut self) {
        let before = self.preflight.answer.as_ref().map_or(0, |answer| answer.tries);
        let report = PreflightReport {
            key: PreflightKey {
                task: self.task.uid.clone(),
                generation: self.task.generation,
                epoch: Epoch(1),
                serial: u64::from(before),
            },
            findings: self.findings.clone(),
            notes: vec!["main is at bbbbbbbbbbbb".to_owned(), "pushing is allowed".to_owned()],
        };
        let answer = PreflightAnswer { report, at: self.now, tries: before + 1 };
        self.preflight = PreflightView { asked: None, answer: Some(answer) };
    }

    fn run_mut(&mut self, name: &str) -> &mut RunView {
        self.runs.iter_mut().find(|run| run.run.name == name).expect("the plan names a known run")
    }

    /// Whether a run may be under way: its node was told to begin.
    pub fn is_under_way(&self, run: &RunView) -> bool {
        run.is_live() && self.told.contains(&run.run.name)
    }

    /// The live run.
    pub fn live(&self) -> Option<&RunView> {
        self.runs.iter().find(|run| self.is_under_way(run))
    }

    /// The live run's node opens its gate.
    pub fn start_live(&mut self) {
        let now = self.now;
        let told = &self.told;
        let begins =
            |run: &&mut RunView| run.phase == RunPhase::Pending && told.contains(&run.run.name);
        if let Some(run) = self.runs.iter_mut().find(begins) {
            run.phase = RunPhase::Running;
            run.status.phase = Some("Running".to_owned());
            run.status.start_time = Some(now);
        }
    }

    /// The live run ends and is recorded.
    pub fn end_live(&mut self, reason: Reason, output: Option<&str>) {
        let now = self.now;
        let told = &self.told;
        let live = |run: &&mut RunView| run.is_live() && told.contains(&run.run.name);
        let Some(run) = self.runs.iter_mut().find(live) else { return };
        let well = reason == Reason::Completed;
        run.phase = if well { RunPhase::Succeeded } else { RunPhase::Failed };
        run.reason = Some(reason);
        run.delivery = Delivery::Known;
        let status = &mut run.status;
        status.phase = Some(run.phase.as_str().to_owned());
        status.reason = Some(reason.as_str().to_owned());
        status.exit_code = Some(i32::from(!well));
        status.output = output.map(str::to_owned);
        status.completion_time = Some(now);
        status.usage = Some(UsageStatus { turns: 1, input_tokens: 10, ..UsageStatus::default() });
        if run.step == StepName::Plan && well {
            status.base_commit = Some("b".repeat(40));
        }
        if run.step == StepName::Implement && well {
            status.head_commit = Some(format!("{:040}", run.attempt.0));
            status.work_branch = Some("ai/add-healthcheck".to_owned());
        }
        if run.step == StepName::Test {
            status.command = vec!["npm".to_owned(), "test".to_owned()];
        }
        if run.step == StepName::PullRequest && well {
            status.pull_request = Some(PullRequestStatus {
                url: "https://github.com/jcwearn/example-repo/pull/7".to_owned(),
                number: 7,
            });
        }
    }

    /// Runs the task on through one step.
    pub fn through(&mut self, reason: Reason, output: Option<&str>) -> Vec<Plan> {
        self.start_live();
        self.advance(10);
        self.end_live(reason, output);
        self.settle()
    }

    /// Time passes.
    pub fn advance(&mut self, seconds: u64) {
        self.now = self.now.checked_add(Duration::from_secs(seconds)).expect("in range");
    }

    /// The session of a node ends.
    pub fn disconnect(&mut self, index: usize) {
        let now = self.now;
        let node = &mut self.nodes[index];
        if node.session.take().is_some() {
            node.absent_since = Some(now);
        }
    }

    /// A node's supervisor comes back: it names the runs that it got before.
    pub fn connect(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.session = Some(session(node.name.as_str()));
        node.absent_since = None;
        let name = node.name.clone();
        for run in self.runs.iter_mut().filter(|run| run.is_live() && run.node() == name) {
            if run.delivery != Delivery::Unsent {
                run.delivery = Delivery::Known;
            }
            if run.phase == RunPhase::Unknown {
                let phase = if run.status.start_time.is_some() { "Running" } else { "Pending" };
                run.phase = phase.parse().expect("a phase");
                run.status.phase = Some(phase.to_owned());
            }
        }
    }

    /// Whether the task has ended.
    pub fn finished(&self) -> bool {
        is_finished(&self.task.status)
    }

    /// Phase of the task.
    pub fn phase(&self) -> &str {
        self.task.status.phase.as_deref().unwrap_or("")
    }

    /// Message of the task.
    pub fn message(&self) -> &str {
        self.task.status.message.as_deref().unwrap_or("")
    }

    /// A condition: status and reason.
    pub fn condition(&self, type_: &str) -> Option<(&str, &str)> {
        let conditions = &self.task.status.conditions;
        let condition = conditions.iter().find(|condition| condition.type_ == type_)?;
        Some((&condition.status, &condition.reason))
    }
}
