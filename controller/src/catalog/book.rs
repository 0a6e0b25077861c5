//! What is counted and told when a task or a run changes. Every replica sees every change; the one
//! that leads counts it.

use std::time::Duration;

use agent_operator::telemetry::{Told, Tracer};
use jiff::Timestamp;

use super::{RunView, TaskView};
use crate::metrics::{Ended, Metrics};

/// Metrics and traces.
#[derive(Clone, Debug)]
pub(super) struct Book {
    pub(super) metrics: Metrics,
    pub(super) tracer: Tracer,
}

impl Book {
    /// A run has changed. `before`: as it was known, none: it is new. `earlier_end`: when the run
    /// before it in its task ended.
    pub(super) fn run(
        &self,
        before: Option<&RunView>,
        run: &RunView,
        earlier_end: Option<Timestamp>,
    ) {
        if !self.metrics.is_leading() {
            return;
        }
        let was_started = before.is_some_and(|before| before.started_at.is_some());
        let was_ended = before.is_some_and(RunView::is_terminal);
        if let (false, Some(started), Some(end)) = (was_started, run.started_at, earlier_end) {
            self.metrics.step_handed_over(&run.step, between(end, started));
        }
        if !was_ended && run.is_terminal() {
            self.run_ended(run, earlier_end);
        }
    }

    fn run_ended(&self, run: &RunView, earlier_end: Option<Timestamp>) {
        let took = run.started_at.zip(run.completed_at).map(|(start, end)| between(start, end));
        let RunView { step, phase, reason, usage, .. } = run;
        self.metrics.run_ended(Ended { step, phase, reason, took, usage: *usage });
        let (Some(created), Some(end)) = (run.created_at, run.completed_at) else { return };
        // Objects have whole seconds of creation: a run is made after the one before has ended.
        let start = earlier_end.map_or(created, |earlier| created.max(earlier));
        let failed = (phase != "Succeeded").then_some(reason.as_str());
        self.tracer.tell(
            Told::run(&run.task_uid, &run.uid, step, (start, end))
                .with("k8s.namespace.name", run.namespace.clone())
                .with("k8s.node.name", run.node.to_string())
                .with("agent_operator.task", run.task.clone())
                .with("agent_operator.run", run.name.clone())
                .with("agent_operator.step", step.clone())
                .with("agent_operator.attempt", i64::from(run.attempt))
                .with("agent_operator.reason", reason.clone())
                .with_some("agent_operator.exit_code", run.exit_code.map(i64::from))
                .with_usage(usage)
                .failed(failed),
        );
    }

    /// A task has changed. `before`: as it was known, none: it is new.
    pub(super) fn task(&self, before: Option<&TaskView>, task: &TaskView) {
        let was_finished = before.is_some_and(|before| before.finished);
        if was_finished || !task.finished || !self.metrics.is_leading() {
            return;
        }
        let Some((start, end)) = task.created_at.zip(task.completed_at) else { return };
        self.metrics.task_finished(&task.phase, between(start, end));
        let failed = (task.phase != "Complete").then_some(task.reason.as_str());
        self.tracer.tell(
            Told::task(&task.uid, (start, end))
                .with("k8s.namespace.name", task.namespace.clone())
                .with("agent_operator.task", task.name.clone())
                .with("agent_operator.phase", task.phase.clone())
                .with("agent_operator.reason", task.reason.clone())
                .with("agent_operator.runs", i64::try_from(task.runs.len()).unwrap_or(i64::MAX))
                .with_usage(&task.usage)
                .failed(failed),
        );
    }

    /// How many tasks there are in each phase.
    pub(super) fn tasks<'a>(&self, phases: impl IntoIterator<Item = (&'a str, i64)>) {
        self.metrics.set_tasks(phases);
    }
}

/// From `start` to `end`; nothing where clocks disagree.
fn between(start: Timestamp, end: Timestamp) -> Duration {
    Duration::try_from(end.duration_since(start)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use agent_operator::telemetry::{TelemetryArgs, ids};
    use agent_operator_doubles::collector::Collector;

    use super::*;
    use crate::catalog::Catalog;

    fn second(second: i64) -> Option<Timestamp> {
        Timestamp::from_second(second).ok()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_task_is_told_with_its_runs_once_it_ends() {
        let collector = Collector::start(([127, 0, 0, 1], 0).into()).await.unwrap();
        let args = TelemetryArgs::tracing_to(&collector.url()).unwrap();
        let tracer = Tracer::start(&args, "agent-operator-controller").unwrap();
        let metrics = Metrics::new();
        metrics.set_leading(true);
        let catalog = Catalog::traced(metrics, tracer);
        let run = RunView {
            phase: "Failed".into(),
            reason: "TimedOut".into(),
            created_at: second(10),
            started_at: second(12),
            completed_at: second(20),
            ..RunView::sample("a", "t", 1)
        };
        let task = TaskView {
            phase: "Failed".into(),
            reason: "TimedOut".into(),
            finished: true,
            created_at: second(9),
            completed_at: second(21),
            ..TaskView::sample("t")
        };
        catalog.set_runs(vec![RunView::sample("a", "t", 1)]);
        catalog.set_tasks(vec![TaskView::sample("t")]);
        for _ in 0..2 {
            catalog.put_run(run.clone());
            catalog.put_task(task.clone());
        }
        let trace = ids::trace_of(&task.uid).to_string();
        let limit = Duration::from_mins(1);
        let spans = collector.wait_for(&trace, limit, |spans| spans.len() >= 2).await.unwrap();
        assert_eq!(spans.len(), 2, "each is told once: {spans:?}");
        let named = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
        let (root, step) = (named("task"), named("step plan"));
        assert_eq!((root.parent.as_str(), &step.parent), ("", &root.id));
        assert_eq!(
            (root.end - root.start, step.end - step.start),
            (12_000_000_000, 10_000_000_000)
        );
        assert_eq!(step.error.as_deref(), Some("TimedOut"));
        assert_eq!(step.attributes["agent_operator.run"], "a");
        assert_eq!(root.attributes["agent_operator.phase"], "Failed");
    }
}
