//! The enforcer's rules on a real kernel: a node and two pods as network namespaces, joined by a bridge
//! as the usual plugins do it. What the rules keep off is first seen to get through without them.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::Duration,
};

use agent_operator_supervisor::enforcer::{
    contract::{Answer, CloseOrder, VERSION},
    server::{obey, sweep},
    tally::Tally,
    tools::{HostNetwork, Network as _},
};
use nix::sched::{CloneFlags, setns};

const NODE: &str = "10.99.0.1";
const NODE6: &str = "fd99::1";
const POD: &str = "10.99.0.7";
const POD6: &str = "fd99::7";
const OTHER: &str = "10.99.0.8";
/// The gateway's Service; the node translates it to the port 18080 of the other pod.
const SERVICE: &str = "10.98.0.9:8080";
/// Enough for an answer of this very machine.
const PATIENCE: Duration = Duration::from_millis(400);

/// What the pod reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Gateway,
    GatewaysPodOnAnotherPort,
    NodeByTcp,
    NodeByTcp6,
    NodeByLinkLocal,
    OtherPodByTcp,
    OtherPodByUdp,
    ByPing,
    ByPing6,
    /// From the node to a port of the pod.
    Inwards,
}

/// Runs `work` in the namespace `name`.
fn within<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(format!("/run/netns/{name}")).unwrap();
    let moved = move || {
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    };
    thread::scope(|scope| scope.spawn(moved).join().unwrap())
}

fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A node with two pods; removed with the value.
struct Rig {
    node: String,
    pod: String,
    other: String,
}

