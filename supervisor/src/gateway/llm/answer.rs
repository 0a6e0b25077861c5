//! Passes the provider's answer on as it comes, and counts it.
//!
//! Each answer is read to its end by a task of its own, also when the agent has hung up: otherwise
//! an agent could use a model and dodge the count by leaving before the last event.

use std::{io, sync::Arc, time::Duration};

use agent_operator::domain::Usage;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use super::{
    Kind,
    asked::Asked,
    error,
    meter::{Counted, Meter},
    prices::Prices,
};
use crate::gateway::{
    book::{Began, Book, ModelCall},
    grants::Attempt,
    metrics::CallResult,
    respond::Answer,
};

/// Longest silence within an answer; the provider sends pings meanwhile.
const SILENCE_MAX: Duration = Duration::from_mins(5);
/// Pieces between provider and agent; a slow agent slows the provider down.
const PIECES_MAX: usize = 16;
/// Largest error body that is passed on.
const ERROR_BYTES_MAX: usize = 64 * 1024;
/// Headers of the provider that reach the agent.
const ANSWER_HEADERS: [&str; 5] =
    ["content-type", "request-id", "retry-after", "retry-after-ms", "x-should-retry"];
/// Prefix of further headers that do.
const ANSWER_HEADER_PREFIX: &str = "anthropic-ratelimit-";

/// What is needed to count an answer.
pub(super) struct Flow {
    pub(super) attempt: Arc<Attempt>,
    pub(super) prices: Prices,
    /// Model that was asked for.
    pub(super) model: String,
    /// False for operations that cost nothing.
    pub(super) counted: bool,
    /// What was asked, for when the provider does not say what it used.
    pub(super) asked: Asked,
    /// Held until the answer has been read to its end.
    pub(super) slot: OwnedSemaphorePermit,
    /// Where its end is noted.
    pub(super) book: Book,
    /// When it was sent.
    pub(super) began: Began,
}

impl Flow {
    /// Notes the end of a call of which the provider gave no figures: it is charged by estimate.
    pub(super) fn over_unsaid(&self, result: CallResult, status: Option<StatusCode>) {
        if !self.counted {
            return;
        }
        let usage = self.charge(&self.model, self.asked.estimate(self.began.took()), 0);
        self.over(result, status, usage);
    }

    /// Adds what the call used to the attempt's count, with its price.
    fn charge(&self, model: &str, usage: Usage, cached_for_an_hour: u64) -> Usage {
        let price = self.prices.of(model).or_else(|| self.prices.of(&self.model));
        let cost = price.map_or(0, |price| price.cost_micro_usd(&usage, cached_for_an_hour));
        let usage = Usage { cost_micro_usd: cost, ..usage };
        self.attempt.count(usage);
        usage
    }

    /// Notes how the call ended.
    fn over(&self, result: CallResult, status: Option<StatusCode>, usage: Usage) {
        if !self.counted {
            return;
        }
        let (attempt, began, model) = (&*self.attempt, self.began, self.model.as_str());
        let priced = self.prices.entry(model).map(|(name, _)| name);
        self.book.model_called(&ModelCall { attempt, began, model, priced, result, status, usage });
    }
}

/// Turns the provider's response into ours.
pub(super) fn pass_on(response: Response<Incoming>, flow: Flow, tasks: &TaskTracker) -> Answer {
    let (parts, body) = response.into_parts();
    if !parts.status.is_success() {
        return pass_on_error(parts.status, &parts.headers, body, flow, tasks);
    }
    let meter = match meter_for(&parts.headers) {
        Some(meter) => meter,
        None if flow.counted => {
            let message = "the model provider's answer has a form that cannot be counted";
            flow.attempt.set_provider_failure(Some(message.to_owned()));
            flow.over_unsaid(CallResult::Broken, Some(parts.status));
            return error(StatusCode::BAD_GATEWAY, Kind::API, message, false);
        }
        None => Meter::json(),
    };
    let (sink, pieces) = mpsc::channel(PIECES_MAX);
    let headers = kept_headers(&parts.headers);
    tasks.spawn(pump(body, parts.status, sink, meter, flow).in_current_span());
    answer(parts.status, headers, pieces)
}

fn answer(
    status: StatusCode,
    headers: HeaderMap,
    pieces: mpsc::Receiver<Result<Bytes, io::Error>>,
) -> Answer {
    let mut answer = Response::new(Body::from_stream(ReceiverStream::new(pieces)));
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    answer
}

