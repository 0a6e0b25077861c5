//! A real gateway on loopback, a scripted model server, and the supervisor's end of the link.

mod scripted;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use agent_operator::{
    attempt::Redeemed,
    domain::{
        Assignment, Attempt, Credential, Epoch, RunKey, RunRef, Secret, StepName, TaskRef, Usage,
        assignment::{AgentKind, PodRequest, Repository, SandboxPolicy, TaskBudget, Work},
        names::sha256_hex,
    },
    telemetry::Tracer,
};
use agent_operator_doubles::network::Network;
use axum::body::Body;
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream, UnixStream},
    runtime::{Handle, Runtime},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

pub(super) use self::scripted::Model;
use super::super::{Args, Ports, run_on};
use crate::link::{
    contract::{DurableEvent, FromGateway, Grant, LINK_VERSION, Redemption, ToGateway},
    frame,
};

/// Address of the pod in these tests.
pub(super) const POD: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Address of another pod.
pub(super) const OTHER_POD: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// The real key, which only the model server may ever see.
pub(super) const KEY: &str = "sk-canary-model-key";
/// A nonce of a runner.
pub(super) const NONCE: &str = "00112233445566778899aabbccddeeff";
/// Limit of every wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a rig differs from the usual.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) allowed_hosts: Vec<String>,
    pub(super) allow_private: bool,
    /// Base URL of what stands behind github.com.
    pub(super) forge: String,
    /// Base URL of the model server, where it is not reached by its own address.
    pub(super) llm: Option<String>,
    /// The configuration's `proxy`.
    pub(super) proxy: serde_json::Value,
    pub(super) proxy_credentials: Option<PathBuf>,
    pub(super) ca_bundle: Option<PathBuf>,
    /// The gateway gets a runtime of its own, so that [`Rig::restart`] can end it as SIGKILL would.
    pub(super) killable: bool,
    pub(super) tracer: Tracer,
    /// The configuration's `llm.models`.
    pub(super) models: Vec<&'static str>,
    /// The configuration's `limits`.
    pub(super) limits: serde_json::Value,
}

impl Options {
    /// Those of a gateway in this network.
    pub(super) fn within(network: &Network) -> Self {
        let proxy = format!("http://{}", network.proxy);
        let no_proxy = ["direct.example"];
        Self {
            proxy: serde_json::json!({"http": proxy, "https": proxy, "noProxy": no_proxy}),
            proxy_credentials: network.password_file(),
            ca_bundle: Some(network.bundle()),
            ..Self::default()
        }
    }
}

/// A company's network on loopback, whose proxy wants `password`, if one is given.
pub(super) async fn company(password: Option<&str>) -> Network {
    Network::start(POD, password).await.unwrap()
}

impl Default for Options {
    fn default() -> Self {
        Self {
            allowed_hosts: vec![],
            allow_private: true,
            forge: "http://127.0.0.1:9".to_owned(),
            llm: None,
            proxy: serde_json::json!({}),
            proxy_credentials: None,
            ca_bundle: None,
            killable: false,
            tracer: Tracer::off(),
            models: vec![],
            limits: serde_json::json!({}),
        }
    }
}

