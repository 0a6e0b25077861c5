//! Mirrors at rest: those that nobody uses are repacked, and removed once they are old or all of them
//! take too much of the disk.
//!
//! A mirror is in use while a [`Mirror`](super::mirror::Mirror) of it lives, and afterwards as long as a
//! quarantine names it as the place of objects that it borrows. What is held here is in neither.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::{sync::OwnedMutexGuard, time::Instant};

use super::{
    GitService,
    command::Run,
    error::GitError,
    leftovers,
    mirror::USED_FILE,
    quarantine,
    space::{self, blocking},
};
use crate::{clock, room::Room};

/// Bytes of all mirrors: some tens of large repositories, and a part of any node's disk.
const MIRRORS_BYTES_MAX: u64 = 32 * 1024 * 1024 * 1024;
/// A repository without a task for this long is fetched anew when there is one.
const MIRROR_AGE_MAX: SignedDuration = SignedDuration::from_hours(14 * 24);
/// Steps end in bursts, and looking through all mirrors costs the disk something.
const PAUSE: Duration = Duration::from_mins(10);
/// Who comes for the mirror waits so long. What is not done then was much, and is tried again.
const REPACK_TIMEOUT: Duration = Duration::from_mins(1);
/// Packs of a mirror that needs no repacking: each larger fetch makes one, and git looks into each.
const PACKS_MAX: u64 = 20;
/// Single objects of a mirror that needs no repacking: each takes an inode, and a smaller fetch brings
/// up to a hundred.
const LOOSE_MAX: u64 = 2000;
/// Ending of a mirror that is being removed.
const REMOVED: &str = ".removed";
/// How deep a mirror is measured: every second byte of a branch below `refs` may be a slash.
const DEPTH_MAX: u32 = 128;

/// How much of the disk mirrors may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// Bytes of all of them.
    pub(super) bytes_max: u64,
    /// Time since the last use.
    pub(super) age_max: SignedDuration,
}

/// What is kept without anybody's wish.
pub(super) const BUDGET: Budget = Budget { bytes_max: MIRRORS_BYTES_MAX, age_max: MIRROR_AGE_MAX };

/// A mirror on the disk.
#[derive(Clone, Debug)]
struct Shelved {
    name: String,
    bytes: u64,
    used: Timestamp,
    borrowed: bool,
}

/// Names of the mirrors that go: those that are too old, and the least recently used of the others until
/// the rest fits. What somebody borrows from counts and stays.
fn to_remove(mirrors: &[Shelved], budget: Budget, now: Timestamp) -> Vec<String> {
    let mut total = total(mirrors);
    let mut idle: Vec<&Shelved> = mirrors.iter().filter(|mirror| !mirror.borrowed).collect();
    idle.sort_by(|a, b| (a.used, &a.name).cmp(&(b.used, &b.name)));
    let mut gone = Vec::new();
    for mirror in idle {
        if total > budget.bytes_max || now.duration_since(mirror.used) > budget.age_max {
            total = total.saturating_sub(mirror.bytes);
            gone.push(mirror.name.clone());
        }
    }
    gone
}

fn total(mirrors: &[Shelved]) -> u64 {
    mirrors.iter().fold(0, |sum, mirror| sum.saturating_add(mirror.bytes))
}

/// The budget on a disk with `free` bytes, of which the mirrors hold `held`: no more than they leave to
/// everything else, for a cache must not be what fills the node.
fn on_disk(budget: Budget, held: u64, free: u64) -> Budget {
    Budget { bytes_max: budget.bytes_max.min(held.saturating_add(free) / 2), ..budget }
}

/// Whether `git count-objects -v` tells of a mirror that repacking would help.
fn is_scattered(counted: &str) -> bool {
    let count = |wanted: &str| {
        let line = counted.lines().filter_map(|line| line.split_once(": "));
        line.filter(|(name, _)| *name == wanted).find_map(|(_, value)| value.parse::<u64>().ok())
    };
    count("packs").is_some_and(|packs| packs > PACKS_MAX)
        || count("count").is_some_and(|loose| loose > LOOSE_MAX)
}

