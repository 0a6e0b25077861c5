//! The call of the provider, up to the head of its answer.
//!
//! A task of its own makes it, as another one reads the answer: an agent that hangs up ends its
//! connection, and nothing of what it has asked for.

use std::time::Duration;

use axum::body::Body;
use http::{Request, StatusCode};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::timeout,
};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use super::{
    Kind,
    answer::{self, Flow},
    error,
};
use crate::gateway::{
    http_client::{HttpClient, describe},
    metrics::CallResult,
    respond::Answer,
};

/// Time until the provider's answer begins: answers that are not streamed take minutes.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(10);

/// A call that has passed every check.
pub(super) struct Call {
    pub(super) client: HttpClient,
    /// As the provider gets it.
    pub(super) request: Request<Body>,
    /// What is needed to count it.
    pub(super) flow: Flow,
    /// The room that the request's body takes in memory, held until the answer begins.
    pub(super) room: Option<OwnedSemaphorePermit>,
}

impl Call {
    /// Makes the call in a task of `tasks`, and waits for our answer to it.
    pub(super) async fn made(self, tasks: &TaskTracker) -> Answer {
        let (sink, answer) = oneshot::channel();
        let further = tasks.clone();
        let task = async move {
            // An error says that the agent has hung up; the rest is read for the count alone.
            let _ = sink.send(self.answered(&further).await);
        };
        tasks.spawn(task.in_current_span());
        // Without an answer it ends only with the process.
        answer.await.unwrap_or_else(|_| stopped())
    }

    async fn answered(self, tasks: &TaskTracker) -> Answer {
        let Self { client, request, flow, room: _room } = self;
        let answered = tokio::select! {
            biased;
            () = flow.attempt.agent_ended().cancelled() => {
                flow.over_unsaid(CallResult::Ended, None);
                return stopped();
            }
            answered = timeout(ANSWER_TIMEOUT, client.request(request)) => answered,
        };
        let message = match answered {
            Ok(Ok(response)) => return answer::pass_on(response, flow, tasks),
            Ok(Err(failed)) => {
                format!("the model provider cannot be reached ({})", describe(&failed))
            }
            Err(_) => "the model provider does not answer".to_owned(),
        };
        tracing::warn!("{message}");
        if flow.counted {
            flow.attempt.set_provider_failure(Some(message.clone()));
        }
        flow.over_unsaid(CallResult::Unreachable, None);
        error(StatusCode::BAD_GATEWAY, Kind::API, &message, true)
    }
}

fn stopped() -> Answer {
    error(StatusCode::FORBIDDEN, Kind::PERMISSION, "the step has been told to stop", false)
}
