//! What an attempt spends its time on, as spans of its run.

use agent_operator::telemetry::{TelemetryArgs, Tracer, ids};
use agent_operator_doubles::collector::Collector;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_is_told_as_its_start_and_its_work() {
    let collector = Collector::start(([127, 0, 0, 1], 0).into()).await.unwrap();
    let args = TelemetryArgs::tracing_to(&collector.url()).unwrap();
    let tracer = Tracer::start(&args, "agent-operator-supervisor").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let cgroup = container_cgroup(dir.path());
    let mut life = Life::start_traced(Box::new(RealDisk), dir.path(), &pods, tracer).await;
    life.assign(assignment()).await;
    life.open_gate(&pods).await;
    life.durable(3, result_event()).await;
    std::fs::write(cgroup.join("pids.current"), "0\n").unwrap();
    assert_eq!(life.outcome().await.reason, Reason::Completed);

    let trace = ids::trace_of(&assignment().task.uid).to_string();
    let limit = Duration::from_mins(1);
    let spans = collector.wait_for(&trace, limit, |spans| spans.len() == 2).await.unwrap();
    let named = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    let (start, work) = (named("start"), named("work"));
    let run = ids::span_of_run(&assignment().run.uid).to_string();
    assert_eq!((&start.parent, &work.parent), (&run, &run));
    assert!(start.start <= start.end && start.end == work.start && work.start <= work.end);
    assert_eq!(work.attributes["k8s.node.name"], "node-a");
    assert_eq!((&start.error, &work.error), (&None, &None));
    life.kill().await;
}
