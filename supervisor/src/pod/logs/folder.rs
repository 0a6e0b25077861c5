//! The folder of a container's log files, and nothing outside it. Each step of the way is taken from
//! the folder before, without following a link, so that neither a link nor a rename in between leads
//! anywhere else; only regular files with one name are opened.

use std::{
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use agent_operator::{attempt::CONTAINER_NAME, domain::ids::PodUid};
use nix::{
    dir::Dir,
    fcntl::{AtFlags, OFlag, openat},
    sys::stat::{Mode, SFlag, fstatat},
};
use serde::{Deserialize, Serialize};

/// Files of one container that are looked at; a kubelet keeps five.
const ENTRIES_MAX: usize = 1000;

/// Where a container's log files are.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
    pod: String,
}

/// One log file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) order: Order,
    name: String,
    pub(super) inode: u64,
    pub(super) gzip: bool,
}

/// Oldest first: by restart, then the rotated ones by their time, then the live one. A rotated file
/// keeps its place, compressed or not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Order {
    restart: u32,
    live: bool,
    stamp: String,
}

impl Order {
    /// Whether the runtime writes to this one.
    pub(super) fn is_live(&self) -> bool {
        self.live
    }
}

impl Folder {
    /// The folder of the agent container below the kubelet's folder of pod logs. Only the pod with
    /// this uid has it.
    pub fn new(root: &Path, namespace: &str, pod: &str, uid: &PodUid) -> Self {
        Self { root: root.to_owned(), pod: format!("{namespace}_{pod}_{uid}") }
    }

    /// Its path, to be watched.
    pub(super) fn path(&self) -> PathBuf {
        self.root.join(&self.pod).join(CONTAINER_NAME)
    }

    fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        // The root is configured, so it may be a link.
        let mut options = File::options();
        options.read(true).custom_flags((OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).bits());
        let root = options.open(&self.root)?;
        let pod = openat(&root, self.pod.as_str(), flags, Mode::empty())?;
        Ok(openat(&pod, CONTAINER_NAME, flags, Mode::empty())?)
    }

    /// The log files, oldest first. A file and its compressed copy are one: the file.
    pub(super) fn list(&self) -> io::Result<Vec<Entry>> {
        let folder = match self.open() {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut listing = Dir::from_fd(folder.try_clone()?)?;
        let mut found = Vec::new();
        for name in listing.iter().take(ENTRIES_MAX) {
            let name = name?;
            let Ok(name) = name.file_name().to_str() else { continue };
            let Some((order, gzip)) = parse(name) else { continue };
            // Gone since, or not a file that the runtime makes.
            let Ok(data) = fstatat(&folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
            if SFlag::from_bits_truncate(data.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG {
                found.push(Entry { order, name: name.to_owned(), inode: data.st_ino, gzip });
            }
        }
        found.sort_by(|a, b| (&a.order, a.gzip).cmp(&(&b.order, b.gzip)));
        found.dedup_by(|later, first| later.order == first.order);
        Ok(found)
    }

    /// Whether a second listing is the same. One that is taken beside two renames may lack a file.
    pub(super) fn is_settled(&self, entries: &[Entry]) -> io::Result<bool> {
        Ok(self.list()? == entries)
    }

    /// Opens a listed file; none when it is not there any more under this name. What is no log file
    /// (`InvalidInput`) stays none; any other error may pass.
    pub(super) fn open_file(&self, entry: &Entry) -> io::Result<Option<File>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(self.open()?, entry.name.as_str(), flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(nix::errno::Errno::ENOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let data = file.metadata()?;
        // A second name would let another folder's file be read as this container's.
        if !data.is_file() || data.nlink() > 1 {
            let text = "not a log file: a link, a pipe or a device";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok((data.ino() == entry.inode).then_some(file))
    }
}

/// `0.log`, `0.log.20270115-100000`, `0.log.20270115-100000.gz`.
fn parse(name: &str) -> Option<(Order, bool)> {
    let (restart, rest) = name.split_once(".log")?;
    let restart = restart.parse().ok()?;
    if rest.is_empty() {
        return Some((Order { restart, live: true, stamp: String::new() }, false));
    }
    let stamp = rest.strip_prefix('.')?;
    // What the kubelet is still compressing.
    if stamp.strip_suffix(".tmp").is_some() {
        return None;
    }
    let (stamp, gzip) = match stamp.strip_suffix(".gz") {
        Some(stamp) => (stamp, true),
        None => (stamp, false),
    };
    Some((Order { restart, live: false, stamp: stamp.to_owned() }, gzip))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Rig {
        dir: tempfile::TempDir,
        folder: Folder,
    }

    fn rig() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(&dir.path().join("pods"), "ns", "pod", &PodUid::from("uid"));
        std::fs::create_dir_all(folder.path()).unwrap();
        Rig { dir, folder }
    }

    fn names(folder: &Folder) -> Vec<String> {
        folder.list().unwrap().into_iter().map(|entry| entry.name).collect()
    }

    fn entry(folder: &Folder, name: &str) -> Entry {
        let inode = std::fs::symlink_metadata(folder.path().join(name)).unwrap().ino();
        let (order, gzip) = parse(name).unwrap();
        Entry { order, name: name.to_owned(), inode, gzip }
    }

    #[test]
    fn files_are_listed_by_age_and_a_compressed_copy_is_not_a_second_file() {
        let rig = rig();
        let made = [
            "0.log",
            "0.log.20270115-100001",
            "0.log.20270115-100000.gz",
            "0.log.20270115-100001.gz",
            "0.log.20270115-100001.gz.tmp",
            "1.log",
            "other",
        ];
        for name in made {
            std::fs::write(rig.folder.path().join(name), "x").unwrap();
        }
        let expected = ["0.log.20270115-100000.gz", "0.log.20270115-100001", "0.log", "1.log"];
        assert_eq!(names(&rig.folder), expected);
    }

    #[test]
    fn a_folder_that_is_not_there_has_no_files() {
        let rig = rig();
        std::fs::remove_dir_all(rig.folder.path()).unwrap();
        assert_eq!(names(&rig.folder), Vec::<String>::new());
    }

    #[test]
    fn links_pipes_and_devices_are_neither_listed_nor_opened() {
        let rig = rig();
        let secret = rig.dir.path().join("secret");
        std::fs::write(&secret, "secret").unwrap();
        let at = |name: &str| rig.folder.path().join(name);
        std::os::unix::fs::symlink(&secret, at("0.log")).unwrap();
        std::fs::hard_link(&secret, at("1.log")).unwrap();
        nix::unistd::mkfifo(&at("2.log"), Mode::S_IRUSR).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("3.log")).unwrap();
        std::fs::create_dir(at("4.log")).unwrap();
        assert_eq!(names(&rig.folder), ["1.log"], "a hard link looks like a file until it is open");
        for name in ["0.log", "1.log", "2.log", "3.log", "4.log"] {
            assert!(rig.folder.open_file(&entry(&rig.folder, name)).is_err(), "{name}");
        }
    }

    #[test]
    fn a_link_on_the_way_is_not_followed() {
        let rig = rig();
        let elsewhere = rig.dir.path().join("elsewhere");
        std::fs::rename(rig.folder.path(), &elsewhere).unwrap();
        std::fs::write(elsewhere.join("0.log"), "x").unwrap();
        std::os::unix::fs::symlink(&elsewhere, rig.folder.path()).unwrap();
        assert!(rig.folder.list().is_err());
        std::fs::remove_file(rig.folder.path()).unwrap();
        let pod = rig.folder.path().parent().unwrap().to_owned();
        std::fs::remove_dir(&pod).unwrap();
        std::fs::create_dir(rig.dir.path().join("other-pod")).unwrap();
        std::fs::rename(&elsewhere, rig.dir.path().join("other-pod").join(CONTAINER_NAME)).unwrap();
        std::os::unix::fs::symlink(rig.dir.path().join("other-pod"), &pod).unwrap();
        assert!(rig.folder.list().is_err());
    }

    #[test]
    fn a_file_that_was_exchanged_after_the_listing_is_not_taken_for_the_listed_one() {
        let rig = rig();
        let live = rig.folder.path().join("0.log");
        std::fs::write(&live, "one").unwrap();
        let listed = rig.folder.list().unwrap().remove(0);
        std::fs::rename(&live, rig.folder.path().join("0.log.20270115-100000")).unwrap();
        std::fs::write(&live, "two").unwrap();
        assert!(rig.folder.open_file(&listed).unwrap().is_none());
        std::fs::remove_file(&live).unwrap();
        assert!(rig.folder.open_file(&listed).unwrap().is_none());
    }
}
