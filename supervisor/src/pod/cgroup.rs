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
/// node's own root and a supervisor's view of it is 7, and what containers nest below must fit too:
/// a search that was cut off proves no absence.
const DEPTH_MAX: usize = 12;
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

/// Lists the folders in a folder.
type List = fn(&Path) -> io::Result<Vec<PathBuf>>;

/// The node's cgroups as mounted into this container.
#[derive(Clone, Debug)]
pub struct Cgroups {
    root: PathBuf,
    list: List,
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
    /// Not found, but not everything could be looked at: no proof of absence.
    Unknown,
}

impl Cgroups {
    /// Over the mount at `root` (`/sys/fs/cgroup`).
    pub fn new(root: &Path) -> Self {
        let v1 = root.join(V1_CONTROLLER);
        let v2 = root.join("cgroup.controllers").exists();
        let root = if v2 || !v1.is_dir() { root.to_owned() } else { v1 };
        Self { root, list: folders }
    }

    async fn locate(&self, pod: &PodUid, container_id: Option<&str>) -> Place {
        let (cgroups, pod) = (self.clone(), pod.clone());
        let container = container_id.map(str::to_owned);
        let search = move || cgroups.find(pod.as_str(), container.as_deref());
        tokio::task::spawn_blocking(search).await.unwrap_or(Place::Unknown)
    }

    /// Searches breadth first for the pod's folders (cgroupfs or systemd spelling).
    fn find(&self, pod_uid: &str, container_id: Option<&str>) -> Place {
        if pod_uid.is_empty() {
            return Place::Nowhere;
        }
        let systemd = pod_uid.replace('-', "_");
        let mut search = Search::default();
        let mut queue = VecDeque::from([(self.root.clone(), 0, false)]);
        let mut visited = 0;
        while let Some((folder, depth, in_pod)) = queue.pop_front() {
            visited += 1;
            if visited > FOLDERS_MAX {
                search.left_out(in_pod || queue.iter().any(|(_, _, in_pod)| *in_pod));
                break;
            }
            let Ok(below) = (self.list)(&folder) else {
                search.left_out(in_pod);
                continue;
            };
            if depth >= DEPTH_MAX && !below.is_empty() {
                search.left_out(in_pod);
                continue;
            }
            for path in below {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let of_pod = in_pod || name.contains(pod_uid) || name.contains(&systemd);
                match container_id {
                    Some(id) if of_pod && name.contains(id) => return Place::Container(path),
                    // The first is the highest: the pod's own.
                    None if of_pod => return Place::Pod(path),
                    _ => {}
                }
                if of_pod && search.pod.is_none() {
                    search.pod = Some(path.clone());
                }
                queue.push_back((path, depth + 1, of_pod));
            }
        }
        search.place()
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
                    // What could not be looked at may hold it, alive.
                    Place::Pod(_) | Place::Nowhere | Place::Unknown => POLL_ORPHAN,
                },
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn pids_limit(&self, pod: &PodUid) -> Option<i64> {
        let Place::Pod(folder) = self.find(pod.as_str(), None) else { return None };
        // `max` is no number, and no limit.
        std::fs::read_to_string(folder.join("pids.max")).ok()?.trim().parse().ok()
    }
}

/// What a search for a container has come by.
#[derive(Debug, Default)]
struct Search {
    /// The pod's own folder.
    pod: Option<PathBuf>,
    /// Something was not looked at.
    incomplete: bool,
    /// Something of the pod was not looked at.
    incomplete_in_pod: bool,
}

impl Search {
    /// Notes a folder that could not be read, or lies beyond a limit.
    fn left_out(&mut self, in_pod: bool) {
        self.incomplete = true;
        self.incomplete_in_pod |= in_pod;
    }

    /// What the whole search has shown: where the pod's own folder was read to its end, a gap elsewhere
    /// hides nothing.
    fn place(self) -> Place {
        match self.pod {
            Some(_) if self.incomplete_in_pod => Place::Unknown,
            Some(pod) => Place::Pod(pod),
            None if self.incomplete => Place::Unknown,
            None => Place::Nowhere,
        }
    }
}

/// The folders in a folder; one that vanishes meanwhile has none.
fn folders(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let kind = entry.and_then(|entry| Ok((entry.file_type()?.is_dir(), entry.path())));
        match kind {
            Ok((true, path)) => found.push(path),
            Ok((false, _)) => {}
            Err(error) if gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
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
        Err(error) => gone(&error) && matches!(folder.try_exists(), Ok(false)),
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

    /// Lists as a node out of file descriptors does, wherever a file `unreadable` stands.
    fn list_without_descriptors(folder: &Path) -> io::Result<Vec<PathBuf>> {
        if folder.join("unreadable").exists() {
            return Err(io::Error::from_raw_os_error(nix::errno::Errno::EMFILE as i32));
        }
        folders(folder)
    }

    #[tokio::test]
    async fn a_pods_folder_that_cannot_be_read_is_no_end_of_its_container() {
        let pod = format!("pids/kubepods/pod{POD}");
        let agent = format!("{pod}/c0ffee");
        let dir = rig(&[(&agent, "pids.current", "7\n"), (&pod, "unreadable", "")]);
        let cgroups = Cgroups { list: list_without_descriptors, ..Cgroups::new(dir.path()) };
        assert!(!ends(&cgroups, Some("c0ffee"), false).await);
        assert!(!ends(&cgroups, Some("c0ffee"), true).await);
        std::fs::remove_dir_all(dir.path().join(&agent)).unwrap();
        std::fs::remove_file(dir.path().join(&pod).join("unreadable")).unwrap();
        assert!(ends(&cgroups, Some("c0ffee"), false).await, "once it can be read it decides");
    }

    #[tokio::test]
    async fn an_unreadable_folder_elsewhere_hides_a_missing_pod_but_no_ended_container() {
        let pod = format!("pids/kubepods/burstable/pod{POD}");
        let dir = rig(&[("pids/system", "unreadable", ""), (&pod, "pids.current", "1\n")]);
        let cgroups = Cgroups { list: list_without_descriptors, ..Cgroups::new(dir.path()) };
        assert!(ends(&cgroups, Some("c0ffee"), false).await);
        std::fs::remove_dir_all(dir.path().join(&pod)).unwrap();
        assert!(!ends(&cgroups, Some("c0ffee"), true).await, "the pod may lie in what is unread");
    }

    #[test]
    fn a_search_that_is_cut_off_by_its_depth_proves_no_absence() {
        let deep = format!("pids/{}", ["deep"; DEPTH_MAX + 1].join("/"));
        let dir = rig(&[(&deep, "pids.current", "1\n")]);
        assert_eq!(Cgroups::new(dir.path()).find(POD, Some("c0ffee")), Place::Unknown);
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
