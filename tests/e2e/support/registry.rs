//! Image registries that want a password, or patience.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use super::{env, images, release::must, task::unique};

/// User of the registry.
const USER: &str = "robot";
/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// A pod of a busy machine until its image is pulled.
const ASKED_LIMIT: Duration = Duration::from_mins(2);
/// What it says to strangers.
const REFUSAL: &str = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
/// What it says to clients that ask too often.
const LIMIT_REACHED: &str =
    r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit"}]}"#;

/// What a registry in front of the local one wants of its clients.
enum Rule {
    /// These credentials, as they stand in the header.
    Password(String),
    /// Patience, while this is set.
    Limit(Arc<AtomicBool>),
    /// To wait without an answer, until this says so.
    Stall(watch::Sender<Stall>),
}

/// How far a registry has come that does not answer.
#[derive(Clone, Copy, Default)]
struct Stall {
    asked: bool,
    over: bool,
}

/// Something in front of the local registry that the nodes pull from.
struct Front {
    address: String,
    hosts: Vec<PathBuf>,
    server: JoinHandle<()>,
}

impl Front {
    async fn start(rule: Rule) -> Self {
        let open = env("AO_REGISTRY");
        let host = open.split(':').next().expect("a host");
        let listener = TcpListener::bind((host, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let rule = Arc::new(rule);
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // What a client does wrong ends its own connection.
                tokio::spawn(serve(stream, open.clone(), Arc::clone(&rule)));
            }
        });
        let toml = format!(
            "server = \"http://{address}\"\n[host.\"http://{address}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
        );
        // The nodes' runtimes read these folders at each pull; others stay as they are.
        let mut hosts = Vec::new();
        for node in fs::read_dir(env("AO_STATE")).expect("the state folder").flatten() {
            let registry = node.path().join("registry");
            if registry.join(env("AO_REGISTRY")).is_dir() {
                let folder = registry.join(&address);
                fs::create_dir_all(&folder).expect("a folder for the registry");
                fs::write(folder.join("hosts.toml"), &toml).expect("its settings");
                hosts.push(folder);
            }
        }
        assert!(!hosts.is_empty(), "no node's registry folder was found");
        Self { address, hosts, server }
    }

    /// The reference of one of our images here.
    fn image(&self, name: &str) -> String {
        let open = images::of_release(name);
        let (_, path) = open.split_once('/').expect("a registry");
        format!("{}/{path}", self.address)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.server.abort();
        for folder in &self.hosts {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

/// The local registry behind a password, reachable from the nodes.
pub(crate) struct PrivateRegistry {
    front: Front,
    pub(crate) password: String,
}

impl PrivateRegistry {
    pub(crate) async fn start() -> Self {
        let password = unique("password");
        let known = STANDARD.encode(format!("{USER}:{password}"));
        let front = Front::start(Rule::Password(format!("Basic {known}"))).await;
        Self { front, password }
    }

    pub(crate) fn address(&self) -> &str {
        &self.front.address
    }

    /// The reference of one of our images here.
    pub(crate) fn image(&self, name: &str) -> String {
        self.front.image(name)
    }

    /// Makes a Secret with which this registry may be pulled from.
    pub(crate) async fn pull_secret(&self, namespace: &str, name: &str) {
        let server = format!("--docker-server={}", self.front.address);
        let user = format!("--docker-username={USER}");
        let password = format!("--docker-password={}", self.password);
        let line = ["-n", namespace, "create", "secret", "docker-registry", name];
        must("kubectl", &[&line[..], &[&server, &user, &password]].concat()).await;
    }
}

/// The local registry, whose clients have used up what they may ask for until somebody relents.
pub(crate) struct LimitedRegistry {
    front: Front,
    limits: Arc<AtomicBool>,
}

impl LimitedRegistry {
    pub(crate) async fn start() -> Self {
        let limits = Arc::new(AtomicBool::new(true));
        let front = Front::start(Rule::Limit(Arc::clone(&limits))).await;
        Self { front, limits }
    }

    /// The reference of one of our images here.
    pub(crate) fn image(&self, name: &str) -> String {
        self.front.image(name)
    }

    /// From now on it serves.
    pub(crate) fn relent(&self) {
        self.limits.store(false, Ordering::Relaxed);
    }
}

/// The local registry, which takes requests and lets them wait until somebody wakes it.
pub(crate) struct StalledRegistry {
    front: Front,
    stall: watch::Sender<Stall>,
}

impl StalledRegistry {
    pub(crate) async fn start() -> Self {
        let stall = watch::Sender::new(Stall::default());
        let front = Front::start(Rule::Stall(stall.clone())).await;
        Self { front, stall }
    }

    /// The reference of one of our images here.
    pub(crate) fn image(&self, name: &str) -> String {
        self.front.image(name)
    }

    /// Comes back once a node waits for an answer.
    pub(crate) async fn asked(&self) {
        let mut stall = self.stall.subscribe();
        let asked = tokio::time::timeout(ASKED_LIMIT, stall.wait_for(|stall| stall.asked)).await;
        assert!(matches!(asked, Ok(Ok(_))), "no node pulls");
    }

    /// From now on it answers, also those that wait.
    pub(crate) fn wake(&self) {
        self.stall.send_modify(|stall| stall.over = true);
    }
}

/// Passes a connection on whose first request the rule allows, and refuses any other.
async fn serve(mut stream: TcpStream, open: String, rule: Arc<Rule>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let text = String::from_utf8_lossy(&head);
    let mut headers = text.lines().filter_map(|line| line.split_once(": "));
    let (allowed, status, body) = match &*rule {
        Rule::Password(known) => (
            headers
                .any(|(name, value)| name.eq_ignore_ascii_case("authorization") && value == known),
            "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"private\"",
            REFUSAL,
        ),
        Rule::Limit(limits) => (
            !limits.load(Ordering::Relaxed),
            "429 Too Many Requests\r\nRetry-After: 1",
            LIMIT_REACHED,
        ),
        Rule::Stall(stall) => {
            stall.send_modify(|stall| stall.asked = true);
            let woken = stall.subscribe().wait_for(|stall| stall.over).await.is_ok();
            (woken, "503 Service Unavailable", "")
        }
    };
    if allowed {
        let mut registry = TcpStream::connect(open).await?;
        registry.write_all(&head).await?;
        copy_bidirectional(&mut stream, &mut registry).await?;
        return Ok(());
    }
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await
}
