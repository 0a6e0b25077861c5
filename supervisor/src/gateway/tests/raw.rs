//! Requests that two parsers could read differently, written byte by byte.

use agent_operator::domain::StepName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    rig::{POD, Rig, eventually, grant},
    telemetry::page,
};

async fn send(rig: &Rig, request: &str) -> String {
    let mut stream = rig.dial(POD).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ =
        tokio::time::timeout(std::time::Duration::from_secs(1), stream.read_to_end(&mut answer))
            .await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// How many requests were refused for their form.
async fn refused_for_form(rig: &Rig) -> u64 {
    let page = page(rig).await;
    let count = |kind: &str| {
        let start = format!("agent_operator_gateway_refusals_total{{kind=\"{kind}\"}} ");
        let count = page.lines().find_map(|line| line.strip_prefix(&start)).unwrap();
        count.parse::<u64>().unwrap()
    };
    count("protocol") + count("limit")
}

/// Waits until so many were.
async fn counted(rig: &Rig, what: &str, refused: u64) {
    println!("{refused}: {what}");
    let found = eventually(async || {
        let found = refused_for_form(rig).await;
        (found >= refused).then_some(found)
    })
    .await;
    assert_eq!(found, refused, "{what}");
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "one table")]
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
    let chunked = format!("{:x}\r\n{prompt}\r\n0\r\n\r\n", prompt.len());
    let mut count = 0;
    for (what, rest) in [
        ("two lengths", format!("Content-Length: 5\r\nContent-Length: 50\r\n\r\n{prompt}")),
        ("a list of lengths", format!("Content-Length: 5, 50\r\n\r\n{prompt}")),
        ("a signed length", format!("Content-Length: +50\r\n\r\n{prompt}")),
        ("a hidden coding", format!("Transfer-Encoding: xchunked\r\n\r\n{smuggled}")),
        ("chunked not last", format!("Transfer-Encoding: chunked, identity\r\n\r\n{smuggled}")),
        ("a space before the colon", format!("Content-Length : 50\r\n\r\n{prompt}")),
        ("a folded header", format!("X-A: b\r\n c\r\nContent-Length: 50\r\n\r\n{prompt}")),
        ("a bad chunk size", "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n".to_owned()),
        ("two hosts", format!("Host: h\r\nContent-Length: 50\r\n\r\n{prompt}")),
        ("an upgrade", "Connection: upgrade\r\nUpgrade: websocket\r\n\r\n".to_owned()),
        (
            "two lengths that nearly agree",
            format!("Content-Length: 50\r\nContent-Length: 51\r\n\r\n{prompt}"),
        ),
        ("a length in hex", format!("Content-Length: 0x32\r\n\r\n{prompt}")),
        ("a negative length", format!("Content-Length: -1\r\n\r\n{prompt}")),
        ("a length over 64 bits", "Content-Length: 99999999999999999999\r\n\r\n".to_owned()),
        ("a coding behind a tab", format!("Transfer-Encoding:\tchunked, x\r\n\r\n{smuggled}")),
        (
            "a coding in two lines",
            format!("Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"),
        ),
        ("a coding before the last", format!("Transfer-Encoding: x, chunked\r\n\r\n{chunked}")),
        ("a NUL in a header", format!("X-A: a\0b\r\nContent-Length: 50\r\n\r\n{prompt}")),
        ("a NUL in a name", format!("X\0A: b\r\nContent-Length: 50\r\n\r\n{prompt}")),
        ("a bare CR in a header", format!("X-A: a\rX-B: b\r\nContent-Length: 50\r\n\r\n{prompt}")),
        ("a header without a name", format!(": b\r\nContent-Length: 50\r\n\r\n{prompt}")),
        ("a header without a colon", format!("X-A\r\nContent-Length: 50\r\n\r\n{prompt}")),
        (
            "a chunk size over 64 bits",
            "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n".to_owned(),
        ),
        (
            "a negative chunk size",
            "Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n".to_owned(),
        ),
        (
            "a chunk that is longer than its size",
            "Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n".to_owned(),
        ),
        (
            "endless chunk extensions",
            format!(
                "Transfer-Encoding: chunked\r\n\r\n2;{}\r\n{{}}\r\n0\r\n\r\n",
                "x".repeat(64 * 1024)
            ),
        ),
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
        count += 1;
        counted(&rig, what, count).await;
    }
    assert!(rig.model.seen.lock().unwrap().is_empty());
    supervisor.refusal("limit", "message head is too large").await;
    supervisor.refusal("protocol", "invalid HTTP header parsed").await;
}

