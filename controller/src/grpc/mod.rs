//! The gRPC port: TLS always, one layer that authorises every call, reflection and health.

pub mod auth;
mod follow;
mod front;
mod peers;
pub mod session;
mod status;
mod step;
mod stream;
mod supervisor;
#[cfg(test)]
mod tests;
mod transport;
mod wire;

use std::{sync::Arc, time::Duration};

use agent_operator::{domain::limits::GRPC_MESSAGE_BYTES_MAX, proto};
use proto::v1::{
    step_service_server::StepServiceServer, supervisor_service_server::SupervisorServiceServer,
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Server;

pub use self::peers::Peers;
use self::{
    auth::{AuthLayer, Authority},
    front::Front,
};
use crate::{
    catalog::Catalog, fleet::sessions::Sessions, lease::Leadership, metrics::Metrics,
    streams::StreamStore,
};

/// Silence on a connection after which it is pinged: an idle half-open link is noticed within this
/// and [`KEEPALIVE_TIMEOUT`], that is within the node lease.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(8);

/// Longest wait for the answer to a ping.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Calls at once on one connection; hyper's own limit, which tonic would lift.
const STREAMS_PER_CONNECTION_MAX: u32 = 200;

/// Headers of one call: a token and little else.
const HEADER_BYTES_MAX: u32 = 32 * 1024;

/// How long connections may take to end once everything on them has been told to.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(5);

/// What the port needs of the process.
#[derive(Clone)]
pub struct Edge {
    /// Authenticates and permits.
    pub authority: Arc<Authority>,
    /// Sessions of nodes.
    pub sessions: Sessions,
    /// Whether this process leads.
    pub leadership: Leadership,
    /// Tasks and runs.
    pub catalog: Catalog,
    /// Logs and events.
    pub store: Arc<StreamStore>,
    /// Counters.
    pub metrics: Metrics,
}

/// The port could not be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptor set does not describe itself.
    #[error("build reflection")]
    BuildReflection(#[source] tonic_reflection::server::Error),
    /// The transport failed.
    #[error("serve connections")]
    ServeConnections(#[source] tonic::transport::Error),
}

/// Serves until `stop`; then ends every call with a sentence and closes.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    peers: Peers,
    edge: Edge,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let tasks = TaskTracker::new();
    let (reporter, health) = tonic_health::server::health_reporter();
    let supervisors = supervisors(&edge, &tasks, &stop);
    let steps = steps(&edge, peers, &tasks, &stop);
    reporter.set_serving::<StepServiceServer<Front>>().await;
    reporter.set_serving::<SupervisorServiceServer<supervisor::Supervisors>>().await;
    let reflection = |builder: tonic_reflection::server::Builder<'static>| {
        builder
            .register_encoded_file_descriptor_set(proto::DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let builder = tonic_reflection::server::Builder::configure;
    let v1 = reflection(builder()).build_v1().map_err(ServeError::BuildReflection)?;
    let v1alpha = reflection(builder()).build_v1alpha().map_err(ServeError::BuildReflection)?;
    let connections = transport::accept(listener, tls, stop.clone());
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .layer(AuthLayer::new(edge.authority.clone(), edge.metrics.clone()))
        .add_service(supervisors)
        .add_service(steps)
        .add_service(health)
        .add_service(v1)
        .add_service(v1alpha)
        .serve_with_incoming_shutdown(connections, stop.clone().cancelled_owned());
    let limit = async {
        stop.cancelled().await;
        tokio::time::sleep(SHUTDOWN_WAIT).await;
    };
    tokio::select! {
        served = serving => served.map_err(ServeError::ServeConnections)?,
        () = limit => tracing::info!("some connections did not close in time"),
    }
    tasks.close();
    // The tasks end by the token; what still hangs is dropped with the process.
    let _ = tokio::time::timeout(SHUTDOWN_WAIT, tasks.wait()).await;
    Ok(())
}

fn supervisors(
    edge: &Edge,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> SupervisorServiceServer<supervisor::Supervisors> {
    let service = supervisor::Supervisors {
        sessions: session::Context {
            authority: edge.authority.clone(),
            sessions: edge.sessions.clone(),
            leadership: edge.leadership.clone(),
            metrics: edge.metrics.clone(),
            stop: stop.clone(),
        },
        streams: stream::Context {
            leadership: edge.leadership.clone(),
            sessions: edge.sessions.clone(),
            store: edge.store.clone(),
            catalog: edge.catalog.clone(),
            metrics: edge.metrics.clone(),
            stop: stop.clone(),
        },
        tasks: tasks.clone(),
    };
    SupervisorServiceServer::new(service)
        .max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX)
}

fn steps(
    edge: &Edge,
    peers: Peers,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> StepServiceServer<Front> {
    let own = step::Steps::new(
        edge.authority.clone(),
        edge.catalog.clone(),
        edge.store.clone(),
        edge.leadership.clone(),
        edge.metrics.clone(),
        tasks.clone(),
        stop.clone(),
    );
    StepServiceServer::new(Front::new(own, edge.leadership.clone(), peers, stop.clone()))
        .max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX)
}
