//! What the process counts. One explicit registry, passed to whoever counts.

use std::sync::Arc;

use agent_operator::domain::stream::Channel;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Every label set comes from a bounded set of names, so that no input can grow the registry.
macro_rules! labels {
    ($($name:ident { $($field:ident),+ })+) => {
        $(
            #[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
            struct $name { $($field: String),+ }
        )+
    };
}

labels! {
    PhaseLabel { phase }
    StepLabel { step, reason }
    ChannelLabel { channel }
    KindLabel { kind }
    CodeLabel { code }
}

/// Handles of all metrics. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    tasks: Family<PhaseLabel, Gauge>,
    steps: Family<StepLabel, Counter>,
    sessions: Gauge,
    stream_bytes: Family<ChannelLabel, Counter>,
    stream_gaps: Family<ChannelLabel, Counter>,
    stored_bytes: Gauge,
    followers: Gauge,
    followers_dropped: Counter,
    reconcile_errors: Family<KindLabel, Counter>,
    auth_refusals: Family<CodeLabel, Counter>,
    bad_messages: Counter,
    leading: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A fresh registry with every metric in it.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("agent_operator");
        let mut inner = Inner {
            registry: Registry::default(),
            tasks: Family::default(),
            steps: Family::default(),
            sessions: Gauge::default(),
            stream_bytes: Family::default(),
            stream_gaps: Family::default(),
            stored_bytes: Gauge::default(),
            followers: Gauge::default(),
            followers_dropped: Counter::default(),
            reconcile_errors: Family::default(),
            auth_refusals: Family::default(),
            bad_messages: Counter::default(),
            leading: Gauge::default(),
        };
        registry.register("tasks", "Coding tasks by phase", inner.tasks.clone());
        registry.register("steps", "Finished runs by step and reason", inner.steps.clone());
        registry.register("sessions", "Connected supervisors", inner.sessions.clone());
        let bytes = inner.stream_bytes.clone();
        registry.register("stream_bytes", "Bytes taken from nodes by channel", bytes);
        let gaps = inner.stream_gaps.clone();
        registry.register("stream_gaps", "Gaps in streams by channel", gaps);
        let stored = inner.stored_bytes.clone();
        registry.register("stream_stored_bytes", "Bytes in the stream store", stored);
        registry.register("followers", "Open Follow calls", inner.followers.clone());
        let dropped = inner.followers_dropped.clone();
        registry.register("followers_dropped", "Follow calls whose peer took nothing", dropped);
        let errors = inner.reconcile_errors.clone();
        registry.register("reconcile_errors", "Failed reconciles by kind", errors);
        let refusals = inner.auth_refusals.clone();
        registry.register("grpc_auth_refusals", "Refused calls by code", refusals);
        let bad = inner.bad_messages.clone();
        registry.register("session_bad_messages", "Messages of nodes that made no sense", bad);
        registry.register("leading", "1 while this process leads", inner.leading.clone());
        inner.registry = registry;
        Self(Arc::new(inner))
    }

    /// The text that a scrape gets.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.0.registry)?;
        Ok(text)
    }

    /// How many tasks there are in each phase; phases that are not named are gone.
    pub fn set_tasks<'a>(&self, phases: impl IntoIterator<Item = (&'a str, i64)>) {
        self.0.tasks.clear();
        for (phase, count) in phases {
            self.0.tasks.get_or_create(&PhaseLabel { phase: phase.to_owned() }).set(count);
        }
    }

    /// A run has ended.
    pub fn step_finished(&self, step: &str, reason: &str) {
        let label = StepLabel { step: step.to_owned(), reason: reason.to_owned() };
        self.0.steps.get_or_create(&label).inc();
    }

    /// Number of connected supervisors.
    pub fn set_sessions(&self, count: usize) {
        self.0.sessions.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Bytes came from a node.
    pub fn stream_bytes(&self, channel: Channel, count: u64) {
        let label = ChannelLabel { channel: channel.as_str().to_owned() };
        self.0.stream_bytes.get_or_create(&label).inc_by(count);
    }

    /// A node has lost bytes for good.
    pub fn stream_gap(&self, channel: Channel) {
        let label = ChannelLabel { channel: channel.as_str().to_owned() };
        self.0.stream_gaps.get_or_create(&label).inc();
    }

    /// Size of the stream store.
    pub fn set_stored_bytes(&self, count: u64) {
        self.0.stored_bytes.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A Follow call has begun (1) or ended (-1).
    pub fn followers(&self, change: i64) {
        self.0.followers.inc_by(change);
    }

    /// A Follow call was given up, for its peer took nothing.
    pub fn follower_dropped(&self) {
        self.0.followers_dropped.inc();
    }

    /// A reconcile has failed; `kind` is one of its errors' `kind()`.
    pub fn reconcile_error(&self, kind: &'static str) {
        self.0.reconcile_errors.get_or_create(&KindLabel { kind: kind.to_owned() }).inc();
    }

    /// A call was refused.
    pub fn auth_refused(&self, code: &'static str) {
        self.0.auth_refusals.get_or_create(&CodeLabel { code: code.to_owned() }).inc();
    }

    /// A node sent a message that could not be read.
    pub fn bad_message(&self) {
        self.0.bad_messages.inc();
    }

    /// Whether this process leads.
    pub fn set_leading(&self, leading: bool) {
        self.0.leading.set(i64::from(leading));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_shows_what_was_counted() {
        let metrics = Metrics::new();
        metrics.set_tasks([("Complete", 2)]);
        metrics.step_finished("plan", "Completed");
        metrics.auth_refused("unauthenticated");
        let text = metrics.render().unwrap();
        for line in [
            "agent_operator_tasks{phase=\"Complete\"} 2",
            "agent_operator_steps_total{step=\"plan\",reason=\"Completed\"} 1",
            "agent_operator_grpc_auth_refusals_total{code=\"unauthenticated\"} 1",
            "agent_operator_sessions 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
