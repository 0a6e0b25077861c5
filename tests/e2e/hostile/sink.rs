//! A stranger on the network: who gets through to it has got out.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, UdpSocket},
    sync,
    task::JoinHandle,
};

use crate::support::{env, eventually};

/// Where clouds have their metadata, with the credentials of the node.
const METADATA: &str = "169.254.169.254";

/// A socket whose task was ended is closed at once, on a busy machine within a second.
const FREE_LIMIT: Duration = Duration::from_secs(10);

/// Listens for TCP and UDP on one port of the machine's own address, and answers.
pub(super) struct Sink {
    address: SocketAddr,
    came: Arc<Mutex<Vec<IpAddr>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Sink {
    pub(super) async fn start() -> Self {
        let registry = env("AO_REGISTRY");
        let host = registry.split(':').next().expect("a host");
        let mut sink = Self::listen(&format!("{host}:0")).await;
        let socket = UdpSocket::bind(sink.address).await.expect("the same port for UDP");
        let came = Arc::clone(&sink.came);
        sink.tasks.push(tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                note(&came, peer.ip());
                let _ = socket.send_to(&buffer[..length], peer).await;
            }
        }));
        sink
    }

    async fn listen(address: &str) -> Self {
        // Whoever listened there before has let go once its runtime has looked.
        let listener = eventually("a port of the machine", FREE_LIMIT, || async {
            TcpListener::bind(address).await.map_err(|error| error.to_string())
        })
        .await;
        let address = listener.local_addr().expect("an address");
        let came = Arc::<Mutex<Vec<IpAddr>>>::default();
        let known = Arc::clone(&came);
        let task = tokio::spawn(async move {
            while let Ok((mut stream, peer)) = listener.accept().await {
                note(&known, peer.ip());
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nout").await;
            }
        });
        Self { address, came, tasks: vec![task] }
    }

    /// `host:port`.
    pub(super) fn address(&self) -> String {
        self.address.to_string()
    }

    /// How often somebody came from one of these addresses.
    pub(super) fn visits(&self, from: impl Fn(&IpAddr) -> bool) -> usize {
        let came = self.came.lock().unwrap_or_else(PoisonError::into_inner);
        came.iter().filter(|address| from(address)).count()
    }
}

fn note(came: &Mutex<Vec<IpAddr>>, peer: IpAddr) {
    came.lock().unwrap_or_else(PoisonError::into_inner).push(peer.to_canonical());
}

impl Drop for Sink {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// There is one address of a metadata service, so whoever needs it has it alone.
static TURN: sync::Mutex<()> = sync::Mutex::const_new(());

/// A metadata service as a cloud has it, reachable from the nodes; taken away when this is dropped.
pub(super) struct Metadata {
    _sink: Sink,
    nodes: Vec<String>,
    /// Dropped last.
    _turn: sync::MutexGuard<'static, ()>,
}

impl Metadata {
    pub(super) async fn start() -> Self {
        let turn = TURN.lock().await;
        let nodes: Vec<String> =
            env("AO_NODES").split(' ').map(|node| node.replace("node-", "ao-")).collect();
        let registry = env("AO_REGISTRY");
        let host = registry.split(':').next().expect("a host").to_owned();
        assert!(ip(&["address", "replace", &format!("{METADATA}/32"), "dev", "ao-br0"]));
        for node in &nodes {
            assert!(ip(&["-n", node, "route", "replace", METADATA, "via", &host]), "{node}");
        }
        Self { _sink: Sink::listen(&format!("{METADATA}:80")).await, nodes, _turn: turn }
    }

    /// `host:port`.
    pub(super) fn address() -> String {
        format!("{METADATA}:80")
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        for node in &self.nodes {
            ip(&["-n", node, "route", "delete", METADATA]);
        }
        ip(&["address", "delete", &format!("{METADATA}/32"), "dev", "ao-br0"]);
    }
}

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).status().is_ok_and(|status| status.success())
}
