//! Where a tunnel may go: by name first, then by the addresses that the name stands for.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// Port when an allowed host names none.
const DEFAULT_PORT: u16 = 443;
/// Longest DNS name.
const NAME_BYTES_MAX: usize = 253;
/// Longest label of one.
const LABEL_BYTES_MAX: usize = 63;

/// Why a text is not a host with a port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// An IP address: it would pass the check by name.
    #[error("{0:?} is an address; only names are allowed")]
    Address(String),
    /// Not a DNS name with an optional port.
    #[error("{0:?} is not a host name or host name with port")]
    Malformed(String),
}

/// A DNS name in lower case and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// The name, without a trailing dot.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl HostPort {
    /// An entry of an allow list: `name` or `name:port`.
    pub fn parse_allowed(text: &str) -> Result<Self, HostError> {
        let malformed = || HostError::Malformed(text.to_owned());
        let (host, port) = match text.split_once(':') {
            None => (text, DEFAULT_PORT),
            Some((host, port)) => (host, parse_port(port).ok_or_else(malformed)?),
        };
        if host.parse::<IpAddr>().is_ok() || text.parse::<IpAddr>().is_ok() {
            return Err(HostError::Address(text.to_owned()));
        }
        if !is_dns_name(host) {
            return Err(malformed());
        }
        Ok(Self { host: host.to_ascii_lowercase(), port })
    }

    /// The target of a CONNECT request: `name:port`, both required, nothing else.
    pub fn parse_target(text: &str) -> Result<Self, HostError> {
        let malformed = || HostError::Malformed(text.to_owned());
        if text.starts_with('[') {
            return Err(HostError::Address(text.to_owned()));
        }
        let (host, _) = text.split_once(':').ok_or_else(malformed)?;
        // A trailing dot names the same host past a comparison by text.
        if host.ends_with('.') {
            return Err(malformed());
        }
        Self::parse_allowed(text)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl FromStr for HostPort {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse_allowed(text)
    }
}

fn parse_port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|port| *port != 0)
}

/// A name that resolvers and TLS read alike. The last label must not be a number: `0x7f.1` and
/// `2130706433` are addresses to some resolvers.
fn is_dns_name(name: &str) -> bool {
    let labels = name.split('.');
    let last_is_numeric =
        name.rsplit('.').next().is_some_and(|last| last.starts_with(|c: char| c.is_ascii_digit()));
    name.len() <= NAME_BYTES_MAX
        && !last_is_numeric
        && labels.into_iter().all(|label| {
            !label.is_empty()
                && label.len() <= LABEL_BYTES_MAX
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}

/// Why a tunnel is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The target is not a name with a port.
    #[error(transparent)]
    Target(#[from] HostError),
    /// Credentials go to this host: a tunnel could carry the agent's own key there unseen.
    #[error("{0} is reached through the gateway's own routes only, never by a tunnel")]
    CredentialHost(String),
    /// Not on the list.
    #[error(
        "{0} is not an allowed host; it can be added to spec.sandbox.allowedHosts or the chart"
    )]
    NotAllowed(String),
}

/// The decision by name.
#[derive(Clone, Debug)]
pub struct NamePolicy {
    allowed: BTreeSet<HostPort>,
    credential_hosts: Vec<String>,
}

impl NamePolicy {
    /// A policy of the chart's list and the hosts that credentials go to.
    pub fn new(allowed: &[String], credential_hosts: Vec<String>) -> Self {
        Self { allowed: parse_list(allowed), credential_hosts }
    }

    /// Whether `target` may be reached by a task that allows `task_allowed` besides.
    pub fn check(&self, target: &str, task_allowed: &[String]) -> Result<HostPort, Denied> {
        let target = HostPort::parse_target(target)?;
        if self.credential_hosts.iter().any(|known| is_host_or_below(&target.host, known)) {
            return Err(Denied::CredentialHost(target.to_string()));
        }
        if self.allowed.contains(&target) || parse_list(task_allowed).contains(&target) {
            return Ok(target);
        }
        Err(Denied::NotAllowed(target.to_string()))
    }
}

/// Entries that do not parse allow nothing.
fn parse_list(list: &[String]) -> BTreeSet<HostPort> {
    list.iter().filter_map(|entry| HostPort::parse_allowed(entry).ok()).collect()
}

/// `api.github.com` is below `github.com`.
fn is_host_or_below(host: &str, known: &str) -> bool {
    host.strip_suffix(known).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether an address lies in the public internet: not private, link-local, loopback, shared,
/// documentation, multicast or reserved. Metadata services live in the refused ranges.
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let protocol_assignments = a == 192 && b == 0 && c == 0;
    let benchmarking = a == 198 && (18..20).contains(&b);
    let relay_to_v6 = a == 192 && b == 88 && c == 99;
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        || shared
        || protocol_assignments
        || benchmarking
        || relay_to_v6)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    // Only 2000::/3 is handed out to the public; in it, tunnels and translations that embed an
    // IPv4 address, and documentation, are left out. 64:ff9b::/96 (NAT64) lies outside of 2000::/3.
    let global = segments[0] & 0xe000 == 0x2000;
    let teredo_orchid_documentation =
        segments[0] == 0x2001 && (segments[1] < 0x0200 || segments[1] == 0x0db8);
    let six_to_four = segments[0] == 0x2002;
    let documentation = segments[0] == 0x3fff && segments[1] < 0x1000;
    global && !teredo_orchid_documentation && !six_to_four && !documentation
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> NamePolicy {
        NamePolicy::new(
            &["packages.example".to_owned(), "mirror.example:8443".to_owned()],
            vec!["api.anthropic.com".to_owned(), "github.com".to_owned()],
        )
    }

    #[test]
    fn listed_names_pass_on_their_port_only() {
        assert!(policy().check("packages.example:443", &[]).is_ok());
        assert!(policy().check("PACKAGES.example:443", &[]).is_ok());
        assert!(policy().check("mirror.example:8443", &[]).is_ok());
        for target in ["packages.example:80", "mirror.example:443", "evil.example:443"] {
            assert!(matches!(policy().check(target, &[]), Err(Denied::NotAllowed(_))), "{target}");
        }
        assert!(policy().check("evil.example:443", &["evil.example".to_owned()]).is_ok());
    }

    #[test]
    fn hosts_of_credentials_are_never_tunnelled_even_when_a_task_lists_them() {
        let listed = ["github.com", "api.github.com", "api.anthropic.com"].map(str::to_owned);
        for target in ["github.com:443", "api.github.com:443", "api.anthropic.com:443"] {
            let denied = policy().check(target, &listed);
            assert!(matches!(denied, Err(Denied::CredentialHost(_))), "{target}");
        }
    }

    #[test]
    fn addresses_in_any_spelling_and_odd_names_are_refused() {
        for target in [
            "127.0.0.1:443",
            "[::1]:443",
            "0x7f000001:443",
            "2130706433:443",
            "127.1:443",
            "packages.example.:443",
            "packages.example",
            "packages.example:0443x",
            "packages.example:0",
            "user@packages.example:443",
            "packages.example:443/x",
            "regi\u{0}stry:443",
            "p\u{e9}ckages.example:443",
            "a..b:443",
            ":443",
        ] {
            assert!(matches!(policy().check(target, &[]), Err(Denied::Target(_))), "{target}");
        }
    }

    #[test]
    fn only_public_addresses_are_reached() {
        for address in [
            "10.0.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "::ffff:10.0.0.1",
            "fe80::1",
            "fd00:ec2::254",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "2001::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in ["1.1.1.1", "104.16.0.1", "2606:4700::1111"] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }
}
