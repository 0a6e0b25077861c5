//! The scripted model server: what it was asked.

use serde_json::Value;

use super::env;

/// The model server of the local cluster.
pub(crate) struct Model {
    base: String,
}

impl Model {
    pub(crate) fn from_env() -> Self {
        Self { base: env("AO_MODEL_URL") }
    }

    /// All requests whose conversation contains `needle`, oldest first.
    pub(crate) async fn requests_with(&self, needle: &str) -> Vec<Value> {
        let url = format!("{}/_requests", self.base);
        let text = tokio::task::spawn_blocking(move || {
            let mut answer = ureq::get(&url).call().expect("the model server's record");
            // The record grows with the run; ureq's default limit is 10 MiB.
            answer.body_mut().with_config().limit(256 << 20).read_to_string().expect("a body")
        })
        .await
        .expect("the request's thread");
        let requests: Vec<Value> = serde_json::from_str(&text).expect("JSON");
        requests.into_iter().filter(|request| request.to_string().contains(needle)).collect()
    }
}
