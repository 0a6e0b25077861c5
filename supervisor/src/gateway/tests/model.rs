//! The model API: the key goes in, everything of the agent's own stays out, everything is counted.

use agent_operator::{
    attempt::{Orders, Redeemed},
    domain::{Reason, StepName, assignment::TaskBudget},
};
use bytes::Bytes;
use http_body_util::BodyExt as _;

use super::rig::{
    KEY, NONCE, OTHER_POD, Options, POD, PROMPT, Rig, Supervisor, bearer, eventually, grant, key,
};
use crate::{
    gateway::llm::meter::EVENTS_BYTES_MAX,
    link::contract::{Grant, ToGateway},
};

pub(super) const START: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"claude-x\",\"usage\":{\"input_tokens\":1000,\"output_tokens\":1}}}\n\n";
pub(super) const END: &str = "event: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":50}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

async fn running(rig: &Rig, budget: Option<TaskBudget>) -> (Supervisor, Redeemed) {
    let supervisor = rig.with_attempt(grant("a", StepName::Implement, budget)).await;
    let tokens = rig.running(&supervisor, "a").await;
    (supervisor, tokens)
}

#[tokio::test]
async fn the_provider_sees_the_real_key_and_nothing_of_the_agents_own() {
    let rig = Rig::start().await;
    let (_supervisor, tokens) = running(&rig, None).await;
    rig.model.answer_json(1).await;
    let mut headers = bearer(&tokens.agent_token);
    for (name, value) in [
        ("x-api-key", "sk-agents-own-key"),
        ("cookie", "a=b"),
        ("proxy-authorization", "Basic eDp5"),
        ("x-forwarded-for", "1.2.3.4"),
        ("forwarded", "for=1.2.3.4"),
        ("x-forwarded-host", "evil.example"),
        ("te", "trailers"),
        ("connection", "keep-alive, x-app"),
        ("accept-encoding", "gzip, br"),
        ("anthropic-version", "2023-06-01"),
        ("x-stainless-lang", "js"),
    ] {
        headers.push((name, value.to_owned()));
    }
    let answer = rig.call(POD, "POST", "/llm/v1/messages?beta=true", &headers, PROMPT).await;
    assert_eq!(answer.status, 200);
    assert!(!answer.headers.contains_key("set-cookie"));
    assert_eq!(answer.headers["request-id"], "req_1");
    let seen = rig.model.seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].method.as_str(), seen[0].uri.as_str()), ("POST", "/v1/messages?beta=true"));
    let sent = &seen[0].headers;
    assert_eq!(sent.get_all("x-api-key").iter().collect::<Vec<_>>(), [KEY]);
    assert_eq!(sent["accept-encoding"], "identity");
    assert_eq!(sent["anthropic-version"], "2023-06-01");
    assert_eq!(sent["x-stainless-lang"], "js");
    for name in [
        "authorization",
        "cookie",
        "proxy-authorization",
        "x-forwarded-for",
        "forwarded",
        "x-forwarded-host",
        "te",
    ] {
        assert!(!sent.contains_key(name), "{name} reached the provider");
    }
    assert!(!format!("{sent:?}").contains(&tokens.agent_token));
}

#[tokio::test]
async fn the_clients_probe_is_answered_here_and_the_token_may_come_as_api_key() {
    let rig = Rig::start().await;
    let (_supervisor, tokens) = running(&rig, None).await;
    for path in ["/", "/llm", "/llm/"] {
        assert_eq!(rig.call(POD, "HEAD", path, &[], "").await.status, 200);
    }
    assert!(rig.model.seen.lock().unwrap().is_empty());
    rig.model.answer_json(1).await;
    let key = [("x-api-key", tokens.agent_token.clone())];
    assert_eq!(rig.call(POD, "POST", "/llm/v1/messages", &key, PROMPT).await.status, 200);
}

#[tokio::test]
async fn other_operations_and_bodies_never_reach_the_provider() {
    let rig = Rig::start().await;
    let (supervisor, tokens) = running(&rig, None).await;
    let agent = bearer(&tokens.agent_token);
    for (method, path) in [
        ("POST", "/llm/v1/files"),
        ("GET", "/llm/v1/models"),
        ("GET", "/llm/v1/messages"),
        ("PUT", "/llm/v1/messages"),
        ("POST", "/llm/v1/messages/batches"),
        ("POST", "/llm/v1/messages/"),
        ("POST", "/llm/v1/complete"),
    ] {
        let answer = rig.call(POD, method, path, &agent, PROMPT).await;
        assert_eq!(answer.status, 404, "{method} {path}");
    }
    for path in ["/llm/v1/../v1/files", "/llm//v1/messages", "/llm/v1/%6dessages", "/llm/v1/./x"] {
        let answer = rig.call(POD, "POST", path, &agent, PROMPT).await;
        assert_eq!(answer.status, 404, "{path}");
    }
    for body in ["", "{}", r#"{"model":"m","tools":[{"type":"web_fetch_20250910"}]}"#] {
        let answer = rig.call(POD, "POST", "/llm/v1/messages", &agent, body).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.text().contains("invalid_request_error"));
    }
    assert!(rig.model.seen.lock().unwrap().is_empty());
    supervisor.refusal("model", "POST /v1/files").await;
    supervisor.refusal("model", "web_fetch").await;
}