impl GitService {
    /// Removes and repacks what nobody uses. For a moment after an attempt's end; does nothing when
    /// the last time was shortly before.
    pub async fn tidy(&self) {
        let Ok(mut last) = self.inner.tidied.try_lock() else { return };
        if last.is_some_and(|last| last.elapsed() < PAUSE) {
            return;
        }
        *last = Some(Instant::now());
        if let Err(error) = self.tidy_to(BUDGET).await {
            tracing::warn!(%error, "mirrors stay as they are on disk");
        }
    }

    /// The same at once, within `budget`.
    pub(super) async fn tidy_to(&self, budget: Budget) -> Result<(), GitError> {
        let (root, quarantines) = (self.inner.mirrors.root(), self.inner.quarantines.clone());
        let (mirrors, free) = blocking("look through its mirrors", move || {
            clear_removed(&root)?;
            Ok((shelved(&root, &borrowed(&quarantines)?)?, Room::of(&root)?.bytes))
        })
        .await?;
        let budget = on_disk(budget, total(&mirrors), free);
        let gone = to_remove(&mirrors, budget, clock::now().wall);
        for name in &gone {
            self.remove_mirror(name).await?;
        }
        let stay = |mirror: &&Shelved| !mirror.borrowed && !gone.contains(&mirror.name);
        for mirror in mirrors.iter().filter(stay) {
            if let Err(error) = self.repack_mirror(&mirror.name).await {
                tracing::warn!(mirror = mirror.name, %error, "mirror is not repacked");
            }
        }
        self.inner.mirrors.forget_unused();
        Ok(())
    }

    /// The lock of a mirror that nobody uses; none when somebody does.
    async fn hold(&self, name: &str) -> Result<Option<OwnedMutexGuard<()>>, GitError> {
        let Some(guard) = self.inner.mirrors.hold(name) else { return Ok(None) };
        // Read after the lock was taken: whoever had a handle before has written down the loan.
        let quarantines = self.inner.quarantines.clone();
        let borrowed = blocking("read quarantines", move || borrowed(&quarantines)).await?;
        Ok((!borrowed.contains(name)).then_some(guard))
    }

    async fn remove_mirror(&self, name: &str) -> Result<(), GitError> {
        let Some(guard) = self.hold(name).await? else { return Ok(()) };
        let path = self.inner.mirrors.root().join(name);
        let removed = path.with_file_name(format!("{name}{REMOVED}"));
        // In one step: half a mirror would be taken for a whole one.
        let failed = |source| GitError::UseDisk { operation: "remove a mirror", source };
        tokio::fs::rename(&path, &removed).await.map_err(failed)?;
        drop(guard);
        tracing::info!(mirror = name, "mirror removed");
        quarantine::remove(&removed).await
    }

    /// Puts single objects and small packs together. Everything stays, also what no branch leads to:
    /// a task may have recorded it, and the upstream no longer give it out.
    async fn repack_mirror(&self, name: &str) -> Result<(), GitError> {
        let Some(_guard) = self.hold(name).await? else { return Ok(()) };
        let (git, path) = (&self.inner.git, self.inner.mirrors.root().join(name));
        let counted = git.run(Run::local(&path, &["count-objects", "-v"])).await?.success()?;
        if !is_scattered(&counted) {
            return Ok(());
        }
        leftovers::clear(&path).await?;
        // One thread and a small window: live steps come first, and the gateway's memory is bounded.
        let config = ["pack.threads=1", "pack.windowMemory=64m"];
        let config = config.map(str::to_owned).to_vec();
        let run = Run::local(&path, &["repack", "--geometric=2", "-d", "-n", "--quiet"]);
        let run = Run { config, timeout: REPACK_TIMEOUT, ..run };
        git.run(run).await?.success().map(drop)
    }
}

