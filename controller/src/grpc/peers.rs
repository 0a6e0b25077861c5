//! The way from a replica that does not lead to the one that does.
//!
//! A bearer token goes along, so the other end has to prove itself: it must hold a certificate of our
//! own CA for our own Service, whatever address stood in the Lease. It authenticates and permits the
//! caller anew; this end vouches for nobody.

use std::{error::Error as _, sync::Arc, time::Duration};

use agent_operator::{domain::limits::GRPC_MESSAGE_BYTES_MAX, proto::v1};
use tokio::{sync::watch, time::timeout};
use tonic::{
    Request, Status,
    metadata::MetadataMap,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use v1::step_service_client::StepServiceClient;

use super::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};

/// Longest wait for a connection to the leader, handshake included: a process that stands still
/// accepts connections and says nothing.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// Longest wait for the answer to a call that is no stream; the leader itself asks the API server.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// Headers that go along: who asks, how long they wait, and the trace that the call belongs to.
const PASSED_ON: [&str; 4] = ["authorization", "grpc-timeout", "traceparent", "tracestate"];

/// Marks a call that a replica has passed on; it is never passed on again.
pub(super) const PASSED: &str = "agent-operator-passed-on";

/// Connects to other replicas. Every call has a connection of its own: calls that stay open for hours
/// must not use up the streams of one connection, and none is kept to a leader of the past.
#[derive(Clone, Debug)]
pub struct Peers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    server_name: String,
    ca: watch::Receiver<String>,
}

impl Peers {
    /// Trusts `ca` (PEM) for certificates that carry `server_name`.
    pub fn new(server_name: String, ca: watch::Receiver<String>) -> Self {
        Self(Arc::new(Inner { server_name, ca }))
    }

    /// A client of the replica at `address` (`host:port`).
    pub(super) async fn connect(
        &self,
        address: &str,
    ) -> Result<StepServiceClient<Channel>, Status> {
        let ca = self.0.ca.borrow().clone();
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(ca))
            .domain_name(&self.0.server_name);
        let connected = async {
            Endpoint::from_shared(format!("https://{address}"))?
                .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                .keep_alive_while_idle(true)
                .tcp_nodelay(true)
                .tls_config(tls)?
                .connect()
                .await
        };
        let channel = match timeout(CONNECT_WAIT, connected).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => {
                let error = agent_operator::domain::text::error_chain(&error);
                tracing::info!(address, error, "the leader cannot be reached");
                return Err(unreachable());
            }
            Err(_) => return Err(unreachable()),
        };
        Ok(StepServiceClient::new(channel)
            .max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX))
    }
}

/// The same request for the leader.
pub(super) fn passed_on<T>(from: &MetadataMap, message: T) -> Request<T> {
    let mut request = Request::new(message);
    for name in PASSED_ON {
        if let Some(value) = from.get(name) {
            request.metadata_mut().insert(name, value.clone());
        }
    }
    request.metadata_mut().insert(PASSED, tonic::metadata::MetadataValue::from_static("1"));
    request
}

/// Waits for the answer to a call that is no stream.
pub(super) async fn answered<T>(
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<tonic::Response<T>, Status> {
    timeout(ANSWER_WAIT, call).await.map_err(|_| unreachable())?.map_err(said)
}

/// What the leader said stays as it is; a broken connection is told in words of ours.
pub(super) fn said(status: Status) -> Status {
    if status.source().is_some() {
        return Status::unavailable("the leading replica went away; go on from the last cursor");
    }
    status
}

fn unreachable() -> Status {
    Status::unavailable("the leading replica does not answer; try again")
}
