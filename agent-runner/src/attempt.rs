//! Client of the attempt API.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use agent_operator::{
    attempt::{ApiError, BODY_BYTES_MAX},
    domain::Reason,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    clock,
    result::Failure,
    stop::{Stop, Stopping, Woken},
};

/// The gateway is on this node: a connection that takes longer will not come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// First pause between two tries; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause between two tries that nobody asked for: a restarted gateway is back in seconds, and
/// deadlines are not moved for it.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Longest pause that `Retry-After` may ask for: a forge that limits requests wants its time, and
/// the gateway holds no step for longer than this.
const ASKED_PAUSE_MAX: Duration = Duration::from_mins(5);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// No answer: refused, cut off, timed out.
    #[error("the gateway does not answer: {0}")]
    Unreachable(String),
    /// An answer, but no.
    #[error("{} (HTTP {status})", error.message)]
    Refused {
        /// HTTP status.
        status: u16,
        /// The gateway's words.
        error: ApiError,
        /// Pause that the gateway asks for.
        retry_after: Option<Duration>,
    },
    /// The step has to stop; the answer was not waited for.
    #[error("{}", .0.message)]
    Stopped(Stopping),
    /// An answer that does not parse.
    #[error("the gateway's answer cannot be read: {0}")]
    Malformed(String),
}

impl CallError {
    /// Whether the same call may succeed later.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Refused { status, error, .. } => {
                error.retryable || matches!(status, 429 | 502 | 503 | 504)
            }
            Self::Stopped(_) | Self::Malformed(_) => false,
        }
    }

    /// The end of a step that cannot go on after this; `reason` where the gateway names none.
    pub(crate) fn into_failure(self, reason: Reason) -> Failure {
        let reason = match &self {
            Self::Refused { error, .. } => error.reason.unwrap_or(reason),
            Self::Stopped(stopping) => stopping.reason,
            Self::Unreachable(_) | Self::Malformed(_) => reason,
        };
        Failure::new(reason, self.to_string())
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            Self::Unreachable(_) | Self::Stopped(_) | Self::Malformed(_) => None,
        }
    }
}

/// HTTP client with one token.
#[derive(Clone)]
pub(crate) struct Client {
    agent: ureq::Agent,
    base: String,
    token: Option<String>,
}

