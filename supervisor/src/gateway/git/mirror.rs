//! Mirrors of upstream repositories, one for each (namespace, upstream URL).
//!
//! A mirror is a cache of objects, never a grant: whoever wants something of it has asked the
//! upstream with the own credential first ([`Mirror::list`]).

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    time::Duration,
};

use agent_operator::domain::names;
use tokio::sync::OwnedMutexGuard;
use tokio_util::task::TaskTracker;

use super::{
    command::{At, Git, Run},
    error::GitError,
    finished::{Finished, upstream_error},
    leftovers,
    listing::{self, Listing, Tips},
    login::Login,
    names::{Branch, CommitId},
    space,
};
use crate::room::Room;

/// An upstream that does not list three refs in this time is not available.
const LIST_TIMEOUT: Duration = Duration::from_mins(1);
/// A first fetch of a large repository takes minutes; stalls are cut by the low speed limit.
const FETCH_TIMEOUT: Duration = Duration::from_mins(30);
/// Room for about 100,000 refs; a repository with more is served with its two branches alone.
const REFS_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How far back a branch is searched for this task's trailer: far more commits than a task makes.
const TRAILER_COMMITS_MAX: u32 = 1000;

/// Its time of change is when the mirror was last asked for.
pub(super) const USED_FILE: &str = "agent-operator.used";

/// All mirrors of this node.
#[derive(Debug)]
pub(super) struct Mirrors {
    root: PathBuf,
    git: Arc<Git>,
    locks: std::sync::Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Fetches: they end for everybody who waits for them, also when the first asker is gone.
    fetches: TaskTracker,
}

impl Mirrors {
    /// Mirrors below `root`.
    pub(super) fn new(root: PathBuf, git: Arc<Git>) -> Self {
        Self { root, git, locks: std::sync::Mutex::default(), fetches: TaskTracker::new() }
    }

    /// The mirror of `url` for `namespace`. Nothing is fetched yet.
    pub(super) fn get(&self, namespace: &str, url: String) -> Mirror {
        let name = names::sha256_hex(format!("{namespace}\0{url}").as_bytes());
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = Arc::clone(locks.entry(name.clone()).or_default());
        let path = self.root.join(name);
        let (git, fetches) = (Arc::clone(&self.git), self.fetches.clone());
        Mirror { path, url, git, lock, fetches }
    }

    /// The directory of all mirrors.
    pub(super) fn root(&self) -> PathBuf {
        self.root.clone()
    }

    /// The lock of the mirror `name`, if there is no [`Mirror`] of it. Whoever gets one while it is held
    /// waits in [`Mirror::refresh`], before the first look into the mirror.
    pub(super) fn hold(&self, name: &str) -> Option<OwnedMutexGuard<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = locks.entry(name.to_owned()).or_default();
        if Arc::strong_count(lock) > 1 {
            return None;
        }
        Arc::clone(lock).try_lock_owned().ok()
    }

    /// Forgets the locks that nobody has.
    pub(super) fn forget_unused(&self) {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
    }
}

/// One mirror.
#[derive(Clone, Debug)]
pub(super) struct Mirror {
    path: PathBuf,
    url: String,
    git: Arc<Git>,
    lock: Arc<tokio::sync::Mutex<()>>,
    fetches: TaskTracker,
}

impl Mirror {
    /// The bare repository; exists after the first [`Mirror::refresh`].
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The upstream's URL.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Asks the upstream for `branches`, and for what is in their way. Refused there is refused here.
    /// The mirror could not say it: it may be older than a branch that is none of the task's.
    pub(super) async fn list(
        &self,
        login: Option<&Login>,
        branches: &[&Branch],
    ) -> Result<Listing, GitError> {
        let patterns = listing::patterns(branches);
        let mut args = vec!["ls-remote", "--heads", "--", &self.url];
        args.extend(patterns.iter().map(String::as_str));
        let output_bytes_max = REFS_BYTES_MAX;
        let run = Run { git_dir: None, output_bytes_max, ..Run::local(&self.path, &args) };
        let listed = self.git.run(run.upstream(&self.url, login, LIST_TIMEOUT)).await?;
        Listing::read(&self.accepted(&listed, "read")?, branches)
    }

    /// Makes the mirror contain `tips`; does nothing when another attempt's fetch has brought them.
    pub(super) async fn refresh(
        &self,
        login: Option<Arc<Login>>,
        tips: &Tips,
    ) -> Result<(), GitError> {
        let guard = Arc::clone(&self.lock).lock_owned().await;
        self.create().await?;
        // On a full disk the mirror only looks older than it is.
        let _ = tokio::fs::write(self.path.join(USED_FILE), "\n").await;
        let known = self.known(tips.keys()).await?;
        if tips.iter().all(|(branch, tip)| known.get(branch) == Some(tip)) {
            return Ok(());
        }
        let refspec = "+refs/heads/*:refs/heads/*".to_owned();
        let options = vec!["--prune".to_owned()];
        self.fetch(guard, login, options, refspec).await
    }

