//! The two writes upstream that a runner may ask for: the work branch and the pull request.
//!
//! Both need the step to be running (an order to stop ends them too, so a deleted task writes
//! nothing afterwards), a supervisor that has a record of it, and the controller's permission. Both
//! go on when the runner's connection breaks, so that what was done upstream is always reported.

use std::{future::Future, sync::Arc};

use agent_operator::{
    attempt::{PublishRequest, Published, PullRequestRequest},
    domain::{Credential, Reason, StepName, secret::purpose},
    telemetry::audit::{self, Act},
};
use axum::body::Body;
use http::{Request, StatusCode};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::{collect::read_json, record};
use crate::{
    gateway::{
        book::Began,
        core::{Shared, repository_grant},
        forge::PullRequestOrder,
        git::GitError,
        grants::{Attempt, RefusalKind},
        identity::Caller,
        metrics::Operation,
        respond::{self, Answer},
    },
    link::contract::DurableEvent,
};

/// `POST /v1/publish`
pub(in crate::gateway) async fn publish(
    gateway: &Shared,
    caller: &Caller,
    request: Request<Body>,
) -> Answer {
    let request: PublishRequest = match read_json(request).await {
        Ok(request) => request,
        Err(answer) => return answer,
    };
    let attempt = &caller.attempt;
    let assignment = attempt.assignment();
    let allowed = assignment.step.may_push() && request.repository == assignment.repository.name;
    let credential = match admit(attempt, allowed, "publish") {
        Ok(credential) => credential,
        Err(answer) => return answer,
    };
    let (shared, attempt) = (Arc::clone(gateway), Arc::clone(attempt));
    to_the_end(gateway, async move {
        let grant = repository_grant(&attempt);
        let began = Began::now();
        let secrets = attempt.secrets();
        let permit = shared.permit.of_attempt(attempt.agent_ended(), attempt.claim());
        let published =
            shared.git.publish(&grant, &credential, &request.commit, &secrets, &permit).await;
        shared.book.at_forge(&attempt, Operation::Publish, began, published.is_ok());
        let published = match published {
            Ok((published, news)) => {
                if news {
                    record_push(&attempt, &published);
                }
                published
            }
            Err(error) => {
                if let Some(target) = error.refused_push() {
                    attempt.refuse(RefusalKind::Git, &target);
                }
                return git_failure(&error);
            }
        };
        let event = DurableEvent::Published {
            work_branch: published.work_branch.clone(),
            head_commit: published.head_commit.clone(),
        };
        match record(&shared, attempt.key(), event).await {
            Ok(()) => respond::json(StatusCode::OK, &published),
            Err(answer) => answer,
        }
    })
    .await
}

/// `POST /v1/pull-request`
pub(in crate::gateway) async fn pull_request(
    gateway: &Shared,
    caller: &Caller,
    request: Request<Body>,
) -> Answer {
    let request: PullRequestRequest = match read_json(request).await {
        Ok(request) => request,
        Err(answer) => return answer,
    };
    let attempt = &caller.attempt;
    let allowed = attempt.assignment().step == StepName::PullRequest;
    let credential = match admit(attempt, allowed, "pull-request") {
        Ok(credential) => credential,
        Err(answer) => return answer,
    };
    let (shared, attempt) = (Arc::clone(gateway), Arc::clone(attempt));
    to_the_end(gateway, async move {
        let order = PullRequestOrder {
            head_branch: head_branch(&attempt),
            grant: repository_grant(&attempt),
            title: attempt.secrets().scrub(request.title),
            body: attempt.secrets().scrub(request.body),
            issue: attempt.assignment().work.issue.clone(),
            unverified: attempt.assignment().work.unverified,
        };
        let began = Began::now();
        let permit = shared.permit.of_attempt(attempt.agent_ended(), attempt.claim());
        let opened = shared.forges.ensure_pull_request(&order, &credential, &permit).await;
        shared.book.at_forge(&attempt, Operation::PullRequest, began, opened.is_ok());
        let opened = match opened {
            Ok((opened, news)) => {
                if news {
                    let act = Act::PullRequestOpened { url: &opened.url };
                    audit::record(attempt.assignment(), &act);
                }
                opened
            }
            Err(error) => {
                tracing::warn!(%error, "pull request failed");
                let mut answer = failure(error.reason(), error.to_string(), error.retryable());
                if let Some(wait) = error.wait().filter(|_| error.retryable()) {
                    respond::retry_after(&mut answer, wait);
                }
                return answer;
            }
        };
        let event = DurableEvent::PullRequestOpened(opened.clone());
        match record(&shared, attempt.key(), event).await {
            Ok(()) => respond::json(StatusCode::OK, &opened),
            Err(answer) => answer,
        }
    })
    .await
}

fn record_push(attempt: &Attempt, published: &Published) {
    let act = Act::Pushed {
        repository: &attempt.assignment().repository.name,
        branch: &published.work_branch,
        commit: &published.head_commit,
    };
    audit::record(attempt.assignment(), &act);
}

/// The work branch as the preparation resolved it; after a restart, as the task knows it.
fn head_branch(attempt: &Attempt) -> String {
    let resolved = attempt.preparation.ready().map(|repository| repository.work_branch);
    resolved.unwrap_or_else(|| attempt.assignment().repository.work_branch.clone())
}

/// Whether the attempt may write upstream now, and with what.
fn admit(attempt: &Attempt, allowed: bool, operation: &str) -> Result<Credential, Answer> {
    if !allowed {
        attempt.refuse(RefusalKind::Git, operation);
        let message = "this step may not do that";
        return Err(respond::refused(StatusCode::FORBIDDEN, message));
    }
    if let Err(not_now) = attempt.agent_may_act(Instant::now()) {
        attempt.refuse(RefusalKind::Git, operation);
        return Err(respond::refused(StatusCode::FORBIDDEN, not_now.to_string()));
    }
    let Some(credential) = attempt.credential(purpose::GIT) else {
        attempt.ask_credentials_again();
        return Err(respond::later("the gateway waits for the attempt's credentials"));
    };
    credential.ok_or_else(|| {
        let message = "the task has no git credential; name a Secret in gitCredentialsRef";
        let reason = Some(Reason::InvalidTask);
        respond::error(StatusCode::UNPROCESSABLE_ENTITY, reason, message, false)
    })
}

/// Runs `work` in a task of its own, which outlives the client's connection.
async fn to_the_end(
    gateway: &Shared,
    work: impl Future<Output = Answer> + Send + 'static,
) -> Answer {
    gateway.tasks.spawn(work.in_current_span()).await.unwrap_or_else(|error| {
        tracing::error!(%error, "a write upstream ended unexpectedly");
        respond::later("the operation ended unexpectedly; try again")
    })
}

fn git_failure(error: &GitError) -> Answer {
    tracing::warn!(%error, "publish failed");
    failure(error.reason(), error.to_string(), error.retryable())
}

fn failure(reason: Option<Reason>, message: String, retryable: bool) -> Answer {
    let status = match (retryable, reason) {
        (true, _) => StatusCode::SERVICE_UNAVAILABLE,
        (false, Some(Reason::InvalidTask)) => StatusCode::UNPROCESSABLE_ENTITY,
        (false, _) => StatusCode::CONFLICT,
    };
    respond::error(status, reason, message, retryable)
}
