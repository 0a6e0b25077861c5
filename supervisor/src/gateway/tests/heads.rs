//! Damaged heads of requests, over real connections.

use std::time::Duration;

use agent_operator::domain::StepName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::rig::{POD, Rig, grant};

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
