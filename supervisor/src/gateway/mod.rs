//! The node's gateway: the only thing that a sandbox can reach, and the only holder of credentials.
//!
//! | task | ends |
//! |---|---|
//! | `server::serve` and one task a connection | at shutdown |
//! | `metrics::serve` | at shutdown |
//! | `link_server::serve` and one task for the supervisor's connection | at shutdown |
//! | one task a model call, its answer and a tunnel | with the attempt or its agent's token |
//! | one task a preparation | with the attempt |
//! | one task a GitHub client | with the call that it was made for |
//! | one thread a large model request, while it is checked | by its own end |
//! | one task an attempt that is over, which removes its quarantine and then tidies mirrors | by its own end; the second part at shutdown |
//! | one task a write upstream | by its own end, so that what was written is reported |
//!
//! Channels: `events_relay::Outbox` (bounded by number and bytes) from the routes to the link, one
//! `watch` an attempt from the link to the long polls, one bounded `mpsc` a model answer.
//!
//! The gateway knows nothing of Kubernetes: it obeys the supervisor on its socket and shares no
//! memory with it.

pub mod args;
pub mod attempt_api;
mod book;
pub mod core;
pub mod egress;
pub mod events_relay;
pub mod forge;
pub mod git;
pub mod grants;
pub mod http_client;
pub mod identity;
pub mod limits;
pub mod link_server;
pub mod llm;
pub mod metrics;
pub mod network;
pub mod permit;
mod preflight;
pub mod proxy;
pub mod respond;
pub mod server;
#[cfg(test)]
mod tests;
pub mod upstream;

use std::{net::SocketAddr, time::Duration};

use agent_operator::telemetry::Tracer;
use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use self::args::Args;

/// How long open work may take to end after the shutdown order.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// Runs the gateway until `shutdown` is cancelled. Fails when it cannot start, or when one of its
/// two servers ends unexpectedly.
pub async fn run(args: Args, tracer: Tracer, shutdown: CancellationToken) -> anyhow::Result<()> {
    let sandboxes = listen(args.listen).await?;
    let scrapes = match args.metrics_listen {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    run_on(args, Ports { sandboxes, scrapes }, tracer, shutdown).await
}

/// What the gateway listens on.
#[derive(Debug)]
pub struct Ports {
    /// The one port that sandboxes know.
    pub sandboxes: TcpListener,
    /// Metrics, if anybody wants them.
    pub scrapes: Option<TcpListener>,
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    agent_operator::listen::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))
}

/// [`run`] on ports that the caller has bound.
pub async fn run_on(
    args: Args,
    ports: Ports,
    tracer: Tracer,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let gateway = core::build(&args, tracer, shutdown.clone())?;
    let link = link_server::listen(&args.socket)?;
    let mut uids = args.allowed_peer_uid.clone();
    uids.extend([0, nix::unistd::geteuid().as_raw()]);
    let instance = instance()?;
    let Ports { sandboxes, scrapes } = ports;
    tracing::info!(listen = %sandboxes.local_addr()?, instance, "gateway started");

    let http = tokio::spawn(server::serve(gateway.clone(), sandboxes));
    let link = tokio::spawn(link_server::serve(gateway.clone(), link, uids, instance));
    let scraped = tokio::spawn(serve_scrapes(gateway.clone(), scrapes));
    let ended = tokio::select! {
        ended = http => ended.context("the HTTP server failed"),
        ended = link => ended.context("the link server failed"),
        ended = scraped => ended.context("the metrics' server failed").and_then(|ended| ended),
    };
    let unexpected = !shutdown.is_cancelled();
    shutdown.cancel();
    gateway.tasks.close();
    // What is still open by then is cut off with the process.
    let _ = tokio::time::timeout(SHUTDOWN_GRACE, gateway.tasks.wait()).await;
    ended?;
    anyhow::ensure!(!unexpected, "a server of the gateway ended unexpectedly");
    Ok(())
}

/// Serves metrics, if there is a port for them.
async fn serve_scrapes(gateway: core::Shared, port: Option<TcpListener>) -> anyhow::Result<()> {
    let Some(port) = port else {
        gateway.shutdown.cancelled().await;
        return Ok(());
    };
    metrics::serve(gateway, port).await.context("cannot serve metrics")
}

/// A name for this start: 64 random bits in hex.
fn instance() -> anyhow::Result<String> {
    let bits =
        getrandom::u64().map_err(|_| anyhow::anyhow!("the system's random source failed"))?;
    Ok(format!("{bits:016x}"))
}
