//! Builds `CodingTask`s and unique names.

use std::{
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use agent_operator::crd::{CodingTask, CodingTaskSpec};
use serde_json::{Value, json};

/// The repository of the sample, as users write it; the upstream map leads to the local forge.
pub(crate) const REPOSITORY: &str = "https://github.com/jcwearn/example-repo.git";

/// A name that no other test and no earlier run of the tests has used.
pub(crate) fn unique(prefix: &str) -> String {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let started = std::fs::metadata("/proc/self")
        .and_then(|meta| meta.modified())
        .ok()
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
        .map_or(0, |since| since.as_secs() % 1_000_000);
    format!("{prefix}-{started}-{}-{serial}", process::id() % 10_000)
}

/// The sample's spec with another prompt, changed by `overrides` (a JSON merge).
pub(crate) fn task(name: &str, prompt: &str, overrides: &Value) -> CodingTask {
    let mut spec = json!({
        "source": {"type": "chat", "chat": {"sessionId": "e2e", "userId": "e2e"}},
        "repository": {"url": REPOSITORY, "branch": "main"},
        "prompt": prompt,
        "anthropicApiKeyRef": {"name": "agent-secrets", "key": "anthropic-api-key"},
        "gitCredentialsRef": {"name": "agent-secrets", "key": "github-token"},
    });
    merge(&mut spec, overrides);
    let spec: CodingTaskSpec = serde_json::from_value(spec).expect("a spec of the right shape");
    CodingTask::new(name, spec)
}

/// Overrides that run `script` by `sh -c` as the agent of every step with one.
pub(crate) fn command_agent(script: &str) -> Value {
    json!({"agent": {"type": "Command", "command": ["sh", "-c", script]}})
}

/// Recursive JSON merge: objects are joined, everything else is replaced.
pub(crate) fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}
