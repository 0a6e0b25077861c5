//! The CONNECT proxy: tunnels to allowed hosts, by name, to public addresses, TLS with that name.

mod address;
pub mod policy;
pub mod sni;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::body::Body;
use http::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use self::{
    address::{AddressPolicy, Resolver, SystemResolver},
    policy::{Denied, HostPort, NamePolicy},
};
use super::{
    args::{Args, Config, host_of},
    grants::{Attempt, RefusalKind},
    identity::Caller,
    metrics::Metrics,
    proxy::{ProxyRules, TunnelError},
    respond::{self, Answer},
};

/// Time to resolve and connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the client's first message.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A tunnel without a byte in either direction ends after this time.
const IDLE_MAX: Duration = Duration::from_mins(5);
/// Buffer of each direction.
const BUFFER_BYTES: usize = 16 * 1024;

/// The proxy. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Egress {
    names: Arc<NamePolicy>,
    addresses: Arc<AddressPolicy>,
    resolver: Arc<dyn Resolver>,
    proxies: Arc<ProxyRules>,
    tunnels: TaskTracker,
    metrics: Arc<Metrics>,
}

/// Why no connection was made.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("{0} could not be resolved")]
    Resolve(String, #[source] std::io::Error),
    #[error("{0} stands for an address that is not public, or no tunnel may lead to")]
    Private(String),
    #[error("{0} did not accept the connection")]
    Connect(String),
    #[error("{0} did not answer in time")]
    TimedOut(String),
    #[error("{host} cannot be reached: {error}")]
    Tunnel {
        host: String,
        // The agent is told all of it, so it is a part of the text and no source.
        error: TunnelError,
    },
}

impl Egress {
    /// A proxy with the chart's settings; tunnels run in `tunnels`.
    pub fn new(
        args: &Args,
        config: &Config,
        proxies: Arc<ProxyRules>,
        tunnels: TaskTracker,
        metrics: Arc<Metrics>,
    ) -> Self {
        let names = NamePolicy::new(&config.egress.allowed_hosts, config.credential_hosts());
        let addresses = AddressPolicy {
            allow_private: args.egress_allow_private,
            denied: config.egress.denied_networks.clone(),
            own: args.own_addresses(),
        };
        let (addresses, resolver) = (Arc::new(addresses), Arc::new(SystemResolver));
        Self { names: Arc::new(names), addresses, resolver, proxies, tunnels, metrics }
    }

    /// Answers one CONNECT request.
    pub async fn connect(&self, caller: &Caller, request: Request<Body>) -> Answer {
        let attempt = &caller.attempt;
        let target = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let until = match attempt.agent_may_act(Instant::now()) {
            Ok(until) => until,
            Err(error) => {
                attempt.refuse(RefusalKind::Egress, &target);
                return respond::refused(StatusCode::FORBIDDEN, error.to_string());
            }
        };
        let host = match self.check_name(attempt, &target) {
            Ok(host) => host,
            Err(denied) => {
                attempt.refuse(RefusalKind::Egress, &target);
                return respond::refused(StatusCode::FORBIDDEN, denied.to_string());
            }
        };
        let Some(slot) = attempt.limits().take_tunnel() else {
            attempt.refuse(RefusalKind::Limit, "tunnels");
            return respond::error(
                StatusCode::TOO_MANY_REQUESTS,
                None,
                "too many open tunnels",
                true,
            );
        };
        let upstream = match self.dial(&host).await {
            Ok(upstream) => upstream,
            Err(error) => {
                if matches!(error, ConnectError::Private(_)) {
                    attempt.refuse(RefusalKind::Egress, &target);
                    return respond::refused(StatusCode::FORBIDDEN, error.to_string());
                }
                return respond::refused(StatusCode::BAD_GATEWAY, error.to_string());
            }
        };
        let attempt = Arc::clone(attempt);
        let metrics = Arc::clone(&self.metrics);
        let passing = async move {
            let _slot = slot;
            metrics.tunnels(1);
            let ended = attempt.agent_ended().clone();
            tokio::select! {
                () = ended.cancelled() => {}
                () = tokio::time::sleep_until(until) => {}
                () = tunnel(request, upstream, &host, &attempt, &metrics) => {}
            }
            metrics.tunnels(-1);
        };
        self.tunnels.spawn(passing.in_current_span());
        respond::empty(StatusCode::OK)
    }

