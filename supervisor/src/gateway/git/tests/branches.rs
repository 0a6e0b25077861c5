//! Names of branches: as long as the schema allows, and beside those of other people.

use agent_operator::domain::names::{
    BRANCH_BYTES_MAX, WORK_BRANCH_BYTES_MAX, disambiguated_branch,
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