#[tokio::test]
async fn requests_to_other_hosts_and_odd_versions_are_refused() {
    let rig = Rig::start().await;
    let supervisor = rig.with_attempt(grant("a", StepName::Implement, None)).await;
    rig.running(&supervisor, "a").await;
    let mut count = 0;
    for request in [
        "GET http://169.254.169.254/latest HTTP/1.1\r\nHost: g\r\n\r\n",
        "POST http://api.anthropic.com/v1/messages HTTP/1.1\r\nHost: g\r\nContent-Length: 0\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "CONNECT x:443 HTTP/1.1\r\nHost: g\r\nContent-Length: 3\r\n\r\nabc",
        "GET /v1/step\r\n\r\n",
        "GET /v1/step HTTP/1.1 x\r\nHost: g\r\n\r\n",
        "GET  /v1/step HTTP/1.1\r\nHost: g\r\n\r\n",
        " GET /v1/step HTTP/1.1\r\nHost: g\r\n\r\n",
        "G\0T /v1/step HTTP/1.1\r\nHost: g\r\n\r\n",
        "GET /v1/step\0 HTTP/1.1\r\nHost: g\r\n\r\n",
        "GET ftp://g/v1/step HTTP/1.1\r\nHost: g\r\n\r\n",
        "GET /v1/step HTTP/1.1\nHost: g\nX: \u{1}\n\n",
    ] {
        let answer = send(&rig, request).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{request:?}: {answer}");
        count += 1;
        counted(&rig, request, count).await;
    }
}

/// What each answer on a connection says, in order.
fn statuses(answers: &str) -> Vec<&str> {
    answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect()
}

#[tokio::test]
async fn each_request_of_a_connection_stands_for_itself() {
    let rig = Rig::start().await;
    let supervisor = rig.with_attempt(grant("a", StepName::Implement, None)).await;
    let tokens = rig.running(&supervisor, "a").await;
    rig.model.answer_json(1).await;
    let prompt = super::rig::PROMPT;
    let good = format!(
        "POST /llm/v1/messages HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n{prompt}",
        tokens.agent_token,
        prompt.len()
    );
    // The second one has no token, the third another operation, the fourth a path of another route.
    let others = "POST /llm/v1/messages HTTP/1.1\r\nHost: g\r\nContent-Length: 2\r\n\r\n{}\
                  GET /llm/v1/files HTTP/1.1\r\nHost: g\r\n\r\n\
                  GET /v1/step HTTP/1.1\r\nHost: g\r\n\r\n";
    let answers = send(&rig, &format!("{good}{others}")).await;
    assert_eq!(statuses(&answers), ["200", "401", "401", "401"], "{answers}");
    let seen = rig.model.seen.lock().unwrap();
    assert_eq!(seen.len(), 1, "{seen:?}");
}

#[tokio::test]
async fn of_two_framings_one_counts_and_nothing_after_it_is_read() {
    let prompt = super::rig::PROMPT;
    let (length, coding) = ("Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n");
    for framings in [[length, coding].concat(), [coding, length].concat()] {
        let rig = Rig::start().await;
        let supervisor = rig.with_attempt(grant("a", StepName::Implement, None)).await;
        let tokens = rig.running(&supervisor, "a").await;
        rig.model.answer_json(1).await;
        let head = format!(
            "POST /llm/v1/messages HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {}\r\n",
            tokens.agent_token
        );
        let body = format!("{:x}\r\n{prompt}\r\n0\r\n\r\n", prompt.len());
        let next = format!("{head}Content-Length: {}\r\n\r\n{prompt}", prompt.len());
        let answers = send(&rig, &format!("{head}{framings}\r\n{body}{next}")).await;
        assert_eq!(statuses(&answers), ["200"], "{answers}");
        let seen = rig.model.seen.lock().unwrap();
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!(seen[0].headers["content-length"], prompt.len().to_string().as_str());
        assert!(!seen[0].headers.contains_key("transfer-encoding"));
    }
}

#[tokio::test]
async fn the_provider_gets_every_body_with_a_framing_of_our_own() {
    let rig = Rig::start().await;
    let supervisor = rig.with_attempt(grant("a", StepName::Implement, None)).await;
    let tokens = rig.running(&supervisor, "a").await;
    rig.model.answer_json(1).await;
    let prompt = super::rig::PROMPT;
    let (first, second) = prompt.split_at(7);
    // Extensions and trailers are legal; none of them goes on.
    let request = format!(
        "POST /llm/v1/messages HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {}\r\n\
         Transfer-Encoding: chunked\r\nTrailer: X-Evil\r\nX-Forwarded-For: 1.2.3.4\r\nCookie: a=b\r\n\
         Proxy-Authorization: Basic eA==\r\nForwarded: for=x\r\n\r\n\
         7;a=b\r\n{first}\r\n{:x};c\r\n{second}\r\n0\r\nX-Evil: 1\r\nContent-Length: 9\r\n\r\n",
        tokens.agent_token,
        second.len()
    );
    let answers = send(&rig, &request).await;
    assert_eq!(statuses(&answers), ["200"], "{answers}");
    let seen = rig.model.seen.lock().unwrap();
    let headers = &seen[0].headers;
    assert_eq!(headers["content-length"], prompt.len().to_string().as_str());
    assert_eq!(headers["x-api-key"], super::rig::KEY);
    for name in [
        "transfer-encoding",
        "trailer",
        "x-evil",
        "x-forwarded-for",
        "cookie",
        "proxy-authorization",
        "forwarded",
        "authorization",
    ] {
        assert!(!headers.contains_key(name), "{name}");
    }
}
