//! What the process counts. One explicit registry, passed to whoever counts.
//!
//! Label values are words of the code, never of an object or a message, so that no input can grow
//! the registry; each series is there from the start, so that its first event shows as a rate.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use agent_operator::{
    domain::{Reason, RunPhase, StepName, Usage, stream::Channel},
    telemetry::metrics::{self as shared, dollars, gauge},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::decide::status::TaskPhase;

/// Stands for a word that this version does not know.
const OTHER: &str = "other";

/// What a failed pass may have failed at, see `ReconcileError::kind`.
const RECONCILE_ERRORS: [&str; 7] =
    ["Observe", "Credentials", "NotLeading", "Call", "Timeout", "Foreign", "ReadBack"];
/// How calls are refused, see `grpc::auth::code_name`.
const REFUSAL_CODES: [&str; 3] = ["unauthenticated", "permission_denied", "unavailable"];
/// Why nodes lose bytes, see `GapReason` of the supervisor's streams.
pub const GAP_REASONS: [&str; 11] = [
    "RotatedUnseen",
    "RotatedUnread",
    "Truncated",
    "Damaged",
    "DiskFailed",
    "SpoolFull",
    "MachineCrashed",
    "Missing",
    "WrittenLate",
    "OutputDropped",
    "NotCopied",
];

