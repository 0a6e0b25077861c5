//! A bad link between a supervisor and its controller: a proxy in the supervisor's own network
//! namespace that delays everything, stalls now and then as TCP does after a loss, and breaks
//! connections. The kernel sends the supervisor's connections through it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::oneshot,
    task::JoinSet,
    time::Instant,
};

use super::{cut::Place, victim::Node};

/// What each packet takes longer, in each direction.
const DELAY: Duration = Duration::from_millis(200);
/// What a lost packet costs: TCP sends it again after about this time.
const STALL: Duration = Duration::from_secs(1);
/// One piece in so many is lost (5 %).
const LOSS_ONE_IN: u32 = 20;
/// A connection breaks after this long, and up to twice of it.
const LIFE: Duration = Duration::from_secs(6);
/// Table of the detour; `deploy/local/up` removes leftovers by the beginning of its name.
const TABLE: &str = "ao-fault-detour";
/// Bytes of one piece.
const PIECE: usize = 16 * 1024;

/// The bad link, until this goes.
pub(crate) struct SlowLink {
    place: Place,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    connections: Arc<AtomicUsize>,
}

impl SlowLink {
    /// Makes the link to the controller's Service bad for new connections of the supervisor of `node`.
    pub(crate) fn new(node: Node, service: SocketAddr, seed: u64) -> Self {
        let place = Place::supervisor(node);
        let namespace = place.file().try_clone().expect("one more descriptor");
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let (stop, stopped) = oneshot::channel();
        let (port, listens) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("root enters any network namespace");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
                let address = listener.local_addr().expect("bound");
                port.send(address.port()).expect("somebody waits for it");
                tokio::select! {
                    () = serve(listener, service, seed, &counter) => {}
                    _ = stopped => {}
                }
            });
        });
        let port = listens.recv().expect("the proxy listens");
        // The proxy itself runs as root, and its connections go straight.
        place.load(&format!(
            "table ip {TABLE} {{\n  chain output {{\n    type nat hook output priority -100;\n    \
             meta skuid != 0 ip daddr {} tcp dport {} redirect to :{port}\n  }}\n}}\n",
            service.ip(),
            service.port(),
        ));
        Self { place, stop: Some(stop), thread: Some(thread), connections }
    }

    /// How many connections went through it so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        self.place.unload("ip", TABLE);
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, service: SocketAddr, seed: u64, counter: &AtomicUsize) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut links = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        counter.fetch_add(1, Ordering::Relaxed);
        links.spawn(link(client, service, random.fork()));
        while links.try_join_next().is_some() {}
    }
}

/// One connection, until it breaks.
async fn link(client: TcpStream, service: SocketAddr, mut random: fastrand::Rng) {
    let Ok(server) = TcpStream::connect(service).await else { return };
    let life = LIFE.mul_f64(1.0 + random.f64());
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let up = pass(from_client, to_server, random.fork());
    let down = pass(from_server, to_client, random.fork());
    let _ = tokio::time::timeout(life, async { tokio::join!(up, down) }).await;
}

/// Passes pieces on, each with its delay; a stalled piece holds up those behind it, as in TCP.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut random: fastrand::Rng) {
    let (queue, mut due) = tokio::sync::mpsc::channel::<(Instant, Vec<u8>)>(64);
    let reading = async move {
        let mut piece = vec![0; PIECE];
        while let Ok(count @ 1..) = from.read(&mut piece).await {
            let stall = if random.u32(0..LOSS_ONE_IN) == 0 { STALL } else { Duration::ZERO };
            let moment = Instant::now() + DELAY + stall;
            if queue.send((moment, piece[..count].to_vec())).await.is_err() {
                break;
            }
        }
    };
    let writing = async move {
        while let Some((moment, piece)) = due.recv().await {
            tokio::time::sleep_until(moment).await;
            if to.write_all(&piece).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(reading, writing);
}

/// Where pods find the controller.
pub(crate) fn service_address(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse::<IpAddr>().expect("an address"), 8443)
}
