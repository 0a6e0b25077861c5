//! Leader election by a Lease, with an epoch that is raised in the same write.
//!
//! Why not a library: holder and epoch have to change in one write that is guarded by the
//! resourceVersion, the loss has to be judged by an own monotonic deadline, and a watch has to end
//! the wait when the holder lets go. Safety never rests on the Lease: nodes refuse older epochs.

mod standing;

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use agent_operator::domain::{Epoch, limits, names::ANNOTATION_GRPC_ADDRESS, text::error_chain};
use futures::StreamExt as _;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

pub use self::standing::{EpochFloor, Leader, Leadership, Term};
use crate::clock;

/// Field manager of the Lease. Shared by all replicas: the guard is the resourceVersion.
const FIELD_MANAGER: &str = "agent-operator-controller-election";
/// Longest wait for one call: two of them fit into a term.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Wait after a failed call while not leading.
const RETRY_WAIT: Duration = Duration::from_millis(500);
/// Random bytes of an identity: two process starts never share one.
const IDENTITY_BYTES: usize = 5;

/// Why an election cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum ElectionError {
    /// The system gave no random bytes for an identity.
    #[error("draw a random identity: {0}")]
    DrawIdentity(String),
}

/// What an election is held with.
#[derive(Clone, Debug)]
pub struct ElectionConfig {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Identity of this process start; see [`identity`].
    pub identity: String,
    /// How long a silent leader keeps its term.
    pub duration: Duration,
    /// Interval of renewals.
    pub renew: Duration,
    /// `host:port` at which nodes and other replicas reach this one while it leads; it stands in the
    /// Lease beside the holder.
    pub address: Option<String>,
}

impl ElectionConfig {
    /// The usual durations.
    pub fn new(
        namespace: impl Into<String>,
        name: impl Into<String>,
        identity: impl Into<String>,
    ) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            identity: identity.into(),
            duration: limits::LEASE_DURATION,
            renew: limits::HEARTBEAT_INTERVAL,
            address: None,
        }
    }

    /// The same with an address for others.
    #[must_use]
    pub fn at(self, address: Option<String>) -> Self {
        Self { address, ..self }
    }
}

/// An identity that is new at each process start, so that a restart raises the epoch.
pub fn identity(base: &str) -> Result<String, ElectionError> {
    let mut bytes = [0; IDENTITY_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| ElectionError::DrawIdentity(error.to_string()))?;
    let suffix = bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    Ok(format!("{base}_{suffix}"))
}

/// What the Lease said when it was last read, and when that was.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    version: String,
    holder: Option<String>,
    address: Option<String>,
    transitions: i32,
    duration: Duration,
    /// When this version was first seen: another's silence is measured by the own clock.
    at: Instant,
}

impl Seen {
    fn of(lease: &Lease, at: Instant, default: Duration) -> Self {
        let spec = lease.spec.clone().unwrap_or_default();
        let annotations = lease.metadata.annotations.as_ref();
        let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
        Self {
            version: lease.metadata.resource_version.clone().unwrap_or_default(),
            holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
            address: annotations.and_then(|all| all.get(ANNOTATION_GRPC_ADDRESS)).cloned(),
            transitions: spec.lease_transitions.unwrap_or(0),
            duration: seconds.map_or(default, Duration::from_secs),
            at,
        }
    }

    /// Whether the holder was a process before this one in the same pod: the name of a pod is given
    /// once and its container runs once at a time, so that process is no more and nothing need be
    /// waited for. Both have to agree: outside a cluster processes may share the default name.
    fn is_of_a_predecessor(&self, config: &ElectionConfig) -> bool {
        let pod = |identity: &str| identity.rsplit_once('_').map(|(pod, _)| pod.to_owned());
        let same_pod = self.holder.as_deref().and_then(pod) == pod(&config.identity);
        let same_address = self.address.is_some() && self.address == config.address;
        self.holder.is_some() && same_pod && same_address
    }

    /// When the Lease may be taken, if nothing changes.
    fn free_at(&self) -> Instant {
        if self.holder.is_some() { self.at + self.duration } else { self.at }
    }
}

/// The election: run it as a task of its own; everybody else holds the [`Leadership`].
pub struct Election {
    api: Api<Lease>,
    config: ElectionConfig,
    floor: EpochFloor,
    terms: watch::Sender<Option<Term>>,
    leader: watch::Sender<Option<Leader>>,
}

impl Election {
    /// Prepares an election; nothing happens before [`Election::run`].
    pub fn new(client: Client, config: ElectionConfig, floor: EpochFloor) -> (Self, Leadership) {
        let (terms, terms_seen) = watch::channel(None);
        let (leader, leader_seen) = watch::channel(None);
        let api = Api::namespaced(client, &config.namespace);
        let leadership = Leadership::beside(terms_seen, leader_seen).at(config.address.clone());
        (Self { api, config, floor, terms, leader }, leadership)
    }

