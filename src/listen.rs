//! Ports of the long-running processes, on nodes of either family of addresses.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use tokio::net::TcpListener;

/// Listens on `address`. All addresses, `[::]`, are those of both families where the kernel has IPv6, and
/// those of IPv4 where it has none.
///
/// # Errors
///
/// As [`TcpListener::bind`].
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    let all = address.is_ipv6() && address.ip().is_unspecified();
    match bound {
        Err(error) if all && without_family(&error) => {
            TcpListener::bind((IpAddr::from(Ipv4Addr::UNSPECIFIED), address.port())).await
        }
        bound => bound,
    }
}

/// Whether the kernel has no such family of addresses (`ipv6.disable=1`), or no address of it
/// (`net.ipv6.conf.all.disable_ipv6`).
fn without_family(error: &io::Error) -> bool {
    use nix::libc::{EADDRNOTAVAIL, EAFNOSUPPORT};
    matches!(error.raw_os_error(), Some(EAFNOSUPPORT | EADDRNOTAVAIL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_addresses_are_reached_over_ipv4_too() {
        let listener = bind("[::]:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (client, server) =
            tokio::join!(tokio::net::TcpStream::connect(("127.0.0.1", port)), listener.accept());
        assert_eq!(client.unwrap().local_addr().unwrap().port(), server.unwrap().1.port());
    }

    #[test]
    fn only_a_missing_family_leads_to_the_other_one() {
        use nix::libc::{EACCES, EADDRINUSE, EADDRNOTAVAIL, EAFNOSUPPORT};
        let told = |code| without_family(&io::Error::from_raw_os_error(code));
        assert!(told(EAFNOSUPPORT) && told(EADDRNOTAVAIL));
        assert!(!told(EADDRINUSE) && !told(EACCES));
    }
}
