//! The node's enforcer: closes the network of agent pods by nftables, on the host's side of their veth.
//! A process of its own on the host's network, with `CAP_NET_ADMIN` and nothing else: no service
//! account, no port, no credential. It obeys one peer on one socket, the node's supervisor.
//!
//! | task | ends |
//! |---|---|
//! | `server::serve` and one task a connection | at shutdown |
//! | sweep, in `server::serve` | at shutdown |
//!
//! **Invariant:** there is no order that opens anything. Rules hang on a pod's device in the kernel:
//! they outlive this process and go, by [`server`]'s sweep, once the device is gone. So neither a
//! restart nor a stolen socket is a moment of openness.
//!
//! - [`contract`]: the orders, and the answers to them.
//! - [`ruleset`]: what nft is told (pure).
//! - [`view`]: which device is a pod's, from what the kernel shows (pure).
//! - [`tools`]: `nft`, `ip` and `bridge`.
//! - [`server`]: socket and sweep.
//! - [`tally`]: what is counted; the supervisor shows it, for a port on the host's network is one more
//!   that a sandbox could reach.
//! - [`client`]: the supervisor's end.

pub mod args;
pub mod client;
pub mod contract;
pub mod ruleset;
pub mod server;
pub mod tally;
pub mod tools;
pub mod view;

use std::sync::Arc;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

pub use self::args::Args;
use self::tools::{HostNetwork, Network as _};

/// Runs the enforcer until `shutdown`.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let network = Arc::new(HostNetwork);
    // Fails at once, and in the pod's status, where the kernel or the capability is missing.
    let chains = network.chains().await.context("nftables cannot be used on this node")?;
    let listener = server::listen(&args.socket).context("cannot listen on the socket")?;
    tracing::info!(chains = chains.len(), "enforcer started");
    let uids = [vec![0, nix::unistd::geteuid().as_raw()], args.allowed_peer_uid].concat();
    server::serve(network, listener, &uids, &shutdown).await;
    // A socket that nobody listens on would look like an enforcer.
    let _ = std::fs::remove_file(&args.socket);
    Ok(())
}
