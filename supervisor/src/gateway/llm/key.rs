//! Whether the model API accepts a key, asked without a model request.

use std::time::Duration;

use agent_operator::domain::{Credential, text};
use axum::body::Body;
use http::{HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use tokio::time::timeout;

use super::{ModelProxy, key_header};

/// A list of one model is answered at once; a provider that needs longer is not available.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Largest answer that is looked into; a list of one model has some hundred bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How much of the provider's words is shown.
const DETAIL_BYTES_MAX: usize = 300;
/// Version of the API, which it demands of every request.
const API_VERSION: &str = "2023-06-01";

/// What the model API says to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyCheck {
    /// It is accepted.
    Accepted,
    /// The API has no such operation, as gateways in front of models often do not.
    Unknown(String),
    /// It is refused, in these words.
    Rejected(String),
    /// The API could not be asked.
    Unavailable(String),
}

impl ModelProxy {
    /// Asks the model API for its list of models with `credential`: needs a valid key and costs
    /// nothing.
    pub async fn check_key(&self, credential: &Credential) -> KeyCheck {
        let host = &self.inner.host;
        if !credential.host.eq_ignore_ascii_case(host) {
            return KeyCheck::Rejected(format!(
                "the key is meant for {}, not for {host}",
                credential.host
            ));
        }
        let Some(request) = self.list_models(credential) else {
            return KeyCheck::Rejected("the key cannot be written into a header".to_owned());
        };
        let response = match timeout(ANSWER_TIMEOUT, self.inner.client.request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                let cause = text::error_chain(&error);
                let cause = text::truncate(&cause, DETAIL_BYTES_MAX);
                return KeyCheck::Unavailable(format!("{host} cannot be reached: {cause}"));
            }
            Err(_) => return KeyCheck::Unavailable(format!("{host} does not answer")),
        };
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect();
        let body = timeout(ANSWER_TIMEOUT, body).await.ok().and_then(Result::ok);
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        judge(host, status, &body)
    }

    fn list_models(&self, credential: &Credential) -> Option<Request<Body>> {
        let mut request = Request::get(format!("{}/v1/models?limit=1", self.inner.base_url))
            .body(Body::empty())
            .ok()?;
        let (name, value) = key_header(credential)?;
        let headers = request.headers_mut();
        headers.insert(name, value);
        headers.insert(
            HeaderName::from_static("anthropic-version"),
            HeaderValue::from_static(API_VERSION),
        );
        Some(request)
    }
}

fn judge(host: &str, status: StatusCode, body: &[u8]) -> KeyCheck {
    let said = || format!("{host} answered {}: {}", status.as_u16(), words(body));
    match status.as_u16() {
        200..=299 => KeyCheck::Accepted,
        401 | 403 => KeyCheck::Rejected(said()),
        408 | 425 | 429 | 500 | 502..=599 => KeyCheck::Unavailable(said()),
        _ => KeyCheck::Unknown(said()),
    }
}

/// The provider's own sentence, or the start of whatever it sent.
fn words(body: &[u8]) -> String {
    let json = serde_json::from_slice::<serde_json::Value>(body).ok();
    let sentence = json.as_ref().and_then(|json| json["error"]["message"].as_str());
    let whole = sentence.map_or_else(|| String::from_utf8_lossy(body), Into::into);
    let shown = text::printable(whole.trim());
    if shown.is_empty() {
        "no words".to_owned()
    } else {
        text::truncate(&shown, DETAIL_BYTES_MAX).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: u16, body: &str) -> KeyCheck {
        judge("api.anthropic.com", StatusCode::from_u16(status).unwrap(), body.as_bytes())
    }

    #[test]
    fn only_401_and_403_reject_a_key_and_they_do_it_in_the_providers_words() {
        let body = r#"{"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key"}}"#;
        let said = "api.anthropic.com answered 401: invalid x-api-key".to_owned();
        assert_eq!(judged(401, body), KeyCheck::Rejected(said));
        assert!(matches!(judged(403, ""), KeyCheck::Rejected(_)));
        assert_eq!(judged(200, "{}"), KeyCheck::Accepted);
    }

    #[test]
    fn a_server_without_the_operation_says_nothing_about_the_key() {
        for status in [301, 400, 404, 405, 501] {
            assert!(matches!(judged(status, "nothing here"), KeyCheck::Unknown(_)), "{status}");
        }
    }

    #[test]
    fn an_overloaded_or_broken_server_is_asked_again() {
        for status in [408, 429, 500, 502, 503, 529] {
            assert!(matches!(judged(status, ""), KeyCheck::Unavailable(_)), "{status}");
        }
    }
}