/// The gateway and what is around it.
#[derive(Debug)]
pub(super) struct Rig {
    pub(super) address: SocketAddr,
    pub(super) model: Model,
    pub(super) model_address: SocketAddr,
    /// Where metrics are; not served again after a restart.
    pub(super) metrics: SocketAddr,
    socket: PathBuf,
    args: Args,
    runtime: Option<Runtime>,
    shutdown: CancellationToken,
    _directory: tempfile::TempDir,
    _tasks: Vec<JoinHandle<()>>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn own_runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

impl Rig {
    pub(super) async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    pub(super) async fn start_with(options: Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let model = Model::default();
        let listener = TcpListener::bind((POD, 0)).await.unwrap();
        let model_address = listener.local_addr().unwrap();
        let serving = tokio::spawn(model.clone().serve(listener));
        let llm = options.llm.unwrap_or_else(|| format!("http://{model_address}"));
        let config = serde_json::json!({
            "llm": {"baseURL": llm, "host": "api.anthropic.com", "models": options.models},
            "limits": options.limits,
            "proxy": options.proxy,
            "upstreams": [{"host": "github.com", "baseURL": options.forge, "forge": "gitea"}],
            "egress": {"allowedHosts": options.allowed_hosts},
            "prices": {"claude-x": {"inputMicroUSDPerMTok": 1_000_000, "outputMicroUSDPerMTok": 2_000_000}},
        });
        let config_path = directory.path().join("gateway.json");
        std::fs::write(&config_path, config.to_string()).unwrap();
        let sandboxes = TcpListener::bind((POD, 0)).await.unwrap();
        let address = sandboxes.local_addr().unwrap();
        let scrapes = TcpListener::bind((POD, 0)).await.unwrap();
        let metrics = scrapes.local_addr().unwrap();
        let ports = Ports { sandboxes, scrapes: Some(scrapes) };
        let socket = directory.path().join("gateway.sock");
        let args = Args {
            listen: address,
            metrics_listen: None,
            socket: socket.clone(),
            allowed_peer_uid: vec![],
            git_dir: directory.path().join("git"),
            config: config_path,
            ca_bundle: options.ca_bundle,
            proxy_credentials: options.proxy_credentials,
            own_address: vec![],
            api_server: None,
            egress_allow_private: options.allow_private,
        };
        let shutdown = CancellationToken::new();
        let (token, of_gateway) = (shutdown.clone(), args.clone());
        let runtime = options.killable.then(own_runtime);
        let handle = runtime.as_ref().map_or_else(Handle::current, |own| own.handle().clone());
        let gateway = handle
            .spawn(async move { run_on(of_gateway, ports, options.tracer, token).await.unwrap() });
        Self {
            args,
            runtime,
            address,
            model,
            model_address,
            metrics,
            socket,
            shutdown,
            _directory: directory,
            _tasks: vec![serving, gateway],
        }
    }

    /// Ends the gateway with everything that it holds, and starts it again at the same addresses.
    pub(super) async fn restart(&mut self) {
        let killed = self.runtime.take().expect("the rig is killable");
        killed.shutdown_background();
        let listener = eventually(async || TcpListener::bind(self.address).await.ok()).await;
        let (args, token, runtime) = (self.args.clone(), self.shutdown.clone(), own_runtime());
        let ports = Ports { sandboxes: listener, scrapes: None };
        runtime.spawn(async move { run_on(args, ports, Tracer::off(), token).await.unwrap() });
        self.runtime = Some(runtime);
    }

    /// Connects a supervisor that has said Hello and nothing else.
    pub(super) async fn connect(&self) -> Supervisor {
        let stream = eventually(async || UnixStream::connect(&self.socket).await.ok()).await;
        Supervisor::open(stream).await
    }

    /// A supervisor with one synced attempt.
    pub(super) async fn with_attempt(&self, grant: Grant) -> Supervisor {
        self.with_credentials(grant, credentials()).await
    }

    /// The same with credentials of the test's own.
    pub(super) async fn with_credentials(
        &self,
        grant: Grant,
        credentials: Vec<Credential>,
    ) -> Supervisor {
        let supervisor = self.connect().await;
        supervisor.say(ToGateway::Register(Box::new(grant.clone()))).await;
        let run = grant.assignment.key();
        supervisor.say(ToGateway::Credentials { run, credentials }).await;
        supervisor.say(ToGateway::Synced).await;
        self.settled().await;
        supervisor
    }

    /// Waits until the gateway is synced: an unknown token gets 401 from then on.
    pub(super) async fn settled(&self) {
        eventually(async || {
            let answer = self.call(POD, "GET", "/v1/step", &bearer("nobody"), "").await;
            (answer.status == 401).then_some(())
        })
        .await;
    }