macro_rules! labels {
    ($($name:ident { $($field:ident),+ })+) => {
        $(
            #[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
            struct $name { $($field: &'static str),+ }
        )+
    };
}

labels! {
    ByPhase { phase }
    ByStep { step }
    ByEnd { step, reason }
    ByResult { step, phase }
    ByToken { step, kind }
    ByChannel { channel }
    ByGap { channel, reason }
    ByKind { kind }
    ByCode { code }
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Handles of all metrics. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    tasks: Family<ByPhase, Gauge>,
    tasks_waiting: Gauge,
    task_seconds: Histograms<ByPhase>,
    steps: Family<ByEnd, Counter>,
    step_seconds: Histograms<ByResult>,
    step_queue_seconds: Histograms<ByStep>,
    step_handover_seconds: Histograms<ByStep>,
    tokens: Family<ByToken, Counter>,
    cost: Family<ByStep, Counter<f64, AtomicU64>>,
    sessions: Gauge,
    slots: Gauge,
    slots_used: Gauge,
    stream_bytes: Family<ByChannel, Counter>,
    stream_gaps: Family<ByGap, Counter>,
    stream_lost_bytes: Family<ByGap, Counter>,
    stream_failures: Family<ByChannel, Counter>,
    stored_bytes: Gauge,
    followers: Gauge,
    followers_dropped: Counter,
    reconcile_seconds: Histogram,
    reconcile_errors: Family<ByKind, Counter>,
    auth_refusals: Family<ByCode, Counter>,
    bad_messages: Counter,
    leading: Gauge,
}

/// What a run that has ended adds to the counts.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    /// Its step, as in its spec.
    pub step: &'a str,
    /// Its phase, as in its status.
    pub phase: &'a str,
    /// Why it ended, as in its status.
    pub reason: &'a str,
    /// From the opening of its start gate to its end; none: it never started.
    pub took: Option<Duration>,
    /// Consumption.
    pub usage: Usage,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A fresh registry with every metric in it.
    pub fn new() -> Self {
        let mut inner = Inner {
            registry: Registry::default(),
            tasks: Family::default(),
            tasks_waiting: Gauge::default(),
            task_seconds: Family::new_with_constructor(shared::work),
            steps: Family::default(),
            step_seconds: Family::new_with_constructor(shared::work),
            step_queue_seconds: Family::new_with_constructor(shared::waits),
            step_handover_seconds: Family::new_with_constructor(shared::waits),
            tokens: Family::default(),
            cost: Family::default(),
            sessions: Gauge::default(),
            slots: Gauge::default(),
            slots_used: Gauge::default(),
            stream_bytes: Family::default(),
            stream_gaps: Family::default(),
            stream_lost_bytes: Family::default(),
            stream_failures: Family::default(),
            stored_bytes: Gauge::default(),
            followers: Gauge::default(),
            followers_dropped: Counter::default(),
            reconcile_seconds: shared::calls(),
            reconcile_errors: Family::default(),
            auth_refusals: Family::default(),
            bad_messages: Counter::default(),
            leading: Gauge::default(),
        };
        let mut registry = Registry::with_prefix("agent_operator");
        inner.register_work(&mut registry);
        inner.register_process(&mut registry);
        inner.touch();
        inner.registry = registry;
        Self(Arc::new(inner))
    }

    /// The text that a scrape gets.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        shared::text(&self.0.registry)
    }

    /// How many tasks there are in each phase; phases that are not named have none.
    pub fn set_tasks<'a>(&self, phases: impl IntoIterator<Item = (&'a str, i64)>) {
        let mut counts: Vec<(&str, i64)> = task_phases().map(|phase| (phase, 0)).collect();
        for (phase, count) in phases {
            let known = task_phase(phase);
            counts.iter_mut().filter(|(name, _)| *name == known).for_each(|(_, sum)| *sum += count);
        }
        for (phase, count) in counts {
            self.0.tasks.get_or_create(&ByPhase { phase }).set(count);
        }
    }

    /// How many tasks wait for room on a node.
    pub fn set_tasks_waiting(&self, count: usize) {
        self.0.tasks_waiting.set(gauge(count));
    }

    /// A task has ended in `phase`, `took` after its creation.
    pub fn task_finished(&self, phase: &str, took: Duration) {
        let label = ByPhase { phase: task_phase(phase) };
        self.0.task_seconds.get_or_create(&label).observe(took.as_secs_f64());
    }

    /// A run has ended.
    pub fn run_ended(&self, ended: Ended<'_>) {
        let Ended { step, phase, reason, took, usage } = ended;
        let step = step_word(step);
        let reason = reason.parse::<Reason>().map_or(OTHER, Reason::as_str);
        self.0.steps.get_or_create(&ByEnd { step, reason }).inc();
        if let Some(took) = took {
            let phase = phase.parse::<RunPhase>().map_or(OTHER, RunPhase::as_str);
            let label = ByResult { step, phase };
            self.0.step_seconds.get_or_create(&label).observe(took.as_secs_f64());
        }
        for (kind, count) in shared::tokens(&usage) {
            self.0.tokens.get_or_create(&ByToken { step, kind }).inc_by(count);
        }
        self.0.cost.get_or_create(&ByStep { step }).inc_by(dollars(usage.cost_micro_usd));
    }

    /// A step was given to a node, after it waited for room for `waited`.
    pub fn step_placed(&self, step: &str, waited: Duration) {
        let label = ByStep { step: step_word(step) };
        self.0.step_queue_seconds.get_or_create(&label).observe(waited.as_secs_f64());
    }

    /// A step has started `after` the one before it ended.
    pub fn step_handed_over(&self, step: &str, after: Duration) {
        let label = ByStep { step: step_word(step) };
        self.0.step_handover_seconds.get_or_create(&label).observe(after.as_secs_f64());
    }

    /// Number of connected supervisors.
    pub fn set_sessions(&self, count: usize) {
        self.0.sessions.set(gauge(count));
    }

    /// Room on the connected nodes, and how much of it is taken.
    pub fn set_slots(&self, all: u64, used: u64) {
        self.0.slots.set(gauge(all));
        self.0.slots_used.set(gauge(used));
    }

    /// Bytes came from a node.
    pub fn stream_bytes(&self, channel: Channel, count: u64) {
        let label = ByChannel { channel: channel.as_str() };
        self.0.stream_bytes.get_or_create(&label).inc_by(count);
    }

    /// A node has lost `bytes` for good.
    pub fn stream_gap(&self, channel: Channel, reason: &str, bytes: u64) {
        let reason = GAP_REASONS.into_iter().find(|known| *known == reason).unwrap_or(OTHER);
        let label = ByGap { channel: channel.as_str(), reason };
        self.0.stream_gaps.get_or_create(&label).inc();
        self.0.stream_lost_bytes.get_or_create(&label).inc_by(bytes);
    }

    /// A stream could not be stored.
    pub fn stream_failed(&self, channel: Channel) {
        self.0.stream_failures.get_or_create(&ByChannel { channel: channel.as_str() }).inc();
    }

    /// Size of the stream store.
    pub fn set_stored_bytes(&self, count: u64) {
        self.0.stored_bytes.set(gauge(count));
    }

    /// A Follow call has begun (1) or ended (-1).
    pub fn followers(&self, change: i64) {
        self.0.followers.inc_by(change);
    }

    /// A Follow call was given up, for its peer took nothing.
    pub fn follower_dropped(&self) {
        self.0.followers_dropped.inc();
    }

    /// A pass over a task took this long.
    pub fn reconciled(&self, took: Duration) {
        self.0.reconcile_seconds.observe(took.as_secs_f64());
    }

    /// A reconcile has failed; `kind` is one of its errors' `kind()`.
    pub fn reconcile_error(&self, kind: &'static str) {
        self.0.reconcile_errors.get_or_create(&ByKind { kind }).inc();
    }

    /// A call was refused.
    pub fn auth_refused(&self, code: &'static str) {
        self.0.auth_refusals.get_or_create(&ByCode { code }).inc();
    }

    /// A node sent a message that could not be read.
    pub fn bad_message(&self) {
        self.0.bad_messages.inc();
    }

    /// Whether this process leads.
    pub fn set_leading(&self, leading: bool) {
        self.0.leading.set(i64::from(leading));
    }

    /// What was last set: events that every replica sees are counted by the leading one alone.
    pub fn is_leading(&self) -> bool {
        self.0.leading.get() == 1
    }
}

