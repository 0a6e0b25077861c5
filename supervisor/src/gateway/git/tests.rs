//! The whole way on loopback: a real git client in the sandbox's place, a real git upstream.

mod preflight;
pub(in crate::gateway) mod upstream;

use std::{
    path::PathBuf,
    process::Output,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use agent_operator::domain::{
    Attempt, Credential, Epoch, Reason, RunKey, Secret, TaskRef, assignment::Repository,
    secret::purpose,
};

use self::upstream::{TOKEN, TestUpstream, client_async, run, serve_gateway};
use super::{GitError, GitLimits, GitService, GitSettings, RepositoryGrant};
use crate::gateway::{
    permit::Permit,
    upstream::{ForgeKind, Upstream},
};

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
    GitService::new(GitSettings { git_dir, upstreams, ca_file: None, proxies, limits }).unwrap()
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

    let published =
        world.git.publish(&grant, &credential(TOKEN), &commit, &permit()).await.unwrap();
    assert_eq!((published.work_branch.as_str(), &published.head_commit), ("ai/x", &commit));
    assert_eq!(world.tip("ai/x"), Some(commit.clone()));

    let again = world.git.publish(&grant, &credential(TOKEN), &commit, &permit()).await.unwrap();
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
    let lapsed =
        world.git.publish(&grant, &credential(TOKEN), &commit, &Permit::none()).await.unwrap_err();
    assert!(lapsed.retryable() && lapsed.reason().is_none(), "{lapsed}");
    assert_eq!(world.tip("ai/x"), None, "nothing is written without permission");
    world.git.publish(&grant, &credential(TOKEN), &commit, &permit()).await.unwrap();
    assert_eq!(world.tip("ai/x"), Some(commit.clone()));

    world.git.retain(&[]).await.unwrap();
    assert!(walk(&world.directory.path().join("git/quarantine")).exists(), "it is in use");
    world.git = world.new_service();
    world.git.retain(&[]).await.unwrap();
    let gone = world.git.publish(&grant, &credential(TOKEN), &commit, &permit()).await.unwrap_err();
    assert!(matches!(gone, GitError::FindPushed { .. }), "{gone}");
}

#[tokio::test]
async fn a_branch_of_somebody_else_gives_the_task_a_name_of_its_own() {
    let world = World::new().await;
    let foreign = world.commit_upstream("ai/x", "foreign");
    let grant = grant("a");
    let sandbox = world.sandbox(&grant).await;
    assert_eq!(sandbox.work_branch, "ai/x-0a1b2");
    let commit = sandbox.change("feature").await;
    world.git.publish(&grant, &credential(TOKEN), &commit, &permit()).await.unwrap();
    assert_eq!(world.tip("ai/x-0a1b2"), Some(commit));
    assert_eq!(world.tip("ai/x"), Some(foreign));
}

#[tokio::test]
async fn a_branch_taken_in_mid_step_gives_the_task_a_name_of_its_own() {
    let world = World::new().await;
    let grant = grant("a");
    let commit = world.sandbox(&grant).await.change("feature").await;
    let foreign = world.commit_upstream("ai/x", "foreign");
    for _ in 0..2 {
        let published =
            world.git.publish(&grant, &credential(TOKEN), &commit, &permit()).await.unwrap();
        assert_eq!(published.work_branch, "ai/x-0a1b2");
    }
    assert_eq!(world.tip("ai/x-0a1b2"), Some(commit));
    assert_eq!(world.tip("ai/x"), Some(foreign), "nothing of a stranger is overwritten");
}

#[tokio::test]
async fn two_tasks_that_race_for_one_name_both_publish_under_names_of_their_own() {
    let world = World::new().await;
    let first = grant("a");
    let mut second = grant("b");
    second.task.uid = "ffff2c3d-0000-0000-0000-000000000002".into();
    let (one, two) = (world.sandbox(&first).await, world.sandbox(&second).await);
    let one = one.change("one").await;
    let commit = two.commit("two", second.task.uid.as_str());
    assert!(two.push("ai/x").await.status.success());
    let (token, permit) = (credential(TOKEN), permit());
    let (a, b) = tokio::join!(
        world.git.publish(&first, &token, &one, &permit),
        world.git.publish(&second, &token, &commit, &permit)
    );
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_ne!(a.work_branch, b.work_branch);
    assert_eq!(world.tip(&a.work_branch), Some(one));
    assert_eq!(world.tip(&b.work_branch), Some(commit));
}

