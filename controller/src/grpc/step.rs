//! `StepService`: for people and their tools.

use std::{pin::Pin, sync::Arc, time::Duration};

use agent_operator::{convert::wire_timestamp, proto::v1};
use tokio::{sync::Semaphore, time::timeout_at};
use tokio_stream::Stream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Code, Request, Response, Status};
use v1::{follow_request::Target as Wanted, step_service_server::StepService};

use super::{
    auth::{Authority, Caller, Reviewed},
    follow::{Follower, From, Stop, Target, outbox},
};
use crate::{
    catalog::{Catalog, RunView},
    clock,
    lease::Leadership,
    metrics::Metrics,
    streams::StreamStore,
};

/// Pause between two looks at the rights of whoever follows: a right that was withdrawn ends a call
/// within this time.
const RIGHTS_PERIOD: Duration = Duration::from_mins(5);

/// How long a call goes on while the cluster cannot be asked about its rights: outages of the API
/// server of some minutes must not end the telling.
const RIGHTS_TRUST: Duration = Duration::from_mins(15);

/// Followers at once in this process.
pub(super) const FOLLOWERS_MAX: usize = 1024;

/// Runs in an answer when the caller names no number.
const PAGE_SIZE: u32 = 100;

/// Most runs in an answer: about 1 KiB each, well within a message.
const PAGE_SIZE_MAX: u32 = 1000;

/// How long an object that is not there may take to appear.
const APPEAR_WAIT: Duration = Duration::from_secs(1);

/// Longest name of an object.
const NAME_BYTES_MAX: usize = 253;

/// The service.
pub(super) struct Steps {
    authority: Arc<Authority>,
    catalog: Catalog,
    store: Arc<StreamStore>,
    leadership: Leadership,
    metrics: Metrics,
    tasks: TaskTracker,
    stop: CancellationToken,
    followers: Arc<Semaphore>,
}

impl Steps {
    /// Every follower is a task of `tasks`, ended by `stop`.
    pub(super) fn new(
        authority: Arc<Authority>,
        catalog: Catalog,
        store: Arc<StreamStore>,
        leadership: Leadership,
        metrics: Metrics,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let followers = Arc::new(Semaphore::new(FOLLOWERS_MAX));
        Self { authority, catalog, store, leadership, metrics, tasks, stop, followers }
    }

    /// Lets the caller read in `namespace`, or refuses. Comes before every look at an object, so
    /// that nobody learns what exists elsewhere.
    async fn permit<T>(&self, request: &Request<T>, namespace: &str) -> Result<Reviewed, Status> {
        name("namespace", namespace)?;
        let Some(Caller::User(user)) = request.extensions().get::<Caller>() else {
            return Err(Status::unauthenticated("no user"));
        };
        let permitted = self.authority.permit_reader(user, namespace).await;
        if let Err(status) = &permitted {
            self.metrics.auth_refused(super::auth::code_name(status.code()));
        }
        permitted?;
        if self.catalog.synced() {
            Ok(user.clone())
        } else {
            Err(Status::unavailable("the controller has just started; try again"))
        }
    }

    async fn target(&self, namespace: &str, target: Option<Wanted>) -> Result<Target, Status> {
        match target {
            Some(Wanted::Task(task)) => {
                name("task", &task)?;
                let found = self.appear(|catalog| catalog.task(namespace, &task)).await;
                found.map(Target::Task).ok_or_else(|| {
                    Status::not_found(format!("no task {task} in namespace {namespace}"))
                })
            }
            Some(Wanted::Run(run)) => Ok(Target::Run(self.find_run(namespace, &run).await?)),
            None => Err(Status::invalid_argument("task or run: is missing")),
        }
    }

    async fn find_run(&self, namespace: &str, run: &str) -> Result<Arc<RunView>, Status> {
        name("run", run)?;
        self.appear(|catalog| catalog.run_named(namespace, run))
            .await
            .ok_or_else(|| Status::not_found(format!("no run {run} in namespace {namespace}")))
    }

    /// Looks for an object, and waits a moment for one that was made just now: the watch is some
    /// milliseconds behind the caller's own `kubectl apply`.
    async fn appear<T>(&self, find: impl Fn(&Catalog) -> Option<T>) -> Option<T> {
        let mut changes = self.catalog.changes();
        let until = clock::instant() + APPEAR_WAIT;
        loop {
            changes.borrow_and_update();
            if let Some(found) = find(&self.catalog) {
                return Some(found);
            }
            timeout_at(until, changes.changed()).await.ok()?.ok()?;
        }
    }
}

#[tonic::async_trait]
impl StepService for Steps {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<v1::StepEvent, Status>> + Send>>;

