//! Connections to the controller: TLS always, keepalive also while idle, the CA bundle from the
//! release's `ConfigMap` and read anew after a failure (the controller rotates it). While it cannot be
//! read, the bundle from before goes on to be trusted: a controller that starts anew during an outage of
//! the API server is found again.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use agent_operator::domain::text::error_chain;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

/// Limit of a connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Limit of connect and TLS handshake together: the kernel accepts for a process that stands still,
/// and the library bounds the first part alone.
const DIAL_TIMEOUT: Duration = Duration::from_secs(6);
/// Pause between two HTTP/2 pings.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Unanswered for this long, the connection is dead: well within the node lease of 15 s.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit of reading the CA bundle.
const CA_TIMEOUT: Duration = Duration::from_secs(5);
/// Key of the bundle in its `ConfigMap`.
const CA_KEY: &str = "ca.crt";

/// The controller could not be dialled.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The address is no `host:port`.
    #[error("{0:?} is not host:port")]
    Address(String),
    /// The CA bundle could not be read, and none is known from before.
    #[error("could not read the controller's CA bundle: {0}")]
    ReadCa(String),
    /// Connect or TLS failed.
    #[error("could not connect to the controller")]
    Connect(#[source] tonic::transport::Error),
    /// The other side accepted and then said nothing.
    #[error("the controller did not complete the connection in time")]
    Silent,
}

/// Opens connections to the controller.
#[async_trait]
pub trait Dial: Send + Sync {
    /// A new connection to `address` (`host:port`).
    async fn dial(&self, address: &str) -> Result<Channel, DialError>;
}

/// [`Dial`] over TLS.
pub struct TlsDial {
    maps: Api<ConfigMap>,
    name: String,
    /// Name that the controller's certificate must carry, whatever address is dialled.
    server_name: String,
    bundle: Mutex<Option<Bundle>>,
}

/// The CA bundle, as it was last read.
#[derive(Clone)]
struct Bundle {
    pem: String,
    /// A connection has failed since; it may be an old one.
    doubted: bool,
}

impl TlsDial {
    /// Trusts the bundle in the `ConfigMap` `name` of `namespace`; `address` is the controller's
    /// Service, whose host the certificate must carry.
    pub fn new(
        client: Client,
        namespace: &str,
        name: String,
        address: &str,
    ) -> Result<Self, DialError> {
        let server_name = host(address)?.to_owned();
        let maps = Api::namespaced(client, namespace);
        Ok(Self { maps, name, server_name, bundle: Mutex::new(None) })
    }

    fn known(&self) -> MutexGuard<'_, Option<Bundle>> {
        self.bundle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn bundle(&self) -> Result<String, DialError> {
        let known = self.known().clone();
        match known {
            Some(Bundle { pem, doubted: false }) => Ok(pem),
            Some(Bundle { pem, doubted: true }) => Ok(self.read().await.unwrap_or_else(|error| {
                tracing::warn!(%error, "the known CA bundle is tried once more");
                pem
            })),
            None => self.read().await,
        }
    }

    /// Reads the bundle from its `ConfigMap`.
    async fn read(&self) -> Result<String, DialError> {
        let read = tokio::time::timeout(CA_TIMEOUT, self.maps.get(&self.name)).await;
        let map = read
            .map_err(|_| DialError::ReadCa("no answer from the API server".to_owned()))?
            .map_err(|error| DialError::ReadCa(error_chain(&error)))?;
        let pem = map.data.and_then(|mut data| data.remove(CA_KEY));
        let pem = pem.ok_or_else(|| DialError::ReadCa(format!("no key {CA_KEY}")))?;
        *self.known() = Some(Bundle { pem: pem.clone(), doubted: false });
        Ok(pem)
    }

    /// The CA may have been rotated: the next attempt reads it again.
    fn doubt(&self) {
        if let Some(bundle) = self.known().as_mut() {
            bundle.doubted = true;
        }
    }
}

fn host(address: &str) -> Result<&str, DialError> {
    match address.rsplit_once(':') {
        Some((host, _)) if !host.is_empty() => Ok(host.trim_matches(['[', ']'])),
        _ => Err(DialError::Address(address.to_owned())),
    }
}

/// The connection settings that TLS and tests share.
pub fn endpoint(url: &str) -> Result<Endpoint, DialError> {
    let endpoint =
        Endpoint::from_shared(url.to_owned()).map_err(|_| DialError::Address(url.to_owned()))?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

#[async_trait]
impl Dial for TlsDial {
    async fn dial(&self, address: &str) -> Result<Channel, DialError> {
        let bundle = self.bundle().await?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(bundle))
            .domain_name(&self.server_name);
        let endpoint = endpoint(&format!("https://{address}"))?;
        let connected = match endpoint.tls_config(tls) {
            Ok(endpoint) => tokio::time::timeout(DIAL_TIMEOUT, endpoint.connect())
                .await
                .map_err(|_| DialError::Silent)?,
            Err(error) => Err(error),
        };
        connected.map_err(|error| {
            self.doubt();
            DialError::Connect(error)
        })
    }
}

#[cfg(test)]
mod tests;
