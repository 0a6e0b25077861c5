//! The node's gateway: the only thing that a sandbox can reach, and the only holder of credentials.
//!
//! | task | ends |
//! |---|---|
//! | `server::serve` and one task a connection | at shutdown |
//! | `link_server::serve` and one task for the supervisor's connection | at shutdown |
//! | one task a model answer and a tunnel | with the attempt or its agent's token |
//! | one task a preparation | with the attempt |
//! | one task a GitHub client | with the call that it was made for |
//! | one task a write upstream | by its own end, so that what was written is reported |
//!
//! Channels: `events_relay::Outbox` (bounded by number and bytes) from the routes to the link, one
//! `watch` an attempt from the link to the long polls, one bounded `mpsc` a model answer.
//!
//! The gateway knows nothing of Kubernetes: it obeys the supervisor on its socket and shares no
//! memory with it.

pub mod args;
pub mod attempt_api;
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
pub mod permit;
mod preflight;
pub mod proxy;
pub mod respond;
pub mod server;
#[cfg(test)]
mod tests;
pub mod upstream;

use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use self::args::Args;

/// How long open work may take to end after the shutdown order.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// Runs the gateway until `shutdown` is cancelled. Fails when it cannot start, or when one of its
/// two servers ends unexpectedly.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    run_on(args, listener, shutdown).await
}

/// [`run`] on a listener that the caller has bound.
pub async fn run_on(
    args: Args,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let gateway = core::build(&args, shutdown.clone())?;
    let link = link_server::listen(&args.socket)?;
    let mut uids = args.allowed_peer_uid.clone();
    uids.extend([0, nix::unistd::geteuid().as_raw()]);
    let instance = instance()?;
    tracing::info!(listen = %listener.local_addr()?, instance, "gateway started");

    let http = tokio::spawn(server::serve(gateway.clone(), listener));
    let link = tokio::spawn(link_server::serve(gateway.clone(), link, uids, instance));
    let ended = tokio::select! {
        ended = http => ended.context("the HTTP server failed"),
        ended = link => ended.context("the link server failed"),
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

/// A name for this start: 64 random bits in hex.
fn instance() -> anyhow::Result<String> {
    let bits =
        getrandom::u64().map_err(|_| anyhow::anyhow!("the system's random source failed"))?;
    Ok(format!("{bits:016x}"))
}
