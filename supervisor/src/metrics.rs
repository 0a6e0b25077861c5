//! Metrics of the supervisor. Label values come from bounded sets.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// One label from a bounded set.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Kind {
    /// The set's member.
    pub kind: String,
}

/// All metrics, with their registry.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Assignments by answer: `accepted`, `known`, or the reason of the refusal.
    pub assignments: Family<Kind, Counter<u64, AtomicU64>>,
    /// Outcomes by reason.
    pub outcomes: Family<Kind, Counter<u64, AtomicU64>>,
    /// Attempts without an outcome.
    pub live_attempts: Gauge<i64, AtomicI64>,
    /// Kubelet records that contradict the runner.
    pub exit_mismatches: Counter<u64, AtomicU64>,
    /// Odd input that was dropped: `stale_epoch`, `unknown_attempt`, `ledger_torn`,
    /// `ledger_damaged`, `ledger_unknown`, `ledger_foreign`, `foreign_pod`, `events_unstored`.
    pub dropped: Family<Kind, Counter<u64, AtomicU64>>,
    /// Attempts that were taken up again without the ledger.
    pub adopted: Counter<u64, AtomicU64>,
    /// Whether the session with the controller is up.
    pub session_up: Gauge<i64, AtomicI64>,
    /// Whether the link to the gateway is up.
    pub link_up: Gauge<i64, AtomicI64>,
    /// Whether the ledger takes assignments: it can be written and its reserve is held.
    pub ledger_room: Gauge<i64, AtomicI64>,
}

impl Metrics {
    /// All metrics at zero, in a registry of their own.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("agent_operator_supervisor");
        let assignments = Family::default();
        registry.register("assignments", "Assignments by answer", assignments.clone());
        let outcomes = Family::default();
        registry.register("outcomes", "Outcomes by reason", outcomes.clone());
        let live_attempts = Gauge::default();
        registry.register("live_attempts", "Attempts without outcome", live_attempts.clone());
        let exit_mismatches = Counter::default();
        registry.register(
            "exit_mismatches",
            "Kubelet records that contradict the runner",
            exit_mismatches.clone(),
        );
        let dropped = Family::default();
        registry.register("dropped", "Odd input that was dropped", dropped.clone());
        let adopted = Counter::default();
        registry.register("adopted", "Attempts adopted without the ledger", adopted.clone());
        let session_up = Gauge::default();
        registry.register("session_up", "Session with the controller", session_up.clone());
        let link_up = Gauge::default();
        registry.register("link_up", "Link to the gateway", link_up.clone());
        let ledger_room = Gauge::default();
        registry.register(
            "ledger_room",
            "Whether the ledger takes assignments",
            ledger_room.clone(),
        );
        Self {
            registry,
            assignments,
            outcomes,
            live_attempts,
            exit_mismatches,
            dropped,
            adopted,
            session_up,
            link_up,
            ledger_room,
        }
    }

    /// Counts one dropped input.
    pub fn drop_one(&self, kind: &str) {
        self.dropped.get_or_create(&Kind { kind: kind.to_owned() }).inc();
    }

    /// The text format.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
