//! What the node's enforcer counts, shown by its supervisor: the enforcer itself has no port.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use agent_operator::telemetry::metrics::gauge;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::enforcer::contract::Counts;

/// Kind of the fault that the supervisor counts itself.
const RULES_MISSING: &str = "rules_missing";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByAnswer {
    answer: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByDirection {
    direction: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByKind {
    kind: &'static str,
}

/// The enforcer's counts as they were at the last scrape.
#[derive(Debug)]
pub struct EnforcerMetrics {
    expected: Gauge<i64, AtomicI64>,
    up: Gauge<i64, AtomicI64>,
    pods: Gauge<i64, AtomicI64>,
    last_closed: Gauge<i64, AtomicI64>,
    orders: Family<ByAnswer, Counter>,
    dropped: Family<ByDirection, Counter>,
    faults: Family<ByKind, Counter>,
}

impl Default for EnforcerMetrics {
    fn default() -> Self {
        let metrics = Self {
            expected: Gauge::default(),
            up: Gauge::default(),
            pods: Gauge::default(),
            last_closed: Gauge::default(),
            orders: Family::default(),
            dropped: Family::default(),
            faults: Family::default(),
        };
        metrics.count(&Counts::default());
        drop(metrics.faults.get_or_create(&ByKind { kind: RULES_MISSING }));
        metrics
    }
}

impl EnforcerMetrics {
    pub(super) fn register(&self, to: &mut Registry) {
        let help = "1 where the release has an enforcer on this node";
        to.register("enforcer_expected", help, self.expected.clone());
        let help = "1 while the node's enforcer answers";
        to.register("enforcer_up", help, self.up.clone());
        let help = "Pods whose network the node's enforcer holds closed";
        to.register("enforcer_pods", help, self.pods.clone());
        let help = "When the enforcer last closed a pod's network, in seconds since 1970; 0 before";
        to.register("enforcer_last_closed_seconds", help, self.last_closed.clone());
        let help = "Orders to close a pod's network, by the enforcer's answer";
        to.register("enforcer_orders", help, self.orders.clone());
        let help = "Packets that the enforcer's rules have dropped, from pods and to pods";
        to.register("enforcer_dropped_packets", help, self.dropped.clone());
        let help = "What went wrong at the enforcer: a failed sweep, a connection of somebody else, rules of a running step that were gone";
        to.register("enforcer_faults", help, self.faults.clone());
    }

    /// Shows what an enforcer that is to be there has said; none where it has not answered.
    pub fn show(&self, counts: Option<Counts>) {
        self.expected.set(1);
        self.up.set(i64::from(counts.is_some()));
        if let Some(counts) = counts {
            self.count(&counts);
        }
    }

    /// The rules of a running step's pod were gone. Seen by the supervisor, for the enforcer knows no steps.
    pub fn rules_missing(&self) {
        self.faults.get_or_create(&ByKind { kind: RULES_MISSING }).inc();
    }

    fn count(&self, counts: &Counts) {
        self.pods.set(gauge(counts.pods));
        self.last_closed.set(counts.last_closed_seconds);
        let orders =
            [("closed", counts.closed), ("delayed", counts.delayed), ("refused", counts.refused)];
        for (answer, count) in orders {
            set(&self.orders.get_or_create(&ByAnswer { answer }), count);
        }
        for (direction, count) in [("from", counts.dropped_from), ("to", counts.dropped_to)] {
            set(&self.dropped.get_or_create(&ByDirection { direction }), count);
        }
        let faults = [("sweep_failed", counts.failed_sweeps), ("foreign_peer", counts.foreign)];
        for (kind, count) in faults {
            set(&self.faults.get_or_create(&ByKind { kind }), count);
        }
    }
}

/// The enforcer's own count: it begins anew with the enforcer, as counters may.
fn set(counter: &Counter<u64, AtomicU64>, count: u64) {
    counter.inner().store(count, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use crate::{enforcer::contract::Counts, metrics::Metrics};

    #[test]
    fn the_enforcers_counts_are_shown_and_its_silence_too() {
        let metrics = Metrics::new();
        let has = |line: &str| metrics.encode().unwrap().lines().any(|known| known == line);
        assert!(has("agent_operator_supervisor_enforcer_expected 0"), "none was asked yet");
        let counts = Counts {
            pods: 2,
            closed: 7,
            refused: 1,
            last_closed_seconds: 1_800_000_000,
            dropped_from: 40,
            foreign: 3,
            ..Counts::default()
        };
        metrics.enforcer.show(Some(counts));
        for line in [
            "enforcer_expected 1",
            "enforcer_up 1",
            "enforcer_pods 2",
            "enforcer_last_closed_seconds 1800000000",
            "enforcer_orders_total{answer=\"closed\"} 7",
            "enforcer_orders_total{answer=\"refused\"} 1",
            "enforcer_orders_total{answer=\"delayed\"} 0",
            "enforcer_dropped_packets_total{direction=\"from\"} 40",
            "enforcer_faults_total{kind=\"foreign_peer\"} 3",
        ] {
            assert!(has(&format!("agent_operator_supervisor_{line}")), "{line}");
        }
        metrics.enforcer.rules_missing();
        metrics.enforcer.show(None);
        assert!(has("agent_operator_supervisor_enforcer_faults_total{kind=\"rules_missing\"} 1"));
        assert!(has("agent_operator_supervisor_enforcer_up 0"));
        assert!(has("agent_operator_supervisor_enforcer_orders_total{answer=\"closed\"} 7"));
        metrics.enforcer.show(Some(Counts { closed: 1, ..Counts::default() }));
        assert!(has("agent_operator_supervisor_enforcer_orders_total{answer=\"closed\"} 1"));
    }
}
