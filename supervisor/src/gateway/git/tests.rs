//! The whole way on loopback: a real git client in the sandbox's place, a real git upstream.

mod branches;
mod hostile;
mod memory;
mod mirrors;
mod patience;
mod preflight;
mod races;
mod rights;
pub(in crate::gateway) mod upstream;

use std::{
    path::PathBuf,
    process::Output,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use agent_operator::{
    attempt::Published,
    domain::{
        Attempt, Credential, Epoch, Reason, RunKey, Secret, TaskRef, assignment::Repository,
        secret::purpose,
    },
};

use self::upstream::{TOKEN, TestUpstream, client_async, run, serve_gateway};
use super::{GitError, GitLimits, GitService, GitSettings, ProtectedPaths, RepositoryGrant};
use crate::gateway::{
    permit::Permit,
    upstream::{ForgeKind, Upstream},
};
use crate::scrub::Watchlist;

const UID: &str = "0a1b2c3d-0000-0000-0000-000000000001";

/// An upstream with one repository and a gateway's git service.
struct World {
    directory: tempfile::TempDir,
    upstream: TestUpstream,
    git: GitService,
}

impl World {
    async fn new() -> Self {
        Self::with_limits(GitLimits::default()).await
    }

    async fn with_limits(limits: GitLimits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("upstream");
        std::fs::create_dir_all(root.join("o")).unwrap();
        run(&root, "git", &["init", "-q", "--bare", "-b", "main", "o/r.git"]);
        run(&root, "git", &["init", "-q", "-b", "main", "work"]);
        let work = root.join("work");
        std::fs::write(work.join("README"), "hello\n").unwrap();
        run(&work, "git", &["add", "."]);
        run(&work, "git", &["commit", "-qm", "first"]);
        run(&work, "git", &["push", "-q", "../o/r.git", "main"]);
        let upstream = TestUpstream::start(root).await;
        let git = service(directory.path(), &upstream, limits);
        Self { directory, upstream, git }
    }

    /// The service after a restart of the gateway.
    fn new_service(&self) -> GitService {
        service(self.directory.path(), &self.upstream, GitLimits::default())
    }

    fn bare(&self) -> PathBuf {
        self.upstream.root.join("o/r.git")
    }

    /// Commits to `branch` upstream, past the gateway.
    fn commit_upstream(&self, branch: &str, message: &str) -> String {
        let work = self.upstream.root.join("work");
        run(&work, "git", &["checkout", "-q", "-B", branch, "main"]);
        std::fs::write(work.join("other"), message).unwrap();
        run(&work, "git", &["add", "."]);
        run(&work, "git", &["commit", "-qm", message]);
        run(&work, "git", &["push", "-q", "-f", "../o/r.git", branch]);
        let commit = run(&work, "git", &["rev-parse", "HEAD"]);
        run(&work, "git", &["checkout", "-q", "main"]);
        commit
    }

    fn tip(&self, branch: &str) -> Option<String> {
        let name = format!("refs/heads/{branch}");
        let listed = run(&self.bare(), "git", &["for-each-ref", "--format=%(objectname)", &name]);
        (!listed.is_empty()).then_some(listed)
    }

    /// Publishes what is taken.
    async fn published(&self, grant: &RepositoryGrant, commit: &str) -> Published {
        self.publish(grant, commit).await.unwrap()
    }

    /// Publishes what is not taken.
    async fn unpublished(&self, grant: &RepositoryGrant, commit: &str) -> GitError {
        self.publish(grant, commit).await.unwrap_err()
    }

    async fn publish(&self, grant: &RepositoryGrant, commit: &str) -> Result<Published, GitError> {
        let (token, secrets) = (credential(TOKEN), no_secrets());
        let published = self.git.publish(grant, &token, commit, &secrets, &permit()).await;
        published.map(|(published, _)| published)
    }

    async fn sandbox(&self, grant: &RepositoryGrant) -> Sandbox {
        let step = self.git.prepare(grant, Some(&credential(TOKEN))).await.unwrap();
        let (address, server) =
            serve_gateway(self.git.clone(), grant.clone(), Some(credential(TOKEN))).await;
        let name = format!("clone-{}-{}", grant.run.uid, grant.run.attempt);
        let tree = self.directory.path().join(name);
        let sandbox = Sandbox {
            url: format!("http://{address}/git/main.git"),
            tree,
            work_branch: step.work_branch.clone(),
            _server: server,
        };
        let tree = sandbox.tree.to_string_lossy().into_owned();
        let cloned = client_async(
            self.directory.path(),
            &["clone", "-q", "--branch", &step.work_branch, &sandbox.url, &tree],
        )
        .await;
        assert!(cloned.status.success(), "{}", String::from_utf8_lossy(&cloned.stderr));
        assert_eq!(run(&sandbox.tree, "git", &["rev-parse", "HEAD"]), step.start_commit);
        sandbox
    }
}

fn service(directory: &std::path::Path, upstream: &TestUpstream, limits: GitLimits) -> GitService {
    let map = Upstream {
        host: "github.com".to_owned(),
        base_url: format!("http://{}", upstream.address),
        forge: ForgeKind::Gitea,
    };
    let git_dir = directory.join("git");
    let upstreams = vec![map];
    let proxies = Arc::default();
    let protected = ProtectedPaths::default();
    let settings = GitSettings { git_dir, upstreams, ca_file: None, proxies, limits, protected };
    GitService::new(settings).unwrap()
}

/// A clone as the agent pod has it.
struct Sandbox {
    url: String,
    tree: PathBuf,
    work_branch: String,
    _server: tokio::task::JoinSet<()>,
}

impl Sandbox {
    fn commit(&self, file: &str, uid: &str) -> String {
        std::fs::write(self.tree.join(file), format!("{file}\n")).unwrap();
        run(&self.tree, "git", &["add", "."]);
        let message = format!("change {file}\n\nAgent-Operator-Task-Uid: {uid}\n");
        run(&self.tree, "git", &["commit", "-qm", &message]);
        run(&self.tree, "git", &["rev-parse", "HEAD"])
    }

    async fn push(&self, target: &str) -> Output {
        let refspec = format!("HEAD:refs/heads/{target}");
        client_async(&self.tree, &["push", "-q", "origin", &refspec]).await
    }

    /// Commits one change and pushes it to the work branch.
    async fn change(&self, file: &str) -> String {
        let commit = self.commit(file, UID);
        let pushed = self.push(&self.work_branch).await;
        assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
        commit
    }
}

fn credential(token: &str) -> Credential {
    Credential {
        id: "git/main".to_owned(),
        purpose: purpose::GIT.to_owned(),
        host: "github.com".to_owned(),
        scheme: "basic".to_owned(),
        value: Secret::new(token),
    }
}

fn grant(run: &str) -> RepositoryGrant {
    RepositoryGrant {
        run: RunKey { uid: run.into(), attempt: Attempt(1) },
        namespace: "agent-system".to_owned(),
        task: TaskRef { name: "x".to_owned(), uid: UID.into() },
        repository: Repository {
            name: "main".to_owned(),
            url: "https://github.com/o/r.git".to_owned(),
            base_branch: "main".to_owned(),
            work_branch: "ai/x".to_owned(),
            base_commit: None,
            head_commit: None,
        },
        may_push: true,
    }
}

fn no_secrets() -> Watchlist {
    Watchlist::default()
}

fn permit() -> Permit {
    Permit::granted(Epoch(1), Duration::from_secs(30))
}

fn stderr(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn a_change_goes_from_the_sandbox_through_quarantine_to_the_work_branch() {
    let world = World::new().await;
    let grant = grant("a");
    let sandbox = world.sandbox(&grant).await;
    let commit = sandbox.change("feature").await;
    assert_eq!(world.tip("ai/x"), None, "a push stays in quarantine");

    let published = world.published(&grant, &commit).await;
    assert_eq!((published.work_branch.as_str(), &published.head_commit), ("ai/x", &commit));
    assert_eq!(world.tip("ai/x"), Some(commit.clone()));

    let again = world.published(&grant, &commit).await;
    assert_eq!(again, published, "a repeat after a lost answer changes nothing");

    // The next step starts where this one ended, and reads only.
    let mut next = self::grant("b");
    next.repository.head_commit = Some(commit.clone());
    next.may_push = false;
    let step = world.git.prepare(&next, Some(&credential(TOKEN))).await.unwrap();
    assert_eq!((step.start_commit, step.work_branch.as_str()), (commit, "ai/x"));
}

#[tokio::test]
async fn a_restarted_gateway_publishes_what_was_in_quarantine() {
    let mut world = World::new().await;
    let grant = grant("a");
    let commit = world.sandbox(&grant).await.change("feature").await;
    world.git = world.new_service();
    world.git.retain(std::slice::from_ref(&grant.run)).await.unwrap();
    let lapsed = world
        .git
        .publish(&grant, &credential(TOKEN), &commit, &no_secrets(), &Permit::none())
        .await
        .unwrap_err();
    assert!(lapsed.retryable() && lapsed.reason().is_none(), "{lapsed}");
    assert_eq!(world.tip("ai/x"), None, "nothing is written without permission");
    world.published(&grant, &commit).await;
    assert_eq!(world.tip("ai/x"), Some(commit.clone()));

    world.git.retain(&[]).await.unwrap();
    assert!(walk(&world.directory.path().join("git/quarantine")).exists(), "it is in use");
    world.git = world.new_service();
    world.git.retain(&[]).await.unwrap();
    let gone = world.unpublished(&grant, &commit).await;
    assert!(matches!(gone, GitError::FindPushed { .. }), "{gone}");
}

/// The one repository below `quarantine/<attempt>/`.
fn walk(root: &std::path::Path) -> PathBuf {
    let only =
        |path: &std::path::Path| std::fs::read_dir(path).unwrap().next().unwrap().unwrap().path();
    only(&only(root))
}

#[tokio::test]
async fn what_is_missing_or_down_upstream_is_said_in_one_sentence() {
    let world = World::new().await;
    let token = credential(TOKEN);
    let mut no_branch = grant("a");
    no_branch.repository.base_branch = "trunk".to_owned();
    let error = world.git.prepare(&no_branch, Some(&token)).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::InvalidTask));
    assert!(error.to_string().contains("branch trunk does not exist"), "{error}");

    let mut no_repository = grant("a");
    no_repository.repository.url = "https://github.com/o/none.git".to_owned();
    let error = world.git.prepare(&no_repository, Some(&token)).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::ProviderUnavailable), "it may only be hidden now");
    assert!(matches!(error, GitError::FindRepository { .. }), "{error}");

    let mut no_commit = grant("a");
    no_commit.repository.head_commit = Some("1".repeat(40));
    let error = world.git.prepare(&no_commit, Some(&token)).await.unwrap_err();
    assert!(matches!(error, GitError::FindCommit { .. }), "{error}");

    for status in [500, 503, 429] {
        world.upstream.seen.fail_with.store(status, Ordering::SeqCst);
        let error = world.git.prepare(&grant("a"), Some(&token)).await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::ProviderUnavailable), "{status}: {error}");
        assert!(error.retryable());
    }
    // The preflight saw the credential accepted, so a 403 is one that expired: a new one may come.
    for (status, reason) in [(301, Reason::InvalidTask), (403, Reason::ProviderUnavailable)] {
        world.upstream.seen.fail_with.store(status, Ordering::SeqCst);
        let error = world.git.prepare(&grant("a"), Some(&token)).await.unwrap_err();
        assert_eq!(error.reason(), Some(reason), "{status}: {error}");
    }
}

