//! A company's network: no name is known but to the proxy, and upstreams have certificates of a private
//! authority.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

/// Header with the password, without it.
const AUTHORIZATION: &str = "proxy-authorization: basic ";
/// Longest head of a request to the proxy.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The network's proxy, its authority, and what its names stand for.
pub struct Network {
    /// Where the proxy listens.
    pub proxy: SocketAddr,
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
    /// A network whose proxy listens on this address and wants `password` (`user:password`), if one is
    /// given.
    pub async fn start(on: IpAddr, password: Option<&str>) -> anyhow::Result<Self> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let directory = tempfile::tempdir()?;
        std::fs::write(directory.path().join("ca.crt"), authority.pem())?;
        if let Some(password) = password {
            std::fs::write(directory.path().join("proxy"), password)?;
        }
        let shared = Arc::new(Shared {
            names: Mutex::default(),
            asked: Mutex::default(),
            authority,
            authorization: password.map(|password| BASE64.encode(password)),
        });
        let listener = TcpListener::bind((on, 0)).await?;
        let proxy = listener.local_addr()?;
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
        Ok(Self { proxy, shared, directory, password, _tasks: tasks })
    }

    /// Lets `name` stand for `backend`, behind TLS on port 443.
    pub fn serve_tls(&self, name: &str, backend: SocketAddr) -> anyhow::Result<()> {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new([name.to_owned()])?;
        let certificate = params.signed_by(&key, &self.shared.authority)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        let tls = Some(TlsAcceptor::from(Arc::new(config)));
        self.put(format!("{name}:443"), Place { backend, tls });
        Ok(())
    }

    /// Lets `place` (name:port) stand for `backend` as it is.
    pub fn serve_plain(&self, place: &str, backend: SocketAddr) {
        self.put(place.to_owned(), Place { backend, tls: None });
    }

    fn put(&self, name: String, place: Place) {
        lock(&self.shared.names).insert(name, place);
    }

    /// User name and password that the proxy wants, as it was started with.
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// A file with [`Self::password`].
    pub fn password_file(&self) -> Option<PathBuf> {
        self.password.as_ref().map(|_| self.directory.path().join("proxy"))
    }

    /// A file with the authority's certificate.
    pub fn bundle(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }

    /// Method and target of everything that the proxy let through.
    pub fn asked(&self) -> Vec<String> {
        lock(&self.shared.asked).clone()
    }
}

impl Shared {
    /// Serves one connection; what goes wrong is its client's affair.
    async fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let head = head(&mut stream).await?;
        let text = String::from_utf8_lossy(&head).into_owned();
        if !self.known(&text) {
            let answer = "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=\"p\"\r\ncontent-length: 0\r\n\r\n";
            return stream.write_all(answer.as_bytes()).await;
        }
        let line = text.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1");
        let (method, target) = line.split_once(' ').unwrap_or_default();
        let authority = target.trim_start_matches("http://").split('/').next().unwrap_or_default();
        let place = lock(&self.names).get(authority).cloned();
        let Some(place) = place else {
            let answer = b"HTTP/1.1 502 Unknown name\r\ncontent-length: 0\r\n\r\n";
            return stream.write_all(answer).await;
        };
        lock(&self.asked).push(line.to_owned());
        let mut backend = TcpStream::connect(place.backend).await?;
        if method == "CONNECT" {
            stream.write_all(b"HTTP/1.1 200 Yes\r\nVia: 1.1 test\r\n\r\n").await?;
        } else {
            backend.write_all(&head).await?;
        }
        match place.tls {
            // A client that does not trust the authority ends here.
            Some(acceptor) => {
                let mut stream = acceptor.accept(stream).await?;
                copy_bidirectional(&mut stream, &mut backend).await?;
            }
            None => {
                copy_bidirectional(&mut stream, &mut backend).await?;
            }
        }
        Ok(())
    }

    /// Whether a request has the password. Base64 tells upper from lower case, the header's name does not.
    fn known(&self, head: &str) -> bool {
        let Some(wanted) = &self.authorization else { return true };
        head.lines().any(|line| {
            line.split_at_checked(AUTHORIZATION.len()).is_some_and(|(name, value)| {
                name.eq_ignore_ascii_case(AUTHORIZATION) && value == wanted
            })
        })
    }
}

/// The head of a request and nothing behind it.
async fn head(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        head.push(stream.read_u8().await?);
    }
    Ok(head)
}

/// A poisoned lock means that a test has failed already; what it holds is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
