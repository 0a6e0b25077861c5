//! The model API: adds the real key, counts tokens, stops at the budget.
//!
//! Two operations are passed on, `POST /v1/messages` and `POST /v1/messages/count_tokens`; the
//! request is written anew with listed headers only, and of the answer listed headers only go back.

#![allow(clippy::result_large_err, reason = "the error is the answer itself, made once a request")]

mod answer;
mod asked;
mod body;
mod call;
pub mod key;
pub mod meter;
mod models;
pub mod prices;
pub mod request;

use std::sync::Arc;

use agent_operator::{
    attempt::StopOrder,
    domain::{Credential, Reason, secret::purpose},
};
use axum::body::Body;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use self::{
    answer::Flow,
    asked::Asked,
    body::{Bodies, Whole},
    call::Call,
    models::AllowedModels,
    prices::Prices,
    request::RequestError,
};
use super::{
    args::Config,
    book::{Began, Book},
    grants::{Attempt, RefusalKind},
    http_client::HttpClient,
    identity::Caller,
    respond::{self, Answer},
};

/// Longest query string; the CLI sends `beta=true`.
const QUERY_BYTES_MAX: usize = 128;
/// Headers of the agent that reach the provider; all else is dropped, its credentials first.
const REQUEST_HEADERS: [&str; 7] = [
    "accept",
    "content-type",
    "user-agent",
    "anthropic-version",
    "anthropic-beta",
    "anthropic-dangerous-direct-browser-access",
    "x-app",
];
/// Prefix of further headers that do: the client library's own description.
const REQUEST_HEADER_PREFIX: &str = "x-stainless-";

/// Kind of an error in the provider's own shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind(&'static str);

impl Kind {
    pub(super) const INVALID: Self = Self("invalid_request_error");
    pub(super) const AUTHENTICATION: Self = Self("authentication_error");
    pub(super) const PERMISSION: Self = Self("permission_error");
    pub(super) const NOT_FOUND: Self = Self("not_found_error");
    pub(super) const TOO_LARGE: Self = Self("request_too_large");
    pub(super) const RATE_LIMIT: Self = Self("rate_limit_error");
    pub(super) const API: Self = Self("api_error");
}

/// An error as the provider would write it, so that its clients understand it.
pub(super) fn error(status: StatusCode, kind: Kind, message: &str, retryable: bool) -> Answer {
    let body = serde_json::json!({
        "type": "error",
        "error": { "type": kind.0, "message": format!("agent-operator gateway: {message}") },
    });
    let mut answer = respond::json(status, &body);
    let again = HeaderValue::from_static(if retryable { "true" } else { "false" });
    answer.headers_mut().insert("x-should-retry", again);
    if retryable {
        respond::retry_after(&mut answer, respond::RETRY_AFTER);
    }
    answer
}

/// An operation of the model API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Messages,
    CountTokens,
}

impl Operation {
    fn of(method: &Method, path: &str) -> Option<Self> {
        match (method, path) {
            (&Method::POST, "/v1/messages") => Some(Self::Messages),
            (&Method::POST, "/v1/messages/count_tokens") => Some(Self::CountTokens),
            _ => None,
        }
    }
}

/// The proxy. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ModelProxy {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: HttpClient,
    base_url: String,
    host: String,
    models: AllowedModels,
    prices: Prices,
    bodies: Bodies,
    answers: TaskTracker,
    book: Book,
}

/// A call that has passed every check that needs no body.
struct Admitted {
    operation: Operation,
    credential: Credential,
    slot: OwnedSemaphorePermit,
}

impl ModelProxy {
    /// A proxy with the chart's settings; answers are passed on by tasks in `answers`.
    pub fn new(config: &Config, client: HttpClient, answers: TaskTracker, book: Book) -> Self {
        let bytes_max = config.limits.model_body_bytes;
        let bodies = Bodies::new(bytes_max, &config.llm.server_tools, answers.clone());
        Self {
            inner: Arc::new(Inner {
                client,
                base_url: config.llm.base_url.clone(),
                host: config.llm.host.clone(),
                models: AllowedModels::new(config.llm.models.clone()),
                prices: Prices::new(config.prices.clone()),
                bodies,
                answers,
                book,
            }),
        }
    }

