//! Branches that others write to meanwhile.

use super::*;

#[tokio::test]
async fn a_branch_of_somebody_else_gives_the_task_a_name_of_its_own() {
    let world = World::new().await;
    let foreign = world.commit_upstream("ai/x", "foreign");
    let grant = grant("a");
    let sandbox = world.sandbox(&grant).await;
    assert_eq!(sandbox.work_branch, "ai/x-0a1b2");
    let commit = sandbox.change("feature").await;
    world.published(&grant, &commit).await;
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
        let published = world.published(&grant, &commit).await;
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
    let (token, none, permit) = (credential(TOKEN), no_secrets(), permit());
    let (a, b) = tokio::join!(
        world.git.publish(&first, &token, &one, &none, &permit),
        world.git.publish(&second, &token, &commit, &none, &permit)
    );
    let (a, b) = (a.unwrap().0, b.unwrap().0);
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
    let published = world.published(&grant, &commit).await;
    assert_eq!(published.work_branch, "ai/x-0a1b2");
    assert_eq!(world.tip("ai/x"), Some(foreign));
}

#[tokio::test]
async fn a_work_branch_that_somebody_moved_is_left_alone() {
    let world = World::new().await;
    let first = grant("a");
    let commit = world.sandbox(&first).await.change("feature").await;
    world.published(&first, &commit).await;
    let mut second = grant("b");
    second.repository.head_commit = Some(commit);
    let next = world.sandbox(&second).await.change("more").await;
    let foreign = world.commit_upstream("ai/x", "forced");
    let refused = world.unpublished(&second, &next).await;
    assert_eq!(refused.reason(), Some(Reason::PushRefused), "{refused}");
    assert!(refused.to_string().contains("ai/x"), "{refused}");
    assert_eq!(world.tip("ai/x"), Some(foreign));
}

#[tokio::test]
async fn the_last_published_commit_never_goes_back() {
    let world = World::new().await;
    let grant = grant("a");
    let sandbox = world.sandbox(&grant).await;
    let first = sandbox.change("one").await;
    let second = sandbox.change("two").await;
    for commit in [&first, &second] {
        world.published(&grant, commit).await;
    }
    let back = world.unpublished(&grant, &first).await;
    assert!(matches!(back, GitError::CheckDescent { .. }), "{back}");
    assert_eq!(world.tip("ai/x"), Some(second));
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
