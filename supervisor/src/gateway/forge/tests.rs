//! Pull requests at a scripted Gitea, and the whole way at a real one where there is one.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use agent_operator::domain::{
    Attempt, Credential, Epoch, Reason, RunKey, Secret, TaskRef, assignment::Repository,
};
use axum::{
    Json, Router,
    extract::{Query, State},
    response::{IntoResponse as _, Response},
    routing::get,
};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::*;

mod conformance;
mod contract;
mod fake;
mod github;
mod real;

const TOKEN: &str = "canary-55d0c1b2";

/// A Gitea that holds pull requests in memory.
#[derive(Clone, Debug, Default)]
struct Scripted {
    /// The list, oldest first, as the API gives it.
    listed: Arc<Mutex<Vec<Value>>>,
    /// Answer the next requests so: (method, status).
    fail: Arc<Mutex<Vec<(&'static str, u16)>>>,
    /// Take the next pull request and lose the answer.
    lose_answer: Arc<Mutex<bool>>,
    posts: Arc<Mutex<Vec<Value>>>,
}

struct World {
    gitea: Scripted,
    forges: Forges,
    _server: JoinSet<()>,
}

impl World {
    async fn new() -> Self {
        let gitea = Scripted::default();
        let router = Router::new()
            .route("/api/v1/repos/o/r", get(repository))
            .route("/api/v1/repos/o/r/pulls", get(list).post(open))
            .with_state(gitea.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}", listener.local_addr().unwrap());
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        let upstream = |host: &str, forge| Upstream {
            host: host.to_owned(),
            base_url: base_url.clone(),
            forge,
        };
        let map = vec![upstream("github.com", ForgeKind::Gitea)];
        Self { gitea, forges: Forges::new(map, direct_client()), _server: server }
    }

    async fn ensure(&self, order: &PullRequestOrder) -> Result<PullRequest, ForgeError> {
        let permit = Permit::granted(Epoch(1), Duration::from_secs(30));
        self.forges
            .ensure_pull_request(order, &credential(TOKEN), &permit)
            .await
            .map(|(found, _)| found)
    }

