//! Who may call what, from redemption to revocation.

use agent_operator::{
    attempt::StopOrder,
    domain::{Reason, StepName},
};
use http::Method;

use super::rig::{NONCE, OTHER_POD, POD, Rig, bearer, grant, key, proxy};
use crate::{gateway::server::Route, link::contract::ToGateway};

#[tokio::test]
async fn the_same_nonce_and_address_may_repeat_the_redemption_until_the_gate_opens() {
    let rig = Rig::start().await;
    let supervisor = rig.with_attempt(grant("a", StepName::Plan, None)).await;
    let first = rig.redeem("a").await;
    let second = rig.redeem("a").await;
    assert!(first.runner_token != second.runner_token && first.agent_token != second.agent_token);
    let orders = rig.call(POD, "GET", "/v1/orders", &bearer(&first.runner_token), "").await;
    assert_eq!(orders.status, 401, "earlier tokens are dead");
    supervisor.open_gate("a", POD).await;
    supervisor.refusal("auth", "/v1/orders").await;
    super::rig::eventually(async || {
        (rig.try_redeem(POD, "a", NONCE).await.status == 403).then_some(())
    })
    .await;
    supervisor.refusal("auth", "redemption after the start").await;
}

#[tokio::test]
async fn another_nonce_or_address_is_refused_and_counted() {
    let rig = Rig::start().await;
    let supervisor = rig.with_attempt(grant("a", StepName::Plan, None)).await;
    rig.redeem("a").await;
    let other_nonce = NONCE.replace('0', "f");
    assert_eq!(rig.try_redeem(POD, "a", &other_nonce).await.status, 403);
    assert_eq!(rig.try_redeem(OTHER_POD, "a", NONCE).await.status, 403);
    assert_eq!(rig.try_redeem(POD, "a", "short").await.status, 400);
    supervisor.refusal("auth", "second redemption").await;
}

/// A gateway that stood still finds two calls of one runner: the one that it gave up, and the next.
#[tokio::test]
async fn a_call_that_was_given_up_does_not_replace_the_tokens_of_the_next_one() {
    let rig = Rig::start().await;
    let supervisor = rig.with_attempt(grant("a", StepName::Plan, None)).await;
    let second = rig.redeem_by_call("a", 1).await;
    assert_eq!(second.status, 200);
    let late = rig.redeem_by_call("a", 0).await;
    assert_eq!(late.status, 409, "the earlier call arrives behind it");
    let tokens: agent_operator::attempt::Redeemed = second.json();
    supervisor.open_gate("a", POD).await;
    let runner = bearer(&tokens.runner_token);
    let gate = rig.call(POD, "POST", "/v1/gate", &runner, "{\"sandbox\":{}}").await;
    assert!(gate.text().contains("\"open\""), "{gate:?}");
}

