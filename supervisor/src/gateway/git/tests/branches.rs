//! Names of branches: as long as the schema allows, and beside those of other people.

use agent_operator::domain::{
    names::{BRANCH_BYTES_MAX, WORK_BRANCH_BYTES_MAX, disambiguated_branch},
    preflight::Problem,
};

use super::*;

#[tokio::test]
async fn the_longest_names_of_the_schema_go_the_whole_way_also_with_the_tasks_own_tail() {
    let world = World::new().await;
    let mut grant = grant("a");
    grant.repository.base_branch = "b".repeat(BRANCH_BYTES_MAX);
    grant.repository.work_branch = "w".repeat(WORK_BRANCH_BYTES_MAX);
    world.commit_upstream(&grant.repository.base_branch, "a base");
    world.commit_upstream(&grant.repository.work_branch, "somebody else's");
    let own = disambiguated_branch(&grant.repository.work_branch, &grant.task.uid);
    assert_eq!(own.len(), BRANCH_BYTES_MAX);

    let commit = world.sandbox(&grant).await.change("feature").await;
    assert_eq!(world.published(&grant, &commit).await.work_branch, own);
    assert_eq!(world.tip(&own), Some(commit.clone()));

    let mut next = self::grant("b");
    next.repository = Repository {
        work_branch: own.clone(),
        head_commit: Some(commit.clone()),
        ..grant.repository
    };
    let step = world.git.prepare(&next, Some(&credential(TOKEN))).await.unwrap();
    assert_eq!((step.work_branch, step.start_commit), (own, commit));
}

#[tokio::test]
async fn a_branch_that_leaves_no_room_for_the_work_branch_is_found_before_the_work() {
    let world = World::new().await;
    let token = credential(TOKEN);
    world.git.prepare(&grant("warm"), Some(&token)).await.unwrap();
    world.commit_upstream("ai", "a folder of ours");
    let checked = world.git.preflight(&grant("a"), &token, false).await;
    let found: Vec<_> = checked.findings.iter().map(|found| found.problem).collect();
    assert_eq!(found, [Problem::WorkBranchTaken], "{checked:?}");
    assert!(checked.findings[0].message.contains("branch ai leaves no room for ai/x"));
    let mut reading = grant("b");
    reading.may_push = false;
    for grant in [grant("a"), reading] {
        let error = world.git.prepare(&grant, Some(&token)).await.unwrap_err();
        assert!(matches!(error, GitError::BlockBranch { .. }), "{error}");
        assert_eq!(error.reason(), Some(Reason::InvalidTask));
        assert!(error.to_string().contains("delete or rename ai"), "{error}");
    }
}

#[tokio::test]
async fn a_branch_below_the_work_branch_gives_the_task_a_name_of_its_own() {
    let world = World::new().await;
    world.commit_upstream("ai/x/y", "below");
    let grant = grant("a");
    let checked = world.git.preflight(&grant, &credential(TOKEN), false).await;
    assert!(checked.findings.is_empty(), "{checked:?}");
    let commit = world.sandbox(&grant).await.change("feature").await;
    assert_eq!(world.published(&grant, &commit).await.work_branch, "ai/x-0a1b2");
    assert_eq!(world.tip("ai/x-0a1b2"), Some(commit));
}
