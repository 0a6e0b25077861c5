//! The repository of one attempt: it borrows the mirror's objects, shows a snapshot of the
//! upstream's branches, and takes pushes to the one work branch. No checkout ever happens here.

use std::{
    io,
    path::{Path, PathBuf},
};

use agent_operator::{attempt::Published, domain::names};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;

use super::{
    RepositoryGrant,
    command::{Git, Run},
    error::GitError,
    listing::excludes,
    mirror::Mirror,
    names::Branch,
    space,
    start::Start,
};
use crate::room::Room;

/// What was decided for the attempt, beside the repository: a restarted gateway goes on with it.
const STATE_FILE: &str = "agent-operator.json";
/// The state is a handful of names and ids.
const STATE_BYTES_MAX: usize = 64 * 1024;

/// How deep git's own directories of objects go: `tmp_objdir-incoming-x/pack/file`.
const DEPTH_MAX: u32 = 4;

/// The decided facts of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State {
    /// Base commit, recorded or resolved at preparation.
    pub(super) base_commit: String,
    /// Start and branch.
    pub(super) start: Start,
    /// What has been published.
    pub(super) published: Option<Published>,
}

/// The quarantine of one attempt.
#[derive(Clone, Debug)]
pub(super) struct Quarantine {
    path: PathBuf,
}

impl Quarantine {
    /// The quarantine of `grant`'s attempt and repository below `root`; perhaps not made yet.
    pub(super) fn of(root: &Path, grant: &RepositoryGrant) -> Self {
        let name = names::sha256_hex(grant.repository.name.as_bytes());
        Self { path: directory(root, &grant.run).join(&name[..16]) }
    }

    /// The bare repository.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The decided facts; none before [`Quarantine::create`] has ended.
    pub(super) async fn load(&self) -> Result<Option<State>, GitError> {
        match tokio::fs::read(self.path.join(STATE_FILE)).await {
            Ok(bytes) if bytes.len() <= STATE_BYTES_MAX => Ok(serde_json::from_slice(&bytes).ok()),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(GitError::UseDisk { operation: "read a quarantine", source }),
        }
    }

    /// Writes the decided facts; they are there whole or not at all.
    pub(super) async fn save(&self, state: &State) -> Result<(), GitError> {
        let failed = |source| GitError::UseDisk { operation: "write a quarantine", source };
        let bytes = serde_json::to_vec(state).map_err(|error| failed(error.into()))?;
        let new = self.path.join(format!("{STATE_FILE}.new"));
        let mut file = tokio::fs::File::create(&new).await.map_err(failed)?;
        file.write_all(&bytes).await.map_err(failed)?;
        // The write itself runs behind `write_all`, and `sync_all` keeps its error for the next call: on a full
        // disk an empty file would take the name.
        file.flush().await.map_err(failed)?;
        file.sync_all().await.map_err(failed)?;
        tokio::fs::rename(&new, self.path.join(STATE_FILE)).await.map_err(failed)
    }

    /// Whether another push fits, here and on the disk; objects that it borrows do not count. On a full
    /// disk it has to wait: git would refuse it half-way, and the agent is not to blame.
    pub(super) async fn check_room(&self, bytes_max: u64) -> Result<(), GitError> {
        let objects = self.path.join("objects");
        let measure = move || Ok((space::used(&objects, DEPTH_MAX)?, Room::of(&objects)?));
        let (used, room) = space::blocking("measure a quarantine", measure).await?;
        space::check(room, "keep a push: the disk is full")?;
        if used > bytes_max {
            return Err(GitError::FillQuarantine { limit: bytes_max });
        }
        Ok(())
    }