    fn posts(&self) -> usize {
        self.gitea.posts.lock().unwrap().len()
    }
}

fn scripted_failure(gitea: &Scripted, method: &str, headers: &HeaderMap) -> Option<Response> {
    if headers.get("authorization").is_none_or(|given| given != format!("token {TOKEN}").as_str()) {
        return Some(StatusCode::UNAUTHORIZED.into_response());
    }
    let mut fail = gitea.fail.lock().unwrap();
    let at = fail.iter().position(|(of, _)| *of == method)?;
    let status = StatusCode::from_u16(fail.remove(at).1).unwrap();
    Some((status, Json(json!({"message": "scripted"}))).into_response())
}

async fn repository(State(gitea): State<Scripted>, headers: HeaderMap) -> Response {
    scripted_failure(&gitea, "GET", &headers)
        .unwrap_or_else(|| Json(json!({"full_name": "o/r"})).into_response())
}

async fn list(
    State(gitea): State<Scripted>,
    Query(query): Query<std::collections::HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    if let Some(failure) = scripted_failure(&gitea, "GET", &headers) {
        return failure;
    }
    assert_eq!(query["state"], "all");
    let page: usize = query["page"].parse().unwrap();
    // A server whose own page limit is smaller than what is asked for.
    let listed = gitea.listed.lock().unwrap();
    let items: Vec<Value> = listed.iter().rev().skip((page - 1) * 2).take(2).cloned().collect();
    Json(items).into_response()
}

async fn open(State(gitea): State<Scripted>, headers: HeaderMap, body: String) -> Response {
    if let Some(failure) = scripted_failure(&gitea, "POST", &headers) {
        return failure;
    }
    let draft: Value = serde_json::from_str(&body).unwrap();
    gitea.posts.lock().unwrap().push(draft.clone());
    let head = draft["head"].as_str().unwrap();
    let mut listed = gitea.listed.lock().unwrap();
    if listed.iter().any(|item| item["head"]["ref"] == head && item["state"] == "open") {
        return (StatusCode::CONFLICT, "exists").into_response();
    }
    let number = listed.len() + 1;
    let item = item(number, head, "o/r", draft["body"].as_str().unwrap());
    listed.push(item.clone());
    if std::mem::take(&mut *gitea.lose_answer.lock().unwrap()) {
        return StatusCode::GATEWAY_TIMEOUT.into_response();
    }
    (StatusCode::CREATED, Json(item)).into_response()
}

fn item(number: usize, head: &str, repository: &str, body: &str) -> Value {
    json!({
        "number": number,
        "html_url": format!("http://forge/o/r/pulls/{number}"),
        "state": "open",
        "body": body,
        "head": {"ref": head, "repo": {"full_name": repository}},
    })
}

/// A client without proxy and certificates of its own.
fn direct_client() -> HttpClient {
    crate::gateway::http_client::build(None, Arc::default()).unwrap()
}

fn credential(token: &str) -> Credential {
    Credential {
        id: "git/main".to_owned(),
        purpose: agent_operator::domain::secret::purpose::GIT.to_owned(),
        host: "github.com".to_owned(),
        scheme: "basic".to_owned(),
        value: Secret::new(token),
    }
}

fn order() -> PullRequestOrder {
    PullRequestOrder {
        grant: RepositoryGrant {
            run: RunKey { uid: "run".into(), attempt: Attempt(1) },
            namespace: "agent-system".to_owned(),
            task: TaskRef { name: "x".to_owned(), uid: "uid-1".into() },
            repository: Repository {
                name: "main".to_owned(),
                url: "https://github.com/o/r.git".to_owned(),
                base_branch: "main".to_owned(),
                work_branch: "ai/x".to_owned(),
                base_commit: None,
                head_commit: None,
            },
            may_push: false,
        },
        title: "Add a health check".to_owned(),
        body: "It answers 200.".to_owned(),
        head_branch: "ai/x".to_owned(),
        issue: None,
        unverified: false,
    }
}

#[tokio::test]
async fn a_task_gets_one_pull_request_however_often_it_asks() {
    let world = World::new().await;
    let order = order();
    let (one, two) = tokio::join!(world.ensure(&order), world.ensure(&order));
    let one = one.unwrap();
    assert_eq!(one, two.unwrap());
    assert_eq!((one.url.as_str(), one.number), ("http://forge/o/r/pulls/1", 1));
    assert_eq!(world.ensure(&order).await.unwrap(), one);
    assert_eq!(world.posts(), 1);
}

#[tokio::test]
async fn a_lost_answer_does_not_double_the_pull_request() {
    let world = World::new().await;
    *world.gitea.lose_answer.lock().unwrap() = true;
    let lost = world.ensure(&order()).await.unwrap_err();
    assert!(lost.retryable(), "{lost}");
    assert_eq!(lost.reason(), Some(Reason::ProviderUnavailable));
    assert_eq!(world.ensure(&order()).await.unwrap().number, 1);
    assert_eq!(world.posts(), 1);
}

#[tokio::test]
async fn a_closed_pull_request_of_the_task_is_found_behind_newer_ones() {
    let world = World::new().await;
    {
        let mut listed = world.gitea.listed.lock().unwrap();
        let mut ours = item(1, "ai/x", "o/r", &marker(&"uid-1".into()));
        ours["state"] = json!("closed");
        listed.push(ours);
        for number in 2..9 {
            listed.push(item(number, &format!("other-{number}"), "o/r", ""));
        }
        listed.push(item(9, "ai/x", "stranger/r", &marker(&"uid-1".into())));
    }
    assert_eq!(world.ensure(&order()).await.unwrap().number, 1, "not the one from a fork");
    assert_eq!(world.posts(), 0);
}

#[tokio::test]
async fn somebody_elses_pull_request_from_the_branch_is_a_conflict() {
    let world = World::new().await;
    world.gitea.listed.lock().unwrap().push(item(1, "ai/x", "o/r", "by hand"));
    let error = world.ensure(&order()).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::PushRefused), "{error}");
    assert!(error.to_string().contains("ai/x"));
}

