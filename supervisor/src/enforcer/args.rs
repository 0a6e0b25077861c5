//! Arguments of `supervisor enforcer`.

use std::path::PathBuf;

/// The node's enforcer.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Unix socket to listen on, in a folder that the supervisor of the same node shares.
    #[arg(long, env = "ENFORCER_SOCKET")]
    pub socket: PathBuf,
    /// Uid of the supervisor; root and this process's own are obeyed besides.
    #[arg(long, env = "ALLOWED_PEER_UID")]
    pub allowed_peer_uid: Vec<u32>,
}
