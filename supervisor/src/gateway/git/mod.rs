//! Git for sandboxes: mirrors that are fetched with each attempt's own credential, a quarantine for
//! its pushes, and the one write upstream, a compare-and-swap of the work branch.
//!
//! ```text
//! sandbox --smart HTTP--> serve --> quarantine (bare, borrows the mirror's objects)
//!                                       |  publish: checked, then compare-and-swap
//! upstream --fetch--> mirror            +----------------------------------------> upstream
//! ```
//!
//! Every git process is a child without hooks, foreign configuration or environment (`command`);
//! the credential reaches it through a pipe. Those that read what a sandbox made share a few heaps
//! (`heaps`). Tasks: one per running fetch, tracked by `mirror`, so that an asker who gives up does not
//! throw the fetch away; one per `exchange`, which kills its git. Both end by their own time limits.

mod command;
mod error;
mod exchange;
mod facts;
mod finished;
mod gzip;
mod heaps;
mod inspect;
mod leftovers;
mod listing;
mod login;
mod messages;
mod mirror;
mod names;
mod paths;
mod preflight;
mod process;
mod publish;
mod quarantine;
mod serve;
mod slots;
mod space;
mod start;
#[cfg(test)]
pub(super) mod tests;
mod tidy;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use agent_operator::{
    attempt::{Published, StepRepository},
    domain::{Credential, RunKey, TaskRef, assignment::Repository},
};

pub use self::error::GitError;
pub(super) use self::login::Login;
pub use self::paths::{PROTECTED_BY_DEFAULT, ProtectedError, ProtectedPaths};
pub use self::preflight::Checked;
use self::{
    command::Git,
    facts::{GrantNames, gather},
    heaps::HEAP_KIB_MAX,
    mirror::{Mirror, Mirrors},
    quarantine::{Quarantine, State},
    slots::{Slot, Slots},
};
use super::{
    permit::Permit,
    proxy::ProxyRules,
    upstream::{Remote, Upstream, UpstreamMap},
};
use crate::scrub::Watchlist;

/// Where the images that the gateway runs in keep certificate authorities.
const SYSTEM_CA_FILE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Limits of what one attempt may push and publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GitLimits {
    /// Largest pack of one push, and most bytes of new objects that are published.
    pub push_bytes_max: u64,
    /// Most new objects (commits, trees, files) that are published.
    pub objects_max: u64,
    /// Most files that a step may change.
    pub files_max: u64,
    /// Most bytes of new objects once they are unpacked.
    pub unpacked_bytes_max: u64,
    /// Most bytes that the quarantine of an attempt holds: an attempt may push more than once.
    pub quarantine_bytes_max: u64,
    /// Heap of a git that reads what an attempt pushed, in KiB.
    pub heap_kib_max: u32,
}

impl Default for GitLimits {
    fn default() -> Self {
        // Far above any change that a person would review, and about where forges begin to warn (GitHub at a
        // file of 50 MiB); far below what fills a node's disk.
        Self::with_push(64 * 1024 * 1024, 100_000, 10_000)
    }
}

impl GitLimits {
    /// Limits of one push, and what follows from them: text packs to a fifth at most, and a step has
    /// room for its pushes before and after an amendment.
    pub fn with_push(push_bytes_max: u64, objects_max: u64, files_max: u64) -> Self {
        Self {
            push_bytes_max,
            objects_max,
            files_max,
            unpacked_bytes_max: push_bytes_max.saturating_mul(8),
            quarantine_bytes_max: push_bytes_max.saturating_mul(3),
            heap_kib_max: HEAP_KIB_MAX,
        }
    }
}

/// How the service is set up.
#[derive(Clone, Debug)]
pub struct GitSettings {
    /// Directory for mirrors and quarantines; one host path of the node.
    pub git_dir: PathBuf,
    /// The upstream map.
    pub upstreams: Vec<Upstream>,
    /// Certificate authorities (PEM) beside the system's, for an Enterprise install.
    pub ca_file: Option<PathBuf>,
    /// Which upstreams are reached by way of a proxy.
    pub proxies: Arc<ProxyRules>,
    /// Limits.
    pub limits: GitLimits,
    /// What only people change.
    pub protected: ProtectedPaths,
}

