//! A TCP connection that dies without a word, as behind a pulled cable or a router that forgot it: no
//! segment arrives any more, not even an acknowledgement by the kernel, and none says that it is over.
//!
//! The connection leads through a relay on the loopback. To cut it, both sockets of the relay get a
//! filter that drops every incoming segment; that needs no rights.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use socket2::{SockFilter, SockRef, Socket};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// `return 0`: of each segment nothing is kept.
const DROP_ALL: SockFilter = SockFilter::new(0x06, 0, 0, 0);

/// A relay to one address.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    sockets: Arc<Mutex<Vec<Socket>>>,
    relay: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.relay.abort();
    }
}

impl Link {
    /// Relays connections to `target`.
    pub async fn to(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let sockets = Arc::<Mutex<Vec<Socket>>>::default();
        let of_relay = Arc::clone(&sockets);
        let relay = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let Ok(mut far) = TcpStream::connect(target).await else { continue };
                let both = [&near, &far].map(|stream| SockRef::from(stream).try_clone());
                let mut known = of_relay.lock().unwrap_or_else(PoisonError::into_inner);
                known.extend(both.into_iter().flatten());
                drop(known);
                tokio::spawn(async move { copy_bidirectional(&mut near, &mut far).await });
            }
        });
        Ok(Self { address, sockets, relay })
    }

    /// Where to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts all connections that are open; later ones work. Returns how many sockets that were.
    pub fn cut(&self) -> io::Result<usize> {
        let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        for socket in sockets.iter() {
            socket.attach_filter(&[DROP_ALL])?;
        }
        Ok(sockets.len())
    }
}
