//! GitHub's client at a scripted Enterprise server.

use axum::{
    extract::{Path as UrlPath, Request},
    middleware::{Next, from_fn_with_state},
};

use super::{
    conformance::Stage as _,
    fake::{Entry, Fake, State as Repository, url_of},
    *,
};

/// The server: a [`Fake`] behind GitHub's routes, and answers to give instead.
#[derive(Clone, Debug, Default)]
struct Server {
    fake: Fake,
    /// Answers to the next requests: method, status, headers, message.
    instead: Arc<Mutex<Vec<Instead>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

type Instead = (&'static str, u16, Vec<(&'static str, &'static str)>, &'static str);

struct World {
    server: Server,
    forges: Forges,
    _task: JoinSet<()>,
}

const URL: &str = "https://ghe.example.com/o/r.git";
/// A token of somebody who may read.
const READ_TOKEN: &str = "canary-reader";
/// A token of an app's installation.
const APP_TOKEN: &str = "ghs_canary";

impl World {
    async fn new() -> Self {
        let server = Server::default();
        let router = Router::new()
            .route("/api/v3/repos/o/r", get(repository))
            .route("/api/v3/repos/o/r/pulls", get(list).post(open))
            .route("/api/v3/repos/o/r/issues/{number}", get(issue))
            .fallback(|| async { refuse(404, "Not Found") })
            .layer(from_fn_with_state(server.clone(), admit))
            .with_state(server.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}", listener.local_addr().unwrap());
        let mut task = JoinSet::new();
        task.spawn(async move { axum::serve(listener, router).await.unwrap() });
        let host = "ghe.example.com".to_owned();
        let map = vec![Upstream { host, base_url, forge: ForgeKind::Github }];
        Self { server, forges: Forges::new(map, super::direct_client()), _task: task }
    }

    fn credential() -> Credential {
        Credential { host: "ghe.example.com".to_owned(), ..credential(TOKEN) }
    }

    fn forge_for(&self, token: &str) -> Box<dyn Forge> {
        let credential = Credential { value: Secret::new(token), ..Self::credential() };
        self.forges.forge(URL, &credential).unwrap()
    }

    fn order() -> PullRequestOrder {
        let mut order = order();
        URL.clone_into(&mut order.grant.repository.url);
        order
    }

    async fn ensure(&self, order: &PullRequestOrder) -> Result<PullRequest, ForgeError> {
        let permit = Permit::granted(Epoch(1), Duration::from_secs(30));
        self.forges
            .ensure_pull_request(order, &Self::credential(), &permit)
            .await
            .map(|(found, _)| found)
    }