    /// Makes the mirror contain `commit`, also when no branch leads to it any more.
    pub(super) async fn require(
        &self,
        login: Option<Arc<Login>>,
        commit: &CommitId,
    ) -> Result<(), GitError> {
        if self.contains(commit).await? {
            return Ok(());
        }
        let guard = Arc::clone(&self.lock).lock_owned().await;
        let refspec = format!("{commit}:refs/kept/{commit}");
        match self.fetch(guard, login, Vec::new(), refspec).await {
            Err(GitError::RunGit { detail, .. }) if names_missing_object(&detail) => {
                Err(GitError::FindCommit { commit: commit.to_string(), url: self.url.clone() })
            }
            other => other,
        }
    }

    /// Whether one of the commits in `base..tip`, or `tip` itself, carries the trailer of `task_uid`.
    pub(super) async fn carries_trailer(
        &self,
        base: &CommitId,
        tip: &CommitId,
        task_uid: &str,
    ) -> Result<bool, GitError> {
        let range = [tip.to_string(), format!("^{base}")];
        let count = format!("--max-count={TRAILER_COMMITS_MAX}");
        let format = trailer_format();
        let args = ["log", &count, &format, &range[0], &range[1], "--"];
        let found = self.git.run(Run::local(&self.path, &args)).await?.success()?;
        if found.lines().any(|line| line.trim() == task_uid) {
            return Ok(true);
        }
        self.tip_carries_trailer(tip, task_uid).await
    }

    /// Whether `tip` itself carries the trailer of `task_uid`.
    pub(super) async fn tip_carries_trailer(
        &self,
        tip: &CommitId,
        task_uid: &str,
    ) -> Result<bool, GitError> {
        tip_carries_trailer(&self.git, At::Mirror(&self.path), tip, task_uid).await
    }

    /// Whether `descendant` has `ancestor` in its history.
    pub(super) async fn descends(
        &self,
        descendant: &CommitId,
        ancestor: &CommitId,
    ) -> Result<bool, GitError> {
        descends(&self.git, At::Mirror(&self.path), descendant, ancestor).await
    }

    /// All branches of the mirror, as lines for `packed-refs`; none when there are too many.
    pub(super) async fn branch_lines(&self) -> Result<Option<String>, GitError> {
        let args = ["for-each-ref", "--format=%(objectname) %(refname)", "refs/heads/"];
        let run = Run { output_bytes_max: REFS_BYTES_MAX, ..Run::local(&self.path, &args) };
        match self.git.run(run).await {
            Err(GitError::BoundOutput { .. }) => Ok(None),
            other => other?.success().map(Some),
        }
    }

    /// Asks the upstream whether a push would be taken, without pushing: the same first request and
    /// the same right, and nothing is sent after its answer.
    pub(super) async fn try_push(
        &self,
        login: Option<&Login>,
        commit: &CommitId,
        branch: &str,
    ) -> Result<(), GitError> {
        let refspec = format!("+{commit}:refs/heads/{branch}");
        let args = ["push", "--dry-run", "--porcelain", "--no-verify", "--", &self.url, &refspec];
        let run = Run::local(&self.path, &args).upstream(&self.url, login, LIST_TIMEOUT);
        self.accepted(&self.git.run(run).await?, "write to").map(drop)
    }

    /// Names of files and folders at the root of `commit`.
    pub(super) async fn root_names(&self, commit: &CommitId) -> Result<Vec<String>, GitError> {
        let args = ["ls-tree", "--name-only", "-z", commit.as_str()];
        let listed = self.git.run(Run::local(&self.path, &args)).await?.success()?;
        Ok(listed.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect())
    }

    /// Text of the file `name` at the root of `commit`; none when it is no file or too large.
    pub(super) async fn root_file(
        &self,
        commit: &CommitId,
        name: &str,
        bytes_max: usize,
    ) -> Result<Option<String>, GitError> {
        let object = format!("{commit}:{name}");
        let args = ["cat-file", "blob", &object];
        let run = Run { output_bytes_max: bytes_max, ..Run::local(&self.path, &args) };
        match self.git.run(run).await {
            Err(GitError::BoundOutput { .. }) => Ok(None),
            finished => Ok(finished?.success().ok()),
        }
    }

