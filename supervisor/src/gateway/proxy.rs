//! The proxy in front of the internet, where a network has one: which upstream goes through it, and
//! the ways to go: a tunnel (CONNECT) for TLS, the absolute form for plain http.
//!
//! Everything that the gateway sends out asks [`ProxyRules`]: the HTTP client of model and forge,
//! git, and the tunnels of agents. Nothing is taken from the environment.

mod rules;

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector},
    rt::TokioIo,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tower::Service;

pub use self::rules::{Proxy, ProxyRules, RuleError, Settings};

/// Time for a proxy to open a tunnel: it resolves and connects in that time.
const TUNNEL_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest head of a proxy's answer; usual ones have a few hundred bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Why no connection was made by way of the proxy.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The proxy itself cannot be reached.
    #[error("cannot reach the proxy {proxy}")]
    ReachProxy {
        /// Its host and port.
        proxy: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It went away in mid-answer, or said what no proxy says.
    #[error("the proxy {proxy} did not speak HTTP")]
    ReadAnswer {
        /// Its host and port.
        proxy: String,
    },
    /// It answered with something other than success.
    #[error("the proxy {proxy} opened no tunnel to {target}: status {status}{hint}")]
    Refused {
        /// Its host and port.
        proxy: String,
        /// Host and port that were asked for.
        target: String,
        /// Its status.
        status: u16,
        /// What to do about it; empty for statuses that explain themselves.
        hint: &'static str,
    },
    /// It took too long.
    #[error("the proxy {proxy} did not open a tunnel to {target} in {} s", TUNNEL_TIMEOUT.as_secs())]
    TimedOut {
        /// Its host and port.
        proxy: String,
        /// Host and port that were asked for.
        target: String,
    },
}

impl Proxy {
    /// A connection to `target` (host:port) through a tunnel.
    pub async fn tunnel(&self, target: &str) -> Result<TcpStream, TunnelError> {
        let open = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await;
            let mut stream = stream.map_err(|source| self.unreached(source))?;
            self.ask(&mut stream, target).await?;
            Ok(stream)
        };
        timeout(TUNNEL_TIMEOUT, open).await.unwrap_or_else(|_| Err(self.timed_out(target)))
    }

    fn unreached(&self, source: io::Error) -> TunnelError {
        TunnelError::ReachProxy { proxy: self.to_string(), source }
    }

    fn timed_out(&self, target: &str) -> TunnelError {
        TunnelError::TimedOut { proxy: self.to_string(), target: target.to_owned() }
    }

    /// Asks for a tunnel on a fresh connection to the proxy.
    async fn ask(&self, stream: &mut TcpStream, target: &str) -> Result<(), TunnelError> {
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
        if let Some(authorization) = &self.authorization {
            request.extend_from_slice(b"Proxy-Authorization: ");
            request.extend_from_slice(authorization.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        stream.write_all(&request).await.map_err(|source| self.unreached(source))?;
        let unreadable = || TunnelError::ReadAnswer { proxy: self.to_string() };
        let head = read_head(stream).await.ok_or_else(unreadable)?;
        let status = status(&head).ok_or_else(unreadable)?;
        if (200..300).contains(&status) {
            return Ok(());
        }
        let hint = match status {
            407 if self.authorization.is_none() => {
                " (it wants a user name and password: gateway.proxy.credentialsSecret)"
            }
            407 => {
                " (it does not accept the user name and password of gateway.proxy.credentialsSecret)"
            }
            403 => " (its rules do not allow this host)",
            _ => "",
        };
        let (proxy, target) = (self.to_string(), target.to_owned());
        Err(TunnelError::Refused { proxy, target, status, hint })
    }
}

/// The head of the answer. Byte by byte, so that nothing of the tunnel is swallowed.
async fn read_head(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::with_capacity(256);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD_BYTES_MAX {
            return None;
        }
        head.push(stream.read_u8().await.ok()?);
    }
    Some(head)
}

/// The status in `HTTP/1.x NNN ...`.
fn status(head: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(head.split(|byte| *byte == b'\r').next()?).ok()?;
    let (version, rest) = line.split_once(' ')?;
    let code = rest.get(..3).filter(|code| code.bytes().all(|byte| byte.is_ascii_digit()))?;
    version.starts_with("HTTP/1.").then(|| code.parse().ok()).flatten()
}

/// Connects for the HTTP client: directly, or by way of the proxy that the rules name.
#[derive(Clone, Debug)]
pub struct Dialer {
    direct: HttpConnector,
    rules: Arc<ProxyRules>,
}

impl Dialer {
    /// A dialer that connects by `direct`.
    pub fn new(direct: HttpConnector, rules: Arc<ProxyRules>) -> Self {
        Self { direct, rules }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for Dialer {
    type Response = Dialed;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Dialed, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.direct.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Some(proxy) = self.rules.for_uri(&uri).cloned() else {
            let connecting = self.direct.call(uri);
            return Box::pin(async move { Ok(Dialed { io: connecting.await?, forwarded: false }) });
        };
        if uri.scheme_str() == Some("http") {
            let connecting = self.direct.call(proxy.uri());
            return Box::pin(async move { Ok(Dialed { io: connecting.await?, forwarded: true }) });
        }
        Box::pin(async move {
            let target = rules::authority(&uri).ok_or("a URL without a host")?;
            let stream = proxy.tunnel(&target).await?;
            // Small requests go out at once, as on direct connections.
            stream.set_nodelay(true)?;
            Ok(Dialed { io: TokioIo::new(stream), forwarded: false })
        })
    }
}

/// A connection of [`Dialer`].
#[derive(Debug)]
pub struct Dialed {
    io: TokioIo<TcpStream>,
    /// Whether the other end is a proxy that forwards plain requests: those name the whole URL.
    forwarded: bool,
}

impl Connection for Dialed {
    fn connected(&self) -> Connected {
        self.io.inner().connected().proxy(self.forwarded)
    }
}

impl Read for Dialed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl Write for Dialed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, buffers)
    }
}
