//! Carries effects out on pods, streams and cgroups: one task each on the process's runtime, repeated
//! with backoff until it has an answer, which goes back to the runner as an [`Input`].

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use agent_operator::domain::{
    Assignment, Attempt, RunKey, RunRef, Secret, StartFault, ids::PodUid, names,
};
use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    task::AbortHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

mod closing;

use super::{
    event::{CreateFailure, Event},
    hindrance::{self, Hindrance},
    runner::Input,
    stranger::Look,
};
use crate::{
    enforcer::client::Enforcer,
    ledger::Delivery,
    pod::{
        build::{self, NodeSettings},
        cgroup::Containers,
        client::{Adoption, PodApi, PodError, judge, owned},
        digest::digest,
        logs::{self, Folder, Waker},
    },
    streams::{AttemptStreams, LogEnd, Streams},
};

/// First pause of a repeated call.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// Longest pause: an API server that is back is used within seconds.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// The gateway's Service as `host:port`; its last known address survives a failing resolver.
#[derive(Debug)]
pub struct GatewayAddress {
    name: String,
    last: Mutex<Option<SocketAddr>>,
}

impl GatewayAddress {
    /// Of the Service `name` (`host:port`).
    pub fn new(name: String) -> Self {
        Self { name, last: Mutex::new(None) }
    }

    /// Its address now, or as last known; none if it was never known.
    async fn resolve(&self) -> Option<SocketAddr> {
        let found = tokio::net::lookup_host(&self.name).await.ok().and_then(|mut all| all.next());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = found.or(*last);
        *last
    }
}

/// What the workers work with.
pub struct Tools {
    /// Calls on pods.
    pub pods: Arc<dyn PodApi>,
    /// The node's streams.
    pub streams: Arc<Streams>,
    /// The node's containers.
    pub containers: Arc<dyn Containers>,
    /// Wakes log readers.
    pub waker: Arc<Waker>,
    /// The kubelet's log folder.
    pub pod_log_dir: PathBuf,
    /// The gateway's Service.
    pub gateway: GatewayAddress,
    /// Image with agent-runner and the CLI.
    pub runner_image: String,
    /// Priority class of agent pods; none means the cluster's default.
    pub priority_class: Option<String>,
    /// The node's enforcer; none: the chart has none.
    pub enforcer: Option<Arc<dyn Enforcer>>,
    /// Where the gateway is reached besides its Service: this pod's own address.
    pub own_gateway: Option<SocketAddr>,
    /// Where answers go.
    pub inputs: mpsc::Sender<Input>,
    /// The runtime for all of this.
    pub runtime: Handle,
    /// Owns the tasks.
    pub tasks: TaskTracker,
}

impl Tools {
    fn node_settings(&self, gateway: SocketAddr, delivery: Delivery) -> NodeSettings {
        NodeSettings {
            gateway,
            runner_image: self.runner_image.clone(),
            delivery,
            priority_class: self.priority_class.clone(),
        }
    }
}

/// What runs on behalf of one attempt.
#[derive(Default)]
struct Hands {
    create: Option<CancellationToken>,
    cgroup: Option<AbortHandle>,
    closing: Option<AbortHandle>,
    trying: Option<AbortHandle>,
    log: Option<watch::Sender<Option<LogEnd>>>,
}

/// The tasks of all attempts.
pub struct Workers {
    tools: Arc<Tools>,
    hands: HashMap<RunKey, Hands>,
}

fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(BACKOFF_MIN)
        .with_max_delay(BACKOFF_MAX)
        .with_jitter()
        .without_max_times()
        .build()
}

async fn pause(pauses: &mut impl Iterator<Item = Duration>) {
    tokio::time::sleep(pauses.next().unwrap_or(BACKOFF_MAX)).await;
}

/// As [`pause`], until somebody calls the work off.
async fn pause_unless(pauses: &mut impl Iterator<Item = Duration>, cancel: &CancellationToken) {
    tokio::select! {
        () = pause(pauses) => {}
        () = cancel.cancelled() => {}
    }
}

impl Workers {
    /// No task yet.
    pub fn new(tools: Arc<Tools>) -> Self {
        Self { tools, hands: HashMap::new() }
    }

    /// The node's streams.
    pub fn streams(&self) -> &Arc<Streams> {
        &self.tools.streams
    }

    /// The node's containers.
    pub fn containers(&self) -> &dyn Containers {
        self.tools.containers.as_ref()
    }

