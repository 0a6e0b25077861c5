//! A gateway that is killed while it works: what it held in memory comes again from its supervisor,
//! and a client that repeats its call gets on with the tokens that it has.

use std::time::Duration;

use agent_operator::{
    attempt::{GateAnswer, Redeemed},
    domain::StepName,
};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::rig::{
    Options, POD, PROMPT, Rig, Supervisor, bearer, credentials, eventually, grant, key,
};
use crate::link::contract::{FromGateway, Grant, ToGateway};

/// What the supervisor's ledger knows of the attempt `a` by now.
async fn recorded(supervisor: &Supervisor) -> Grant {
    Grant {
        redemption: Some(supervisor.redemption().await),
        open_remaining_millis: Some(50_000),
        ..grant("a", StepName::Implement, None)
    }
}

/// Starts the gateway again and registers the attempt, as the supervisor does at each link.
pub(super) async fn come_back(rig: &mut Rig, recorded: Grant) -> Supervisor {
    rig.restart().await;
    let supervisor = rig.connect().await;
    supervisor.say(ToGateway::Register(Box::new(recorded))).await;
    supervisor.say(ToGateway::Synced).await;
    rig.settled().await;
    supervisor
}

async fn asked_for_credentials(supervisor: &Supervisor) {
    supervisor
        .wait(|message| matches!(message, FromGateway::NeedCredentials { .. }).then_some(()))
        .await;
}

async fn running_attempt() -> (Rig, Supervisor, Redeemed) {
    let rig = Rig::start_with(Options { killable: true, ..Options::default() }).await;
    let supervisor = rig.with_attempt(grant("a", StepName::Implement, None)).await;
    let tokens = rig.running(&supervisor, "a").await;
    (rig, supervisor, tokens)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_call_that_the_kill_cut_off_is_repeated_with_the_same_token() {
    let (mut rig, supervisor, tokens) = running_attempt().await;
    let never_ends = rig.model.answer(200, "text/event-stream");
    never_ends.send("event: message_start\n\n".into()).await.unwrap();
    let mut cut_off = rig.dial(POD).await;
    let request = format!(
        "POST /llm/v1/messages HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{PROMPT}",
        tokens.agent_token,
        PROMPT.len()
    );
    cut_off.write_all(request.as_bytes()).await.unwrap();
    eventually(async || (rig.model.seen.lock().unwrap().len() == 1).then_some(())).await;
    let recorded = recorded(&supervisor).await;
    let next = come_back(&mut rig, recorded).await;
    let mut rest = Vec::new();
    // An end or a reset, as the kernel likes; but never a whole answer.
    let _ = tokio::time::timeout(Duration::from_secs(10), cut_off.read_to_end(&mut rest))
        .await
        .expect("the killed gateway holds no connection");
    assert!(!rest.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&rest));

    asked_for_credentials(&next).await;
    let answer = rig.model_call(&tokens).await;
    assert_eq!(answer.status, 503, "not failed, only not yet: {answer:?}");
    assert!(answer.headers.contains_key("retry-after"));
    let run = key("a");
    next.say(ToGateway::Credentials { run, credentials: credentials() }).await;
    rig.model.answer_json(5).await;
    let answer = eventually(async || {
        let answer = rig.model_call(&tokens).await;
        (answer.status != 503).then_some(answer)
    })
    .await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn until_its_supervisor_has_spoken_a_restarted_gateway_refuses_nobody_for_good() {
    let (mut rig, supervisor, tokens) = running_attempt().await;
    let recorded = recorded(&supervisor).await;
    rig.restart().await;
    let runner = bearer(&tokens.runner_token);
    let early = rig.call(POD, "GET", "/v1/step", &runner, "").await;
    assert_eq!(early.status, 503, "{early:?}");
    let next = rig.connect().await;
    next.say(ToGateway::Register(Box::new(recorded))).await;
    next.say(ToGateway::Synced).await;
    let gate = eventually(async || {
        let answer = rig.call(POD, "POST", "/v1/gate", &runner, "{\"sandbox\":{}}").await;
        (answer.status != 503).then_some(answer)
    })
    .await;
    let GateAnswer::Open { remaining_millis } = gate.json() else { panic!("{gate:?}") };
    assert!(remaining_millis <= 50_000, "the clock went on: {remaining_millis}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_that_lost_its_record_is_told_what_the_gateway_remembers() {
    let (rig, supervisor, tokens) = running_attempt().await;
    let redemption = supervisor.redemption().await;
    drop(supervisor);
    let forgetful = rig.connect().await;
    let live = forgetful
        .wait(|message| match message {
            FromGateway::Hello { live, .. } => Some(live.clone()),
            _ => None,
        })
        .await;
    assert_eq!(live, [key("a")]);
    forgetful.say(ToGateway::Describe { run: key("a") }).await;
    forgetful.say(ToGateway::Synced).await;
    let survivor = forgetful
        .wait(|message| match message {
            FromGateway::Survivor(survivor) => Some(survivor.clone()),
            _ => None,
        })
        .await;
    assert_eq!(survivor.redemption, Some(redemption));
    assert!((1..=60_000).contains(&survivor.open_remaining_millis.unwrap()));
    // Kept, not dropped by Synced: its tokens still work.
    let runner = bearer(&tokens.runner_token);
    let gate = rig.call(POD, "POST", "/v1/gate", &runner, "{\"sandbox\":{}}").await;
    assert!(gate.text().contains("\"open\""), "{gate:?}");
}
