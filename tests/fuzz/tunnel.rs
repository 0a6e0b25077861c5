//! The first bytes of a tunnel.

use std::sync::Arc;

use agent_operator_doubles::fuzz::fuzz;
use agent_operator_supervisor::gateway::egress::sni::{HELLO_BYTES_MAX, server_name};
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::aws_lc_rs};

/// A real `ClientHello` for a host.
fn hello(host: &str) -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let host = host.to_owned().try_into().unwrap();
    let mut bytes = Vec::new();
    ClientConnection::new(Arc::new(config), host).unwrap().write_tls(&mut bytes).unwrap();
    bytes
}

#[test]
fn the_name_in_a_hello_is_bounded_and_does_not_change_as_more_bytes_come() {
    let whole = hello("packages.example");
    // The same handshake in records of 50 bytes.
    let records = whole[5..].chunks(50).flat_map(|chunk| {
        let length = u16::try_from(chunk.len()).unwrap().to_be_bytes();
        [&[22, 3, 1][..], &length, chunk].concat()
    });
    let corpus =
        [whole.clone(), records.collect(), hello("a.example"), b"GET / HTTP/1.1\r\n".to_vec()];
    let mut named = 0_u32;
    fuzz(&corpus, |bytes| {
        let answer = server_name(bytes);
        if let Ok(Some(name)) = &answer {
            named += 1;
            assert!(name.len() <= HELLO_BYTES_MAX && *name == name.to_ascii_lowercase());
        }
        if bytes.len() >= HELLO_BYTES_MAX {
            assert_ne!(answer, Ok(None), "at the limit it is decided");
        }
        // What was said of the first part holds for the whole.
        let step = 1 + bytes.len() / 16;
        for cut in (0..bytes.len()).step_by(step) {
            match server_name(&bytes[..cut]) {
                Ok(None) => {}
                early => assert_eq!(early, answer, "cut at {cut} of {}", bytes.len()),
            }
        }
    });
    assert!(named > 3);
}
