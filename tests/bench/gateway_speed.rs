//! `gateway`: what a model's answer and a clone cost on their way through the gateway, a process of its own. Beside it the
//! direct way, and nginx as a reverse proxy, which looks at nothing.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use agent_operator::{
    attempt::Redeemed,
    domain::{Assignment, Credential, Secret, Usage, names::sha256_hex},
};
use agent_operator_doubles::assignment::assignment;
use agent_operator_supervisor::link::{
    contract::{DurableEvent, FromGateway, Grant, LINK_VERSION, ToGateway},
    frame::framed,
};
use axum::{Router, body::Body};
use base64::Engine as _;
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream, UnixStream},
    task::JoinSet,
};

use crate::{
    far::{Far, Upstream, repository},
    measure::{ROUNDS, Samples, Scale, eventually, millis, now},
    processes::{Process, block_on},
    site::{free_port, from_json},
    table::Row,
};

/// Limit of one start.
const LIMIT: Duration = Duration::from_secs(30);
/// One-time token of the attempt.
const ONE_TIME: &str = "one-time-bench";
/// Word in a prompt that is answered at length.
const LONG: &str = "long";
const MIB: f64 = (1 << 20) as f64;

/// A short answer of the model as server-sent events.
fn short_answer() -> String {
    let event = |name: &str, data: serde_json::Value| format!("event: {name}\ndata: {data}\n\n");
    [
        event(
            "message_start",
            json!({"type": "message_start", "message": {
            "model": "claude-x", "usage": {"input_tokens": 10, "output_tokens": 1}}}),
        ),
        event(
            "content_block_delta",
            json!({"type": "content_block_delta", "index": 0,
            "delta": {"type": "text_delta", "text": "done"}}),
        ),
        event(
            "message_delta",
            json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"},
            "usage": {"output_tokens": 4}}),
        ),
        event("message_stop", json!({"type": "message_stop"})),
    ]
    .concat()
}

/// The model's server. A long answer has `long` bytes in events of a usual size.
async fn model(around: &mut JoinSet<()>, long: usize) -> SocketAddr {
    let delta = json!({"type": "content_block_delta", "index": 0,
        "delta": {"type": "text_delta", "text": "x".repeat(64)}});
    let events = Bytes::from(format!("event: content_block_delta\ndata: {delta}\n\n").repeat(64));
    let pieces = long / events.len();
    let router = Router::new().fallback(move |request: Request<Body>| {
        let events = events.clone();
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let answer = Response::builder().header("content-type", "text/event-stream");
            if !String::from_utf8_lossy(&body).contains(LONG) {
                return answer.body(Body::from(short_answer())).unwrap();
            }
            let head = futures::stream::once(async {
                Ok::<_, std::io::Error>(Bytes::from(short_answer()))
            });
            let rest = futures::stream::repeat(events).take(pieces).map(Ok);
            answer.body(Body::from_stream(head.chain(rest))).unwrap()
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    around.spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

/// A gateway with one attempt whose gate is open.
struct Gateway {
    address: SocketAddr,
    token: String,
    _process: Process,
    _link: JoinSet<()>,
}

fn grant() -> Grant {
    let assignment: Assignment = from_json(assignment(&json!({
        "step": "implement", "timeoutSeconds": 3600,
    })));
    Grant {
        assignment,
        one_time_hash: sha256_hex(ONE_TIME.as_bytes()),
        redemption: None,
        open_remaining_millis: None,
        usage: Usage::default(),
        refusals: Vec::new(),
        next_event: 0,
        canary: None,
        probe: None,
    }
}

fn credential(purpose: &str, host: &str, scheme: &str) -> Credential {
    Credential {
        id: purpose.to_owned(),
        purpose: purpose.to_owned(),
        host: host.to_owned(),
        scheme: scheme.to_owned(),
        value: Secret::new("bench-secret"),
    }
}

impl Gateway {
    async fn start(dir: &Path, model: SocketAddr, forge: SocketAddr) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let config = json!({
            "llm": {"baseURL": format!("http://{model}"), "host": "api.anthropic.com"},
            "upstreams": [{"host": "github.com", "baseURL": format!("http://{forge}"), "forge": "gitea"}],
            // The pace of requests is a limit of ours, not a cost.
            "limits": {"requestsPerSecond": 1_000_000},
        });
        let (file, socket) = (dir.join("gateway.json"), dir.join("gateway.sock"));
        std::fs::write(&file, config.to_string()).unwrap();
        let arguments = [
            "gateway".to_owned(),
            format!("--listen={address}"),
            format!("--socket={}", socket.display()),
            format!("--git-dir={}", dir.join("git").display()),
            format!("--config={}", file.display()),
        ];
        let process = Process::start(&arguments, &[], dir.join("gateway.log"));
        let stream = eventually("the gateway's socket", LIMIT, async || {
            UnixStream::connect(&socket).await.ok()
        })
        .await;
        let link = serve(stream, grant()).await;
        let redeem = || async { redeemed(address).await };
        let tokens = eventually("the token is redeemed", LIMIT, async || redeem().await).await;
        let open = async || {
            let gate =
                call(address, "POST", "/v1/gate", &tokens.runner_token, "{\"sandbox\":{}}").await?;
            String::from_utf8_lossy(&gate).contains("\"open\"").then_some(())
        };
        eventually("the gate is open", LIMIT, open).await;
        Self { address, token: tokens.agent_token, _process: process, _link: link }
    }
}

/// The supervisor's end of the link.
async fn serve(stream: UnixStream, grant: Grant) -> JoinSet<()> {
    let (mut sink, mut source) = framed::<FromGateway>(stream).split();
    let run = grant.assignment.key();
    let credentials = vec![
        credential("model", "api.anthropic.com", "api-key"),
        credential("git", "github.com", "basic"),
    ];
    let hello = ToGateway::Hello { version: LINK_VERSION };
    let credentials = ToGateway::Credentials { run: run.clone(), credentials };
    for message in [hello, ToGateway::Register(Box::new(grant)), credentials, ToGateway::Synced] {
        sink.send(message).await.unwrap();
    }
    let mut link = JoinSet::new();
    link.spawn(async move {
        while let Some(Ok(message)) = source.next().await {
            let FromGateway::Durable { id, event, .. } = message else { continue };
            // As the supervisor does it: the address of whoever has redeemed is known by then.
            if let DurableEvent::Redeemed(redemption) = event {
                let pod_ip = redemption.pod_ip;
                let gate =
                    ToGateway::OpenGate { run: run.clone(), pod_ip, remaining_millis: 3_600_000 };
                sink.send(gate).await.unwrap();
            }
            if sink.send(ToGateway::Ack { id }).await.is_err() {
                return;
            }
        }
    });
    link
}

async fn redeemed(address: SocketAddr) -> Option<Redeemed> {
    let nonce = json!({"nonce": "00112233445566778899aabbccddeeff"}).to_string();
    serde_json::from_slice(&call(address, "POST", "/v1/redeem", ONE_TIME, &nonce).await?).ok()
}

/// A connection that is kept.
async fn connect(address: SocketAddr) -> SendRequest<Body> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request(method: &str, path: &str, token: &str, body: &str) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "gateway")
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {token}"))
        .body(Body::from(body.to_owned()))
        .unwrap()
}

