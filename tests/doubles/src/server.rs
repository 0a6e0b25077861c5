//! The HTTP server of the scripted model.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    conversation::Conversation,
    script::{Answer, answer},
    wire::{Message, Tokens, error},
};

/// Requests kept for `GET /_requests`: far above any test, and bounded for a server that runs for days.
const RECORDED_MAX: usize = 10_000;
/// Longest prompt kept of each.
const PROMPT_BYTES_MAX: usize = 256 * 1024;
/// Largest request, as the real service has it.
const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Keys that begin so are never accepted, so that one server can serve good and bad ones.
const REJECTED_KEY_PREFIX: &str = "rejected-";
/// Keys that begin so are accepted in the list of models, and then every model request gets this
/// status: what happens to a key in mid-step.
const FAILING_KEYS: [(&str, StatusCode, &str); 3] = [
    ("expired-", StatusCode::UNAUTHORIZED, "authentication_error"),
    ("limited-", StatusCode::TOO_MANY_REQUESTS, "rate_limit_error"),
    ("broken-", StatusCode::INTERNAL_SERVER_ERROR, "api_error"),
];

/// How the server behaves.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The only key that is accepted; none: all are.
    pub expect_key: Option<String>,
}

/// One request to the Messages API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recorded {
    /// Serial number from 0, not reset by deletion.
    pub serial: u64,
    /// HTTP status of the answer.
    pub status: u16,
    /// Model name.
    pub model: String,
    /// The step that the prompt names.
    pub step: Option<String>,
    /// Number of tool results in it.
    pub turn: usize,
    /// Text of the first user message.
    pub prompt: String,
    /// Names of the offered tools.
    pub tools: Vec<String>,
    /// Whether it asked for a stream.
    pub stream: bool,
    /// All headers, names in lower case. The keys of a test installation are no secrets.
    pub headers: BTreeMap<String, String>,
}

#[derive(Default)]
struct Record {
    requests: VecDeque<Recorded>,
    next: u64,
}

struct Shared {
    options: Options,
    record: Mutex<Record>,
}

/// A running server; it ends when this is dropped.
pub struct ScriptedModel {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<io::Result<()>>,
}

impl ScriptedModel {
    /// Starts a server on `listen`; port 0 takes a free one.
    pub async fn start(listen: SocketAddr, options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { options, record: Mutex::default() });
        let router = router(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, shared, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Base URL for `ANTHROPIC_BASE_URL`.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests so far, oldest first.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.record().requests.iter().cloned().collect()
    }

    /// Waits until the server ends, which it does by an error only.
    pub async fn serve(mut self) -> io::Result<()> {
        (&mut self.task).await.map_err(io::Error::other)?
    }
}

impl Drop for ScriptedModel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        // A panic elsewhere leaves a list of whole records.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, conversation: &Conversation, headers: &HeaderMap, status: StatusCode) {
        let mut record = self.record();
        let mut prompt = conversation.prompt.clone();
        let mut end = prompt.len().min(PROMPT_BYTES_MAX);
        while !prompt.is_char_boundary(end) {
            end -= 1;
        }
        prompt.truncate(end);
        let headers = headers.iter().map(|(name, value)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        });
        let recorded = Recorded {
            serial: record.next,
            status: status.as_u16(),
            model: conversation.model.clone(),
            step: conversation.step.clone(),
            turn: conversation.turn,
            prompt,
            tools: conversation.tools.clone(),
            stream: conversation.stream,
            headers: headers.collect(),
        };
        record.next += 1;
        record.requests.push_back(recorded);
        if record.requests.len() > RECORDED_MAX {
            record.requests.pop_front();
        }
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        // axum answers HEAD by the GET route.
        .route("/", get(|| async { "scripted model\n" }))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/v1/models", get(models))
        .route("/v1/messages", post(messages))
        .route("/v1/messages/count_tokens", post(count_tokens))
        .route("/_requests", get(list).delete(forget))
        .fallback(|| async { refused(StatusCode::NOT_FOUND, "not_found_error", "Not found") })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(shared)
}

async fn messages(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let Ok(parsed) = serde_json::from_slice::<Value>(&body) else {
        return refused(StatusCode::BAD_REQUEST, "invalid_request_error", "The body is not JSON");
    };
    let conversation = Conversation::parse(&parsed);
    let response = if key_is_wrong(&shared.options, &headers) {
        refused(StatusCode::UNAUTHORIZED, "authentication_error", "invalid x-api-key")
    } else if let Some((_, status, kind)) = failing(&headers) {
        refused(status, kind, "This key is scripted to fail")
    } else {
        answered(&conversation, body.len())
    };
    shared.keep(&conversation, &headers, response.status());
    response
}

fn failing(headers: &HeaderMap) -> Option<(&'static str, StatusCode, &'static str)> {
    let key = headers.get("x-api-key")?.to_str().ok()?;
    FAILING_KEYS.into_iter().find(|(prefix, ..)| key.starts_with(prefix))
}

fn key_is_wrong(options: &Options, headers: &HeaderMap) -> bool {
    let given = headers.get("x-api-key").and_then(|value| value.to_str().ok());
    if given.is_some_and(|key| key.starts_with(REJECTED_KEY_PREFIX)) {
        return true;
    }
    let expected = options.expect_key.as_deref();
    expected.is_some_and(|key| headers.get("x-api-key").is_none_or(|value| value != key))
}

fn answered(conversation: &Conversation, request_bytes: usize) -> Response {
    let answer = answer(conversation);
    if let Answer::Error { status, kind, message } = answer {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = refused(status, kind, message);
        if status == StatusCode::TOO_MANY_REQUESTS {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        return response;
    }
    let tokens = Tokens::count(conversation, request_bytes, &answer);
    let message = Message { conversation, answer: &answer, tokens };
    if !conversation.stream {
        return Json(message.json()).into_response();
    }
    // One piece an event: whoever is in between must pass them on as they come.
    let events = message.events().into_iter().map(Ok::<_, Infallible>);
    let body = Body::from_stream(futures::stream::iter(events));
    ([(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")], body).into_response()
}

/// The list of models: what tells a good key from a bad one without a model request.
async fn models(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    if key_is_wrong(&shared.options, &headers) || !headers.contains_key("x-api-key") {
        return refused(StatusCode::UNAUTHORIZED, "authentication_error", "invalid x-api-key");
    }
    if !headers.contains_key("anthropic-version") {
        let message = "anthropic-version: header is required";
        return refused(StatusCode::BAD_REQUEST, "invalid_request_error", message);
    }
    let model = json!({ "type": "model", "id": "scripted", "display_name": "Scripted" });
    Json(json!({ "data": [model], "has_more": false })).into_response()
}

async fn count_tokens(body: Bytes) -> Json<Value> {
    Json(json!({ "input_tokens": body.len() / 4 }))
}

async fn list(State(shared): State<Arc<Shared>>) -> Json<Vec<Recorded>> {
    Json(shared.record().requests.iter().cloned().collect())
}

async fn forget(State(shared): State<Arc<Shared>>) -> StatusCode {
    shared.record().requests.clear();
    StatusCode::NO_CONTENT
}

fn refused(status: StatusCode, kind: &str, message: &str) -> Response {
    (status, Json(error(kind, message))).into_response()
}