/// What one attempt may do with one repository. Made by the caller from the attempt's assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryGrant {
    /// The attempt.
    pub run: RunKey,
    /// Namespace of the task; mirrors are not shared between namespaces.
    pub namespace: String,
    /// The task, whose uid marks commits and branches.
    pub task: TaskRef,
    /// The repository.
    pub repository: Repository,
    /// Whether the step may push and publish.
    pub may_push: bool,
}

/// Mirrors, quarantines and the way upstream. A clone is a handle to the same service.
#[derive(Clone, Debug)]
pub struct GitService {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    git: Arc<Git>,
    upstreams: UpstreamMap,
    mirrors: Mirrors,
    /// When mirrors were last looked through; locked while they are.
    tidied: tokio::sync::Mutex<Option<tokio::time::Instant>>,
    quarantines: PathBuf,
    slots: Slots,
    limits: GitLimits,
    protected: ProtectedPaths,
}

impl GitService {
    /// A service in `settings.git_dir`, whose directories are made if they are absent.
    pub fn new(settings: GitSettings) -> Result<Self, GitError> {
        let home = settings.git_dir.join("home");
        let mirrors = settings.git_dir.join("mirrors");
        let quarantines = settings.git_dir.join("quarantine");
        for directory in [&home, &mirrors, &quarantines] {
            std::fs::create_dir_all(directory).map_err(|source| GitError::UseDisk {
                operation: "make its directories",
                source,
            })?;
        }
        let ca_file =
            settings.ca_file.map(|own| authorities(&settings.git_dir, &own)).transpose()?;
        let git = Git::new(home, ca_file, settings.proxies);
        let git = Arc::new(git.with_heap(settings.limits.heap_kib_max));
        let inner = Inner {
            mirrors: Mirrors::new(mirrors, Arc::clone(&git)),
            tidied: tokio::sync::Mutex::default(),
            git,
            upstreams: UpstreamMap::new(settings.upstreams),
            quarantines,
            slots: Slots::default(),
            limits: settings.limits,
            protected: settings.protected,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Makes the repository ready for the attempt and says where it starts. The upstream is asked
    /// with this attempt's `credential` each time, also when everything is cached; none means an
    /// anonymous request, not an unknown credential. Repeating it changes nothing.
    pub async fn prepare(
        &self,
        grant: &RepositoryGrant,
        credential: Option<&Credential>,
    ) -> Result<StepRepository, GitError> {
        let slot = self.inner.slots.get(&grant.run);
        let preparing = Box::pin(async {
            let _turn = slot.turn().await;
            self.prepare_in_turn(&slot, grant, credential).await
        });
        slot.unless_ended(preparing).await
    }

    /// Moves `commit` from the quarantine to the work branch upstream, unless an inspection finds
    /// what must not go there, `secrets` among it. Says also whether that is news: repeating it after
    /// a lost answer gives the same answer. `permit` is asked right before each write.
    pub async fn publish(
        &self,
        grant: &RepositoryGrant,
        credential: &Credential,
        commit: &str,
        secrets: &Watchlist,
        permit: &Permit,
    ) -> Result<(Published, bool), GitError> {
        let slot = self.inner.slots.get(&grant.run);
        let publishing = Box::pin(async {
            let _turn = slot.turn().await;
            self.publish_in_turn(grant, credential, commit, secrets, permit).await
        });
        slot.unless_ended(publishing).await
    }

    /// Ends everything that runs for the attempt and removes its quarantine.
    pub async fn discard(&self, run: &RunKey) {
        if let Some(slot) = self.inner.slots.end(run) {
            // What was running has been told to end; it is gone when the turn is free.
            let _turn = slot.turn().await;
        }
        let directory = quarantine::directory(&self.inner.quarantines, run);
        if let Err(error) = quarantine::remove(&directory).await {
            tracing::warn!(run_uid = %run.uid, error = %error, "quarantine stays on disk until the next start");
        }
    }

    /// Removes the quarantines of all attempts but the `live` ones and those that have come since:
    /// called once after a start, when every live attempt is known.
    pub async fn retain(&self, live: &[RunKey]) -> Result<(), GitError> {
        let failed = |source| GitError::UseDisk { operation: "list quarantines", source };
        let root = &self.inner.quarantines;
        let keep: HashSet<PathBuf> =
            live.iter().map(|run| quarantine::directory(root, run)).collect();
        let mut entries = tokio::fs::read_dir(root).await.map_err(failed)?;
        while let Some(entry) = entries.next_entry().await.map_err(failed)? {
            // An attempt that has come since the list was made has a slot by now.
            let used = self.inner.slots.runs();
            let used = used.iter().any(|run| quarantine::directory(root, run) == entry.path());
            if !used && !keep.contains(&entry.path()) {
                quarantine::remove(&entry.path()).await?;
            }
        }
        Ok(())
    }

    async fn prepare_in_turn(
        &self,
        slot: &Slot,
        grant: &RepositoryGrant,
        credential: Option<&Credential>,
    ) -> Result<StepRepository, GitError> {
        let names = GrantNames::of(grant)?;
        let remote = self.inner.upstreams.resolve(&grant.repository.url)?;
        let login = login(&remote, credential)?;
        let mirror = self.inner.mirrors.get(&grant.namespace, remote.clone_url());
        let listing = mirror.list(login.as_deref(), &names.all()).await?;
        let quarantine = Quarantine::of(&self.inner.quarantines, grant);
        if let Some(state) = quarantine.load().await? {
            if slot.is_idle() {
                leftovers::clear(quarantine.path()).await?;
            }
            return Ok(step_repository(grant, &state));
        }
        mirror.refresh(login.clone(), &listing.tips).await?;
        let facts = gather(grant, &names, &mirror, login, &listing).await?;
        let state = State {
            base_commit: facts.base_commit.to_string(),
            start: start::decide(&facts)?,
            published: None,
        };
        quarantine.create(&self.inner.git, &mirror, &names.base, &state).await?;
        tracing::info!(
            run = %grant.run,
            upstream = mirror.url(),
            branch = state.start.work_branch,
            start = state.start.commit,
            "repository prepared"
        );
        Ok(step_repository(grant, &state))
    }

    fn slot(&self, run: &RunKey) -> Arc<Slot> {
        self.inner.slots.get(run)
    }

    fn mirror(&self, grant: &RepositoryGrant) -> Result<Mirror, GitError> {
        let remote = self.inner.upstreams.resolve(&grant.repository.url)?;
        Ok(self.inner.mirrors.get(&grant.namespace, remote.clone_url()))
    }
}

/// Writes the system's certificate authorities and those in `own` into one file, for git takes one.
fn authorities(git_dir: &Path, own: &Path) -> Result<PathBuf, GitError> {
    let failed = |source| GitError::UseDisk { operation: "join certificate authorities", source };
    // A system without the file has none that git would trust either.
    let mut all = std::fs::read(SYSTEM_CA_FILE).unwrap_or_default();
    all.push(b'\n');
    all.extend(std::fs::read(own).map_err(failed)?);
    let joined = git_dir.join("authorities.pem");
    std::fs::write(&joined, all).map_err(failed)?;
    Ok(joined)
}

/// The credential as git takes it, once it is known to belong to the remote's host.
fn login(remote: &Remote, credential: Option<&Credential>) -> Result<Option<Arc<Login>>, GitError> {
    let Some(credential) = credential else { return Ok(None) };
    if !remote.accepts_credential_of(&credential.host) {
        return Err(GitError::MatchCredential { host: remote.host.clone() });
    }
    Login::of(credential).map(Arc::new).map(Some)
}

fn step_repository(grant: &RepositoryGrant, state: &State) -> StepRepository {
    StepRepository {
        name: grant.repository.name.clone(),
        base_branch: grant.repository.base_branch.clone(),
        base_commit: state.base_commit.clone(),
        work_branch: state.start.work_branch.clone(),
        start_commit: state.start.commit.clone(),
        may_push: grant.may_push,
    }
}