/// Failures of the provider are passed through and remembered, for the step's reason.
fn pass_on_error(
    status: StatusCode,
    headers: &HeaderMap,
    body: Incoming,
    flow: Flow,
    tasks: &TaskTracker,
) -> Answer {
    flow.over(CallResult::Refused, Some(status), Usage::default());
    if flow.counted && is_provider_failure(status) {
        let message = format!("the model provider answered {}", status.as_u16());
        tracing::warn!("{message}");
        flow.attempt.set_provider_failure(Some(message));
    }
    if status.is_redirection() || status.is_informational() {
        let message = "the model provider answered with a redirect, which is not followed";
        return error(StatusCode::BAD_GATEWAY, Kind::API, message, false);
    }
    let (sink, pieces) = mpsc::channel(PIECES_MAX);
    let ended = flow.attempt.agent_ended().clone();
    tasks.spawn(async move {
        let mut body = http_body_util::Limited::new(body, ERROR_BYTES_MAX);
        let copy = async {
            while let Some(Ok(frame)) = body.frame().await {
                let Ok(bytes) = frame.into_data() else { continue };
                if sink.send(Ok(bytes)).await.is_err() {
                    break;
                }
            }
        };
        tokio::select! {
            () = ended.cancelled() => {}
            _ = timeout(SILENCE_MAX, copy) => {}
        }
        drop(flow.slot);
    });
    answer(status, kept_headers(headers), pieces)
}

/// Overload, quota, rate limit and refused keys: another attempt of the step may do better later,
/// and nothing that the agent did is to blame.
fn is_provider_failure(status: StatusCode) -> bool {
    status.is_server_error()
        || status.is_redirection()
        || matches!(status.as_u16(), 401 | 402 | 403 | 429)
}

fn meter_for(headers: &HeaderMap) -> Option<Meter> {
    let plain = headers
        .get(header::CONTENT_ENCODING)
        .is_none_or(|encoding| encoding.as_bytes() == b"identity");
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    match kind.split(';').next()?.trim() {
        "text/event-stream" if plain => Some(Meter::events()),
        "application/json" if plain => Some(Meter::json()),
        _ => None,
    }
}

fn kept_headers(from: &HeaderMap) -> HeaderMap {
    from.iter()
        .filter(|(name, _)| {
            ANSWER_HEADERS.contains(&name.as_str())
                || name.as_str().starts_with(ANSWER_HEADER_PREFIX)
        })
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Reads the answer to its end and counts it.
async fn pump(
    mut body: Incoming,
    status: StatusCode,
    sink: mpsc::Sender<Result<Bytes, io::Error>>,
    mut meter: Meter,
    flow: Flow,
) {
    let ended = flow.attempt.agent_ended().clone();
    let whole = tokio::select! {
        () = ended.cancelled() => false,
        whole = copy(&mut body, &sink, &mut meter) => whole,
    };
    if flow.counted {
        settle(&flow, &meter.finish(), status, whole, ended.is_cancelled());
    }
    // The count stands before the agent sees the end, so its next call meets the new budget.
    if !whole {
        let _ = sink.send(Err(io::Error::other("the model's answer broke off"))).await;
    }
}

/// True when the provider ended its answer properly.
async fn copy(
    body: &mut Incoming,
    sink: &mpsc::Sender<Result<Bytes, io::Error>>,
    meter: &mut Meter,
) -> bool {
    loop {
        match timeout(SILENCE_MAX, body.frame()).await {
            Ok(None) => return true,
            Ok(Some(Ok(frame))) => {
                let Ok(bytes) = frame.into_data() else { continue };
                if meter.feed(&bytes).is_err() {
                    return false;
                }
                // An error says that the agent has hung up; the rest is read for the count alone.
                let _ = sink.send(Ok(bytes)).await;
            }
            Ok(Some(Err(_))) | Err(_) => return false,
        }
    }
}

fn settle(flow: &Flow, counted: &Counted, status: StatusCode, whole: bool, cancelled: bool) {
    let model = counted.model.as_deref().unwrap_or(&flow.model);
    let usage = flow.charge(model, used(flow, counted), counted.cached_for_an_hour);
    let result = match &counted.error {
        Some(_) => CallResult::Refused,
        None if whole => CallResult::Answered,
        None if cancelled => CallResult::Ended,
        None => CallResult::Broken,
    };
    flow.over(result, Some(status), usage);
    let failure = match &counted.error {
        Some(kind) => Some(format!("the model provider answered {kind}")),
        None if !whole && !cancelled => Some("the model provider's answer broke off".to_owned()),
        None => None,
    };
    if !cancelled {
        flow.attempt.set_provider_failure(failure);
    }
}

/// What the answer has used. One that says nothing of it is charged by estimate, unless it is a refusal.
fn used(flow: &Flow, counted: &Counted) -> Usage {
    let usage = Usage { turns: u64::from(counted.complete), ..counted.usage };
    if counted.told || counted.error.is_some() {
        return usage;
    }
    let estimate = flow.asked.estimate(flow.began.took());
    let output_tokens = usage.output_tokens.max(estimate.output_tokens);
    Usage { input_tokens: estimate.input_tokens, output_tokens, ..usage }
}
