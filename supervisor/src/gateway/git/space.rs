//! Room on the disk under mirrors and quarantines.

use std::{io, path::Path};

use super::error::GitError;
use crate::room::{INODES_MIN, Room};

/// Free bytes below which a disk counts as full: what an ordinary commit takes.
const FREE_BYTES_MIN: u64 = 4 * 1024 * 1024;

/// Fails where git would fail half-way, and would leave its half on the full disk: whoever asked has to
/// wait. `operation` says what for.
pub(super) fn check(room: Room, operation: &'static str) -> Result<(), GitError> {
    if room.bytes < FREE_BYTES_MIN || room.inodes < INODES_MIN {
        let source = io::ErrorKind::StorageFull.into();
        return Err(GitError::UseDisk { operation, source });
    }
    Ok(())
}

/// Bytes of the files below `directory`; what goes while it is read counts nothing.
pub(super) fn used(directory: &Path, depth_max: u32) -> io::Result<u64> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut bytes = 0_u64;
    for entry in entries {
        let entry = entry?;
        let Ok(data) = entry.metadata() else { continue };
        bytes = bytes.saturating_add(if data.is_dir() && depth_max > 0 {
            used(&entry.path(), depth_max - 1)?
        } else {
            data.len()
        });
    }
    Ok(bytes)
}

/// Runs what blocks on files; `operation` says what it is.
pub(super) async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, GitError> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.unwrap_or_else(|ended| Err(io::Error::other(ended)));
    done.map_err(|source| GitError::UseDisk { operation, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_bytes_or_inodes_is_full_and_the_asker_may_come_again() {
        let enough = Room { bytes: FREE_BYTES_MIN, inodes: INODES_MIN };
        check(enough, "fetch").unwrap();
        for room in [Room { bytes: FREE_BYTES_MIN - 1, ..enough }, Room { inodes: 0, ..enough }] {
            let full = check(room, "fetch").unwrap_err();
            assert!(full.retryable() && full.reason().is_none(), "{full}");
        }
    }
}
