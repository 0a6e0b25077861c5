//! The attempt API: what the runner asks and reports. Contract: `agent_operator::attempt`.

#![allow(clippy::result_large_err, reason = "the error is the answer itself, made once a request")]

mod collect;
mod outputs;
pub mod preparation;
mod upstream_writes;

use std::time::Duration;

use agent_operator::{
    attempt::{
        EventsAnswer, EventsRequest, GateAnswer, GateRequest, Orders, POLL_SECONDS_MAX, ProbeOrder,
        ProbeReport, RedeemRequest, Redeemed, StepRepository, StepResult, StepSpec,
    },
    domain::RunKey,
};
use axum::body::Body;
use http::{Request, StatusCode};
use tokio::time::{Instant, timeout};

pub(super) use self::upstream_writes::{publish, pull_request};
use self::{
    collect::{check_events, read_json},
    preparation::Prepared,
};
use super::{
    core::{self, Shared},
    events_relay::{Full, Ticket},
    grants::{Attempt, Minted, RedeemError, RefusalKind, TokenHash, attempt::Signal},
    identity::Caller,
    respond::{self, Answer},
};
use crate::link::contract::DurableEvent;

/// Longest that a long poll is held.
const POLL: Duration = Duration::from_secs(POLL_SECONDS_MAX);
/// Longest wait for the supervisor's disk; the runner asks again after that.
const ACK_TIMEOUT: Duration = Duration::from_secs(POLL_SECONDS_MAX);
/// How long a result waits for the counts of model calls that the agent left behind.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Digits of a nonce: at least 128 bits, at most what a hash has.
const NONCE_DIGITS: std::ops::RangeInclusive<usize> = 32..=128;

/// Hands an event to the supervisor and waits until it is on disk there.
async fn record(gateway: &Shared, run: &RunKey, event: DurableEvent) -> Result<(), Answer> {
    recorded(gateway.outbox.send(run, event)).await.map(drop)
}

/// Waits until a message is on disk; the number of event records in it.
async fn recorded(sent: Result<Ticket, Full>) -> Result<u64, Answer> {
    let ticket = sent.map_err(|full| respond::later(full.to_string()))?;
    let records = u64::try_from(ticket.records()).unwrap_or(u64::MAX);
    match timeout(ACK_TIMEOUT, ticket.acked()).await {
        Ok(true) => Ok(records),
        Ok(false) => Err(over()),
        Err(_) => Err(respond::later("the node's supervisor is away; try again")),
    }
}

fn over() -> Answer {
    respond::refused(StatusCode::GONE, "the attempt is over")
}

/// `POST /v1/redeem`
pub(super) async fn redeem(gateway: &Shared, caller: &Caller, request: Request<Body>) -> Answer {
    let request: RedeemRequest = match read_json(request).await {
        Ok(request) => request,
        Err(answer) => return answer,
    };
    let digits = request.nonce.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !digits || !NONCE_DIGITS.contains(&request.nonce.len()) {
        return respond::refused(StatusCode::BAD_REQUEST, "the nonce is not 32 to 128 hex digits");
    }
    let minted = match Minted::new() {
        Ok(minted) => minted,
        Err(error) => {
            tracing::error!(%error, "no tokens can be minted");
            return respond::later(error.to_string());
        }
    };
    let attempt = &caller.attempt;
    let nonce = TokenHash::of(&request.nonce);
    let call = (&nonce, request.call);
    let redemption = match gateway.grants.redeem(attempt, call, caller.address, &minted) {
        Ok(redemption) => redemption,
        Err(error) => {
            let target = match error {
                RedeemError::Taken => "second redemption",
                RedeemError::Started => "redemption after the start",
                // Nobody waits for this answer any more, and nobody has done anything wrong.
                RedeemError::Late => {
                    return respond::refused(StatusCode::CONFLICT, error.to_string());
                }
            };
            tracing::warn!(address = %caller.address, "{target} refused");
            attempt.refuse(RefusalKind::Auth, target);
            return respond::refused(StatusCode::FORBIDDEN, error.to_string());
        }
    };
    if let Err(answer) = record(gateway, attempt.key(), DurableEvent::Redeemed(redemption)).await {
        return answer;
    }
    let redeemed =
        Redeemed { runner_token: minted.runner.to_string(), agent_token: minted.agent.to_string() };
    respond::json(StatusCode::OK, &redeemed)
}

