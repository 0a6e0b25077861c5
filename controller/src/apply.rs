//! Carries out plans: the only place where decisions become writes and orders.
//!
//! Order matters: a run is durable before its node hears of it, and the task's status is written
//! under the resourceVersion that the decision was made on. Every write needs the present term.

use std::{sync::Arc, time::Duration};

use agent_operator::{
    crd::{AgentRun, AgentRunSpec, AgentRunStatus, CodingTask, CodingTaskStatus},
    domain::{Assignment, Credential, Epoch, NodeName, Reason, RunKey, StepName, names},
    telemetry::audit::Subject,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde::Serialize;
use serde_json::json;

use crate::{
    assignment::{assignment, preflight_order},
    clock,
    credentials::record_read,
    decide::{Delivery, Observed, RunView, TaskView},
    events::Events,
    fleet::{Command, NodeView, Nodes, SendError, memory::NodeMemory},
    lease::Leadership,
    observe::{ViewError, World, run_view},
    plan::{EventNote, NodeCommand, Order, Plan, PodRelease, RunCreate, RunUpdate},
};

/// Field manager of everything that the controller writes.
pub const FIELD_MANAGER: &str = "agent-operator-controller";
/// Longest wait for one write: the client itself would repeat it for minutes, long after the
/// decision.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a plan was not carried out to its end. The next pass goes on from whatever was done.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The term has ended.
    #[error("write without leading")]
    NotLeading,
    /// The API server refused or failed.
    #[error("{action} {name}")]
    Call {
        /// What was tried.
        action: &'static str,
        /// On what.
        name: String,
        /// Why it failed.
        #[source]
        source: Box<kube::Error>,
    },
    /// No answer in time.
    #[error("{action} {name}: no answer in time")]
    Timeout {
        /// What was tried.
        action: &'static str,
        /// On what.
        name: String,
    },
    /// An object of that name belongs to somebody else.
    #[error("AgentRun {0} exists and is not of this task")]
    Foreign(String),
    /// The API server's answer makes no sense.
    #[error("read back AgentRun {name}")]
    ReadBack {
        /// Its name.
        name: String,
        /// What is missing.
        #[source]
        source: ViewError,
    },
}

impl ApplyError {
    /// Bounded word for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotLeading => "NotLeading",
            Self::Call { .. } => "Call",
            Self::Timeout { .. } => "Timeout",
            Self::Foreign(_) => "Foreign",
            Self::ReadBack { .. } => "ReadBack",
        }
    }

    /// Whether the objects changed under the decision: look again at once.
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// HTTP code of the API server's answer.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Call { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Writes and orders, for decisions and for reports alike.
#[derive(Clone)]
pub struct Applier {
    /// Writes.
    pub client: Client,
    /// The gate of every write.
    pub leadership: Leadership,
    /// Learns of own writes.
    pub world: Arc<World>,
    /// Orders.
    pub nodes: Arc<dyn Nodes>,
    /// Learns of orders.
    pub memory: Arc<NodeMemory>,
    /// Kubernetes events.
    pub events: Events,
}

impl Applier {
    /// The present epoch, if this process leads.
    pub fn epoch(&self) -> Result<Epoch, ApplyError> {
        let term = self.leadership.term(clock::instant()).ok_or(ApplyError::NotLeading)?;
        Ok(term.epoch)
    }

    /// Carries out a plan for `task`, as observed. `credentials` are those of the step that the plan
    /// hands out.
    pub async fn apply(
        &self,
        task: &CodingTask,
        observed: &Observed,
        plan: Plan,
        credentials: &[Credential],
    ) -> Result<(), ApplyError> {
        let Plan {
            run_creates,
            run_updates,
            preflight,
            status,
            commands,
            events,
            // Timing is the caller's.
            requeue_after: _,
            waits_for_node: _,
        } = plan;
        for create in run_creates {
            let name = create.name.clone();
            let created = self.create_run(task, create, credentials).await;
            self.world.release(&observed.task.namespace, &name);
            let (run, first) = created?;
            self.hand_out(observed, &run, credentials, first)?;
            self.memory.preflights.done(&observed.task.uid);
        }
        for update in run_updates {
            self.update_run(&update).await?;
        }
        if let Some(status) = status {
            self.write_task_status_or_less(task, &status).await?;
        }
        if let Some(node) = preflight {
            self.preflight(observed, &node, credentials);
        }
        for command in commands {
            self.command(observed, &command, credentials);
        }
        for event in events {
            self.events.publish(task, event);
        }
        Ok(())
    }

