//! Many followers, stalled ones, and streams that the store has lost.

use agent_operator::{domain::stream::Channel, proto::v1};
use tokio::task::JoinSet;
use tonic::{Code, Streaming};
use v1::{chunk::Payload, follow_request::Target, step_event::Event};

use super::support::{Port, soon, with_token};
use crate::{
    catalog::{RunView, TaskView},
    clock,
    streams::StreamKey,
};

const LINES: usize = 200;

fn key(channel: Channel) -> StreamKey {
    StreamKey { run: "uid-r".into(), channel }
}

fn text(lines: usize) -> String {
    let lines: Vec<_> = (0..lines).map(|n| format!("line {n}\n")).collect();
    lines.concat()
}

/// A finished task with one run.
fn finish(port: &Port, log: &str) {
    let run = RunView { phase: "Succeeded".into(), ..RunView::sample("r", "t", 1) };
    port.catalog.put_run(RunView { log_bytes: Some(log.len() as u64), ..run });
    port.catalog.put_task(TaskView {
        phase: "Complete".into(),
        finished: true,
        runs: vec!["r".into()],
        ..TaskView::sample("t")
    });
}

fn fill(port: &Port, log: &str) {
    let mut at = 0;
    for piece in log.as_bytes().chunks(100_000) {
        at = port.store.append(&key(Channel::Log), at, piece, clock::instant()).unwrap().offset;
    }
    for (channel, end) in [(Channel::Log, at), (Channel::Events, 0)] {
        port.store.end(&key(channel), end, clock::instant()).unwrap();
    }
}

fn request() -> v1::FollowRequest {
    v1::FollowRequest {
        namespace: "ns".into(),
        target: Some(Target::Task("t".into())),
        follow: true,
        ..Default::default()
    }
}

/// Log lines and gaps up to the end of the call.
async fn read(mut events: Streaming<v1::StepEvent>) -> (usize, usize) {
    let (mut lines, mut gaps) = (0, 0);
    while let Some(event) = soon(events.message()).await.unwrap() {
        match event.event.unwrap() {
            Event::Log(line) => {
                assert_eq!(line.text, format!("line {lines}"));
                lines += 1;
            }
            Event::Gap(_) => gaps += 1,
            _ => {}
        }
    }
    (lines, gaps)
}

#[tokio::test]
async fn a_thousand_followers_beside_stalled_ones_all_get_every_line_once() {
    const FOLLOWERS: usize = 1000;
    const STALLED: usize = 20;
    const PER_CONNECTION: usize = 100;
    let port = Port::start().await;
    let log = text(LINES);
    fill(&port, &log);
    finish(&port, &log);
    let mut stalled = Vec::new();
    let mut steps = port.steps().await;
    for _ in 0..STALLED {
        let opened = soon(steps.follow(with_token(request(), "user:reader"))).await.unwrap();
        stalled.push(opened.into_inner());
    }
    let mut reading = JoinSet::new();
    for _ in 0..FOLLOWERS / PER_CONNECTION {
        let mut steps = port.steps().await;
        for _ in 0..PER_CONNECTION {
            let opened = soon(steps.follow(with_token(request(), "user:reader"))).await.unwrap();
            reading.spawn(read(opened.into_inner()));
        }
    }
    let read = reading.join_all().await;
    let (lines, gaps) = read.iter().fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    println!(
        "{FOLLOWERS} followers beside {STALLED} stalled ones: {} lines expected, {lines} told, {gaps} gaps",
        FOLLOWERS * LINES
    );
    assert_eq!((lines, gaps), (FOLLOWERS * LINES, 0));
}

#[tokio::test]
async fn a_right_that_was_withdrawn_ends_a_call_that_runs() {
    let port = Port::start().await;
    port.catalog.put_task(TaskView::sample("t"));
    let mut steps = port.steps().await;
    let opened = soon(steps.follow(with_token(request(), "user:reader"))).await.unwrap();
    let mut events = opened.into_inner();
    soon(events.message()).await.unwrap().expect("the task's phase");
    port.withdrawn.store(true, std::sync::atomic::Ordering::SeqCst);
    // Time stands still but for what this test lets pass.
    tokio::time::pause();
    let ended = loop {
        tokio::select! {
            message = events.message() => break message.unwrap_err(),
            () = tokio::time::sleep(std::time::Duration::from_secs(30)) => {}
        }
    };
    assert_eq!(ended.code(), Code::PermissionDenied);
}

/// Sends all of a stream to a controller that asks for it, as a node does.
#[tokio::test]
async fn what_the_store_lost_is_asked_of_the_node_again_and_the_follower_goes_on_from_its_cursor() {
    let port = Port::start().await;
    let log = text(LINES);
    finish(&port, &log);
    let mut node = port.uploads("node:n1").await.unwrap();
    let chunk = |channel: Channel, offset, payload| v1::Chunk {
        run: Some(v1::RunRef { namespace: "ns".into(), name: "r".into(), uid: "uid-r".into() }),
        attempt: 1,
        channel: v1::Channel::from(channel).into(),
        offset,
        payload: Some(payload),
    };
    // As if all had been acknowledged before: the node opens its streams and sends nothing.
    for channel in Channel::ALL {
        node.send.send(chunk(channel, 0, Payload::Open(v1::StreamOpen {}))).await.unwrap();
        soon(node.acks.message()).await.unwrap().unwrap();
    }
    port.store.sweep(&|_| false, std::time::Duration::ZERO, clock::instant());
    assert_eq!(port.store.position(&key(Channel::Log)), None, "the store has lost it");

    // The follower had half of it from the process before.
    let half = LINES / 2;
    let offset = text(half).len();
    let cursor = format!("1.uid-r.{offset}.0.Succeeded.Complete");
    let mut steps = port.steps().await;
    let request = v1::FollowRequest { cursor, ..request() };
    let opened = soon(steps.follow(with_token(request, "user:reader"))).await.unwrap();
    let sending = async {
        for _ in Channel::ALL {
            let ack = loop {
                let ack = soon(node.acks.message()).await.unwrap().unwrap();
                if ack.again {
                    break ack;
                }
            };
            assert_eq!(ack.offset, 0, "from the first byte");
            let channel = Channel::try_from(ack.channel).unwrap();
            let end = if channel == Channel::Log { log.len() as u64 } else { 0 };
            if channel == Channel::Log {
                let data = Payload::Data(log.clone().into_bytes());
                node.send.send(chunk(channel, 0, data)).await.unwrap();
            }
            node.send.send(chunk(channel, end, Payload::End(v1::StreamEnd {}))).await.unwrap();
        }
    };
    let reading = async {
        let mut events = opened.into_inner();
        let mut lines = Vec::new();
        while let Some(event) = soon(events.message()).await.unwrap() {
            match event.event.unwrap() {
                Event::Log(line) => lines.push(line.text),
                Event::Gap(gap) => panic!("a gap from {} to {}", gap.from, gap.to),
                _ => {}
            }
        }
        lines
    };
    let ((), lines) = tokio::join!(sending, reading);
    let expected: Vec<_> = (half..LINES).map(|n| format!("line {n}")).collect();
    assert_eq!(lines, expected, "each line behind the cursor, once");
}