#[tokio::test]
async fn a_test_step_and_a_closed_gate_have_no_model() {
    let rig = Rig::start().await;
    let supervisor = rig.with_attempt(grant("a", StepName::Test, None)).await;
    let tokens = rig.redeem("a").await;
    assert_eq!(rig.model_call(&tokens).await.status, 403);
    supervisor.open_gate("a", POD).await;
    let runner = bearer(&tokens.runner_token);
    let gate = rig.call(POD, "POST", "/v1/gate", &runner, "{\"sandbox\":{}}").await;
    assert_eq!(gate.status, 200);
    let answer = rig.model_call(&tokens).await;
    assert_eq!(answer.status, 403);
    assert!(answer.text().contains("without a model"));

    let second = Rig::start().await;
    let _supervisor = second.with_attempt(grant("b", StepName::Plan, None)).await;
    let tokens = second.redeem("b").await;
    let answer = second.model_call(&tokens).await;
    assert!(answer.status == 403 && answer.text().contains("not started"));
}

#[tokio::test]
async fn a_stream_reaches_the_agent_piece_by_piece_and_is_counted() {
    let rig = Rig::start().await;
    let (supervisor, tokens) = running(&rig, None).await;
    let model = rig.model.answer(200, "text/event-stream; charset=utf-8");
    model.send(Bytes::from(START)).await.unwrap();
    let agent = bearer(&tokens.agent_token);
    let mut answer = rig.open(POD, "POST", "/llm/v1/messages", &agent, PROMPT).await;
    let first = answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, START, "the first event arrives while the model still works");
    model.send(Bytes::from(END)).await.unwrap();
    drop(model);
    let rest = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(rest, END);
    let usage = supervisor.counters(|usage, _| usage.turns == 1).await;
    assert_eq!((usage.input_tokens, usage.output_tokens), (1000, 50));
    assert_eq!(usage.cost_micro_usd, 1000 + 2 * 50);
}

#[tokio::test]
async fn an_agent_that_hangs_up_pays_all_the_same() {
    let rig = Rig::start().await;
    let (supervisor, tokens) = running(&rig, None).await;
    let model = rig.model.answer(200, "text/event-stream");
    model.send(Bytes::from(START)).await.unwrap();
    let agent = bearer(&tokens.agent_token);
    let mut answer = rig.open(POD, "POST", "/llm/v1/messages", &agent, PROMPT).await;
    answer.body_mut().frame().await.unwrap().unwrap();
    drop(answer);
    model.send(Bytes::from(END)).await.unwrap();
    drop(model);
    let usage = supervisor.counters(|usage, _| usage.turns == 1).await;
    assert_eq!(usage.output_tokens, 50);
}

#[tokio::test]
async fn an_answer_without_end_breaks_off_and_what_was_seen_of_it_counts() {
    let rig = Rig::start().await;
    let (supervisor, tokens) = running(&rig, None).await;
    let model = rig.model.answer(200, "text/event-stream");
    let (ping, more) = (Bytes::from("x".repeat(1024 * 1024)), EVENTS_BYTES_MAX / (1024 * 1024) + 1);
    let provider = tokio::spawn(async move {
        model.send(Bytes::from(START)).await.unwrap();
        for _ in 0..more {
            if model.send(ping.clone()).await.is_err() {
                return;
            }
        }
        // Nothing of this is heard any more.
        let _ = model.send(Bytes::from(END)).await;
    });
    let agent = bearer(&tokens.agent_token);
    let mut answer = rig.open(POD, "POST", "/llm/v1/messages", &agent, PROMPT).await;
    let mut bytes = 0;
    let broken = loop {
        match answer.body_mut().frame().await {
            Some(Ok(frame)) => bytes += frame.into_data().unwrap().len(),
            ended => break ended.is_some(),
        }
    };
    assert!(broken, "it ended as if it were whole after {bytes} bytes");
    assert!(bytes <= EVENTS_BYTES_MAX, "{bytes}");
    provider.await.unwrap();
    let usage = supervisor.counters(|usage, _| usage.input_tokens > 0).await;
    assert_eq!((usage.input_tokens, usage.turns), (1000, 0));
}

#[tokio::test]
async fn an_answer_that_cannot_be_counted_is_not_passed_on() {
    let rig = Rig::start().await;
    let (_supervisor, tokens) = running(&rig, None).await;
    drop(rig.model.answer(200, "application/octet-stream"));
    assert_eq!(rig.model_call(&tokens).await.status, 502);
}