#[tokio::test]
async fn a_push_that_loses_the_race_at_the_upstream_itself_overwrites_nothing() {
    let world = World::new().await;
    let foreign = world.commit_upstream("elsewhere", "foreign");
    let grant = grant("a");
    let commit = world.sandbox(&grant).await.change("feature").await;
    // Taken after the upstream has listed its refs and before it moves one.
    let script = format!("git --git-dir=o/r.git update-ref refs/heads/ai/x {foreign}");
    *world.upstream.seen.before_push.lock().unwrap() = Some(script);
    let published =
        world.git.publish(&grant, &credential(TOKEN), &commit, &permit()).await.unwrap();
    assert_eq!(published.work_branch, "ai/x-0a1b2");
    assert_eq!(world.tip("ai/x"), Some(foreign));
}

#[tokio::test]
async fn a_work_branch_that_somebody_moved_is_left_alone() {
    let world = World::new().await;
    let first = grant("a");
    let commit = world.sandbox(&first).await.change("feature").await;
    world.git.publish(&first, &credential(TOKEN), &commit, &permit()).await.unwrap();
    let mut second = grant("b");
    second.repository.head_commit = Some(commit);
    let next = world.sandbox(&second).await.change("more").await;
    let foreign = world.commit_upstream("ai/x", "forced");
    let refused =
        world.git.publish(&second, &credential(TOKEN), &next, &permit()).await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::PushRefused), "{refused}");
    assert!(refused.to_string().contains("ai/x"), "{refused}");
    assert_eq!(world.tip("ai/x"), Some(foreign));
}

#[tokio::test]
async fn a_wrong_credential_is_refused_although_the_mirror_is_warm() {
    let world = World::new().await;
    world.git.prepare(&grant("a"), Some(&credential(TOKEN))).await.unwrap();
    for wrong in [Some(credential("wrong")), None] {
        let refused = world.git.prepare(&grant("b"), wrong.as_ref()).await.unwrap_err();
        assert!(matches!(refused, GitError::Authenticate { .. }), "{refused}");
        assert_eq!(refused.reason(), Some(Reason::ProviderUnavailable), "the token may be renewed");
        let (address, _server) = serve_gateway(world.git.clone(), grant("b"), wrong).await;
        let url = format!("http://{address}/git/main.git");
        let listed = client_async(world.directory.path(), &["ls-remote", &url]).await;
        assert!(stderr(&listed).contains("403"));
    }
    let mut other = credential(TOKEN);
    other.host = "example.com".to_owned();
    let requests = world.upstream.seen.requests.load(Ordering::SeqCst);
    let refused = world.git.prepare(&grant("b"), Some(&other)).await.unwrap_err();
    assert!(matches!(refused, GitError::MatchCredential { .. }), "{refused}");
    assert_eq!(world.upstream.seen.requests.load(Ordering::SeqCst), requests, "nothing is sent");
}

#[tokio::test]
async fn only_the_work_branch_takes_a_push_and_nothing_is_deleted() {
    let world = World::new().await;
    let sandbox = world.sandbox(&grant("a")).await;
    sandbox.change("feature").await;
    for target in ["main", "ai/xx", "ai/x/y", "other"] {
        let refused = stderr(&sandbox.push(target).await);
        assert!(refused.contains("rejected"), "{target}: {refused}");
    }
    let tag = client_async(&sandbox.tree, &["push", "origin", "HEAD:refs/tags/v1"]).await;
    assert!(stderr(&tag).contains("hidden ref"));
    for gone in [":ai/x", ":main"] {
        let refused = client_async(&sandbox.tree, &["push", "origin", gone]).await;
        assert!(!refused.status.success(), "{gone}");
    }
}

