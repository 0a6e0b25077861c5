//! Against a listener that speaks TLS and nothing else, and an API server with one `ConfigMap`.

use std::{
    net::SocketAddr,
    sync::{Arc, Once},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use serde_json::json;
use tokio::{io::AsyncReadExt as _, net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;

use super::*;

/// A year that is over, and one that is far.
const OVER: i32 = 2021;
const FAR: i32 = 2150;

/// What vouches for the controller.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // Another test may have been first with the same provider.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        });
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A listener's configuration with a certificate that is good until this year begins.
    fn config(&self, year: i32) -> Arc<ServerConfig> {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

/// A listener, and what it shows to the next that dials.
struct Server {
    address: SocketAddr,
    shown: Arc<Mutex<Arc<ServerConfig>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn showing(config: Arc<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shown = Arc::new(Mutex::new(config));
        let present = Arc::clone(&shown);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let acceptor = TlsAcceptor::from(Arc::clone(&present.lock().unwrap()));
                connections.spawn(async move {
                    let Ok(mut stream) = acceptor.accept(socket).await else { return };
                    let mut ignored = Vec::new();
                    let _ = stream.read_to_end(&mut ignored).await;
                });
            }
        });
        Self { address, shown, _tasks: tasks }
    }

    fn show(&self, config: Arc<ServerConfig>) {
        *self.shown.lock().unwrap() = config;
    }
}

/// The bundle in the `ConfigMap`; none: the API server is away.
type Published = Arc<Mutex<Option<String>>>;

fn dial_with(published: &Published) -> TlsDial {
    let published = Arc::clone(published);
    let service = tower::service_fn(move |_: Request<kube::client::Body>| {
        let (code, body) = match published.lock().unwrap().clone() {
            Some(pem) => (200, json!({"metadata": {"name": "ca"}, "data": {CA_KEY: pem}})),
            None => (503, json!({"kind": "Status", "code": 503, "message": "away"})),
        };
        let body = Full::new(Bytes::from(body.to_string()));
        let answer = Response::builder().status(code).body(body).unwrap();
        std::future::ready(Ok::<_, std::io::Error>(answer))
    });
    let client = Client::new(service, "system");
    TlsDial::new(client, "system", "ca".to_owned(), "localhost:8443").unwrap()
}

#[tokio::test]
async fn f34_an_expired_certificate_is_refused_by_name_and_a_renewed_one_is_taken() {
    let authority = Authority::new();
    let server = Server::showing(authority.config(OVER)).await;
    let dial = dial_with(&Published::new(Mutex::new(Some(authority.pem()))));
    let address = server.address.to_string();
    let refused = error_chain(&dial.dial(&address).await.expect_err("it has expired"));
    assert!(refused.contains("expired"), "the reason has no name: {refused}");
    server.show(authority.config(FAR));
    dial.dial(&address).await.expect("the next one is good");
}

#[tokio::test]
async fn f34_the_bundle_of_a_new_authority_is_read_after_the_first_failure() {
    let (old, new) = (Authority::new(), Authority::new());
    let server = Server::showing(old.config(FAR)).await;
    let published = Published::new(Mutex::new(Some(old.pem())));
    let dial = dial_with(&published);
    let address = server.address.to_string();
    dial.dial(&address).await.unwrap();
    *published.lock().unwrap() = Some(new.pem());
    server.show(new.config(FAR));
    dial.dial(&address).await.expect_err("the known bundle does not vouch for it");
    dial.dial(&address).await.expect("the new bundle does");
}

#[tokio::test]
async fn f9_a_controller_that_was_away_is_found_again_while_the_api_server_is_away() {
    let authority = Authority::new();
    let server = Server::showing(authority.config(FAR)).await;
    let published = Published::new(Mutex::new(Some(authority.pem())));
    let dial = dial_with(&published);
    let address = server.address.to_string();
    dial.dial(&address).await.unwrap();
    *published.lock().unwrap() = None;
    server.show(Authority::new().config(FAR));
    for _ in 0..2 {
        let refused = dial.dial(&address).await.expect_err("nobody vouches for it");
        assert!(matches!(refused, DialError::Connect(_)), "{refused:?}");
    }
    server.show(authority.config(FAR));
    dial.dial(&address).await.expect("the known bundle is still good");
}

#[tokio::test]
async fn without_any_bundle_nothing_is_dialled_and_the_error_says_why() {
    let dial = dial_with(&Published::default());
    let refused = dial.dial("127.0.0.1:1").await.expect_err("there is no bundle");
    assert!(matches!(&refused, DialError::ReadCa(words) if words.contains("away")), "{refused:?}");
}
