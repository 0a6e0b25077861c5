//! Orders over a real socket to a network that is data.

use std::{net::IpAddr, sync::Mutex as StdMutex};

use async_trait::async_trait;
use serde_json::Value;

use super::*;
use crate::enforcer::{
    client::{Enforcer as _, SocketEnforcer},
    tools::Dropped,
    view::{Forwarding, Link, LinkInfo, Neighbour, Route, View},
};

const UID: &str = "6f1c0c1e-4d1e-4a53-9d63-0a3b8f6a3f11";

/// A node with a bridge, whose kernel learns a pod after some looks.
#[derive(Default)]
struct FakeNetwork {
    chains: StdMutex<Vec<String>>,
    indices: StdMutex<Vec<u32>>,
    unlearned: StdMutex<u32>,
    applied: StdMutex<Vec<Value>>,
    packets: u64,
}

#[async_trait]
impl Network for FakeNetwork {
    async fn chains(&self) -> Result<Vec<String>, ToolError> {
        Ok(self.chains.lock().unwrap().clone())
    }

    async fn dropped(&self) -> Result<Vec<Dropped>, ToolError> {
        let chains = self.chains.lock().unwrap();
        let packets = self.packets;
        Ok(chains.iter().map(|chain| Dropped { chain: chain.clone(), packets }).collect())
    }

    async fn links(&self) -> Result<Vec<Link>, ToolError> {
        let link = |index: &u32| Link {
            index: *index,
            name: format!("veth{index}"),
            master: Some("cni0".to_owned()),
            link_netnsid: Some(1),
            linkinfo: LinkInfo { kind: Some("veth".to_owned()) },
        };
        let mut links: Vec<_> = self.indices.lock().unwrap().iter().map(link).collect();
        links.push(Link {
            index: 1,
            name: "cni0".to_owned(),
            master: None,
            link_netnsid: None,
            linkinfo: LinkInfo { kind: Some("bridge".to_owned()) },
        });
        Ok(links)
    }

    async fn view(&self, ip: IpAddr) -> Result<View, ToolError> {
        let learned = {
            let mut unlearned = self.unlearned.lock().unwrap();
            let looks = *unlearned;
            *unlearned = looks.saturating_sub(1);
            looks == 0
        };
        let neighbour = Neighbour { dst: ip, lladdr: learned.then(|| "aa:bb".to_owned()) };
        Ok(View {
            links: self.links().await?,
            route: Some(Route { dev: Some("cni0".to_owned()), gateway: None }),
            neighbours: vec![neighbour],
            forwarding: vec![Forwarding { mac: "aa:bb".to_owned(), port: "veth7".to_owned() }],
        })
    }

    async fn stir(&self, _: IpAddr) {}

    async fn apply(&self, script: &Value) -> Result<(), ToolError> {
        let mut chains = self.chains.lock().unwrap();
        for command in script["nftables"].as_array().unwrap() {
            let named = |pointer| command.pointer(pointer).and_then(Value::as_str);
            if let Some(gone) = named("/delete/chain/name") {
                chains.retain(|chain| chain != gone);
            }
            if let Some(made) = named("/add/chain/name")
                && !chains.iter().any(|chain| chain == made)
            {
                chains.push(made.to_owned());
            }
        }
        self.applied.lock().unwrap().push(script.clone());
        Ok(())
    }
}

fn node() -> FakeNetwork {
    FakeNetwork { indices: vec![7, 8].into(), ..FakeNetwork::default() }
}

fn order() -> CloseOrder {
    CloseOrder {
        version: VERSION,
        pod_uid: UID.to_owned(),
        pod_ip: "10.244.0.7".parse().unwrap(),
        iflink: Some(7),
        gateways: vec!["10.96.0.9:8080".parse().unwrap()],
    }
}

fn closed() -> Answer {
    Answer::Closed { device: "veth7".to_owned(), index: Some(7), anew: true }
}

fn renewed() -> Answer {
    Answer::Closed { device: "veth7".to_owned(), index: Some(7), anew: false }
}

