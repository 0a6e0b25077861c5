//! Where a task stands: replayed from its runs, step after step, by the transitions
//! `plan > implement > test > pull-request`, with test failures leading back to implement.
//!
//! Runs are found by their number, which never restarts, so the replay needs no order of times.

use std::collections::BTreeMap;

use agent_operator::{
    crd::{
        CodingTaskSpec,
        coding_task::{OnExceeded, OnUnverifiable},
        conditions,
        shared::UsageStatus,
    },
    domain::{
        Attempt, Budget, NodeName, Reason, RunPhase, StepName, Usage, assignment::TaskBudget,
    },
};
use jiff::Timestamp;

use super::{
    Observed, RunView, deadline, message,
    retry::{self, Chain, Counts, Limits, Verdict},
};
use crate::settings::quantity_milli;

/// Micro-dollars in a thousandth of a dollar.
const MICRO_PER_MILLI: u64 = 1000;

/// A run, from its object or, when that is gone, from the task's status.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// Name.
    pub name: String,
    /// Step.
    pub step: StepName,
    /// Attempt number.
    pub attempt: Attempt,
    /// Phase.
    pub phase: RunPhase,
    /// Why it ended.
    pub reason: Option<Reason>,
    /// What it used.
    pub usage: Option<UsageStatus>,
    /// The object; none when it is gone.
    pub run: Option<&'a RunView>,
}

impl Record<'_> {
    fn ended(&self) -> Option<Timestamp> {
        self.run.and_then(|run| run.status.completion_time)
    }

    fn failure(&self) -> String {
        message::failure(self.step, self.attempt, self.reason, self.run.map(|run| &run.status))
    }
}

/// The next attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Its step.
    pub step: StepName,
    /// Its number.
    pub attempt: Attempt,
    /// Run whose output is its feedback.
    pub feedback_from: Option<String>,
    /// Not before this time.
    pub not_before: Option<Timestamp>,
    /// Nodes on which it did not start.
    pub avoid: Vec<NodeName>,
    /// What failed before, for people.
    pub after_failure: Option<String>,
}

impl Start {
    /// The first attempt at a step, with nothing before it.
    pub fn first(step: StepName) -> Self {
        Self {
            step,
            attempt: Attempt(1),
            feedback_from: None,
            not_before: None,
            avoid: Vec::new(),
            after_failure: None,
        }
    }
}

/// What keeps a step from starting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unstarted {
    /// Reason of the condition `Scheduled`.
    pub reason: String,
    /// The server's words, and the remedy.
    pub message: String,
}

impl Unstarted {
    /// What the run's own condition says; none while nothing keeps it.
    fn of(run: &RunView) -> Option<Self> {
        let started = conditions::find(&run.status.conditions, conditions::STARTED)?;
        (started.status == "False")
            .then(|| Self { reason: started.reason.clone(), message: started.message.clone() })
    }
}

/// How the task ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The pull request is open.
    Complete,
    /// Given up.
    Failed {
        /// CamelCase word.
        reason: String,
        /// Sentence.
        message: String,
    },
}

/// What there is to do.
#[derive(Clone, Debug)]
pub enum Stand<'a> {
    /// Start an attempt.
    Start(Start),
    /// A run is live.
    Live(&'a RunView),
    /// The budget is used up, and the task waits for a raised one.
    BudgetPaused(String),
    /// Nothing.
    Done(Ending),
}

/// The result of the replay.
#[derive(Clone, Debug)]
pub struct Progress<'a> {
    /// Present step.
    pub step: StepName,
    /// Retries granted, a waiting one included.
    pub counts: Counts,
    /// What there is to do.
    pub stand: Stand<'a>,
    /// What keeps the present step from starting: its last attempt did not, or the live one waits.
    pub unstarted: Option<Unstarted>,
    /// The runs in the order in which they ran.
    pub history: Vec<Record<'a>>,
}

