//! One attempt as the gateway knows it: its grant, its tokens, what it used and whether it may act.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use agent_operator::{
    attempt::{GateRequest, ProbeOrder, StepResult, StopOrder},
    domain::{
        Assignment, Credential, Reason, RunKey, Usage, assignment::TaskBudget, report::Refusal,
    },
    telemetry::{
        audit::{self, Act},
        logs,
    },
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::refusals::{RefusalCounts, RefusalKind};
use crate::{
    gateway::{
        args::Limits, attempt_api::preparation::Preparation, limits::AttemptLimits,
        metrics::Metrics, permit::Claim,
    },
    link::contract::{Grant, Redemption, Survivor},
    scrub::Watchlist,
};

/// What long polls wait for.
#[derive(Clone, Debug, Default)]
pub struct Signal {
    /// Set once the gate is open: the step's deadline.
    pub open_until: Option<Instant>,
    /// Set once the step must stop.
    pub stop: Option<StopOrder>,
    /// Set once the runner has to try what it must not reach.
    pub probe: Option<ProbeOrder>,
}

/// Why the agent's token gives nothing at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    /// The start gate is closed.
    #[error("the step has not started")]
    GateClosed,
    /// The order to stop is out.
    #[error("the step has been told to stop")]
    Stopped,
    /// The deadline has passed.
    #[error("the step's deadline has passed")]
    DeadlinePassed,
}

/// The task's budget does not allow another model call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the task's budget is used up: {used} of {limit} {unit}")]
pub struct BudgetExhausted {
    /// What this attempt used.
    pub used: u64,
    /// What was left when it started.
    pub limit: u64,
    /// `tokens` or `micro-dollars`.
    pub unit: &'static str,
}

/// How far the runner's result has come.
#[derive(Debug, Default)]
enum Reported {
    #[default]
    No,
    Sent(StepResult),
    Recorded(StepResult),
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) redemption: Option<Redemption>,
    /// The runner's number of the call that redeemed.
    pub(super) redeemed_by_call: u32,
    /// Somebody else than the pod redeemed: nobody may any more.
    pub(super) spoiled: bool,
    credentials: Option<Vec<Credential>>,
    secrets: Arc<Watchlist>,
    credentials_asked: Option<Instant>,
    usage: Usage,
    budget: Option<TaskBudget>,
    budget_exhausted: bool,
    refusals: RefusalCounts,
    counters_changed: bool,
    provider_failure: Option<String>,
    at_gate: Option<GateRequest>,
    result: Reported,
}

/// One attempt.
#[derive(Debug)]
pub struct Attempt {
    key: RunKey,
    assignment: Assignment,
    /// What an attempt that was made ahead has to do, once it was told to begin.
    begun: OnceLock<Assignment>,
    state: Mutex<State>,
    signal: watch::Sender<Signal>,
    /// Cancelled at Revoke.
    ended: CancellationToken,
    /// Cancelled at Stop and at Revoke: model calls and tunnels end with it.
    agent_ended: CancellationToken,
    claim: Claim,
    limits: AttemptLimits,
    canary: Option<SocketAddr>,
    /// Serial number of the event record expected next; held while records are handed over.
    pub(in crate::gateway) next_event: tokio::sync::Mutex<u64>,
    /// The preparation of repository and issue.
    pub(in crate::gateway) preparation: Preparation,
    metrics: Arc<Metrics>,
    context: tracing::Span,
}

