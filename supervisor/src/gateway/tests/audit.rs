//! The audit: each act once, whatever is repeated.

use agent_operator::domain::StepName;
use serde_json::Value;

use super::rig::{POD, Rig, bearer, credentials, eventually, grant, key};
use crate::{link::contract::ToGateway, testing::Lines};

/// The records of one act.
fn records(lines: &Lines, act: &str) -> Vec<Value> {
    let is_record = |line: &Value| line["target"] == "audit" && line["act"] == act;
    lines.all().into_iter().filter(is_record).collect()
}

#[tokio::test]
async fn a_credential_is_recorded_when_it_is_handed_out_and_not_when_it_is_repeated() {
    let (lines, _guard) = Lines::keep();
    let rig = Rig::start().await;
    let supervisor = rig.with_attempt(grant("a", StepName::Implement, None)).await;
    let again = ToGateway::Credentials { run: key("a"), credentials: credentials() };
    supervisor.say(again).await;
    let mut changed = credentials();
    changed[0].value = agent_operator::domain::Secret::new("another-canary-key");
    supervisor.say(ToGateway::Credentials { run: key("a"), credentials: changed }).await;
    eventually(async || (records(&lines, "credential_handed_out").len() == 2).then_some(())).await;
    for record in records(&lines, "credential_handed_out") {
        assert_eq!(record["credential"], "model");
        assert_eq!(record["host"], "api.anthropic.com");
        assert_eq!((&record["task_uid"], &record["run_uid"]), (&"0a1b2c".into(), &"a".into()));
        assert_eq!((&record["attempt"], &record["step"]), (&1.into(), &"implement".into()));
    }
    let all = format!("{:?}", lines.all());
    assert!(!all.contains(super::rig::KEY) && !all.contains("another-canary-key"));
}

#[tokio::test]
async fn a_refusal_is_recorded_once_for_each_kind_and_target_and_our_own_traffic_never() {
    let (lines, _guard) = Lines::keep();
    let rig = Rig::start().await;
    let supervisor = rig.with_attempt(grant("a", StepName::Implement, None)).await;
    let tokens = rig.running(&supervisor, "a").await;
    let agent = bearer(&tokens.agent_token);
    for _ in 0..5 {
        rig.call(POD, "POST", "/llm/v1/files", &agent, "").await;
        rig.call(POD, "GET", "/v1/step", &agent, "").await;
    }
    rig.model.answer_json(1).await;
    assert_eq!(rig.model_call(&tokens).await.status, 200);
    supervisor.refusal("auth", "/v1/step").await;
    // The rig asks without a valid token, from the pod's address, until the gateway is ready.
    let refused: Vec<_> = records(&lines, "refused")
        .into_iter()
        .map(|record| (record["kind"].to_string(), record["refused"].to_string()))
        .collect();
    let wanted = [
        ("\"model\"".to_owned(), "\"POST /v1/files\"".to_owned()),
        ("\"auth\"".to_owned(), "\"GET /v1/step\"".to_owned()),
    ];
    for one in &wanted {
        assert_eq!(refused.iter().filter(|record| *record == one).count(), 1, "{refused:?}");
    }
    assert_eq!(refused.len(), wanted.len(), "{refused:?}");
}
