//! What the gateway counts, tells and logs about attempts.

use std::time::Duration;

use agent_operator::{
    domain::StepName,
    telemetry::{TelemetryArgs, Tracer},
};
use agent_operator_doubles::collector::Collector;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::rig::{Options, POD, Rig, bearer, eventually, grant};
use crate::{link::contract::ToGateway, testing::Lines};

/// Longest time until a span arrives; one that arrives costs none of it.
const LIMIT: Duration = Duration::from_mins(1);

/// The page that a scrape gets.
pub(super) async fn page(rig: &Rig) -> String {
    let mut stream = tokio::net::TcpStream::connect(rig.metrics).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    page
}

async fn eventually_shows(rig: &Rig, line: &str) {
    let line = format!("agent_operator_gateway_{line}");
    eventually(async || page(rig).await.lines().any(|known| known == line).then_some(())).await;
}

#[tokio::test]
async fn calls_refusals_and_requests_are_counted_and_no_sandbox_reaches_the_counts() {
    let rig = Rig::start().await;
    let supervisor = rig.with_attempt(grant("a", StepName::Implement, None)).await;
    let tokens = rig.running(&supervisor, "a").await;
    rig.model.answer_json(1).await;
    assert_eq!(rig.model_call(&tokens).await.status, 200);
    let agent = bearer(&tokens.agent_token);
    assert_eq!(rig.call(POD, "POST", "/llm/v1/files", &agent, "").await.status, 404);
    assert_eq!(rig.call(POD, "GET", "/metrics", &agent, "").await.status, 404);
    for line in [
        "model_calls_total{model=\"claude-x\",result=\"answered\"} 1",
        "model_call_seconds_count{model=\"claude-x\"} 1",
        "refusals_total{kind=\"model\"} 1",
        "refusals_total{kind=\"egress\"} 1",
        "requests_total{route=\"model\",class=\"2xx\"} 1",
        "requests_total{route=\"model\",class=\"4xx\"} 1",
        "requests_total{route=\"none\",class=\"4xx\"} 1",
        "attempts 1",
    ] {
        eventually_shows(&rig, line).await;
    }
    let page = page(&rig).await;
    let tokens =
        page.lines().find(|line| line.contains("tokens_total{model=\"claude-x\",kind=\"input\"}"));
    assert!(!tokens.unwrap().ends_with(" 0"), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_call_is_a_span_of_its_run_without_a_word_of_the_prompt() {
    let collector = Collector::start(([127, 0, 0, 1], 0).into()).await.unwrap();
    let args = TelemetryArgs::tracing_to(&collector.url()).unwrap();
    let tracer = Tracer::start(&args, "agent-operator-gateway").unwrap();
    let rig = Rig::start_with(Options { tracer, ..Options::default() }).await;
    let grant = grant("a", StepName::Implement, None);
    let (task, run) = (grant.assignment.task.uid.clone(), grant.assignment.run.uid.clone());
    let supervisor = rig.with_attempt(grant).await;
    let tokens = rig.running(&supervisor, "a").await;
    rig.model.answer_json(1).await;
    let body = r#"{"model":"claude-x","max_tokens":10,"messages":[{"role":"user","content":"PROMPT-CANARY"}]}"#;
    let agent = bearer(&tokens.agent_token);
    assert_eq!(rig.call(POD, "POST", "/llm/v1/messages", &agent, body).await.status, 200);

    let trace = agent_operator::telemetry::ids::trace_of(&task).to_string();
    let is_call = |span: &&agent_operator_doubles::collector::Collected| span.name == "model call";
    let spans = collector.wait_for(&trace, LIMIT, |spans| spans.iter().any(|span| is_call(&span)));
    let spans = spans.await.expect("the span comes");
    let call = spans.iter().find(is_call).unwrap();
    assert_eq!(call.parent, agent_operator::telemetry::ids::span_of_run(&run).to_string());
    assert_eq!(call.service, "agent-operator-gateway");
    assert_eq!(call.error, None);
    assert_eq!(call.attributes["gen_ai.request.model"], "claude-x");
    assert_eq!(call.attributes["http.response.status_code"], "200");
    assert_ne!(call.attributes["gen_ai.usage.input_tokens"], "0");
    let told = format!("{spans:?}");
    for secret in ["PROMPT-CANARY", super::rig::KEY, &tokens.agent_token] {
        assert!(!told.contains(secret), "{secret} is in a span");
    }
}

#[tokio::test]
async fn every_line_about_an_attempt_names_task_and_run() {
    // One thread serves the whole test, so that every line of the gateway is kept.
    let (lines, _guard) = Lines::keep();
    let rig = Rig::start().await;
    let supervisor = rig.with_attempt(grant("a", StepName::Implement, None)).await;
    let tokens = rig.running(&supervisor, "a").await;
    // A second redemption and a provider that is away are worth a line each, of a request's own task.
    assert_eq!(rig.try_redeem(POD, "a", "ffeeddccbbaa99887766554433221100").await.status, 403);
    drop(rig.model.answer(529, "application/json"));
    assert_eq!(rig.model_call(&tokens).await.status, 529);
    supervisor.say(ToGateway::Revoke { run: super::rig::key("a") }).await;
    let wanted = ["gate open", "refused", "529", "preparation failed", "attempt revoked"];
    let said = |wanted: &str| {
        let text =
            |line: &serde_json::Value| line["message"].as_str().unwrap_or_default().to_owned();
        lines.all().into_iter().filter(|line| text(line).contains(wanted)).collect::<Vec<_>>()
    };
    for words in wanted {
        eventually(async || (!said(words).is_empty()).then_some(())).await;
        for line in said(words) {
            assert_eq!((&line["task"], &line["run"]), (&"task".into(), &"run-a".into()), "{line}");
            assert_eq!((&line["namespace"], &line["step"]), (&"n".into(), &"implement".into()));
            assert!(line["trace_id"].is_string(), "{line}");
        }
    }
}