/// `GET /v1/step`
pub(super) async fn step(gateway: &Shared, caller: &Caller) -> Answer {
    let attempt = &caller.attempt;
    if attempt.assignment().held {
        return respond::json(StatusCode::OK, &held(gateway, attempt));
    }
    if !attempt.has_credentials() {
        attempt.ask_credentials_again();
        return respond::later("the gateway waits for the attempt's credentials");
    }
    core::prepare(gateway, attempt);
    let Prepared { repository, issue } = match timeout(POLL, attempt.preparation.wait()).await {
        Ok(Ok(prepared)) => prepared,
        Ok(Err(failure)) => {
            let status = if failure.retryable {
                StatusCode::SERVICE_UNAVAILABLE
            } else {
                StatusCode::UNPROCESSABLE_ENTITY
            };
            let mut answer =
                respond::error(status, failure.reason, failure.message, failure.retryable);
            if let Some(wait) = failure.wait {
                respond::retry_after(&mut answer, wait);
            }
            return answer;
        }
        Err(_) => return respond::later("the repository is still being fetched"),
    };
    let assignment = attempt.assignment();
    let work = assignment.work.clone();
    let spec = StepSpec {
        run: assignment.run.clone(),
        task: assignment.task.clone(),
        step: assignment.step,
        attempt: assignment.attempt,
        prompt: work.prompt,
        plan: work.plan,
        feedback: work.feedback,
        agent: work.agent,
        model: work.model,
        max_turns: work.max_turns,
        test_command: work.test_command,
        issue,
        repository,
        identity: gateway.config.git_identity.clone(),
        grace_seconds: assignment.grace_seconds,
        canary: attempt.canary(),
        held: false,
    };
    respond::json(StatusCode::OK, &spec)
}

/// What an attempt that was made ahead needs at its gate, and nothing of the task's.
fn held(gateway: &Shared, attempt: &Attempt) -> StepSpec {
    let assignment = attempt.assignment();
    let nothing = String::new;
    StepSpec {
        run: assignment.run.clone(),
        task: assignment.task.clone(),
        step: assignment.step,
        attempt: assignment.attempt,
        prompt: nothing(),
        plan: None,
        feedback: None,
        agent: assignment.work.agent.clone(),
        model: None,
        max_turns: None,
        test_command: None,
        issue: None,
        repository: StepRepository {
            name: assignment.repository.name.clone(),
            base_branch: nothing(),
            base_commit: nothing(),
            work_branch: nothing(),
            start_commit: nothing(),
            may_push: false,
        },
        identity: gateway.config.git_identity.clone(),
        grace_seconds: assignment.grace_seconds,
        canary: attempt.canary(),
        held: true,
    }
}

/// `POST /v1/gate`
pub(super) async fn gate(gateway: &Shared, caller: &Caller, request: Request<Body>) -> Answer {
    let request: GateRequest = match read_json(request).await {
        Ok(request) => request,
        Err(answer) => return answer,
    };
    let attempt = &caller.attempt;
    let mut request = outputs::gate(request, &attempt.secrets());
    let ordered = attempt.signal().borrow().probe.clone();
    request.probe = request.probe.filter(|report| answers(report, ordered.as_ref()));
    let probed = request.probe.is_some();
    if attempt.note_at_gate(&request) {
        // Nobody waits for the acknowledgement: the gate's opening is the answer.
        if let Err(full) = gateway.outbox.send(attempt.key(), DurableEvent::AtGate(request)) {
            attempt.forget_at_gate();
            return respond::later(full.to_string());
        }
    }
    let decided = |signal: &Signal| {
        let asked = signal.probe.is_some() && !probed;
        signal.open_until.is_some() || signal.stop.is_some() || asked
    };
    let Some(signal) = poll(attempt, decided).await else { return over() };
    let answer = match (signal.stop, signal.open_until, signal.probe) {
        (Some(order), ..) => GateAnswer::Stop(order),
        (None, Some(until), _) => {
            let left = until.saturating_duration_since(Instant::now()).as_millis();
            GateAnswer::Open { remaining_millis: u64::try_from(left).unwrap_or(u64::MAX) }
        }
        (None, None, Some(order)) if !probed => GateAnswer::Probe(order),
        (None, None, _) => GateAnswer::Closed,
    };
    respond::json(StatusCode::OK, &answer)
}