    /// Redeems for an attempt made by [`grant`].
    pub(super) async fn redeem(&self, uid: &str) -> Redeemed {
        let answer = self.try_redeem(POD, uid, NONCE).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    pub(super) async fn try_redeem(&self, source: IpAddr, uid: &str, nonce: &str) -> Answer {
        let body = serde_json::json!({ "nonce": nonce }).to_string();
        self.call(source, "POST", "/v1/redeem", &bearer(&one_time(uid)), &body).await
    }

    /// A redemption with the number that its runner gives it.
    pub(super) async fn redeem_by_call(&self, uid: &str, call: u32) -> Answer {
        let body = serde_json::json!({ "nonce": NONCE, "call": call }).to_string();
        self.call(POD, "POST", "/v1/redeem", &bearer(&one_time(uid)), &body).await
    }

    /// Redeems, opens the gate, and waits until it is open.
    pub(super) async fn running(&self, supervisor: &Supervisor, uid: &str) -> Redeemed {
        let tokens = self.redeem(uid).await;
        supervisor.open_gate(uid, POD).await;
        let answer = self
            .call(POD, "POST", "/v1/gate", &bearer(&tokens.runner_token), "{\"sandbox\":{}}")
            .await;
        assert!(answer.text().contains("\"open\""), "{answer:?}");
        tokens
    }

    /// One request on a connection of its own.
    pub(super) async fn call(
        &self,
        source: IpAddr,
        method: &str,
        path: &str,
        headers: &[(&str, String)],
        body: &str,
    ) -> Answer {
        let response = self.open(source, method, path, headers, body).await;
        let (parts, body) = response.into_parts();
        let body = timeout(PATIENCE, body.collect()).await.unwrap();
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// One request whose answer is read by the caller.
    pub(super) async fn open(
        &self,
        source: IpAddr,
        method: &str,
        path: &str,
        headers: &[(&str, String)],
        body: &str,
    ) -> Response<Incoming> {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(self.dial(source).await))
                .await
                .unwrap();
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder().method(method).uri(path).header("host", "gateway");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        timeout(PATIENCE * 3, sender.send_request(request)).await.unwrap().unwrap()
    }

    pub(super) async fn dial(&self, source: IpAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((source, 0).into()).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    /// A model call with the agent's token.
    pub(super) async fn model_call(&self, tokens: &Redeemed) -> Answer {
        self.call(POD, "POST", "/llm/v1/messages?beta=true", &bearer(&tokens.agent_token), PROMPT)
            .await
    }
}

/// A model request.
pub(super) const PROMPT: &str = r#"{"model":"claude-x","max_tokens":10,"messages":[]}"#;

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// The supervisor's end of the link: acknowledges what it gets unless told to wait.
#[derive(Debug)]
pub(super) struct Supervisor {
    outgoing: mpsc::Sender<ToGateway>,
    pub(super) messages: watch::Receiver<Vec<FromGateway>>,
    acks: watch::Sender<bool>,
}

impl Supervisor {
    async fn open(stream: UnixStream) -> Self {
        let (mut sink, mut source) = frame::framed::<FromGateway>(stream).split();
        let (outgoing, mut queue) = mpsc::channel(256);
        let (messages_sender, messages) = watch::channel(Vec::new());
        let (acks, mut acking) = watch::channel(true);
        let ack_sender = outgoing.clone();
        tokio::spawn(async move {
            while let Some(message) = queue.recv().await {
                if sink.send(message).await.is_err() {
                    break;
                }
            }
        });
        tokio::spawn(async move {
            while let Some(Ok(message)) = source.next().await {
                messages_sender.send_modify(|all: &mut Vec<FromGateway>| all.push(message.clone()));
                if let FromGateway::Durable { id, .. } = message {
                    if acking.wait_for(|on| *on).await.is_err() {
                        break;
                    }
                    let _ = ack_sender.send(ToGateway::Ack { id }).await;
                }
            }
        });
        let supervisor = Self { outgoing, messages, acks };
        supervisor.say(ToGateway::Hello { version: LINK_VERSION }).await;
        supervisor
    }

    pub(super) async fn say(&self, message: ToGateway) {
        self.outgoing.send(message).await.unwrap();
    }

    /// Whether messages are acknowledged from here on.
    pub(super) fn set_acks(&self, on: bool) {
        self.acks.send_replace(on);
    }

    pub(super) async fn open_gate(&self, uid: &str, pod_ip: IpAddr) {
        self.say(ToGateway::OpenGate { run: key(uid), pod_ip, remaining_millis: 60_000 }).await;
    }

    /// Waits for a message that `pick` takes something out of.
    pub(super) async fn wait<T>(&self, pick: impl Fn(&FromGateway) -> Option<T>) -> T {
        let mut messages = self.messages.clone();
        let found = messages.wait_for(|all| all.iter().any(|message| pick(message).is_some()));
        let all =
            timeout(PATIENCE, found).await.expect("the message comes in time").unwrap().clone();
        all.iter().rev().find_map(pick).unwrap()
    }

    pub(super) async fn redemption(&self) -> Redemption {
        self.wait(|message| match message {
            FromGateway::Durable { event: DurableEvent::Redeemed(redemption), .. } => {
                Some(redemption.clone())
            }
            _ => None,
        })
        .await
    }

    /// Waits until the counters say what `enough` wants.
    pub(super) async fn counters(
        &self,
        enough: impl Fn(&Usage, &[(String, String)]) -> bool,
    ) -> Usage {
        self.wait(|message| match message {
            FromGateway::Counters { usage, refusals, .. } => {
                let refusals: Vec<_> = refusals
                    .iter()
                    .map(|refusal| (refusal.kind.clone(), refusal.target.clone()))
                    .collect();
                enough(usage, &refusals).then_some(*usage)
            }
            _ => None,
        })
        .await
    }

    /// Waits until a refusal of `kind` with `target` in its target has been reported.
    pub(super) async fn refusal(&self, kind: &str, target: &str) {
        self.counters(|_, refusals| {
            refusals.iter().any(|(found, at)| found == kind && at.contains(target))
        })
        .await;
    }
}

/// Polls until there is a value.
pub(super) async fn eventually<T>(mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    timeout(PATIENCE, async {
        loop {
            if let Some(value) = probe().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the condition comes true in time")
}

pub(super) fn bearer(token: &str) -> Vec<(&'static str, String)> {
    vec![("authorization", format!("Bearer {token}"))]
}

/// `Proxy-Authorization` as clients send it for a proxy URL with a password.
pub(super) fn proxy(token: &str) -> Vec<(&'static str, String)> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    vec![("proxy-authorization", format!("Basic {}", STANDARD.encode(format!("agent:{token}"))))]
}

pub(super) fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap()
}

pub(super) fn one_time(uid: &str) -> String {
    format!("one-time-{uid}")
}

pub(super) fn key(uid: &str) -> RunKey {
    RunKey { uid: uid.into(), attempt: Attempt(1) }
}

pub(super) fn credentials() -> Vec<Credential> {
    vec![Credential {
        id: "model".to_owned(),
        purpose: "model".to_owned(),
        host: "api.anthropic.com".to_owned(),
        scheme: "api-key".to_owned(),
        value: Secret::new(KEY),
    }]
}

/// The grant of a fresh attempt.
pub(super) fn grant(uid: &str, step: StepName, budget: Option<TaskBudget>) -> Grant {
    let assignment = Assignment {
        run: RunRef { namespace: "n".into(), name: format!("run-{uid}"), uid: uid.into() },
        task: TaskRef { name: "task".into(), uid: "0a1b2c".into() },
        step,
        attempt: Attempt(1),
        epoch: Epoch(1),
        node: "node".into(),
        timeout_seconds: 60,
        start_deadline_seconds: 30,
        grace_seconds: 10,
        pod: PodRequest { node_selector: BTreeMap::new(), ..PodRequest::default() },
        work: Work {
            prompt: "do".into(),
            plan: None,
            feedback: None,
            agent: AgentKind::ClaudeCode,
            model: None,
            max_turns: None,
            test_command: None,
            issue: None,
            unverified: false,
        },
        repository: Repository {
            name: "main".into(),
            url: "https://github.com/o/r.git".into(),
            base_branch: "main".into(),
            work_branch: "ai/task".into(),
            base_commit: None,
            head_commit: None,
        },
        sandbox: SandboxPolicy::default(),
        budget,
        held: false,
    };
    Grant {
        assignment,
        one_time_hash: sha256_hex(one_time(uid).as_bytes()),
        redemption: None,
        open_remaining_millis: None,
        usage: Usage::default(),
        refusals: vec![],
        next_event: 0,
        canary: None,
        probe: None,
    }
}