    async fn follow(
        &self,
        request: Request<v1::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let user = self.permit(&request, &request.get_ref().namespace).await?;
        let slot = self
            .followers
            .clone()
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted("too many followers; try again later"))?;
        let wanted = request.into_inner();
        let target = self.target(&wanted.namespace, wanted.target).await?;
        let from = match (wanted.cursor.is_empty(), wanted.tail) {
            (false, Some(_)) => {
                return Err(Status::invalid_argument("tail and cursor: only one of them"));
            }
            (false, None) => From::Cursor(wanted.cursor),
            (true, Some(count)) => From::Tail(usize::try_from(count).unwrap_or(usize::MAX)),
            (true, None) => From::Start,
        };
        let (out, events) = outbox();
        let out = Arc::new(out);
        let (catalog, store) = (self.catalog.clone(), self.store.clone());
        let follower =
            Follower::new(catalog, store, target, from, wanted.follow, out.clone()).await?;
        let rights = rights(self.authority.clone(), user, wanted.namespace);
        let (metrics, stop) = (self.metrics.clone(), self.stop.clone());
        let leadership = self.leadership.clone();
        self.tasks.spawn(async move {
            metrics.followers(1);
            let ended = tokio::select! {
                ended = follower.run() => ended,
                lost = rights => Err(lost.into()),
                // The nodes go there with their streams, and nothing more would come here.
                _ = leadership.superseded() => {
                    Err(Status::unavailable("another replica leads; go on from the last cursor").into())
                }
                () = stop.cancelled() => {
                    Err(Status::unavailable("shutting down; go on from the last cursor").into())
                }
            };
            if matches!(ended, Err(Stop::Stalled)) {
                metrics.follower_dropped();
            }
            out.end(ended);
            metrics.followers(-1);
            drop(slot);
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn get_run(
        &self,
        request: Request<v1::GetRunRequest>,
    ) -> Result<Response<v1::GetRunResponse>, Status> {
        self.permit(&request, &request.get_ref().namespace).await?;
        let wanted = request.into_inner();
        let run = self.find_run(&wanted.namespace, &wanted.name).await?;
        Ok(Response::new(v1::GetRunResponse { run: Some(wire(&run)) }))
    }

    async fn list_runs(
        &self,
        request: Request<v1::ListRunsRequest>,
    ) -> Result<Response<v1::ListRunsResponse>, Status> {
        self.permit(&request, &request.get_ref().namespace).await?;
        let wanted = request.into_inner();
        if wanted.page_token.len() > NAME_BYTES_MAX {
            return Err(Status::invalid_argument("page_token: is not one that this service made"));
        }
        let size = match wanted.page_size {
            0 => PAGE_SIZE,
            size @ 1..=PAGE_SIZE_MAX => size,
            size => {
                return Err(Status::invalid_argument(format!(
                    "page_size: is out of range: {size}, at most {PAGE_SIZE_MAX}"
                )));
            }
        };
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let task = (!wanted.task.is_empty()).then_some(wanted.task.as_str());
        // One more than asked, to know whether there is a next page.
        let mut runs = self.catalog.page(&wanted.namespace, task, &wanted.page_token, size + 1);
        let more = runs.len() > size;
        runs.truncate(size);
        let next_page_token =
            runs.last().filter(|_| more).map(|run| run.name.clone()).unwrap_or_default();
        let runs = runs.iter().map(|run| wire(run)).collect();
        Ok(Response::new(v1::ListRunsResponse { runs, next_page_token }))
    }
}

/// Ends when the user may not read in `namespace` any more, or nobody could say so for too long.
async fn rights(authority: Arc<Authority>, user: Reviewed, namespace: String) -> Status {
    let mut known = clock::instant();
    loop {
        tokio::time::sleep(RIGHTS_PERIOD).await;
        match authority.permit_reader(&user, &namespace).await {
            Ok(()) => known = clock::instant(),
            Err(status) if status.code() == Code::Unavailable => {
                if clock::instant().saturating_duration_since(known) >= RIGHTS_TRUST {
                    return status;
                }
            }
            Err(status) => return status,
        }
    }
}

fn name(field: &str, value: &str) -> Result<(), Status> {
    if value.is_empty() {
        return Err(Status::invalid_argument(format!("{field}: is missing")));
    }
    if value.len() > NAME_BYTES_MAX {
        return Err(Status::invalid_argument(format!("{field}: is out of range")));
    }
    Ok(())
}

fn wire(run: &RunView) -> v1::Run {
    v1::Run {
        r#ref: Some(v1::RunRef {
            namespace: run.namespace.clone(),
            name: run.name.clone(),
            uid: run.uid.to_string(),
        }),
        task: Some(v1::TaskRef { name: run.task.clone(), uid: run.task_uid.to_string() }),
        step: run.step.clone(),
        attempt: run.attempt,
        phase: run.phase.clone(),
        reason: run.reason.clone(),
        message: run.message.clone(),
        node_name: run.node.to_string(),
        pod_name: run.pod.clone(),
        exit_code: run.exit_code,
        started_at: run.started_at.map(wire_timestamp),
        completed_at: run.completed_at.map(wire_timestamp),
        usage: Some((&run.usage).into()),
    }
}
