//! The plain HTTP port: `/livez`, `/readyz` and `/metrics`. Says nothing about tasks but counts.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use agent_operator::telemetry::metrics::CONTENT_TYPE;
use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{catalog::Catalog, metrics::Metrics};

/// Whether the process can serve. Leading is no part of it: a standby is ready too, and nodes must
/// reach it to be told who leads.
#[derive(Clone, Debug)]
pub struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    catalog: Catalog,
    metrics: Metrics,
    serving: AtomicBool,
}

impl Health {
    /// Not ready yet.
    pub fn new(catalog: Catalog, metrics: Metrics) -> Self {
        Self(Arc::new(Inner { catalog, metrics, serving: AtomicBool::new(false) }))
    }

    /// The gRPC port is open.
    pub fn set_serving(&self) {
        self.0.serving.store(true, Ordering::Release);
    }

    /// Why the process is not ready; none when it is.
    fn problem(&self) -> Option<&'static str> {
        if !self.0.serving.load(Ordering::Acquire) {
            return Some("the gRPC port is not open yet\n");
        }
        (!self.0.catalog.synced()).then_some("tasks and runs have not been listed yet\n")
    }
}

/// Serves until `stop`.
pub async fn serve(
    listener: TcpListener,
    health: Health,
    stop: CancellationToken,
) -> std::io::Result<()> {
    axum::serve(listener, router(health)).with_graceful_shutdown(stop.cancelled_owned()).await
}

fn router(health: Health) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(health)
}

async fn ready(State(health): State<Health>) -> impl IntoResponse {
    match health.problem() {
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, problem),
        None => (StatusCode::OK, "ok\n"),
    }
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    match health.0.metrics.render() {
        Ok(text) => (StatusCode::OK, [("content-type", CONTENT_TYPE)], text),
        Err(error) => {
            let type_ = [("content-type", "text/plain")];
            (StatusCode::INTERNAL_SERVER_ERROR, type_, error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use tower::ServiceExt as _;

    use super::*;

    async fn status(health: &Health, path: &str) -> StatusCode {
        let request = Request::get(path).body(Body::empty()).unwrap();
        router(health.clone()).oneshot(request).await.unwrap().status()
    }

    #[tokio::test]
    async fn ready_means_serving_and_listed_not_leading() {
        let metrics = Metrics::new();
        let catalog = Catalog::new(metrics.clone());
        let health = Health::new(catalog.clone(), metrics);
        assert_eq!(status(&health, "/livez").await, StatusCode::OK);
        assert_eq!(status(&health, "/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
        health.set_serving();
        assert_eq!(status(&health, "/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
        catalog.set_tasks(vec![]);
        catalog.set_runs(vec![]);
        assert_eq!(status(&health, "/readyz").await, StatusCode::OK);
        assert_eq!(status(&health, "/metrics").await, StatusCode::OK);
    }
}
