//! The API server's own record of requests: neutral, and with microseconds.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

/// A request that was answered.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    stage: String,
    /// What was asked for.
    pub verb: String,
    user: User,
    #[serde(default)]
    object_ref: ObjectRef,
    /// When it came.
    #[serde(rename = "requestReceivedTimestamp")]
    pub received: Timestamp,
    /// When its answer went.
    #[serde(rename = "stageTimestamp")]
    pub answered: Timestamp,
    /// The object in the answer, where the audit policy asks for it.
    #[serde(default)]
    pub response_object: Value,
    #[serde(default)]
    response_status: ResponseStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct User {
    username: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ObjectRef {
    resource: String,
    subresource: String,
    name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ResponseStatus {
    code: u16,
}

impl Request {
    /// Reads a line. None for other stages of a request, and for a line that a killed server did not finish.
    pub fn parse(line: &str) -> Option<Self> {
        let request: Self = serde_json::from_str(line).ok()?;
        (request.stage == "ResponseComplete").then_some(request)
    }

    /// Who asked.
    pub fn user(&self) -> &str {
        &self.user.username
    }

    /// Whether a service account asked.
    pub fn is_of(&self, namespace: &str, account: &str) -> bool {
        let rest = self.user().strip_prefix("system:serviceaccount:");
        rest.and_then(|rest| rest.split_once(':')) == Some((namespace, account))
    }

    /// `resource` or `resource/subresource`.
    pub fn target(&self) -> String {
        let ObjectRef { resource, subresource, .. } = &self.object_ref;
        if subresource.is_empty() { resource.clone() } else { format!("{resource}/{subresource}") }
    }

    /// Name of the object; empty for lists.
    pub fn name(&self) -> &str {
        &self.object_ref.name
    }

    /// Whether it was to change something.
    pub fn is_write(&self) -> bool {
        ["create", "update", "patch", "delete", "deletecollection"].contains(&self.verb.as_str())
    }

    /// Whether it was to be shown something once.
    pub fn is_read(&self) -> bool {
        ["get", "list"].contains(&self.verb.as_str())
    }

    /// Whether it was granted.
    pub fn worked(&self) -> bool {
        (200..300).contains(&self.response_status.code)
    }

    /// What is counted apart: told to people, asked about callers, or said to hold an office.
    pub fn apart(&self) -> Option<&'static str> {
        match self.object_ref.resource.as_str() {
            "events" => Some("events"),
            "leases" => Some("leases"),
            "tokenreviews" | "subjectaccessreviews" => Some("reviews"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"kind":"Event","stage":"ResponseComplete","verb":"patch",
        "user":{"username":"system:serviceaccount:system:controller"},
        "objectRef":{"resource":"agentruns","subresource":"status","name":"x"},
        "requestReceivedTimestamp":"2026-11-28T10:00:00.000001Z","stageTimestamp":"2026-11-28T10:00:00.5Z",
        "responseStatus":{"code":200}}"#;

    #[test]
    fn a_line_says_who_wrote_what_and_how_it_went() {
        let request = Request::parse(LINE).unwrap();
        assert!(request.is_of("system", "controller") && !request.is_of("system", "other"));
        assert_eq!((request.target().as_str(), request.name()), ("agentruns/status", "x"));
        assert!(request.is_write() && !request.is_read() && request.worked());
        assert_eq!(request.apart(), None);
    }

    #[test]
    fn a_refused_request_an_early_stage_and_half_a_line_are_no_success() {
        let refused = LINE.replace("\"code\":200", "\"code\":409");
        assert!(!Request::parse(&refused).unwrap().worked());
        assert!(Request::parse(&LINE.replace("ResponseComplete", "RequestReceived")).is_none());
        assert!(Request::parse(&LINE[..100]).is_none());
    }
}
