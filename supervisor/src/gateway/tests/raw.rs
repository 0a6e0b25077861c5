//! Requests that two parsers could read differently, written byte by byte.

use agent_operator::domain::StepName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::rig::{POD, Rig, grant};

async fn send(rig: &Rig, request: &str) -> String {
    let mut stream = rig.dial(POD).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(
        std::time::Duration::from_millis(500),
        stream.read_to_end(&mut answer),
    )
    .await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn ambiguous_requests_are_refused_before_any_route() {
    let rig = Rig::start().await;
    let supervisor = rig.with_attempt(grant("a", StepName::Implement, None)).await;
    let tokens = rig.running(&supervisor, "a").await;
    let head = format!(
        "POST /llm/v1/messages HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {}\r\n",
        tokens.agent_token
    );
    let smuggled = "0\r\n\r\nPOST /llm/v1/files HTTP/1.1\r\nHost: g\r\n\r\n";
    let prompt = super::rig::PROMPT;
    for (what, rest) in [
        ("two lengths", format!("Content-Length: 5\r\nContent-Length: 50\r\n\r\n{prompt}")),
        (
            "both framings",
            format!("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{smuggled}"),
        ),
        ("a list of lengths", format!("Content-Length: 5, 50\r\n\r\n{prompt}")),
        ("a signed length", format!("Content-Length: +50\r\n\r\n{prompt}")),
        ("a hidden coding", format!("Transfer-Encoding: xchunked\r\n\r\n{smuggled}")),
        ("chunked not last", format!("Transfer-Encoding: chunked, identity\r\n\r\n{smuggled}")),
        ("a space before the colon", format!("Content-Length : 50\r\n\r\n{prompt}")),
        ("a folded header", format!("X-A: b\r\n c\r\nContent-Length: 50\r\n\r\n{prompt}")),
        ("a bad chunk size", "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n".to_owned()),
        ("two hosts", format!("Host: h\r\nContent-Length: 50\r\n\r\n{prompt}")),
        ("an upgrade", "Connection: upgrade\r\nUpgrade: websocket\r\n\r\n".to_owned()),
        ("many headers", format!("{}\r\n", "X-A: b\r\n".repeat(200))),
        ("a huge header", format!("X-A: {}\r\n\r\n", "b".repeat(128 * 1024))),
    ] {
        let answer = send(&rig, &format!("{head}{rest}")).await;
        let refused = answer.is_empty()
            || answer.starts_with("HTTP/1.1 400")
            || answer.starts_with("HTTP/1.1 408")
            || answer.starts_with("HTTP/1.1 431");
        assert!(refused, "{what}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), answer.len().min(1), "{what}: {answer}");
    }
    assert!(rig.model.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn requests_to_other_hosts_and_odd_versions_are_refused() {
    let rig = Rig::start().await;
    let _supervisor = rig.with_attempt(grant("a", StepName::Implement, None)).await;
    for request in [
        "GET http://169.254.169.254/latest HTTP/1.1\r\nHost: g\r\n\r\n",
        "POST http://api.anthropic.com/v1/messages HTTP/1.1\r\nHost: g\r\nContent-Length: 0\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "CONNECT x:443 HTTP/1.1\r\nHost: g\r\nContent-Length: 3\r\n\r\nabc",
        "GET /v1/step\r\n\r\n",
        "GET /v1/step HTTP/1.1\nHost: g\nX: \u{1}\n\n",
    ] {
        let answer = send(&rig, request).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{request:?}: {answer}");
    }
}