/// Replays the task's runs up to the first one that is live or missing.
pub fn replay(observed: &Observed) -> Progress<'_> {
    let mut replay = Replay::new(observed);
    let stand = loop {
        if let Some(stand) = replay.advance() {
            break stand;
        }
    };
    let Replay { step, counts, history, unstarted, .. } = replay;
    let unstarted = match &stand {
        Stand::Live(run) if run.phase == RunPhase::Pending => Unstarted::of(run).or(unstarted),
        Stand::Live(_) | Stand::BudgetPaused(_) | Stand::Done(_) => None,
        Stand::Start(_) => unstarted,
    };
    Progress { step, counts, stand, unstarted, history }
}

/// What is left of the task's budget; none when it has none.
pub fn budget_left(observed: &Observed) -> Option<TaskBudget> {
    let budget = observed.task.spec.budget.as_ref()?;
    let used = usage(observed);
    let tokens = budget.max_tokens.map(|max| u64::try_from(max).unwrap_or(0));
    let cost = budget
        .max_cost_usd
        .as_ref()
        .and_then(|max| quantity_milli(max.as_str()))
        .map(|milli| milli.saturating_mul(MICRO_PER_MILLI));
    Some(TaskBudget {
        tokens: tokens.map(|max| max.saturating_sub(used.total_tokens())),
        cost_micro_usd: cost.map(|max| max.saturating_sub(used.cost_micro_usd)),
    })
}

/// Consumption of all runs: of each its object's word, or the task's status where that is gone. The
/// recorded total is the least, for an older version listed runs without their share.
pub fn usage(observed: &Observed) -> Usage {
    let status = &observed.task.status;
    let listed = status.agent_runs.iter().map(|run| (&run.name, run.usage));
    let objects = observed.runs.iter().map(|run| (&run.run.name, run.status.usage));
    let known = |(name, usage): (_, Option<UsageStatus>)| Some((name, usage?));
    let by_name: BTreeMap<_, _> = listed.chain(objects).filter_map(known).collect();
    let mut sum = Usage::default();
    for usage in by_name.into_values() {
        sum += Usage::from(usage);
    }
    let recorded = status.usage.map(Usage::from).unwrap_or_default();
    if recorded.total_tokens() > sum.total_tokens() { recorded } else { sum }
}

/// Whether nothing was verified: the last test step found nothing to test by.
pub fn unverified(observed: &Observed) -> bool {
    let records = records(observed);
    let mut tests =
        records.range((StepName::Test, Attempt(0))..=(StepName::Test, Attempt(u32::MAX)));
    tests.next_back().is_some_and(|(_, record)| record.reason == Some(Reason::Unverifiable))
}

/// The number of the next attempt at `step`: one that no run has had.
pub fn next_attempt(observed: &Observed, step: StepName) -> Attempt {
    let of_step = |(of, attempt)| (of == step).then_some(attempt);
    let last = records(observed).into_keys().filter_map(of_step).next_back();
    Attempt(last.map_or(1, |attempt| attempt.0.saturating_add(1)))
}

struct Replay<'a> {
    observed: &'a Observed,
    records: BTreeMap<(StepName, Attempt), Record<'a>>,
    step: StepName,
    /// Highest attempt that was looked at, by step.
    reached: BTreeMap<StepName, Attempt>,
    counts: Counts,
    limits: Limits,
    chain: Option<Chain>,
    feedback: Option<String>,
    avoid: Vec<NodeName>,
    not_before: Option<Timestamp>,
    after_failure: Option<String>,
    unstarted: Option<Unstarted>,
    history: Vec<Record<'a>>,
}

impl<'a> Replay<'a> {
    fn new(observed: &'a Observed) -> Self {
        let spec = &observed.task.spec;
        let settings = &observed.settings;
        let count = |number: i32| u32::try_from(number).unwrap_or(0);
        let max_retries = spec.max_retries.map_or(settings.max_retries, count);
        // A retry that the status says was granted is not taken back when a limit is lowered.
        let granted = observed.task.status.retries.unwrap_or_default();
        Self {
            observed,
            records: records(observed),
            step: StepName::Plan,
            reached: BTreeMap::new(),
            counts: Counts::default(),
            limits: Limits {
                application: max_retries.max(count(granted.application)),
                infrastructure: settings.infrastructure_retries.max(count(granted.infrastructure)),
                provider: settings.provider_budget.get(),
            },
            chain: None,
            feedback: None,
            avoid: Vec::new(),
            not_before: None,
            after_failure: None,
            unstarted: None,
            history: Vec::new(),
        }
    }

