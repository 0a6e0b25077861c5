//! What a bench reads of the API server's own record of requests.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

pub use agent_operator_doubles::audit::Request;
use jiff::Timestamp;

use crate::site::SYSTEM;

/// Whether one of our accounts asked.
pub fn is_of(request: &Request, account: &str) -> bool {
    request.is_of(SYSTEM, account)
}

/// All answered requests so far, in the order of their answers.
pub fn read(log: &Path) -> Vec<Request> {
    let text = fs::read_to_string(log).unwrap();
    let mut all: Vec<_> = text.lines().filter_map(Request::parse).collect();
    all.sort_by_key(|request| request.answered);
    all
}

/// How many there are of each kind, for whoever looks for the one too many.
pub fn kinds<'a>(requests: impl Iterator<Item = &'a Request>) -> BTreeMap<String, u32> {
    let mut kinds = BTreeMap::new();
    for request in requests {
        let account = request.user().rsplit(':').next().unwrap_or_default();
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
        let account = request.user().rsplit(':').next().unwrap_or_default();
        let (from, to) = (since(request.received), since(request.answered));
        format!("{from:9.1} {to:9.1} {account} {} {}\n", request.verb, request.target())
    });
    lines.collect()
}

/// From one moment of the server's clock to another; none when the second is not after the first.
pub fn between(from: Timestamp, to: Timestamp) -> Option<Duration> {
    Duration::try_from(to.duration_since(from)).ok()
}
