use agent_operator::{
    domain::stream::{Channel, Gap},
    proto::v1,
};
use tonic::{Code, Streaming};
use v1::{follow_request::Target, step_event::Event};

use super::support::{Port, soon, with_token};
use crate::{
    catalog::{RunView, TaskView},
    clock,
    streams::StreamKey,
};

/// Events as short lines; `cursor` beside each.
fn show(event: &v1::StepEvent) -> String {
    match event.event.as_ref().unwrap() {
        Event::Log(line) => {
            format!("{}: {}{}", event.run, line.text, if line.partial { "+" } else { "" })
        }
        Event::Agent(agent) => format!("{}* {} {}", event.run, agent.r#type, agent.text),
        Event::Phase(change) => {
            let name = if event.run.is_empty() { &event.task } else { &event.run };
            format!("{} {name} is {}", change.object, change.phase)
        }
        Event::Gap(gap) => format!("{}: gap {}-{} {}", event.run, gap.from, gap.to, gap.reason),
        Event::End(end) => format!("end {}", end.phase),
    }
}

fn request(follow: bool) -> v1::FollowRequest {
    v1::FollowRequest {
        namespace: "ns".into(),
        target: Some(Target::Task("t".into())),
        follow,
        ..Default::default()
    }
}

async fn open(port: &Port, request: v1::FollowRequest) -> Streaming<v1::StepEvent> {
    let mut steps = port.steps().await;
    soon(steps.follow(with_token(request, "user:reader"))).await.unwrap().into_inner()
}

async fn next(events: &mut Streaming<v1::StepEvent>) -> String {
    show(&soon(events.message()).await.unwrap().expect("the stream has ended"))
}

async fn all(port: &Port, request: v1::FollowRequest) -> Vec<v1::StepEvent> {
    let mut events = open(port, request).await;
    let mut seen = Vec::new();
    while let Some(event) = soon(events.message()).await.unwrap() {
        seen.push(event);
    }
    seen
}

async fn lines(port: &Port, request: v1::FollowRequest) -> Vec<String> {
    all(port, request).await.iter().map(show).collect()
}

fn log(run: &str) -> StreamKey {
    StreamKey { run: format!("uid-{run}").into(), channel: Channel::Log }
}

fn write(port: &Port, run: &str, channel: Channel, text: &str, end: bool) {
    let key = StreamKey { run: format!("uid-{run}").into(), channel };
    let at = port.store.position(&key).map_or(0, |position| position.offset);
    let position = port.store.append(&key, at, text.as_bytes(), clock::instant()).unwrap();
    if end {
        port.store.end(&key, position.offset, clock::instant()).unwrap();
    }
}

fn run(name: &str, phase: &str) -> RunView {
    RunView { phase: phase.into(), ..RunView::sample(name, "t", 1) }
}

fn task(phase: &str, runs: &[&str]) -> TaskView {
    TaskView {
        phase: phase.into(),
        finished: phase == "Complete",
        runs: runs.iter().map(|&name| name.to_owned()).collect(),
        ..TaskView::sample("t")
    }
}

const STATUS: &str =
    "{\"time\":\"2026-01-01T00:00:00Z\",\"type\":\"status\",\"text\":\"cloned\"}\n";

/// A task with two finished runs.
async fn finished() -> Port {
    let port = Port::start().await;
    for (name, log) in [("plan-1", "p1\np2\n"), ("impl-1", "i1\ni2\n")] {
        port.catalog.put_run(run(name, "Succeeded"));
        write(&port, name, Channel::Log, log, true);
        write(&port, name, Channel::Events, STATUS, true);
    }
    port.catalog.put_task(task("Complete", &["plan-1", "impl-1"]));
    port
}

const WHOLE: [&str; 10] = [
    "plan-1: p1",
    "plan-1: p2",
    "plan-1* status cloned",
    "run plan-1 is Succeeded",
    "impl-1: i1",
    "impl-1: i2",
    "impl-1* status cloned",
    "run impl-1 is Succeeded",
    "task t is Complete",
    "end Complete",
];

#[tokio::test]
async fn a_finished_task_is_told_from_the_start_to_the_end() {
    let port = finished().await;
    for follow in [true, false] {
        assert_eq!(lines(&port, request(follow)).await, WHOLE);
    }
}

#[tokio::test]
async fn every_cursor_gives_exactly_the_rest() {
    let port = finished().await;
    let whole = all(&port, request(true)).await;
    for (at, event) in whole.iter().enumerate() {
        let request = v1::FollowRequest { cursor: event.cursor.clone(), ..request(true) };
        let rest = lines(&port, request).await;
        // Behind the end there is nothing but the end again.
        let expected = if at + 1 < WHOLE.len() { &WHOLE[at + 1..] } else { &WHOLE[9..] };
        assert_eq!(rest, expected, "behind {}", show(event));
    }
}

#[tokio::test]
async fn lines_arrive_while_the_step_runs_and_across_runs_to_come() {
    let port = Port::start().await;
    port.catalog.put_task(task("Pending", &[]));
    let mut events = open(&port, request(true)).await;
    assert_eq!(next(&mut events).await, "task t is Pending");
    port.catalog.put_run(run("plan-1", "Pending"));
    assert_eq!(next(&mut events).await, "run plan-1 is Pending");
    port.catalog.put_task(task("Planning", &["plan-1"]));
    assert_eq!(next(&mut events).await, "task t is Planning");
    port.catalog.put_run(run("plan-1", "Running"));
    assert_eq!(next(&mut events).await, "run plan-1 is Running");
    write(&port, "plan-1", Channel::Log, "one\ntw", false);
    assert_eq!(next(&mut events).await, "plan-1: one");
    write(&port, "plan-1", Channel::Events, STATUS, true);
    assert_eq!(next(&mut events).await, "plan-1* status cloned");
    write(&port, "plan-1", Channel::Log, "o\n", true);
    assert_eq!(next(&mut events).await, "plan-1: two");
    port.catalog.put_run(run("plan-1", "Succeeded"));
    assert_eq!(next(&mut events).await, "run plan-1 is Succeeded");
    port.catalog.put_run(RunView { step_number: 2, ..run("impl-1", "Running") });
    assert_eq!(next(&mut events).await, "run impl-1 is Running");
    write(&port, "impl-1", Channel::Log, "", true);
    write(&port, "impl-1", Channel::Events, "", true);
    port.catalog.put_run(RunView { step_number: 2, ..run("impl-1", "Succeeded") });
    assert_eq!(next(&mut events).await, "run impl-1 is Succeeded");
    port.catalog.put_task(task("Complete", &["plan-1", "impl-1"]));
    assert_eq!(next(&mut events).await, "task t is Complete");
    assert_eq!(next(&mut events).await, "end Complete");
    assert!(soon(events.message()).await.unwrap().is_none());
}

/// The store packs a stream into blocks while it grows, and a block ends anywhere in a line.
#[tokio::test]
async fn a_long_log_that_is_followed_while_it_grows_comes_line_by_line_without_a_pause() {
    const ROWS: usize = 2000;
    let port = Port::start().await;
    port.catalog.put_run(run("plan-1", "Running"));
    port.catalog.put_task(task("Planning", &["plan-1"]));
    let mut events = open(&port, request(true)).await;
    let rows: Vec<_> = (0..ROWS).map(|row| format!("row {row} {:1000}\n", "x")).collect();
    let rows = rows.concat();
    let mut told = 0;
    for piece in rows.as_bytes().chunks(200_001) {
        write(&port, "plan-1", Channel::Log, std::str::from_utf8(piece).unwrap(), false);
        // Each line comes while the run goes on, before anything is written behind it.
        let until = port.store.position(&log("plan-1")).unwrap().offset;
        let whole = rows[..usize::try_from(until).unwrap()].matches('\n').count();
        while told < whole {
            let line = next(&mut events).await;
            if line.starts_with("plan-1: ") {
                assert!(line.starts_with(&format!("plan-1: row {told} ")) && !line.ends_with('+'));
                told += 1;
            }
        }
    }
    assert_eq!(told, ROWS);
}

/// As with a volume: the controller's pod is new, the node is gone, the cache is there.
#[tokio::test]
async fn a_finished_log_outlives_controller_and_node_on_a_volume() {
    let before = finished().await;
    let volume = before.stop_and_keep_the_store().await;
    let port = Port::on(volume).await;
    port.catalog.put_run(run("plan-1", "Succeeded"));
    port.catalog.put_run(run("impl-1", "Succeeded"));
    port.catalog.put_task(task("Complete", &["plan-1", "impl-1"]));
    for follow in [true, false] {
        assert_eq!(lines(&port, request(follow)).await, WHOLE);
    }
}

/// Without a volume it is gone with the node, and said to be.
#[tokio::test]
async fn without_a_volume_a_log_whose_node_is_gone_is_a_gap_of_its_size() {
    let port = Port::start().await;
    port.catalog.put_run(RunView { log_bytes: Some(6), ..run("plan-1", "Succeeded") });
    port.catalog.put_task(task("Complete", &["plan-1"]));
    let expected = [
        "plan-1: gap 0-6 NotRetained",
        "run plan-1 is Succeeded",
        "task t is Complete",
        "end Complete",
    ];
    assert_eq!(lines(&port, request(false)).await, expected);
}

#[tokio::test]
async fn a_tail_counts_log_lines_back_across_runs() {
    let port = finished().await;
    for (count, expected) in [(0, &WHOLE[7..]), (1, &WHOLE[5..]), (9, &WHOLE[..])] {
        let told = lines(&port, v1::FollowRequest { tail: Some(count), ..request(true) }).await;
        let logs = |lines: &[&str]| {
            lines.iter().filter(|line| line.contains(": ")).map(|line| (*line).to_owned()).collect()
        };
        let expected: Vec<String> = logs(expected);
        let told: Vec<&str> = told.iter().map(String::as_str).collect();
        assert_eq!(logs(&told), expected, "{count}");
    }
    let three = lines(&port, v1::FollowRequest { tail: Some(3), ..request(true) }).await;
    assert_eq!(three[0], "plan-1: p2");
}

#[tokio::test]
async fn one_run_alone_ends_with_its_own_phase() {
    let port = finished().await;
    let target = Some(Target::Run("plan-1".into()));
    let told = lines(&port, v1::FollowRequest { target, ..request(true) }).await;
    assert_eq!(told[..4], WHOLE[..4]);
    assert_eq!(told[4..], ["end Succeeded"]);
}

#[tokio::test]
async fn lost_bytes_are_told_as_gaps() {
    let port = Port::start().await;
    let key = StreamKey { run: "uid-plan-1".into(), channel: Channel::Log };
    write(&port, "plan-1", Channel::Log, "a\n", false);
    let gap = Gap { from: 2, to: 5, reason: "Rotated".into() };
    port.store.gap(&key, &gap, clock::instant()).unwrap();
    write(&port, "plan-1", Channel::Log, "b\n", true);
    port.catalog.put_run(RunView { log_bytes: Some(7), ..run("plan-1", "Failed") });
    port.catalog.put_run(RunView { log_bytes: Some(9), ..run("plan-2", "Failed") });
    port.catalog.put_task(task("Complete", &["plan-1", "plan-2"]));
    let told = lines(&port, request(false)).await;
    let expected = [
        "plan-1: a",
        "plan-1: gap 2-5 Rotated",
        "plan-1: b",
        "run plan-1 is Failed",
        "plan-2: gap 0-9 NotRetained",
        "run plan-2 is Failed",
        "task t is Complete",
        "end Complete",
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn without_follow_the_present_is_told_with_the_open_line_and_no_end() {
    let port = Port::start().await;
    port.catalog.put_task(task("Planning", &["plan-1"]));
    port.catalog.put_run(run("plan-1", "Running"));
    write(&port, "plan-1", Channel::Log, "one\ntw", false);
    let whole = all(&port, request(false)).await;
    let told: Vec<_> = whole.iter().map(show).collect();
    let expected = ["task t is Planning", "run plan-1 is Running", "plan-1: one", "plan-1: tw+"];
    assert_eq!(told, expected);
    write(&port, "plan-1", Channel::Log, "o\n", false);
    let cursor = whole.last().unwrap().cursor.clone();
    assert_eq!(lines(&port, v1::FollowRequest { cursor, ..request(false) }).await, ["plan-1: o"]);
}

#[tokio::test]
async fn a_follower_that_does_not_read_holds_up_no_other() {
    let port = Port::start().await;
    port.catalog.put_task(task("Complete", &["plan-1"]));
    port.catalog.put_run(run("plan-1", "Succeeded"));
    let line = format!("{}\n", "x".repeat(1000));
    for _ in 0..40 {
        write(&port, "plan-1", Channel::Log, &line.repeat(200), false);
    }
    write(&port, "plan-1", Channel::Log, "last\n", true);
    write(&port, "plan-1", Channel::Events, "", true);
    let mut slow = open(&port, request(true)).await;
    assert!(next(&mut slow).await.starts_with("plan-1: x"));
    let told = lines(&port, request(true)).await;
    assert_eq!(told.len(), 40 * 200 + 4);
    // And the slow one still gets everything.
    let mut rest = 1;
    while soon(slow.message()).await.unwrap().is_some() {
        rest += 1;
    }
    assert_eq!(rest, told.len());
}

#[tokio::test]
async fn what_cannot_be_followed_is_refused_with_its_code() {
    let port = finished().await;
    let ask = |change: fn(&mut v1::FollowRequest)| {
        let mut wanted = request(true);
        change(&mut wanted);
        wanted
    };
    let cases = [
        (ask(|r| r.target = None), Code::InvalidArgument),
        (ask(|r| r.target = Some(Target::Task("x".into()))), Code::NotFound),
        (ask(|r| r.target = Some(Target::Run("x".into()))), Code::NotFound),
        (ask(|r| r.cursor = "nonsense".into()), Code::InvalidArgument),
        (ask(|r| r.cursor = "1.uid-gone.0.0..".into()), Code::OutOfRange),
        (
            ask(|r| {
                r.cursor = "1..0.0..".into();
                r.tail = Some(1);
            }),
            Code::InvalidArgument,
        ),
    ];
    let mut steps = port.steps().await;
    for (wanted, code) in cases {
        let status = steps.follow(with_token(wanted, "user:reader")).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
    }
}

#[tokio::test]
async fn records_of_a_newer_runner_are_shown_under_their_own_type() {
    let port = Port::start().await;
    port.catalog.put_run(run("plan-1", "Failed"));
    port.catalog.put_task(task("Complete", &["plan-1"]));
    write(&port, "plan-1", Channel::Events, "{\"type\":\"thought\"}\nnot json\n", true);
    let told = lines(&port, request(false)).await;
    assert_eq!(told[..2], ["plan-1* thought {\"type\":\"thought\"}", "plan-1* malformed not json"]);
}

#[tokio::test]
async fn a_task_that_was_applied_just_now_is_waited_for() {
    let port = Port::start().await;
    let mut steps = port.steps().await;
    let (follow, ()) =
        tokio::join!(steps.follow(with_token(request(true), "user:reader")), async {
            tokio::task::yield_now().await;
            port.catalog.put_task(task("Pending", &[]));
        });
    assert_eq!(next(&mut follow.unwrap().into_inner()).await, "task t is Pending");
}
