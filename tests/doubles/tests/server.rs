//! The scripted model over HTTP.
#![allow(clippy::unwrap_used, reason = "a test program")]

use agent_operator_doubles::{Options, ScriptedModel};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

async fn start(expect_key: Option<&str>) -> ScriptedModel {
    let expect_key = expect_key.map(str::to_owned);
    ScriptedModel::start("127.0.0.1:0".parse().unwrap(), Options { expect_key }).await.unwrap()
}

/// Status and everything after the head.
async fn call(model: &ScriptedModel, head: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(model.address()).await.unwrap();
    let request = format!(
        "{head} HTTP/1.1\r\nhost: x\r\nx-api-key: key-1\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

fn body(stream: bool) -> String {
    json!({
        "model": "m", "stream": stream, "max_tokens": 100, "tools": [{"name": "Bash"}],
        "messages": [{"role": "user", "content": "Step: plan\n\n<task>\nx\n</task>"}],
    })
    .to_string()
}

#[tokio::test]
async fn a_probe_and_a_health_check_are_answered() {
    let model = start(None).await;
    assert_eq!(call(&model, "HEAD /", "").await.0, 200);
    assert_eq!(call(&model, "GET /healthz", "").await.0, 200);
    assert_eq!(call(&model, "GET /v1/other", "").await.0, 404);
    assert_eq!(call(&model, "POST /v1/messages", "not json").await.0, 400);
}

#[tokio::test]
async fn a_whole_message_and_a_stream_say_the_same() {
    let model = start(Some("key-1")).await;
    let (status, whole) = call(&model, "POST /v1/messages?beta=true", &body(false)).await;
    assert_eq!(status, 200);
    let whole: Value = serde_json::from_str(&whole).unwrap();
    assert_eq!(whole["stop_reason"], "tool_use");
    assert!(whole["usage"]["output_tokens"].as_u64().unwrap() > 1);
    let (_, stream) = call(&model, "POST /v1/messages", &body(true)).await;
    let mut input = String::new();
    let mut kinds = Vec::new();
    for line in stream.lines().filter_map(|line| line.strip_prefix("data: ")) {
        let event: Value = serde_json::from_str(line).unwrap();
        input.push_str(event["delta"]["partial_json"].as_str().unwrap_or_default());
        kinds.push(event["type"].as_str().unwrap().to_owned());
    }
    let input: Value = serde_json::from_str(&input).unwrap();
    assert_eq!(input, whole["content"][1]["input"]);
    assert_eq!(kinds.first().unwrap(), "message_start");
    assert_eq!(kinds.last().unwrap(), "message_stop");
}

#[tokio::test]
async fn a_wrong_key_is_refused_in_the_services_form() {
    let model = start(Some("key-2")).await;
    let (status, answer) = call(&model, "POST /v1/messages", &body(false)).await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(status, 401);
    assert_eq!(answer["error"]["type"], "authentication_error");
    assert_eq!(model.requests()[0].status, 401);
}

#[tokio::test]
async fn requests_are_recorded_until_they_are_deleted() {
    let model = start(None).await;
    call(&model, "POST /v1/messages", &body(false)).await;
    let (_, list) = call(&model, "GET /_requests", "").await;
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list[0]["step"], "plan");
    assert_eq!(list[0]["headers"]["x-api-key"], "key-1");
    assert!(list[0]["prompt"].as_str().unwrap().contains("<task>"));
    assert_eq!(call(&model, "DELETE /_requests", "").await.0, 204);
    assert!(model.requests().is_empty());
    call(&model, "POST /v1/messages", &body(false)).await;
    assert_eq!(model.requests()[0].serial, 1);
}

#[tokio::test]
async fn the_list_of_models_tells_a_good_key_from_a_bad_one_without_a_model_request() {
    let good = start(Some("key-1")).await;
    let head = "GET /v1/models?limit=1 HTTP/1.1\r\nanthropic-version: 2023-06-01";
    let ask = async |model: &ScriptedModel| raw(model, head).await;
    assert_eq!(ask(&good).await, 200);
    let bad = start(Some("key-2")).await;
    assert_eq!(ask(&bad).await, 401);
    assert!(good.requests().is_empty() && bad.requests().is_empty());
}

/// Status of the answer to a request with further headers.
async fn raw(model: &ScriptedModel, head: &str) -> u16 {
    let mut stream = TcpStream::connect(model.address()).await.unwrap();
    let request = format!("{head}\r\nhost: x\r\nx-api-key: key-1\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}
