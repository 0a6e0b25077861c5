//! The node's agent pods as they change: one watch a task namespace, by label and node. Pods that no
//! node has yet do not show here; the runner looks at those by name.

use std::{collections::BTreeSet, time::Duration};

use agent_operator::domain::{NodeName, RunKey, names};
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

use super::{
    client::{held_for, run_key},
    digest::digest,
};
use crate::steps::runner::Input;

/// The server ends each watch after this time, so that a silent one cannot stay for ever.
const WATCH_SECONDS: u32 = 120;
/// Limit of a TCP and TLS connect to the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle time before the kernel probes a connection.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
/// Pause between two probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// Unanswered probes before the connection counts as dead.
const KEEPALIVE_RETRIES: u32 = 3;
/// Idle time plus probes: below the 15 s within which a half-open watch must be noticed.
const DEAD_AFTER: Duration = Duration::from_secs(14);
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
                    tracing::warn!(namespace, %error, "the watch on pods failed; trying again");
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
            Some(Input::PodSeen { run, digest: Box::new(digest(&pod)), held_for: held_for(&pod) })
        }
        Event::InitDone => {
            let seen = std::mem::take(seen);
            Some(Input::PodsListed { namespace: namespace.to_owned(), seen })
        }
        Event::Apply(pod) => {
            let run = run_key(&pod)?;
            Some(Input::PodSeen { run, digest: Box::new(digest(&pod)), held_for: held_for(&pod) })
        }
        Event::Delete(pod) => Some(Input::PodMissing(run_key(&pod)?)),
    }
}

/// A client for the API server that notices a dead connection within [`DEAD_AFTER`], also under an
/// idle watch, and leaves retries to its callers.
pub fn client(config: kube::Config) -> Result<Client, kube::Error> {
    use kube::client::ConfigExt as _;
    use tower::{BoxError, ServiceBuilder};

    let mut http = hyper_util::client::legacy::connect::HttpConnector::new();
    http.enforce_http(false);
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));
    http.set_keepalive(Some(KEEPALIVE_IDLE));
    http.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    http.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    http.set_tcp_user_timeout(Some(DEAD_AFTER));
    let https = config.rustls_https_connector_with_connector(http)?;
    let executor = hyper_util::rt::TokioExecutor::new();
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(hyper_util::client::legacy::Client::builder(executor).build(https));
    Ok(Client::new(service, config.default_namespace))
}
