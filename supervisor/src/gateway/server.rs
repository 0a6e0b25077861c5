//! The HTTP front: accepts connections, parses strictly, says who calls, and hands each request to
//! its route. Every route stands in [`Route::of`] with the token that it needs; what is not listed
//! there is refused and counted.

#![allow(clippy::result_large_err, reason = "the error is the answer itself, made once a request")]

use std::{
    convert::Infallible,
    error::Error as _,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::body::Body;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tracing::Instrument as _;

use super::{
    attempt_api,
    core::{Shared, repository_grant},
    git::GitService,
    grants::{Attempt, RefusalKind, TokenKind},
    identity::{self, Caller, IdentityError, Scheme},
    limits::{HEADER_BYTES_MAX, HEADER_READ_TIMEOUT, HEADERS_MAX},
    llm,
    respond::{self, Answer},
};
use agent_operator::domain::secret::purpose;

/// Challenge of the git routes.
const GIT_CHALLENGE: &str = "Basic realm=\"agent-operator\"";
/// Backoff after a failed accept: mostly no descriptors, which takes a moment to pass.
const ACCEPT_BACKOFF: std::time::Duration = std::time::Duration::from_millis(100);

/// A route of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Readiness; says nothing.
    Health,
    /// The model client's probe, answered here.
    ModelProbe,
    /// `POST /v1/redeem`
    Redeem,
    /// `GET /v1/step`
    Step,
    /// `POST /v1/gate`
    Gate,
    /// `GET /v1/orders`
    Orders,
    /// `POST /v1/events`
    Events,
    /// `POST /v1/publish`
    Publish,
    /// `POST /v1/pull-request`
    PullRequest,
    /// `POST /v1/result`
    Result,
    /// `/git/...`
    Git,
    /// `/llm/...`
    Model,
    /// `CONNECT`
    Connect,
}

impl Route {
    /// The route of a request, if there is one.
    pub fn of(method: &Method, path: &str) -> Option<Self> {
        if method == Method::CONNECT {
            return Some(Self::Connect);
        }
        if !is_plain(path) {
            return None;
        }
        let route = match (method.as_str(), path) {
            ("GET", "/healthz") => Self::Health,
            ("HEAD", "/" | "/llm" | "/llm/") => Self::ModelProbe,
            ("POST", "/v1/redeem") => Self::Redeem,
            ("GET", "/v1/step") => Self::Step,
            ("POST", "/v1/gate") => Self::Gate,
            ("GET", "/v1/orders") => Self::Orders,
            ("POST", "/v1/events") => Self::Events,
            ("POST", "/v1/publish") => Self::Publish,
            ("POST", "/v1/pull-request") => Self::PullRequest,
            ("POST", "/v1/result") => Self::Result,
            _ if path.starts_with("/llm/") => Self::Model,
            ("GET" | "POST", _) if path.starts_with("/git/") => Self::Git,
            _ => return None,
        };
        Some(route)
    }

    /// All routes.
    pub const ALL: [Self; 13] = [
        Self::Health,
        Self::ModelProbe,
        Self::Redeem,
        Self::Step,
        Self::Gate,
        Self::Orders,
        Self::Events,
        Self::Publish,
        Self::PullRequest,
        Self::Result,
        Self::Git,
        Self::Model,
        Self::Connect,
    ];

    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::ModelProbe => "model_probe",
            Self::Redeem => "redeem",
            Self::Step => "step",
            Self::Gate => "gate",
            Self::Orders => "orders",
            Self::Events => "events",
            Self::Publish => "publish",
            Self::PullRequest => "pull_request",
            Self::Result => "result",
            Self::Git => "git",
            Self::Model => "model",
            Self::Connect => "connect",
        }
    }

    /// The token that the route needs and how it is presented; none for the two that say nothing.
    pub fn needs(self) -> Option<(TokenKind, Scheme)> {
        match self {
            Self::Health | Self::ModelProbe => None,
            Self::Redeem => Some((TokenKind::OneTime, Scheme::Bearer)),
            Self::Step
            | Self::Gate
            | Self::Orders
            | Self::Events
            | Self::Publish
            | Self::PullRequest
            | Self::Result => Some((TokenKind::Runner, Scheme::Bearer)),
            Self::Git => Some((TokenKind::Agent, Scheme::Basic)),
            Self::Model => Some((TokenKind::Agent, Scheme::BearerOrApiKey)),
            Self::Connect => Some((TokenKind::Agent, Scheme::ProxyBasic)),
        }
    }
}

/// A path that every parser reads alike: no escapes, no empty or dot segments.
fn is_plain(path: &str) -> bool {
    let plain_bytes = path
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'_' | b'.' | b'~'));
    let segments = path.strip_prefix('/').unwrap_or(path).split('/');
    let dots = segments.clone().any(|segment| matches!(segment, "." | ".."));
    // An empty last segment is a trailing slash.
    let empty = segments.rev().skip(1).any(str::is_empty);
    plain_bytes && path.starts_with('/') && !dots && !empty
}