#[tokio::test]
async fn the_budget_stops_the_next_call_and_the_step() {
    let rig = Rig::start().await;
    let budget = TaskBudget { tokens: Some(100), cost_micro_usd: None };
    let (_supervisor, tokens) = running(&rig, Some(budget)).await;
    rig.model.answer_json(50).await;
    assert_eq!(rig.model_call(&tokens).await.status, 200);
    let answer = rig.model_call(&tokens).await;
    assert_eq!((answer.status, answer.headers["x-should-retry"].to_str().unwrap()), (429, "false"));
    assert!(answer.text().contains("\"type\":\"error\"") && answer.text().contains("budget"));
    assert_eq!(rig.model.seen.lock().unwrap().len(), 1, "the call was stopped before the provider");
    let orders = rig.call(POD, "GET", "/v1/orders", &bearer(&tokens.runner_token), "").await;
    let stop = orders.json::<Orders>().stop.unwrap();
    assert_eq!((stop.reason, stop.grace_millis), (Reason::BudgetExceeded, 10_000));
}

#[tokio::test]
async fn a_raised_budget_lets_the_running_attempt_go_on_also_when_it_comes_with_a_registration() {
    let rig = Rig::start().await;
    let of = |tokens| Some(TaskBudget { tokens: Some(tokens), cost_micro_usd: None });
    let call = async |tokens: &Redeemed| {
        rig.model.answer_json(50).await;
        rig.model_call(tokens).await.status
    };
    // Each call counts 100 tokens.
    let (supervisor, tokens) = running(&rig, of(100)).await;
    assert_eq!(call(&tokens).await, 200);
    supervisor.say(ToGateway::Budget { run: key("a"), budget: of(200) }).await;
    heard(&rig, &supervisor, "b").await;
    assert_eq!(call(&tokens).await, 200);
    // Told while the link was down, it comes with the next registration.
    let raised = grant("a", StepName::Implement, of(300));
    let raised = Grant { open_remaining_millis: Some(50_000), ..raised };
    let supervisor = rig.connect().await;
    supervisor.say(ToGateway::Register(Box::new(raised))).await;
    heard(&rig, &supervisor, "c").await;
    assert_eq!(call(&tokens).await, 200);
    assert_eq!(rig.model_call(&tokens).await.status, 429, "and it is still a limit");
}

/// Waits until the gateway has heard what was said so far: another attempt, named last, is known.
async fn heard(rig: &Rig, supervisor: &Supervisor, uid: &str) {
    let other = grant(uid, StepName::Plan, None);
    supervisor.say(ToGateway::Register(Box::new(other))).await;
    eventually(async || {
        let known = rig.try_redeem(OTHER_POD, uid, NONCE).await;
        (known.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_cost_budget_refuses_a_model_without_a_price() {
    let rig = Rig::start().await;
    let budget = TaskBudget { tokens: None, cost_micro_usd: Some(10) };
    let (_supervisor, tokens) = running(&rig, Some(budget)).await;
    let agent = bearer(&tokens.agent_token);
    let body = PROMPT.replace("claude-x", "unlisted");
    let answer = rig.call(POD, "POST", "/llm/v1/messages", &agent, &body).await;
    assert!(answer.status == 400 && answer.text().contains("price table"), "{answer:?}");
    rig.model.answer_json(50).await;
    assert_eq!(rig.model_call(&tokens).await.status, 200);
    assert_eq!(rig.model_call(&tokens).await.status, 429);
}

#[tokio::test]
async fn a_model_that_is_not_on_the_list_is_refused_and_counted() {
    let options = Options { models: vec!["claude-x"], ..Options::default() };
    let rig = Rig::start_with(options).await;
    let supervisor = rig.with_attempt(grant("a", StepName::Implement, None)).await;
    let tokens = rig.running(&supervisor, "a").await;
    let agent = bearer(&tokens.agent_token);
    let dear = r#"{"model":"claude-dear","max_tokens":10,"messages":[]}"#;
    let refused = rig.call(POD, "POST", "/llm/v1/messages", &agent, dear).await;
    assert_eq!(refused.status, 403);
    assert!(refused.text().contains("llm.models"), "{}", refused.text());
    supervisor.refusal("model", "claude-dear").await;
    rig.model.answer_json(1).await;
    assert_eq!(rig.model_call(&tokens).await.status, 200);
    assert_eq!(rig.model.seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_large_request_passes_and_one_of_nothing_but_keys_is_refused() {
    let rig = Rig::start().await;
    let (supervisor, tokens) = running(&rig, None).await;
    let agent = bearer(&tokens.agent_token);
    let with =
        |more: &str| format!(r#"{{"model":"claude-x","metadata":{{{more}}},"messages":[]}}"#);
    rig.model.answer_json(1).await;
    let large = with(&format!("\"text\":\"{}\"", "x".repeat(1024 * 1024)));
    assert_eq!(rig.call(POD, "POST", "/llm/v1/messages", &agent, &large).await.status, 200);
    let entries: Vec<_> = (0..100_000).map(|key| format!("\"{key:x}\":0")).collect();
    let keys = with(&entries.join(","));
    let refused = rig.call(POD, "POST", "/llm/v1/messages", &agent, &keys).await;
    assert_eq!(refused.status, 413);
    assert!(refused.text().contains("request_too_large"), "{}", refused.text());
    supervisor.refusal("limit", "model request entries").await;
    assert_eq!(rig.model.seen.lock().unwrap().len(), 1);
}
