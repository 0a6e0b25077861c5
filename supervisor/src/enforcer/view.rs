//! Which device of the host is a pod's, from what the kernel shows. Pure.
//!
//! The pod's address leads there: the route to it goes over the pod's veth, or over a bridge that has
//! learned the address's hardware address behind that veth. The runner's word, the index that it sees,
//! must then be the same. The address is the one that redeemed the pod's token, and no gate opens before
//! the kubelet has named the same one. So nobody points at another pod's device.

use std::net::IpAddr;

use serde::Deserialize;

/// A network device of the host, as `ip -j -d link` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Link {
    /// Its index.
    #[serde(rename = "ifindex")]
    pub index: u32,
    /// Its name.
    #[serde(rename = "ifname")]
    pub name: String,
    /// The bridge that it is a port of.
    #[serde(default)]
    pub master: Option<String>,
    /// Set where the peer is in another network namespace.
    #[serde(default)]
    pub link_netnsid: Option<i64>,
    /// What it is.
    #[serde(default)]
    pub linkinfo: LinkInfo,
}

/// What a device is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct LinkInfo {
    /// `veth`, `bridge`, ...
    #[serde(default, rename = "info_kind")]
    pub kind: Option<String>,
}

/// A route, as `ip -j route get` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Route {
    /// The device that it goes over.
    #[serde(default)]
    pub dev: Option<String>,
    /// The next router, for an address that is not on a device of this host.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
}

/// A neighbour, as `ip -j neigh` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Neighbour {
    /// Its address.
    pub dst: IpAddr,
    /// Its hardware address, if it is known.
    #[serde(default)]
    pub lladdr: Option<String>,
}

/// An entry of a bridge's forwarding table, as `bridge -j fdb` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Forwarding {
    /// The hardware address.
    pub mac: String,
    /// The port behind which it is.
    #[serde(rename = "ifname")]
    pub port: String,
}

/// What the kernel shows about a pod's address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// All devices.
    pub links: Vec<Link>,
    /// The route to the address.
    pub route: Option<Route>,
    /// The address on the route's device.
    pub neighbours: Vec<Neighbour>,
    /// The forwarding table, where the route's device is a bridge.
    pub forwarding: Vec<Forwarding>,
}

/// A pod's device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// Why no device is the pod's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoDevice {
    /// The node has no route of its own to the pod.
    #[error("the node has no route of its own to the pod's address {0}")]
    NoRoute(IpAddr),
    /// The bridge has not learned the pod's address yet.
    #[error("the node's bridge {0} has not learned the pod's address yet")]
    NotLearned(String),
    /// What the route leads to is no veth of a pod.
    #[error("the pod's address is not behind a veth but behind {0}")]
    NoVeth(String),
    /// The runner sees another device.
    #[error("the pod's address is behind device {found}, but its runner sees device {seen}")]
    Contradiction {
        /// By the kernel.
        found: u32,
        /// By the runner.
        seen: u32,
    },
}

impl NoDevice {
    /// Whether another look may find it.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::NotLearned(_) | Self::NoRoute(_))
    }
}

impl View {
    /// The device that the route goes over.
    pub fn routed(&self) -> Option<&Link> {
        let route = self.route.as_ref().filter(|route| route.gateway.is_none())?;
        self.named(route.dev.as_deref()?)
    }

    fn named(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The device of the pod with the address `ip`, whose runner sees the index `seen`.
    pub fn device(&self, ip: IpAddr, seen: Option<u32>) -> Result<Device, NoDevice> {
        let routed = self.routed().ok_or(NoDevice::NoRoute(ip))?;
        let link = if is_bridge(routed) { self.behind(routed, ip)? } else { routed };
        if link.linkinfo.kind.as_deref() != Some("veth") || link.link_netnsid.is_none() {
            return Err(NoDevice::NoVeth(link.name.clone()));
        }
        match seen {
            Some(seen) if seen != link.index => {
                Err(NoDevice::Contradiction { found: link.index, seen })
            }
            _ => Ok(Device { index: link.index, name: link.name.clone() }),
        }
    }

    /// The port of `bridge` behind which `ip` is.
    fn behind(&self, bridge: &Link, ip: IpAddr) -> Result<&Link, NoDevice> {
        let not_learned = || NoDevice::NotLearned(bridge.name.clone());
        let neighbour = self.neighbours.iter().find(|neighbour| neighbour.dst == ip);
        let hardware = neighbour.and_then(|known| known.lladdr.as_ref()).ok_or_else(not_learned)?;
        let entries = self.forwarding.iter().filter(|entry| entry.mac == *hardware);
        entries
            .filter_map(|entry| self.named(&entry.port))
            .find(|port| port.master.as_deref() == Some(&bridge.name))
            .ok_or_else(not_learned)
    }
}

/// Whether a device is a bridge.
pub fn is_bridge(link: &Link) -> bool {
    link.linkinfo.kind.as_deref() == Some("bridge")
}

#[cfg(test)]
mod tests {
    use super::*;

