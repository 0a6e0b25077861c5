//! What nft is told, as its JSON. Pure, so that every rule is shown by a test.
//!
//! Two chains a pod, both on the host's side of its veth, both with the policy to drop:
//! - `from-…` at the ingress hook sees what the pod sends, every frame, before any address is
//!   translated. It lets through the question who has an address (asked with the pod's own), and TCP
//!   from the pod's own address to the gateway.
//! - `to-…` at the egress hook sees what comes to the pod. It lets through the same questions and what
//!   the gateway's port sends.
//!
//! One family is enough: the gateway has one, and with it the other is dropped whole.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use super::view::Device;

/// The table of all our chains.
pub const TABLE: &str = "agent_operator";
/// What a kernel sends by itself where it has IPv6: dropped like all else, and not counted, for nobody has asked for it
/// and no process without rights can send it.
const OF_THE_KERNEL: [&str; 4] =
    ["nd-router-solicit", "nd-neighbor-solicit", "nd-neighbor-advert", "mld2-listener-report"];
/// Before everything else at the same hook: what is dropped here, nobody else may accept.
const PRIORITY: i32 = -500;

/// How the names of chains begin for what pods send.
pub const FROM: &str = "from-";
/// The same for what comes to them.
pub const TO: &str = "to-";

/// The two chains of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chains {
    /// For what the pod sends.
    pub from: String,
    /// For what comes to it.
    pub to: String,
}

impl Chains {
    /// Of the pod `uid` on the device with this index. The index is in the name, for nft does not say
    /// which device a chain hangs on.
    pub fn of(index: u32, uid: &str) -> Self {
        Self { from: format!("{FROM}{index}-{uid}"), to: format!("{TO}{index}-{uid}") }
    }
}

/// The device's index and the pod's uid in a chain's name.
pub fn parse(chain: &str) -> Option<(u32, &str)> {
    let rest = chain.strip_prefix(FROM).or_else(|| chain.strip_prefix(TO))?;
    let (index, uid) = rest.split_once('-')?;
    Some((index.parse().ok()?, uid))
}

/// What the chains of a pod had dropped when its rules were last replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// Of what the pod sent.
    pub from: u64,
    /// Of what came to it.
    pub to: u64,
}

/// Closes `device` but for `gateways`, in one transaction: before it nothing of it holds, after it all.
/// Rules of the same pod are replaced, and count on from `before`.
pub fn close(
    device: &Device,
    uid: &str,
    pod: IpAddr,
    gateways: &[SocketAddr],
    before: Before,
) -> Value {
    let chains = Chains::of(device.index, uid);
    let base = |name: &str, hook: &str| {
        json!({"add": {"chain": {
            "family": "netdev", "table": TABLE, "name": name, "type": "filter", "hook": hook,
            "dev": device.name, "prio": PRIORITY, "policy": "drop",
        }}})
    };
    let flush = |name: &str| json!({"flush": {"chain": {"family": "netdev", "table": TABLE, "name": name}}});
    let mut commands = vec![
        json!({"add": {"table": {"family": "netdev", "name": TABLE}}}),
        base(&chains.from, "ingress"),
        base(&chains.to, "egress"),
        flush(&chains.from),
        flush(&chains.to),
    ];
    let mut accept = |chain: &str, matches: Vec<Value>| {
        let mut expressions = matches;
        expressions.push(json!({"accept": null}));
        commands.push(json!({"add": {"rule": {
            "family": "netdev", "table": TABLE, "chain": chain, "expr": expressions,
        }}}));
    };
    if pod.is_ipv4() {
        // Only with its own address: a pod that answers for another one's would get its traffic.
        accept(&chains.from, vec![field("arp", "saddr ip", &pod.to_string())]);
        accept(&chains.to, vec![field("arp", "operation", "request")]);
        accept(&chains.to, vec![field("arp", "operation", "reply")]);
    } else {
        for kind in ["nd-neighbor-solicit", "nd-neighbor-advert"] {
            let matches = || vec![field("icmpv6", "type", kind), hop_limit()];
            accept(&chains.from, matches());
            accept(&chains.to, matches());
        }
    }
    let family = if pod.is_ipv4() { "ip" } else { "ip6" };
    for gateway in gateways.iter().filter(|gateway| gateway.is_ipv4() == pod.is_ipv4()) {
        let (address, pod) = (gateway.ip().to_string(), pod.to_string());
        let out = [("saddr", &pod), ("daddr", &address)];
        let mut matches: Vec<_> = out.iter().map(|(name, ip)| field(family, name, ip)).collect();
        matches.push(port("dport", gateway.port()));
        accept(&chains.from, matches);
        let back = [("saddr", &address), ("daddr", &pod)];
        let mut matches: Vec<_> = back.iter().map(|(name, ip)| field(family, name, ip)).collect();
        matches.push(port("sport", gateway.port()));
        accept(&chains.to, matches);
    }
    for kind in OF_THE_KERNEL {
        commands.push(json!({"add": {"rule": {
            "family": "netdev", "table": TABLE, "chain": chains.from,
            "expr": [field("icmpv6", "type", kind), {"drop": null}],
        }}}));
    }
    // Nothing comes here that is let through; the counts say whether packets pass this way at all.
    for (chain, packets) in [(&chains.from, before.from), (&chains.to, before.to)] {
        // Of bytes nobody asks.
        let counter = json!({"counter": {"packets": packets, "bytes": 0}});
        commands.push(json!({"add": {"rule": {
            "family": "netdev", "table": TABLE, "chain": chain, "expr": [counter, {"drop": null}],
        }}}));
    }
    json!({ "nftables": commands })
}