/// Removes what an earlier removal did not get to the end of.
fn clear_removed(root: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(root)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(REMOVED) {
            std::fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

/// The mirrors below `root`.
fn shelved(root: &Path, borrowed: &HashSet<String>) -> io::Result<Vec<Shelved>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        // One of an earlier version has no mark yet.
        let data = std::fs::metadata(path.join(USED_FILE)).or_else(|_| entry.metadata())?;
        let used = Timestamp::try_from(data.modified()?).map_err(io::Error::other)?;
        let borrowed = borrowed.contains(&name);
        found.push(Shelved { bytes: space::used(&path, DEPTH_MAX)?, name, used, borrowed });
    }
    Ok(found)
}

/// Names of the mirrors that quarantines borrow objects from. One that cannot be read is an error: it
/// may be the one that borrows.
fn borrowed(quarantines: &Path) -> io::Result<HashSet<String>> {
    let mut names = HashSet::new();
    for attempt in folders(quarantines)? {
        for repository in folders(&attempt)? {
            let text = match std::fs::read_to_string(quarantine::alternates(&repository)) {
                Err(error) if is_gone(&error) => continue,
                text => text?,
            };
            let mirrors = text.lines().filter_map(|line| Path::new(line).parent()?.file_name());
            names.extend(mirrors.map(|name| name.to_string_lossy().into_owned()));
        }
    }
    Ok(names)
}

/// What is in `directory`; an attempt that ends meanwhile takes its own along.
fn folders(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(directory) {
        Err(error) if is_gone(&error) => Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.path())).collect(),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: SignedDuration = SignedDuration::from_hours(24);

    /// A mirror of 10 bytes that was used so many days ago.
    fn mirror(name: &str, days: i32) -> Shelved {
        let used = now() - DAY * days;
        Shelved { name: name.to_owned(), bytes: 10, used, borrowed: false }
    }

    fn now() -> Timestamp {
        "2026-11-30T00:00:00Z".parse().unwrap()
    }

    fn gone(mirrors: &[Shelved], bytes_max: u64) -> Vec<String> {
        to_remove(mirrors, Budget { bytes_max, age_max: DAY * 14 }, now())
    }

    #[test]
    fn the_least_recently_used_go_until_the_rest_fits() {
        let mirrors = [mirror("b", 2), mirror("a", 1), mirror("c", 3)];
        assert_eq!(gone(&mirrors, 30), [""; 0]);
        assert_eq!(gone(&mirrors, 29), ["c"]);
        assert_eq!(gone(&mirrors, 10), ["c", "b"]);
        assert_eq!(gone(&mirrors, 0), ["c", "b", "a"]);
    }

    #[test]
    fn an_old_one_goes_also_where_there_is_room_and_a_clock_that_went_back_makes_none_old() {
        assert_eq!(gone(&[mirror("a", 14), mirror("b", 15), mirror("c", -400)], 1000), ["b"]);
    }

    #[test]
    fn what_is_borrowed_stays_and_counts() {
        let borrowed = Shelved { borrowed: true, ..mirror("old", 99) };
        assert_eq!(gone(&[borrowed, mirror("a", 0)], 15), ["a"]);
    }

    #[test]
    fn mirrors_leave_as_much_of_a_small_disk_as_they_take() {
        assert_eq!(on_disk(BUDGET, 300, 100).bytes_max, 200);
        assert_eq!(on_disk(BUDGET, 0, u64::MAX).bytes_max, MIRRORS_BYTES_MAX);
    }

    #[test]
    fn many_packs_or_many_single_objects_are_a_reason_to_repack() {
        let counted = |loose: u64, packs: u64| {
            is_scattered(&format!("count: {loose}\nsize: 4\nin-pack: 9999\npacks: {packs}\n"))
        };
        assert!(!counted(LOOSE_MAX, PACKS_MAX));
        assert!(counted(LOOSE_MAX + 1, 0) && counted(0, PACKS_MAX + 1));
        assert!(!is_scattered(""));
    }
}
