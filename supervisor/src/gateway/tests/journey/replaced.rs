//! An attempt in whose place another one of the same run and step has come, on the same node and, as it
//! happens, at the same address.

use agent_operator::domain::{Attempt, RunKey, names::sha256_hex};

use super::*;
use crate::{
    gateway::tests::rig::{Answer, NONCE, one_time, proxy},
    link::contract::Grant,
};

/// What the one-time token of the second attempt is made from.
const SECOND: &str = "a-2";

/// The second attempt of the run of [`grant`].
fn second() -> Grant {
    let mut next = grant("a", StepName::Implement, None);
    next.assignment.attempt = Attempt(2);
    next.one_time_hash = sha256_hex(one_time(SECOND).as_bytes());
    next
}

fn second_key() -> RunKey {
    RunKey { attempt: Attempt(2), ..key("a") }
}

/// Lets the second attempt in, up to its open gate.
async fn let_in(rig: &Rig, supervisor: &Supervisor) -> Redeemed {
    let credentials = with_git(TOKEN);
    supervisor.say(ToGateway::Credentials { run: second_key(), credentials }).await;
    let redeemed = eventually(async || {
        let answer = rig.try_redeem(POD, SECOND, NONCE).await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    let tokens: Redeemed = redeemed.json();
    let open = ToGateway::OpenGate { run: second_key(), pod_ip: POD, remaining_millis: 60_000 };
    supervisor.say(open).await;
    let runner = bearer(&tokens.runner_token);
    let gate = rig.call(POD, "POST", "/v1/gate", &runner, "{\"sandbox\":{}}").await;
    assert!(gate.text().contains("\"open\""), "{gate:?}");
    tokens
}

/// Every door that answers at once, tried with these tokens.
async fn tried(rig: &Rig, tokens: &Redeemed, commit: &str) -> Vec<(&'static str, Answer)> {
    let publish = serde_json::json!({"repository": "main", "commit": commit}).to_string();
    let (runner, agent) = (bearer(&tokens.runner_token), bearer(&tokens.agent_token));
    let git = vec![("authorization", basic(&tokens.agent_token))];
    let refs = "/git/main.git/info/refs?service=git-receive-pack";
    let mut answers = Vec::new();
    for (method, path, headers, body) in [
        ("GET", "/v1/step", &runner, ""),
        ("POST", "/v1/gate", &runner, "{\"sandbox\":{}}"),
        ("POST", "/v1/events", &runner, "{\"first\":0,\"records\":[]}"),
        ("POST", "/v1/publish", &runner, publish.as_str()),
        ("POST", "/v1/pull-request", &runner, "{\"title\":\"t\",\"body\":\"b\"}"),
        ("POST", "/v1/result", &runner, "{}"),
        ("GET", refs, &git, ""),
        ("POST", "/llm/v1/messages", &agent, "{}"),
    ] {
        answers.push((path, rig.call(POD, method, path, headers, body).await));
    }
    let tunnel = rig.call(POD, "CONNECT", "example.com:443", &proxy(&tokens.agent_token), "").await;
    answers.push(("CONNECT", tunnel));
    answers
}

/// Whoever holds the first attempt's tokens has nothing, and the second attempt has all of its own.
async fn only_the_second_is_served(
    journey: &Journey,
    supervisor: &Supervisor,
    work: &Path,
    commit: &str,
) {
    let rig = &journey.rig;
    let two = let_in(rig, supervisor).await;
    let permit = ToGateway::Permit { epoch: Epoch(1), valid_millis: 30_000 };
    supervisor.say(permit).await;
    for (path, answer) in tried(rig, &journey.tokens, commit).await {
        let expected = if path == "CONNECT" { 407 } else { 401 };
        assert_eq!(answer.status, expected, "{path}: {answer:?}");
    }
    assert_eq!(rig.try_redeem(POD, "a", NONCE).await.status, 401, "its one-time token too");
    let first = bearer(&journey.tokens.runner_token);
    assert_eq!(rig.call(POD, "GET", "/v1/orders", &first, "").await.status, 401);
    let remote = journey.remote();
    let push = ["push", "-q", "-f", &remote, "HEAD:refs/heads/ai/task"];
    assert!(!client_async(work, &push).await.status.success(), "a push of the first attempt");

    // The second one starts from nothing of the first one's, and has its own way.
    let runner = bearer(&two.runner_token);
    let step = eventually(async || {
        let answer = rig.call(POD, "GET", "/v1/step", &runner, "").await;
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(step.await.json::<StepSpec>().attempt, Attempt(2));
    let body = serde_json::json!({"repository": "main", "commit": commit}).to_string();
    let foreign = rig.call(POD, "POST", "/v1/publish", &runner, &body).await;
    assert_eq!(foreign.status, 409, "{foreign:?}");
    assert!(foreign.text().contains("quarantine"), "{foreign:?}");
    let remote = format!("http://x:{}@{}/git/main.git", two.agent_token, rig.address);
    let push = ["push", "-q", &remote, "HEAD:refs/heads/ai/task"];
    assert!(client_async(work, &push).await.status.success(), "a push of the second attempt");
    let published = rig.call(POD, "POST", "/v1/publish", &runner, &body).await;
    assert_eq!(published.status, 200, "{published:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_a_replaced_attempt_are_dead_for_the_next_one_of_the_same_run_and_its_push_is_refused()
 {
    let journey = Journey::start(StepName::Implement, TOKEN).await;
    let step: StepSpec = journey.step().await.json();
    journey.open_gate().await;
    let (work, commit) = committed(&journey, &step).await;
    // While it lives, no door says that nobody knows it: the check can fail.
    for (path, answer) in tried(&journey.rig, &journey.tokens, &commit).await {
        assert!(![401, 407].contains(&answer.status), "{path}: {answer:?}");
    }
    journey.supervisor.say(ToGateway::Revoke { run: key("a") }).await;
    journey.supervisor.say(ToGateway::Register(Box::new(second()))).await;
    only_the_second_is_served(&journey, &journey.supervisor, &work, &commit).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_a_restarted_supervisor_names_only_by_its_successor_is_dead_at_once() {
    let journey = Journey::start(StepName::Implement, TOKEN).await;
    let step: StepSpec = journey.step().await.json();
    journey.open_gate().await;
    let (work, commit) = committed(&journey, &step).await;
    let supervisor = journey.rig.connect().await;
    supervisor.say(ToGateway::Register(Box::new(second()))).await;
    supervisor.say(ToGateway::Synced).await;
    journey.rig.settled().await;
    only_the_second_is_served(&journey, &supervisor, &work, &commit).await;
}
