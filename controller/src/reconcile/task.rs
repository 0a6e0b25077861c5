//! One pass over one task.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use agent_operator::{
    crd::CodingTask,
    domain::{Credential, StepName},
};
use kube::{ResourceExt as _, runtime::controller::Action};
use tokio::time::Instant;

use super::backlog::Passes;
use crate::{
    apply::{Applier, ApplyError},
    clock,
    credentials::{CredentialError, Credentials},
    decide::{Amounts, CredentialState, Observed, decide},
    metrics::Metrics,
    observe::{ObserveError, Observer},
    plan::{Order, Plan},
    settings::quantity_milli,
};

/// A pass sees a change of the world right after its own write; looking twice within this time would
/// only find the same.
const AT_ONCE: Duration = Duration::from_millis(50);

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReconcileError {
    /// Reading.
    #[error("observe the task")]
    Observe(#[from] ObserveError),
    /// Reading Secrets.
    #[error("read the task's credentials")]
    Credentials(#[from] CredentialError),
    /// Writing.
    #[error("apply the plan")]
    Apply(#[from] ApplyError),
}

impl ReconcileError {
    /// Bounded word for metrics.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Observe(_) => "Observe",
            Self::Credentials(_) => "Credentials",
            Self::Apply(error) => error.kind(),
        }
    }
}

/// What passes share.
pub(super) struct Context {
    pub(super) observer: Observer,
    pub(super) applier: Applier,
    /// How many passes have ended.
    pub(super) passes: Passes,
    credentials: Credentials,
    /// Held while room on nodes is looked at and taken, never across an await.
    placing: Mutex<()>,
    /// Tasks that wait for room, by namespace and name, and since when.
    waiting: Mutex<BTreeMap<(String, String), Instant>>,
    metrics: Metrics,
}

impl Context {
    pub(super) fn new(
        observer: Observer,
        applier: Applier,
        credentials: Credentials,
        metrics: Metrics,
    ) -> Self {
        let (passes, placing, waiting) = Default::default();
        Self { observer, applier, passes, credentials, placing, waiting, metrics }
    }

    /// The tasks that wait for room on a node, the one that has waited longest first.
    pub(super) fn waiting(&self) -> Vec<(String, String)> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<_> = waiting.iter().collect();
        names.sort_by_key(|(_, since)| **since);
        names.into_iter().map(|(name, _)| name.clone()).collect()
    }

    /// Forgets who waits: a term begins or ends.
    pub(super) fn forget_waiting(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.metrics.set_tasks_waiting(0);
    }

    /// Observes, decides and applies once.
    pub(super) async fn reconcile(&self, task: &CodingTask) -> Result<Action, ReconcileError> {
        // The queue's object may be older than an own write.
        let (namespace, name) = (task.namespace().unwrap_or_default(), task.name_any());
        let Some(task) = self.observer.world.task(&namespace, &name) else {
            self.note_waiting(&namespace, &name, false);
            return Ok(Action::await_change());
        };
        self.applier.epoch()?;
        // One reading for both: the clock may be set while the observation waits for an answer.
        let now = clock::timestamp();
        let mut observed = self.observer.observe(&task, now).await?;
        let mut plan = decide(&observed, now);
        let mut credentials = Vec::new();
        if plan.needs_credentials() || !plan.run_creates.is_empty() {
            (observed.credentials, credentials) = self.read_credentials(&observed, &plan).await?;
            plan = self.place(&mut observed);
        }
        let waited = self.note_waiting(&namespace, &name, plan.waits_for_node);
        let placed: Vec<_> = plan.run_creates.iter().map(|run| run.spec.step.clone()).collect();
        let requeue = plan.requeue_after;
        tracing::debug!(
            creates = plan.run_creates.len(),
            commands = plan.commands.len(),
            writes_status = plan.status.is_some(),
            "decided"
        );
        match self.applier.apply(&task, &observed, plan, &credentials).await {
            Ok(()) => {
                for step in &placed {
                    self.metrics.step_placed(step, waited);
                }
                Ok(requeue.map_or_else(Action::await_change, Action::requeue))
            }
            // Somebody wrote in between: the next pass decides on what is there now.
            Err(error) if error.is_conflict() => Ok(Action::requeue(AT_ONCE)),
            Err(error) => Err(error.into()),
        }
    }

    /// Decides again with the credentials read and with the room on nodes as it is now, and takes
    /// that room before anybody else can.
    fn place(&self, observed: &mut Observed) -> Plan {
        let now = clock::timestamp();
        let _placing = self.placing.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = self.observer.node_facts(&observed.runs, now);
        for mut node in fresh {
            if let Some(old) = observed.nodes.iter_mut().find(|old| old.name == node.name) {
                node.fenced = node.fenced.or_else(|| old.fenced.take());
                *old = node;
            }
        }
        let plan = decide(observed, now);
        for create in &plan.run_creates {
            let milli = |text: &str| quantity_milli(text).unwrap_or_default();
            let amounts = Amounts {
                cpu_milli: milli(&create.spec.resources.cpu_request),
                memory_milli: milli(&create.spec.resources.memory_request),
            };
            let node = create.spec.node_name.as_str().into();
            self.observer.world.reserve(&observed.task.namespace, &create.name, node, amounts);
        }
        plan
    }

    async fn read_credentials(
        &self,
        observed: &Observed,
        plan: &Plan,
    ) -> Result<(CredentialState, Vec<Credential>), ReconcileError> {
        let Some(step) = handed_out(observed, plan) else {
            return Ok((CredentialState::Unread, Vec::new()));
        };
        let task = &observed.task;
        match self.credentials.read(&task.uid, &task.namespace, &task.spec, step).await {
            Ok(credentials) => Ok((CredentialState::Ready, credentials)),
            Err(CredentialError::Refuse { reason, message }) => {
                Ok((CredentialState::Refused { reason, message }, Vec::new()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Notes whether a task waits for room; for how long it has waited, if it does not any more.
    fn note_waiting(&self, namespace: &str, name: &str, waits: bool) -> Duration {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (key, now) = ((namespace.to_owned(), name.to_owned()), clock::instant());
        let since = if waits {
            waiting.entry(key).or_insert(now);
            None
        } else {
            waiting.remove(&key)
        };
        self.metrics.set_tasks_waiting(waiting.len());
        since.map_or(Duration::ZERO, |since| now - since)
    }
}

/// The step whose credentials a plan hands to a node.
fn handed_out(observed: &Observed, plan: &Plan) -> Option<StepName> {
    if plan.preflight.is_some() {
        // Its credentials are those of the first step.
        return Some(StepName::Plan);
    }
    let begun = plan.run_creates.iter().find(|create| !create.spec.prepared);
    let created = begun.and_then(|create| create.spec.step.parse().ok());
    created.or_else(|| {
        let assigned = plan.commands.iter().find(|command| command.order == Order::Assign)?;
        observed.runs.iter().find(|run| run.run == assigned.run).map(|run| run.step)
    })
}
