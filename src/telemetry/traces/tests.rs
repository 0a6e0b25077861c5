use std::time::Duration;

use agent_operator_doubles::collector::Collector;

use super::*;

/// Longest time until a span arrives; one that arrives costs none of it.
const LIMIT: Duration = Duration::from_mins(1);

async fn collector() -> Collector {
    Collector::start(([127, 0, 0, 1], 0).into()).await.unwrap()
}

fn tracer(collector: &Collector, service: &'static str) -> Tracer {
    Tracer::start(&TelemetryArgs::tracing_to(&collector.url()).unwrap(), service).unwrap()
}

fn task() -> TaskUid {
    TaskUid::from("3b8ac5f6-221f-4ac3-9dce-522de22f6f1b")
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_of_three_processes_make_one_tree() {
    let collector = collector().await;
    let [controller, supervisor, gateway] =
        ["controller", "supervisor", "gateway"].map(|service| tracer(&collector, service));
    let (task, run) = (task(), RunUid::from("22b00551-0000-4000-8000-000000000001"));
    let usage = Usage { input_tokens: 7, ..Usage::default() };
    gateway.tell(
        Told::call(&task, &run, ("model call", 1), (at(3), at(4)))
            .with("gen_ai.request.model", "m\u{1b}[2J")
            .with_usage(&usage),
    );
    supervisor.tell(Told::part(&task, &run, "start", (at(2), at(1))));
    controller.tell(Told::run(&task, &run, "plan", (at(1), at(5))).failed(Some("TimedOut")));
    controller.tell(Told::task(&task, (at(0), at(6))).failed(None));
    let trace = "3b8ac5f6221f4ac39dce522de22f6f1b";
    let spans = collector.wait_for(trace, LIMIT, |spans| spans.len() == 4).await.unwrap();

    let named = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    let (root, step) = (named("task"), named("step plan"));
    assert_eq!((root.parent.as_str(), root.service.as_str()), ("", "controller"));
    assert_eq!((&step.parent, step.error.as_deref()), (&root.id, Some("TimedOut")));
    assert_eq!(root.error, None);
    let (part, call) = (named("start"), named("model call"));
    assert_eq!((&part.parent, part.service.as_str()), (&step.id, "supervisor"));
    assert_eq!((&call.parent, call.service.as_str()), (&step.id, "gateway"));
    assert!(part.end >= part.start, "clocks of two nodes may differ");
    assert_eq!((call.start, call.end), (3_000_000_000, 4_000_000_000));
    assert_eq!(call.attributes["gen_ai.usage.input_tokens"], "7");
    assert!(!call.attributes["gen_ai.request.model"].contains('\u{1b}'));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_sent_before_the_end() {
    let collector = collector().await;
    let tracer = tracer(&collector, "controller");
    tracer.tell(Told::task(&task(), (at(0), at(1))));
    tracer.stop().await;
    // On a busy machine the last export may outlast the wait for it; it is sent all the same.
    let trace = ids::trace_of(&task()).to_string();
    assert!(collector.wait_for(&trace, LIMIT, |spans| spans.len() == 1).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_traced_whole_or_not_at_all() {
    let collector = collector().await;
    let half = TelemetryArgs {
        trace_ratio: "0.5".parse().unwrap(),
        ..TelemetryArgs::tracing_to(&collector.url()).unwrap()
    };
    let start = |service| Tracer::start(&half, service).unwrap();
    let tracers = ["controller", "gateway"].map(start);
    for number in 0..64_u128 {
        // Uids that are spread as random ones are.
        let hash = crate::domain::names::sha256_hex(&number.to_be_bytes());
        let (task, run) = (TaskUid::from(&hash[..32]), RunUid::from(hash.as_str()));
        tracers[0].tell(Told::task(&task, (at(0), at(1))));
        tracers[1].tell(Told::call(&task, &run, ("model call", 1), (at(0), at(1))));
    }
    for tracer in tracers {
        tracer.stop().await;
    }
    let of = |service: &str| {
        let spans = collector.spans().into_iter().filter(|span| span.service == service);
        spans.map(|span| span.trace).collect::<std::collections::BTreeSet<_>>()
    };
    let both = async {
        while of("controller").is_empty() || of("controller").len() != of("gateway").len() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, both).await.expect("as many of both");
    assert_eq!(of("controller"), of("gateway"));
    assert!((10..55).contains(&of("controller").len()), "{}", of("controller").len());
}

#[tokio::test]
async fn without_an_endpoint_nothing_is_told_and_nothing_waits() {
    let tracer = Tracer::start(&TelemetryArgs::tracing_to("").unwrap(), "controller").unwrap();
    tracer.tell(Told::task(&task(), (at(0), at(1))));
    tracer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_holds_nobody_up() {
    // Nothing listens on the discard port of this machine.
    let tracer =
        Tracer::start(&TelemetryArgs::tracing_to("http://127.0.0.1:9").unwrap(), "x").unwrap();
    for _ in 0..2 * QUEUE_MAX {
        tracer.tell(Told::task(&task(), (at(0), at(1))));
    }
    tokio::time::timeout(LIMIT, tracer.stop()).await.expect("the end waits for seconds at most");
}
