//! What a preflight finds at a real upstream.

use agent_operator::domain::preflight::Problem;

use super::{
    World, credential, grant,
    upstream::{READ_TOKEN, TOKEN, run},
};
use crate::gateway::git::{Checked, RepositoryGrant};

async fn check(world: &World, grant: &RepositoryGrant, token: &str) -> Checked {
    world.git.preflight(grant, &credential(token), false).await
}

fn problems(checked: &Checked) -> Vec<Problem> {
    checked.findings.iter().map(|finding| finding.problem).collect()
}

/// The one thing that was found, and that the message holds no token.
fn only(checked: &Checked, problem: Problem, words: &[&str]) {
    assert_eq!(problems(checked), [problem], "{checked:?}");
    for word in words {
        assert!(checked.findings[0].message.contains(word), "{word} in {checked:?}");
    }
    assert!(!format!("{checked:?}").contains("canary"), "{checked:?}");
}

#[tokio::test]
async fn a_good_repository_is_passed_without_writing_to_it_and_its_mirror_is_warm() {
    let world = World::new().await;
    let checked = check(&world, &grant("a"), TOKEN).await;
    assert_eq!(problems(&checked), [], "{checked:?}");
    let notes = checked.notes.join("; ");
    assert!(
        notes.contains("main is at") && notes.contains("the offer of a push is taken"),
        "{notes}"
    );
    let heads = std::process::Command::new("git")
        .args(["for-each-ref", "--format=%(refname)"])
        .current_dir(world.bare())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&heads.stdout).trim(), "refs/heads/main");
    assert_eq!(checked, check(&world, &grant("a"), TOKEN).await, "asked again, the same");
}

#[tokio::test]
async fn credentials_that_are_wrong_or_may_only_read_are_told_apart() {
    let world = World::new().await;
    let wrong = check(&world, &grant("a"), "wrong").await;
    only(&wrong, Problem::GitCredentialsRejected, &["may not read", "Authentication failed"]);
    let reader = check(&world, &grant("a"), READ_TOKEN).await;
    only(&reader, Problem::PushNotAllowed, &["may not write to", "403"]);
}

#[tokio::test]
async fn what_is_missing_or_not_available_is_named() {
    let world = World::new().await;
    let mut wanted = grant("a");
    "nowhere".clone_into(&mut wanted.repository.base_branch);
    only(&check(&world, &wanted, TOKEN).await, Problem::BaseBranchMissing, &["branch nowhere"]);
    let mut wanted = grant("a");
    "https://github.com/o/none.git".clone_into(&mut wanted.repository.url);
    only(&check(&world, &wanted, TOKEN).await, Problem::RepositoryMissing, &["o/none.git"]);
    world.upstream.seen.fail_with.store(503, std::sync::atomic::Ordering::SeqCst);
    only(&check(&world, &grant("a"), TOKEN).await, Problem::ProviderUnavailable, &["503"]);
}

#[tokio::test]
async fn a_branch_of_somebody_else_under_both_names_is_found_before_an_agent_works_in_vain() {
    let world = World::new().await;
    world.commit_upstream("ai/x", "not ours");
    assert_eq!(problems(&check(&world, &grant("a"), TOKEN).await), []);
    let own = agent_operator::domain::names::disambiguated_branch("ai/x", &grant("a").task.uid);
    world.commit_upstream(&own, "not ours either");
    only(&check(&world, &grant("a"), TOKEN).await, Problem::WorkBranchTaken, &["ai/x"]);
}

#[tokio::test]
async fn a_repository_says_how_it_is_tested_or_that_it_does_not() {
    let world = World::new().await;
    let needed = async || world.git.preflight(&grant("a"), &credential(TOKEN), true).await;
    only(&needed().await, Problem::TestCommandMissing, &["branch main"]);
    let work = world.upstream.root.join("work");
    std::fs::write(work.join("Makefile"), "test:\n\ttrue\n").unwrap();
    run(&work, "git", &["checkout", "-q", "main"]);
    run(&work, "git", &["add", "."]);
    run(&work, "git", &["commit", "-qm", "a test"]);
    run(&work, "git", &["push", "-q", "../o/r.git", "main"]);
    let checked = needed().await;
    assert_eq!(problems(&checked), [], "{checked:?}");
    assert!(checked.notes.join("; ").contains("`make test`"), "{checked:?}");
}
