//! Answers in the shapes that the callers understand.

use std::time::Duration;

use agent_operator::{attempt::ApiError, domain::Reason};
use axum::body::Body;
use http::{Response, StatusCode, header};
use serde::Serialize;

/// Body type of every answer.
pub type Answer = Response<Body>;

/// How long a client waits before it repeats a request that came too early.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A JSON answer.
pub fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    // Our own types serialise; should one ever not, the client sees an empty 500.
    let (status, bytes) = match serde_json::to_vec(value) {
        Ok(bytes) => (status, bytes),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, Vec::new()),
    };
    let mut answer = Response::new(Body::from(bytes));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    answer
}

/// An answer without a body.
pub fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = status;
    answer
}

/// An error of the attempt API. A retryable one says when to come back.
pub fn error(
    status: StatusCode,
    reason: Option<Reason>,
    message: impl Into<String>,
    retryable: bool,
) -> Answer {
    let mut answer = json(status, &ApiError { reason, message: message.into(), retryable });
    if retryable {
        retry_after(&mut answer, RETRY_AFTER);
    }
    answer
}

/// A refusal that will not change.
pub fn refused(status: StatusCode, message: impl Into<String>) -> Answer {
    error(status, None, message, false)
}

/// 503: the same again later.
pub fn later(message: impl Into<String>) -> Answer {
    error(StatusCode::SERVICE_UNAVAILABLE, None, message, true)
}

/// Sets `Retry-After`, in whole seconds.
pub fn retry_after(answer: &mut Answer, wait: Duration) {
    let value = header::HeaderValue::from(wait.as_secs().max(1));
    answer.headers_mut().insert(header::RETRY_AFTER, value);
}
