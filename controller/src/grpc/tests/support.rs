use std::{
    net::SocketAddr,
    sync::{Arc, Once, atomic::AtomicBool},
    time::Duration,
};

use agent_operator::{domain::Epoch, proto::v1};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status, Streaming,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use v1::{
    step_service_client::StepServiceClient, supervisor_service_client::SupervisorServiceClient,
};

use crate::{
    catalog::Catalog,
    clock,
    fleet::{NodeEvent, sessions::Sessions},
    grpc::{
        Edge, Peers, ServeError,
        auth::{
            Authority,
            tests::{FakeReviewer, SUPERVISOR},
        },
        serve,
    },
    lease::{Leader, Leadership, Term},
    metrics::Metrics,
    streams::{Limits, StreamStore},
};

/// Longest wait for anything: far above what it takes, so that only a real fault ends a test.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits, but not for ever.
pub(super) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("took too long")
}

/// A served port and everything behind it.
pub(super) struct Port {
    pub(super) address: SocketAddr,
    certificate: String,
    stop: CancellationToken,
    served: JoinHandle<Result<(), ServeError>>,
    pub(super) terms: watch::Sender<Option<Term>>,
    pub(super) leader: watch::Sender<Option<Leader>>,
    pub(super) events: mpsc::Receiver<NodeEvent>,
    pub(super) sessions: Sessions,
    pub(super) catalog: Catalog,
    pub(super) store: Arc<StreamStore>,
    pub(super) metrics: Metrics,
    /// Whether the reader's right is withdrawn.
    pub(super) withdrawn: Arc<AtomicBool>,
    /// The store's.
    pub(super) folder: tempfile::TempDir,
}

/// A term that holds for the whole test.
pub(super) fn term(epoch: u64) -> Term {
    Term { epoch: Epoch(epoch), valid_until: clock::instant() + Duration::from_mins(10) }
}

/// A certificate (PEM) that vouches for itself, and the configuration of a listener that shows it.
type Identity = (String, Arc<rustls::ServerConfig>);

pub(super) fn install_provider() {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // Another test module may have been first with the same provider.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    });
}

fn identity() -> Identity {
    install_provider();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    (made.cert.pem(), Arc::new(config))
}

impl Port {
    /// Serves on a port of the kernel's choice; leads under epoch 7; knows no task.
    pub(super) async fn start() -> Self {
        Self::with(Limits::default()).await
    }

    /// The same with a store of another size.
    pub(super) async fn with(limits: Limits) -> Self {
        Self::build(identity(), limits, None, tempfile::tempdir().unwrap()).await
    }

    /// The same with the store that an earlier one left.
    pub(super) async fn on(folder: tempfile::TempDir) -> Self {
        Self::build(identity(), Limits::default(), None, folder).await
    }

    /// A replica that knows nothing by itself and that `leader` leads.
    pub(super) async fn standby_of(leader: &Port) -> Self {
        let trusted = Some(leader.certificate.clone());
        let folder = tempfile::tempdir().unwrap();
        let port = Self::build(identity(), Limits::default(), trusted, folder).await;
        port.terms.send_replace(None);
        port.leader.send_replace(Some(leader.as_leader()));
        port
    }

    /// What others read of this replica in the Lease while it leads.
    pub(super) fn as_leader(&self) -> Leader {
        Leader { address: Some(self.address.to_string()) }
    }

    /// A port that shows certificates of a test's own; `authority` (PEM) vouches for them.
    pub(super) async fn showing(authority: String, config: Arc<rustls::ServerConfig>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::build((authority, config), Limits::default(), None, folder).await
    }

