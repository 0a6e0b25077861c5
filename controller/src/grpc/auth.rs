//! Who may call what: one table, enforced by one layer around every service of the port.
//!
//! The layer authenticates (TokenReview, own audience) and holds supervisors to their account. What
//! depends on a message is checked where the message is read, with what the layer left in the
//! request's extensions: the node of a Hello against [`Caller::Supervisor`], the namespace of a
//! request by [`Authority::permit_reader`].

mod kube;
mod layer;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use self::layer::code_name;
pub use self::{kube::KubeReviewer, layer::AuthLayer};

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use agent_operator::domain::NodeName;
use async_trait::async_trait;
use sha2::{Digest as _, Sha256};
use tokio::{sync::Semaphore, time::Instant};
use tonic::Status;

use crate::clock;

/// How long a positive review is believed: a token that was withdrawn dies within this time.
const CACHE_TTL: Duration = Duration::from_mins(1);

/// Tokens in the cache: every node and some thousand people at once, in under 10 MiB.
const CACHE_ENTRIES_MAX: usize = 10_000;

/// Reviews at the API server at once: a flood of made-up tokens must not become a flood there.
const REVIEWS_MAX: usize = 32;

/// Longest bearer token that is looked at; projected tokens have about 1.5 KiB.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// Extra of a bound service account token that names its pod's node (since Kubernetes 1.32).
const NODE_EXTRA: &str = "authentication.kubernetes.io/node-name";

/// Who may call an RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Anybody: says nothing about tasks.
    Public,
    /// The supervisor's service account, with a token bound to a node.
    Supervisor,
    /// Whoever may `get` `agentruns/log` in the namespace of the request.
    Reader,
}

/// Every RPC of the port. What is not in here is refused as unknown.
pub const RULES: &[(&str, Rule)] = &[
    ("/agentoperator.v1.SupervisorService/Session", Rule::Supervisor),
    ("/agentoperator.v1.SupervisorService/Stream", Rule::Supervisor),
    ("/agentoperator.v1.StepService/Follow", Rule::Reader),
    ("/agentoperator.v1.StepService/GetRun", Rule::Reader),
    ("/agentoperator.v1.StepService/ListRuns", Rule::Reader),
    ("/grpc.health.v1.Health/Check", Rule::Public),
    ("/grpc.health.v1.Health/Watch", Rule::Public),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Rule::Public),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Rule::Public),
];

/// The rule of a path.
pub fn rule(path: &str) -> Option<Rule> {
    RULES.iter().find(|(known, _)| *known == path).map(|(_, rule)| *rule)
}

/// What a review says about a valid token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reviewed {
    /// User name.
    pub username: String,
    /// User id; may be empty.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Further facts about the token.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// The API server could not be asked. Never taken for a yes.
#[derive(Debug, thiserror::Error)]
#[error("review {what}: {problem}")]
pub struct ReviewError {
    /// `token` or `access`.
    pub what: &'static str,
    /// What happened.
    pub problem: String,
}

/// Asks the cluster about tokens and rights.
#[async_trait]
pub trait Reviewer: Send + Sync + 'static {
    /// Whose token this is; none when it is not valid for our audience.
    async fn review_token(&self, token: &str) -> Result<Option<Reviewed>, ReviewError>;

    /// Whether the user may `get` `agentruns/log` in `namespace`.
    async fn may_read_logs(&self, user: &Reviewed, namespace: &str) -> Result<bool, ReviewError>;
}

/// An authenticated caller, in the extensions of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The supervisor of a node.
    Supervisor {
        /// The node that its token is bound to.
        node: NodeName,
    },
    /// A person or a tool; what it may read depends on the namespace.
    User(Reviewed),
}

/// Authenticates callers and answers what they may do.
pub struct Authority {
    reviewer: Box<dyn Reviewer>,
    supervisor: String,
    cache: Mutex<HashMap<[u8; 32], (Reviewed, Instant)>>,
    slots: Semaphore,
}

impl Authority {
    /// `supervisor` is the user name of the supervisors' service account
    /// (`system:serviceaccount:<namespace>:<name>`).
    pub fn new(reviewer: impl Reviewer, supervisor: String) -> Arc<Self> {
        Arc::new(Self {
            reviewer: Box::new(reviewer),
            supervisor,
            cache: Mutex::default(),
            slots: Semaphore::new(REVIEWS_MAX),
        })
    }

    /// Who calls under `rule` with this token.
    pub async fn authenticate(&self, rule: Rule, token: &str) -> Result<Option<Caller>, Status> {
        match rule {
            Rule::Public => Ok(None),
            Rule::Supervisor => {
                let node = self.supervisor_node(token).await?;
                Ok(Some(Caller::Supervisor { node }))
            }
            Rule::Reader => Ok(Some(Caller::User(self.review(token).await?))),
        }
    }

    /// The node of a supervisor's token.
    pub async fn supervisor_node(&self, token: &str) -> Result<NodeName, Status> {
        let reviewed = self.review(token).await?;
        if reviewed.username != self.supervisor {
            return Err(Status::permission_denied(format!(
                "{} is not the supervisors' service account",
                reviewed.username
            )));
        }
        match reviewed.extra.get(NODE_EXTRA).map(Vec::as_slice) {
            Some([node]) if !node.is_empty() => Ok(NodeName::from(node.as_str())),
            _ => Err(Status::permission_denied("the token is not bound to a node")),
        }
    }

    /// Lets a user read runs of `namespace`, or refuses.
    pub async fn permit_reader(&self, user: &Reviewed, namespace: &str) -> Result<(), Status> {
        let _slot = self.slot().await?;
        match self.reviewer.may_read_logs(user, namespace).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Status::permission_denied(format!(
                "{} may not get agentruns/log in namespace {namespace}",
                user.username
            ))),
            Err(error) => Err(unavailable(&error)),
        }
    }

    async fn review(&self, token: &str) -> Result<Reviewed, Status> {
        if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
            return Err(Status::unauthenticated("the bearer token is empty or too long"));
        }
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(reviewed) = self.cached(&hash, clock::instant()) {
            return Ok(reviewed);
        }
        let _slot = self.slot().await?;
        match self.reviewer.review_token(token).await {
            Ok(Some(reviewed)) => {
                self.remember(hash, reviewed.clone(), clock::instant());
                Ok(reviewed)
            }
            Ok(None) => {
                Err(Status::unauthenticated("the token is not valid for audience agent-operator"))
            }
            Err(error) => Err(unavailable(&error)),
        }
    }

    async fn slot(&self) -> Result<tokio::sync::SemaphorePermit<'_>, Status> {
        self.slots.acquire().await.map_err(|_| Status::unavailable("shutting down"))
    }

    fn cached(&self, hash: &[u8; 32], now: Instant) -> Option<Reviewed> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let (reviewed, at) = cache.get(hash)?;
        (now.saturating_duration_since(*at) < CACHE_TTL).then(|| reviewed.clone())
    }

    fn remember(&self, hash: [u8; 32], reviewed: Reviewed, now: Instant) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHE_ENTRIES_MAX {
            cache.retain(|_, (_, at)| now.saturating_duration_since(*at) < CACHE_TTL);
        }
        if cache.len() < CACHE_ENTRIES_MAX {
            cache.insert(hash, (reviewed, now));
        }
    }
}

/// The cluster cannot be asked: the caller may try again, and nobody gets in meanwhile.
fn unavailable(error: &ReviewError) -> Status {
    tracing::warn!(%error, "caller could not be checked");
    Status::unavailable("the API server could not be asked about this caller")
}