/// Registrations and sandboxes come by different sockets: a pod may be the faster one.
#[tokio::test]
async fn a_token_that_is_not_registered_yet_may_be_redeemed_later_and_nothing_else_may() {
    let rig = Rig::start().await;
    let supervisor = rig.with_attempt(grant("a", StepName::Plan, None)).await;
    let early = rig.try_redeem(POD, "b", NONCE).await;
    let said: agent_operator::attempt::ApiError = early.json();
    assert_eq!((early.status, said.retryable), (401, true));
    for path in ["/v1/gate", "/v1/result"] {
        let answer = rig.call(POD, "POST", path, &bearer("nobody"), "{}").await;
        let said: agent_operator::attempt::ApiError = answer.json();
        assert_eq!((answer.status, said.retryable), (401, false), "{path}");
    }
    supervisor.say(ToGateway::Register(Box::new(grant("b", StepName::Plan, None)))).await;
    super::rig::eventually(async || {
        (rig.try_redeem(POD, "b", NONCE).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_race_for_the_redemption_has_one_winner() {
    let rig = Rig::start().await;
    let _supervisor = rig.with_attempt(grant("a", StepName::Plan, None)).await;
    let nonces: Vec<String> = (0..16).map(|n| format!("{n:032x}")).collect();
    let tries = nonces.iter().map(|nonce| rig.try_redeem(POD, "a", nonce));
    let answers = futures::future::join_all(tries).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 1);
    assert_eq!(answers.iter().filter(|answer| answer.status == 403).count(), 15);
}

#[tokio::test]
async fn a_token_is_worth_nothing_from_another_address_or_on_another_route() {
    let rig = Rig::start().await;
    let supervisor = rig.with_attempt(grant("a", StepName::Plan, None)).await;
    let tokens = rig.running(&supervisor, "a").await;
    let (runner, agent) = (bearer(&tokens.runner_token), bearer(&tokens.agent_token));
    assert_eq!(rig.call(OTHER_POD, "POST", "/v1/gate", &runner, "{}").await.status, 401);
    assert_eq!(rig.call(POD, "POST", "/v1/result", &agent, "{}").await.status, 403);
    assert_eq!(rig.call(POD, "POST", "/llm/v1/messages", &runner, "{}").await.status, 403);
    let one_time = bearer(&super::rig::one_time("a"));
    assert_eq!(rig.call(POD, "GET", "/v1/step", &one_time, "").await.status, 403);
    assert!(rig.model.seen.lock().unwrap().is_empty());
    supervisor.refusal("auth", "POST /v1/result").await;
}

#[tokio::test]
async fn a_gate_opened_for_another_pod_stays_closed_and_kills_the_tokens() {
    let rig = Rig::start().await;
    let supervisor = rig.with_attempt(grant("a", StepName::Plan, None)).await;
    let tokens = rig.redeem("a").await;
    supervisor.open_gate("a", OTHER_POD).await;
    super::rig::eventually(async || {
        let runner = bearer(&tokens.runner_token);
        let answer = rig.call(POD, "GET", "/v1/orders", &runner, "");
        let answer = tokio::time::timeout(std::time::Duration::from_millis(200), answer).await;
        answer.is_ok_and(|answer| answer.status == 401).then_some(())
    })
    .await;
    assert_eq!(rig.try_redeem(POD, "a", NONCE).await.status, 403);
}

#[tokio::test]
async fn stop_kills_the_agents_token_and_revoke_the_runners_too() {
    let rig = Rig::start().await;
    let supervisor = rig.with_attempt(grant("a", StepName::Plan, None)).await;
    let tokens = rig.running(&supervisor, "a").await;
    let order = StopOrder {
        reason: Reason::TimedOut,
        message: "the deadline has passed".to_owned(),
        grace_millis: 1000,
    };
    supervisor.say(ToGateway::Stop { run: key("a"), order: order.clone() }).await;
    let orders = rig.call(POD, "GET", "/v1/orders", &bearer(&tokens.runner_token), "").await;
    assert_eq!(orders.json::<agent_operator::attempt::Orders>().stop, Some(order));
    super::rig::eventually(async || (rig.model_call(&tokens).await.status == 401).then_some(()))
        .await;
    supervisor.say(ToGateway::Revoke { run: key("a") }).await;
    super::rig::eventually(async || {
        let answer = rig.call(POD, "GET", "/v1/orders", &bearer(&tokens.runner_token), "").await;
        (answer.status == 401).then_some(())
    })
    .await;
    assert_eq!(rig.try_redeem(POD, "a", NONCE).await.status, 401);
}

#[tokio::test]
async fn every_route_refuses_a_caller_without_a_token() {
    let rig = Rig::start().await;
    let _supervisor = rig.with_attempt(grant("a", StepName::Plan, None)).await;
    let paths = [
        "/",
        "/healthz",
        "/llm",
        "/llm/",
        "/llm/v1/messages",
        "/llm/v1/files",
        "/v1/redeem",
        "/v1/step",
        "/v1/gate",
        "/v1/orders",
        "/v1/events",
        "/v1/publish",
        "/v1/pull-request",
        "/v1/result",
        "/git/main.git/info/refs",
        "/git/main.git/git-receive-pack",
    ];
    for method in ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        for path in paths {
            let route = Route::of(&method.parse::<Method>().unwrap(), path);
            let open = matches!(route, Some(Route::Health | Route::ModelProbe));
            let answer = rig.call(POD, method, path, &[], "").await;
            let expected = if open {
                200
            } else if route.is_some() {
                401
            } else {
                404
            };
            assert_eq!(answer.status, expected, "{method} {path}");
        }
    }
    let answer = rig.call(POD, "CONNECT", "example.com:443", &[], "").await;
    assert_eq!(answer.status, 407);
    let answer = rig.call(POD, "CONNECT", "example.com:443", &proxy("x"), "").await;
    assert_eq!(answer.status, 407);
}

#[tokio::test]
async fn unknown_tokens_get_503_until_the_supervisor_has_synced() {
    let rig = Rig::start().await;
    let step = async || rig.call(POD, "GET", "/v1/step", &bearer("x"), "").await;
    let answer = step().await;
    assert_eq!(answer.status, 503);
    assert!(answer.headers.contains_key("retry-after"));
    let supervisor = rig.connect().await;
    assert_eq!(step().await.status, 503);
    supervisor.say(ToGateway::Synced).await;
    rig.settled().await;
}

#[tokio::test]
async fn tokens_live_on_when_a_restarted_gateway_is_told_their_hashes() {
    let before = Rig::start().await;
    let supervisor = before.with_attempt(grant("a", StepName::Plan, None)).await;
    let tokens = before.running(&supervisor, "a").await;
    let redemption = supervisor.redemption().await;
    drop(before);

    let after = Rig::start().await;
    let mut known = grant("a", StepName::Plan, None);
    known.redemption = Some(redemption);
    known.open_remaining_millis = Some(60_000);
    assert_eq!(after.model_call(&tokens).await.status, 503, "not synced yet");
    let supervisor = after.connect().await;
    supervisor.say(ToGateway::Register(Box::new(known))).await;
    supervisor.say(ToGateway::Synced).await;
    after.settled().await;
    assert_eq!(after.model_call(&tokens).await.status, 503, "no credentials yet");
    supervisor
        .wait(|message| {
            matches!(message, crate::link::contract::FromGateway::NeedCredentials { run } if *run == key("a"))
                .then_some(())
        })
        .await;
    let credentials = super::rig::credentials();
    supervisor.say(ToGateway::Credentials { run: key("a"), credentials }).await;
    after.model.answer_json(1).await;
    super::rig::eventually(async || (after.model_call(&tokens).await.status == 200).then_some(()))
        .await;
}

#[tokio::test]
async fn attempts_that_a_new_supervisor_does_not_name_are_dropped() {
    let rig = Rig::start().await;
    let first = rig.with_attempt(grant("a", StepName::Plan, None)).await;
    let tokens = rig.running(&first, "a").await;
    let second = rig.connect().await;
    second.say(ToGateway::Synced).await;
    super::rig::eventually(async || (rig.model_call(&tokens).await.status == 401).then_some(()))
        .await;
}
