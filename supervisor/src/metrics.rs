//! Metrics of the supervisor. Label values are words of the code, so that no input can grow the
//! registry; each series is there from the start, so that its first event shows as a rate.

mod enforcer;

use std::{
    sync::atomic::{AtomicI64, AtomicU64},
    time::Duration,
};

use agent_operator::{
    domain::{Reason, StartFault, StepName},
    telemetry::metrics as shared,
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use self::enforcer::EnforcerMetrics;
use crate::{
    ledger::NoRoom,
    steps::runner::{ACCEPTED, refusal},
};

/// Odd input that is dropped.
const DROPPED: [&str; 8] = [
    "stale_epoch",
    "unknown_attempt",
    "ledger_torn",
    "ledger_damaged",
    "ledger_unknown",
    "ledger_foreign",
    "foreign_pod",
    "events_unstored",
];

macro_rules! labels {
    ($($name:ident { $field:ident })+) => {
        $(
            #[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
            struct $name { $field: &'static str }
        )+
    };
}

labels! {
    ByAnswer { answer }
    ByReason { reason }
    ByFault { fault }
    ByKind { kind }
    ByStep { step }
}

/// All metrics, with their registry.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    assignments: Family<ByAnswer, Counter>,
    outcomes: Family<ByReason, Counter>,
    start_faults: Family<ByFault, Counter>,
    start_seconds: Family<ByStep, Histogram, fn() -> Histogram>,
    report_seconds: Histogram,
    dropped: Family<ByKind, Counter>,
    /// Most attempts at once.
    pub slots: Gauge<i64, AtomicI64>,
    /// Attempts without an outcome.
    pub live_attempts: Gauge<i64, AtomicI64>,
    /// Kubelet records that contradict the runner.
    pub exit_mismatches: Counter<u64, AtomicU64>,
    /// Attempts that were taken up again without the ledger.
    pub adopted: Counter<u64, AtomicU64>,
    /// Bytes of logs and events on this node.
    pub stream_stored_bytes: Gauge<i64, AtomicI64>,
    /// Whether the session with the controller is up.
    pub session_up: Gauge<i64, AtomicI64>,
    /// Whether the link to the gateway is up.
    pub link_up: Gauge<i64, AtomicI64>,
    /// Whether the ledger takes assignments: it can be written and its reserve is held.
    pub ledger_room: Gauge<i64, AtomicI64>,
    /// What the node's enforcer counts.
    pub enforcer: EnforcerMetrics,
}

impl Metrics {
    /// All metrics at zero, in a registry of their own.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            assignments: Family::default(),
            outcomes: Family::default(),
            start_faults: Family::default(),
            start_seconds: Family::new_with_constructor(shared::waits),
            report_seconds: shared::waits(),
            dropped: Family::default(),
            slots: Gauge::default(),
            live_attempts: Gauge::default(),
            exit_mismatches: Counter::default(),
            adopted: Counter::default(),
            stream_stored_bytes: Gauge::default(),
            session_up: Gauge::default(),
            link_up: Gauge::default(),
            ledger_room: Gauge::default(),
            enforcer: EnforcerMetrics::default(),
        };
        let mut registry = Registry::with_prefix("agent_operator_supervisor");
        metrics.register(&mut registry);
        metrics.touch();
        metrics.registry = registry;
        metrics
    }

    fn register(&self, to: &mut Registry) {
        to.register("assignments", "Assignments by answer", self.assignments.clone());
        to.register("outcomes", "Attempts that have ended, by reason", self.outcomes.clone());
        let help = "Attempts that never started, by what kept them from it";
        to.register("start_faults", help, self.start_faults.clone());
        let help = "Seconds from an assignment to the opening of its start gate, by step";
        to.register("start_seconds", help, self.start_seconds.clone());
        let help = "Seconds from the end of an attempt until the controller has recorded it";
        to.register("report_seconds", help, self.report_seconds.clone());
        to.register("dropped", "Odd input that was dropped, by kind", self.dropped.clone());
        to.register("slots", "Most attempts at once", self.slots.clone());
        to.register("live_attempts", "Attempts without outcome", self.live_attempts.clone());
        let mismatches = self.exit_mismatches.clone();
        to.register("exit_mismatches", "Kubelet records that contradict the runner", mismatches);
        let help = "Attempts that were taken up again without the ledger";
        to.register("adopted", help, self.adopted.clone());
        let stored = self.stream_stored_bytes.clone();
        to.register("stream_stored_bytes", "Bytes of logs and events on this node", stored);
        let help = "1 while the session with the controller is up";
        to.register("session_up", help, self.session_up.clone());
        let help = "1 while the link to the gateway is up";
        to.register("link_up", help, self.link_up.clone());
        let help = "1 while the ledger takes assignments: it can be written and holds its reserve";
        to.register("ledger_room", help, self.ledger_room.clone());
        self.enforcer.register(to);
    }

    /// Makes every series that can be.
    fn touch(&self) {
        let answers = [ACCEPTED].into_iter().chain(refusal::ALL).chain(NoRoom::KINDS);
        for answer in answers {
            drop(self.assignments.get_or_create(&ByAnswer { answer }));
        }
        for reason in Reason::ALL.iter().map(|reason| reason.as_str()) {
            drop(self.outcomes.get_or_create(&ByReason { reason }));
        }
        for fault in StartFault::ALL.iter().map(|fault| fault.as_str()) {
            drop(self.start_faults.get_or_create(&ByFault { fault }));
        }
        for step in StepName::ALL.map(StepName::as_str) {
            drop(self.start_seconds.get_or_create(&ByStep { step }));
        }
        for kind in DROPPED {
            drop(self.dropped.get_or_create(&ByKind { kind }));
        }
    }

    /// Counts an assignment by its answer.
    pub fn assigned(&self, answer: &'static str) {
        self.assignments.get_or_create(&ByAnswer { answer }).inc();
    }

    /// Counts an attempt that has ended.
    pub fn ended(&self, reason: Reason, fault: Option<StartFault>) {
        self.outcomes.get_or_create(&ByReason { reason: reason.as_str() }).inc();
        if let Some(fault) = fault {
            self.start_faults.get_or_create(&ByFault { fault: fault.as_str() }).inc();
        }
    }

    /// A start gate has opened, `after` the assignment.
    pub fn started(&self, step: StepName, after: Duration) {
        let label = ByStep { step: step.as_str() };
        self.start_seconds.get_or_create(&label).observe(after.as_secs_f64());
    }

    /// The controller has recorded an outcome, `after` the attempt ended.
    pub fn reported(&self, after: Duration) {
        self.report_seconds.observe(after.as_secs_f64());
    }

    /// Counts one dropped input.
    pub fn drop_one(&self, kind: &'static str) {
        self.dropped.get_or_create(&ByKind { kind }).inc();
    }

    /// The text format.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        shared::text(&self.registry)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_shows_what_was_counted_and_every_series_from_the_start() {
        let metrics = Metrics::new();
        let before = metrics.encode().unwrap();
        metrics.assigned("accepted");
        metrics.ended(Reason::Unstarted, Some(StartFault::QuotaExceeded));
        metrics.started(StepName::Plan, Duration::from_millis(300));
        metrics.reported(Duration::from_secs(2));
        metrics.drop_one("stale_epoch");
        let text = metrics.encode().unwrap();
        for line in [
            "agent_operator_supervisor_assignments_total{answer=\"accepted\"} 1",
            "agent_operator_supervisor_assignments_total{answer=\"DiskFull\"} 0",
            "agent_operator_supervisor_outcomes_total{reason=\"Unstarted\"} 1",
            "agent_operator_supervisor_start_faults_total{fault=\"QuotaExceeded\"} 1",
            "agent_operator_supervisor_start_seconds_sum{step=\"plan\"} 0.3",
            "agent_operator_supervisor_report_seconds_sum 2.0",
            "agent_operator_supervisor_dropped_total{kind=\"stale_epoch\"} 1",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
        }
        assert_eq!(before.lines().count(), text.lines().count(), "no series was new");
    }
}
