//! The node's agent pods as they change: one watch a task namespace, by label and node. Pods that no
//! node has yet do not show here; the runner looks at those by name.

use std::{collections::BTreeSet, time::Duration};

use agent_operator::domain::{NodeName, RunKey, names, text::error_chain};
use backon::ExponentialBuilder;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, ExponentialBackoff},
    },
};
use tokio::sync::mpsc;

use super::{client::run_key, digest::digest};
use crate::steps::runner::Input;

/// The server ends each watch after this time, so that a silent one cannot stay for ever.
const WATCH_SECONDS: u32 = 120;
/// First pause before a failed watch is tried again.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// Longest pause: an API server that is back is used within seconds.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A watch that failed is reported once in this many failures: an API server that is away for
/// minutes must not flood the log.
const REPORT_EVERY: u32 = 20;

/// Watches one namespace until the queue closes. Errors are waited out with backoff.
pub async fn run(client: Client, namespace: String, node: NodeName, inputs: mpsc::Sender<Input>) {
    let config = watcher::Config::default()
        .labels(&format!("{}={}", names::LABEL_MANAGED_BY, names::MANAGED_BY))
        .fields(&format!("spec.nodeName={node}"))
        .timeout(WATCH_SECONDS);
    let api = Api::<Pod>::namespaced(client, &namespace);
    let backoff = ExponentialBuilder::default()
        .with_min_delay(BACKOFF_MIN)
        .with_max_delay(BACKOFF_MAX)
        .with_jitter()
        .without_max_times();
    let backoff = ExponentialBackoff::from(backoff);
    let mut events = watcher::watcher(api, config).backoff(backoff).boxed();
    let mut seen = BTreeSet::new();
    let mut failures = 0_u32;
    while let Some(event) = events.next().await {
        let inputs_of_event = match event {
            Ok(event) => {
                failures = 0;
                translate(event, &namespace, &mut seen)
            }
            Err(error) => {
                if failures.is_multiple_of(REPORT_EVERY) {
                    let error = error_chain(&error);
                    tracing::warn!(namespace, error, "the watch on pods failed; trying again");
                }
                failures += 1;
                None
            }
        };
        if let Some(input) = inputs_of_event
            && inputs.send(input).await.is_err()
        {
            return;
        }
    }
}

fn translate(event: Event<Pod>, namespace: &str, seen: &mut BTreeSet<RunKey>) -> Option<Input> {
    match event {
        Event::Init => {
            seen.clear();
            None
        }
        Event::InitApply(pod) => {
            let run = run_key(&pod)?;
            seen.insert(run.clone());
            Some(Input::PodSeen { run, digest: Box::new(digest(&pod)) })
        }
        Event::InitDone => {
            let seen = std::mem::take(seen);
            Some(Input::PodsListed { namespace: namespace.to_owned(), seen })
        }
        Event::Apply(pod) => {
            Some(Input::PodSeen { run: run_key(&pod)?, digest: Box::new(digest(&pod)) })
        }
        Event::Delete(pod) => Some(Input::PodMissing(run_key(&pod)?)),
    }
}
