//! A company's network on loopback: no name is known but to the proxy, and upstreams have
//! certificates of a private authority.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::rig::{Options, POD};

/// The network's proxy, its authority, and what its names stand for.
pub(super) struct Network {
    pub(super) proxy: SocketAddr,
    shared: Arc<Shared>,
    directory: tempfile::TempDir,
    password: Option<String>,
    _tasks: JoinSet<()>,
}

struct Shared {
    /// Names that only the proxy can resolve, with their ports.
    names: Mutex<HashMap<String, Place>>,
    /// First lines of what the proxy was asked.
    asked: Mutex<Vec<String>>,
    authority: CertifiedIssuer<'static, KeyPair>,
    authorization: Option<String>,
}

#[derive(Clone)]
struct Place {
    backend: SocketAddr,
    tls: Option<TlsAcceptor>,
}

impl Network {
    /// A network whose proxy wants `password` (`user:password`), if one is given.
    pub(super) async fn start(password: Option<&str>) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.crt"), authority.pem()).unwrap();
        if let Some(password) = password {
            std::fs::write(directory.path().join("proxy"), password).unwrap();
        }
        let shared = Arc::new(Shared {
            names: Mutex::default(),
            asked: Mutex::default(),
            authority,
            authorization: password
                .map(|password| format!("proxy-authorization: basic {}", BASE64.encode(password))),
        });
        let listener = TcpListener::bind((POD, 0)).await.unwrap();
        let proxy = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        let serving = Arc::clone(&shared);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                connections.spawn(async move { shared.serve(stream).await });
            }
        });
        let password = password.map(str::to_owned);
        Self { proxy, shared, directory, password, _tasks: tasks }
    }

    /// Lets `name` stand for `backend`, behind TLS on port 443.
    pub(super) fn serve_tls(&self, name: &str, backend: SocketAddr) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.shared.authority).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let tls = Some(TlsAcceptor::from(Arc::new(config)));
        self.put(format!("{name}:443"), Place { backend, tls });
    }

    /// Lets `place` (name:port) stand for `backend` as it is.
    pub(super) fn serve_plain(&self, place: &str, backend: SocketAddr) {
        self.put(place.to_owned(), Place { backend, tls: None });
    }

    fn put(&self, name: String, place: Place) {
        self.shared.names.lock().unwrap().insert(name, place);
    }

    /// Options of a gateway in this network.
    pub(super) fn options(&self) -> Options {
        let proxy = format!("http://{}", self.proxy);
        Options {
            proxy: json!({"http": proxy, "https": proxy, "noProxy": ["direct.example"]}),
            proxy_credentials: self.password.as_ref().map(|_| self.directory.path().join("proxy")),
            ca_bundle: Some(self.bundle()),
            ..Options::default()
        }
    }

    /// The authority's certificate.
    pub(super) fn bundle(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }

    /// Method and target of everything that the proxy let through.
    pub(super) fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap().clone()
    }
}

impl Shared {
    async fn serve(&self, mut stream: TcpStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            head.push(byte);
        }
        let text = String::from_utf8(head.clone()).unwrap();
        let line = text.lines().next().unwrap().trim_end_matches(" HTTP/1.1");
        let (method, target) = line.split_once(' ').unwrap();
        let known = self.authorization.as_ref();
        let lines: Vec<_> = text.lines().collect();
        // Base64 tells upper from lower case, so only the names are compared without.
        let right = |wanted: &String| {
            let (name, value) = wanted.split_at("proxy-authorization: basic".len());
            lines.iter().any(|line| {
                line.len() > name.len() && line.is_char_boundary(name.len()) && {
                    let (found, rest) = line.split_at(name.len());
                    found.eq_ignore_ascii_case(name) && rest == value
                }
            })
        };
        if !known.is_none_or(right) {
            let answer = "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=\"p\"\r\ncontent-length: 0\r\n\r\n";
            let _ = stream.write_all(answer.as_bytes()).await;
            return;
        }
        let tunnel = method == "CONNECT";
        let authority = target.trim_start_matches("http://").split('/').next().unwrap();
        let place = self.names.lock().unwrap().get(authority).cloned();
        let Some(place) = place else {
            let _ =
                stream.write_all(b"HTTP/1.1 502 Unknown name\r\ncontent-length: 0\r\n\r\n").await;
            return;
        };
        self.asked.lock().unwrap().push(line.to_owned());
        let mut backend = TcpStream::connect(place.backend).await.unwrap();
        if tunnel {
            stream.write_all(b"HTTP/1.1 200 Yes\r\nVia: 1.1 test\r\n\r\n").await.unwrap();
        } else {
            backend.write_all(&head).await.unwrap();
        }
        let _ = match place.tls {
            // A client that does not trust the authority ends here.
            Some(acceptor) => match acceptor.accept(stream).await {
                Ok(mut stream) => copy_bidirectional(&mut stream, &mut backend).await,
                Err(error) => Err(error),
            },
            None => copy_bidirectional(&mut stream, &mut backend).await,
        };
    }
}
