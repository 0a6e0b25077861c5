//! The HTTP edge: a service that any `kube::Client` can be made of, with a fate for each request.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, future::BoxFuture, stream};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use jiff::Timestamp;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tower::Service;

use super::{
    call::{Call, Verb},
    selector::Selector,
    store::{Deletion, Key, Refusal, Store},
};

/// Lines of a watch that wait for a slow client.
const LINES_MAX: usize = 64;

/// The body of an answer.
type Answer = UnsyncBoxBody<Bytes, Infallible>;

/// How a request ends.
#[derive(Clone, Debug, Default)]
pub enum End {
    /// As a sound server ends it.
    #[default]
    Answer,
    /// The server refuses it without looking.
    Refuse(Refusal, Option<u32>),
    /// The connection breaks.
    Lose {
        /// Whether it took effect before.
        applied: bool,
        /// Whether the client is left without any sign of it.
        silent: bool,
    },
    /// A list shows the state so many versions ago.
    Stale(u64),
}

/// What the way to the server does with a request.
#[derive(Clone, Debug, Default)]
pub struct Fate {
    /// Time until it takes effect.
    pub before: Duration,
    /// Time from there until the answer is there.
    pub after: Duration,
    /// Its end.
    pub end: End,
}

/// A client's line to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Everything gets through.
    Up,
    /// Nothing does, in both directions, until it is mended.
    Cut,
    /// The client is no more.
    Dead,
}

/// What becomes of an event on its way to a client that watches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passage {
    /// It arrives.
    #[default]
    Once,
    /// It arrives, and then again.
    Twice,
    /// The stream breaks instead.
    Broken,
}

/// Pause between two looks whether a broken line has been mended.
const MENDED: Duration = Duration::from_millis(200);

/// The way between clients and server; all of it may go wrong.
pub trait Network: Send + Sync {
    /// The fate of a request.
    fn fate(&self, call: &Call) -> Fate {
        let _ = call;
        Fate::default()
    }

    /// Called when a request has taken effect, or was refused.
    fn served(&self, call: &Call, result: Result<&Value, &Refusal>) {
        let _ = (call, result);
    }

    /// The line to this client now.
    fn link(&self, client: &str) -> Link {
        let _ = client;
        Link::Up
    }

    /// What becomes of an event on its way to this client.
    fn passage_of_event(&self, client: &str) -> Passage {
        let _ = client;
        Passage::Once
    }

    /// Whether events of this watch are held up.
    fn holds(&self, call: &Call) -> bool {
        let _ = call;
        false
    }

    /// Time that an event takes to reach this client.
    fn delay_of_event(&self, client: &str) -> BoxFuture<'static, ()> {
        let _ = client;
        Box::pin(std::future::ready(()))
    }
}

/// A way on which nothing goes wrong and nothing takes time.
#[derive(Debug)]
pub struct Calm;

impl Network for Calm {}

struct Shared {
    store: Mutex<Store>,
    version: watch::Sender<u64>,
    network: Box<dyn Network>,
}

/// The server. Cheap to clone.
#[derive(Clone)]
pub struct ApiServer {
    shared: Arc<Shared>,
}

impl ApiServer {
    /// A server without objects.
    pub fn new(network: impl Network + 'static, clock: fn() -> Timestamp) -> Self {
        let (version, _) = watch::channel(0);
        let store = Mutex::new(Store::new(clock));
        Self { shared: Arc::new(Shared { store, version, network: Box::new(network) }) }
    }

    /// A client whose requests are told apart by `name`.
    pub fn client(&self, name: &str) -> kube::Client {
        kube::Client::new(Edge { server: self.clone(), client: name.to_owned() }, "default")
    }

