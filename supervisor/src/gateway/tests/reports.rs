//! Events and result: kept by the supervisor before the runner hears of it.

use std::time::Duration;

use agent_operator::{
    attempt::{EventsAnswer, EventsRequest, StepResult},
    domain::{
        Reason, StepName, Usage,
        event::{AgentEvent, EventRecord},
        report::StepFacts,
    },
};

use super::rig::{POD, Rig, Supervisor, bearer, grant, to_json};
use crate::link::contract::{DurableEvent, FromGateway};

fn result(reason: Reason, exit_code: i32) -> StepResult {
    StepResult {
        reason,
        message: "agent exited with code 1".to_owned(),
        exit_code,
        start_fault: None,
        facts: StepFacts::default(),
        reported_usage: Usage::default(),
        events: 0,
        printed: None,
    }
}

fn records(count: usize) -> Vec<EventRecord> {
    let record = EventRecord {
        time: jiff::Timestamp::UNIX_EPOCH,
        event: AgentEvent::Status { text: "cloned".to_owned() },
    };
    vec![record; count]
}

async fn reported(supervisor: &Supervisor) -> (StepResult, Usage) {
    supervisor
        .wait(|message| match message {
            FromGateway::Durable { event: DurableEvent::Result { result, usage, .. }, .. } => {
                Some(((**result).clone(), *usage))
            }
            _ => None,
        })
        .await
}

#[tokio::test]
async fn a_result_is_answered_only_after_the_acknowledgement() {
    let rig = Rig::start().await;
    let supervisor = rig.with_attempt(grant("a", StepName::Plan, None)).await;
    let tokens = rig.running(&supervisor, "a").await;
    supervisor.set_acks(false);
    let runner = bearer(&tokens.runner_token);
    let body = to_json(&result(Reason::Completed, 0));
    let mut call = Box::pin(rig.call(POD, "POST", "/v1/result", &runner, &body));
    tokio::select! {
        answer = &mut call => panic!("answered before the acknowledgement: {answer:?}"),
        reported = reported(&supervisor) => assert_eq!(reported.0.reason, Reason::Completed),
    }
    let early = tokio::time::timeout(Duration::from_millis(200), &mut call).await;
    assert!(early.is_err(), "answered before the acknowledgement");
    supervisor.set_acks(true);
    assert_eq!(call.await.status, 204);
    assert_eq!(rig.call(POD, "POST", "/v1/result", &runner, &body).await.status, 204);
    let other = to_json(&result(Reason::Completed, 3));
    assert_eq!(rig.call(POD, "POST", "/v1/result", &runner, &other).await.status, 409);
}

#[tokio::test]
async fn an_unacknowledged_message_is_sent_again_to_the_next_supervisor() {
    let rig = Rig::start().await;
    let first = rig.with_attempt(grant("a", StepName::Plan, None)).await;
    let tokens = rig.running(&first, "a").await;
    first.set_acks(false);
    let runner = bearer(&tokens.runner_token);
    let body = to_json(&result(Reason::Completed, 0));
    let mut call = Box::pin(rig.call(POD, "POST", "/v1/result", &runner, &body));
    tokio::select! {
        answer = &mut call => panic!("answered before the acknowledgement: {answer:?}"),
        _ = reported(&first) => {}
    }
    let second = rig.connect().await;
    let register =
        crate::link::contract::ToGateway::Register(Box::new(grant("a", StepName::Plan, None)));
    second.say(register).await;
    second.say(crate::link::contract::ToGateway::Synced).await;
    assert_eq!(call.await.status, 204);
    reported(&second).await;
}

#[tokio::test]
async fn a_failure_after_a_refusal_of_the_provider_is_the_providers() {
    let rig = Rig::start().await;
    let supervisor = rig.with_attempt(grant("a", StepName::Plan, None)).await;
    let tokens = rig.running(&supervisor, "a").await;
    rig.model.answer_json(5).await;
    assert_eq!(rig.model_call(&tokens).await.status, 200);
    rig.model.answer(529, "application/json").send("{\"type\":\"error\"}".into()).await.unwrap();
    let answer = rig.model_call(&tokens).await;
    assert_eq!((answer.status, answer.text()), (529, "{\"type\":\"error\"}"));
    let body = to_json(&result(Reason::AgentFailed, 1));
    let runner = bearer(&tokens.runner_token);
    assert_eq!(rig.call(POD, "POST", "/v1/result", &runner, &body).await.status, 204);
    let (result, usage) = reported(&supervisor).await;
    assert_eq!(result.reason, Reason::ProviderUnavailable);
    assert!(result.message.contains("529") && result.message.contains("code 1"));
    assert_eq!((usage.turns, usage.input_tokens, usage.output_tokens), (1, 5, 5));
}

#[tokio::test]
async fn a_failure_after_a_good_answer_is_the_agents() {
    let rig = Rig::start().await;
    let supervisor = rig.with_attempt(grant("a", StepName::Plan, None)).await;
    let tokens = rig.running(&supervisor, "a").await;
    rig.model.answer(500, "application/json").send("{}".into()).await.unwrap();
    assert_eq!(rig.model_call(&tokens).await.status, 500);
    rig.model.answer_json(5).await;
    assert_eq!(rig.model_call(&tokens).await.status, 200);
    let body = to_json(&result(Reason::AgentFailed, 1));
    rig.call(POD, "POST", "/v1/result", &bearer(&tokens.runner_token), &body).await;
    assert_eq!(reported(&supervisor).await.0.reason, Reason::AgentFailed);
}

#[tokio::test]
async fn repeated_events_are_recorded_once_and_a_gap_is_asked_for_again() {
    let rig = Rig::start().await;
    let supervisor = rig.with_attempt(grant("a", StepName::Plan, None)).await;
    let tokens = rig.redeem("a").await;
    let runner = bearer(&tokens.runner_token);
    let send = async |first, count| {
        let body = to_json(&EventsRequest { first, records: records(count) });
        let answer = rig.call(POD, "POST", "/v1/events", &runner, &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json::<EventsAnswer>().next
    };
    assert_eq!(send(0, 3).await, 3);
    assert_eq!(send(0, 3).await, 3, "a repetition");
    assert_eq!(send(9, 1).await, 3, "a gap");
    assert_eq!(send(2, 3).await, 5, "an overlap");
    let recorded: Vec<(u64, usize)> = supervisor
        .messages
        .borrow()
        .iter()
        .filter_map(|message| match message {
            FromGateway::Durable { event: DurableEvent::Events { first, records }, .. } => {
                Some((*first, records.len()))
            }
            _ => None,
        })
        .collect();
    assert_eq!(recorded, [(0, 3), (3, 2)]);
    let body = to_json(&EventsRequest { first: 5, records: records(257) });
    assert_eq!(rig.call(POD, "POST", "/v1/events", &runner, &body).await.status, 413);
}
