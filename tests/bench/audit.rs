//! The API server's own record of requests: neutral, and with microseconds.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::site::SYSTEM;

/// A request that was answered.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    stage: String,
    pub verb: String,
    user: User,
    #[serde(default)]
    object_ref: ObjectRef,
    #[serde(rename = "requestReceivedTimestamp")]
    pub received: Timestamp,
    #[serde(rename = "stageTimestamp")]
    pub answered: Timestamp,
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
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ResponseStatus {
    code: u16,
}

impl Request {
    pub fn is_of(&self, account: &str) -> bool {
        self.user.username == format!("system:serviceaccount:{SYSTEM}:{account}")
    }

    /// `resource` or `resource/subresource`.
    pub fn target(&self) -> String {
        let ObjectRef { resource, subresource, .. } = &self.object_ref;
        if subresource.is_empty() { resource.clone() } else { format!("{resource}/{subresource}") }
    }

    pub fn is_write(&self) -> bool {
        ["create", "update", "patch", "delete", "deletecollection"].contains(&self.verb.as_str())
    }

    pub fn is_read(&self) -> bool {
        ["get", "list"].contains(&self.verb.as_str())
    }

    pub fn worked(&self) -> bool {
        self.response_status.code < 300
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

/// All answered requests so far, in the order of their answers.
pub fn read(log: &Path) -> Vec<Request> {
    let text = fs::read_to_string(log).unwrap();
    let parsed = text.lines().filter_map(|line| serde_json::from_str::<Request>(line).ok());
    let mut all: Vec<_> = parsed.filter(|request| request.stage == "ResponseComplete").collect();
    all.sort_by_key(|request| request.answered);
    all
}

/// How many there are of each kind, for whoever looks for the one too many.
pub fn kinds<'a>(requests: impl Iterator<Item = &'a Request>) -> BTreeMap<String, u32> {
    let mut kinds = BTreeMap::new();
    for request in requests {
        let account = request.user.username.rsplit(':').next().unwrap_or_default();
        let kind = format!("{account}: {} {}", request.verb, request.target());
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

/// Each request with the time since the first, in milliseconds: received and answered.
pub fn story(requests: &[Request]) -> String {
    let Some(first) = requests.iter().map(|request| request.received).min() else {
        return String::new();
    };
    let since = |at| between(first, at).unwrap_or_default().as_secs_f64() * 1000.0;
    let lines = requests.iter().map(|request| {
        let account = request.user.username.rsplit(':').next().unwrap_or_default();
        let (from, to) = (since(request.received), since(request.answered));
        format!("{from:9.1} {to:9.1} {account} {} {}\n", request.verb, request.target())
    });
    lines.collect()
}

/// From one moment of the server's clock to another; none when the second is not after the first.
pub fn between(from: Timestamp, to: Timestamp) -> Option<Duration> {
    Duration::try_from(to.duration_since(from)).ok()
}