    fn check_name(&self, attempt: &Attempt, target: &str) -> Result<HostPort, Denied> {
        let assignment = attempt.assignment();
        let host = self.names.check(target, &assignment.sandbox.allowed_hosts)?;
        // The repository's own host is a forge, mapped or not, and so is its API's.
        let forge = host_of(&assignment.repository.url).unwrap_or_default();
        if host.host.strip_prefix("api.").unwrap_or(&host.host) == forge || host.host == forge {
            return Err(Denied::CredentialHost(host.to_string()));
        }
        Ok(host)
    }

    /// Resolves once and connects to an address that was checked, so that a second answer of the
    /// name server cannot lead elsewhere.
    ///
    /// Behind a proxy it is the proxy that resolves: such networks often know no names of the
    /// internet. Which addresses it connects to is then its own policy.
    async fn dial(&self, host: &HostPort) -> Result<TcpStream, ConnectError> {
        if let Some(proxy) = self.proxies.choose(true, &host.host, host.port) {
            let tunnel = proxy.tunnel(&host.to_string()).await;
            return tunnel.map_err(|error| ConnectError::Tunnel { host: host.to_string(), error });
        }
        let dial = async {
            let addresses = self
                .resolver
                .resolve(host)
                .await
                .map_err(|error| ConnectError::Resolve(host.to_string(), error))?;
            if !self.addresses.allows(&addresses) {
                return Err(ConnectError::Private(host.to_string()));
            }
            for address in addresses {
                if let Ok(stream) = TcpStream::connect(address).await {
                    return Ok(stream);
                }
            }
            Err(ConnectError::Connect(host.to_string()))
        };
        timeout(CONNECT_TIMEOUT, dial)
            .await
            .unwrap_or_else(|_| Err(ConnectError::TimedOut(host.to_string())))
    }
}

/// Checks the first message and then passes bytes on in both directions.
async fn tunnel(
    request: Request<Body>,
    mut upstream: TcpStream,
    host: &HostPort,
    attempt: &Attempt,
    metrics: &Metrics,
) {
    let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
    let mut client = TokioIo::new(upgraded);
    let Ok(Some(hello)) = timeout(HELLO_TIMEOUT, read_hello(&mut client, host)).await else {
        attempt.refuse(RefusalKind::Egress, &host.to_string());
        return;
    };
    let hello_bytes = u64::try_from(hello.len()).unwrap_or(u64::MAX);
    if !attempt.limits().take_upload(hello_bytes) || upstream.write_all(&hello).await.is_err() {
        return;
    }
    let activity = Activity::new();
    let (from_client, to_client) = tokio::io::split(client);
    let (from_upstream, to_upstream) = upstream.split();
    let upload = copy(from_client, to_upstream, &activity, |bytes| {
        let allowed = attempt.limits().take_upload(bytes);
        if !allowed {
            attempt.refuse(RefusalKind::Limit, "tunnel upload bytes");
        }
        metrics.tunnelled("out", bytes);
        allowed
    });
    let download = copy(from_upstream, to_client, &activity, |bytes| {
        metrics.tunnelled("in", bytes);
        true
    });
    tokio::select! {
        _ = async { tokio::join!(upload, download) } => {}
        () = activity.idle() => {}
    }
}

/// The client's first bytes, once they name `host`; none when they do not.
async fn read_hello(client: &mut (impl AsyncRead + Unpin), host: &HostPort) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(2048);
    loop {
        match sni::server_name(&bytes) {
            Ok(Some(name)) => return (name == host.host).then_some(bytes),
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%host, %error, "tunnel refused");
                return None;
            }
        }
        let mut buffer = [0; 2048];
        let count = client.read(&mut buffer).await.ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&buffer[..count]);
    }
}

/// Copies until the end or an error; passes the end on.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    activity: &Activity,
    allow: impl Fn(u64) -> bool,
) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(count) = from.read(&mut buffer).await {
        activity.note();
        let bytes = u64::try_from(count).unwrap_or(u64::MAX);
        if count == 0 || !allow(bytes) || to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
        activity.note();
    }
    // The peer may be gone already; there is nobody left to tell.
    let _ = to.shutdown().await;
}

/// When a tunnel last moved a byte.
struct Activity(Mutex<Instant>);

impl Activity {
    fn new() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    async fn idle(&self) {
        loop {
            let end = *self.0.lock().unwrap_or_else(PoisonError::into_inner) + IDLE_MAX;
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}