    /// Answers a request below `/llm`; `path` is what follows.
    pub async fn handle(&self, caller: &Caller, path: &str, request: Request<Body>) -> Answer {
        match self.checked(&caller.attempt, path, request).await {
            Ok(call) => call.made(&self.inner.answers).await,
            Err(answer) => answer,
        }
    }

    /// The call upstream that a request comes to.
    async fn checked(
        &self,
        attempt: &Arc<Attempt>,
        path: &str,
        request: Request<Body>,
    ) -> Result<Call, Answer> {
        let Admitted { operation, credential, slot } = self.admit(attempt, path, &request)?;
        let (parts, body) = request.into_parts();
        let body = self.inner.bodies.read(attempt, body).await?;
        let (Whole { bytes, room }, read) = self.inner.bodies.check(body).await?;
        let facts = self.judge(attempt, read)?;
        let (outgoing, asked) = Asked::new(bytes, facts.max_tokens);
        let request = self.rewrite(&parts, path, &credential, outgoing).ok_or_else(|| {
            error(StatusCode::BAD_REQUEST, Kind::INVALID, "the query is not plain", false)
        })?;
        let flow = Flow {
            attempt: Arc::clone(attempt),
            prices: self.inner.prices.clone(),
            model: facts.model,
            counted: operation == Operation::Messages,
            asked,
            slot,
            book: self.inner.book.clone(),
            began: Began::now(),
        };
        Ok(Call { client: self.inner.client.clone(), request, flow, room })
    }

    /// Everything that can be said without the body.
    fn admit(
        &self,
        attempt: &Arc<Attempt>,
        path: &str,
        request: &Request<Body>,
    ) -> Result<Admitted, Answer> {
        let refuse = |status, kind, message: &str| {
            attempt.refuse(RefusalKind::Model, &format!("{} {path}", request.method()));
            error(status, kind, message, false)
        };
        let operation = Operation::of(request.method(), path).ok_or_else(|| {
            refuse(StatusCode::NOT_FOUND, Kind::NOT_FOUND, "this operation is not allowed")
        })?;
        if !attempt.assignment().step.may_call_model() {
            let message = "this step runs without a model";
            return Err(refuse(StatusCode::FORBIDDEN, Kind::PERMISSION, message));
        }
        if let Err(not_now) = attempt.agent_may_act(Instant::now()) {
            return Err(refuse(StatusCode::FORBIDDEN, Kind::PERMISSION, &not_now.to_string()));
        }
        if operation == Operation::Messages {
            attempt
                .check_budget()
                .map_err(|exhausted| over_budget(attempt, &exhausted.to_string()))?;
        }
        let slot = attempt.limits().take_model_call().ok_or_else(|| {
            attempt.refuse(RefusalKind::Limit, "model calls");
            let message = "too many model calls at once";
            error(StatusCode::TOO_MANY_REQUESTS, Kind::RATE_LIMIT, message, true)
        })?;
        let credential = self.credential(attempt)?;
        Ok(Admitted { operation, credential, slot })
    }

    fn credential(&self, attempt: &Attempt) -> Result<Credential, Answer> {
        let Some(credential) = attempt.credential(purpose::MODEL) else {
            attempt.ask_credentials_again();
            let message = "the gateway waits for the attempt's credentials";
            return Err(error(StatusCode::SERVICE_UNAVAILABLE, Kind::API, message, true));
        };
        credential.filter(|known| known.host.eq_ignore_ascii_case(&self.inner.host)).ok_or_else(
            || {
                let message = "the task has no credential for this model API";
                error(StatusCode::FORBIDDEN, Kind::PERMISSION, message, false)
            },
        )
    }

