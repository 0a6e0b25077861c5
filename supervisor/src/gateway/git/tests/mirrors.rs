//! Mirrors that nobody uses: removed and repacked without harm to whoever borrows or comes meanwhile.

use jiff::SignedDuration;

use super::*;
use crate::gateway::git::{
    login,
    tidy::{BUDGET, Budget},
};

/// A budget that no mirror fits.
const NOTHING: Budget = Budget { bytes_max: 0, age_max: SignedDuration::ZERO };

impl World {
    fn mirrors(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.directory.path().join("git/mirrors")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

#[tokio::test]
async fn a_mirror_stays_while_a_quarantine_borrows_from_it_and_goes_with_the_last_one() {
    let mut world = World::new().await;
    let (first, second) = (grant("a"), grant("b"));
    let commit = world.sandbox(&first).await.change("feature").await;
    world.git.prepare(&second, Some(&credential(TOKEN))).await.unwrap();
    world.git.discard(&second.run).await;
    // Also after a restart: loans are known from the disk.
    world.git = world.new_service();
    world.git.tidy_to(NOTHING).await.unwrap();
    assert_eq!(world.mirrors().len(), 1, "it is borrowed from");
    world.published(&first, &commit).await;

    world.git.discard(&first.run).await;
    world.git.tidy_to(BUDGET).await.unwrap();
    assert_eq!(world.mirrors().len(), 1, "there is room for it");
    world.git.tidy_to(NOTHING).await.unwrap();
    assert_eq!(world.mirrors().len(), 0);

    let mut next = grant("c");
    next.repository.head_commit = Some(commit.clone());
    assert_eq!(run(&world.sandbox(&next).await.tree, "git", &["rev-parse", "HEAD"]), commit);
}

#[tokio::test]
async fn a_mirror_that_somebody_is_about_to_borrow_from_stays() {
    let world = World::new().await;
    let remote = world.git.inner.upstreams.resolve(&grant("a").repository.url).unwrap();
    let mirror = world.git.inner.mirrors.get("agent-system", remote.clone_url());
    let token = login(&remote, Some(&credential(TOKEN))).unwrap();
    mirror.refresh(token, &std::collections::HashMap::new()).await.unwrap();
    world.git.tidy_to(NOTHING).await.unwrap();
    assert_eq!(world.mirrors(), [mirror.path().to_owned()]);
    drop(mirror);
    world.git.tidy_to(NOTHING).await.unwrap();
    assert_eq!(world.mirrors().len(), 0);
}

#[tokio::test]
async fn attempts_that_come_while_mirrors_are_removed_get_whole_ones() {
    let world = World::new().await;
    let token = credential(TOKEN);
    for number in 0..8 {
        let grant = grant(&format!("run-{number}"));
        let (prepared, tidied) =
            tokio::join!(world.git.prepare(&grant, Some(&token)), world.git.tidy_to(NOTHING));
        tidied.unwrap();
        prepared.unwrap();
        let commit = world.sandbox(&grant).await.commit("feature", UID);
        assert_eq!(commit.len(), 40);
        world.git.discard(&grant.run).await;
    }
}

#[tokio::test]
async fn what_a_killed_removal_has_left_is_removed_and_taken_for_no_mirror() {
    let world = World::new().await;
    world.git.prepare(&grant("a"), Some(&credential(TOKEN))).await.unwrap();
    let left = world.directory.path().join("git/mirrors/0123.removed");
    std::fs::create_dir_all(left.join("objects")).unwrap();
    world.git.tidy_to(BUDGET).await.unwrap();
    assert!(!left.exists());
    assert_eq!(world.mirrors().len(), 1);
}

#[tokio::test]
async fn repacking_a_mirror_of_many_packs_loses_nothing_that_no_branch_leads_to() {
    let world = World::new().await;
    let grant = grant("a");
    world.git.prepare(&grant, Some(&credential(TOKEN))).await.unwrap();
    let mirror = world.mirrors().remove(0);
    let script = "for number in $(seq 30); do
            echo \"blob $number\" | git hash-object -w --stdin | git pack-objects -q objects/pack/pack
        done >/dev/null
        git prune-packed -q
        echo loose | git hash-object -w --stdin >/dev/null";
    run(&mirror, "sh", &["-ec", script]);
    let objects = || {
        let args = ["cat-file", "--batch-all-objects", "--batch-check=%(objectname) %(objecttype)"];
        run(&mirror, "git", &args)
    };
    let packs = || {
        let entries = std::fs::read_dir(mirror.join("objects/pack")).unwrap();
        let names = entries.map(|entry| entry.unwrap().path());
        names.filter(|path| path.extension().is_some_and(|ext| ext == "pack")).count()
    };
    let before = objects();
    assert!(packs() >= 30);
    world.git.tidy_to(BUDGET).await.unwrap();
    assert!(packs() >= 30, "a quarantine borrows from it");

    world.git.discard(&grant.run).await;
    world.git.tidy_to(BUDGET).await.unwrap();
    assert!(packs() < 5, "{}", packs());
    assert_eq!(objects(), before);
    world.sandbox(&self::grant("b")).await;
}