/// Accepts until the shutdown; open connections end with it.
pub async fn serve(gateway: Shared, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            () = gateway.shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let address = peer.ip().to_canonical();
        let Some(slot) = gateway.connections.take(address, Instant::now()) else {
            if let Some(attempt) = gateway.grants.at_address(address) {
                attempt.refuse(RefusalKind::Limit, "connections");
            }
            continue;
        };
        let shared = Arc::clone(&gateway);
        gateway.tasks.spawn(async move {
            let _slot = slot;
            let shutdown = shared.shutdown.clone();
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = connection(shared, stream, peer) => {}
            }
        });
    }
}

async fn connection(gateway: Shared, stream: TcpStream, peer: SocketAddr) {
    // Small answers go out at once; a failure only delays them.
    let _ = stream.set_nodelay(true);
    let shared = &gateway;
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let gateway = Arc::clone(shared);
        async move {
            let counting = Arc::clone(&gateway);
            let request = request.map(|body| {
                Body::new(body.map_err(move |error| {
                    unreadable(&counting, peer, &error);
                    error
                }))
            });
            Ok::<_, Infallible>(Box::pin(answer(&gateway, peer, request)).await)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIMEOUT)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        unreadable(&gateway, peer, &error);
        tracing::debug!(%peer, %error, "connection ended");
    }
}

/// Counts what hyper has refused before any route of ours saw it, for whoever has the address. A
/// connection that broke off or fell silent is no refusal.
fn unreadable(gateway: &Shared, peer: SocketAddr, error: &hyper::Error) {
    let kind = match error {
        error if error.is_parse_too_large() => RefusalKind::Limit,
        error if error.is_parse() || is_misframed(error) => RefusalKind::Protocol,
        _ => return,
    };
    if let Some(attempt) = gateway.grants.at_address(peer.ip().to_canonical()) {
        // hyper's own words, of which there are few: nothing of the request is in them.
        attempt.refuse(kind, &error.to_string());
    }
}

/// Whether a body is not what its framing says.
fn is_misframed(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| {
        matches!(cause.kind(), ErrorKind::InvalidInput | ErrorKind::InvalidData)
    })
}

/// Answers one request, and counts it.
async fn answer(gateway: &Shared, peer: SocketAddr, request: Request<Body>) -> Answer {
    let route = Route::of(request.method(), request.uri().path());
    let answer = judge(gateway, peer, request, route).await;
    gateway.book.metrics().answered(route, answer.status());
    answer
}

/// Whether and by whom a request is answered.
async fn judge(
    gateway: &Shared,
    peer: SocketAddr,
    request: Request<Body>,
    route: Option<Route>,
) -> Answer {
    let address = peer.ip().to_canonical();
    let now = Instant::now();
    // Whoever is refused, or asks for nothing, spends of its address' allowance too.
    let admitted = admit(gateway, address, &request, route);
    let within_rate = match (&admitted, route.and_then(Route::needs)) {
        (Ok(Some(caller)), Some((TokenKind::Runner, _))) => {
            caller.attempt.limits().take_runner_request(now)
        }
        _ => gateway.connections.take_request(address, now),
    };
    if !within_rate {
        return too_many(gateway.grants.at_address(address).as_deref());
    }
    let (route, caller) = match (route, admitted) {
        (_, Err(answer)) => return answer,
        (Some(route), Ok(Some(caller))) => (route, caller),
        (_, Ok(_)) => return respond::empty(StatusCode::OK),
    };
    let within = caller.attempt.context().clone();
    dispatch(gateway, route, &caller, request).instrument(within).await
}

/// The caller; none on the routes that say nothing.
fn admit(
    gateway: &Shared,
    address: IpAddr,
    request: &Request<Body>,
    route: Option<Route>,
) -> Result<Option<Caller>, Answer> {
    let target = target(request);
    let count = |kind: RefusalKind| {
        if let Some(attempt) = gateway.grants.at_address(address) {
            attempt.refuse(kind, &target);
        }
    };
    if let Some(message) = ambiguous(request) {
        count(RefusalKind::Protocol);
        return Err(closing(respond::refused(StatusCode::BAD_REQUEST, message)));
    }
    let Some(route) = route else {
        let path = request.uri().path();
        let kind = if path.starts_with("/git") { RefusalKind::Git } else { RefusalKind::Egress };
        count(kind);
        return Err(respond::refused(StatusCode::NOT_FOUND, "no such route"));
    };
    let Some((kind, scheme)) = route.needs() else { return Ok(None) };
    let caller =
        identity::identify(&gateway.grants, request.headers(), scheme, kind, address, &target);
    caller.map(Some).map_err(|error| unidentified(route, error))
}

/// 429, and the end of the connection: the next request costs a new one.
fn too_many(attempt: Option<&Attempt>) -> Answer {
    if let Some(attempt) = attempt {
        attempt.refuse(RefusalKind::Limit, "requests");
    }
    closing(respond::error(StatusCode::TOO_MANY_REQUESTS, None, "too many requests", true))
}