    fn requests(&self) -> Vec<String> {
        self.server.requests.lock().unwrap().clone()
    }
}

fn refuse(status: u16, message: &str) -> Response {
    (StatusCode::from_u16(status).unwrap(), Json(json!({"message": message}))).into_response()
}

async fn admit(State(server): State<Server>, request: Request, next: Next) -> Response {
    match answer_instead(&server, &request) {
        Some(answer) => answer,
        None => next.run(request).await,
    }
}

/// What GitHub demands of every request, and the scripted answers.
fn answer_instead(server: &Server, request: &Request) -> Option<Response> {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let known = [TOKEN, READ_TOKEN, APP_TOKEN].map(|token| format!("Bearer {token}"));
    if !known.iter().any(|known| header("authorization") == Some(known)) {
        return Some(refuse(401, "Bad credentials"));
    }
    assert_eq!(header("accept"), Some("application/vnd.github+json"));
    assert_eq!(header("x-github-api-version"), Some("2022-11-28"));
    assert!(header("user-agent").is_some_and(|agent| !agent.is_empty()));
    server.requests.lock().unwrap().push(format!("{} {}", request.method(), request.uri()));
    let mut instead = server.instead.lock().unwrap();
    let at = instead.iter().position(|(method, ..)| request.method() == *method)?;
    let (_, status, headers, message) = instead.remove(at);
    let mut answer = refuse(status, message);
    for (name, value) in headers {
        answer.headers_mut().insert(name, value.parse().unwrap());
    }
    Some(answer)
}

/// GitHub filters by owner and branch, so forks of the same owner are in the list too. Pages of two.
async fn list(
    State(server): State<Server>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    assert_eq!((query["state"].as_str(), query["per_page"].as_str()), ("all", "100"));
    let branch = query["head"].strip_prefix("o:").expect("owner:branch").to_owned();
    let page: usize = query["page"].parse().unwrap();
    let state = server.fake.0.lock().unwrap();
    let mut all: Vec<Value> = (1..)
        .zip(&state.entries)
        .filter(|(_, entry)| entry.head.as_ref().is_some_and(|(_, of)| *of == branch))
        .map(|(number, entry)| shown(number, entry))
        .collect();
    all.reverse();
    let items: Vec<&Value> = all.iter().skip((page - 1) * 2).take(2).collect();
    let mut answer = Json(&items).into_response();
    if all.len() > page * 2 {
        // An address elsewhere must not be followed: the token would go there.
        let next = format!("<http://127.0.0.1:1/elsewhere?page={}>; rel=\"next\"", page + 1);
        answer.headers_mut().insert("link", next.parse().unwrap());
    }
    answer
}

fn shown(number: i64, entry: &Entry) -> Value {
    let (from, branch) = entry.head.clone().unwrap();
    json!({
        "id": number, "number": number, "title": entry.title, "body": entry.body, "user": null,
        "html_url": url_of(number), "state": if entry.open { "open" } else { "closed" },
        "head": {"ref": branch, "repo": from.map(|name| json!({"full_name": name}))},
    })
}

async fn open(State(server): State<Server>, Json(draft): Json<Value>) -> Response {
    let text = |name: &str| draft[name].as_str().unwrap().to_owned();
    let mut state: std::sync::MutexGuard<'_, Repository> = server.fake.0.lock().unwrap();
    let invalid = |error: Value| {
        let body = json!({"message": "Validation Failed", "errors": [error]});
        (StatusCode::UNPROCESSABLE_ENTITY, Json(body)).into_response()
    };
    let head = text("head");
    if state.has_open(&head) {
        let message = format!("A pull request already exists for o:{head}.");
        return invalid(json!({"resource": "PullRequest", "code": "custom", "message": message}));
    }
    if !state.branches.contains(&head) {
        return invalid(json!({"resource": "PullRequest", "field": "head", "code": "invalid"}));
    }
    let entry = Entry {
        title: text("title"),
        body: text("body"),
        open: true,
        head: Some((Some("o/r".to_owned()), head)),
    };
    let number = state.add(entry.clone());
    (StatusCode::CREATED, Json(shown(number, &entry))).into_response()
}

/// The user's rights; an app has none of a user's.
async fn repository(headers: HeaderMap) -> Response {
    let push = headers["authorization"] == format!("Bearer {TOKEN}").as_str();
    Json(json!({"full_name": "o/r", "permissions": {"pull": true, "push": push}})).into_response()
}

async fn issue(State(server): State<Server>, UrlPath(number): UrlPath<i64>) -> Response {
    let state = server.fake.0.lock().unwrap();
    let Some(entry) = state.entry(number) else { return refuse(404, "Not Found") };
    // Whoever wrote it may be gone, and an empty text is null.
    let mut shown = json!({
        "number": number, "title": entry.title, "user": null,
        "body": (!entry.body.is_empty()).then_some(&entry.body),
    });
    if entry.head.is_some() {
        shown["pull_request"] = json!({"url": "x"});
    }
    Json(shown).into_response()
}

#[tokio::test]
async fn github_behaves_as_a_forge() {
    let world = World::new().await;
    let (forge, reader) = (world.forge_for(TOKEN), world.forge_for(READ_TOKEN));
    conformance::holds(&*forge, &*reader, &world.server.fake).await;
}

#[tokio::test]
async fn the_permissions_that_an_app_is_shown_are_not_believed() {
    let world = World::new().await;
    let app = world.forge_for(APP_TOKEN);
    assert_eq!(app.write_right().await.unwrap(), WriteRight::Unsaid);
}

#[tokio::test]
async fn a_task_gets_one_pull_request_that_closes_its_issue() {
    let world = World::new().await;
    world.server.fake.branch("ai/x");
    let mut order = World::order();
    order.issue = Some(world.server.fake.issue("It fails", ""));
    let opened = world.ensure(&order).await.unwrap();
    assert_eq!(world.ensure(&order).await.unwrap(), opened);
    let state = world.server.fake.0.lock().unwrap();
    let body = &state.entry(opened.number).unwrap().body;
    assert_eq!(*body, format!("It answers 200.\n\nCloses #1\n\n{}", marker(&"uid-1".into())));
}

#[tokio::test]
async fn ours_is_found_behind_pages_of_forks_and_no_link_is_followed() {
    let world = World::new().await;
    let mark = marker(&"uid-1".into());
    {
        let mut state = world.server.fake.0.lock().unwrap();
        let from = |repository: Option<&str>| Entry {
            title: String::new(),
            body: mark.clone(),
            open: false,
            head: Some((repository.map(str::to_owned), "ai/x".to_owned())),
        };
        state.add(from(Some("O/R")));
        for fork in [Some("o/fork"), None, Some("stranger/r"), Some("o/fork")] {
            state.add(from(fork));
        }
    }
    assert_eq!(world.ensure(&World::order()).await.unwrap().number, 1);
    let pages: Vec<String> = world.requests();
    assert_eq!(pages.len(), 3, "{pages:?}");
    assert!(pages.iter().all(|page| page.contains("head=o%3Aai%2Fx")), "{pages:?}");
}

#[tokio::test]
async fn a_limit_is_told_once_with_its_time_and_not_asked_again_at_once() {
    let world = World::new().await;
    let headers = vec![("retry-after", "120")];
    world.server.instead.lock().unwrap().push(("GET", 403, headers, "secondary rate limit"));
    let error = world.ensure(&World::order()).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::ProviderUnavailable), "{error}");
    assert_eq!(error.wait(), Some(Duration::from_mins(2)));
    assert_eq!(world.requests().len(), 1, "no retry of its own below ours");
}

