//! `/livez`, `/readyz` and `/metrics`, in which the enforcer's counts stand too. Alive and ready both
//! mean that the runner answers: neither depends on the session or the gateway, for a supervisor
//! without them still does its work.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use agent_operator::listen;
use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{enforcer::client::Enforcer, metrics::Metrics, steps::runner::Input};

/// A runner that does not answer within this time hangs (a stuck disk, most likely).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A scrape waits no longer for the enforcer's counts, which it has in memory.
const COUNTS_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Shared {
    metrics: Arc<Metrics>,
    inputs: mpsc::Sender<Input>,
    enforcer: Option<Arc<dyn Enforcer>>,
}

/// Serves on `address` until `shutdown`.
pub async fn run(
    address: SocketAddr,
    metrics: Arc<Metrics>,
    inputs: mpsc::Sender<Input>,
    enforcer: Option<Arc<dyn Enforcer>>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let listener = listen::bind(address).await?;
    let routes = Router::new()
        .route("/livez", get(answers))
        .route("/readyz", get(answers))
        .route("/metrics", get(metrics_text))
        .with_state(Shared { metrics, inputs, enforcer });
    axum::serve(listener, routes).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

async fn answers(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    let (answer, snapshot) = oneshot::channel();
    let ask = async {
        shared.inputs.send(Input::Snapshot(answer)).await.ok()?;
        snapshot.await.ok()
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, ask).await {
        Ok(Some(_)) => (StatusCode::OK, "ok\n"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "the runner does not answer\n"),
    }
}

async fn metrics_text(State(shared): State<Shared>) -> Result<String, StatusCode> {
    if let Some(enforcer) = &shared.enforcer {
        let counts = tokio::time::timeout(COUNTS_TIMEOUT, enforcer.counts()).await;
        shared.metrics.enforcer.show(counts.ok().and_then(Result::ok));
    }
    shared.metrics.encode().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}
