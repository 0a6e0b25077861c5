//! A child process of git with all that it starts, and its output.

use nix::{sys::signal, unistd::Pid};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
};

use super::error::GitError;

/// A child with everything that it started; killed as a whole when dropped.
pub(super) struct ProcessGroup {
    /// The leader.
    pub(super) child: Child,
}

impl ProcessGroup {
    /// Starts `command`.
    pub(super) fn spawn(command: &mut Command) -> Result<Self, GitError> {
        let child = command
            .spawn()
            .map_err(|source| GitError::UseDisk { operation: "start git", source })?;
        Ok(Self { child })
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // No id means that it was waited for: its number may be somebody else's by now.
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = signal::killpg(Pid::from_raw(pid), signal::Signal::SIGKILL);
        }
    }
}

/// Reads to the end. Over `max` bytes: none, or the first `max` bytes when `cut` is set.
pub(super) async fn read_capped(
    source: Option<impl AsyncRead + Unpin>,
    max: usize,
    cut: bool,
) -> Option<Vec<u8>> {
    let mut source = source?;
    let mut kept = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    let _ = (&mut source).take(limit).read_to_end(&mut kept).await;
    if kept.len() <= max {
        return Some(kept);
    }
    if !cut {
        return None;
    }
    kept.truncate(max);
    let _ = tokio::io::copy(&mut source, &mut tokio::io::sink()).await;
    Some(kept)
}
