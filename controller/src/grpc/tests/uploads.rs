use agent_operator::{domain::stream::Channel, proto::v1};
use tonic::Code;
use v1::{chunk::Payload, supervisor_message::Message as Up};

use super::support::{Port, Upload, hello, soon};
use crate::{
    catalog::RunView,
    clock,
    fleet::NodeEvent,
    lease::Leader,
    streams::{Limits, Piece, StreamKey},
};

fn chunk(offset: u64, payload: Payload) -> v1::Chunk {
    v1::Chunk {
        run: Some(v1::RunRef { namespace: "ns".into(), name: "r".into(), uid: "uid-r".into() }),
        attempt: 1,
        channel: v1::Channel::Log.into(),
        offset,
        payload: Some(payload),
    }
}

fn data(offset: u64, text: &str) -> v1::Chunk {
    chunk(offset, Payload::Data(text.as_bytes().to_vec()))
}

impl Upload {
    async fn send(&self, chunk: v1::Chunk) {
        soon(self.send.send(chunk)).await.unwrap();
    }

    /// The acknowledgement at `offset`; earlier ones may have been joined.
    async fn acked(&mut self, offset: u64) -> v1::Ack {
        loop {
            let ack = soon(self.acks.message()).await.unwrap().expect("uploads have ended");
            if ack.offset >= offset {
                assert_eq!(ack.offset, offset);
                return ack;
            }
        }
    }

    async fn refusal(&mut self) -> Code {
        loop {
            if let Err(status) = soon(self.acks.message()).await {
                return status.code();
            }
        }
    }
}

async fn port() -> Port {
    let port = Port::start().await;
    port.catalog.put_run(RunView::sample("r", "t", 1));
    port
}

#[tokio::test]
async fn a_stream_goes_on_from_the_acknowledged_offset_with_its_gap() {
    let port = port().await;
    let mut first = port.uploads("node:n1").await.unwrap();
    first.send(chunk(0, Payload::Open(v1::StreamOpen {}))).await;
    first.acked(0).await;
    first.send(data(0, "hello ")).await;
    first.acked(6).await;
    drop(first);

    let mut second = port.uploads("node:n1").await.unwrap();
    second.send(chunk(0, Payload::Open(v1::StreamOpen {}))).await;
    assert!(!second.acked(6).await.complete);
    let gap = v1::Gap { from: 6, to: 9, reason: "Rotated".into() };
    second.send(chunk(6, Payload::Gap(gap))).await;
    second.acked(9).await;
    second.send(data(9, "world")).await;
    second.acked(14).await;
    second.send(chunk(14, Payload::End(v1::StreamEnd {}))).await;
    soon(async { while !second.acked(14).await.complete {} }).await;

    let key = StreamKey { run: "uid-r".into(), channel: Channel::Log };
    assert_eq!(port.store.read(&key, 0, 99).unwrap(), Piece::Data("hello ".into()));
    assert!(matches!(port.store.read(&key, 6, 99).unwrap(), Piece::Gap(gap) if gap.to == 9));
    assert_eq!(port.store.read(&key, 9, 99).unwrap(), Piece::Data("world".into()));
}

#[tokio::test]
async fn a_run_that_is_not_known_yet_is_waited_for() {
    let port = Port::start().await;
    let mut upload = port.uploads("node:n1").await.unwrap();
    upload.send(chunk(0, Payload::Open(v1::StreamOpen {}))).await;
    port.catalog.put_run(RunView::sample("r", "t", 1));
    upload.acked(0).await;
}

#[tokio::test]
async fn what_breaks_the_rules_ends_the_uploads_with_its_code() {
    let port = port().await;
    let open = || chunk(0, Payload::Open(v1::StreamOpen {}));
    let cases = [
        ("node:n2", vec![open()], Code::PermissionDenied),
        ("node:n1", vec![data(0, "x")], Code::FailedPrecondition),
        ("node:n1", vec![open(), data(5, "x")], Code::OutOfRange),
        ("node:n1", vec![v1::Chunk { payload: None, ..open() }], Code::InvalidArgument),
        ("node:n1", vec![v1::Chunk { channel: 9, ..open() }], Code::InvalidArgument),
        ("node:n1", vec![open(), data(0, &"x".repeat(300_000))], Code::InvalidArgument),
    ];
    for (token, chunks, code) in cases {
        let mut upload = port.uploads(token).await.unwrap();
        for chunk in chunks {
            upload.send(chunk).await;
        }
        assert_eq!(upload.refusal().await, code, "{token}");
    }
}