#[tokio::test]
async fn a_broken_server_is_unavailable_and_a_lost_answer_opens_nothing_twice() {
    let world = World::new().await;
    world.server.fake.branch("ai/x");
    world.server.instead.lock().unwrap().push(("POST", 502, vec![], "<html>bad gateway"));
    let broken = world.ensure(&World::order()).await.unwrap_err();
    assert!(broken.retryable(), "{broken}");
    assert_eq!(broken.reason(), Some(Reason::ProviderUnavailable));
    let opened = world.ensure(&World::order()).await.unwrap();
    assert_eq!(world.ensure(&World::order()).await.unwrap(), opened);
}

#[tokio::test]
async fn each_refusal_says_what_to_do() {
    let permissions = vec![("x-accepted-github-permissions", "pull_requests=write")];
    let scopes = vec![("x-accepted-oauth-scopes", "repo"), ("x-oauth-scopes", "gist")];
    let cases: [(&str, u16, Vec<_>, &[&str]); 6] = [
        ("GET", 401, vec![], &["gitCredentialsRef", "expired"]),
        ("POST", 403, permissions, &["Pull requests: write", "pull_requests=write"]),
        ("POST", 403, scopes, &["scopes accepted: repo", "scopes of this token: gist"]),
        ("GET", 404, vec![], &["repository.url", "Pull requests: read"]),
        ("GET", 301, vec![("location", "http://127.0.0.1:1/")], &["redirect", "repository.url"]),
        ("POST", 422, vec![], &["scripted"]),
    ];
    for (method, status, headers, words) in cases {
        let world = World::new().await;
        world.server.fake.branch("ai/x");
        world.server.instead.lock().unwrap().push((method, status, headers, "scripted"));
        let error = world.ensure(&World::order()).await.unwrap_err();
        let reason = match status {
            401 | 403 | 404 => Reason::ProviderUnavailable,
            _ => Reason::InvalidTask,
        };
        assert_eq!((error.reason(), error.retryable()), (Some(reason), false), "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "{status}: {word:?} is not in {error}");
        }
        assert!(!format!("{error} {error:?}").contains(TOKEN));
    }
    let world = World::new().await;
    let wrong = Credential { value: Secret::new("wrong"), ..World::credential() };
    let issue = world.server.fake.issue("x", "");
    let error = world.forges.read_issue(URL, &issue, Some(&wrong)).await.unwrap_err();
    assert!(matches!(error, ForgeError::Authenticate { .. }), "{error}");
}

#[tokio::test]
async fn an_answer_that_is_not_githubs_is_not_understood_instead_of_believed() {
    let world = World::new().await;
    world.server.instead.lock().unwrap().push(("GET", 200, vec![], "a proxy's page"));
    let error = world.ensure(&World::order()).await.unwrap_err();
    assert!(matches!(error, ForgeError::ReadAnswer { .. }), "{error}");
}

#[tokio::test]
async fn a_path_that_is_not_owner_and_name_is_refused_before_anything_is_sent() {
    let world = World::new().await;
    for path in ["group/sub/name.git", "name"] {
        let url = format!("https://ghe.example.com/{path}");
        let error = world.forges.forge(&url, &World::credential()).err().unwrap();
        assert!(matches!(error, ForgeError::AddressRepository { .. }), "{error}");
    }
    assert!(world.requests().is_empty());
}
