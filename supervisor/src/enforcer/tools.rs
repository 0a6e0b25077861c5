//! `nft`, `ip` and `bridge`: the kernel's interfaces by their own programs, which speak JSON. Each call
//! is bounded in time, and starts without the environment of this process.

use std::{net::IpAddr, process::Stdio, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{io::AsyncWriteExt as _, net::UdpSocket, process::Command, time::timeout};

use super::{
    ruleset::TABLE,
    view::{Link, View, is_bridge},
};

/// A call takes milliseconds; on a node under load it may take seconds.
const LIMIT: Duration = Duration::from_secs(10);
/// Where the programs are.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The discard port: nobody answers there.
const DISCARD: u16 = 9;

/// A tool could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It could not be started, or its pipes broke.
    #[error("could not run {tool}")]
    Run {
        /// Which.
        tool: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It took too long.
    #[error("{0} did not end within {LIMIT:?}")]
    Slow(&'static str),
    /// It failed.
    #[error("{tool} failed: {words}")]
    Failed {
        /// Which.
        tool: &'static str,
        /// Its words.
        words: String,
    },
    /// Its answer is not what is expected.
    #[error("the answer of {tool} cannot be read")]
    Answer {
        /// Which.
        tool: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// What the last rule of a chain has counted: packets that nothing before it let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The chain.
    pub chain: String,
    /// How many.
    pub packets: u64,
}

/// The node's network, as far as the enforcer needs it.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// Names of our chains.
    async fn chains(&self) -> Result<Vec<String>, ToolError>;
    /// What our chains have dropped; asked only where there are any.
    async fn dropped(&self) -> Result<Vec<Dropped>, ToolError>;
    /// All devices.
    async fn links(&self) -> Result<Vec<Link>, ToolError>;
    /// What the kernel shows about a pod's address.
    async fn view(&self, ip: IpAddr) -> Result<View, ToolError>;
    /// Has the kernel ask for the hardware address of `ip`.
    async fn stir(&self, ip: IpAddr);
    /// Carries out an nft script, whole or not at all.
    async fn apply(&self, script: &Value) -> Result<(), ToolError>;
}

/// The network namespace of this process.
#[derive(Debug)]
pub struct HostNetwork;

#[async_trait]
impl Network for HostNetwork {
    async fn chains(&self) -> Result<Vec<String>, ToolError> {
        let answer = run("nft", &["-j", "list", "chains", "netdev"], None).await?;
        let listing: Listing = read("nft", &answer)?;
        let ours = |object: Object| object.chain.filter(|chain| chain.table == TABLE);
        Ok(listing.nftables.into_iter().filter_map(ours).map(|chain| chain.name).collect())
    }

    async fn dropped(&self) -> Result<Vec<Dropped>, ToolError> {
        let answer = run("nft", &["-j", "list", "table", "netdev", TABLE], None).await?;
        read("nft", &answer).map(dropped)
    }

    async fn links(&self) -> Result<Vec<Link>, ToolError> {
        ask("ip", &["-j", "-d", "link", "show"]).await
    }

    async fn view(&self, ip: IpAddr) -> Result<View, ToolError> {
        let address = ip.to_string();
        let route_arguments = ["-j", "route", "get", address.as_str()];
        let (links, routes) = tokio::join!(self.links(), ask("ip", &route_arguments));
        // An address without a route makes `ip` fail.
        let route = match routes {
            Ok(routes) => Vec::into_iter(routes).next(),
            Err(ToolError::Failed { .. }) => None,
            Err(error) => return Err(error),
        };
        let mut view = View { links: links?, route, ..View::default() };
        let bridge = view.routed().filter(|link| is_bridge(link)).map(|link| link.name.clone());
        if let Some(bridge) = bridge {
            let neighbours = ["-j", "neigh", "show", "to", address.as_str(), "dev", &bridge];
            let forwarding = ["-j", "fdb", "show", "br", &bridge];
            let (neighbours, forwarding) =
                tokio::join!(ask("ip", &neighbours), ask("bridge", &forwarding));
            (view.neighbours, view.forwarding) = (neighbours?, forwarding?);
        }
        Ok(view)
    }

    async fn stir(&self, ip: IpAddr) {
        let any: IpAddr = if ip.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        // Whatever fails here shows in the next look.
        if let Ok(socket) = UdpSocket::bind((any, 0)).await {
            let _ = socket.send_to(&[], (ip, DISCARD)).await;
        }
    }

    async fn apply(&self, script: &Value) -> Result<(), ToolError> {
        let script = script.to_string();
        run("nft", &["-j", "-f", "-"], Some(script.as_bytes())).await.map(drop)
    }
}

#[derive(Deserialize)]
struct Listing {
    #[serde(default)]
    nftables: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    chain: Option<Chain>,
    #[serde(default)]
    rule: Option<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    chain: String,
    #[serde(default)]
    expr: Vec<Value>,
}

/// The counters of the rules that drop.
fn dropped(listing: Listing) -> Vec<Dropped> {
    let counted = |rule: Rule| {
        let packets = |part: &Value| part.pointer("/counter/packets")?.as_u64();
        let packets = rule.expr.iter().find_map(packets)?;
        Some(Dropped { chain: rule.chain, packets })
    };
    listing.nftables.into_iter().filter_map(|object| object.rule).filter_map(counted).collect()
}

#[derive(Deserialize)]
struct Chain {
    table: String,
    name: String,
}

/// Asks a tool for a list; no answer at all is an empty one.
async fn ask<T: DeserializeOwned>(
    tool: &'static str,
    arguments: &[&str],
) -> Result<Vec<T>, ToolError> {
    let answer = run(tool, arguments, None).await?;
    if answer.trim_ascii().is_empty() { Ok(Vec::new()) } else { read(tool, &answer) }
}

fn read<T: DeserializeOwned>(tool: &'static str, answer: &[u8]) -> Result<T, ToolError> {
    serde_json::from_slice(answer).map_err(|source| ToolError::Answer { tool, source })
}

async fn run(
    tool: &'static str,
    arguments: &[&str],
    input: Option<&[u8]>,
) -> Result<Vec<u8>, ToolError> {
    let failed = |source| ToolError::Run { tool, source };
    let mut child = Command::new(tool)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let stdin = child.stdin.take();
    let work = async {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            stdin.write_all(input).await?;
        }
        child.wait_with_output().await
    };
    let output = timeout(LIMIT, work).await.map_err(|_| ToolError::Slow(tool))?.map_err(failed)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(ToolError::Failed { tool, words: words.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_from_what_nft_lists() {
        let listed = r#"{"nftables": [
            {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
            {"table": {"family": "netdev", "name": "agent_operator", "handle": 1}},
            {"chain": {"family": "netdev", "table": "agent_operator", "name": "from-7-a", "handle": 1}},
            {"rule": {"family": "netdev", "table": "agent_operator", "chain": "from-7-a", "handle": 3,
                "expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}},
                    "right": "10.96.0.9"}}, {"accept": null}]}},
            {"rule": {"family": "netdev", "table": "agent_operator", "chain": "from-7-a", "handle": 4,
                "expr": [{"counter": {"packets": 12, "bytes": 720}}, {"drop": null}]}}
        ]}"#;
        let read = dropped(read("nft", listed.as_bytes()).unwrap());
        assert_eq!(read, [Dropped { chain: "from-7-a".to_owned(), packets: 12 }]);
    }
}