    /// Whether a request that was read may be passed on.
    fn judge(
        &self,
        attempt: &Attempt,
        read: Result<request::Facts, RequestError>,
    ) -> Result<request::Facts, Answer> {
        let facts = read.map_err(|refusal| {
            let message = refusal.to_string();
            let target = match &refusal {
                RequestError::Malformed(_) => "malformed request",
                RequestError::Forbidden(what) => what,
                RequestError::TooManyEntries => {
                    attempt.refuse(RefusalKind::Limit, "model request entries");
                    return error(StatusCode::PAYLOAD_TOO_LARGE, Kind::TOO_LARGE, &message, false);
                }
            };
            attempt.refuse(RefusalKind::Model, target);
            error(StatusCode::BAD_REQUEST, Kind::INVALID, &message, false)
        })?;
        if !self.inner.models.allow(&facts.model) {
            attempt.refuse(RefusalKind::Model, &format!("model {}", facts.model));
            let message = format!(
                "model {} is not allowed here; add it to the chart value llm.models",
                agent_operator::domain::text::printable(&facts.model)
            );
            return Err(error(StatusCode::FORBIDDEN, Kind::PERMISSION, &message, false));
        }
        let limited = attempt.budget().is_some_and(|budget| budget.cost_micro_usd.is_some());
        if limited && self.inner.prices.of(&facts.model).is_none() {
            attempt.refuse(RefusalKind::Model, "model without a price");
            let message = format!(
                "model {} is not in the price table, so the task's cost budget cannot be kept; \
                 add it to the chart value prices",
                agent_operator::domain::text::printable(&facts.model)
            );
            return Err(error(StatusCode::BAD_REQUEST, Kind::INVALID, &message, false));
        }
        Ok(facts)
    }

    /// The request as the provider gets it: our URL and key, listed headers. None when the query
    /// does not fit into a URL.
    fn rewrite(
        &self,
        parts: &http::request::Parts,
        path: &str,
        credential: &Credential,
        body: Body,
    ) -> Option<Request<Body>> {
        let query = parts.uri.query();
        if query.is_some_and(|query| query.len() > QUERY_BYTES_MAX) {
            return None;
        }
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        let uri: Uri = format!("{}{path}{query}", self.inner.base_url).parse().ok()?;
        let mut request = Request::new(body);
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = uri;
        copy_headers(&parts.headers, request.headers_mut());
        let (name, value) = key_header(credential)?;
        request.headers_mut().insert(name, value);
        Some(request)
    }
}

fn copy_headers(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, value) in from {
        let known = REQUEST_HEADERS.contains(&name.as_str());
        if known || name.as_str().starts_with(REQUEST_HEADER_PREFIX) {
            to.append(name.clone(), value.clone());
        }
    }
    // A compressed answer could not be counted.
    to.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
}

/// The credential as a header, marked as sensitive so that no log shows it.
fn key_header(credential: &Credential) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = if credential.scheme == "bearer" {
        let value = Zeroizing::new(format!("Bearer {}", credential.value.expose()));
        (header::AUTHORIZATION, HeaderValue::from_str(&value).ok()?)
    } else {
        let value = HeaderValue::from_str(credential.value.expose().trim()).ok()?;
        (HeaderName::from_static("x-api-key"), value)
    };
    let mut value = value;
    value.set_sensitive(true);
    Some((name, value))
}

/// Ends the step: the agent gets an error that its client does not repeat, the runner the order.
fn over_budget(attempt: &Attempt, message: &str) -> Answer {
    attempt.refuse(RefusalKind::Limit, "budget");
    let grace = attempt.assignment().grace();
    attempt.stop(StopOrder {
        reason: Reason::BudgetExceeded,
        message: message.to_owned(),
        grace_millis: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
    });
    error(StatusCode::TOO_MANY_REQUESTS, Kind::RATE_LIMIT, message, false)
}
