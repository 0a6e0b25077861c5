//! Addresses: what a name server says is believed once, and only where it leads outside.

use std::{collections::VecDeque, io, net::SocketAddr, sync::Mutex};

use async_trait::async_trait;
use tokio::net::TcpListener;

use super::{
    address::{AddressPolicy, Resolver},
    *,
};

/// A name server that gives each of its answers once.
#[derive(Debug)]
struct Scripted(Mutex<VecDeque<Vec<SocketAddr>>>);

#[async_trait]
impl Resolver for Scripted {
    async fn resolve(&self, _: &HostPort) -> io::Result<Vec<SocketAddr>> {
        let next = self.0.lock().unwrap().pop_front();
        next.ok_or_else(|| io::Error::other("asked once too often"))
    }
}

fn egress(answers: &[&[&str]], addresses: AddressPolicy) -> Egress {
    let parse = |answer: &&[&str]| answer.iter().map(|one| one.parse().unwrap()).collect();
    let resolver = Scripted(Mutex::new(answers.iter().map(parse).collect()));
    Egress {
        names: Arc::new(NamePolicy::new(&[], vec![])),
        addresses: Arc::new(addresses),
        resolver: Arc::new(resolver),
        proxies: Arc::default(),
        tunnels: TaskTracker::new(),
        metrics: Arc::new(Metrics::new([])),
    }
}

fn host() -> HostPort {
    "packages.example:443".parse().unwrap()
}

fn networks(texts: &[&str]) -> Vec<crate::gateway::network::Network> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[tokio::test]
async fn every_address_inside_is_refused_in_every_spelling() {
    for inside in [
        "10.0.0.1:443",
        "172.31.255.255:443",
        "192.168.0.1:443",
        "127.0.0.1:443",
        "169.254.169.254:443",
        "100.64.0.1:443",
        "0.0.0.0:443",
        "0.1.2.3:443",
        "192.88.99.1:443",
        "255.255.255.255:443",
        "[::1]:443",
        "[::]:443",
        "[::ffff:169.254.169.254]:443",
        "[::10.0.0.1]:443",
        "[64:ff9b::a9fe:a9fe]:443",
        "[64:ff9b:1::a00:1]:443",
        "[2002:a00:1::1]:443",
        "[2001::1]:443",
        "[3fff::1]:443",
        "[fe80::1]:443",
        "[fd00:ec2::254]:443",
        "[ff02::1]:443",
    ] {
        let egress = egress(&[&[inside]], AddressPolicy::default());
        let refused = egress.dial(&host()).await.unwrap_err();
        assert!(matches!(refused, ConnectError::Private(_)), "{inside}: {refused}");
    }
}

#[tokio::test]
async fn an_answer_with_one_forbidden_address_is_refused_whole() {
    let egress = egress(&[&["1.1.1.1:443", "10.0.0.1:443"]], AddressPolicy::default());
    assert!(matches!(egress.dial(&host()).await.unwrap_err(), ConnectError::Private(_)));
}

#[tokio::test]
async fn public_addresses_of_the_cluster_and_of_the_chart_are_inside_too() {
    let own = AddressPolicy { own: networks(&["1.1.1.1"]), ..AddressPolicy::default() };
    let denied = AddressPolicy { denied: networks(&["1.1.0.0/16"]), ..AddressPolicy::default() };
    let in_a_rig = AddressPolicy { allow_private: true, ..denied.clone() };
    for policy in [own, denied, in_a_rig] {
        let egress = egress(&[&["1.1.1.1:443"]], policy.clone());
        let refused = egress.dial(&host()).await.unwrap_err();
        assert!(matches!(refused, ConnectError::Private(_)), "{policy:?}");
    }
}

#[tokio::test]
async fn the_address_that_was_checked_is_the_one_that_is_connected_to() {
    let checked = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rebound = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let [first, second] = [&checked, &rebound].map(|one| one.local_addr().unwrap().to_string());
    let rig = AddressPolicy { allow_private: true, ..AddressPolicy::default() };
    let egress = egress(&[&[&first], &[&second]], rig);
    let stream = egress.dial(&host()).await.unwrap();
    assert_eq!(stream.peer_addr().unwrap().to_string(), first);
    let asked_again = egress.resolver.resolve(&host()).await.unwrap();
    assert_eq!(asked_again[0].to_string(), second, "the second answer was never asked for");
}