impl Attempt {
    pub(super) fn new(grant: Grant, limits: &Limits, metrics: Arc<Metrics>, now: Instant) -> Self {
        let ended = CancellationToken::new();
        let open_until = open_until(&grant, now);
        let signal = Signal { open_until, stop: None, probe: grant.probe };
        Self {
            key: grant.assignment.key(),
            state: Mutex::new(State {
                redemption: grant.redemption,
                redeemed_by_call: 0,
                spoiled: false,
                credentials: None,
                secrets: Arc::default(),
                credentials_asked: Some(now),
                usage: grant.usage,
                budget: grant.assignment.budget,
                budget_exhausted: false,
                refusals: RefusalCounts::restore(&grant.refusals),
                counters_changed: false,
                provider_failure: None,
                at_gate: None,
                result: Reported::No,
            }),
            signal: watch::Sender::new(signal),
            agent_ended: ended.child_token(),
            ended,
            claim: Claim::default(),
            limits: AttemptLimits::new(limits, now),
            canary: grant.canary,
            next_event: tokio::sync::Mutex::new(grant.next_event),
            preparation: Preparation::default(),
            metrics,
            context: logs::attempt(&grant.assignment),
            begun: OnceLock::new(),
            assignment: grant.assignment,
        }
    }

    /// Takes what a repeated registration knows more of than we do. Our own counts and redemption
    /// are newer than the supervisor's, so they stay; the budget is the supervisor's.
    pub(super) fn update(&self, grant: &Grant, now: Instant) {
        self.claim.set(true);
        {
            let mut state = self.state();
            if state.redemption.is_none() {
                state.redemption.clone_from(&grant.redemption);
            }
            if state.budget != grant.assignment.budget {
                state.budget = grant.assignment.budget;
                state.budget_exhausted = false;
            }
        }
        if self.assignment.held && !grant.assignment.held {
            self.begun.get_or_init(|| grant.assignment.clone());
        }
        if let Some(order) = &grant.probe {
            self.probe(order.clone());
        }
        if let Some(until) = open_until(grant, now) {
            self.signal.send_if_modified(|signal| {
                let closed = signal.open_until.is_none();
                signal.open_until.get_or_insert(until);
                closed
            });
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key of commands, events and counts.
    pub fn key(&self) -> &RunKey {
        &self.key
    }

    /// The assignment, whole, as it stands.
    pub fn assignment(&self) -> &Assignment {
        self.begun.get().unwrap_or(&self.assignment)
    }

    /// Context of the log lines about the attempt.
    pub fn context(&self) -> &tracing::Span {
        &self.context
    }

    /// The attempt's limits.
    pub fn limits(&self) -> &AttemptLimits {
        &self.limits
    }

    /// Address that redeemed; the only one that the tokens are good for.
    pub fn address(&self) -> Option<IpAddr> {
        self.state().redemption.as_ref().map(|redemption| redemption.pod_ip)
    }

    /// Follows gate and stop order.
    pub fn signal(&self) -> watch::Receiver<Signal> {
        self.signal.subscribe()
    }

    /// Cancelled at Revoke.
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// Whether the supervisor has a record of it.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Cancelled as soon as the agent's token is dead.
    pub fn agent_ended(&self) -> &CancellationToken {
        &self.agent_ended
    }

    pub(super) fn open(&self, until: Instant) {
        self.signal.send_modify(|signal| signal.open_until = Some(until));
    }

    /// The port that the runner tries before egress is closed.
    pub fn canary(&self) -> Option<SocketAddr> {
        self.canary
    }

    /// Has the runner try what it must not reach.
    pub fn probe(&self, order: ProbeOrder) {
        self.signal.send_modify(|signal| signal.probe = Some(order));
    }

    /// Gives the order to stop; the first one stands. The agent's token is dead from here on.
    pub fn stop(&self, order: StopOrder) {
        self.signal.send_if_modified(|signal| {
            let first = signal.stop.is_none();
            signal.stop.get_or_insert(order);
            first
        });
        self.agent_ended.cancel();
    }

    pub(super) fn end(&self) {
        self.ended.cancel();
        let mut state = self.state();
        state.credentials = None;
        state.secrets = Arc::default();
        state.redemption = None;
    }

    /// Whether the agent's token gives anything at `now`, and until when.
    pub fn agent_may_act(&self, now: Instant) -> Result<Instant, NotNow> {
        let signal = self.signal.borrow();
        if signal.stop.is_some() || self.agent_ended.is_cancelled() {
            return Err(NotNow::Stopped);
        }
        match signal.open_until {
            None => Err(NotNow::GateClosed),
            Some(until) if until <= now => Err(NotNow::DeadlinePassed),
            Some(until) => Ok(until),
        }
    }

    /// Whether the start gate is still closed and nobody has ordered a stop.
    pub fn is_waiting(&self) -> bool {
        let signal = self.signal.borrow();
        signal.open_until.is_none() && signal.stop.is_none()
    }

    /// Counts a refused request.
    pub fn refuse(&self, kind: RefusalKind, target: &str) {
        self.metrics.refused(kind);
        let news = {
            let mut state = self.state();
            state.counters_changed = true;
            state.refusals.add(kind, target)
        };
        // What is counted once more has its record already: an agent cannot flood the log.
        if let Some(target) = news {
            audit::record(&self.assignment, &Act::Refused { kind: kind.as_str(), target: &target });
        }
    }

    // ---- credentials ----

    /// Replaces the credentials; those that are news are handed out by this. What waits for its turn gets none.
    pub fn set_credentials(&self, credentials: Vec<Credential>) {
        if self.assignment().held {
            return;
        }
        let mut state = self.state();
        let known = state.credentials.take().unwrap_or_default();
        let news: Vec<&Credential> =
            credentials.iter().filter(|one| !known.contains(one)).collect();
        if !news.is_empty() || known.len() != credentials.len() {
            state.secrets = Arc::new(Watchlist::of(&credentials));
        }
        for Credential { id, purpose, host, .. } in news {
            audit::record(&self.assignment, &Act::CredentialHandedOut { id, purpose, host });
        }
        state.credentials = Some(credentials);
    }

    /// What is watched for in everything that the attempt sends out.
    pub fn secrets(&self) -> Arc<Watchlist> {
        Arc::clone(&self.state().secrets)
    }

    /// Whether the supervisor has sent credentials since this process started.
    pub fn has_credentials(&self) -> bool {
        self.state().credentials.is_some()
    }

    /// The credential for `purpose`. The outer none: not sent yet, ask again; the inner: there is
    /// none.
    pub fn credential(&self, purpose: &str) -> Option<Option<Credential>> {
        let state = self.state();
        let credentials = state.credentials.as_ref()?;
        Some(credentials.iter().find(|known| known.purpose == purpose).cloned())
    }

    /// Whether the supervisor should be asked for credentials at `now`; not more often than `every`.
    pub fn credentials_due(&self, now: Instant, every: Duration) -> bool {
        if self.assignment().held {
            return false;
        }
        let mut state = self.state();
        let waited = state.credentials_asked.is_none_or(|asked| now - asked >= every);
        let due = state.credentials.is_none() && waited;
        if due {
            state.credentials_asked = Some(now);
        }
        due
    }

    /// Makes the next [`Attempt::credentials_due`] true when none are there.
    pub fn ask_credentials_again(&self) {
        self.state().credentials_asked = None;
    }

    // ---- meter ----

    /// Replaces the budget.
    pub fn set_budget(&self, budget: Option<TaskBudget>) {
        let mut state = self.state();
        state.budget = budget;
        state.budget_exhausted = false;
    }

    /// The budget that the attempt started with, as raised since.
    pub fn budget(&self) -> Option<TaskBudget> {
        self.state().budget
    }

    /// Whether another model call may start; remembers a refusal.
    pub fn check_budget(&self) -> Result<(), BudgetExhausted> {
        let mut state = self.state();
        let Some(budget) = state.budget else { return Ok(()) };
        let checks = [
            (state.usage.total_tokens(), budget.tokens, "tokens"),
            (state.usage.cost_micro_usd, budget.cost_micro_usd, "micro-dollars"),
        ];
        for (used, limit, unit) in checks {
            if let Some(limit) = limit.filter(|limit| used >= *limit) {
                state.budget_exhausted = true;
                return Err(BudgetExhausted { used, limit, unit });
            }
        }
        Ok(())
    }

    /// Adds what a model call used.
    pub fn count(&self, usage: Usage) {
        let mut state = self.state();
        state.usage += usage;
        state.counters_changed = true;
    }

    /// What a supervisor without a record of its own has to know.
    pub fn survivor(&self, now: Instant) -> Survivor {
        let (usage, refusals) = self.counters();
        let open_until = self.signal().borrow().open_until;
        let left = open_until.map(|until| until.saturating_duration_since(now).as_millis());
        Survivor {
            assignment: Assignment { budget: self.budget(), ..self.assignment().clone() },
            redemption: self.state().redemption.clone(),
            open_remaining_millis: left.map(|left| u64::try_from(left).unwrap_or(u64::MAX)),
            usage,
            refusals,
        }
    }

    /// Consumption and refusals so far.
    pub fn counters(&self) -> (Usage, Vec<Refusal>) {
        let state = self.state();
        (state.usage, state.refusals.list())
    }

    /// Consumption and refusals if they changed since the last call.
    pub fn changed_counters(&self) -> Option<(Usage, Vec<Refusal>)> {
        let mut state = self.state();
        std::mem::take(&mut state.counters_changed).then(|| (state.usage, state.refusals.list()))
    }

    /// Makes the next [`Attempt::changed_counters`] report.
    pub fn report_counters_again(&self) {
        self.state().counters_changed = true;
    }

    /// Remembers how the last model call ended: none is an answer, else the provider's failure.
    pub fn set_provider_failure(&self, failure: Option<String>) {
        self.state().provider_failure = failure;
    }

    // ---- runner ----

    /// Notes that the runner stands at the gate; true when that is news for the supervisor.
    pub fn note_at_gate(&self, request: &GateRequest) -> bool {
        let mut state = self.state();
        let news = state.at_gate.as_ref() != Some(request);
        if news {
            state.at_gate = Some(request.clone());
        }
        news
    }

    /// The news did not go out: the next [`Attempt::note_at_gate`] is news again.
    pub fn forget_at_gate(&self) {
        self.state().at_gate = None;
    }

    /// Whether the supervisor has the result on disk.
    pub fn result_recorded(&self) -> bool {
        matches!(self.state().result, Reported::Recorded(_))
    }

    /// The supervisor has the result on disk.
    pub fn set_result_recorded(&self) {
        let mut state = self.state();
        state.result = match std::mem::take(&mut state.result) {
            Reported::Sent(result) | Reported::Recorded(result) => Reported::Recorded(result),
            Reported::No => Reported::No,
        };
    }

    /// Takes the runner's result: itself when it is the first or a repetition, else none. A plain
    /// failure of the agent gets the reason that the gateway knows of.
    pub fn take_result(&self, mut result: StepResult) -> Option<StepResult> {
        let mut state = self.state();
        if result.reason == Reason::AgentFailed {
            if state.budget_exhausted {
                result.reason = Reason::BudgetExceeded;
                result.message = format!("the task's budget is used up ({})", result.message);
            } else if let Some(failure) = &state.provider_failure {
                result.reason = Reason::ProviderUnavailable;
                result.message = format!("{failure} ({})", result.message);
            }
        }
        match &state.result {
            Reported::No => state.result = Reported::Sent(result.clone()),
            Reported::Sent(known) | Reported::Recorded(known) => {
                return same_result(known, &result).then(|| known.clone());
            }
        }
        Some(result)
    }
}

/// A repetition may differ in the words that the gateway added meanwhile, in nothing else.
fn same_result(known: &StepResult, other: &StepResult) -> bool {
    known.exit_code == other.exit_code
        && known.facts == other.facts
        && known.events == other.events
        && known.reported_usage == other.reported_usage
}

fn open_until(grant: &Grant, now: Instant) -> Option<Instant> {
    grant.open_remaining_millis.map(|millis| deadline(now, millis))
}

/// Longest remaining time that is believed: no step may run for more than a month.
const REMAINING_MAX: Duration = Duration::from_hours(31 * 24);

/// The instant `millis` after `now`.
pub(super) fn deadline(now: Instant, millis: u64) -> Instant {
    now + Duration::from_millis(millis).min(REMAINING_MAX)
}