#[tokio::test]
async fn an_order_over_the_socket_closes_the_pods_device() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("enforcer.sock");
    let network = Arc::new(node());
    let shutdown = CancellationToken::new();
    let listener = listen(&socket).unwrap();
    let (of_node, ending) = (Arc::clone(&network), shutdown.clone());
    let own = nix::unistd::geteuid().as_raw();
    let task = tokio::spawn(async move { serve(of_node, listener, &[own], &ending).await });
    let client = SocketEnforcer::new(socket);
    assert_eq!(client.close(&order()).await.unwrap(), closed());
    let script = network.applied.lock().unwrap()[0].to_string();
    assert!(script.contains(&format!("from-7-{UID}")) && script.contains("veth7"), "{script}");
    shutdown.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn what_was_done_refused_and_dropped_is_counted_and_told_over_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("enforcer.sock");
    let chains = vec![format!("from-7-{UID}"), format!("to-7-{UID}")];
    let network = Arc::new(FakeNetwork { packets: 4, chains: chains.into(), ..node() });
    let listener = listen(&socket).unwrap();
    let own = nix::unistd::geteuid().as_raw();
    let task = tokio::spawn(async move {
        serve(network, listener, &[own], &CancellationToken::new()).await;
    });
    let client = SocketEnforcer::new(socket);
    let foreign = CloseOrder { pod_uid: "b0".to_owned(), ..order() };
    for order in [&order(), &foreign] {
        client.close(order).await.unwrap();
    }
    // The first sweep, at the start, counts what the kernel has dropped.
    let counted = async {
        loop {
            let counts = client.counts().await.unwrap();
            if counts.pods > 0 {
                return counts;
            }
            tokio::task::yield_now().await;
        }
    };
    let counts = timeout(LINE_LIMIT, counted).await.expect("the sweep is made");
    assert_eq!((counts.pods, counts.dropped_from, counts.dropped_to), (1, 4, 4));
    assert_eq!((counts.closed, counts.refused, counts.delayed), (1, 1, 0));
    assert!(counts.last_closed_seconds > 0);
    task.abort();
}

#[tokio::test]
async fn what_one_pod_has_sent_in_vain_is_told_and_nothing_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("enforcer.sock");
    let chains = vec![format!("from-7-{UID}"), format!("to-7-{UID}"), "from-8-b0".to_owned()];
    let network = Arc::new(FakeNetwork { packets: 4, chains: chains.into(), ..node() });
    let listener = listen(&socket).unwrap();
    let own = nix::unistd::geteuid().as_raw();
    let task = tokio::spawn(async move {
        serve(network, listener, &[own], &CancellationToken::new()).await;
    });
    let client = SocketEnforcer::new(socket);
    assert_eq!(client.dropped_of(UID).await.unwrap(), 4);
    assert_eq!(client.dropped_of("unknown").await.unwrap(), 0);
    assert_eq!(client.counts().await.unwrap().refused, 0, "it is no order");
    task.abort();
}

#[tokio::test]
async fn a_peer_with_another_uid_is_not_heard() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("enforcer.sock");
    let network = Arc::new(node());
    let (of_node, listener) = (Arc::clone(&network), listen(&socket).unwrap());
    let other = nix::unistd::geteuid().as_raw() + 1;
    let task = tokio::spawn(async move {
        serve(of_node, listener, &[other], &CancellationToken::new()).await;
    });
    assert!(SocketEnforcer::new(socket).close(&order()).await.is_err());
    assert!(network.applied.lock().unwrap().is_empty());
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_the_bridge_learns_in_a_moment_is_waited_for() {
    let network = FakeNetwork { unlearned: 3.into(), ..node() };
    assert_eq!(obey(&network, &order()).await, closed());
    let network = FakeNetwork { unlearned: 100.into(), ..node() };
    let answer = obey(&network, &order()).await;
    assert!(matches!(answer, Answer::NotClosed { retryable: true, .. }), "{answer:?}");
}

