//! Calls that end without an answer, or before the agent has one: they are charged all the same.

use agent_operator::{
    attempt::{Redeemed, StepResult, StopOrder},
    domain::{Reason, StepName, Usage, report::StepFacts},
};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{
    model::{END, START},
    rig::{Options, POD, PROMPT, Rig, Supervisor, bearer, eventually, grant, key, to_json},
    telemetry::page,
};
use crate::link::contract::{DurableEvent, FromGateway, ToGateway};

/// What a call is charged of which nothing but the request is known.
const PROMPT_TOKENS: u64 = PROMPT.len().div_ceil(4) as u64;

async fn running(options: Options) -> (Rig, Supervisor, Redeemed) {
    let rig = Rig::start_with(options).await;
    let supervisor = rig.with_attempt(grant("a", StepName::Implement, None)).await;
    let tokens = rig.running(&supervisor, "a").await;
    (rig, supervisor, tokens)
}

/// A call of the agent's that has reached the provider.
async fn called(rig: &Rig, tokens: &Redeemed) -> TcpStream {
    let mut stream = rig.dial(POD).await;
    let call = format!(
        "POST /llm/v1/messages HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n{PROMPT}",
        tokens.agent_token,
        PROMPT.len()
    );
    stream.write_all(call.as_bytes()).await.unwrap();
    eventually(async || (!rig.model.seen.lock().unwrap().is_empty()).then_some(())).await;
    stream
}

/// Hangs up, and waits until the gateway has noticed.
async fn hang_up(mut stream: TcpStream) {
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn an_agent_that_hangs_up_before_the_answer_begins_pays_and_keeps_its_slot_till_the_end() {
    let limits = serde_json::json!({"modelCalls": 1});
    let (rig, supervisor, tokens) = running(Options { limits, ..Options::default() }).await;
    let (head, pieces) = rig.model.answer_late("text/event-stream");
    hang_up(called(&rig, &tokens).await).await;
    assert_eq!(rig.model_call(&tokens).await.status, 429, "the call is still under way");
    head.send(()).unwrap();
    pieces.send(Bytes::from(START)).await.unwrap();
    pieces.send(Bytes::from(END)).await.unwrap();
    drop(pieces);
    let usage = supervisor.counters(|usage, _| usage.turns == 1).await;
    assert_eq!((usage.input_tokens, usage.output_tokens), (1000, 50));
    rig.model.answer_json(1).await;
    eventually(async || (rig.model_call(&tokens).await.status == 200).then_some(())).await;
}

#[tokio::test]
async fn a_call_that_the_order_to_stop_ends_before_its_answer_is_charged_by_estimate() {
    let (rig, supervisor, tokens) = running(Options::default()).await;
    let (_head, pieces) = rig.model.answer_late("application/json");
    let _stream = called(&rig, &tokens).await;
    let order =
        StopOrder { reason: Reason::TimedOut, message: "over".to_owned(), grace_millis: 1000 };
    supervisor.say(ToGateway::Stop { run: key("a"), order }).await;
    let usage = supervisor.counters(|usage, _| usage.input_tokens > 0).await;
    assert_eq!((usage.input_tokens, usage.turns), (PROMPT_TOKENS, 0));
    assert_eq!(usage.cost_micro_usd, PROMPT_TOKENS + 2 * usage.output_tokens);
    // And the provider need not go on.
    pieces.closed().await;
}

#[tokio::test]
async fn an_answer_without_figures_is_charged_by_estimate() {
    let (rig, supervisor, tokens) = running(Options::default()).await;
    let answer = rig.model.answer(200, "application/json");
    answer.send(Bytes::from("{}")).await.unwrap();
    drop(answer);
    assert_eq!(rig.model_call(&tokens).await.status, 200);
    let usage = supervisor.counters(|usage, _| usage.input_tokens > 0).await;
    assert_eq!((usage.input_tokens, usage.turns), (PROMPT_TOKENS, 0));
    drop(rig.model.answer(200, "application/octet-stream"));
    assert_eq!(rig.model_call(&tokens).await.status, 502);
    supervisor.counters(|usage, _| usage.input_tokens == 2 * PROMPT_TOKENS).await;
}

#[tokio::test]
async fn a_connection_that_breaks_is_charged_only_when_the_provider_had_the_whole_request() {
    let provider = TcpListener::bind((POD, 0)).await.unwrap();
    let llm = Some(format!("http://{}", provider.local_addr().unwrap()));
    let (rig, supervisor, tokens) = running(Options { llm, ..Options::default() }).await;
    let breaking = tokio::spawn(async move {
        let (mut stream, _) = provider.accept().await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(PROMPT.as_bytes()) {
            assert_ne!(stream.read_buf(&mut seen).await.unwrap(), 0);
        }
        // From here on nobody listens.
        drop(provider);
    });
    assert_eq!(rig.model_call(&tokens).await.status, 502);
    breaking.await.unwrap();
    let usage = supervisor.counters(|usage, _| usage.input_tokens > 0).await;
    assert_eq!((usage.input_tokens, usage.turns), (PROMPT_TOKENS, 0));
    assert_eq!(rig.model_call(&tokens).await.status, 502);
    let counted = page(&rig).await;
    let input = |line: &&str| line.contains("tokens_total{model=\"claude-x\",kind=\"input\"}");
    let line = counted.lines().find(input).unwrap();
    assert!(line.ends_with(&format!(" {PROMPT_TOKENS}")), "the second was never sent: {line}");
}

#[tokio::test]
async fn a_call_that_goes_on_behind_the_result_is_ended_and_stands_in_its_counts() {
    let (rig, supervisor, tokens) = running(Options::default()).await;
    let (_head, _pieces) = rig.model.answer_late("application/json");
    hang_up(called(&rig, &tokens).await).await;
    let result = StepResult {
        reason: Reason::Completed,
        message: String::new(),
        exit_code: 0,
        start_fault: None,
        facts: StepFacts::default(),
        reported_usage: Usage::default(),
        events: 0,
        printed: None,
    };
    let runner = bearer(&tokens.runner_token);
    let answer = rig.call(POD, "POST", "/v1/result", &runner, &to_json(&result)).await;
    assert_eq!(answer.status, 204);
    let usage = supervisor
        .wait(|message| match message {
            FromGateway::Durable { event: DurableEvent::Result { usage, .. }, .. } => Some(*usage),
            _ => None,
        })
        .await;
    assert_eq!(usage.input_tokens, PROMPT_TOKENS);
}