    async fn create(&self) -> Result<(), GitError> {
        if tokio::fs::try_exists(self.path.join("HEAD")).await.unwrap_or(false) {
            return Ok(());
        }
        let path = self.path.to_string_lossy();
        let args = ["init", "--quiet", "--bare", "--template=", "--", path.as_ref()];
        let run = Run { git_dir: None, ..Run::local(&self.path, &args) };
        self.git.run(run).await?.success().map(drop)
    }

    async fn known(&self, branches: impl Iterator<Item = &Branch>) -> Result<Tips, GitError> {
        let branches: Vec<&Branch> = branches.collect();
        let refs: Vec<String> = branches.iter().map(|branch| branch.full_ref()).collect();
        let mut args = vec!["for-each-ref", "--format=%(objectname) %(refname)"];
        args.extend(refs.iter().map(String::as_str));
        let text = self.git.run(Run::local(&self.path, &args)).await?.success()?;
        let mut tips = Tips::new();
        for (id, name) in text.lines().filter_map(|line| line.split_once(' ')) {
            if let Some(branch) = branches.iter().find(|branch| branch.full_ref() == name) {
                tips.insert((*branch).clone(), CommitId::parse(id)?);
            }
        }
        Ok(tips)
    }

    async fn contains(&self, commit: &CommitId) -> Result<bool, GitError> {
        contains(&self.git, At::Mirror(&self.path), commit).await
    }

    /// Fetches in a task of its own that holds the lock: an asker who gives up leaves the fetch to
    /// the next one instead of making everybody begin again.
    async fn fetch(
        &self,
        guard: OwnedMutexGuard<()>,
        login: Option<Arc<Login>>,
        options: Vec<String>,
        refspec: String,
    ) -> Result<(), GitError> {
        // The lock is held: whatever is left here belongs to a fetch that was killed.
        leftovers::clear(&self.path).await?;
        let path = self.path.clone();
        let room = space::blocking("measure the disk", move || Room::of(&path)).await?;
        space::check(room, "fetch: the disk is full")?;
        let mirror = self.clone();
        let fetch = self.fetches.spawn(async move {
            let mut args =
                vec!["fetch", "--quiet", "--no-tags", "--no-auto-gc", "--no-write-fetch-head"];
            args.extend(options.iter().map(String::as_str));
            args.extend(["--", &mirror.url, &refspec]);
            let run = Run::local(&mirror.path, &args).upstream(
                &mirror.url,
                login.as_deref(),
                FETCH_TIMEOUT,
            );
            let fetched = mirror.git.run(run).await;
            drop(guard);
            mirror.accepted(&fetched?, "read").map(drop)
        });
        fetch.await.unwrap_or_else(|ended| {
            Err(GitError::RunGit { operation: "fetch".to_owned(), detail: ended.to_string() })
        })
    }

    /// The output of an operation on the upstream, or what its failure means.
    fn accepted(&self, finished: &Finished, operation: &'static str) -> Result<String, GitError> {
        if finished.code == Some(0) {
            return Ok(String::from_utf8_lossy(&finished.stdout).into_owned());
        }
        Err(upstream_error(finished, &self.url, operation))
    }
}

/// Whether git's words mean that the upstream does not have, or does not give out, one object.
fn names_missing_object(detail: &str) -> bool {
    ["not our ref", "unadvertised object", "find remote ref"]
        .iter()
        .any(|word| detail.contains(word))
}

/// Prints the values of this task's trailer, one a line.
fn trailer_format() -> String {
    format!("--format=%(trailers:key={},valueonly)", names::TRAILER_TASK_UID)
}

/// Whether `tip` carries the trailer of `task_uid`.
pub(super) async fn tip_carries_trailer(
    git: &Git,
    at: At<'_>,
    tip: &CommitId,
    task_uid: &str,
) -> Result<bool, GitError> {
    let format = trailer_format();
    let args = ["log", "--max-count=1", &format, tip.as_str(), "--"];
    let found = git.run(Run::at(at, &args)).await?.success()?;
    Ok(found.lines().any(|line| line.trim() == task_uid))
}

/// Whether `descendant` has `ancestor` in its history.
pub(super) async fn descends(
    git: &Git,
    at: At<'_>,
    descendant: &CommitId,
    ancestor: &CommitId,
) -> Result<bool, GitError> {
    let args = ["merge-base", "--is-ancestor", ancestor.as_str(), descendant.as_str()];
    let finished = git.run(Run::at(at, &args)).await?;
    match finished.code {
        Some(1) => Ok(false),
        _ => finished.success().map(|_| true),
    }
}

/// Whether the repository holds `commit`, and it is a commit.
pub(super) async fn contains(git: &Git, at: At<'_>, commit: &CommitId) -> Result<bool, GitError> {
    let object = format!("{commit}^{{commit}}");
    let finished = git.run(Run::at(at, &["cat-file", "-e", &object])).await?;
    Ok(finished.code == Some(0))
}