    /// Makes the repository anew, over whatever a killed gateway left of it.
    pub(super) async fn create(
        &self,
        git: &Git,
        mirror: &Mirror,
        base: &Branch,
        state: &State,
    ) -> Result<(), GitError> {
        remove(&self.path).await?;
        let failed = |source| GitError::UseDisk { operation: "make a quarantine", source };
        let parent = self.path.parent().unwrap_or(&self.path);
        tokio::fs::create_dir_all(parent).await.map_err(failed)?;
        let path = self.path.to_string_lossy();
        let args = ["init", "--quiet", "--bare", "--template=", "--", path.as_ref()];
        let run = Run { git_dir: None, ..Run::local(&self.path, &args) };
        git.run(run).await?.success()?;
        let objects = format!("{}\n", mirror.path().join("objects").display());
        let alternates = alternates(&self.path);
        let info = alternates.parent().unwrap_or(&self.path);
        tokio::fs::create_dir_all(info).await.map_err(failed)?;
        tokio::fs::write(&alternates, objects).await.map_err(failed)?;
        let refs = snapshot(mirror.branch_lines().await?, base, state);
        tokio::fs::write(self.path.join("packed-refs"), refs).await.map_err(failed)?;
        // Clients that ask for no branch get the base.
        let head = format!("ref: {}\n", base.full_ref());
        tokio::fs::write(self.path.join("HEAD"), head).await.map_err(failed)?;
        self.save(state).await
    }
}

/// The refs of a new quarantine: the upstream's branches, with the base where the task has it and
/// the work branch at the start commit.
fn snapshot(branches: Option<String>, base: &Branch, state: &State) -> String {
    let (base, work) = (base.full_ref(), format!("refs/heads/{}", state.start.work_branch));
    let mut lines: Vec<(String, String)> = branches
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, name)| *name != base && *name != work && !excludes(name, &work))
        .map(|(id, name)| (name.to_owned(), id.to_owned()))
        .collect();
    lines.push((base, state.base_commit.clone()));
    lines.push((work, state.start.commit.clone()));
    lines.sort();
    let mut packed = String::new();
    for (name, id) in lines {
        packed.extend([id.as_str(), " ", name.as_str(), "\n"]);
    }
    packed
}

/// Where a repository names those whose objects it borrows.
pub(super) fn alternates(repository: &Path) -> PathBuf {
    repository.join("objects/info/alternates")
}

/// The directory of all quarantines of an attempt.
pub(super) fn directory(root: &Path, run: &agent_operator::domain::RunKey) -> PathBuf {
    root.join(names::sha256_hex(run.to_string().as_bytes()))
}

/// Removes a directory with all that is in it; one that is absent is fine.
pub(super) async fn remove(path: &Path) -> Result<(), GitError> {
    match tokio::fs::remove_dir_all(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(GitError::UseDisk { operation: "remove a quarantine", source: error })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_state_that_finds_no_room_is_an_error_and_takes_no_name() {
        let directory = tempfile::tempdir().unwrap();
        let quarantine = Quarantine { path: directory.path().to_owned() };
        let start =
            Start { work_branch: "ai/x".to_owned(), commit: "b".repeat(40), expected: None };
        let state = State { base_commit: "a".repeat(40), start, published: None };
        let new = directory.path().join(format!("{STATE_FILE}.new"));
        std::os::unix::fs::symlink("/dev/full", new).unwrap();

        let Err(GitError::UseDisk { source, .. }) = quarantine.save(&state).await else {
            panic!("the disk is full");
        };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        assert_eq!(quarantine.load().await.unwrap(), None);
    }

    #[test]
    fn a_snapshot_pins_base_and_start_and_drops_what_git_could_not_hold_beside_them() {
        let (a, b, c) = ("a".repeat(40), "b".repeat(40), "c".repeat(40));
        let listed = format!(
            "{c} refs/heads/ai\n{c} refs/heads/ai/x\n{c} refs/heads/main\n{c} refs/heads/other\n"
        );
        let start = Start { work_branch: "ai/x".to_owned(), commit: b.clone(), expected: None };
        let state = State { base_commit: a.clone(), start, published: None };
        let refs = snapshot(Some(listed), &Branch::parse("main").unwrap(), &state);
        assert_eq!(
            refs,
            format!("{b} refs/heads/ai/x\n{a} refs/heads/main\n{c} refs/heads/other\n")
        );
    }
}
