//! What the routes and the link share.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use agent_operator::{
    domain::{Credential, RunKey, StepName, secret::purpose},
    telemetry::Tracer,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use super::{
    args::{Args, Config},
    attempt_api::preparation::{Failure, Prepared},
    book::{Began, Book},
    egress::Egress,
    events_relay::Outbox,
    forge::Forges,
    git::{GitService, RepositoryGrant},
    grants::{Attempt, Grants},
    limits::Connections,
    llm::ModelProxy,
    metrics::{Metrics, Operation},
    permit::Permit,
    preflight::Preflights,
    proxy::ProxyRules,
};

/// The gateway's shared parts.
#[derive(Debug)]
pub struct Gateway {
    /// The configuration.
    pub config: Config,
    /// What is counted and told.
    pub book: Book,
    /// Live attempts.
    pub grants: Grants,
    /// Messages for the supervisor.
    pub outbox: Outbox,
    /// Permission to write upstream.
    pub permit: Permit,
    /// Mirrors and quarantines.
    pub git: GitService,
    /// Pull requests and issues.
    pub forges: Forges,
    /// The model API.
    pub model: ModelProxy,
    /// Preflights under way and their answers.
    pub preflights: Preflights,
    /// The CONNECT proxy.
    pub egress: Egress,
    /// Connections and request rates by source address.
    pub connections: Connections,
    /// Everything that is spawned for an attempt: answers, tunnels, preparations, writes upstream.
    pub tasks: TaskTracker,
    /// Whether quarantines of before the start have been removed.
    pub(super) swept: AtomicBool,
    /// Ends all of it.
    pub shutdown: CancellationToken,
}

/// Shared handle.
pub type Shared = Arc<Gateway>;

/// What an attempt may do with its repository.
pub(super) fn repository_grant(attempt: &Attempt) -> RepositoryGrant {
    let assignment = attempt.assignment();
    RepositoryGrant {
        run: attempt.key().clone(),
        namespace: assignment.run.namespace.clone(),
        task: assignment.task.clone(),
        repository: assignment.repository.clone(),
        may_push: assignment.step.may_push(),
    }
}

/// Starts the preparation unless it runs or is done.
pub(super) fn prepare(gateway: &Shared, attempt: &Arc<Attempt>) {
    if !attempt.has_credentials() || !attempt.preparation.begin() {
        return;
    }
    let (gateway, attempt) = (Arc::clone(gateway), Arc::clone(attempt));
    let (tasks, within) = (gateway.tasks.clone(), attempt.context().clone());
    let preparation = async move {
        let began = Began::now();
        let credential = attempt.credential(purpose::GIT).flatten();
        let grant = repository_grant(&attempt);
        let prepared = tokio::select! {
            () = attempt.ended().cancelled() => Err(Failure {
                reason: None,
                message: "the attempt is over".to_owned(),
                retryable: false,
                wait: None,
            }),
            prepared = fetch(&gateway, &attempt, &grant, credential.as_ref()) => prepared,
        };
        if let Err(failure) = &prepared {
            tracing::warn!(details = failure.message, "preparation failed");
        }
        gateway.book.at_forge(&attempt, Operation::Prepare, began, prepared.is_ok());
        attempt.preparation.finish(prepared);
    };
    tasks.spawn(preparation.instrument(within));
}

/// Fetches the repository and, for the steps that work on it, the text of the task's issue.
async fn fetch(
    gateway: &Gateway,
    attempt: &Attempt,
    grant: &RepositoryGrant,
    credential: Option<&Credential>,
) -> Result<Prepared, Failure> {
    let repository = gateway.git.prepare(grant, credential).await.map_err(|error| Failure {
        reason: error.reason(),
        message: error.to_string(),
        retryable: error.retryable(),
        wait: None,
    })?;
    let assignment = attempt.assignment();
    let reads = matches!(assignment.step, StepName::Plan | StepName::Implement);
    let issue = match assignment.work.issue.as_ref().filter(|_| reads) {
        None => None,
        Some(issue) => {
            let read = gateway.forges.read_issue(&grant.repository.url, issue, credential).await;
            Some(read.map_err(|error| Failure {
                reason: error.reason(),
                message: error.to_string(),
                retryable: error.retryable(),
                wait: error.wait(),
            })?)
        }
    };
    Ok(Prepared { repository, issue })
}

/// Removes what an attempt that is over leaves behind.
pub(super) fn clean_up(gateway: &Shared, key: &RunKey) {
    gateway.outbox.forget(key);
    let (shared, key) = (Arc::clone(gateway), key.clone());
    let discarded = async move {
        shared.git.discard(&key).await;
        tidy(&shared).await;
    };
    gateway.tasks.spawn(discarded.in_current_span());
}

/// Removes the quarantines of all attempts but the live ones; once after the start, for later an
/// attempt's end removes its own.
pub(super) fn retain(gateway: &Shared, live: Vec<RunKey>) {
    if gateway.swept.swap(true, Ordering::AcqRel) {
        return;
    }
    let shared = Arc::clone(gateway);
    gateway.tasks.spawn(async move {
        if let Err(error) = shared.git.retain(&live).await {
            tracing::warn!(%error, "quarantines of ended attempts stay on disk");
        }
        tidy(&shared).await;
    });
}

/// Looks after mirrors that nobody uses any more; a shutdown does not wait for it.
async fn tidy(gateway: &Gateway) {
    let _ = gateway.shutdown.run_until_cancelled(gateway.git.tidy()).await;
}

/// Builds the shared parts from arguments and configuration.
pub(super) fn build(
    args: &Args,
    tracer: Tracer,
    shutdown: CancellationToken,
) -> anyhow::Result<Shared> {
    use anyhow::Context as _;

    let config = Config::read(&args.config)?;
    let proxies = ProxyRules::new(&config.proxy, args.proxy_credentials.as_deref())?;
    let proxies = Arc::new(proxies);
    let client = super::http_client::build(args.ca_bundle.as_deref(), Arc::clone(&proxies))?;
    let tasks = TaskTracker::new();
    let metrics = Arc::new(Metrics::new(config.prices.keys().map(String::as_str)));
    let book = Book::new(Arc::clone(&metrics), tracer);
    let git = GitService::new(super::git::GitSettings {
        git_dir: args.git_dir.clone(),
        upstreams: config.upstreams.clone(),
        ca_file: args.ca_bundle.clone(),
        proxies: Arc::clone(&proxies),
        limits: config.git.limits(),
        protected: super::git::ProtectedPaths::new(&config.git.protected_paths)?,
    })
    .context("cannot set up the git directory")?;
    Ok(Arc::new(Gateway {
        grants: Grants::new(config.limits.clone(), Arc::clone(&metrics)),
        outbox: Outbox::default(),
        permit: Permit::none(),
        preflights: Preflights::default(),
        git,
        forges: Forges::new(config.upstreams.clone(), client.clone()),
        model: ModelProxy::new(&config, client, tasks.clone(), book.clone()),
        egress: Egress::new(args, &config, proxies, tasks.clone(), metrics),
        connections: Connections::new(&config.limits),
        config,
        book,
        tasks,
        swept: AtomicBool::new(false),
        shutdown,
    }))
}