#[tokio::test]
async fn a_device_that_another_pod_has_is_refused_and_ones_own_is_closed_again() {
    let network = node();
    *network.chains.lock().unwrap() = vec![format!("from-7-{UID}"), format!("to-7-{UID}")];
    assert_eq!(obey(&network, &order()).await, renewed());
    let other = CloseOrder { pod_uid: "b0".to_owned(), ..order() };
    let answer = obey(&network, &other).await;
    assert!(matches!(answer, Answer::NotClosed { retryable: false, .. }), "{answer:?}");
    assert_eq!(network.applied.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn an_order_that_is_not_one_changes_nothing() {
    let wrong = [
        CloseOrder { version: VERSION + 1, ..order() },
        CloseOrder { pod_uid: "a;b".to_owned(), ..order() },
        CloseOrder { pod_uid: String::new(), ..order() },
        CloseOrder { gateways: Vec::new(), ..order() },
        CloseOrder { gateways: vec!["[fd00::1]:8080".parse().unwrap()], ..order() },
        CloseOrder { iflink: Some(8), ..order() },
        CloseOrder { pod_ip: "127.0.0.1".parse().unwrap(), ..order() },
    ];
    let network = node();
    for order in wrong {
        let answer = obey(&network, &order).await;
        assert!(matches!(answer, Answer::NotClosed { .. }), "{order:?}: {answer:?}");
    }
    assert!(network.applied.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_sweep_removes_the_rules_of_gone_devices_and_no_others() {
    let network = node();
    let names = ["from-7-a", "to-7-a", "from-9-b", "to-9-b", "foreign"];
    *network.chains.lock().unwrap() = names.map(str::to_owned).to_vec();
    assert_eq!(sweep(&network, &Tally::default()).await.unwrap(), 2);
    let script = network.applied.lock().unwrap()[0].to_string();
    assert!(script.contains("from-9-b") && script.contains("to-9-b"), "{script}");
    assert!(!script.contains("-7-") && !script.contains("foreign"), "{script}");
}

#[tokio::test]
async fn whoever_asks_again_learns_whether_the_pods_rules_were_gone() {
    let (from, to) = (format!("from-7-{UID}"), format!("to-7-{UID}"));
    let other = "from-8-b0".to_owned();
    for (present, answer) in [
        (vec![from.clone(), to.clone()], renewed()),
        // One direction is open.
        (vec![from], closed()),
        (vec![to], closed()),
        // Those of the device that the pod has now count.
        (vec![format!("from-9-{UID}"), format!("to-9-{UID}")], closed()),
        (vec![other], closed()),
        (Vec::new(), closed()),
    ] {
        let network = FakeNetwork { chains: present.into(), ..node() };
        assert_eq!(obey(&network, &order()).await, answer, "{:?}", network.chains);
        assert_eq!(network.applied.lock().unwrap().len(), 1, "they are made in any case");
    }
}

#[tokio::test]
async fn rules_that_are_made_again_count_on_and_let_through_what_the_order_names_now() {
    let chains = vec![format!("from-7-{UID}"), format!("to-7-{UID}")];
    let network = FakeNetwork { packets: 4, chains: chains.into(), ..node() };
    let moved = CloseOrder { gateways: vec!["10.244.0.33:8080".parse().unwrap()], ..order() };
    assert_eq!(obey(&network, &moved).await, renewed());
    let script = network.applied.lock().unwrap()[0].to_string();
    assert_eq!(script.matches(r#""packets":4"#).count(), 2, "{script}");
    assert!(script.contains("10.244.0.33") && !script.contains("10.96.0.9"), "{script}");
}

#[tokio::test]
async fn an_enforcer_that_goes_takes_its_table_along_unless_there_are_rules_in_it() {
    for (present, removed) in [
        (&[][..], true),
        (&["from-9-a", "to-9-a"], true),
        (&["from-7-a", "to-7-a"], false),
        // Whoever has made it, it is not ours to take.
        (&["foreign"], false),
    ] {
        let network = node();
        *network.chains.lock().unwrap() = present.iter().map(|name| (*name).to_owned()).collect();
        leave(&network, &Tally::default()).await;
        let applied = network.applied.lock().unwrap();
        let deletes = |script: &Value| *script == ruleset::remove_table();
        assert_eq!(applied.iter().any(deletes), removed, "{present:?}: {applied:?}");
    }
}
