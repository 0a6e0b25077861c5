//! Upstreams behind a proxy, under a private certificate authority.

use agent_operator::domain::StepName;
use agent_operator_doubles::network::Network;
use axum::{Router, body::Body};
use http::Request;
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::rig::{KEY, Options, POD, Rig, company, grant, proxy};
use crate::gateway::{
    egress::sni::tests::client_hello,
    http_client,
    proxy::{ProxyRules, Settings},
};

#[tokio::test(flavor = "multi_thread")]
async fn model_calls_go_through_a_proxy_with_a_password_to_a_server_under_a_private_authority() {
    let network = company(Some("user:p@ss")).await;
    let options =
        Options { llm: Some("https://model.example".to_owned()), ..Options::within(&network) };
    let rig = Rig::start_with(options).await;
    network.serve_tls("model.example", rig.model_address).unwrap();
    let supervisor = rig.with_attempt(grant("a", StepName::Implement, None)).await;
    let tokens = rig.running(&supervisor, "a").await;

    rig.model.answer_json(7).await;
    let answer = rig.model_call(&tokens).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let seen = rig.model.seen.lock().unwrap()[0].clone();
    assert_eq!(seen.headers["x-api-key"], KEY);
    assert!(!seen.headers.contains_key("proxy-authorization"), "{seen:?}");
    assert_eq!(network.asked(), ["CONNECT model.example:443"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_refuses_the_model_is_told_to_the_agent() {
    let network = company(None).await;
    let options =
        Options { llm: Some("https://model.example".to_owned()), ..Options::within(&network) };
    let rig = Rig::start_with(options).await;
    let supervisor = rig.with_attempt(grant("a", StepName::Implement, None)).await;
    let tokens = rig.running(&supervisor, "a").await;
    let answer = rig.model_call(&tokens).await;
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(
        answer.text().contains("opened no tunnel to model.example:443: status 502"),
        "{answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_tunnels_go_through_the_proxy_which_alone_knows_the_names() {
    let network = company(None).await;
    let listener = TcpListener::bind((POD, 0)).await.unwrap();
    network.serve_plain("packages.example:443", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await
    });
    let allowed_hosts = vec!["packages.example".to_owned(), "gone.example".to_owned()];
    let options = Options { allowed_hosts, allow_private: false, ..Options::within(&network) };
    let rig = Rig::start_with(options).await;
    let supervisor = rig.with_attempt(grant("a", StepName::Test, None)).await;
    let tokens = rig.running(&supervisor, "a").await;
    let headers = proxy(&tokens.agent_token);

    let answer = rig.open(POD, "CONNECT", "packages.example:443", &headers, "").await;
    assert_eq!(answer.status(), 200);
    let mut tunnel = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    let sent = client_hello("packages.example");
    tunnel.write_all(&sent).await.unwrap();
    let mut back = vec![0; sent.len()];
    tunnel.read_exact(&mut back).await.unwrap();
    assert_eq!(back, sent);
    assert_eq!(network.asked(), ["CONNECT packages.example:443"]);

    let answer = rig.call(POD, "CONNECT", "gone.example:443", &headers, "").await;
    assert_eq!(answer.status, 502);
    assert!(
        answer.text().contains("opened no tunnel to gone.example:443: status 502"),
        "{answer:?}"
    );
}

/// What a GET by the gateway's client gives, or why it gives nothing.
async fn get(
    network: &Network,
    url: &str,
    trusting: bool,
    no_proxy: &str,
) -> Result<String, String> {
    let proxy = format!("http://{}", network.proxy);
    let no_proxy = vec![no_proxy.to_owned()];
    let settings = Settings { http: proxy.clone(), https: proxy, no_proxy };
    let rules = Arc::new(ProxyRules::new(&settings, None).unwrap());
    let bundle = trusting.then(|| network.bundle());
    let client = http_client::build(bundle.as_deref(), rules).unwrap();
    let request = Request::get(url).body(Body::empty()).unwrap();
    let answer = client.request(request).await.map_err(|error| http_client::describe(&error))?;
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    Ok(String::from_utf8(bytes.to_vec()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_tunnels_tls_forwards_plain_requests_and_leaves_exceptions_alone() {
    let network = company(None).await;
    let listener = TcpListener::bind((POD, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(async |request: Request<Body>| request.uri().to_string());
    tokio::spawn(async move { axum::serve(listener, router).await });
    network.serve_tls("forge.example", address).unwrap();
    network.serve_plain("plain.example", address);

    let secure = get(&network, "https://forge.example/api", true, "other.example").await;
    assert_eq!(secure.unwrap(), "/api");
    let plain = get(&network, "http://plain.example/api", true, "other.example").await;
    assert_eq!(plain.unwrap(), "http://plain.example/api", "a proxy wants the whole URL");
    assert_eq!(network.asked(), ["CONNECT forge.example:443", "GET http://plain.example/api"]);

    let direct = get(&network, &format!("http://{address}/x"), true, "127.0.0.0/8").await;
    assert_eq!(direct.unwrap(), "/x");
    assert_eq!(network.asked().len(), 2, "an exception does not touch the proxy");

    let error = get(&network, "https://forge.example/api", false, "other.example").await;
    let error = error.unwrap_err();
    assert!(error.contains("certificate"), "{error}");
    let error = get(&network, "https://nowhere.example/", true, "other.example").await;
    let error = error.unwrap_err();
    assert!(error.contains("opened no tunnel to nowhere.example:443: status 502"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_wants_a_password_is_named_with_the_remedy() {
    let network = company(Some("user:secret")).await;
    let error = get(&network, "https://forge.example/", true, "other.example").await.unwrap_err();
    assert!(error.contains("status 407") && error.contains("credentialsSecret"), "{error}");
}
