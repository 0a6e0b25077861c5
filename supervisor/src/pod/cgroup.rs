//! Whether anything of a container still runs, from its cgroup: known 1-2 ms after the exit, a second
//! before the kubelet says so. Works on cgroup v1 (the pids controller) and v2, read-only.
//!
//! Never by `cgroup.procs`: that file leaves out every process that the reader's own PID namespace
//! cannot see, so from inside a container it is empty for all other pods. Counts have no such blind
//! spot: `cgroup.events` (v2) and `pids.current` (v1) include the cgroups below.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use agent_operator::domain::ids::PodUid;
use async_trait::async_trait;

/// Pause between two looks; only between a runner's last word and the end of its container.
const POLL: Duration = Duration::from_millis(20);
/// Pause between two looks at a pod whose object is gone.
const POLL_ORPHAN: Duration = Duration::from_millis(250);
/// Deepest folder searched: `kubepods.slice/kubepods-burstable.slice/<pod>/<container>` below a
/// node's own root and a supervisor's view of it.
const DEPTH_MAX: usize = 7;
/// Most folders visited in one search: thousands of containers, with room.
const FOLDERS_MAX: usize = 50_000;
/// The v1 controller that counts processes.
const V1_CONTROLLER: &str = "pids";

/// Tells when nothing of a container runs any more.
#[async_trait]
pub trait Containers: Send + Sync {
    /// Waits until nothing of the container runs. With `missing_is_empty` a pod of which nothing is
    /// known counts as ended; otherwise the wait has no end then, and the kubelet's record decides.
    async fn wait_until_empty(
        &self,
        pod: &PodUid,
        container_id: Option<&str>,
        missing_is_empty: bool,
    );

    /// Most processes that the pod may have; none is no limit that could be read. The kubelet sets it
    /// (`podPidsLimit`) on the pod's cgroup, above those of the containers, so nothing inside the pod
    /// sees it. One look at the folders of the node's pods.
    fn pids_limit(&self, pod: &PodUid) -> Option<i64>;
}

/// The node's cgroups as mounted into this container.
#[derive(Clone, Debug)]
pub struct Cgroups {
    root: PathBuf,
}

/// Where a pod was found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// No folder of the pod.
    Nowhere,
    /// A folder of the pod, but none of the container.
    Pod(PathBuf),
    /// The container's folder.
    Container(PathBuf),
}

impl Cgroups {
    /// Over the mount at `root` (`/sys/fs/cgroup`).
    pub fn new(root: &Path) -> Self {
        let v1 = root.join(V1_CONTROLLER);
        let v2 = root.join("cgroup.controllers").exists();
        Self { root: if v2 || !v1.is_dir() { root.to_owned() } else { v1 } }
    }

    async fn locate(&self, pod: &PodUid, container_id: Option<&str>) -> Place {
        let (root, pod) = (self.root.clone(), pod.clone());
        let container = container_id.map(str::to_owned);
        let search = move || find(&root, pod.as_str(), container.as_deref());
        tokio::task::spawn_blocking(search).await.unwrap_or(Place::Nowhere)
    }
}