#[tokio::test]
async fn a_read_only_grant_fetches_and_cannot_push_or_publish() {
    let world = World::new().await;
    let mut reading = grant("a");
    reading.may_push = false;
    let sandbox = world.sandbox(&reading).await;
    let commit = sandbox.commit("feature", UID);
    assert!(stderr(&sandbox.push("ai/x").await).contains("403"));
    let refused =
        world.git.publish(&reading, &credential(TOKEN), &commit, &permit()).await.unwrap_err();
    assert!(matches!(refused, GitError::GrantPush), "{refused}");
}

#[tokio::test]
async fn a_commit_is_published_only_if_it_is_a_marked_change_on_top_of_the_start() {
    let world = World::new().await;
    let grant = grant("a");
    let sandbox = world.sandbox(&grant).await;
    let publish = async |commit: &str| {
        world.git.publish(&grant, &credential(TOKEN), commit, &permit()).await.unwrap_err()
    };
    let start = run(&sandbox.tree, "git", &["rev-parse", "HEAD"]);
    assert_eq!(publish(&start).await.reason(), Some(Reason::NoChanges));

    let unpushed = sandbox.commit("feature", UID);
    assert!(matches!(publish(&unpushed).await, GitError::FindPushed { .. }));
    assert!(matches!(publish("--all").await, GitError::CheckCommitId { .. }));

    let unmarked = sandbox.commit("second", "another-task");
    assert!(sandbox.push("ai/x").await.status.success());
    assert!(matches!(publish(&unmarked).await, GitError::CheckTrailer { .. }));

    run(&sandbox.tree, "git", &["checkout", "-q", "--orphan", "elsewhere"]);
    let orphan = sandbox.commit("third", UID);
    let forced = client_async(&sandbox.tree, &["push", "-f", "origin", "HEAD:refs/heads/ai/x"]);
    assert!(forced.await.status.success());
    assert!(matches!(publish(&orphan).await, GitError::CheckDescent { .. }));
    assert_eq!(world.tip("ai/x"), None);
}

#[tokio::test]
async fn the_last_published_commit_never_goes_back() {
    let world = World::new().await;
    let grant = grant("a");
    let sandbox = world.sandbox(&grant).await;
    let first = sandbox.change("one").await;
    let second = sandbox.change("two").await;
    for commit in [&first, &second] {
        world.git.publish(&grant, &credential(TOKEN), commit, &permit()).await.unwrap();
    }
    let back = world.git.publish(&grant, &credential(TOKEN), &first, &permit()).await.unwrap_err();
    assert!(matches!(back, GitError::CheckDescent { .. }), "{back}");
    assert_eq!(world.tip("ai/x"), Some(second));
}

#[tokio::test]
async fn a_push_over_the_limits_is_refused() {
    let limits = GitLimits { push_bytes_max: 64 * 1024, objects_max: 10 };
    let world = World::with_limits(limits).await;
    let grant = grant("a");
    let sandbox = world.sandbox(&grant).await;
    for number in 0..12 {
        std::fs::write(sandbox.tree.join(format!("f{number}")), format!("{number}")).unwrap();
    }
    let many = sandbox.change("more").await;
    let refused =
        world.git.publish(&grant, &credential(TOKEN), &many, &permit()).await.unwrap_err();
    assert!(matches!(refused, GitError::CheckSize { unit: "objects", .. }), "{refused}");

    let mut noise = vec![0; 256 * 1024];
    getrandom::fill(&mut noise).unwrap();
    std::fs::write(sandbox.tree.join("binary"), noise).unwrap();
    sandbox.commit("large", UID);
    assert!(!sandbox.push("ai/x").await.status.success());
}

#[tokio::test]
async fn hooks_and_configuration_of_a_repository_do_not_run_in_the_gateway() {
    let world = World::new().await;
    let grant = grant("a");
    let sandbox = world.sandbox(&grant).await;
    let mark = world.directory.path().join("ran");
    let script = format!("#!/bin/sh\ntouch {}\n", mark.display());
    // What a hostile tree can hold: hooks, attributes, modules; and, as if the quarantine itself had
    // been tampered with, hooks in it.
    let hooks = walk(&world.directory.path().join("git/quarantine")).join("hooks");
    std::fs::create_dir_all(&hooks).unwrap();
    std::fs::create_dir_all(sandbox.tree.join("hooks")).unwrap();
    for name in [
        "pre-receive",
        "update",
        "post-receive",
        "post-update",
        "pre-push",
        "reference-transaction",
    ] {
        for directory in [&hooks, &sandbox.tree.join("hooks")] {
            let path = directory.join(name);
            std::fs::write(&path, &script).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(&path, mode).unwrap();
        }
    }
    let filter = format!("* filter=x diff=x\n# {}\n", mark.display());
    std::fs::write(sandbox.tree.join(".gitattributes"), filter).unwrap();
    let commit = sandbox.change("feature").await;
    world.git.publish(&grant, &credential(TOKEN), &commit, &permit()).await.unwrap();
    assert_eq!(world.tip("ai/x"), Some(commit));
    assert!(!mark.exists(), "a hook ran");
}

