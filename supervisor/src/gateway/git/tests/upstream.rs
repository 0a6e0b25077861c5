//! A real upstream for tests: `git http-backend` behind HTTP Basic authentication, and a sandbox's
//! view of the gateway, both on loopback ports that the kernel chooses.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
};

use agent_operator::domain::Credential;
use agent_operator_doubles::git_http;
use axum::{Router, body::Body, extract::State, response::Response};
use base64::Engine as _;
use http::{Request, StatusCode, header};
use tokio::task::JoinSet;

use crate::gateway::git::{GitService, RepositoryGrant};

/// The token that the upstream accepts; searched for where it must not be.
pub(in crate::gateway) const TOKEN: &str = "canary-7f3a9e51";

/// A token that may read and not write.
pub(in crate::gateway) const READ_TOKEN: &str = "canary-read-only";

/// Requests of sandboxes, of all tests, that arrived compressed.
pub(in crate::gateway) static COMPRESSED_REQUESTS: AtomicUsize = AtomicUsize::new(0);

/// A served directory of bare repositories.
pub(in crate::gateway) struct TestUpstream {
    pub(in crate::gateway) root: PathBuf,
    pub(in crate::gateway) address: SocketAddr,
    pub(in crate::gateway) seen: Arc<Seen>,
    _server: JoinSet<()>,
}

/// What the upstream was asked, and how it shall behave.
#[derive(Debug, Default)]
pub(in crate::gateway) struct Seen {
    pub(in crate::gateway) requests: AtomicUsize,
    /// Answer everything with this status; 0: as usual.
    pub(in crate::gateway) fail_with: AtomicU16,
    /// Places of `/proc` where the token was seen while git was talking to the upstream.
    pub(in crate::gateway) leaks: Mutex<Vec<String>>,
    /// Git processes that were looked at.
    pub(in crate::gateway) inspected: AtomicUsize,
    /// Run once when the next push is about to be taken, in the repository's directory.
    pub(in crate::gateway) before_push: Mutex<Option<String>>,
}

#[derive(Clone)]
struct Served {
    root: PathBuf,
    seen: Arc<Seen>,
}

impl TestUpstream {
    /// Serves `root`.
    pub(in crate::gateway) async fn start(root: PathBuf) -> Self {
        let seen = Arc::new(Seen::default());
        let shared = Served { root: root.clone(), seen: Arc::clone(&seen) };
        let router = Router::new().fallback(backend).with_state(shared);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { root, address, seen, _server: server }
    }
}

async fn backend(State(served): State<Served>, request: Request<Body>) -> Response {
    served.seen.requests.fetch_add(1, Ordering::SeqCst);
    let status = served.seen.fail_with.load(Ordering::SeqCst);
    if status != 0 {
        return answer(StatusCode::from_u16(status).unwrap(), "");
    }
    look_for_leaks(&served.seen);
    let given = request.headers().get(header::AUTHORIZATION).cloned();
    let is = |token: &str| {
        let pair = format!("x-access-token:{token}");
        let expected = base64::engine::general_purpose::STANDARD.encode(pair);
        given.as_ref().is_some_and(|given| *given == format!("Basic {expected}"))
    };
    let writes = request.uri().to_string().contains("git-receive-pack");
    if is(READ_TOKEN) && writes {
        return answer(StatusCode::FORBIDDEN, "");
    }
    if !is(TOKEN) && !is(READ_TOKEN) {
        return answer(StatusCode::UNAUTHORIZED, "Basic realm=\"test\"");
    }
    if request.uri().path().ends_with("/git-receive-pack") {
        let hook = served.seen.before_push.lock().unwrap().take();
        if let Some(script) = hook {
            run(&served.root, "sh", &["-ec", &script]);
        }
    }
    git_http::backend(&served.root, request).await
}

fn answer(status: StatusCode, challenge: &'static str) -> Response {
    Response::builder()
        .status(status)
        .header(header::WWW_AUTHENTICATE, challenge)
        .body(Body::empty())
        .unwrap()
}

/// Looks through the arguments and environments of all our descendants that are git.
fn look_for_leaks(seen: &Seen) {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let path = entry.path();
        let command = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        if !command.starts_with("git") && !command.starts_with("sh") {
            continue;
        }
        seen.inspected.fetch_add(1, Ordering::SeqCst);
        for file in ["cmdline", "environ"] {
            let bytes = std::fs::read(path.join(file)).unwrap_or_default();
            if String::from_utf8_lossy(&bytes).contains(TOKEN) {
                seen.leaks.lock().unwrap().push(path.join(file).display().to_string());
            }
        }
    }
}

/// Serves the attempt's git routes without authentication, as the gateway does after it.
pub(in crate::gateway) async fn serve_gateway(
    service: GitService,
    grant: RepositoryGrant,
    credential: Option<Credential>,
) -> (SocketAddr, JoinSet<()>) {
    let router = Router::new().fallback(move |request: Request<Body>| {
        let packed = request.headers().contains_key(header::CONTENT_ENCODING);
        COMPRESSED_REQUESTS.fetch_add(usize::from(packed), Ordering::SeqCst);
        let (service, grant, credential) = (service.clone(), grant.clone(), credential.clone());
        async move { service.serve(&grant, credential.as_ref(), request).await }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = JoinSet::new();
    server.spawn(async move { axum::serve(listener, router).await.unwrap() });
    (address, server)
}

/// Runs a program to a good end and gives its output, trimmed. Blocking: for set-up only.
pub(in crate::gateway) fn run(directory: &Path, program: &str, args: &[&str]) -> String {
    let output = client(directory, program, args);
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Runs a program as a user of git would, with an identity and no configuration of the machine.
pub(in crate::gateway) fn client(
    directory: &Path,
    program: &str,
    args: &[&str],
) -> std::process::Output {
    std::process::Command::new(program)
        .args(args)
        .current_dir(directory)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("LC_ALL", "C")
        .envs([("GIT_AUTHOR_NAME", "a"), ("GIT_AUTHOR_EMAIL", "a@example.com")])
        .envs([("GIT_COMMITTER_NAME", "a"), ("GIT_COMMITTER_EMAIL", "a@example.com")])
        .output()
        .unwrap()
}

/// The same without blocking the servers of this process.
pub(in crate::gateway) async fn client_async(
    directory: &Path,
    args: &[&str],
) -> std::process::Output {
    let directory = directory.to_owned();
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    tokio::task::spawn_blocking(move || {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        client(&directory, "git", &args)
    })
    .await
    .unwrap()
}