impl Inner {
    /// Tasks, steps and what they use.
    fn register_work(&self, to: &mut Registry) {
        to.register("tasks", "Coding tasks by phase", self.tasks.clone());
        let waiting = self.tasks_waiting.clone();
        to.register("tasks_waiting", "Tasks that wait for room on a node", waiting);
        let help = "Seconds from a task's creation to its end, by the phase it ended in";
        to.register("task_seconds", help, self.task_seconds.clone());
        to.register("steps", "Runs that have ended, by step and reason", self.steps.clone());
        let help = "Seconds from the opening of a run's start gate to its end, by step and phase";
        to.register("step_seconds", help, self.step_seconds.clone());
        let help = "Seconds that a step waited for room on a node before it was given to one";
        to.register("step_queue_seconds", help, self.step_queue_seconds.clone());
        let help =
            "Seconds from the end of a task's run to the start of its next one, waits included";
        to.register("step_handover_seconds", help, self.step_handover_seconds.clone());
        let help = "Tokens used by runs that have ended, by step and kind";
        to.register("tokens", help, self.tokens.clone());
        let help = "US dollars that runs which have ended cost by the price table, by step";
        to.register("cost_usd", help, self.cost.clone());
    }

    /// Nodes, streams, callers and the process itself.
    fn register_process(&self, to: &mut Registry) {
        to.register("sessions", "Connected supervisors", self.sessions.clone());
        to.register("slots", "Room for steps on the connected nodes", self.slots.clone());
        let used = self.slots_used.clone();
        to.register("slots_used", "Steps that the connected nodes run", used);
        let help = "Bytes taken from nodes by channel";
        to.register("stream_bytes", help, self.stream_bytes.clone());
        let help = "Gaps in the streams of nodes by channel and reason";
        to.register("stream_gaps", help, self.stream_gaps.clone());
        let help = "Bytes that the gaps stand for, by channel and reason";
        to.register("stream_lost_bytes", help, self.stream_lost_bytes.clone());
        let help = "Times that a stream of a node could not be stored and was put off, by channel";
        to.register("stream_failures", help, self.stream_failures.clone());
        let stored = self.stored_bytes.clone();
        to.register("stream_stored_bytes", "Bytes in the stream store", stored);
        to.register("followers", "Open Follow calls", self.followers.clone());
        let dropped = self.followers_dropped.clone();
        to.register("followers_dropped", "Follow calls whose peer took nothing", dropped);
        let seconds = self.reconcile_seconds.clone();
        to.register("reconcile_seconds", "Seconds of passes over one task", seconds);
        let help = "Failed passes by what they failed at";
        to.register("reconcile_errors", help, self.reconcile_errors.clone());
        let help = "Refused gRPC calls by code";
        to.register("grpc_auth_refusals", help, self.auth_refusals.clone());
        let bad = self.bad_messages.clone();
        to.register("session_bad_messages", "Messages of nodes that made no sense", bad);
        to.register("leading", "1 while this process leads", self.leading.clone());
    }

