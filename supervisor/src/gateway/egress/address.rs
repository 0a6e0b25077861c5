//! Which addresses a tunnel may lead to, and the one question to the name server.
//!
//! A name is resolved once, every address of the answer is checked, and the connection goes to one of
//! those that were checked. A name that stands for a single forbidden address is refused whole: no
//! honest name is public and private at once.

use std::{io, net::SocketAddr};

use async_trait::async_trait;

use super::policy::{HostPort, is_public};
use crate::gateway::network::Network;

/// Asks a name server.
#[async_trait]
pub(super) trait Resolver: std::fmt::Debug + Send + Sync {
    /// All addresses of `host`.
    async fn resolve(&self, host: &HostPort) -> io::Result<Vec<SocketAddr>>;
}

/// The system's.
#[derive(Debug)]
pub(super) struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn resolve(&self, host: &HostPort) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host.host.as_str(), host.port)).await?.collect())
    }
}

/// What is forbidden besides what is not public.
#[derive(Clone, Debug, Default)]
pub(super) struct AddressPolicy {
    /// Whether addresses that are not public are allowed, this cluster's own too: in test rigs.
    pub(super) allow_private: bool,
    /// Networks of the chart, forbidden in any case.
    pub(super) denied: Vec<Network>,
    /// Addresses of this node, this pod and the API server: they may be public ones.
    pub(super) own: Vec<Network>,
}

impl AddressPolicy {
    /// Whether a tunnel may lead to every one of `addresses`, and there is one.
    pub(super) fn allows(&self, addresses: &[SocketAddr]) -> bool {
        !addresses.is_empty() && addresses.iter().all(|address| self.allows_one(*address))
    }

    fn allows_one(&self, address: SocketAddr) -> bool {
        let address = address.ip();
        let within = |networks: &[Network]| networks.iter().any(|one| one.contains(address));
        let outside = is_public(address) && !within(&self.own);
        !within(&self.denied) && (self.allow_private || outside)
    }
}