fn closing(mut answer: Answer) -> Answer {
    let close = header::HeaderValue::from_static("close");
    answer.headers_mut().insert(header::CONNECTION, close);
    answer
}

async fn dispatch(
    gateway: &Shared,
    route: Route,
    caller: &Caller,
    request: Request<Body>,
) -> Answer {
    match route {
        Route::Health | Route::ModelProbe => respond::empty(StatusCode::OK),
        Route::Redeem => attempt_api::redeem(gateway, caller, request).await,
        Route::Step => attempt_api::step(gateway, caller).await,
        Route::Gate => attempt_api::gate(gateway, caller, request).await,
        Route::Orders => attempt_api::orders(caller).await,
        Route::Events => attempt_api::events(gateway, caller, request).await,
        Route::Publish => attempt_api::publish(gateway, caller, request).await,
        Route::PullRequest => attempt_api::pull_request(gateway, caller, request).await,
        Route::Result => attempt_api::result(gateway, caller, request).await,
        Route::Git => git(gateway, caller, request).await,
        Route::Model => {
            let path = request.uri().path();
            let path = path.strip_prefix("/llm").unwrap_or(path).to_owned();
            gateway.model.handle(caller, &path, request).await
        }
        Route::Connect => gateway.egress.connect(caller, request).await,
    }
}

/// Git smart HTTP of the attempt's own repository, while the step runs.
async fn git(gateway: &Shared, caller: &Caller, request: Request<Body>) -> Answer {
    let attempt = &caller.attempt;
    let path = request.uri().path().to_owned();
    // The query of `info/refs` says whether a fetch or a push was meant.
    let whole = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let refuse = |status, message: &str| {
        attempt.refuse(RefusalKind::Git, &format!("{} {path}", request.method()));
        respond::refused(status, message)
    };
    if !GitService::serves(&request, &attempt.assignment().repository.name) {
        return refuse(StatusCode::NOT_FOUND, "no such repository or git service");
    }
    if let Err(not_now) = attempt.agent_may_act(Instant::now()) {
        return refuse(StatusCode::FORBIDDEN, &not_now.to_string());
    }
    let Some(credential) = attempt.credential(purpose::GIT) else {
        attempt.ask_credentials_again();
        return respond::later("the gateway waits for the attempt's credentials");
    };
    let grant = repository_grant(attempt);
    let answer = gateway.git.serve(&grant, credential.as_ref(), request).await;
    if answer.status() == StatusCode::FORBIDDEN {
        attempt.refuse(RefusalKind::Git, &whole);
    }
    answer
}

/// What a refused request is counted under: method and path, or the host of a CONNECT.
fn target(request: &Request<Body>) -> String {
    match request.uri().authority() {
        Some(authority) => format!("{} {authority}", request.method()),
        None => format!("{} {}", request.method(), request.uri().path()),
    }
}

/// Why a request could be read in two ways, or wants something that the gateway does not do.
fn ambiguous(request: &Request<Body>) -> Option<&'static str> {
    let headers = request.headers();
    let connect = request.method() == Method::CONNECT;
    if !connect && request.uri().authority().is_some() {
        return Some("requests to other hosts go through CONNECT");
    }
    // hyper looks at the last coding alone. A length beside it is not to be seen here: hyper drops it,
    // and reads nothing more of the connection. What goes on upstream has a framing of our own.
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if codings.next().is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        || codings.next().is_some()
    {
        return Some("a transfer coding other than chunked");
    }
    if connect && has_body(headers) {
        return Some("CONNECT has no body");
    }
    if headers.get_all(header::HOST).iter().count() > 1 {
        return Some("more than one Host");
    }
    headers.contains_key(header::UPGRADE).then_some("upgrades are not supported")
}

fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0")
}

fn unidentified(route: Route, error: IdentityError) -> Answer {
    // A pod may be faster than the registration of its attempt, which comes by another socket: by far,
    // if this process stood still meanwhile. What has tokens of its own was registered long before.
    let may_become_known = route == Route::Redeem && error == IdentityError::Invalid;
    let retryable = error == IdentityError::NotSynced || may_become_known;
    let status = match (error, route) {
        (IdentityError::NotSynced, _) => StatusCode::SERVICE_UNAVAILABLE,
        (IdentityError::WrongKind, _) => StatusCode::FORBIDDEN,
        (_, Route::Connect) => StatusCode::PROXY_AUTHENTICATION_REQUIRED,
        _ => StatusCode::UNAUTHORIZED,
    };
    if route == Route::Model {
        let kind = if retryable { llm::Kind::API } else { llm::Kind::AUTHENTICATION };
        return llm::error(status, kind, &error.to_string(), retryable);
    }
    let mut answer = respond::error(status, None, error.to_string(), retryable);
    let challenge = match route {
        Route::Connect => header::PROXY_AUTHENTICATE,
        _ => header::WWW_AUTHENTICATE,
    };
    if matches!(route, Route::Git | Route::Connect) {
        answer.headers_mut().insert(challenge, header::HeaderValue::from_static(GIT_CHALLENGE));
    }
    answer
}