    /// Gains, renews and loses terms until `shutdown`; then lets go of the Lease.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut changes = Box::pin(
            watcher::watch_object(self.api.clone(), &self.config.name).default_backoff().fuse(),
        );
        let mut seen: Option<Seen> = None;
        while !shutdown.is_cancelled() {
            match self.gain(&mut seen).await {
                Ok(Some((held, term))) => {
                    tracing::info!(epoch = term.epoch.0, "leading");
                    let last = self.hold(held, term, &shutdown).await;
                    self.terms.send_replace(None);
                    tracing::info!(epoch = term.epoch.0, "not leading any more");
                    if shutdown.is_cancelled() {
                        self.release(&last).await;
                    }
                    seen = None;
                }
                Ok(None) => {
                    let free_at = seen.as_ref().map_or_else(clock::instant, Seen::free_at);
                    tokio::select! {
                        () = shutdown.cancelled() => {}
                        () = tokio::time::sleep_until(free_at) => {}
                        _ = changes.next() => {}
                    }
                }
                Err(error) => {
                    tracing::warn!(error = %error_chain(&error), "look at the election's Lease");
                    tokio::select! {
                        () = shutdown.cancelled() => {}
                        () = tokio::time::sleep(RETRY_WAIT) => {}
                    }
                }
            }
        }
    }

    /// Reads the Lease and takes it if it is free; none: somebody else has it.
    async fn gain(&self, seen: &mut Option<Seen>) -> Result<Option<(Seen, Term)>, CallError> {
        let started = clock::instant();
        let Some(lease) = call(self.api.get_opt(&self.config.name)).await? else {
            return self.create(started).await;
        };
        let now = Seen::of(&lease, started, self.config.duration);
        // The same version as before: its age counts from when it was first seen.
        let present = match seen.take() {
            Some(before) if before.version == now.version => before,
            Some(_) | None => now,
        };
        // A write of ours whose answer was lost holds the Lease for us; taking it raises the epoch.
        let ours = present.holder.as_ref() == Some(&self.config.identity);
        let left = present.is_of_a_predecessor(&self.config);
        let free = ours || left || clock::instant() >= present.free_at();
        *seen = Some(present.clone());
        // Whoever takes it next starts above this, also if the Lease itself is gone by then.
        self.floor.raise(Epoch(u64::try_from(present.transitions).unwrap_or(0)));
        self.note_leader((!free).then_some(&present));
        if !free {
            return Ok(None);
        }
        let transitions = self.next_transition(present.transitions);
        self.take(&present.version, transitions).await
    }

    /// Tells who leads instead of this process. A process that was started anew in the same pod finds
    /// its own address there until the Lease of the one before runs out: that is nobody.
    fn note_leader(&self, holder: Option<&Seen>) {
        let own = |address: &Option<String>| address.is_some() && *address == self.config.address;
        let other = holder
            .filter(|seen| !own(&seen.address))
            .map(|seen| Leader { address: seen.address.clone() });
        self.leader.send_if_modified(|known| {
            let changed = *known != other;
            *known = other;
            changed
        });
    }

    /// One above everything that was ever said.
    fn next_transition(&self, present: i32) -> i32 {
        let floor = i32::try_from(self.floor.get().0).unwrap_or(i32::MAX - 1);
        present.max(floor).max(0).saturating_add(1)
    }

    async fn create(&self, started: Instant) -> Result<Option<(Seen, Term)>, CallError> {
        let transitions = self.next_transition(0);
        let lease =
            Lease {
                metadata: ObjectMeta {
                    name: Some(self.config.name.clone()),
                    namespace: Some(self.config.namespace.clone()),
                    annotations: self.config.address.clone().map(|address| {
                        BTreeMap::from([(ANNOTATION_GRPC_ADDRESS.to_owned(), address)])
                    }),
                    ..ObjectMeta::default()
                },
                spec: Some(LeaseSpec {
                    holder_identity: Some(self.config.identity.clone()),
                    lease_duration_seconds: Some(self.seconds()),
                    lease_transitions: Some(transitions),
                    ..LeaseSpec::default()
                }),
            };
        let params =
            PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match call(self.api.create(&params, &lease)).await {
            Ok(lease) => Ok(Some(self.won(&lease, started))),
            // Made by somebody else meanwhile, or by a repetition of our own call: look again.
            Err(CallError::Api(error)) if is_conflict(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes holder and epoch in one step that fails if anything was written since `version`.
    async fn take(
        &self,
        version: &str,
        transitions: i32,
    ) -> Result<Option<(Seen, Term)>, CallError> {
        let started = clock::instant();
        match self.write(version, Some(&self.config.identity), Some(transitions)).await {
            Ok(lease) => Ok(Some(self.won(&lease, started))),
            Err(CallError::Api(error)) if is_conflict(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The term counts from before the write was sent, so that it never outlasts the Lease.
    fn won(&self, lease: &Lease, started: Instant) -> (Seen, Term) {
        let seen = Seen::of(lease, started, self.config.duration);
        let epoch = Epoch(u64::try_from(seen.transitions).unwrap_or(0));
        let term = Term { epoch, valid_until: started + self.config.duration };
        self.floor.raise(epoch);
        self.note_leader(None);
        self.terms.send_replace(Some(term));
        (seen, term)
    }

    /// Renews until the term ends; gives what the Lease last said.
    async fn hold(&self, mut held: Seen, mut term: Term, shutdown: &CancellationToken) -> Seen {
        loop {
            let next = (held.at + self.config.renew).max(clock::instant());
            tokio::select! {
                () = shutdown.cancelled() => return held,
                () = tokio::time::sleep_until(next.min(term.valid_until)) => {}
            }
            // A renewal that is answered after the end of the term is no renewal.
            let renewal = tokio::time::timeout_at(term.valid_until, self.renew(&held, term.epoch));
            match renewal.await {
                Ok(Ok(Some(renewed))) => (held, term) = renewed,
                Ok(Err(error)) => {
                    tracing::warn!(error = %error_chain(&error), "renew the election's Lease");
                    let wait = clock::instant() + RETRY_WAIT;
                    tokio::time::sleep_until(wait.min(term.valid_until)).await;
                }
                // Somebody else has it, or the answer did not come before the end of the term.
                Ok(Ok(None)) | Err(_) => return held,
            }
            if clock::instant() >= term.valid_until {
                return held;
            }
        }
    }

    /// None: somebody else has the Lease.
    async fn renew(&self, held: &Seen, epoch: Epoch) -> Result<Option<(Seen, Term)>, CallError> {
        let started = clock::instant();
        let raised = (self.floor.get() > epoch).then(|| self.next_transition(held.transitions));
        match self.write(&held.version, Some(&self.config.identity), raised).await {
            Ok(lease) => Ok(Some(self.won(&lease, started))),
            Err(CallError::Api(error)) if is_conflict(&error) => self.look_again(held).await,
            // Somebody has deleted it: the next term begins at once, above this one.
            Err(CallError::Api(error)) if has_code(&error, 404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// After a conflict: our own repeated write, somebody's label, or the loss of the Lease.
    async fn look_again(&self, held: &Seen) -> Result<Option<(Seen, Term)>, CallError> {
        let Some(lease) = call(self.api.get_opt(&self.config.name)).await? else { return Ok(None) };
        let now = Seen::of(&lease, clock::instant(), self.config.duration);
        let ours = now.holder.as_ref() == Some(&self.config.identity)
            && now.transitions >= held.transitions;
        if !ours {
            return Ok(None);
        }
        self.take(&now.version, now.transitions).await
    }

    /// Lets go, so that the next leader need not wait. Best effort.
    async fn release(&self, held: &Seen) {
        if let Err(error) = self.write(&held.version, None, None).await {
            tracing::warn!(error = %error_chain(&error), "release the election's Lease");
        }
    }

    async fn write(
        &self,
        version: &str,
        holder: Option<&str>,
        transitions: Option<i32>,
    ) -> Result<Lease, CallError> {
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(clock::timestamp());
        let mut spec = json!({
            "holderIdentity": holder,
            "leaseDurationSeconds": self.seconds(),
            "renewTime": now,
        });
        if let Some(transitions) = transitions {
            spec["leaseTransitions"] = json!(transitions);
            spec["acquireTime"] = json!(now);
        }
        let address = holder.and(self.config.address.as_deref());
        let patch = json!({
            "metadata": {
                "resourceVersion": version,
                "annotations": { ANNOTATION_GRPC_ADDRESS: address },
            },
            "spec": spec,
        });
        let params =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        call(self.api.patch(&self.config.name, &params, &Patch::Merge(&patch))).await
    }

    fn seconds(&self) -> i32 {
        i32::try_from(self.config.duration.as_secs()).unwrap_or(i32::MAX).max(1)
    }
}

/// Why a call about the Lease failed.
#[derive(Debug, thiserror::Error)]
enum CallError {
    /// The API server, or the way to it.
    #[error("call the API server")]
    Api(#[source] Box<kube::Error>),
    /// No answer in time.
    #[error("wait for the API server")]
    Timeout,
}

/// Bounds a call, because the client itself may retry it for minutes.
async fn call<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, CallError> {
    match tokio::time::timeout(CALL_TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(CallError::Api(Box::new(error))),
        Err(_) => Err(CallError::Timeout),
    }
}

fn is_conflict(error: &kube::Error) -> bool {
    has_code(error, 409)
}

fn has_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

#[cfg(test)]
mod tests;
