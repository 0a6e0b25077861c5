//! Requests that two parsers could read differently, written byte by byte.

use std::time::Duration;

use agent_operator::domain::StepName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::rig::{POD, Rig, grant};

async fn send(rig: &Rig, request: &str) -> String {
    let mut stream = rig.dial(POD).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_millis(500), stream.read_to_end(&mut answer)).await;
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

/// What the gateway answers to `request`. It may wait for more of a torn one, so silence is not waited
/// out; behind a first answer there may come another one at once.
async fn exchange(rig: &Rig, request: &[u8], mut patience: Duration) -> Vec<u8> {
    let mut stream = rig.dial(POD).await;
    // It may have closed already: there is nothing more to say to it then.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    loop {
        match tokio::time::timeout(patience, stream.read_buf(&mut answer)).await {
            Ok(Ok(1..)) => patience = Duration::from_millis(2),
            _ => return answer,
        }
    }
}

#[test]
fn fuzz_no_head_of_a_request_gets_past_the_gateway_without_a_token() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let rig = runtime.block_on(Rig::start());
    let supervisor = runtime.block_on(rig.with_attempt(grant("a", StepName::Implement, None)));
    let corpus = [
        "POST /llm/v1/messages HTTP/1.1\r\nHost: g\r\nX-Api-Key: wrong\r\nContent-Length: 2\r\n\r\n{}",
        "POST /v1/result HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer wrong\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "GET /git/main.git/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: g\r\nAuthorization: Basic eDp5\r\n\r\n",
        "CONNECT packages.example:443 HTTP/1.1\r\nHost: packages.example:443\r\nProxy-Authorization: Basic eDp5\r\n\r\n",
        "GET /v1/step HTTP/1.1\r\nHost: g\r\n\r\nGET /v1/orders HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n",
    ]
    .map(|text| text.as_bytes().to_vec());
    let (mut refused, mut silent) = (0_u32, 0_u32);
    agent_operator_doubles::fuzz::fuzz(&corpus, |request| {
        let answer = runtime.block_on(exchange(&rig, request, Duration::from_millis(30)));
        let text = String::from_utf8_lossy(&answer);
        silent += u32::from(answer.is_empty());
        assert!(answer.is_empty() || text.starts_with("HTTP/1."), "{text}");
        for line in text.lines().filter(|line| line.starts_with("HTTP/1.")) {
            // Only what says nothing is answered with success, see `Route::needs`.
            let status = line.split(' ').nth(1).unwrap();
            refused += u32::from(status.starts_with('4'));
            assert!(!status.starts_with('2') || text.contains("content-length: 0"), "{text}");
            assert!(!status.starts_with('5'), "{text}");
        }
    });
    println!("{refused} refused, {silent} without an answer");
    assert!(refused > 5, "{refused} refused, {silent} without an answer");
    assert!(rig.model.seen.lock().unwrap().is_empty());
    let health = b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n";
    let good = runtime.block_on(exchange(&rig, health, Duration::from_secs(10)));
    assert!(good.starts_with(b"HTTP/1.1 200"), "it still serves");
    drop(supervisor);
}
