//! What scenarios need: the cluster, the forge, the model server, grpcurl and processes of pods.

pub(crate) mod cluster;
pub(crate) mod egress;
pub(crate) mod forge;
pub(crate) mod forge_admin;
pub(crate) mod grpcurl;
pub(crate) mod images;
pub(crate) mod leaders;
pub(crate) mod logs;
pub(crate) mod model;
pub(crate) mod pages;
pub(crate) mod processes;
pub(crate) mod registry;
pub(crate) mod release;
pub(crate) mod secrets;
pub(crate) mod task;

use std::{future::Future, time::Duration};

/// How often a condition is looked at while a test waits for it.
const POLL: Duration = Duration::from_millis(200);

/// Waits until `probe` gives a value; fails with `what` and the last state after `limit`.
pub(crate) async fn eventually<T, F, Fut>(what: &str, limit: Duration, mut probe: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let waiting = async {
        loop {
            match probe().await {
                Ok(value) => return value,
                Err(state) => {
                    LAST.with(|last| last.replace(state));
                    tokio::time::sleep(POLL).await;
                }
            }
        }
    };
    tokio::time::timeout(limit, waiting).await.unwrap_or_else(|_| {
        panic!("not within {limit:?}: {what}; last seen: {}", LAST.with(std::cell::RefCell::take))
    })
}

thread_local! {
    static LAST: std::cell::RefCell<String> = const { std::cell::RefCell::new(String::new()) };
}

/// An environment variable that `deploy/local/env` sets.
pub(crate) fn env(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: run eval \"$(deploy/local/env)\" first"))
}