/// One call on a connection of its own; none when it fails.
async fn call(
    address: SocketAddr,
    method: &str,
    path: &str,
    token: &str,
    body: &str,
) -> Option<Bytes> {
    let answer =
        connect(address).await.send_request(request(method, path, token, body)).await.ok()?;
    let good = answer.status().is_success();
    let body = answer.into_body().collect().await.ok()?.to_bytes();
    good.then_some(body)
}

/// One model call on a kept connection: its time and the bytes of its answer.
async fn ask(
    sender: &mut SendRequest<Body>,
    prefix: &str,
    token: &str,
    prompt: &str,
) -> (Duration, usize) {
    let body = json!({"model": "claude-x", "max_tokens": 10, "stream": true,
        "messages": [{"role": "user", "content": prompt}]});
    let request = request("POST", &format!("{prefix}/v1/messages"), token, &body.to_string());
    let began = now();
    sender.ready().await.unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert!(answer.status().is_success(), "a model call of the bench: {}", answer.status());
    let (mut body, mut bytes) = (answer.into_body(), 0);
    while let Some(frame) = body.frame().await {
        bytes += frame.unwrap().data_ref().map_or(0, Bytes::len);
    }
    (began.elapsed(), bytes)
}

/// nginx, if the machine has it.
struct Nginx(Child, SocketAddr);

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Nginx {
    async fn start(dir: &Path, model: SocketAddr) -> Option<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let at = |name: &str| dir.join(name).display().to_string();
        let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let paths = paths.map(|kind| format!("{kind}_temp_path {}; ", at(kind))).concat();
        let text = format!(
            "daemon off; master_process off; pid {}; error_log {} crit; events {{}}\n\
             http {{ access_log off; keepalive_requests 1000000; {paths} upstream model {{ server {model}; keepalive 16; keepalive_requests 1000000; }}\n\
             server {{ listen {address}; location / {{ proxy_pass http://model; proxy_http_version 1.1;\n\
             proxy_set_header Connection \"\"; proxy_buffering off; }} }} }}\n",
            at("nginx.pid"),
            at("nginx.log"),
        );
        let file: PathBuf = dir.join("nginx.conf");
        std::fs::write(&file, text).unwrap();
        let child = Command::new("nginx")
            .arg("-c")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let nginx = Self(child.ok()?, address);
        eventually("nginx listens", LIMIT, async || TcpStream::connect(address).await.ok()).await;
        Some(nginx)
    }
}

/// One way to the model.
struct Way {
    sender: SendRequest<Body>,
    prefix: &'static str,
    token: String,
    latency: Samples,
    rate: Samples,
}