#[tokio::test]
async fn a_discarded_attempt_leaves_nothing_and_gets_nothing() {
    let world = World::new().await;
    let grant = grant("a");
    let commit = world.sandbox(&grant).await.change("feature").await;
    world.git.discard(&grant.run).await;
    let quarantines = std::fs::read_dir(world.directory.path().join("git/quarantine")).unwrap();
    assert_eq!(quarantines.count(), 0);
    let gone = world.unpublished(&grant, &commit).await;
    assert!(matches!(gone, GitError::FindPushed { .. }), "{gone}");
}

#[tokio::test]
async fn a_large_negotiation_arrives_compressed_and_is_understood() {
    let world = World::new().await;
    let grant = grant("a");
    let sandbox = world.sandbox(&grant).await;
    for number in 0..200 {
        let message = format!("c{number}");
        run(&sandbox.tree, "git", &["commit", "-q", "--allow-empty", "-m", &message]);
    }
    world.commit_upstream("main", "news");
    let fresh = self::grant("b");
    let (address, _server) =
        serve_gateway(world.git.clone(), fresh.clone(), Some(credential(TOKEN))).await;
    let url = format!("http://{address}/git/main.git");
    for version in ["protocol.version=0", "protocol.version=2"] {
        let fetched =
            client_async(&sandbox.tree, &["-c", version, "fetch", "-q", &url, "main"]).await;
        assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
    }
    assert!(upstream::COMPRESSED_REQUESTS.load(Ordering::SeqCst) > 0);
}

#[tokio::test]
async fn locks_of_a_killed_git_block_neither_mirror_nor_quarantine() {
    let world = World::new().await;
    let first = grant("a");
    let sandbox = world.sandbox(&first).await;
    let mirror = std::fs::read_dir(world.directory.path().join("git/mirrors")).unwrap();
    let mirror = mirror.map(|entry| entry.unwrap().path()).next().unwrap();
    let quarantine = walk(&world.directory.path().join("git/quarantine"));
    std::fs::create_dir_all(quarantine.join("refs/heads/ai")).unwrap();
    for lock in [
        mirror.join("packed-refs.lock"),
        mirror.join("refs/heads/main.lock"),
        quarantine.join("refs/heads/ai/x.lock"),
    ] {
        std::fs::write(lock, "").unwrap();
    }
    world.commit_upstream("main", "news");
    world.git.prepare(&grant("b"), Some(&credential(TOKEN))).await.unwrap();
    world.git.prepare(&first, Some(&credential(TOKEN))).await.unwrap();
    sandbox.change("feature").await;
}