impl Rig {
    fn new() -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        let name = |part: &str| format!("ao-net-{part}-{id}");
        let rig = Self { node: name("node"), pod: name("pod"), other: name("other") };
        let Self { node, pod, other } = &rig;
        // Without the check for duplicates: an address that is being checked does not answer.
        sh(&format!(
            "for n in {node} {pod} {other}; do
               ip netns add $n; ip -n $n link set lo up
               for of in all default; do
                 nsenter --net=/run/netns/$n sh -c \"echo 0 >/proc/sys/net/ipv6/conf/$of/accept_dad\"
               done
             done"
        ));
        sh(&format!(
            "ip -n {node} link add cni0 type bridge; ip -n {node} link set cni0 up
             ip -n {node} addr add {NODE}/24 dev cni0; ip -n {node} addr add {NODE6}/64 dev cni0 nodad"
        ));
        for (of, veth, ip, ip6) in [(pod, "vpod", POD, POD6), (other, "vother", OTHER, "fd99::8")] {
            sh(&format!(
                "ip -n {node} link add {veth} type veth peer name eth0 netns {of}
                 ip -n {node} link set {veth} master cni0 up; ip -n {of} link set eth0 up
                 ip -n {of} addr add {ip}/24 dev eth0; ip -n {of} addr add {ip6}/64 dev eth0 nodad
                 ip -n {of} route add default via {NODE}"
            ));
        }
        // As kube-proxy does it: the translation comes after the ingress hook. The way back leads
        // over the node in any case, also where bridged packets pass no other hook.
        sh(&format!(
            "nsenter --net=/run/netns/{node} sh -ec '
             echo 1 >/proc/sys/net/ipv4/ip_forward
             nft add table ip nat
             nft add chain ip nat pre {{ type nat hook prerouting priority -100 \\; }}
             nft add chain ip nat post {{ type nat hook postrouting priority 100 \\; }}
             nft add rule ip nat pre ip daddr 10.98.0.9 tcp dport 8080 dnat to {OTHER}:18080
             nft add rule ip nat post ip daddr {OTHER} tcp dport 18080 masquerade'"
        ));
        rig
    }

    fn iflink(&self) -> u32 {
        let output = Command::new("ip")
            .args(["-n", &self.node, "-o", "link", "show", "dev", "vpod"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split(':').next().unwrap().parse().unwrap()
    }

    fn order(&self) -> CloseOrder {
        CloseOrder {
            version: VERSION,
            pod_uid: "0b9f3c8e-1f5e-4b8a-9f3e-5d2a7c1e0001".to_owned(),
            pod_ip: POD.parse().unwrap(),
            iflink: Some(self.iflink()),
            gateways: vec![SERVICE.parse().unwrap(), format!("{OTHER}:18080").parse().unwrap()],
        }
    }

    fn obey(&self, order: &CloseOrder) -> Answer {
        self.on_node(|| async { obey(&HostNetwork, order).await })
    }

    fn on_node<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> T {
        within(&self.node, move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(work())
        })
    }

    /// Everything that listens, for as long as `work` takes.
    fn with_listeners<T>(&self, work: impl FnOnce() -> T) -> T {
        let tcp = |name: &str, at: &str| {
            let at = at.to_owned();
            within(name, move || TcpListener::bind(at).unwrap())
        };
        let listeners = [
            tcp(&self.other, "0.0.0.0:18080"),
            tcp(&self.other, "0.0.0.0:8081"),
            tcp(&self.node, "0.0.0.0:10250"),
            tcp(&self.node, "[::]:10251"),
            tcp(&self.pod, "0.0.0.0:9000"),
        ];
        for listener in listeners {
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let _ = stream.and_then(|mut stream| stream.write_all(b"x"));
                }
            });
        }
        let udp = within(&self.other, || UdpSocket::bind("0.0.0.0:5353").unwrap());
        thread::spawn(move || {
            let mut buffer = [0; 16];
            while let Ok((size, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(&buffer[..size], from);
            }
        });
        work()
    }

    /// What gets through.
    fn reached(&self) -> Vec<Way> {
        let from_pod = |at: String| within(&self.pod, move || answers(&at));
        let ping = |arguments: String| {
            within(&self.pod, move || {
                let line = format!("ping -q -c 1 -W 1 {arguments} >/dev/null 2>&1");
                Command::new("sh").args(["-c", &line]).status().unwrap().success()
            })
        };
        let link_local = within(&self.node, || {
            let text = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
            let line = text.lines().find(|line| line.starts_with("fe80") && line.ends_with("cni0"));
            let bits = u128::from_str_radix(&line.unwrap()[..32], 16).unwrap();
            std::net::Ipv6Addr::from(bits)
        });
        let scope = within(&self.pod, || {
            let index = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
            let line = index.lines().find(|line| line.ends_with("eth0")).unwrap().to_owned();
            u32::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
        });
        let tries = [
            (Way::Gateway, from_pod(SERVICE.to_owned())),
            (Way::GatewaysPodOnAnotherPort, from_pod(format!("{OTHER}:8081"))),
            (Way::NodeByTcp, from_pod(format!("{NODE}:10250"))),
            (Way::NodeByTcp6, from_pod(format!("[{NODE6}]:10251"))),
            (Way::NodeByLinkLocal, from_pod(format!("[{link_local}%{scope}]:10251"))),
            (Way::OtherPodByTcp, from_pod(format!("{OTHER}:8081"))),
            (Way::OtherPodByUdp, within(&self.pod, answers_by_udp)),
            (Way::ByPing, ping(NODE.to_owned())),
            (Way::ByPing6, ping(format!("-6 {NODE6}"))),
            (Way::Inwards, within(&self.node, || answers(&format!("{POD}:9000")))),
        ];
        tries.into_iter().filter(|(_, reached)| *reached).map(|(way, _)| way).collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for name in [&self.pod, &self.other, &self.node] {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn answers(at: &str) -> bool {
    let address: SocketAddr = at.parse().unwrap();
    let Ok(mut stream) = TcpStream::connect_timeout(&address, PATIENCE) else { return false };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_exact(&mut [0]).is_ok()
}

fn answers_by_udp() -> bool {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent = socket.send_to(b"x", format!("{OTHER}:5353"));
    sent.is_ok() && socket.recv_from(&mut [0; 4]).is_ok()
}

/// Whether this machine lets us make network namespaces; where it must, their absence is a failure.
fn possible() -> bool {
    let made = Command::new("unshare").args(["--net", "true"]).status().is_ok_and(|s| s.success());
    let tools = ["nft", "ip", "bridge", "nsenter", "ping"].iter().all(|tool| {
        Command::new("sh")
            .args(["-c", &format!("command -v {tool}")])
            .output()
            .unwrap()
            .status
            .success()
    });
    let required = std::env::var_os("AO_REQUIRE_APISERVER").is_some();
    assert!(!required || (made && tools), "network namespaces need root, nft, iproute2, ping");
    made && tools
}

const ALL: [Way; 10] = [
    Way::Gateway,
    Way::GatewaysPodOnAnotherPort,
    Way::NodeByTcp,
    Way::NodeByTcp6,
    Way::NodeByLinkLocal,
    Way::OtherPodByTcp,
    Way::OtherPodByUdp,
    Way::ByPing,
    Way::ByPing6,
    Way::Inwards,
];

#[test]
#[ignore = "needs root and nft: tests/run api"]
fn a_closed_pod_reaches_its_gateway_and_nothing_else_and_nobody_reaches_it() {
    if !possible() {
        return;
    }
    let rig = Rig::new();
    rig.with_listeners(|| {
        assert_eq!(rig.reached(), ALL, "without rules everything gets through");
        let closed = rig.obey(&rig.order());
        let index = Some(rig.iflink());
        assert_eq!(closed, Answer::Closed { device: "vpod".to_owned(), index, anew: true });
        assert_eq!(rig.reached(), [Way::Gateway]);
    });
}

#[test]
#[ignore = "needs root and nft: tests/run api"]
fn another_address_of_its_own_gets_a_pod_nowhere() {
    if !possible() {
        return;
    }
    let rig = Rig::new();
    rig.with_listeners(|| {
        assert!(matches!(rig.obey(&rig.order()), Answer::Closed { .. }));
        // What a sandbox may not do, for it has no capability; the rules hold all the same.
        sh(&format!(
            "ip -n {0} addr del {POD}/24 dev eth0; ip -n {0} addr add 10.99.0.77/24 dev eth0
             ip -n {0} route add default via {NODE}",
            rig.pod
        ));
        assert_eq!(rig.reached(), []);
    });
}

#[test]
#[ignore = "needs root and nft: tests/run api"]
fn closing_again_is_never_a_moment_of_openness() {
    if !possible() {
        return;
    }
    let rig = Rig::new();
    rig.with_listeners(|| {
        assert!(matches!(rig.obey(&rig.order()), Answer::Closed { .. }));
        let (over, tries, through) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    within(&rig.pod, || {
                        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                        socket.set_nonblocking(true).unwrap();
                        while !over.load(Ordering::Relaxed) {
                            let _ = socket.send_to(b"x", format!("{OTHER}:5353"));
                            tries.fetch_add(1, Ordering::Relaxed);
                            if socket.recv_from(&mut [0; 4]).is_ok() {
                                through.fetch_add(1, Ordering::Relaxed);
                            }
                            thread::yield_now();
                        }
                    });
                });
            }
            for _ in 0..20 {
                assert!(matches!(rig.obey(&rig.order()), Answer::Closed { .. }));
            }
            over.store(true, Ordering::Relaxed);
        });
        assert!(tries.load(Ordering::Relaxed) > 1000, "{tries:?}");
        assert_eq!(through.load(Ordering::Relaxed), 0, "of {tries:?} packets");
        assert_eq!(rig.reached(), [Way::Gateway]);
    });
}