    /// Runs `task`; its log lines have the context of the attempt that is worked on right now.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let task = task.in_current_span();
        self.tools.tasks.spawn_on(task, &self.tools.runtime).abort_handle()
    }

    /// Makes the pod, or finds that it was made.
    /// `again`: the attempt was accepted by a process before this one.
    pub fn create_pod(
        &mut self,
        assignment: &Assignment,
        delivery: Delivery,
        token: Secret,
        again: bool,
    ) {
        let cancel = CancellationToken::new();
        self.hands.entry(assignment.key()).or_default().create = Some(cancel.clone());
        let (tools, assignment) = (Arc::clone(&self.tools), assignment.clone());
        self.spawn(async move {
            let event = create(&tools, &assignment, delivery, &token, &cancel, again).await;
            send(&tools, assignment.key(), event).await;
        });
    }

    /// Ends [`Self::create_pod`] early; it still answers.
    pub fn abort_create(&mut self, run: &RunKey) {
        if let Some(cancel) = self.hands.get(run).and_then(|hands| hands.create.as_ref()) {
            cancel.cancel();
        }
    }

    /// Looks at the pod once, live.
    pub fn observe_pod(&self, run: RunKey, at: &RunRef) {
        let (tools, at) = (Arc::clone(&self.tools), at.clone());
        self.spawn(async move {
            let event = observe(&tools, &run, &at).await;
            send(&tools, run, event).await;
        });
    }

    /// Looks at run and pod once, live.
    pub fn look(&self, run: RunKey, at: &RunRef) {
        let (tools, at) = (Arc::clone(&self.tools), at.clone());
        self.spawn(async move {
            let name = names::pod_name(&at.name, &at.uid, run.attempt);
            let mut pauses = backoff();
            let look = loop {
                // The pod first: a run that is gone by the second read has no use for it.
                let pod = tools.pods.get(&at.namespace, &name).await;
                match (pod, tools.pods.run(&at.namespace, &at.name).await) {
                    (Ok(pod), Ok(run)) => break Look { run, pod },
                    (Err(error), _) | (_, Err(error)) => {
                        tracing::warn!(run = at.name, %error, "could not look at a run yet");
                    }
                }
                pause(&mut pauses).await;
            };
            let _ = tools.inputs.send(Input::Looked { run, look: Box::new(look) }).await;
        });
    }

    /// Asks the runner after a while whether the pod has been scheduled.
    pub fn remind_scheduling(&self, run: RunKey, after: Duration) {
        let tools = Arc::clone(&self.tools);
        self.spawn(async move {
            tokio::time::sleep(after).await;
            let _ = tools.inputs.send(Input::CheckScheduled(run)).await;
        });
    }

    /// Deletes the pod of an attempt that is over.
    pub fn drop_pod(&self, run: &RunKey, at: &RunRef, uid: PodUid) {
        let (tools, at, attempt) = (Arc::clone(&self.tools), at.clone(), run.attempt);
        self.spawn(async move { delete(&tools, &at, attempt, &uid).await });
    }

    /// Deletes the pod, then looks at it: one that no node has does not show in the watch.
    pub fn delete_pod(&self, run: RunKey, at: &RunRef, uid: PodUid) {
        let (tools, at) = (Arc::clone(&self.tools), at.clone());
        self.spawn(async move {
            delete(&tools, &at, run.attempt, &uid).await;
            let event = observe(&tools, &run, &at).await;
            send(&tools, run, event).await;
        });
    }

    /// Releases the pod's finalizer.
    pub fn remove_finalizer(&self, run: &RunKey, at: &RunRef, uid: PodUid) {
        let (tools, at, attempt) = (Arc::clone(&self.tools), at.clone(), run.attempt);
        self.spawn(async move {
            let name = names::pod_name(&at.name, &at.uid, attempt);
            let mut pauses = backoff();
            while let Err(error) = tools.pods.remove_finalizer(&at.namespace, &name, &uid).await {
                tracing::warn!(pod = name, %error, "could not release a pod's finalizer yet");
                pause(&mut pauses).await;
            }
        });
    }

    /// Watches the container's cgroup until it is empty; replaces an earlier watch.
    pub fn watch_cgroup(
        &mut self,
        run: &RunKey,
        uid: PodUid,
        container_id: Option<String>,
        missing_is_empty: bool,
    ) {
        let (tools, key) = (Arc::clone(&self.tools), run.clone());
        let task = self.spawn(async move {
            let id = container_id.as_deref();
            tools.containers.wait_until_empty(&uid, id, missing_is_empty).await;
            send(&tools, key, Event::CgroupEmpty).await;
        });
        let hands = self.hands.entry(run.clone()).or_default();
        if let Some(before) = hands.cgroup.replace(task) {
            before.abort();
        }
    }

    /// Spools the container's log until [`Self::close_streams`].
    pub fn open_streams(&mut self, run: &RunKey, at: &RunRef, uid: &PodUid) {
        let hands = self.hands.entry(run.clone()).or_default();
        if hands.log.is_some() {
            return;
        }
        let (told, end) = watch::channel(None);
        hands.log = Some(told);
        let tools = Arc::clone(&self.tools);
        let pod = names::pod_name(&at.name, &at.uid, run.attempt);
        let folder = Folder::new(&tools.pod_log_dir, &at.namespace, &pod, uid);
        let Some(streams) = attempt_streams(&tools.streams, at, run) else { return };
        self.spawn(async move {
            let waker = Arc::clone(&tools.waker);
            let mut pauses = backoff();
            while let Err(error) =
                logs::tail(folder.clone(), Arc::clone(&streams), Arc::clone(&waker), end.clone())
                    .await
            {
                tracing::warn!(pod, %error, "could not read a pod's log; trying again");
                pause(&mut pauses).await;
            }
        });
    }

    /// No more output will come: reads the log to its end and completes both streams. Streams that
    /// retention has dropped are not made anew. Again when more is known of the log's end.
    pub fn close_streams(&mut self, run: &RunKey, at: &RunRef, uid: Option<&PodUid>, end: LogEnd) {
        let Some(streams) = self.tools.streams.known(run) else { return };
        if let Some(uid) = uid {
            self.open_streams(run, at, uid);
        }
        if let Some(told) = self.hands.get(run).and_then(|hands| hands.log.as_ref()) {
            told.send_replace(Some(end));
        }
        let done = if uid.is_none() { streams.log.complete() } else { Ok(()) };
        if let Err(error) = done.and_then(|()| streams.events.complete()) {
            tracing::warn!(run = at.name, %error, "could not complete a stream");
        }
    }

    /// Ends what needs no end of its own.
    pub fn forget(&mut self, run: &RunKey) {
        if let Some(hands) = self.hands.remove(run) {
            let all = hands.cgroup.iter().chain(&hands.closing).chain(&hands.trying);
            all.for_each(AbortHandle::abort);
        }
    }
}

