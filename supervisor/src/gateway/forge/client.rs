//! JSON over HTTP(S) to a forge: one connection pool, a time limit, a size limit, no redirects.

use std::{path::Path, time::Duration};

use agent_operator::domain::text;
use axum::body::Body;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use serde_json::Value;
use zeroize::Zeroizing;

use super::ForgeError;
use crate::gateway::{
    git::Login,
    http_client::{self, HttpClient},
};

/// A forge that does not answer one small request in this time is not available.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// A page of 50 pull requests with bodies of 64 KiB each.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How much of a refusal's text is shown.
const DETAIL_BYTES_MAX: usize = 300;

/// The client; a clone shares its connections.
#[derive(Clone, Debug)]
pub(super) struct Http {
    client: HttpClient,
}

/// One call of a forge's API.
pub(super) struct Call<'a> {
    /// Host as the user knows it, for messages.
    pub(super) host: &'a str,
    /// What is done, for messages.
    pub(super) operation: &'static str,
    /// Method.
    pub(super) method: Method,
    /// Full URL.
    pub(super) url: String,
    /// JSON body.
    pub(super) body: Option<Value>,
}

/// A successful or conflicting answer.
#[derive(Debug)]
pub(super) struct Answer {
    /// Status: 2xx or 409.
    pub(super) status: StatusCode,
    /// JSON body of a success; null for a conflict.
    pub(super) body: Value,
}

impl Http {
    /// A client that trusts the system's certificate authorities and those in `ca_file` (PEM).
    pub(super) fn new(ca_file: Option<&Path>) -> Result<Self, ForgeError> {
        let client = http_client::build(ca_file)
            .map_err(|error| ForgeError::BuildClient { detail: describe(&error) })?;
        Ok(Self { client })
    }

    /// Makes one call. Statuses other than 2xx and 409 become errors.
    pub(super) async fn call(&self, call: Call<'_>, login: &Login) -> Result<Answer, ForgeError> {
        let unreached = |detail: String| ForgeError::ReachForge {
            host: call.host.to_owned(),
            operation: call.operation,
            detail,
        };
        let request = request(&call, login)?;
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| describe(&error))?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| error.to_string())?.to_bytes();
            Ok::<_, String>((parts, body))
        };
        let (parts, body) = tokio::time::timeout(REQUEST_TIMEOUT, exchange)
            .await
            .map_err(|_| unreached(format!("no answer in {} s", REQUEST_TIMEOUT.as_secs())))?
            .map_err(unreached)?;
        if parts.status == StatusCode::CONFLICT {
            return Ok(Answer { status: parts.status, body: Value::Null });
        }
        if parts.status.is_success() {
            let body = serde_json::from_slice(&body).map_err(|error| ForgeError::ReadAnswer {
                host: call.host.to_owned(),
                operation: call.operation,
                detail: error.to_string(),
            })?;
            return Ok(Answer { status: parts.status, body });
        }
        Err(refusal(&call, parts.status, &parts.headers, &body))
    }
}

fn request(call: &Call<'_>, login: &Login) -> Result<Request<Body>, ForgeError> {
    let unusable = |detail: String| ForgeError::RefuseRequest {
        host: call.host.to_owned(),
        operation: call.operation,
        status: 0,
        detail,
    };
    let uri: Uri = call.url.parse().map_err(|_| unusable("its URL is not usable".to_owned()))?;
    let secret = login.password().expose();
    let value = match login.user() {
        None => Zeroizing::new(format!("token {secret}")),
        Some(user) => {
            let pair = Zeroizing::new(format!("{user}:{secret}"));
            let pair = Zeroizing::new(BASE64.encode(pair.as_bytes()));
            Zeroizing::new(format!("Basic {}", *pair))
        }
    };
    let mut authorization = header::HeaderValue::from_str(&value)
        .map_err(|_| unusable("its credential is not usable in a header".to_owned()))?;
    authorization.set_sensitive(true);
    let body = call.body.as_ref().map_or_else(Body::empty, |body| body.to_string().into());
    Request::builder()
        .method(call.method.clone())
        .uri(uri)
        .header(header::AUTHORIZATION, authorization)
        .header(header::ACCEPT, "application/json")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, "agent-operator")
        .body(body)
        .map_err(|error| unusable(error.to_string()))
}

/// What a status other than success means.
fn refusal(call: &Call<'_>, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> ForgeError {
    let host = call.host.to_owned();
    let operation = call.operation;
    // GitHub's family of APIs answers 403 as well when the rate limit is used up.
    let limited = headers.get("x-ratelimit-remaining").is_some_and(|left| left == "0")
        || headers.contains_key(header::RETRY_AFTER);
    let unavailable = status.is_server_error()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
        || (status == StatusCode::FORBIDDEN && limited);
    if unavailable {
        return ForgeError::ReachForge { host, operation, detail: format!("status {status}") };
    }
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            ForgeError::Authenticate { host, operation }
        }
        StatusCode::NOT_FOUND => ForgeError::FindRepository { host, operation },
        _ => {
            let said: Value = serde_json::from_slice(body).unwrap_or_default();
            let said = said.get("message").and_then(Value::as_str).unwrap_or("no message");
            let detail = text::truncate(&text::printable(said), DETAIL_BYTES_MAX).to_owned();
            ForgeError::RefuseRequest { host, operation, status: status.as_u16(), detail }
        }
    }
}

/// An error with its causes in one line; the client's own text says only `client error`.
fn describe(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words = format!("{words}: {cause}");
        source = cause.source();
    }
    text::truncate(&words, DETAIL_BYTES_MAX).to_owned()
}