    /// Makes every series that can be.
    fn touch(&self) {
        for phase in task_phases() {
            drop(self.tasks.get_or_create(&ByPhase { phase }));
        }
        for phase in [TaskPhase::Complete, TaskPhase::Failed].map(TaskPhase::as_str) {
            drop(self.task_seconds.get_or_create(&ByPhase { phase }));
        }
        for step in StepName::ALL.map(StepName::as_str) {
            for reason in Reason::ALL.iter().map(|reason| reason.as_str()) {
                drop(self.steps.get_or_create(&ByEnd { step, reason }));
            }
            for phase in RunPhase::ALL.into_iter().filter(|phase| phase.is_terminal()) {
                let phase = phase.as_str();
                drop(self.step_seconds.get_or_create(&ByResult { step, phase }));
            }
            for (kind, _) in shared::tokens(&Usage::default()) {
                drop(self.tokens.get_or_create(&ByToken { step, kind }));
            }
            drop(self.step_queue_seconds.get_or_create(&ByStep { step }));
            drop(self.step_handover_seconds.get_or_create(&ByStep { step }));
            drop(self.cost.get_or_create(&ByStep { step }));
        }
        for channel in Channel::ALL.map(Channel::as_str) {
            drop(self.stream_bytes.get_or_create(&ByChannel { channel }));
            drop(self.stream_failures.get_or_create(&ByChannel { channel }));
            for reason in GAP_REASONS {
                let label = ByGap { channel, reason };
                drop(self.stream_gaps.get_or_create(&label));
                drop(self.stream_lost_bytes.get_or_create(&label));
            }
        }
        for kind in RECONCILE_ERRORS {
            drop(self.reconcile_errors.get_or_create(&ByKind { kind }));
        }
        for code in REFUSAL_CODES {
            drop(self.auth_refusals.get_or_create(&ByCode { code }));
        }
    }
}

fn step_word(step: &str) -> &'static str {
    step.parse::<StepName>().map_or(OTHER, StepName::as_str)
}

fn task_phases() -> impl Iterator<Item = &'static str> {
    TaskPhase::ALL.into_iter().map(TaskPhase::as_str).chain([OTHER])
}

fn task_phase(phase: &str) -> &'static str {
    task_phases().find(|known| *known == phase).unwrap_or(OTHER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(step: &'static str, reason: &'static str) -> Ended<'static> {
        let usage = Usage { input_tokens: 5, cost_micro_usd: 2_500_000, ..Usage::default() };
        Ended { step, phase: "Failed", reason, took: Some(Duration::from_secs(2)), usage }
    }

    #[track_caller]
    fn assert_shows(metrics: &Metrics, lines: &[&str]) {
        let text = metrics.render().unwrap();
        for line in lines {
            assert!(text.lines().any(|known| known == *line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_scrape_shows_what_was_counted() {
        let metrics = Metrics::new();
        metrics.set_tasks([("Complete", 2)]);
        metrics.run_ended(ended("plan", "TimedOut"));
        metrics.auth_refused("unauthenticated");
        metrics.stream_gap(Channel::Log, "SpoolFull", 70);
        metrics.step_handed_over("test", Duration::from_millis(700));
        assert_shows(
            &metrics,
            &[
                "agent_operator_tasks{phase=\"Complete\"} 2",
                "agent_operator_tasks{phase=\"Pending\"} 0",
                "agent_operator_steps_total{step=\"plan\",reason=\"TimedOut\"} 1",
                "agent_operator_steps_total{step=\"plan\",reason=\"Completed\"} 0",
                "agent_operator_step_seconds_sum{step=\"plan\",phase=\"Failed\"} 2.0",
                "agent_operator_tokens_total{step=\"plan\",kind=\"input\"} 5",
                "agent_operator_cost_usd_total{step=\"plan\"} 2.5",
                "agent_operator_grpc_auth_refusals_total{code=\"unauthenticated\"} 1",
                "agent_operator_stream_lost_bytes_total{channel=\"log\",reason=\"SpoolFull\"} 70",
                "agent_operator_step_handover_seconds_count{step=\"test\"} 1",
                "agent_operator_sessions 0",
            ],
        );
    }

    #[test]
    fn words_that_nobody_knows_are_one_series() {
        let metrics = Metrics::new();
        let before = metrics.render().unwrap().lines().count();
        for word in ["a", "b", "c\"} 1\nx", "Completed "] {
            metrics.run_ended(Ended { step: word, reason: word, phase: word, ..ended("plan", "") });
            metrics.set_tasks([(word, 1)]);
            metrics.task_finished(word, Duration::ZERO);
            metrics.step_placed(word, Duration::ZERO);
            metrics.stream_gap(Channel::Log, word, 1);
        }
        let text = metrics.render().unwrap();
        let more: Vec<_> = text.lines().filter(|line| line.contains("\"other\"")).collect();
        assert!(text.lines().count() - before <= more.len(), "{text}");
        assert_shows(&metrics, &["agent_operator_steps_total{step=\"other\",reason=\"other\"} 4"]);
        assert_shows(&metrics, &["agent_operator_tasks{phase=\"other\"} 1"]);
    }
}