/// The attempt's streams; a failure costs the streams, never the attempt.
fn attempt_streams(streams: &Streams, at: &RunRef, run: &RunKey) -> Option<Arc<AttemptStreams>> {
    streams
        .attempt(at, run.attempt)
        .inspect_err(|error| tracing::error!(run = at.name, %error, "no streams for an attempt"))
        .ok()
}

async fn send(tools: &Tools, run: RunKey, event: Event) {
    // A closed queue means that the process is ending.
    let _ = tools.inputs.send(Input::Attempt { run, event: Box::new(event) }).await;
}

/// Orders the pod's deletion until the API server has the order.
async fn delete(tools: &Tools, at: &RunRef, attempt: Attempt, uid: &PodUid) {
    let name = names::pod_name(&at.name, &at.uid, attempt);
    let mut pauses = backoff();
    while let Err(error) = tools.pods.delete(&at.namespace, &name, uid).await {
        tracing::warn!(pod = name, %error, "could not delete a pod yet");
        pause(&mut pauses).await;
    }
}

async fn observe(tools: &Tools, run: &RunKey, at: &RunRef) -> Event {
    let name = names::pod_name(&at.name, &at.uid, run.attempt);
    let mut pauses = backoff();
    loop {
        match tools.pods.get(&at.namespace, &name).await {
            Ok(Some(pod)) => return Event::PodObserved(Box::new(digest(&pod))),
            Ok(None) => return Event::PodGone,
            Err(error) => tracing::warn!(pod = name, %error, "could not look at a pod yet"),
        }
        pause(&mut pauses).await;
    }
}

