//! An upstream of git, and a long way to it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use agent_operator_doubles::git_http;
use axum::{Router, body::Body};
use http::Request;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::Instant,
};

/// One way; there and back is 50 ms.
const DELAY: Duration = Duration::from_millis(25);
/// Bytes in a piece.
const PIECE: usize = 64 * 1024;
/// Pieces under way in one direction of a connection: with the delay, 40 MiB/s, a good link.
const UNDER_WAY: usize = 16;

/// Makes a bare repository `o/r.git` of so many files of a MiB that no compression helps.
pub async fn repository(root: &Path, files: u32) {
    let (work, bare) = (root.join("work"), root.join("o/r.git"));
    std::fs::create_dir_all(&work).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    for number in 0..files {
        let mut bytes = vec![0; 1 << 20];
        random.fill(&mut bytes);
        std::fs::write(work.join(format!("file-{number}")), bytes).unwrap();
    }
    let bare = bare.display().to_string();
    for arguments in [
        &["init", "--quiet", "--initial-branch=main"][..],
        &["add", "."],
        &[
            "-c",
            "user.name=b",
            "-c",
            "user.email=b@example.com",
            "commit",
            "--quiet",
            "-m",
            "files",
        ],
        &["clone", "--quiet", "--bare", ".", &bare],
        &["-C", &bare, "repack", "-a", "-d", "--quiet"],
    ] {
        let mut git = tokio::process::Command::new("git");
        let done = git.args(arguments).current_dir(&work).status().await.unwrap();
        assert!(done.success(), "git {arguments:?}");
    }
    std::fs::remove_dir_all(work).unwrap();
}

/// `git http-backend` behind HTTP.
pub struct Upstream;

impl Upstream {
    pub async fn start(root: PathBuf, around: &mut JoinSet<()>) -> SocketAddr {
        let router = Router::new().fallback(move |request: Request<Body>| {
            let root = root.clone();
            async move { git_http::backend(&root, request).await }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        around.spawn(async move { axum::serve(listener, router).await.unwrap() });
        address
    }
}

/// A proxy that holds everything back, in both directions.
pub struct Far;

impl Far {
    pub async fn start(to: SocketAddr, around: &mut JoinSet<()>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        around.spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(to).await else { return };
                    let ((from_near, to_near), (from_far, to_far)) =
                        (near.into_split(), far.into_split());
                    tokio::join!(carry(from_near, to_far), carry(from_far, to_near));
                });
            }
        });
        address
    }
}

async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let (sender, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let take = async move {
        loop {
            let mut piece = vec![0; PIECE];
            match from.read(&mut piece).await {
                Ok(count) if count > 0 => piece.truncate(count),
                _ => return,
            }
            if sender.send((Instant::now() + DELAY, piece)).await.is_err() {
                return;
            }
        }
    };
    let give = async move {
        while let Some((due, piece)) = under_way.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(take, give);
}
