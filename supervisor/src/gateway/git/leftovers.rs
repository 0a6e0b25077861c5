//! What a killed git leaves behind: lock files that would block the repository for ever, and halves
//! of packs. Removed before the next writer starts, by whoever knows that there is no other.

use std::{fs, io, path::Path};

use agent_operator::domain::names::BRANCH_BYTES_MAX;

use super::error::GitError;

/// Deepest nesting of ref directories that is looked into: every second byte of a branch is a slash.
const DEPTH_MAX: usize = BRANCH_BYTES_MAX / 2;

/// Removes the leftovers in the bare repository `git_dir`. The caller knows that no git process
/// writes there.
pub(super) async fn clear(git_dir: &Path) -> Result<(), GitError> {
    let git_dir = git_dir.to_owned();
    let cleared = tokio::task::spawn_blocking(move || {
        remove(&git_dir, 0, &is_lock)?;
        remove(&git_dir.join("refs"), DEPTH_MAX, &is_lock)?;
        remove(&git_dir.join("objects/pack"), 0, &|name| {
            // git's own, and those of its `repack`.
            name.starts_with("tmp_") || name.starts_with(".tmp-")
        })
    });
    let failed = |source| GitError::UseDisk { operation: "clear what a killed git left", source };
    cleared.await.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(failed)
}

fn is_lock(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "lock")
}

fn remove(directory: &Path, depth: usize, leftover: &dyn Fn(&str) -> bool) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() && depth > 0 {
            remove(&entry.path(), depth - 1, leftover)?;
        } else if kind.is_file() && leftover(&entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