async fn create(
    tools: &Tools,
    assignment: &Assignment,
    delivery: Delivery,
    token: &Secret,
    cancel: &CancellationToken,
    again: bool,
) -> Event {
    let mut pauses = backoff();
    // Whoever comes back to it may find that the run was given up and replaced meanwhile.
    let mut late = again;
    loop {
        let Some(gateway) = tools.gateway.resolve().await else {
            if cancel.is_cancelled() {
                // Nothing was sent yet in this process; an earlier one may have.
                return settle(tools, assignment).await;
            }
            tracing::warn!("the gateway's address is not known yet");
            pause(&mut pauses).await;
            continue;
        };
        let wanted = build::pod(assignment, &tools.node_settings(gateway, delivery), token);
        if cancel.is_cancelled() {
            return settle(tools, assignment).await;
        }
        if std::mem::replace(&mut late, true) {
            match is_wanted(tools, assignment).await {
                Some(true) => {}
                Some(false) => return settle(tools, assignment).await,
                None => {
                    pause_unless(&mut pauses, cancel).await;
                    continue;
                }
            }
        }
        match tools.pods.create(&wanted).await {
            Ok(pod) => return created(&pod, token),
            Err(PodError::Exists) => {
                if let Some(event) = adopt(tools, assignment, &wanted).await {
                    return event;
                }
            }
            Err(PodError::Invalid(words) | PodError::Refused(words))
                if delivery == Delivery::ImageVolume
                    && hindrance::refuses_image_volumes(&words) =>
            {
                let _ = tools.inputs.send(Input::SwitchDelivery(words.clone())).await;
                return Event::PodCreateFailed(CreateFailure::Refused(refused(words)));
            }
            Err(PodError::Invalid(words)) => {
                return Event::PodCreateFailed(CreateFailure::Invalid(words));
            }
            Err(PodError::Refused(words)) => {
                return Event::PodCreateFailed(CreateFailure::Refused(refused(words)));
            }
            Err(error) => {
                tracing::warn!(run = assignment.run.name, %error, "could not create a pod yet");
                let fault = StartFault::ApiServerUnavailable;
                let delay = Hindrance { fault, words: error.to_string(), lasting: false };
                send(tools, assignment.key(), Event::PodCreateDelayed(delay)).await;
            }
        }
        pause_unless(&mut pauses, cancel).await;
    }
}

/// Whether the run goes on, as the API server has it; none: it cannot be asked at present.
async fn is_wanted(tools: &Tools, assignment: &Assignment) -> Option<bool> {
    let at = &assignment.run;
    match tools.pods.run(&at.namespace, &at.name).await {
        Ok(run) => Some(run.is_some_and(|run| run.uid == at.uid && !run.phase.is_terminal())),
        Err(error) => {
            tracing::warn!(run = at.name, %error, "could not look at a run yet");
            None
        }
    }
}

fn refused(words: String) -> Hindrance {
    Hindrance { fault: hindrance::refusal(&words), words, lasting: true }
}

fn created(pod: &k8s_openapi::api::core::v1::Pod, token: &Secret) -> Event {
    Event::PodCreated {
        uid: PodUid::new(pod.metadata.uid.clone().unwrap_or_default()),
        one_time_hash: names::sha256_hex(token.expose().as_bytes()),
    }
}

/// Looks at the object that holds our name; none when it is gone or cannot be seen.
async fn adopt(
    tools: &Tools,
    assignment: &Assignment,
    wanted: &k8s_openapi::api::core::v1::Pod,
) -> Option<Event> {
    let run = &assignment.run;
    let name = names::pod_name(&run.name, &run.uid, assignment.attempt);
    let existing = tools.pods.get(&run.namespace, &name).await.ok()??;
    Some(match judge(&existing, wanted) {
        Adoption::Ours { uid, one_time_hash } => Event::PodCreated { uid, one_time_hash },
        Adoption::Foreign(difference) => {
            Event::PodCreateFailed(CreateFailure::Foreign(format!("{name}: {difference}")))
        }
    })
}

/// After a cancelled creation: is there a pod or not?
async fn settle(tools: &Tools, assignment: &Assignment) -> Event {
    let run = &assignment.run;
    let name = names::pod_name(&run.name, &run.uid, assignment.attempt);
    let mut pauses = backoff();
    loop {
        match tools.pods.get(&run.namespace, &name).await {
            Ok(None) => return Event::PodCreateFailed(CreateFailure::Aborted),
            Ok(Some(existing)) => {
                return match owned(&existing, &run.uid) {
                    Some((uid, one_time_hash)) => Event::PodCreated { uid, one_time_hash },
                    None => Event::PodCreateFailed(CreateFailure::Aborted),
                };
            }
            Err(error) => tracing::warn!(pod = name, %error, "could not look at a pod yet"),
        }
        pause(&mut pauses).await;
    }
}