impl Client {
    /// A client of the gateway at `base`, without a token.
    pub(crate) fn new(base: &str) -> Self {
        let agent = ureq::Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .http_status_as_error(false)
            .max_redirects(0)
            // The environment's proxy settings are for the agent.
            .proxy(None)
            .user_agent(concat!("agent-runner/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Self { agent, base: base.trim_end_matches('/').to_owned(), token: None }
    }

    /// The same client with `token`.
    pub(crate) fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// Whether the gateway answers within [`CONNECT_TIMEOUT`].
    pub(crate) fn is_answered(&self) -> bool {
        let request = self.agent.get(format!("{}/healthz", self.base));
        request.config().timeout_global(Some(CONNECT_TIMEOUT)).build().call().is_ok()
    }

    /// `GET path`; the answer is held at most for `limit`.
    pub(crate) fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        limit: Duration,
    ) -> Result<T, CallError> {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        parse(&read(request.config().timeout_global(Some(limit)).build().call())?)
    }

    /// `POST path` with a JSON body; the answer is held at most for `limit`.
    pub(crate) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<T, CallError> {
        parse(&self.send(path, body, limit)?)
    }

    /// As [`Client::post`], for a route that answers without a body.
    pub(crate) fn post_only(
        &self,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<(), CallError> {
        self.send(path, body, limit).map(drop)
    }

    fn send(
        &self,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<Vec<u8>, CallError> {
        let body = serde_json::to_vec(body).map_err(|e| CallError::Malformed(e.to_string()))?;
        let mut request = self
            .agent
            .post(format!("{}{path}", self.base))
            .header("content-type", "application/json");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        read(request.config().timeout_global(Some(limit)).build().send(&body[..]))
    }
}

fn read(
    answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<Vec<u8>, CallError> {
    let unreachable = |error: ureq::Error| CallError::Unreachable(error.to_string());
    let mut response = answer.map_err(unreachable)?;
    let status = response.status().as_u16();
    let retry_after = response
        .headers()
        .get("retry-after")
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .map(Duration::from_secs);
    let limit = BODY_BYTES_MAX as u64;
    let body = response.body_mut().with_config().limit(limit).read_to_vec().map_err(unreachable)?;
    if (200..300).contains(&status) {
        return Ok(body);
    }
    let error = serde_json::from_slice(&body).unwrap_or_else(|_| ApiError {
        reason: None,
        message: "the gateway refused without saying why".to_owned(),
        retryable: false,
    });
    Err(CallError::Refused { status, error, retry_after })
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, CallError> {
    serde_json::from_slice(body).map_err(|error| CallError::Malformed(error.to_string()))
}

/// Repeats `call` while it fails retryably, until the boot time `until`.
pub(crate) fn patiently<T>(
    stop: &Stop,
    until: Duration,
    mut call: impl FnMut() -> Result<T, CallError>,
) -> Result<T, CallError> {
    let mut pause = PAUSE_MIN;
    loop {
        let error = match call() {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let now = clock::boot_now();
        if !error.is_retryable() || now >= until {
            return Err(error);
        }
        let asked = error.retry_after().unwrap_or_default();
        let wake_at = (now + asked.min(ASKED_PAUSE_MAX).max(pause)).min(until);
        stop.wait_regardless(Some(wake_at), || false);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// As [`patiently`], but a stop order ends it at once, also in the middle of a call: the call is
/// left to a thread that ends with the process.
pub(crate) fn until_stopped<T: Send + 'static>(
    stop: &Arc<Stop>,
    until: Duration,
    call: impl Fn() -> Result<T, CallError> + Send + 'static,
) -> Result<T, CallError> {
    let answer = Arc::new(Mutex::new(None));
    let (thread_answer, thread_stop) = (Arc::clone(&answer), Arc::clone(stop));
    thread::spawn(move || {
        let gave_up = || thread_stop.order().map(|stopping| Err(CallError::Stopped(stopping)));
        let result = patiently(&thread_stop, until, || gave_up().unwrap_or_else(&call));
        *thread_answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        thread_stop.wake();
    });
    let taken = || answer.lock().unwrap_or_else(PoisonError::into_inner).take();
    let is_there = || answer.lock().unwrap_or_else(PoisonError::into_inner).is_some();
    match stop.wait(None, is_there) {
        Woken::Stopping(stopping) => taken().unwrap_or(Err(CallError::Stopped(stopping))),
        Woken::Done | Woken::TimedOut => {
            taken().unwrap_or_else(|| Err(CallError::Unreachable("no answer".to_owned())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, retryable: bool) -> CallError {
        let error =
            ApiError { reason: Some(Reason::BudgetExceeded), message: "x".into(), retryable };
        CallError::Refused { status, error, retry_after: None }
    }

    #[test]
    fn what_may_succeed_later_is_repeated_until_it_does() {
        let stop = Stop::default();
        let until = clock::boot_now() + Duration::from_secs(5);
        let mut left =
            vec![Ok(7), Err(refused(503, false)), Err(CallError::Unreachable(String::new()))];
        let answer = patiently(&stop, until, || left.pop().unwrap());
        assert_eq!(answer.unwrap(), 7);
        let mut calls = 0;
        let answer = patiently(&stop, until, || {
            calls += 1;
            Err::<(), _>(refused(403, false))
        });
        assert!(answer.is_err());
        assert_eq!(calls, 1);
    }

    #[test]
    fn a_stop_order_does_not_wait_for_an_answer() {
        let stop = Arc::<Stop>::default();
        let (thread_stop, until) = (Arc::clone(&stop), Duration::MAX);
        let (_held, never) = std::sync::mpsc::channel::<()>();
        let never = Mutex::new(never);
        let order =
            Stopping { reason: Reason::Cancelled, message: "x".into(), kill_at: Duration::ZERO };
        let answer = until_stopped(&stop, until, move || {
            thread_stop.request(order.clone());
            let _ = never.lock().unwrap().recv();
            Ok(())
        });
        let failure = answer.unwrap_err().into_failure(Reason::PushRefused);
        assert_eq!(failure.reason, Reason::Cancelled);
    }

    #[test]
    fn a_refusal_keeps_the_gateways_reason() {
        let failure = refused(403, false).into_failure(Reason::PushRefused);
        assert_eq!(failure.reason, Reason::BudgetExceeded);
        let failure = CallError::Unreachable("x".into()).into_failure(Reason::PushRefused);
        assert_eq!(failure.reason, Reason::PushRefused);
    }

    #[test]
    fn a_closed_port_is_unreachable_at_once() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let client = Client::new(&format!("http://127.0.0.1:{port}"));
        let answer: Result<(), _> = client.get("/v1/step", Duration::from_secs(5));
        assert!(matches!(answer, Err(CallError::Unreachable(_))));
    }
}