/// The one repository below `quarantine/<attempt>/`.
fn walk(root: &std::path::Path) -> PathBuf {
    let only =
        |path: &std::path::Path| std::fs::read_dir(path).unwrap().next().unwrap().unwrap().path();
    only(&only(root))
}

#[tokio::test]
async fn a_tree_with_dot_git_in_it_is_refused_on_push() {
    let world = World::new().await;
    let sandbox = world.sandbox(&grant("a")).await;
    let script = "blob=$(echo x | git hash-object -w --stdin)
        sub=$(printf '100755 blob %s\\tpre-commit\\n' $blob | git mktree)
        tree=$(printf '040000 tree %s\\t.GIT\\n' $sub | git mktree)
        git update-ref HEAD $(git commit-tree -p HEAD -m evil $tree)";
    run(&sandbox.tree, "sh", &["-ec", script]);
    let refused = stderr(&sandbox.push("ai/x").await);
    assert!(refused.contains("hasDotgit") || refused.contains("unpack"), "{refused}");
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
async fn the_credential_stands_in_no_argument_environment_or_file() {
    let world = World::new().await;
    let grant = grant("a");
    let commit = world.sandbox(&grant).await.change("feature").await;
    world.git.publish(&grant, &credential(TOKEN), &commit, &permit()).await.unwrap();
    let seen = &world.upstream.seen;
    assert!(seen.inspected.load(Ordering::SeqCst) > 0, "no git process was looked at");
    assert_eq!(*seen.leaks.lock().unwrap(), Vec::<String>::new());
    let found = upstream::client(world.directory.path(), "grep", &["-rl", TOKEN, "git"]);
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

#[tokio::test]
async fn namespaces_share_no_mirror() {
    let world = World::new().await;
    let mut other = grant("b");
    other.namespace = "elsewhere".to_owned();
    let token = credential(TOKEN);
    let ours = grant("a");
    let (one, two) = tokio::join!(
        world.git.prepare(&ours, Some(&token)),
        world.git.prepare(&other, Some(&token))
    );
    assert_eq!(one.unwrap(), two.unwrap());
    let mirrors = std::fs::read_dir(world.directory.path().join("git/mirrors")).unwrap();
    assert_eq!(mirrors.count(), 2);
}

#[tokio::test]
async fn attempts_that_come_at_once_share_one_mirror_and_get_the_same_answer() {
    let world = World::new().await;
    let token = credential(TOKEN);
    let grants: Vec<_> = (0..6).map(|number| grant(&format!("run-{number}"))).collect();
    let prepared = futures::future::join_all(
        grants.iter().map(|grant| world.git.prepare(grant, Some(&token))),
    )
    .await;
    let first = prepared[0].as_ref().unwrap();
    assert!(prepared.iter().all(|step| step.as_ref().unwrap() == first));
    let mirrors = std::fs::read_dir(world.directory.path().join("git/mirrors")).unwrap();
    assert_eq!(mirrors.count(), 1);
}

#[tokio::test]
async fn a_discarded_attempt_leaves_nothing_and_gets_nothing() {
    let world = World::new().await;
    let grant = grant("a");
    let commit = world.sandbox(&grant).await.change("feature").await;
    world.git.discard(&grant.run).await;
    let quarantines = std::fs::read_dir(world.directory.path().join("git/quarantine")).unwrap();
    assert_eq!(quarantines.count(), 0);
    let gone = world.git.publish(&grant, &credential(TOKEN), &commit, &permit()).await.unwrap_err();
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
