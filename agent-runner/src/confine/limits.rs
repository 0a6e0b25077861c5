//! Limits of a process that keep a pod from what belongs to all of the node.

use std::{fs, path::Path};

use agent_operator::core_dumps;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::ConfineError;

/// Most open files of one process: far more than a build or a browser holds.
const DESCRIPTORS_MAX: u64 = 16 * 1024;
/// Fewer would be seen by honest programs: what a shell has anywhere.
const DESCRIPTORS_MIN: u64 = 1024;
/// Part of the node's table of open files that all processes of a pod may fill together.
const TABLE_PART: u64 = 2;
/// Processes of a pod, where its own cgroup tells no limit: the kubelet sets it further up, where
/// nothing of the pod can see it, and mostly so.
const PROCESSES: u64 = 1024;

/// Limits this process and its children to come.
pub(super) fn restrict() -> Result<(), ConfineError> {
    let descriptors = descriptors(Path::new("/"));
    let failed = |error: nix::Error| ConfineError::Limits(error.to_string());
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    setrlimit(Resource::RLIMIT_NOFILE, soft.min(descriptors), hard.min(descriptors))
        .map_err(failed)?;
    core_dumps::forbid().map_err(|error| ConfineError::Limits(error.to_string()))
}

/// Open files that a process may have: so many that the pod's processes together leave the node a
/// part of its table. Where the kernel tells nothing of that, the most.
fn descriptors(root: &Path) -> u64 {
    let number = |path: &str| fs::read_to_string(root.join(path)).ok()?.trim().parse::<u64>().ok();
    let processes =
        number("sys/fs/cgroup/pids.max").or_else(|| number("sys/fs/cgroup/pids/pids.max"));
    let processes = processes.unwrap_or(PROCESSES).max(1);
    let share = number("proc/sys/fs/file-max").map(|table| table / TABLE_PART / processes);
    share.unwrap_or(DESCRIPTORS_MAX).clamp(DESCRIPTORS_MIN, DESCRIPTORS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_processes_of_a_pod_leave_the_node_half_of_its_open_files() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(descriptors(root.path()), DESCRIPTORS_MAX);
        write("proc/sys/fs/file-max", "4096000\n");
        assert_eq!(descriptors(root.path()), 2000, "nothing tells of the processes");
        write("sys/fs/cgroup/pids/pids.max", "500\n");
        assert_eq!(descriptors(root.path()), 4096);
        write("proc/sys/fs/file-max", "1000\n");
        assert_eq!(descriptors(root.path()), DESCRIPTORS_MIN);
        write("proc/sys/fs/file-max", "9223372036854775807\n");
        assert_eq!(descriptors(root.path()), DESCRIPTORS_MAX);
        write("sys/fs/cgroup/pids/pids.max", "max\n");
        assert_eq!(descriptors(root.path()), DESCRIPTORS_MAX);
    }
}