    /// Creates a run; true: it is new. 409 means: look. Ours is adopted, whoever made it; anything else
    /// fails closed.
    async fn create_run(
        &self,
        task: &CodingTask,
        create: RunCreate,
        credentials: &[Credential],
    ) -> Result<(Arc<AgentRun>, bool), ApplyError> {
        let epoch = self.epoch()?;
        let RunCreate { name, mut spec } = create;
        spec.epoch = i64::try_from(epoch.0).unwrap_or(i64::MAX);
        let mut run = AgentRun::new(&name, spec);
        run.metadata = run_metadata(task, &name, &run.spec.step);
        let api = self.runs(task.namespace().as_deref().unwrap_or_default());
        let params =
            PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match call("create AgentRun", &name, api.create(&params, &run)).await {
            Ok(created) => {
                let note = given(&run.spec, credentials);
                self.events.publish_run(&created, run_event("Assigned", false, note));
                Ok((self.world.wrote_run(created), true))
            }
            Err(error) if error.is_conflict() => {
                let found = call("look at AgentRun", &name, api.get(&name)).await?;
                let ours = found.spec.task_ref.uid == run.spec.task_ref.uid
                    && found.spec.step == run.spec.step
                    && found.spec.attempt == run.spec.attempt
                    && owned_by(&found, task);
                if !ours {
                    return Err(ApplyError::Foreign(name));
                }
                Ok((self.world.wrote_run(found), false))
            }
            Err(error) => Err(error),
        }
    }

    /// Sends a freshly created run to its node. One that was adopted and has gone on is left to the
    /// next pass, which sees it.
    fn hand_out(
        &self,
        observed: &Observed,
        run: &AgentRun,
        credentials: &[Credential],
        first: bool,
    ) -> Result<(), ApplyError> {
        if run.status.as_ref().is_some_and(|status| status.phase.is_some()) {
            return Ok(());
        }
        let read_back = |source| ApplyError::ReadBack { name: run.name_any(), source };
        let view = run_view(run).map_err(read_back)?;
        let Ok(epoch) = self.epoch() else { return Ok(()) };
        self.assign(observed, &view, assignment(observed, &view, epoch), credentials, first);
        Ok(())
    }

    fn assign(
        &self,
        observed: &Observed,
        run: &RunView,
        assignment: Assignment,
        credentials: &[Credential],
        first: bool,
    ) {
        let assignment = Box::new(assignment);
        let (budget, held) = (assignment.budget, assignment.held);
        // Nothing of the task comes to a pod before its turn.
        let credentials = if held { &[] } else { credentials };
        let command = Command::Assign { assignment, credentials: credentials.to_vec(), first };
        let node = run.node();
        let sent = self.nodes.send(&node, command);
        if noted(&sent) {
            let task = &observed.task;
            record_read(subject(task, Some(run)), &node, &task.spec, credentials);
            let delivery = if held { Delivery::Held } else { Delivery::Sent };
            self.memory.sent(&node, &run.key(), delivery);
            self.memory.tell_budget(&node, &run.key(), budget);
        }
    }

    /// Asks a node what stands in the way of the task. A question that does not go out is put again
    /// by a later pass, as is one whose answer gets lost.
    fn preflight(&self, observed: &Observed, node: &NodeName, credentials: &[Credential]) {
        let Ok(epoch) = self.epoch() else { return };
        let task = &observed.task;
        let name = (task.namespace.as_str(), task.name.as_str());
        let now = clock::timestamp();
        let key =
            self.memory.preflights.ask(name, (&task.uid, task.generation), (node, epoch), now);
        let order = Box::new(preflight_order(observed, key));
        let command = Command::Preflight { order, credentials: credentials.to_vec() };
        if noted(&self.nodes.send(node, command)) {
            record_read(subject(task, None), node, &task.spec, credentials);
        }
    }

