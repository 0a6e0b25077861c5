//! What git makes of objects that unfold to more than they are packed.

use super::{hostile::scripted, upstream::client, *};
use crate::gateway::git::{
    command::{Git, Run},
    login::Login,
};

/// Heap of these tests in KiB: enough for git itself.
const HEAP_KIB: u32 = 32 * 1024;

fn small_heap() -> GitLimits {
    GitLimits { heap_kib_max: HEAP_KIB, ..GitLimits::default() }
}

#[tokio::test]
async fn git_that_reads_what_a_sandbox_made_has_a_bounded_heap() {
    let directory = tempfile::tempdir().unwrap();
    let git = Git::new(directory.path().to_owned(), None, Arc::default());
    let limit = async |run: Run<'_>| {
        let config = vec!["alias.limit=!ulimit -d".to_owned()];
        let run = Run { git_dir: None, config, ..run };
        git.run(run).await.unwrap().success().unwrap().trim().to_owned()
    };
    let path = directory.path();
    let login = Login::of(&credential(TOKEN)).unwrap();
    let upstream =
        |run: Run<'static>| run.upstream("http://localhost", Some(&login), Duration::from_mins(1));
    let hostile = || Run { git_dir: None, ..Run::hostile(std::path::Path::new("/"), &["limit"]) };
    assert_eq!(limit(hostile()).await, "262144");
    assert_eq!(limit(Run { heaps: 2, ..hostile() }).await, "524288");
    assert_eq!(limit(upstream(hostile())).await, "262144", "where it has a credential too");
    assert_eq!(limit(Run::local(path, &["limit"])).await, "unlimited", "or the check cannot fail");
}

/// Pushes two commits in packs of their own, each with a file of 40 MB that packs to 40 KB.
async fn push_bombs(sandbox: &Sandbox) -> String {
    let mut commit = String::new();
    for number in [1, 2] {
        // Or the client would send the second one as a delta.
        let script = format!(
            "git config core.bigFileThreshold 1m
             (head -c 40000000 /dev/zero; echo {number}) > big; git add ."
        );
        commit = scripted(sandbox, &script).await;
    }
    commit
}

#[tokio::test]
async fn files_that_unfold_to_more_than_the_heap_are_fetched_and_published_within_it() {
    let world = World::with_limits(small_heap()).await;
    let grant = grant("a");
    let sandbox = world.sandbox(&grant).await;
    let commit = push_bombs(&sandbox).await;
    let quarantine = walk(&world.directory.path().join("git/quarantine"));
    let usual = format!(
        "ulimit -d {HEAP_KIB}; echo {commit} |
         git -c pack.threads=1 pack-objects --quiet --revs --stdout > /dev/null"
    );
    let usual = client(&quarantine, "sh", &["-ec", &usual]);
    assert!(stderr(&usual).contains("memory"), "or they are no bombs: {usual:?}");

    let arguments = ["clone", "-q", "--branch", "ai/x", &sandbox.url, "again"];
    let cloned = client_async(world.directory.path(), &arguments).await;
    assert!(cloned.status.success(), "{}", String::from_utf8_lossy(&cloned.stderr));
    world.published(&grant, &commit).await;
    assert_eq!(world.tip("ai/x"), Some(commit));
    // It is in the mirror from now on.
    world.sandbox(&self::grant("b")).await;
}

#[tokio::test]
async fn a_fetch_that_does_not_fit_into_the_heap_fails_and_the_next_clone_works() {
    let mut world = World::new().await;
    let first = grant("a");
    let sandbox = world.sandbox(&first).await;
    let script = "echo a > a; git add .; head -c 40000000 /dev/zero | tr '\\0' x > .git/m
        git update-ref HEAD $(git commit-tree -p HEAD -F .git/m $(git write-tree))";
    scripted(&sandbox, script).await;
    world.git = service(world.directory.path(), &world.upstream, small_heap());
    let (address, _server) = serve_gateway(world.git.clone(), first, Some(credential(TOKEN))).await;
    let url = format!("http://{address}/git/main.git");
    let clone = async |branch, to| {
        let arguments = ["clone", "-q", "--single-branch", "--branch", branch, &url, to];
        client_async(world.directory.path(), &arguments).await
    };
    let refused = stderr(&clone("ai/x", "large").await);
    assert!(refused.starts_with("fatal:"), "{refused}");
    let cloned = clone("main", "usual").await;
    assert!(cloned.status.success(), "{}", String::from_utf8_lossy(&cloned.stderr));
    world.sandbox(&grant("b")).await;
}
