//! What the walls reach on this kernel, found out by trying.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    errno::Errno,
    sched::{sched_getaffinity, sched_setaffinity},
    sys::signal::kill,
    unistd::getppid,
};
use serde::{Deserialize, Serialize};

use super::Walls;

/// Hidden subcommand that puts itself behind the walls and says how far they hold.
pub(crate) const PROBE: &str = "probe";

/// How far the walls hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Reached {
    /// Landlock ABI in force; none where the kernel has none, or where a signal came through that
    /// the ABI should have stopped.
    pub(crate) landlock: Option<i32>,
    /// Whether the filter of system calls holds.
    pub(crate) seccomp: bool,
}

/// First Landlock ABI that keeps signals inside.
const SIGNAL_SCOPE_ABI: i32 = 6;

/// Raises the walls around this process and tries them on its parent.
pub(crate) fn probe(walls: &Walls) -> anyhow::Result<Reached> {
    let parent = getppid();
    let mask = sched_getaffinity(parent)?;
    let landlock = walls.raise()?;
    let signalled = kill(parent, None).is_ok();
    let landlock = landlock.filter(|abi| *abi < SIGNAL_SCOPE_ABI || !signalled);
    // The mask is the one it has: without a filter nothing changes.
    let seccomp = sched_setaffinity(parent, &mask) == Err(Errno::EPERM);
    Ok(Reached { landlock, seccomp })
}

/// Asks a child of its own; a child that says nothing reaches nothing.
pub(crate) fn ask(own_binary: &Path, writable: &[PathBuf]) -> Reached {
    let walls = Walls { writable: writable.to_vec(), only_port: None };
    let mut command = Command::new(own_binary);
    command.arg(PROBE).args(walls.arguments()).env_clear().stdin(Stdio::null());
    let output = command.stderr(Stdio::inherit()).output();
    output.ok().and_then(|output| serde_json::from_slice(&output.stdout).ok()).unwrap_or_default()
}