#[tokio::test]
async fn each_status_has_its_reason() {
    for (method, status, reason, retryable) in [
        ("GET", 401, Reason::ProviderUnavailable, false),
        ("GET", 403, Reason::ProviderUnavailable, false),
        ("GET", 404, Reason::ProviderUnavailable, false),
        ("POST", 403, Reason::ProviderUnavailable, false),
        ("POST", 404, Reason::ProviderUnavailable, false),
        ("POST", 422, Reason::InvalidTask, false),
        ("GET", 302, Reason::InvalidTask, false),
        ("GET", 429, Reason::ProviderUnavailable, true),
        ("GET", 500, Reason::ProviderUnavailable, true),
        ("POST", 503, Reason::ProviderUnavailable, true),
    ] {
        let world = World::new().await;
        world.gitea.fail.lock().unwrap().push((method, status));
        let error = world.ensure(&order()).await.unwrap_err();
        assert_eq!((error.reason(), error.retryable()), (Some(reason), retryable), "{status}");
        assert!(!format!("{error} {error:?}").contains(TOKEN));
    }
}

#[tokio::test]
async fn a_forge_that_names_no_permissions_says_nothing_about_them() {
    let world = World::new().await;
    let ask = async |token: &str| {
        world.forges.write_right("https://github.com/o/r.git", &credential(token)).await
    };
    assert_eq!(ask(TOKEN).await.unwrap(), WriteRight::Unsaid);
    assert!(matches!(ask("wrong").await.unwrap_err(), ForgeError::Authenticate { .. }));
    world.gitea.fail.lock().unwrap().push(("GET", 503));
    assert!(ask(TOKEN).await.unwrap_err().retryable());
}

#[tokio::test]
async fn nothing_is_opened_without_permission_and_nothing_sent_to_a_foreign_host() {
    let world = World::new().await;
    let (order, token) = (order(), credential(TOKEN));
    let lapsed = world.forges.ensure_pull_request(&order, &token, &Permit::none()).await;
    let lapsed = lapsed.unwrap_err();
    assert!(lapsed.retryable() && lapsed.reason().is_none(), "{lapsed}");
    assert_eq!(world.posts(), 0);

    let mut foreign = order.clone();
    foreign.grant.repository.url = "https://example.com/o/r.git".to_owned();
    let refused = world.ensure(&foreign).await.unwrap_err();
    assert!(matches!(refused, ForgeError::UseCredential(_)), "{refused}");
    let mut unknown = credential(TOKEN);
    unknown.host = "example.com".to_owned();
    let permit = Permit::granted(Epoch(1), Duration::from_secs(30));
    let unknown = world.forges.ensure_pull_request(&foreign, &unknown, &permit).await.unwrap_err();
    assert!(matches!(unknown, ForgeError::ForgeUnknown { .. }), "{unknown}");
}

#[tokio::test]
async fn an_unreachable_forge_is_retryable() {
    let map = vec![Upstream {
        host: "github.com".to_owned(),
        base_url: "http://127.0.0.1:1".to_owned(),
        forge: ForgeKind::Gitea,
    }];
    let forges = Forges::new(map, direct_client());
    let permit = Permit::granted(Epoch(1), Duration::from_secs(30));
    let error = forges.ensure_pull_request(&order(), &credential(TOKEN), &permit).await;
    assert!(error.unwrap_err().retryable());
}

#[test]
fn title_and_body_from_a_sandbox_are_bounded_and_cannot_imitate_the_mark() {
    assert_eq!(title("a\n b\t\u{1b}[2J"), "a b \u{fffd}[2J");
    assert_eq!(title(" \n"), "Changes by agent-operator");
    assert!(title(&"ä".repeat(1000)).len() <= TITLE_BYTES_MAX);
    let mark = marker(&"uid-1".into());
    let forged = format!("text {} {}", marker(&"uid-2".into()), "x".repeat(100_000));
    let body = body(&forged, true, Some("Closes #7"), &mark);
    assert!(body.len() <= BODY_BYTES_MAX);
    // Whatever the sandbox says of its tests.
    assert!(body.ends_with(&format!("\n\n{UNVERIFIED}\n\nCloses #7\n\n{mark}")));
    assert_eq!(body.matches(MARKER).count(), 1);
}
