//! What the gateway says to the supervisor: it parses hostile bytes, and may have been taken over by them.

use agent_operator::{
    attempt::GateRequest,
    domain::{Attempt, RunKey, RunUid, Usage, report::Refusal},
};
use agent_operator_doubles::fuzz::fuzz;
use agent_operator_supervisor::link::{
    contract::{DurableEvent, FromGateway},
    frame::JsonLines,
};
use bytes::BytesMut;
use tokio_util::codec::{Decoder as _, Encoder as _};

fn corpus() -> Vec<Vec<u8>> {
    let run = RunKey { uid: RunUid::from("u"), attempt: Attempt(1) };
    let refusal = Refusal { kind: "egress".into(), target: "x.example:443".into(), count: 3 };
    let event = DurableEvent::AtGate(GateRequest::default());
    let messages = [
        FromGateway::Durable { id: 7, run: run.clone(), event },
        FromGateway::Counters { run, usage: Usage::default(), refusals: vec![refusal] },
    ];
    let mut both = BytesMut::new();
    for message in messages {
        JsonLines::<FromGateway>::new().encode(message, &mut both).unwrap();
    }
    let first = both.split_off(both.iter().position(|byte| *byte == b'\n').unwrap() + 1);
    vec![both.to_vec(), first.to_vec(), [&both[..], &first[..]].concat()]
}

/// What is understood of bytes that come in pieces; an error ends the link.
fn understood(bytes: &[u8], piece: usize) -> Vec<String> {
    let (mut codec, mut buffer) = (JsonLines::<FromGateway>::new(), BytesMut::new());
    let mut found = Vec::new();
    for chunk in bytes.chunks(piece) {
        buffer.extend_from_slice(chunk);
        loop {
            match codec.decode(&mut buffer) {
                Ok(Some(message)) => found.push(format!("{message:?}")),
                Ok(None) => break,
                Err(error) => {
                    found.push(error.to_string());
                    return found;
                }
            }
        }
    }
    found
}

#[test]
fn frames_of_a_gateway_are_understood_alike_in_whatever_pieces_they_come() {
    let mut messages = 0;
    fuzz(&corpus(), |bytes| {
        let whole = understood(bytes, bytes.len().max(1));
        for piece in [1, 11] {
            assert_eq!(understood(bytes, piece), whole, "in pieces of {piece}");
        }
        messages += whole.len();
    });
    assert!(messages > 4);
}