impl Way {
    async fn new(address: SocketAddr, prefix: &'static str, token: &str) -> Self {
        let sender = connect(address).await;
        Self {
            sender,
            prefix,
            token: token.to_owned(),
            latency: Samples::default(),
            rate: Samples::default(),
        }
    }

    async fn round(&mut self, calls: u32) {
        for _ in 0..calls {
            let (took, _) = ask(&mut self.sender, self.prefix, &self.token, "short").await;
            self.latency.add(millis(took));
        }
        let (took, bytes) = ask(&mut self.sender, self.prefix, &self.token, LONG).await;
        self.rate.add(bytes as f64 / MIB / took.as_secs_f64());
    }
}

async fn answers(
    scale: Scale,
    dir: &Path,
    upstream: SocketAddr,
    around: &mut JoinSet<()>,
) -> Vec<Row> {
    let model = model(around, scale.pick(256 << 20, 8 << 20)).await;
    let gateway = Gateway::start(&dir.join("answers"), model, upstream).await;
    let nginx = Nginx::start(dir, model).await;
    let mut ours = Way::new(gateway.address, "/llm", &gateway.token).await;
    let mut direct = Way::new(model, "", "none").await;
    let mut peer = match &nginx {
        Some(nginx) => Some(Way::new(nginx.1, "", "none").await),
        None => None,
    };
    let calls = scale.pick(300, 20);
    for round in 0..=scale.pick(ROUNDS, 2) {
        for way in [Some(&mut ours), Some(&mut direct), peer.as_mut()].into_iter().flatten() {
            way.round(calls).await;
            if round == 0 {
                // The first finds its way: connections, pages, the clock of the processor.
                (way.latency, way.rate) = Default::default();
            }
        }
    }
    let added =
        |way: &Way, of: fn(&Samples) -> Option<f64>| Some(of(&way.latency)? - of(&direct.latency)?);
    let of_peer = |of: fn(&Samples) -> Option<f64>| peer.as_ref().and_then(|peer| added(peer, of));
    vec![
        Row::new("gateway added p50", "ms a call", added(&ours, Samples::median))
            .peer(of_peer(Samples::median))
            .at_most(1.0),
        Row::new("gateway added p99", "ms a call", added(&ours, Samples::p99))
            .peer(of_peer(Samples::p99)),
        Row::new("gateway stream", "MiB/s of server-sent events", ours.rate.median())
            .floor(direct.rate.median())
            .peer(peer.as_ref().and_then(|peer| peer.rate.median())),
    ]
}

/// Seconds of a clone.
async fn clone(url: String, token: Option<String>, to: PathBuf) -> f64 {
    let mut git = tokio::process::Command::new("git");
    let user = token.map_or_else(String::new, |token| format!("agent:{token}"));
    let basic = base64::engine::general_purpose::STANDARD.encode(user);
    git.args(["-c", &format!("http.extraHeader=Authorization: Basic {basic}"), "clone", "--quiet"]);
    git.arg(url).arg(&to).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_TERMINAL_PROMPT", "0");
    let began = now();
    let done = git.status().await.unwrap();
    let took = began.elapsed().as_secs_f64();
    assert!(done.success(), "a clone of the bench");
    std::fs::remove_dir_all(to).unwrap();
    took
}

async fn clones(
    scale: Scale,
    dir: &Path,
    upstream: SocketAddr,
    around: &mut JoinSet<()>,
) -> Vec<Row> {
    let far = Far::start(upstream, around).await;
    let (mut mirror, mut cold, mut near, mut peer): (Samples, Samples, Samples, Samples) =
        Default::default();
    for round in 0..scale.pick(ROUNDS, 1) {
        let folder = dir.join(format!("clones-{round}"));
        let gateway = Gateway::start(&folder, far, far).await;
        let ours = || {
            let url = format!("http://{}/git/main.git", gateway.address);
            clone(url, Some(gateway.token.clone()), dir.join("clone"))
        };
        let direct = |address| clone(format!("http://{address}/o/r.git"), None, dir.join("clone"));
        cold.add(ours().await);
        peer.add(direct(far).await);
        mirror.add(ours().await);
        near.add(direct(upstream).await);
        drop(gateway);
        std::fs::remove_dir_all(folder).unwrap();
    }
    vec![
        Row::new("gateway clone mirrored", "s, 200 MB, upstream 50 ms away", mirror.median())
            .floor(near.median())
            .peer(peer.median())
            .at_most_of_peer(0.2),
        Row::new("gateway clone cold", "s, 200 MB, upstream 50 ms away", cold.median())
            .floor(near.median())
            .peer(peer.median()),
    ]
}

pub fn run(scale: Scale) -> Vec<Row> {
    let all = async {
        let dir = tempfile::tempdir().unwrap();
        let mut around = JoinSet::new();
        let served = dir.path().join("served");
        repository(&served, scale.pick(200, 4)).await;
        let upstream = Upstream::start(served, &mut around).await;
        let mut rows = answers(scale, dir.path(), upstream, &mut around).await;
        rows.extend(clones(scale, dir.path(), upstream, &mut around).await);
        rows
    };
    block_on(all)
}
