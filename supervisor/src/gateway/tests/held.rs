//! Attempts that were made ahead: what their pods may learn before their turn.

use agent_operator::{attempt::StepSpec, domain::StepName};

use super::rig::{POD, Rig, bearer, credentials, eventually, grant, key};
use crate::link::contract::{FromGateway, Grant, ToGateway};

fn held(held: bool) -> Grant {
    let mut grant = grant("a", StepName::Implement, None);
    grant.assignment.held = held;
    grant.assignment.work.feedback = Some("FEEDBACK".into());
    grant
}

#[tokio::test]
async fn a_held_attempt_learns_nothing_of_its_task_and_gets_no_credential() {
    let rig = Rig::start().await;
    // The order of things is the supervisor's; the gateway does not trust to it.
    let supervisor = rig.with_attempt(held(true)).await;
    let tokens = rig.redeem("a").await;
    let runner = bearer(&tokens.runner_token);
    let answer = rig.call(POD, "GET", "/v1/step", &runner, "").await;
    let spec: StepSpec = answer.json();
    assert!(
        spec.held && spec.prompt.is_empty() && spec.feedback.is_none() && !spec.repository.may_push
    );
    assert!(spec.grace_seconds > 0, "the gate needs it");
    assert_eq!(rig.model_call(&tokens).await.status, 403);
    assert!(rig.model.seen.lock().unwrap().is_empty());

    supervisor.say(ToGateway::Register(Box::new(held(false)))).await;
    // Those that came before were not kept, so that the step waits for its own.
    eventually(async || {
        (rig.call(POD, "GET", "/v1/step", &runner, "").await.status == 503).then_some(())
    })
    .await;
    supervisor
        .wait(|message| matches!(message, FromGateway::NeedCredentials { .. }).then_some(()))
        .await;
    supervisor.say(ToGateway::Credentials { run: key("a"), credentials: credentials() }).await;
    rig.model.answer_json(1).await;
    supervisor.open_gate("a", POD).await;
    eventually(async || (rig.model_call(&tokens).await.status == 200).then_some(())).await;
}
