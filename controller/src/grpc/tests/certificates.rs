use std::time::Duration;

use agent_operator::{
    domain::{Attempt, RunKey, text::error_chain},
    proto::v1,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};
use time::OffsetDateTime;
use v1::{controller_message::Message as Down, supervisor_message::Message as Up};

use super::support::{Port, Talk, hello, install_provider};
use crate::{
    clock,
    fleet::{Command, NodeEvent, Nodes as _},
    tls::Current,
};

/// Life of the next certificate.
const LONG_SECONDS: i64 = 3600;

/// What vouches for the server.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate that is good up to and including this second.
    fn certificate(&self, last_second: i64) -> CertifiedKey {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let at = |second| OffsetDateTime::from_unix_timestamp(second).unwrap();
        params.not_before = at(last_second - 2 * LONG_SECONDS);
        params.not_after = at(last_second);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
        CertifiedKey::new(vec![certificate.der().clone()], key)
    }
}

fn now_seconds() -> i64 {
    clock::timestamp().as_second()
}

/// Opens a session over a connection whose handshake is done.
async fn open(port: &mut Port, channel: tonic::transport::Channel, node: &str) -> Talk {
    let mut talk = port.session_by(channel, &format!("node:{node}")).await.unwrap();
    talk.say(Up::Hello(hello(node))).await;
    assert!(matches!(talk.hear().await, Down::Accepted(_)));
    assert!(matches!(port.event().await, NodeEvent::Connected { .. }));
    talk
}

/// Asserts that words go both ways.
async fn assert_alive(port: &mut Port, talk: &mut Talk, node: &str) {
    let run = RunKey { uid: "u".into(), attempt: Attempt(1) };
    let need = v1::NeedCredentials { runs: vec![(&run).into()] };
    talk.say(Up::NeedCredentials(need)).await;
    assert!(matches!(port.event().await, NodeEvent::NeedCredentials { .. }));
    port.sessions.send(&node.into(), Command::Forget { run }).unwrap();
    assert!(matches!(talk.hear_else().await, Down::Forget(_)));
}

#[tokio::test]
async fn f34_a_session_outlives_its_servers_certificate_and_the_next_dial_gets_the_new_one() {
    install_provider();
    let authority = Authority::new();
    // The first life that a handshake on this machine fits into.
    let mut life_seconds = 2;
    let (mut port, current, channel, ends) = loop {
        let ends = now_seconds() + life_seconds;
        let current = Current::new(authority.certificate(ends));
        let port = Port::showing(authority.0.pem(), current.server_config()).await;
        match port.try_connect().await {
            Ok(channel) => break (port, current, channel, ends),
            Err(error) => assert!(life_seconds < 60, "{}", error_chain(&error)),
        }
        life_seconds *= 2;
    };
    let mut talk = open(&mut port, channel, "n1").await;
    // Not a wait for something to happen: the end of the certificate is what is tested.
    while now_seconds() <= ends {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_alive(&mut port, &mut talk, "n1").await;

    let refused = error_chain(&port.try_connect().await.expect_err("the certificate has expired"));
    assert!(refused.contains("expired"), "the reason has no name: {refused}");

    current.replace(authority.certificate(now_seconds() + LONG_SECONDS));
    let channel = port.try_connect().await.expect("the next one is good");
    let mut second = open(&mut port, channel, "n2").await;
    assert_alive(&mut port, &mut second, "n2").await;
    assert_alive(&mut port, &mut talk, "n1").await;
    drop((talk, second));
    port.stop().await;
}
