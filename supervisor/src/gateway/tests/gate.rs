//! The start gate and the runner's probe: what the runner is asked and says, and what opens the gate.

use std::net::SocketAddr;

use agent_operator::{
    attempt::{GateAnswer, GateRequest, ProbeOrder, ProbeReport, Redeemed, StopOrder},
    domain::{Reason, StepName},
};

use super::rig::{POD, Rig, Supervisor, bearer, grant, key, to_json};
use crate::link::contract::{DurableEvent, FromGateway, ToGateway};

/// A port that listens on the node: the positive control.
const CANARY: &str = "10.244.0.3:8081";
/// What a sandbox must not reach besides.
const API_SERVER: &str = "10.96.0.1:443";

fn addresses(of: &[&str]) -> Vec<SocketAddr> {
    of.iter().map(|address| address.parse().unwrap()).collect()
}

fn order() -> ProbeOrder {
    ProbeOrder { targets: addresses(&[CANARY, API_SERVER]), patience_millis: 0 }
}

/// What the runner says at the gate, with the result of its probe if it has one.
fn said(probe: Option<(&[&str], &[&str])>) -> GateRequest {
    let probe = probe.map(|(tried, reached)| ProbeReport {
        tried: addresses(tried),
        reached: addresses(reached),
    });
    GateRequest { canary_before: Some(true), probe, ..GateRequest::default() }
}

async fn ask(rig: &Rig, tokens: &Redeemed, request: &GateRequest) -> GateAnswer {
    let runner = bearer(&tokens.runner_token);
    let answer = rig.call(POD, "POST", "/v1/gate", &runner, &to_json(request)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// Waits until the supervisor has heard this from the runner.
async fn heard(supervisor: &Supervisor, request: &GateRequest) {
    supervisor
        .wait(|message| match message {
            FromGateway::Durable { event: DurableEvent::AtGate(heard), .. } => {
                (heard == request).then_some(())
            }
            _ => None,
        })
        .await;
}

/// An attempt whose runner stands at the gate and has been asked to probe.
async fn asked_to_probe() -> (Rig, Supervisor, Redeemed) {
    let rig = Rig::start().await;
    let supervisor = rig.with_attempt(grant("a", StepName::Plan, None)).await;
    let tokens = rig.redeem("a").await;
    let first = said(None);
    let mut waiting = Box::pin(ask(&rig, &tokens, &first));
    tokio::select! {
        answer = &mut waiting => panic!("nobody has said anything yet: {answer:?}"),
        () = heard(&supervisor, &first) => {}
    }
    supervisor.say(ToGateway::Probe { run: key("a"), order: order() }).await;
    assert_eq!(waiting.await, GateAnswer::Probe(order()), "the canary and all other targets");
    (rig, supervisor, tokens)
}

/// The runner's words reach the supervisor, and the gate is closed until that has answered.
async fn closed_until(
    rig: &Rig,
    supervisor: &Supervisor,
    tokens: &Redeemed,
    request: &GateRequest,
    word: ToGateway,
) -> GateAnswer {
    let mut waiting = Box::pin(ask(rig, tokens, request));
    tokio::select! {
        answer = &mut waiting => panic!("the gate has moved by the runner's word: {answer:?}"),
        () = heard(supervisor, request) => {}
    }
    assert_eq!(rig.model_call(tokens).await.status, 403, "nothing is open before the gate");
    supervisor.say(word).await;
    waiting.await
}

#[tokio::test]
async fn a_probe_that_reached_nothing_opens_the_gate_by_the_supervisors_word_alone() {
    let (rig, supervisor, tokens) = asked_to_probe().await;
    let nothing = said(Some((&[CANARY, API_SERVER], &[])));
    let open = ToGateway::OpenGate { run: key("a"), pod_ip: POD, remaining_millis: 60_000 };
    let answer = closed_until(&rig, &supervisor, &tokens, &nothing, open).await;
    assert!(matches!(answer, GateAnswer::Open { .. }), "{answer:?}");
}

#[tokio::test]
async fn a_probe_that_reached_the_canary_is_told_as_it_is_and_the_refusal_reaches_the_runner() {
    let (rig, supervisor, tokens) = asked_to_probe().await;
    let reached = said(Some((&[CANARY, API_SERVER], &[CANARY])));
    let order = StopOrder {
        reason: Reason::Unstarted,
        message: "the pod reaches the canary".to_owned(),
        grace_millis: 1000,
    };
    let stop = ToGateway::Stop { run: key("a"), order: order.clone() };
    let answer = closed_until(&rig, &supervisor, &tokens, &reached, stop).await;
    assert_eq!(answer, GateAnswer::Stop(order));
    let late = ToGateway::OpenGate { run: key("a"), pod_ip: POD, remaining_millis: 60_000 };
    supervisor.say(late).await;
    let answer = ask(&rig, &tokens, &reached).await;
    assert!(matches!(answer, GateAnswer::Stop(_)), "what was refused stays so: {answer:?}");
}

#[tokio::test]
async fn a_report_that_leaves_out_a_target_is_none_and_the_runner_is_asked_again() {
    let (rig, supervisor, tokens) = asked_to_probe().await;
    for tried in [&[][..], &[CANARY], &[API_SERVER], &["10.0.0.1:1", CANARY]] {
        let answer = ask(&rig, &tokens, &said(Some((tried, &[])))).await;
        assert_eq!(answer, GateAnswer::Probe(order()), "{tried:?}");
    }
    let probed = supervisor.messages.borrow().iter().any(|message| {
        matches!(message, FromGateway::Durable { event: DurableEvent::AtGate(heard), .. }
            if heard.probe.is_some())
    });
    assert!(!probed, "the supervisor never hears of a probe that proves nothing");
}

#[tokio::test]
async fn a_report_that_nobody_asked_for_is_none() {
    let rig = Rig::start().await;
    let supervisor = rig.with_attempt(grant("a", StepName::Plan, None)).await;
    let tokens = rig.redeem("a").await;
    let unasked = said(Some((&[CANARY, API_SERVER], &[])));
    let unheard = said(None);
    let mut waiting = Box::pin(ask(&rig, &tokens, &unasked));
    tokio::select! {
        answer = &mut waiting => panic!("the gate has moved by the runner's word: {answer:?}"),
        () = heard(&supervisor, &unheard) => {}
    }
    // Now it is asked for, and what was tried is what was to be tried.
    drop(waiting);
    supervisor.say(ToGateway::Probe { run: key("a"), order: order() }).await;
    assert_eq!(ask(&rig, &tokens, &said(None)).await, GateAnswer::Probe(order()));
    let open = ToGateway::OpenGate { run: key("a"), pod_ip: POD, remaining_millis: 60_000 };
    let answer = closed_until(&rig, &supervisor, &tokens, &unasked, open).await;
    assert!(matches!(answer, GateAnswer::Open { .. }), "{answer:?}");
}
