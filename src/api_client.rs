//! The client for the API server.

use std::time::Duration;

use kube::{Client, client::ConfigExt as _};
use tower::{BoxError, ServiceBuilder};

/// Limit of a TCP and TLS connect to the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle time before the kernel probes a connection.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
/// Pause between two probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// Unanswered probes before the connection counts as dead.
const KEEPALIVE_RETRIES: u32 = 3;
/// Idle time plus probes: below the 15 s within which a half-open watch must be noticed.
const DEAD_AFTER: Duration = Duration::from_secs(14);

/// A client that notices a dead connection within 14 s, also under an idle watch, and leaves retries
/// to its callers: each has a limit of its own, and a hidden retry could land minutes after the
/// decision, when another leader has acted.
pub fn client(config: kube::Config) -> Result<Client, kube::Error> {
    let mut http = hyper_util::client::legacy::connect::HttpConnector::new();
    http.enforce_http(false);
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));
    // A request in two segments must not wait for the first to be acknowledged, which takes 40 ms.
    http.set_nodelay(true);
    http.set_keepalive(Some(KEEPALIVE_IDLE));
    http.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    http.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    http.set_tcp_user_timeout(Some(DEAD_AFTER));
    let https = config.rustls_https_connector_with_connector(http)?;
    let executor = hyper_util::rt::TokioExecutor::new();
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(hyper_util::client::legacy::Client::builder(executor).build(https));
    Ok(Client::new(service, config.default_namespace))
}

#[cfg(test)]
mod tests {
    use agent_operator_doubles::half_open::Link;
    use futures::TryStreamExt as _;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{Api, api::WatchParams};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        time::Instant,
    };

    use super::*;

    /// What must be reached, by the promise.
    const GOAL: Duration = Duration::from_secs(15);
    /// Far below the five minutes after which kube's own client would notice.
    const LIMIT: Duration = Duration::from_mins(2);

    #[tokio::test]
    async fn f12_a_half_open_watch_is_noticed() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let link = Link::to(listener.local_addr().unwrap()).await.unwrap();
        // An API server that has begun to answer a watch, and has nothing to tell.
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            stream
        });
        let url = format!("http://{}", link.address()).parse().unwrap();
        let client = client(kube::Config::new(url)).unwrap();
        let maps: Api<ConfigMap> = Api::namespaced(client, "default");
        let mut events = Box::pin(maps.watch(&WatchParams::default(), "1").await.unwrap());
        let _server = serving.await.unwrap();
        assert_eq!(link.cut().unwrap(), 2);
        let cut = Instant::now();
        let noticed = tokio::time::timeout(LIMIT, events.try_next()).await;
        let took = cut.elapsed();
        println!(
            "figure: half-open watch noticed in {:.2} of the goal of {GOAL:?}",
            took.as_secs_f64() / GOAL.as_secs_f64()
        );
        assert!(!matches!(noticed, Ok(Ok(Some(_)))), "nothing was sent");
        assert!(noticed.is_ok(), "a dead watch is not noticed within {LIMIT:?}");
    }
}
