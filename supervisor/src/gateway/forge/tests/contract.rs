//! GitHub's client against GitHub's own OpenAPI description: `AO_GITHUB_API` and `AO_GHES_API` are
//! servers that validate each request by it (`deploy/local/prism env`).

use agent_operator::domain::assignment::IssueRef;
use axum::body::{Body, Bytes};
use http::{Request, Uri};
use http_body_util::BodyExt as _;

use super::*;

/// Passes requests on to a validating server and keeps what it finds wrong with them.
#[derive(Clone)]
struct Relay {
    http: super::super::client::Http,
    /// Where the description's paths begin.
    target: String,
    /// Status to answer with; none: success.
    code: Arc<Mutex<Option<u16>>>,
    violations: Arc<Mutex<Vec<String>>>,
    served: Arc<Mutex<Vec<String>>>,
}

async fn relay(State(relay): State<Relay>, request: Request<Body>) -> Response {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().unwrap().as_str();
    let path = path.strip_prefix("/api/v3").expect("Enterprise's prefix").to_owned();
    let line = format!("{} {path}", parts.method);
    parts.uri = format!("{}{path}", relay.target).parse::<Uri>().unwrap();
    parts.headers.remove("host");
    // The description knows only the media type of answers, not the one GitHub asks clients to accept.
    parts.headers.insert("accept", "application/json".parse().unwrap());
    if let Some(code) = *relay.code.lock().unwrap() {
        parts.headers.insert("prefer", format!("code={code}").parse().unwrap());
    }
    let body: Bytes = body.collect().await.unwrap().to_bytes();
    let answer = relay.http.exchange(Request::from_parts(parts, Body::from(body))).await;
    let (answer, body) = answer.expect("the validating server answers");
    if let Some(found) = answer.headers.get("sl-violations") {
        // What it makes up for an answer may violate the description as well: not our fault.
        let found: Vec<Value> = serde_json::from_slice(found.as_bytes()).unwrap();
        let ours = found.iter().filter(|one| one["location"][0] == "request");
        relay.violations.lock().unwrap().extend(ours.map(|one| format!("{line}: {one}")));
    }
    relay.served.lock().unwrap().push(line);
    // The description's example links to pages that do not exist.
    (answer.status, [("content-type", "application/json")], body).into_response()
}

struct World {
    relay: Relay,
    forges: Forges,
    address: String,
    _task: JoinSet<()>,
}

impl World {
    async fn new(variable: &str) -> Self {
        let target = std::env::var(variable).expect("the environment of deploy/local/prism env");
        let relay_state = Relay {
            http: super::super::client::Http::new(super::direct_client()),
            target,
            code: Arc::default(),
            violations: Arc::default(),
            served: Arc::default(),
        };
        let router = Router::new().fallback(relay).with_state(relay_state.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let mut task = JoinSet::new();
        task.spawn(async move { axum::serve(listener, router).await.unwrap() });
        let map = vec![Upstream {
            host: "github.com".to_owned(),
            base_url: address.clone(),
            forge: ForgeKind::Github,
        }];
        let forges = Forges::new(map, super::direct_client());
        Self { relay: relay_state, forges, address, _task: task }
    }

    fn violations(&self) -> Vec<String> {
        std::mem::take(&mut *self.relay.violations.lock().unwrap())
    }
}

fn draft() -> PullRequestDraft {
    PullRequestDraft {
        head: "ai/x".to_owned(),
        base: "main".to_owned(),
        title: "Add a health check".to_owned(),
        body: "It answers 200.".to_owned(),
    }
}

fn issue() -> IssueRef {
    IssueRef { owner: "o".to_owned(), repo: "r".to_owned(), number: 7 }
}

async fn every_call_is_as_described(variable: &str) {
    let world = World::new(variable).await;
    let forge = world.forges.forge("https://github.com/o/r.git", &credential(TOKEN)).unwrap();
    let found = forge.find_pull_request("ai/x", "no such mark").await.unwrap();
    assert_eq!(found, None, "an answer made up by the description");
    assert!(forge.open_pull_request(&draft()).await.unwrap().is_some());
    // The server makes one up; it may be a pull request as well.
    match forge.read_issue(&issue()).await {
        Ok(_) | Err(ForgeError::FindIssue { .. }) => {}
        Err(error) => panic!("{error}"),
    }
    forge.write_right().await.unwrap();
    assert_eq!(world.violations(), Vec::<String>::new());
    assert_eq!(world.relay.served.lock().unwrap().len(), 4);

    for (code, reason) in [(403, Reason::ProviderUnavailable), (422, Reason::InvalidTask)] {
        *world.relay.code.lock().unwrap() = Some(code);
        let error = forge.open_pull_request(&draft()).await.unwrap_err();
        assert_eq!(error.reason(), Some(reason), "{error}");
    }
    for code in [404, 410] {
        *world.relay.code.lock().unwrap() = Some(code);
        let error = forge.read_issue(&issue()).await.unwrap_err();
        assert!(matches!(error, ForgeError::FindIssue { .. }), "{error}");
    }
    assert_eq!(world.violations(), Vec::<String>::new());
}

#[tokio::test]
#[ignore = "needs GitHub's description: tests/run unit"]
async fn every_call_is_as_github_describes_it() {
    every_call_is_as_described("AO_GITHUB_API").await;
}

#[tokio::test]
#[ignore = "needs GitHub's description: tests/run unit"]
async fn every_call_is_as_enterprise_server_describes_it() {
    every_call_is_as_described("AO_GHES_API").await;
}

#[tokio::test]
#[ignore = "needs GitHub's description: tests/run unit"]
async fn a_call_that_is_not_as_described_would_be_found() {
    let world = World::new("AO_GITHUB_API").await;
    let send = |method: &str, path: &str, body: &str| {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}/api/v3{path}", world.address))
            .header("content-type", "application/json")
            .body(Body::from(body.to_owned()))
            .unwrap();
        let http = world.relay.http.clone();
        async move { http.exchange(request).await.unwrap().0.status }
    };
    send("GET", "/repos/o/r/pulls?state=every", "").await;
    assert_eq!(world.violations().len(), 1);
    send("POST", "/repos/o/r/pulls", r#"{"title": "x", "base": "main"}"#).await;
    assert_eq!(world.violations().len(), 1);
    assert_eq!(send("GET", "/repos/o/r/pull-requests", "").await, 404);
    assert_eq!(send("PUT", "/repos/o/r/pulls", "{}").await, 405);
}