    fn command(&self, observed: &Observed, command: &NodeCommand, credentials: &[Credential]) {
        let NodeCommand { node, run, attempt, order } = command;
        let key = RunKey { uid: run.uid.clone(), attempt: *attempt };
        match order {
            Order::Assign | Order::Confirm | Order::Hold => {
                let assigns = matches!(order, Order::Assign);
                let credentials = if assigns { credentials } else { &[] };
                let Ok(epoch) = self.epoch() else { return };
                if let Some(run) = observed.runs.iter().find(|view| view.run == *run) {
                    let mut assignment = assignment(observed, run, epoch);
                    assignment.held |= matches!(order, Order::Hold);
                    self.assign(observed, run, assignment, credentials, false);
                }
            }
            Order::Cancel { reason, message } => {
                let Ok(epoch) = self.epoch() else { return };
                let cancel = Command::Cancel {
                    run: key.clone(),
                    epoch,
                    reason: *reason,
                    message: message.clone(),
                };
                if noted(&self.nodes.send(node, cancel)) {
                    self.memory.sent(node, &key, Delivery::CancelSent);
                }
            }
            Order::Budget { left } => {
                let Ok(epoch) = self.epoch() else { return };
                let budget = Command::Budget { run: key.clone(), epoch, budget: *left };
                if noted(&self.nodes.send(node, budget)) {
                    self.memory.tell_budget(node, &key, *left);
                }
            }
            Order::Forget => {
                if noted(&self.nodes.send(node, Command::Forget { run: key.clone() })) {
                    self.memory.forgotten(node, &key);
                }
            }
        }
    }

    /// Records what the controller itself knows of a run. Looks first: a report may have come in
    /// since the decision, and the first terminal record stays.
    async fn update_run(&self, update: &RunUpdate) -> Result<(), ApplyError> {
        let RunUpdate { run, phase, reason, message } = update;
        let Some(before) = self.world.run(&run.namespace, &run.name) else { return Ok(()) };
        let mut status = before.status.clone().unwrap_or_default();
        if before.has_ended() || before.uid().as_deref() != Some(run.uid.as_str()) {
            return Ok(());
        }
        // What is written for a node's silence does not hold for one that is back: it is judged by what
        // it has, and permitted to write by that.
        let _giving_up = match reason {
            None | Some(Reason::Disrupted) => {
                let giving_up = self.memory.give_up().await;
                let back = |node: &NodeView| node.name.as_str() == before.spec.node_name;
                if self.nodes.snapshot().iter().any(back) {
                    return Ok(());
                }
                Some(giving_up)
            }
            Some(_) => None,
        };
        status.phase = Some(phase.as_str().to_owned());
        status.reason = reason.map(|reason| reason.as_str().to_owned());
        status.message = Some(message.clone());
        if phase.is_terminal() {
            status.completion_time = Some(clock::timestamp());
        }
        let written = self.write_run_status(&before, &status).await?;
        let reason = status.reason.as_deref().unwrap_or(phase.as_str());
        self.events.publish_run(&written, run_event(reason, true, message.clone()));
        Ok(())
    }