    async fn build(
        (certificate, config): Identity,
        limits: Limits,
        trusted: Option<String>,
        folder: tempfile::TempDir,
    ) -> Self {
        let store = Arc::new(StreamStore::open(folder.path(), limits).unwrap());
        let (sender, events) = mpsc::channel(64);
        let (terms, terms_seen) = watch::channel(Some(term(7)));
        let (leader, leader_seen) = watch::channel(None);
        let metrics = Metrics::new();
        let catalog = Catalog::new(metrics.clone());
        catalog.set_tasks(vec![]);
        catalog.set_runs(vec![]);
        let sessions = Sessions::new(sender);
        let reviewer = FakeReviewer::default();
        let withdrawn = reviewer.withdrawn.clone();
        let edge = Edge {
            authority: Authority::new(reviewer, SUPERVISOR.into()),
            sessions: sessions.clone(),
            leadership: Leadership::beside(terms_seen, leader_seen),
            catalog: catalog.clone(),
            store: store.clone(),
            metrics: metrics.clone(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let ca = watch::channel(trusted.unwrap_or_else(|| certificate.clone())).1;
        let peers = Peers::new("localhost".to_owned(), ca);
        let served = tokio::spawn(serve(listener, config, peers, edge, stop.clone()));
        Self {
            address,
            certificate,
            stop,
            served,
            terms,
            leader,
            events,
            sessions,
            catalog,
            store,
            metrics,
            withdrawn,
            folder,
        }
    }

    /// A connection of its own.
    pub(super) async fn connect(&self) -> Channel {
        self.connect_by(self.address).await
    }

    /// A connection through a relay.
    pub(super) async fn connect_by(&self, address: SocketAddr) -> Channel {
        self.try_connect_by(address).await.unwrap()
    }

    /// A connection of its own, or why there is none.
    pub(super) async fn try_connect(&self) -> Result<Channel, tonic::transport::Error> {
        self.try_connect_by(self.address).await
    }

    async fn try_connect_by(
        &self,
        address: SocketAddr,
    ) -> Result<Channel, tonic::transport::Error> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.certificate))
            .domain_name("localhost");
        let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
        soon(endpoint.tls_config(tls).unwrap().connect()).await
    }

    pub(super) async fn steps(&self) -> StepServiceClient<Channel> {
        StepServiceClient::new(self.connect().await)
    }

    pub(super) async fn session(&self, token: &str) -> Result<Talk, Status> {
        self.session_by(self.connect().await, token).await
    }

    pub(super) async fn session_by(&self, channel: Channel, token: &str) -> Result<Talk, Status> {
        let mut client = SupervisorServiceClient::new(channel);
        let (say, queue) = mpsc::channel(16);
        let request = with_token(ReceiverStream::new(queue), token);
        let hear = soon(client.session(request)).await?.into_inner();
        Ok(Talk { say, hear })
    }

    pub(super) async fn uploads(&self, token: &str) -> Result<Upload, Status> {
        let mut client = SupervisorServiceClient::new(self.connect().await);
        let (send, queue) = mpsc::channel(16);
        let request = with_token(ReceiverStream::new(queue), token);
        let acks = soon(client.stream(request)).await?.into_inner();
        Ok(Upload { send, acks })
    }

    pub(super) async fn event(&mut self) -> NodeEvent {
        soon(self.events.recv()).await.unwrap()
    }

    /// Ends the port and waits until it has closed.
    pub(super) async fn stop(self) {
        self.stop_and_keep_the_store().await;
    }

    /// The same; the store stays on disk.
    pub(super) async fn stop_and_keep_the_store(self) -> tempfile::TempDir {
        self.stop.cancel();
        soon(self.served).await.unwrap().unwrap();
        self.folder
    }

    /// Tells the port to end without waiting.
    pub(super) fn cancel(&self) {
        self.stop.cancel();
    }
}

/// An open session.
pub(super) struct Talk {
    pub(super) say: mpsc::Sender<v1::SupervisorMessage>,
    pub(super) hear: Streaming<v1::ControllerMessage>,
}

impl Talk {
    pub(super) async fn say(&self, message: v1::supervisor_message::Message) {
        let message = v1::SupervisorMessage { message: Some(message) };
        soon(self.say.send(message)).await.unwrap();
    }

    pub(super) async fn hear(&mut self) -> v1::controller_message::Message {
        soon(self.hear.message()).await.unwrap().expect("the session has ended").message.unwrap()
    }

    /// The next message that is not a permit.
    pub(super) async fn hear_else(&mut self) -> v1::controller_message::Message {
        loop {
            match self.hear().await {
                v1::controller_message::Message::WritePermit(_) => {}
                other => return other,
            }
        }
    }
}

/// An open upload.
pub(super) struct Upload {
    pub(super) send: mpsc::Sender<v1::Chunk>,
    pub(super) acks: Streaming<v1::Ack>,
}

pub(super) fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

pub(super) fn hello(node: &str) -> v1::Hello {
    v1::Hello {
        node_name: node.into(),
        boot_id: "boot".into(),
        instance_id: "instance".into(),
        protocol_version: Some(v1::ProtocolVersion { major: 1, minor: 1 }),
        build_version: "test".into(),
        capacity: Some(v1::Capacity { slots: 2 }),
        known_attempts: vec![],
        highest_epoch: 3,
        runner_delivery: "imageVolume".into(),
    }
}
