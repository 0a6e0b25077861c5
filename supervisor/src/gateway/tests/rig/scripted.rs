//! The scripted model server.

use std::sync::{Arc, Mutex};

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
};

/// A request as the model server saw it.
#[derive(Clone, Debug)]
pub(in super::super) struct Seen {
    pub(in super::super) method: Method,
    pub(in super::super) uri: String,
    pub(in super::super) headers: HeaderMap,
}

/// What the model server answers: when it begins to, status, content type, pieces.
#[derive(Debug)]
pub(in super::super) struct Script {
    pub(in super::super) begins: Option<oneshot::Receiver<()>>,
    pub(in super::super) status: StatusCode,
    pub(in super::super) content_type: &'static str,
    pub(in super::super) pieces: mpsc::Receiver<Bytes>,
}

/// The scripted model server.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Model {
    pub(in super::super) seen: Arc<Mutex<Vec<Seen>>>,
    scripts: Arc<Mutex<Vec<Script>>>,
}

impl Model {
    /// Adds an answer; the sender writes its body and ends it when dropped.
    pub(in super::super) fn answer(
        &self,
        status: u16,
        content_type: &'static str,
    ) -> mpsc::Sender<Bytes> {
        let (sender, pieces) = mpsc::channel(16);
        let status = StatusCode::from_u16(status).unwrap();
        self.scripts.lock().unwrap().push(Script { begins: None, status, content_type, pieces });
        sender
    }

    /// The same with status 200, for an answer that begins when it is told to.
    pub(in super::super) fn answer_late(
        &self,
        content_type: &'static str,
    ) -> (oneshot::Sender<()>, mpsc::Sender<Bytes>) {
        let (head, begins) = oneshot::channel();
        let (sender, pieces) = mpsc::channel(16);
        let (begins, status) = (Some(begins), StatusCode::OK);
        self.scripts.lock().unwrap().push(Script { begins, status, content_type, pieces });
        (head, sender)
    }

    /// Adds a whole JSON answer that used `tokens` of input and of output.
    pub(in super::super) async fn answer_json(&self, tokens: u64) {
        let body = serde_json::json!({
            "model": "claude-x", "content": [],
            "usage": {"input_tokens": tokens, "output_tokens": tokens},
        });
        self.answer(200, "application/json").send(body.to_string().into()).await.unwrap();
    }

    pub(in super::super) async fn serve(self, listener: TcpListener) {
        let handler = move |request: Request<Body>| {
            let model = self.clone();
            async move {
                let (parts, body) = request.into_parts();
                body.collect().await.unwrap();
                model.seen.lock().unwrap().push(Seen {
                    method: parts.method,
                    uri: parts.uri.to_string(),
                    headers: parts.headers,
                });
                let script = {
                    let mut scripts = model.scripts.lock().unwrap();
                    assert!(!scripts.is_empty(), "a request that no script expects");
                    scripts.remove(0)
                };
                if let Some(begins) = script.begins {
                    begins.await.unwrap();
                }
                let pieces = tokio_stream::wrappers::ReceiverStream::new(script.pieces);
                Response::builder()
                    .status(script.status)
                    .header("content-type", script.content_type)
                    .header("set-cookie", "a=b")
                    .header("request-id", "req_1")
                    .body(Body::from_stream(pieces.map(Ok::<_, std::io::Error>)))
                    .unwrap()
            }
        };
        axum::serve(listener, axum::Router::new().fallback(handler)).await.unwrap();
    }
}