    /// Takes our finalizer off a pod that nobody else can release. False: it has changed since it was
    /// read, or is gone.
    pub async fn release_pod(&self, release: &PodRelease) -> Result<bool, ApplyError> {
        self.epoch()?;
        let PodRelease { namespace, name, uid, resource_version, finalizers } = release;
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        // A list is replaced whole by a merge patch, hence the version.
        let patch = Patch::Merge(json!({"metadata": {
            "uid": uid,
            "resourceVersion": resource_version,
            "finalizers": finalizers,
        }}));
        let params =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        match call("release pod", name, api.patch_metadata(name, &params, &patch)).await {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes a run's whole status, if the run is still as `before` says.
    pub async fn write_run_status(
        &self,
        before: &AgentRun,
        status: &AgentRunStatus,
    ) -> Result<Arc<AgentRun>, ApplyError> {
        self.epoch()?;
        let api = self.runs(before.namespace().as_deref().unwrap_or_default());
        let name = before.name_any();
        let patch = guarded::<AgentRun>(&before.metadata, status);
        let (params, patch) = (apply_params(), Patch::Apply(&patch));
        let write = api.patch_status(&name, &params, &patch);
        let written = call("write the status of AgentRun", &name, write).await?;
        Ok(self.world.wrote_run(written))
    }

    /// A last status that the API server refuses for its contents is written once more with only what
    /// nobody can do without: it would be refused for ever, and the task would never end.
    async fn write_task_status_or_less(
        &self,
        task: &CodingTask,
        status: &CodingTaskStatus,
    ) -> Result<(), ApplyError> {
        match self.write_task_status(task, status).await {
            Err(error)
                if matches!(error.code(), Some(413 | 422))
                    && crate::decide::status::is_finished(status) =>
            {
                tracing::warn!(error = %agent_operator::domain::text::error_chain(&error), "the last status was refused; writing the least of it");
                self.write_task_status(task, &crate::decide::status::minimal(status)).await
            }
            result => result,
        }
    }

    async fn write_task_status(
        &self,
        task: &CodingTask,
        status: &CodingTaskStatus,
    ) -> Result<(), ApplyError> {
        self.epoch()?;
        let namespace = task.namespace().unwrap_or_default();
        let api: Api<CodingTask> = Api::namespaced(self.client.clone(), &namespace);
        let name = task.name_any();
        let patch = guarded::<CodingTask>(&task.metadata, status);
        let (params, patch) = (apply_params(), Patch::Apply(&patch));
        let write = api.patch_status(&name, &params, &patch);
        let written = call("write the status of CodingTask", &name, write).await?;
        self.world.wrote_task(written);
        Ok(())
    }

    fn runs(&self, namespace: &str) -> Api<AgentRun> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

/// Whom a reading of Secrets is for. A preflight, before the plan, has no run yet.
fn subject<'a>(task: &'a TaskView, run: Option<&'a RunView>) -> Subject<'a> {
    Subject {
        namespace: &task.namespace,
        task: &task.name,
        task_uid: &task.uid,
        run: run.map_or("", |run| &run.run.name),
        run_uid: run.map_or("", |run| run.run.uid.as_str()),
        step: run.map_or(StepName::Plan, |run| run.step).as_str(),
        attempt: run.map_or(0, |run| run.attempt.0),
    }
}

/// Whether a command went out. One that did not is sent again by a later pass.
fn noted(sent: &Result<(), SendError>) -> bool {
    if let Err(error) = sent {
        tracing::info!(error = %error, "leave a command to a later pass");
    }
    sent.is_ok()
}

/// Where a step goes and what goes with it.
fn given(spec: &AgentRunSpec, credentials: &[Credential]) -> String {
    let with: Vec<_> =
        credentials.iter().map(|one| format!("{} for {}", one.id, one.host)).collect();
    format!(
        "step {} is given to node {} with {}",
        spec.step,
        spec.node_name,
        if with.is_empty() { "no credential".to_owned() } else { with.join(" and ") }
    )
}

/// An event about a run.
pub fn run_event(reason: &str, warning: bool, note: String) -> EventNote {
    EventNote { run: None, warning, reason: reason.to_owned(), action: "RunStep".to_owned(), note }
}

fn run_metadata(task: &CodingTask, name: &str, step: &str) -> ObjectMeta {
    let label = |key: &str, value: String| (key.to_owned(), value);
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: task.namespace(),
        owner_references: Some(task.controller_owner_ref(&()).into_iter().collect()),
        labels: Some(
            [
                label(names::LABEL_TASK, names::label_value(&task.name_any())),
                label(names::LABEL_STEP, step.to_owned()),
                label(names::LABEL_MANAGED_BY, names::MANAGED_BY.to_owned()),
            ]
            .into(),
        ),
        ..ObjectMeta::default()
    }
}

fn owned_by(run: &AgentRun, task: &CodingTask) -> bool {
    let uid = task.uid();
    run.owner_references().iter().any(|owner| Some(&owner.uid) == uid.as_ref())
}

fn apply_params() -> PatchParams {
    PatchParams::apply(FIELD_MANAGER).force()
}

/// A status under the uid and resourceVersion of the object that it was made from.
fn guarded<K: kube::Resource<DynamicType = ()>>(
    before: &ObjectMeta,
    status: &impl Serialize,
) -> serde_json::Value {
    json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {
            "name": before.name,
            "namespace": before.namespace,
            "uid": before.uid,
            "resourceVersion": before.resource_version,
        },
        "status": status,
    })
}

async fn call<T>(
    action: &'static str,
    name: &str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, ApplyError> {
    match tokio::time::timeout(CALL_TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => {
            Err(ApplyError::Call { action, name: name.to_owned(), source: Box::new(source) })
        }
        Err(_) => Err(ApplyError::Timeout { action, name: name.to_owned() }),
    }
}