#[tokio::test]
async fn what_arrives_before_a_breach_of_the_rules_is_kept_in_its_order() {
    let port = port().await;
    let mut upload = port.uploads("node:n1").await.unwrap();
    upload.send(chunk(0, Payload::Open(v1::StreamOpen {}))).await;
    for (offset, text) in [(0, "one "), (4, "two "), (8, "three"), (99, "nowhere")] {
        upload.send(data(offset, text)).await;
    }
    assert_eq!(upload.refusal().await, Code::OutOfRange);
    let key = StreamKey { run: "uid-r".into(), channel: Channel::Log };
    assert_eq!(port.store.read(&key, 0, 99).unwrap(), Piece::Data("one two three".into()));
}

/// The chunk as one of another run.
fn of(uid: &str, mut chunk: v1::Chunk) -> v1::Chunk {
    chunk.run.as_mut().unwrap().uid = uid.into();
    chunk
}

#[tokio::test]
async fn a_stream_that_cannot_be_stored_holds_up_no_other_one_and_is_taken_once_it_can_be() {
    let port = port().await;
    port.catalog.put_run(RunView::sample("s", "t", 1));
    // A file stands where the folder of a run should be.
    let obstacle = port.folder.path().join("uid-r");
    std::fs::write(&obstacle, "").unwrap();
    let mut upload = port.uploads("node:n1").await.unwrap();
    upload.send(chunk(0, Payload::Open(v1::StreamOpen {}))).await;
    upload.send(of("uid-s", chunk(0, Payload::Open(v1::StreamOpen {})))).await;
    upload.send(data(0, "hello ")).await;
    upload.send(of("uid-s", data(0, "other"))).await;
    assert_eq!(upload.acked(5).await.run.unwrap().uid, "uid-s");
    let counted = "agent_operator_stream_failures_total{channel=\"log\"} 1";
    let text = port.metrics.render().unwrap();
    assert!(text.lines().any(|line| line == counted), "{text}");

    std::fs::remove_file(&obstacle).unwrap();
    // A follower misses it: it is asked for without the rest of the pause.
    port.store.demand().want(&"uid-r".into());
    let again = soon(upload.acks.message()).await.unwrap().unwrap();
    assert_eq!((again.run.unwrap().uid.as_str(), again.offset, again.again), ("uid-r", 0, true));
    // The node sent this before it was asked.
    upload.send(data(6, "late")).await;
    upload.send(data(0, "hello ")).await;
    upload.acked(6).await;
    upload.send(data(6, "again")).await;
    upload.acked(11).await;
    let key = StreamKey { run: "uid-r".into(), channel: Channel::Log };
    assert_eq!(port.store.read(&key, 0, 99).unwrap(), Piece::Data("hello again".into()));
}

#[tokio::test]
async fn an_old_stream_is_not_asked_for_again_when_the_store_is_crowded() {
    let port = Port::with(Limits { total_bytes: 8, stream_bytes: 8 }).await;
    let other = StreamKey { run: "other".into(), channel: Channel::Log };
    port.store.append(&other, 0, b"1234567", clock::instant()).unwrap();
    for (phase, complete) in [("Running", false), ("Failed", true)] {
        let name = format!("r-{phase}");
        port.catalog.put_run(RunView { phase: phase.into(), ..RunView::sample(&name, "t", 1) });
        let mut upload = port.uploads("node:n1").await.unwrap();
        let mut open = chunk(0, Payload::Open(v1::StreamOpen {}));
        open.run.as_mut().unwrap().uid = format!("uid-{name}");
        upload.send(open).await;
        assert_eq!(upload.acked(0).await.complete, complete, "{phase}");
    }
}

#[tokio::test]
async fn a_replica_that_does_not_lead_takes_no_uploads_because_nobody_follows_them_there() {
    let port = port().await;
    let mut before = port.uploads("node:n1").await.unwrap();
    before.send(chunk(0, Payload::Open(v1::StreamOpen {}))).await;
    before.acked(0).await;
    // Its term ran out, but nobody else is known to lead: what is open stays open.
    port.terms.send_replace(None);
    before.send(data(0, "hello ")).await;
    before.acked(6).await;
    let mut late = port.uploads("node:n1").await.unwrap();
    assert_eq!(late.refusal().await, Code::Unavailable);
    port.leader.send_replace(Some(Leader { address: None }));
    assert_eq!(before.refusal().await, Code::Unavailable);
}

#[tokio::test]
async fn a_node_whose_session_outlasts_the_term_may_open_its_uploads_again() {
    let mut port = port().await;
    let talk = port.session("node:n1").await.unwrap();
    talk.say(Up::Hello(hello("n1"))).await;
    assert!(matches!(port.event().await, NodeEvent::Connected { .. }));
    port.terms.send_replace(None);
    let mut uploads = port.uploads("node:n1").await.unwrap();
    uploads.send(chunk(0, Payload::Open(v1::StreamOpen {}))).await;
    uploads.acked(0).await;
}
