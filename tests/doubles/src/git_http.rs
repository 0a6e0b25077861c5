//! An upstream of git: `git http-backend` behind HTTP, as a forge has it.

use std::{io, path::Path, process::Stdio};

use axum::{
    body::{Body, Bytes, to_bytes},
    http::{Request, Response},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{ChildStdout, Command},
};

/// Largest body of a request.
const BODY_BYTES_MAX: usize = 64 << 20;
/// Bytes of the answer in a piece.
const PIECE_BYTES: usize = 64 << 10;

/// Answers one request from the bare repositories below `root`. Who asks is not looked at. The answer ends when git has.
///
/// # Panics
/// When git does not run, or does not answer as a CGI program does: the test that uses it is broken then.
pub async fn backend(root: &Path, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let header = |name: &str| {
        let value = parts.headers.get(name).map(|value| value.to_str().expect("a header is text"));
        value.unwrap_or_default().to_owned()
    };
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        // Nobody without a name may push.
        .env("REMOTE_USER", "tester")
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("PATH_INFO", parts.uri.path())
        .env("QUERY_STRING", parts.uri.query().unwrap_or(""))
        .env("CONTENT_TYPE", header("content-type"))
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("HTTP_GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("git runs");
    let (mut stdin, mut stdout) =
        (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    // Beside the answer: git may begin it before it has read everything.
    tokio::spawn(async move {
        if let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await {
            let _ = stdin.write_all(&body).await;
        }
    });
    let head = head(&mut stdout).await.expect("git answers");
    let mut response = Response::builder();
    for line in head.trim().lines() {
        let (name, value) = line.split_once(": ").expect("a header of CGI");
        response = match name {
            "Status" => response.status(value.get(..3).unwrap_or(value)),
            _ => response.header(name, value),
        };
    }
    let pieces = futures::stream::unfold((stdout, child), |(mut stdout, mut child)| async move {
        let mut piece = vec![0; PIECE_BYTES];
        let count = stdout.read(&mut piece).await.unwrap_or(0);
        if count == 0 {
            let _ = child.wait().await;
            return None;
        }
        piece.truncate(count);
        Some((Ok::<_, io::Error>(Bytes::from(piece)), (stdout, child)))
    });
    response.body(Body::from_stream(pieces)).expect("an answer of HTTP")
}

/// Everything before the empty line.
async fn head(stdout: &mut ChildStdout) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stdout.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
