//! HTTP(S) to a forge: one connection pool, a time limit, a size limit, no redirects. Gitea's JSON
//! calls are here too; GitHub's are octocrab's.

use std::time::Duration;

use axum::body::Body;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header, response::Parts};
use http_body_util::{BodyExt as _, Limited};
use serde_json::Value;
use zeroize::Zeroizing;

use super::{
    ForgeError,
    refusal::{Asked, refusal},
};
use crate::gateway::{
    git::Login,
    http_client::{HttpClient, describe},
};

/// A forge that does not answer one small request in this time is not available.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// A page of 100 pull requests with bodies of 64 KiB each and what forges add to them.
const ANSWER_BYTES_MAX: usize = 12 * 1024 * 1024;

/// The client; a clone shares its connections.
#[derive(Clone, Debug)]
pub(super) struct Http {
    client: HttpClient,
}

/// An exchange without a usable answer, and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unreached(String);

/// One call of a forge's API.
pub(super) struct Call<'a> {
    /// What is asked, for messages.
    pub(super) asked: Asked<'a>,
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
    /// Calls by way of `client`.
    pub(super) fn new(client: HttpClient) -> Self {
        Self { client }
    }

    /// Sends one request and reads its answer whole, within the limits.
    pub(super) async fn exchange(
        &self,
        request: Request<Body>,
    ) -> Result<(Parts, Bytes), Unreached> {
        let exchange = async {
            let response = self.client.request(request).await;
            let (parts, body) = response.map_err(|error| describe(&error))?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| error.to_string())?.to_bytes();
            Ok::<_, String>((parts, body))
        };
        let seconds = REQUEST_TIMEOUT.as_secs();
        tokio::time::timeout(REQUEST_TIMEOUT, exchange)
            .await
            .map_err(|_| Unreached(format!("no answer in {seconds} s")))?
            .map_err(Unreached)
    }

    /// Makes one call. Statuses other than 2xx and 409 become errors.
    pub(super) async fn call(
        &self,
        call: Call<'_>,
        authorization: &HeaderValue,
    ) -> Result<Answer, ForgeError> {
        let request = request(&call, authorization)?;
        let (parts, body) =
            self.exchange(request).await.map_err(|error| call.asked.unreached(&error))?;
        if parts.status == StatusCode::CONFLICT {
            return Ok(Answer { status: parts.status, body: Value::Null });
        }
        if parts.status.is_success() {
            let body = serde_json::from_slice(&body).map_err(|error| call.asked.misread(&error))?;
            return Ok(Answer { status: parts.status, body });
        }
        let said: Value = serde_json::from_slice(&body).unwrap_or_default();
        let said = said.get("message").and_then(Value::as_str).unwrap_or_default();
        Err(refusal(&call.asked, parts.status, &parts.headers, said))
    }
}

impl Asked<'_> {
    /// The error for an exchange that failed.
    pub(super) fn unreached(&self, error: &dyn std::error::Error) -> ForgeError {
        ForgeError::ReachForge {
            host: self.host.to_owned(),
            operation: self.operation,
            detail: describe(error),
            wait: None,
        }
    }

    /// The error for a number that is a pull request's.
    pub(super) fn not_an_issue(&self, reference: &str) -> ForgeError {
        ForgeError::FindIssue {
            host: self.host.to_owned(),
            issue: format!("{reference} (it is a pull request)"),
            missing: self.right.to_owned(),
        }
    }

    /// The error for an answer of another form.
    pub(super) fn misread(&self, error: &dyn std::error::Error) -> ForgeError {
        ForgeError::ReadAnswer {
            host: self.host.to_owned(),
            operation: self.operation,
            detail: describe(error),
        }
    }
}

/// The credential as a header: a bare token under `scheme`, or user and password.
pub(super) fn authorization(login: &Login, scheme: &str) -> Result<HeaderValue, ForgeError> {
    let secret = login.password().expose();
    let value = match login.user() {
        None => Zeroizing::new(format!("{scheme} {secret}")),
        Some(user) => {
            let pair = Zeroizing::new(format!("{user}:{secret}"));
            let pair = Zeroizing::new(BASE64.encode(pair.as_bytes()));
            Zeroizing::new(format!("Basic {}", *pair))
        }
    };
    let mut value = HeaderValue::from_str(&value).map_err(|_| ForgeError::PresentCredential)?;
    value.set_sensitive(true);
    Ok(value)
}

fn request(call: &Call<'_>, authorization: &HeaderValue) -> Result<Request<Body>, ForgeError> {
    let unusable = |detail: String| ForgeError::RefuseRequest {
        host: call.asked.host.to_owned(),
        operation: call.asked.operation,
        status: 0,
        detail,
    };
    let uri: Uri = call.url.parse().map_err(|_| unusable("its URL is not usable".to_owned()))?;
    let body = call.body.as_ref().map_or_else(Body::empty, |body| body.to_string().into());
    Request::builder()
        .method(call.method.clone())
        .uri(uri)
        .header(header::AUTHORIZATION, authorization)
        .header(header::ACCEPT, "application/json")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, USER_AGENT)
        .body(body)
        .map_err(|error| unusable(error.to_string()))
}

/// GitHub refuses requests without one.
pub(super) const USER_AGENT: &str = "agent-operator";
