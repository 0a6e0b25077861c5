//! Connections: accepted, and through their TLS handshake, before tonic sees them.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// Longest handshake: a peer that stalls in it holds a slot no longer.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);

/// Handshakes at once; more wait in the listener's backlog.
const HANDSHAKES_MAX: usize = 256;

/// Pause after a failed accept (no file descriptors left): it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Connections = ReceiverStream<io::Result<TlsStream<TcpStream>>>;

/// Accepts until `stop`. The task ends with the returned stream.
pub(super) fn accept(
    listener: TcpListener,
    config: Arc<rustls::ServerConfig>,
    stop: CancellationToken,
) -> Connections {
    let (ready, connections) = mpsc::channel(1);
    tokio::spawn(run(listener, TlsAcceptor::from(config), ready, stop));
    ReceiverStream::new(connections)
}

async fn run(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    ready: mpsc::Sender<io::Result<TlsStream<TcpStream>>>,
    stop: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut handshakes = JoinSet::new();
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            () = ready.closed() => return,
            Some(_) = handshakes.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (acceptor, ready) = (acceptor.clone(), ready.clone());
        handshakes.spawn(async move {
            // Small messages must not wait for one another; a failure here shows on first use.
            let _ = socket.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE_WAIT, acceptor.accept(socket)).await {
                // Fails only when the server has stopped.
                Ok(Ok(stream)) => drop(ready.send(Ok(stream)).await),
                Ok(Err(error)) => tracing::debug!(%peer, %error, "handshake failed"),
                Err(_) => tracing::debug!(%peer, "handshake took too long"),
            }
            drop(slot);
        });
    }
}
