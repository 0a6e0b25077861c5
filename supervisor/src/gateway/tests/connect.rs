//! CONNECT: allowed names only, TLS with the same name only.

use agent_operator::{attempt::Redeemed, domain::StepName};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::rig::{Options, POD, Rig, Supervisor, grant, proxy};
use crate::gateway::egress::sni::tests::client_hello;

/// A server that sends back what it gets.
async fn echo() -> u16 {
    let listener = TcpListener::bind((POD, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    port
}

async fn running(options: Options) -> (Rig, Supervisor, Redeemed) {
    let rig = Rig::start_with(options).await;
    let mut grant = grant("a", StepName::Test, None);
    grant.assignment.sandbox.allowed_hosts =
        ["api.anthropic.com", "github.com"].map(str::to_owned).to_vec();
    let supervisor = rig.with_attempt(grant).await;
    let tokens = rig.running(&supervisor, "a").await;
    (rig, supervisor, tokens)
}

#[tokio::test]
async fn a_tunnel_to_an_allowed_host_carries_tls_with_its_name() {
    let port = echo().await;
    let host = format!("localhost:{port}");
    let options = Options { allowed_hosts: vec![host.clone()], ..Options::default() };
    let (rig, supervisor, tokens) = running(options).await;
    let headers = proxy(&tokens.agent_token);

    let answer = rig.open(POD, "CONNECT", &host, &headers, "").await;
    assert_eq!(answer.status(), 200);
    let mut tunnel = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    let mut sent = client_hello("localhost");
    sent.extend_from_slice(b"more");
    tunnel.write_all(&sent).await.unwrap();
    let mut back = vec![0; sent.len()];
    tunnel.read_exact(&mut back).await.unwrap();
    assert_eq!(back, sent);

    for first in [client_hello("other.example"), b"GET / HTTP/1.1\r\n\r\n".to_vec()] {
        let answer = rig.open(POD, "CONNECT", &host, &headers, "").await;
        let mut tunnel = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
        tunnel.write_all(&first).await.unwrap();
        let mut back = Vec::new();
        // Closed without an answer; whether by an end or a reset does not matter.
        let _ = tunnel.read_to_end(&mut back).await;
        assert!(back.is_empty());
    }
    supervisor.refusal("egress", &host).await;
}

#[tokio::test]
async fn other_targets_are_refused_and_counted() {
    let (rig, supervisor, tokens) = running(Options::default()).await;
    let headers = proxy(&tokens.agent_token);
    for target in [
        "evil.example:443",
        "api.anthropic.com:443",
        "github.com:443",
        "api.github.com:443",
        "127.0.0.1:443",
        "169.254.169.254:80",
        "[::1]:443",
        "2130706433:443",
    ] {
        let answer = rig.call(POD, "CONNECT", target, &headers, "").await;
        assert_eq!(answer.status, 403, "{target}");
        supervisor.refusal("egress", target).await;
    }
}

#[tokio::test]
async fn a_name_that_stands_for_a_private_address_is_refused() {
    let port = echo().await;
    let host = format!("localhost:{port}");
    let options =
        Options { allowed_hosts: vec![host.clone()], allow_private: false, ..Options::default() };
    let (rig, supervisor, tokens) = running(options).await;
    let answer = rig.call(POD, "CONNECT", &host, &proxy(&tokens.agent_token), "").await;
    assert_eq!(answer.status, 403);
    supervisor.refusal("egress", &host).await;
}
