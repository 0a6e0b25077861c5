//! One attempt that floods the gateway. By counts, not by the clock: what the others ask is answered,
//! every time.

use agent_operator::domain::StepName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::rig::{OTHER_POD, Options, POD, PROMPT, Rig, bearer, credentials, grant, key};
use crate::link::contract::ToGateway;

/// A rig with the attempt `a` of a flooding pod and `b` of another one, both running.
async fn two_attempts(limits: serde_json::Value) -> (Rig, super::rig::Supervisor, [String; 3]) {
    let rig = Rig::start_with(Options { limits, ..Options::default() }).await;
    let supervisor = rig.with_attempt(grant("a", StepName::Implement, None)).await;
    supervisor.say(ToGateway::Register(Box::new(grant("b", StepName::Implement, None)))).await;
    let run = key("b");
    supervisor.say(ToGateway::Credentials { run, credentials: credentials() }).await;
    let flooding = rig.running(&supervisor, "a").await;
    let other = super::rig::eventually(async || {
        let answer = rig.try_redeem(OTHER_POD, "b", super::rig::NONCE).await;
        (answer.status == 200).then(|| answer.json::<agent_operator::attempt::Redeemed>())
    })
    .await;
    supervisor.open_gate("b", OTHER_POD).await;
    let runner = bearer(&other.runner_token);
    let gate = rig.call(OTHER_POD, "POST", "/v1/gate", &runner, "{\"sandbox\":{}}").await;
    assert!(gate.text().contains("\"open\""), "{gate:?}");
    (rig, supervisor, [flooding.agent_token, flooding.runner_token, other.agent_token])
}

#[tokio::test]
async fn requests_of_a_flooding_attempt_are_cut_off_and_those_of_another_are_not() {
    let limits = serde_json::json!({"requestsPerSecond": 20});
    let (rig, supervisor, [agent, runner, other]) = two_attempts(limits).await;
    // With its own token, with a wrong one, and with nonsense: all of it counts.
    let (mut refused, mut round) = (0, 0);
    while refused < 10 {
        round += 1;
        assert!(round < 1000, "{refused} of {round} were refused");
        let (path, headers) = match round % 3 {
            0 => ("/llm/v1/nothing", bearer(&agent)),
            1 => ("/llm/v1/messages", bearer("a guess")),
            _ => ("/nowhere", vec![]),
        };
        let answer = rig.call(POD, "POST", path, &headers, "").await;
        refused += u32::from(answer.status == 429);
    }
    supervisor.refusal("limit", "requests").await;
    for _ in 0..10 {
        rig.model.answer_json(1).await;
        let headers = bearer(&other);
        let answer = rig.call(OTHER_POD, "POST", "/llm/v1/messages", &headers, PROMPT).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    // Its own runner may still report.
    let body = r#"{"first":0,"records":[]}"#;
    let reported = rig.call(POD, "POST", "/v1/events", &bearer(&runner), body).await;
    assert_eq!(reported.status, 200, "{reported:?}");
}

#[tokio::test]
async fn connections_and_model_calls_of_a_flooding_attempt_leave_those_of_another() {
    let limits = serde_json::json!({"connections": 12, "connectionsPerPod": 8, "modelCalls": 2});
    let (rig, supervisor, [agent, _, other]) = two_attempts(limits).await;
    // Calls that are never answered hold every slot of the attempt.
    let held: Vec<_> = (0..2).map(|_| rig.model.answer(200, "application/json")).collect();
    let call = format!(
        "POST /llm/v1/messages HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {agent}\r\nContent-Length: {}\r\n\r\n{PROMPT}",
        PROMPT.len()
    );
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = rig.dial(POD).await;
        stream.write_all(call.as_bytes()).await.unwrap();
        open.push(stream);
    }
    let calls = || rig.model.seen.lock().unwrap().len();
    super::rig::eventually(async || (calls() == 2).then_some(())).await;
    let third = rig.call(POD, "POST", "/llm/v1/messages", &bearer(&agent), PROMPT).await;
    assert_eq!(third.status, 429);
    supervisor.refusal("limit", "model calls").await;
    // Connections that say nothing, far more than there may be.
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(rig.dial(POD).await);
    }
    supervisor.refusal("limit", "connections").await;
    rig.model.answer_json(1).await;
    let answer = rig.call(OTHER_POD, "POST", "/llm/v1/messages", &bearer(&other), PROMPT).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    drop((held, open, silent));
}

#[tokio::test]
async fn large_bodies_of_one_attempt_are_bounded_together_before_they_are_whole() {
    let limits = serde_json::json!({"modelBufferBytes": 100_000});
    let (rig, supervisor, [agent, _, other]) = two_attempts(limits).await;
    let head = format!(
        "POST /llm/v1/messages HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {agent}\r\nContent-Length: 80000\r\n\r\n"
    );
    let mut first = rig.dial(POD).await;
    first.write_all(head.as_bytes()).await.unwrap();
    first.write_all(&vec![b' '; 79_000]).await.unwrap();
    // Whichever of the two comes to the limit is refused; the other one waits for its end.
    let mut second = rig.dial(POD).await;
    second.write_all(head.as_bytes()).await.unwrap();
    second.write_all(&vec![b' '; 79_000]).await.unwrap();
    supervisor.refusal("limit", "model request bytes at once").await;
    let (mut one, mut two) = ([0; 12], [0; 12]);
    let status = tokio::select! {
        read = first.read_exact(&mut one) => read.map(|_| one),
        read = second.read_exact(&mut two) => read.map(|_| two),
    };
    let status = status.unwrap();
    assert_eq!(&status, b"HTTP/1.1 429");
    rig.model.answer_json(1).await;
    let answer = rig.call(OTHER_POD, "POST", "/llm/v1/messages", &bearer(&other), PROMPT).await;
    assert_eq!(answer.status, 200);
}
