//! Reads and checks the bodies of the attempt API.

use agent_operator::{
    attempt::{BODY_BYTES_MAX, EVENTS_PER_REQUEST_MAX, EventsRequest},
    domain::limits::EVENT_BYTES_MAX,
};
use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::gateway::{
    limits::BODY_READ_TIMEOUT,
    respond::{self, Answer},
};

/// JSON escapes may make a record longer than the runner counted it.
const EVENT_JSON_BYTES_MAX: usize = 4 * EVENT_BYTES_MAX;

/// The body as `T`.
pub(super) async fn read_json<T: DeserializeOwned>(request: Request<Body>) -> Result<T, Answer> {
    let read = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
    let body = match timeout(BODY_READ_TIMEOUT, read).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("the body exceeds {BODY_BYTES_MAX} bytes");
            return Err(respond::refused(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        Ok(Err(_)) | Err(_) => {
            let message = "the body did not arrive whole";
            return Err(respond::refused(StatusCode::REQUEST_TIMEOUT, message));
        }
    };
    serde_json::from_slice(&body).map_err(|error| {
        // serde's messages quote field names and positions, which are the caller's own.
        respond::refused(StatusCode::BAD_REQUEST, format!("the body is not valid: {error}"))
    })
}

/// Whether the records keep the contract's limits.
pub(super) fn check_events(request: &EventsRequest) -> Result<(), String> {
    if request.records.len() > EVENTS_PER_REQUEST_MAX {
        return Err(format!("more than {EVENTS_PER_REQUEST_MAX} records in one request"));
    }
    let longest = request
        .records
        .iter()
        .filter_map(|record| serde_json::to_vec(record).ok())
        .map(|json| json.len())
        .max()
        .unwrap_or(0);
    if longest > EVENT_JSON_BYTES_MAX {
        return Err(format!("a record exceeds {EVENT_JSON_BYTES_MAX} bytes"));
    }
    Ok(())
}