    const IP: &str = "10.244.0.7";

    fn link(index: u32, name: &str, kind: &str, master: Option<&str>) -> Link {
        Link {
            index,
            name: name.to_owned(),
            master: master.map(str::to_owned),
            link_netnsid: (kind == "veth").then_some(3),
            linkinfo: LinkInfo { kind: Some(kind.to_owned()) },
        }
    }

    fn route(dev: &str) -> Route {
        Route { dev: Some(dev.to_owned()), gateway: None }
    }

    /// A node with a bridge and two pods behind it.
    fn bridged() -> View {
        View {
            links: vec![
                link(2, "cni0", "bridge", None),
                link(5, "vetha", "veth", Some("cni0")),
                link(6, "vethb", "veth", Some("cni0")),
            ],
            route: Some(route("cni0")),
            neighbours: vec![Neighbour {
                dst: IP.parse().unwrap(),
                lladdr: Some("aa:00:00:00:00:07".to_owned()),
            }],
            forwarding: vec![
                Forwarding { mac: "aa:00:00:00:00:06".to_owned(), port: "vetha".to_owned() },
                Forwarding { mac: "aa:00:00:00:00:07".to_owned(), port: "vethb".to_owned() },
            ],
        }
    }

    fn found(view: &View, seen: Option<u32>) -> Result<u32, NoDevice> {
        view.device(IP.parse().unwrap(), seen).map(|device| device.index)
    }

    #[test]
    fn a_bridge_shows_the_port_by_the_learned_hardware_address() {
        assert_eq!(found(&bridged(), None), Ok(6));
        assert_eq!(found(&bridged(), Some(6)), Ok(6));
    }

    #[test]
    fn a_routed_pod_is_behind_the_routes_device() {
        let view = View {
            links: vec![link(9, "cali1", "veth", None)],
            route: Some(route("cali1")),
            ..View::default()
        };
        assert_eq!(found(&view, Some(9)), Ok(9));
    }

    #[test]
    fn a_runner_cannot_point_at_another_pods_device() {
        let contradiction = NoDevice::Contradiction { found: 6, seen: 5 };
        assert!(!contradiction.may_pass());
        assert_eq!(found(&bridged(), Some(5)), Err(contradiction));
    }

    #[test]
    fn what_is_not_learned_yet_may_pass() {
        let unlearned = [
            View { neighbours: Vec::new(), ..bridged() },
            View { forwarding: Vec::new(), ..bridged() },
        ];
        for view in unlearned {
            let error = found(&view, Some(6)).unwrap_err();
            assert!(error.may_pass(), "{error}");
        }
    }

    #[test]
    fn a_pod_without_a_veth_on_this_node_is_refused() {
        let on_the_host = View { route: Some(route("eth0")), ..bridged() };
        assert!(matches!(found(&on_the_host, None), Err(NoDevice::NoRoute(_))));
        let physical = View {
            links: vec![link(1, "eth0", "macvlan", None)],
            route: Some(route("eth0")),
            ..View::default()
        };
        assert_eq!(found(&physical, None), Err(NoDevice::NoVeth("eth0".to_owned())));
        let mut same_namespace = bridged();
        same_namespace.links[2].link_netnsid = None;
        assert_eq!(found(&same_namespace, None), Err(NoDevice::NoVeth("vethb".to_owned())));
        let elsewhere = Route { dev: Some("cni0".into()), gateway: "10.77.0.2".parse().ok() };
        let other_node = View { route: Some(elsewhere), ..bridged() };
        assert!(matches!(found(&other_node, None), Err(NoDevice::NoRoute(_))));
    }

    #[test]
    fn the_kernels_tools_are_understood() {
        let links = r#"[{"ifindex":2,"link_index":2,"ifname":"vh","master":"cni0","flags":["UP"],
            "link_netnsid":0,"linkinfo":{"info_kind":"veth"}},{"ifindex":1,"ifname":"lo"}]"#;
        let links: Vec<Link> = serde_json::from_str(links).unwrap();
        assert_eq!(links[0], Link { link_netnsid: Some(0), ..link(2, "vh", "veth", Some("cni0")) });
        let route = r#"[{"dst":"10.9.0.2","dev":"vh","prefsrc":"10.9.0.1","flags":[],"uid":0}]"#;
        let routes: Vec<Route> = serde_json::from_str(route).unwrap();
        assert_eq!(routes[0], self::route("vh"));
    }
}