/// Whether a report is about all that the runner was asked to try: an address that was left out is
/// none that could not be reached.
fn answers(report: &ProbeReport, order: Option<&ProbeOrder>) -> bool {
    order.is_some_and(|order| order.targets.iter().all(|target| report.tried.contains(target)))
}

/// `GET /v1/orders`
pub(super) async fn orders(caller: &Caller) -> Answer {
    match poll(&caller.attempt, |signal| signal.stop.is_some()).await {
        Some(signal) => respond::json(StatusCode::OK, &Orders { stop: signal.stop }),
        None => over(),
    }
}

/// Waits until `done`, at most [`POLL`]; none when the attempt is over.
async fn poll(attempt: &Attempt, done: impl Fn(&Signal) -> bool) -> Option<Signal> {
    let mut signal = attempt.signal();
    tokio::select! {
        () = attempt.ended().cancelled() => None,
        // However the wait ended, the present state is the answer.
        () = async { drop(timeout(POLL, signal.wait_for(done)).await) } => {
            Some(attempt.signal().borrow().clone())
        }
    }
}

/// `POST /v1/events`
pub(super) async fn events(gateway: &Shared, caller: &Caller, request: Request<Body>) -> Answer {
    let request: EventsRequest = match read_json(request).await {
        Ok(request) => request,
        Err(answer) => return answer,
    };
    let attempt = &caller.attempt;
    if let Err(message) = check_events(&request) {
        attempt.refuse(RefusalKind::Limit, "events");
        return respond::refused(StatusCode::PAYLOAD_TOO_LARGE, message);
    }
    // Held while the records are on their way, so that two requests cannot pass one another.
    let mut next = attempt.next_event.lock().await;
    let known = usize::try_from(next.saturating_sub(request.first)).unwrap_or(usize::MAX);
    let gap = request.first > *next;
    if !gap && known < request.records.len() {
        let records = outputs::events(&request.records[known..], &attempt.secrets());
        let event = DurableEvent::Events { first: *next, records };
        match recorded(gateway.outbox.send(attempt.key(), event)).await {
            Ok(count) => *next = next.saturating_add(count),
            Err(answer) => return answer,
        }
    }
    respond::json(StatusCode::OK, &EventsAnswer { next: *next })
}

/// `POST /v1/result`
pub(super) async fn result(gateway: &Shared, caller: &Caller, request: Request<Body>) -> Answer {
    let result: StepResult = match read_json(request).await {
        Ok(result) => result,
        Err(answer) => return answer,
    };
    let attempt = &caller.attempt;
    let result = outputs::result(result, &attempt.secrets());
    // The agent is gone; what its last calls used belongs into the final counts.
    let _ = timeout(SETTLE_TIMEOUT, attempt.limits().model_calls_done()).await;
    let Some(result) = attempt.take_result(result) else {
        attempt.refuse(RefusalKind::Auth, "second result");
        return respond::refused(StatusCode::CONFLICT, "another result has been reported");
    };
    if attempt.result_recorded() {
        return respond::empty(StatusCode::NO_CONTENT);
    }
    let (usage, refusals) = attempt.counters();
    let event = DurableEvent::Result { result: Box::new(result), usage, refusals };
    match record(gateway, attempt.key(), event).await {
        Ok(()) => {
            attempt.set_result_recorded();
            respond::empty(StatusCode::NO_CONTENT)
        }
        Err(answer) => answer,
    }
}
