//! The body of a model request: taken in within limits, and checked without holding up others.

use std::sync::Arc;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body_util::{BodyExt as _, Limited};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;

use super::{
    Kind, error,
    request::{self, Facts, RequestError},
};
use crate::gateway::{
    grants::{Attempt, RefusalKind},
    limits::BODY_READ_TIMEOUT,
    respond::Answer,
};

/// Up to this size a body is checked where it comes in: a millisecond or two, and most are smaller.
const CHECKED_AT_ONCE_BYTES_MAX: usize = 256 * 1024;
/// Larger bodies that are checked at a time. Each may take a quarter of a second of a core and some
/// 30 MiB beside itself; who sends many waits behind its own.
const LARGE_CHECKS_MAX: usize = 2;

/// A body, and the room that it takes in memory until that is dropped.
pub(super) struct Whole {
    pub(super) bytes: Bytes,
    pub(super) room: Option<OwnedSemaphorePermit>,
}

/// Takes bodies in and checks them.
#[derive(Debug)]
pub(super) struct Bodies {
    bytes_max: usize,
    server_tools: Arc<[String]>,
    large_checks: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Bodies {
    /// Of bodies up to `bytes_max`; `server_tools` are allowed in them.
    pub(super) fn new(bytes_max: usize, server_tools: &[String], tasks: TaskTracker) -> Self {
        let large_checks = Arc::new(Semaphore::new(LARGE_CHECKS_MAX));
        Self { bytes_max, server_tools: server_tools.into(), large_checks, tasks }
    }

    /// The body as a whole.
    pub(super) async fn read(&self, attempt: &Attempt, body: Body) -> Result<Whole, Answer> {
        let mut body = Limited::new(body, self.bytes_max);
        let (mut bytes, mut room) = (BytesMut::new(), None::<OwnedSemaphorePermit>);
        let until = Instant::now() + BODY_READ_TIMEOUT;
        loop {
            let piece = match timeout_at(until, body.frame()).await {
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                Ok(None) => return Ok(Whole { bytes: bytes.freeze(), room }),
                Ok(Some(Err(cause))) if cause.is::<http_body_util::LengthLimitError>() => {
                    attempt.refuse(RefusalKind::Limit, "model request bytes");
                    let message = "the request is too large";
                    return Err(error(
                        StatusCode::PAYLOAD_TOO_LARGE,
                        Kind::TOO_LARGE,
                        message,
                        false,
                    ));
                }
                Ok(Some(Err(_))) | Err(_) => {
                    let message = "the request did not arrive whole";
                    return Err(error(StatusCode::REQUEST_TIMEOUT, Kind::INVALID, message, true));
                }
            };
            let Some(more) = attempt.limits().take_model_buffer(piece.len()) else {
                attempt.refuse(RefusalKind::Limit, "model request bytes at once");
                let message = "too many large model calls at once";
                return Err(error(StatusCode::TOO_MANY_REQUESTS, Kind::RATE_LIMIT, message, true));
            };
            match &mut room {
                Some(room) => room.merge(more),
                None => room = Some(more),
            }
            bytes.extend_from_slice(&piece);
        }
    }

    /// What matters of a body.
    pub(super) async fn check(
        &self,
        body: Whole,
    ) -> Result<(Whole, Result<Facts, RequestError>), Answer> {
        if body.bytes.len() <= CHECKED_AT_ONCE_BYTES_MAX {
            let facts = request::check(&body.bytes, &self.server_tools);
            return Ok((body, facts));
        }
        // The semaphore is never closed, so there always is a turn.
        let turn = Arc::clone(&self.large_checks).acquire_owned().await.ok();
        let server_tools = Arc::clone(&self.server_tools);
        // Turn and room go with it: an agent that hangs up has neither back before it has ended.
        let checked = self.tasks.spawn_blocking(move || {
            let facts = request::check(&body.bytes, &server_tools);
            drop(turn);
            (body, facts)
        });
        checked.await.map_err(|failed| {
            tracing::error!(error = %failed, "the check of a model request failed");
            let message = "the request could not be checked";
            error(StatusCode::INTERNAL_SERVER_ERROR, Kind::API, message, false)
        })
    }
}