    /// Looks at the objects, or changes them past the edge, as parts of the cluster do that are not
    /// under test. Watches learn of it.
    pub fn with<T>(&self, work: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.lock();
        let done = work(&mut store);
        let version = store.version();
        drop(store);
        self.shared.version.send_if_modified(|known| std::mem::replace(known, version) != version);
        done
    }

    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.version.subscribe()
    }

    pub(super) fn network(&self) -> &dyn Network {
        self.shared.network.as_ref()
    }

    /// Waits while the line to a client is cut; whether it can be reached at all.
    pub(super) async fn reach(&self, client: &str) -> bool {
        loop {
            match self.network().link(client) {
                Link::Up => return true,
                Link::Cut => tokio::time::sleep(MENDED).await,
                Link::Dead => return false,
            }
        }
    }

    /// Waits while events of this watch are held up.
    pub(super) async fn let_through(&self, call: &Call) {
        while self.network().holds(call) {
            tokio::time::sleep(MENDED).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.shared.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(self, client: String, request: Request<Body>) -> Option<Response<Answer>> {
        let (parts, body) = request.into_parts();
        let body =
            body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let Some(call) = Call::read(&client, &parts.method, &parts.uri) else {
            return Some(answer(404, &status(404, "NotFound", "no such resource here")));
        };
        let Fate { before, after, end } = self.network().fate(&call);
        pause(before).await;
        if !self.reach(&client).await {
            // Its last request died with it; nobody waits for an answer.
            std::future::pending::<()>().await;
        }
        let response = match end {
            End::Refuse(refusal, retry_after) => {
                let mut response = refused(&refusal);
                if let Some(seconds) = retry_after {
                    response.headers_mut().insert("retry-after", seconds.into());
                }
                Some(response)
            }
            End::Lose { applied, silent } => {
                if applied && call.verb != Verb::Watch {
                    drop(self.act(&call, &parts.headers, &body, None));
                }
                if silent {
                    std::future::pending::<()>().await;
                }
                None
            }
            End::Stale(versions) => Some(self.act(&call, &parts.headers, &body, Some(versions))),
            End::Answer => Some(self.act(&call, &parts.headers, &body, None)),
        };
        pause(after).await;
        if !self.reach(&client).await {
            std::future::pending::<()>().await;
        }
        response
    }

    fn act(
        &self,
        call: &Call,
        headers: &http::HeaderMap,
        body: &Bytes,
        behind: Option<u64>,
    ) -> Response<Answer> {
        if call.verb == Verb::Watch {
            return self.watch(call);
        }
        let content_type = headers.get("content-type").and_then(|value| value.to_str().ok());
        let result = self.with(|store| execute(store, call, content_type, body, behind));
        self.network().served(call, result.as_ref());
        match result {
            Ok(object) => answer(if call.verb == Verb::Create { 201 } else { 200 }, &object),
            Err(refusal) => refused(&refusal),
        }
    }

    fn watch(&self, call: &Call) -> Response<Answer> {
        let (lines, queue) = mpsc::channel(LINES_MAX);
        tokio::spawn(super::watch::feed(self.clone(), call.clone(), lines));
        let queue = stream::unfold(queue, async |mut queue| Some((queue.recv().await?, queue)));
        let frames = queue.map(|line| Ok::<_, Infallible>(Frame::data(line)));
        Response::new(StreamBody::new(frames).boxed_unsync())
    }
}

async fn pause(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

fn execute(
    store: &mut Store,
    call: &Call,
    content_type: Option<&str>,
    body: &Bytes,
    behind: Option<u64>,
) -> Result<Value, Refusal> {
    let unreadable = |error| Refusal::new(400, "BadRequest", format!("read the body: {error}"));
    let input = || serde_json::from_slice::<Value>(body).map_err(unreadable);
    let key: Key = (
        call.kind.plural,
        call.namespace.clone().unwrap_or_default(),
        call.name.clone().unwrap_or_default(),
    );
    match call.verb {
        Verb::Get => store.get(&key).cloned().ok_or_else(|| {
            let message = format!("{} \"{}\" not found", call.kind.qualified(), key.2);
            Refusal::new(404, "NotFound", message)
        }),
        Verb::List => Ok(list(store, call, behind)),
        Verb::Create => store.create(call.kind, call.namespace.as_deref(), input()?),
        Verb::Patch => match content_type {
            Some("application/merge-patch+json") => {
                store.merge(call.kind, &key, &input()?, call.is_about_status())
            }
            // Of resources that are defined the server knows no strategy.
            Some("application/strategic-merge-patch+json") if call.kind.group.is_empty() => {
                store.strategic(call.kind, &key, &input()?, call.is_about_status())
            }
            Some("application/apply-patch+yaml") => {
                let manager = call.query.get("fieldManager").map_or("", String::as_str);
                store.apply(call.kind, &key, &input()?, manager, call.is_about_status())
            }
            other => {
                let message =
                    format!("the body of the request was in an unknown format: {other:?}");
                Err(Refusal::new(415, "UnsupportedMediaType", message))
            }
        },
        Verb::Delete => {
            let options = if body.is_empty() { Value::Null } else { input()? };
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let deletion = Deletion {
                uid: text(&options["preconditions"]["uid"]),
                version: text(&options["preconditions"]["resourceVersion"]),
                grace: options["gracePeriodSeconds"].as_i64(),
            };
            store.delete(call.kind, &key, &deletion)
        }
        Verb::Watch => unreachable!("a watch is a stream"),
    }
}

/// One page of a list. Unlike the real server's, later pages show the present and not the state of
/// the first.
fn list(store: &Store, call: &Call, behind: Option<u64>) -> Value {
    let selector = Selector::of(call);
    let version = store.version().saturating_sub(behind.unwrap_or(0)).max(1);
    let all = store.all_at(call.kind, version);
    let place = |object: &Value| {
        let meta = &object["metadata"];
        format!(
            "{}/{}",
            meta["namespace"].as_str().unwrap_or_default(),
            meta["name"].as_str().unwrap_or_default()
        )
    };
    let after = call.query.get("continue").cloned().unwrap_or_default();
    let matching =
        all.into_iter().filter(|object| selector.matches(object) && place(object) > after);
    let mut items: Vec<_> = matching.collect();
    let limit = call.number("limit").and_then(|limit| usize::try_from(limit).ok());
    let mut next = String::new();
    if let Some(limit) = limit.filter(|limit| *limit > 0 && items.len() > *limit) {
        items.truncate(limit);
        next = items.last().map(place).unwrap_or_default();
    }
    json!({
        "apiVersion": call.kind.api_version(),
        "kind": format!("{}List", call.kind.kind),
        "metadata": {"resourceVersion": version.to_string(), "continue": next},
        "items": items,
    })
}

/// A `Status` object.
pub(super) fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code})
}

fn refused(refusal: &Refusal) -> Response<Answer> {
    answer(refusal.code, &status(refusal.code, refusal.reason, &refusal.message))
}

fn answer(code: u16, object: &Value) -> Response<Answer> {
    let body = Full::new(Bytes::from(object.to_string()));
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(code).expect("codes of this file are codes");
    response
}

/// One client's connection. A request that was sent takes effect also if its sender dies.
#[derive(Clone)]
struct Edge {
    server: ApiServer,
    client: String,
}

impl Service<Request<Body>> for Edge {
    type Response = Response<Answer>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (done, answer) = oneshot::channel();
        let served = self.server.clone().serve(self.client.clone(), request);
        tokio::spawn(async move {
            let _ = done.send(served.await);
        });
        Box::pin(async move {
            let lost = || std::io::Error::from(std::io::ErrorKind::ConnectionReset);
            answer.await.ok().flatten().ok_or_else(lost)
        })
    }
}