#[async_trait]
impl Containers for Cgroups {
    /// A pod without any folder is one of which nothing is known: this may be the wrong root.
    async fn wait_until_empty(
        &self,
        pod: &PodUid,
        container_id: Option<&str>,
        missing_is_empty: bool,
    ) {
        let mut known: Option<PathBuf> = None;
        loop {
            let pause = match &known {
                Some(path) if is_empty(path) => return,
                Some(_) => POLL,
                None => match self.locate(pod, container_id).await {
                    Place::Container(path) => {
                        known = Some(path);
                        continue;
                    }
                    // The container had an id and has no folder any more: it has ended.
                    Place::Pod(_) if container_id.is_some() => return,
                    Place::Nowhere if missing_is_empty => return,
                    Place::Pod(_) | Place::Nowhere => POLL_ORPHAN,
                },
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn pids_limit(&self, pod: &PodUid) -> Option<i64> {
        let Place::Pod(folder) = find(&self.root, pod.as_str(), None) else { return None };
        // `max` is no number, and no limit.
        std::fs::read_to_string(folder.join("pids.max")).ok()?.trim().parse().ok()
    }
}

/// Searches breadth first for the pod's folders (cgroupfs or systemd spelling).
fn find(root: &Path, pod_uid: &str, container_id: Option<&str>) -> Place {
    if pod_uid.is_empty() {
        return Place::Nowhere;
    }
    let systemd = pod_uid.replace('-', "_");
    let mut found = Place::Nowhere;
    let mut queue = VecDeque::from([(root.to_owned(), 0, false)]);
    let mut visited = 0;
    while let Some((folder, depth, in_pod)) = queue.pop_front() {
        visited += 1;
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        if depth >= DEPTH_MAX || visited > FOLDERS_MAX {
            continue;
        }
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let of_pod = in_pod || name.contains(pod_uid) || name.contains(&systemd);
            if of_pod {
                if container_id.is_some_and(|id| name.contains(id)) {
                    return Place::Container(entry.path());
                }
                // The first is the highest: the pod's own.
                if found == Place::Nowhere {
                    found = Place::Pod(entry.path());
                }
            }
            queue.push_back((entry.path(), depth + 1, of_pod));
        }
    }
    found
}

/// Whether no process is in the cgroup or below; a folder that is gone has none. Without either
/// count nothing is known, and the kubelet's record has to decide.
fn is_empty(folder: &Path) -> bool {
    match std::fs::read_to_string(folder.join("cgroup.events")) {
        Ok(events) => return events.lines().any(|line| line == "populated 0"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return gone(&error),
    }
    match std::fs::read_to_string(folder.join("pids.current")) {
        Ok(count) => count.trim() == "0",
        Err(error) => gone(&error) && !folder.exists(),
    }
}

/// cgroupfs answers ENODEV for a folder that vanishes while it is read.
fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "0a1b-2c3d";

    /// Folders with one file each. `cgroup.procs` is empty everywhere, as a reader in another PID
    /// namespace sees it.
    fn rig(layout: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (folder, file, text) in layout {
            let folder = dir.path().join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("cgroup.procs"), "").unwrap();
            std::fs::write(folder.join(file), text).unwrap();
        }
        dir
    }

    async fn ends(cgroups: &Cgroups, container: Option<&str>, missing: bool) -> bool {
        let pod = PodUid::from(POD);
        let wait = cgroups.wait_until_empty(&pod, container, missing);
        tokio::time::timeout(Duration::from_millis(600), wait).await.is_ok()
    }

    #[tokio::test]
    async fn a_container_ends_when_its_count_is_zero_though_the_sandbox_lives_on() {
        let agent = format!("pids/node-b/kubepods/burstable/pod{POD}/c0ffee");
        let pause = format!("pids/node-b/kubepods/burstable/pod{POD}/pause");
        let dir = rig(&[(&agent, "pids.current", "7\n"), (&pause, "pids.current", "1\n")]);
        let cgroups = Cgroups::new(dir.path());
        assert!(!ends(&cgroups, Some("c0ffee"), false).await, "other namespaces' processes count");
        std::fs::write(dir.path().join(&agent).join("pids.current"), "0\n").unwrap();
        assert!(ends(&cgroups, Some("c0ffee"), false).await);
        std::fs::remove_dir_all(dir.path().join(&agent)).unwrap();
        assert!(
            ends(&cgroups, Some("c0ffee"), false).await,
            "a removed folder is an ended container"
        );
    }

    #[tokio::test]
    async fn systemd_names_of_v2_are_found_and_the_populated_flag_decides() {
        let scope = "kubepods.slice/kubepods-pod0a1b_2c3d.slice/cri-containerd-c0ffee.scope";
        let dir = rig(&[
            ("", "cgroup.controllers", "pids"),
            (scope, "cgroup.events", "populated 1\nfrozen 0\n"),
        ]);
        let cgroups = Cgroups::new(dir.path());
        assert!(!ends(&cgroups, Some("c0ffee"), false).await);
        let events = dir.path().join(scope).join("cgroup.events");
        std::fs::write(events, "populated 0\nfrozen 0\n").unwrap();
        assert!(ends(&cgroups, Some("c0ffee"), false).await);
    }

    #[tokio::test]
    async fn a_cgroup_without_any_count_proves_nothing() {
        let agent = format!("memory/kubepods/pod{POD}/c0ffee");
        let dir = rig(&[(&agent, "memory.usage_in_bytes", "0\n")]);
        let cgroups = Cgroups::new(dir.path());
        assert!(!ends(&cgroups, Some("c0ffee"), false).await);
    }

    #[tokio::test]
    async fn a_missing_pod_is_an_end_only_where_its_object_is_gone_too() {
        let dir = rig(&[("pids/kubepods/other", "pids.current", "1\n")]);
        let cgroups = Cgroups::new(dir.path());
        assert!(!ends(&cgroups, Some("c0ffee"), false).await);
        assert!(ends(&cgroups, None, true).await);
    }

    #[test]
    fn the_limit_of_processes_is_the_pods_and_not_the_containers() {
        let pod = format!("pids/node-b/kubepods/burstable/pod{POD}");
        let agent = format!("{pod}/c0ffee");
        let other = "pids/node-b/kubepods/burstable/podother";
        let dir = rig(&[
            (other, "pids.max", "7\n"),
            (&pod, "pids.max", "1024\n"),
            (&agent, "pids.max", "max\n"),
        ]);
        let cgroups = Cgroups::new(dir.path());
        assert_eq!(cgroups.pids_limit(&PodUid::from(POD)), Some(1024));
        std::fs::write(dir.path().join(&pod).join("pids.max"), "max\n").unwrap();
        assert_eq!(cgroups.pids_limit(&PodUid::from(POD)), None);
        assert_eq!(cgroups.pids_limit(&PodUid::from("gone")), None);
        assert_eq!(cgroups.pids_limit(&PodUid::from("")), None);
    }
}