    /// Takes the next record of the present step; some when the replay is at its end.
    fn advance(&mut self) -> Option<Stand<'a>> {
        let Some(record) = self.next_record(self.step) else {
            return Some(Stand::Start(self.start()));
        };
        self.reached.insert(self.step, record.attempt);
        let given_up = record.run.filter(|run| run.phase == RunPhase::Failed);
        if given_up.is_some_and(RunView::never_began) {
            // Made ahead and given up before its turn, or at it: but for its number, as if never made.
            return None;
        }
        self.history.push(record.clone());
        match record.phase {
            RunPhase::Pending | RunPhase::Running | RunPhase::Unknown => {
                record.run.map(Stand::Live).or_else(|| {
                    // `records` turns a live run without an object into a deleted one.
                    Some(Stand::Done(failed(&record, "the run is gone")))
                })
            }
            RunPhase::Succeeded => self.succeeded(&record),
            RunPhase::Failed => self.failed(&record),
        }
    }

    /// The lowest record of `step` that was not looked at yet; numbers may have gaps.
    fn next_record(&self, step: StepName) -> Option<Record<'a>> {
        let from =
            Attempt(self.reached.get(&step).map_or(1, |attempt| attempt.0.saturating_add(1)));
        self.records
            .range((step, from)..=(step, Attempt(u32::MAX)))
            .next()
            .map(|(_, record)| record.clone())
    }

    fn start(&self) -> Start {
        let attempt = self.reached.get(&self.step).map_or(1, |attempt| attempt.0.saturating_add(1));
        Start {
            step: self.step,
            attempt: Attempt(attempt),
            feedback_from: self.feedback.clone(),
            not_before: self.not_before,
            avoid: self.avoid.clone(),
            after_failure: self.after_failure.clone(),
        }
    }

    fn enter(&mut self, step: StepName) {
        self.step = step;
        self.chain = None;
        self.avoid.clear();
        self.not_before = None;
        self.after_failure = None;
        self.unstarted = None;
    }

    fn succeeded(&mut self, record: &Record<'a>) -> Option<Stand<'a>> {
        self.feedback = None;
        let Some(next) = self.step.next() else { return Some(Stand::Done(self.completed(record))) };
        self.enter(next);
        None
    }

    /// The end of the last step: only a pull request that the forge confirmed completes a task.
    fn completed(&self, record: &Record<'a>) -> Ending {
        let recorded = self.observed.task.status.pull_request.is_some();
        if recorded || record.run.is_some_and(|run| run.status.pull_request.is_some()) {
            return Ending::Complete;
        }
        Ending::Failed {
            reason: "NoPullRequest".to_owned(),
            message: format!("{} ended well but reported no pull request", record.name),
        }
    }

    fn failed(&mut self, record: &Record<'a>) -> Option<Stand<'a>> {
        let Some(reason) = record.reason else {
            let why = "its reason is not known to this version of the controller";
            return Some(Stand::Done(failed(record, why)));
        };
        if reason == Reason::Unverifiable && self.proceeds_unverified() {
            self.enter(StepName::PullRequest);
            return None;
        }
        // The code, not the test step, has to change after a failed test.
        let back = self.step == StepName::Test && reason.budget() == Budget::Application;
        let next = if back { StepName::Implement } else { self.step };
        let granted = self.next_record(next).is_some();
        if reason == Reason::BudgetExceeded && !granted {
            return self.over_budget(record);
        }
        let ended = record.ended();
        let chain = Chain::extended(self.chain, reason.budget(), ended);
        match retry::judge(reason, &mut self.counts, self.limits, chain, ended, granted) {
            Verdict::GiveUp => {
                let before = self.spent(reason.budget());
                Some(Stand::Done(failed(record, &format!("{before}{}", record.failure()))))
            }
            Verdict::Again(wait) => {
                self.again(record, reason, next, chain);
                self.not_before =
                    ended.filter(|_| !wait.is_zero()).map(|ended| deadline::after(ended, wait));
                None
            }
        }
    }

    /// Prepares the attempt after a failed one.
    fn again(&mut self, record: &Record<'a>, reason: Reason, next: StepName, chain: Chain) {
        if next != self.step {
            self.enter(next);
        }
        self.chain = Some(chain);
        self.after_failure = Some(record.failure());
        self.unstarted = (reason.budget() == Budget::Replace)
            .then(|| record.run.and_then(Unstarted::of))
            .flatten();
        match reason.budget() {
            Budget::Application => {
                // A failure without output must not hide what an earlier one said.
                let output = record.run.and_then(|run| run.status.output.as_deref());
                if output.is_some_and(|output| !output.trim().is_empty()) {
                    self.feedback = Some(record.name.clone());
                }
                self.avoid.clear();
            }
            Budget::Replace => self.avoid.extend(record.run.map(RunView::node)),
            Budget::Infrastructure | Budget::Provider | Budget::None => self.avoid.clear(),
        }
    }

    fn proceeds_unverified(&self) -> bool {
        let test = self.observed.task.spec.test.as_ref();
        let wish = test.and_then(|test| test.on_unverifiable).unwrap_or_default();
        self.step == StepName::Test && wish == OnUnverifiable::Proceed
    }

    fn over_budget(&mut self, record: &Record<'a>) -> Option<Stand<'a>> {
        if on_exceeded(&self.observed.task.spec) == OnExceeded::Fail {
            return Some(Stand::Done(failed(record, &record.failure())));
        }
        let spent = budget_left(self.observed)
            .is_none_or(|left| left.tokens == Some(0) || left.cost_micro_usd == Some(0));
        if spent {
            return Some(Stand::BudgetPaused(format!(
                "{}; raise spec.budget to go on",
                record.failure()
            )));
        }
        let chain = Chain::extended(self.chain, Budget::Provider, record.ended());
        self.again(record, Reason::BudgetExceeded, self.step, chain);
        None
    }

    fn spent(&self, budget: Budget) -> String {
        let many = |count: u32| match count {
            1 => "1 retry".to_owned(),
            count => format!("{count} retries"),
        };
        match budget {
            Budget::Application => format!("gave up after {}: ", many(self.counts.application)),
            Budget::Infrastructure => {
                format!("gave up after {} for lost pods: ", many(self.counts.infrastructure))
            }
            Budget::Provider => format!("gave up waiting after {}: ", many(self.counts.provider)),
            Budget::Replace | Budget::None => String::new(),
        }
    }
}

fn on_exceeded(spec: &CodingTaskSpec) -> OnExceeded {
    spec.budget.as_ref().and_then(|budget| budget.on_exceeded).unwrap_or_default()
}

fn failed(record: &Record<'_>, message: &str) -> Ending {
    Ending::Failed {
        reason: record.reason.map_or("UnknownReason", Reason::as_str).to_owned(),
        message: message::bounded(message),
    }
}

/// All runs by step and attempt: the objects, and for those that are gone, what the status says.
fn records(observed: &Observed) -> BTreeMap<(StepName, Attempt), Record<'_>> {
    let mut records = BTreeMap::new();
    for summary in &observed.task.status.agent_runs {
        let (Ok(step), Ok(attempt)) = (summary.step.parse(), u32::try_from(summary.attempt)) else {
            continue;
        };
        let phase: RunPhase = summary.phase.parse().unwrap_or(RunPhase::Failed);
        let lost = !phase.is_terminal() && observed.lost_runs.contains(&summary.name);
        if !phase.is_terminal() && !lost {
            continue;
        }
        let attempt = Attempt(attempt);
        let record = Record {
            name: summary.name.clone(),
            step,
            attempt,
            phase: if lost { RunPhase::Failed } else { phase },
            reason: if lost {
                Some(Reason::Deleted)
            } else {
                summary.reason.as_deref().and_then(|reason| reason.parse().ok())
            },
            usage: summary.usage,
            run: None,
        };
        records.insert((step, attempt), record);
    }
    for run in &observed.runs {
        let record = Record {
            name: run.run.name.clone(),
            step: run.step,
            attempt: run.attempt,
            phase: run.phase,
            reason: run.reason,
            usage: run.status.usage,
            run: Some(run),
        };
        records.insert((run.step, run.attempt), record);
    }
    records
}