/// Removes the table, whether it is there or not.
pub fn remove_table() -> Value {
    let table = json!({"table": {"family": "netdev", "name": TABLE}});
    json!({ "nftables": [{"add": table}, {"delete": table}] })
}

/// Removes chains whose device is gone.
pub fn remove(chains: &[String]) -> Value {
    let commands: Vec<_> = chains
        .iter()
        .flat_map(|name| {
            let chain = json!({"chain": {"family": "netdev", "table": TABLE, "name": name}});
            [json!({"flush": chain}), json!({"delete": chain})]
        })
        .collect();
    json!({ "nftables": commands })
}

fn equal(left: &Value, right: &Value) -> Value {
    json!({"match": {"op": "==", "left": left, "right": right}})
}

fn field(protocol: &str, name: &str, value: &str) -> Value {
    equal(&json!({"payload": {"protocol": protocol, "field": name}}), &json!(value))
}

fn port(name: &str, value: u16) -> Value {
    equal(&json!({"payload": {"protocol": "tcp", "field": name}}), &json!(value))
}

/// A packet of the neighbour protocol that was routed has a lower one and is a forgery.
fn hop_limit() -> Value {
    equal(&json!({"payload": {"protocol": "ip6", "field": "hoplimit"}}), &json!(255))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "6f1c0c1e-4d1e-4a53-9d63-0a3b8f6a3f11";

    fn device() -> Device {
        Device { index: 17, name: "veth5ec1".to_owned() }
    }

    /// One line a command: what a person compares.
    fn lines(script: &Value) -> String {
        let commands = script["nftables"].as_array().unwrap().iter();
        let lines: Vec<_> = commands.map(|command| command.to_string() + "\n").collect();
        lines.concat()
    }

    #[test]
    fn an_ipv4_pod_reaches_the_gateway_by_tcp_and_nothing_else() {
        let gateways = ["10.96.0.9:8080".parse().unwrap(), "10.244.0.3:8080".parse().unwrap()];
        let pod = "10.244.0.7".parse().unwrap();
        let script = close(&device(), UID, pod, &gateways, Before::default());
        insta::assert_snapshot!(lines(&script));
    }

    #[test]
    fn an_ipv6_pod_reaches_the_gateway_by_tcp_and_nothing_else() {
        let gateways = ["[fd00:96::9]:8080".parse().unwrap(), "10.96.0.9:8080".parse().unwrap()];
        let pod = "fd00:244::7".parse().unwrap();
        let script = close(&device(), UID, pod, &gateways, Before { from: 7, to: 2 });
        insta::assert_snapshot!(lines(&script));
    }

    #[test]
    fn a_chain_says_whose_it_is() {
        let chains = Chains::of(17, UID);
        assert_eq!(parse(&chains.from), Some((17, UID)));
        assert_eq!(parse(&chains.to), Some((17, UID)));
        for foreign in ["from-x-y", "from-17", "input", "through-17-a"] {
            assert_eq!(parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn only_named_chains_are_removed() {
        let script = remove(&["from-17-a".to_owned()]);
        assert_eq!(
            lines(&script),
            "{\"flush\":{\"chain\":{\"family\":\"netdev\",\"name\":\"from-17-a\",\"table\":\"agent_operator\"}}}\n\
             {\"delete\":{\"chain\":{\"family\":\"netdev\",\"name\":\"from-17-a\",\"table\":\"agent_operator\"}}}\n"
        );
    }
}
