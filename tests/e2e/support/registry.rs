//! An image registry that wants a password.

use std::{fs, path::PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::{env, images, release::must, task::unique};

/// User of the registry.
const USER: &str = "robot";
/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// What it says to strangers.
const REFUSAL: &str = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;

/// The local registry behind a password, reachable from the nodes.
pub(crate) struct PrivateRegistry {
    pub(crate) address: String,
    pub(crate) password: String,
    hosts: Vec<PathBuf>,
    server: JoinHandle<()>,
}

impl PrivateRegistry {
    pub(crate) async fn start() -> Self {
        let open = env("AO_REGISTRY");
        let host = open.split(':').next().expect("a host");
        let listener = TcpListener::bind((host, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let password = unique("password");
        let known = STANDARD.encode(format!("{USER}:{password}"));
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // What a client does wrong ends its own connection.
                tokio::spawn(serve(stream, open.clone(), known.clone()));
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
        Self { address, password, hosts, server }
    }

    /// The reference of one of our images here.
    pub(crate) fn image(&self, name: &str) -> String {
        let open = images::of_release(name);
        let (_, path) = open.split_once('/').expect("a registry");
        format!("{}/{path}", self.address)
    }

    /// Makes a Secret with which this registry may be pulled from.
    pub(crate) async fn pull_secret(&self, namespace: &str, name: &str) {
        let server = format!("--docker-server={}", self.address);
        let user = format!("--docker-username={USER}");
        let password = format!("--docker-password={}", self.password);
        let line = ["-n", namespace, "create", "secret", "docker-registry", name];
        must("kubectl", &[&line[..], &[&server, &user, &password]].concat()).await;
    }
}

impl Drop for PrivateRegistry {
    fn drop(&mut self) {
        self.server.abort();
        for folder in &self.hosts {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

/// Passes a connection on whose first request has the right credentials, and refuses any other.
async fn serve(mut stream: TcpStream, open: String, known: String) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let wanted = format!("Basic {known}");
    let text = String::from_utf8_lossy(&head);
    let mut headers = text.lines().filter_map(|line| line.split_once(": "));
    if headers.any(|(name, value)| name.eq_ignore_ascii_case("authorization") && value == wanted) {
        let mut registry = TcpStream::connect(open).await?;
        registry.write_all(&head).await?;
        copy_bidirectional(&mut stream, &mut registry).await?;
        return Ok(());
    }
    let answer = format!(
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"private\"\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{REFUSAL}",
        REFUSAL.len()
    );
    stream.write_all(answer.as_bytes()).await
}