#[test]
#[ignore = "needs root and nft: tests/run api"]
fn rules_that_somebody_took_away_are_missed_and_made_again_and_others_count_on() {
    if !possible() {
        return;
    }
    let rig = Rig::new();
    let anew = || matches!(rig.obey(&rig.order()), Answer::Closed { anew: true, .. });
    let dropped = || {
        let dropped = rig.on_node(|| async { HostNetwork.dropped().await.unwrap() });
        dropped.iter().map(|chain| chain.packets).sum::<u64>()
    };
    rig.with_listeners(|| {
        assert!(anew());
        assert_eq!(rig.reached(), [Way::Gateway]);
        let before = dropped();
        assert!(!anew(), "they were there");
        assert!(before > 0 && dropped() >= before, "{before}, then {}", dropped());
        // As `nft flush ruleset` does it; of that the node's translation to the gateway would go as well.
        sh(&format!(
            "nsenter --net=/run/netns/{} nft delete table netdev agent_operator",
            rig.node
        ));
        assert_eq!(rig.reached(), ALL);
        assert!(anew());
        assert_eq!(rig.reached(), [Way::Gateway]);
    });
}

#[test]
#[ignore = "needs root and nft: tests/run api"]
fn rules_stay_with_the_device_and_go_after_it() {
    if !possible() {
        return;
    }
    let rig = Rig::new();
    let chains = || rig.on_node(|| async { HostNetwork.chains().await.unwrap().len() });
    let swept = || rig.on_node(|| async { sweep(&HostNetwork, &Tally::default()).await.unwrap() });
    // The bridge learns the pod's address from its first packet.
    within(&rig.pod, || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", (NODE, 9)).unwrap());
    assert!(matches!(rig.obey(&rig.order()), Answer::Closed { .. }));
    assert_eq!((swept(), chains()), (0, 2));
    sh(&format!("ip -n {} link del vpod", rig.node));
    // Kernels before 6.16 remove the chains with the device, later ones keep them.
    swept();
    assert_eq!(chains(), 0);
}

#[test]
#[ignore = "needs root and nft: tests/run api"]
fn another_pods_device_cannot_be_named() {
    if !possible() {
        return;
    }
    let rig = Rig::new();
    let ip: IpAddr = OTHER.parse().unwrap();
    for order in [
        CloseOrder { pod_ip: ip, ..rig.order() },
        CloseOrder { pod_ip: NODE.parse().unwrap(), iflink: None, ..rig.order() },
        CloseOrder { pod_ip: "10.55.0.1".parse().unwrap(), ..rig.order() },
    ] {
        let answer = rig.obey(&order);
        assert!(matches!(answer, Answer::NotClosed { .. }), "{order:?}: {answer:?}");
    }
    assert_eq!(rig.on_node(|| async { HostNetwork.chains().await.unwrap() }), Vec::<String>::new());
}
