//! Reads a container's log files as the runtime writes them, into the attempt's spool. Files are told
//! apart by inode: at a rotation the old one is read to its end before the new one begins. Memory is
//! bounded by one buffer, whatever the container writes.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use agent_operator::{attempt::CONTAINER_NAME, domain::ids::PodUid};
use nix::fcntl::OFlag;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::cri::Decoder;
use crate::streams::{
    AttemptStreams,
    spool::{Spool, SpoolError},
};

/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;
/// Pause between two looks where no notification came (they can be lost).
const POLL: Duration = Duration::from_millis(250);
/// How long files must be quiet after the container's end before the log counts as whole: the
/// runtime copies the last output within milliseconds of the exit.
const DRAIN_QUIET: Duration = Duration::from_millis(750);

/// The folder of the agent container's log files.
pub fn log_dir(root: &Path, namespace: &str, pod: &str, uid: &PodUid) -> PathBuf {
    root.join(format!("{namespace}_{pod}_{uid}")).join(CONTAINER_NAME)
}

/// Wakes tails when their folder changes; one inotify instance for the whole node.
pub struct Waker {
    watcher: Mutex<Option<RecommendedWatcher>>,
    folders: Arc<Mutex<HashMap<PathBuf, Arc<Notify>>>>,
}

impl Waker {
    /// A waker; without inotify the tails still poll.
    pub fn new() -> Self {
        let folders: Arc<Mutex<HashMap<PathBuf, Arc<Notify>>>> = Arc::default();
        let of_watcher = Arc::clone(&folders);
        let wake = move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else { return };
            let folders = of_watcher.lock().unwrap_or_else(PoisonError::into_inner);
            for folder in event.paths.iter().filter_map(|path| path.parent()) {
                if let Some(notify) = folders.get(folder) {
                    notify.notify_one();
                }
            }
        };
        let watcher = notify::recommended_watcher(wake)
            .inspect_err(|error| tracing::warn!(%error, "no inotify; logs are polled"))
            .ok();
        Self { watcher: Mutex::new(watcher), folders }
    }

    fn watch(&self, folder: &Path) -> Arc<Notify> {
        let notify = Arc::new(Notify::new());
        let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
        folders.insert(folder.to_owned(), Arc::clone(&notify));
        drop(folders);
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watcher) = watcher.as_mut() {
            let _ = watcher.watch(folder, RecursiveMode::NonRecursive);
        }
        notify
    }

    fn forget(&self, folder: &Path) {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner).remove(folder);
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watcher) = watcher.as_mut() {
            let _ = watcher.unwatch(folder);
        }
    }
}

impl Default for Waker {
    fn default() -> Self {
        Self::new()
    }
}

/// Where reading stands: always the end of a whole record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    /// The file.
    inode: u64,
    /// Offset in it.
    offset: u64,
    /// Offset in the decoded stream.
    decoded: u64,
}

/// A log file that is being read.
struct Source {
    file: File,
    inode: u64,
    offset: u64,
    decoder: Decoder,
}

/// Reads the log in `folder` into the attempt's log spool until `drain` is cancelled and the files
/// are quiet. Ends with a complete spool.
pub async fn tail(
    folder: PathBuf,
    streams: Arc<AttemptStreams>,
    waker: Arc<Waker>,
    drain: CancellationToken,
) -> Result<(), SpoolError> {
    let spool = &streams.log;
    if spool.extent().complete {
        return Ok(());
    }
    let mut source = resume(&folder, spool)?;
    let mut notify: Option<Arc<Notify>> = None;
    let mut quiet = Duration::ZERO;
    loop {
        if notify.is_none() && folder.is_dir() {
            notify = Some(waker.watch(&folder));
        }
        if advance(&folder, &mut source, spool)? {
            quiet = Duration::ZERO;
            tokio::task::yield_now().await;
            continue;
        }
        if drain.is_cancelled() {
            if quiet >= DRAIN_QUIET {
                break;
            }
            quiet += POLL;
            tokio::time::sleep(POLL).await;
            continue;
        }
        let woken = async {
            match &notify {
                Some(notify) => notify.notified().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = woken => {}
            () = tokio::time::sleep(POLL) => {}
            () = drain.cancelled() => {}
        }
    }
    waker.forget(&folder);
    spool.complete()
}

/// Takes reading up where the spool's position says; what was spooled behind it is read again.
fn resume(folder: &Path, spool: &Spool) -> Result<Option<Source>, SpoolError> {
    let saved = spool.position().and_then(|text| serde_json::from_str::<Position>(&text).ok());
    let Some(position) = saved else {
        spool.rewind(0)?;
        return Ok(None);
    };
    spool.rewind(position.decoded)?;
    let known = files(folder).into_iter().find(|(_, inode)| *inode == position.inode);
    let source = known.and_then(|(path, _)| open(&path).ok());
    match source {
        Some(source) if source.file.metadata().is_ok_and(|data| data.len() >= position.offset) => {
            Ok(Some(Source { offset: position.offset, ..source }))
        }
        _ => {
            // Rotated away while nobody read: how much is missing cannot be known, that it is can.
            spool.skip(1);
            Ok(None)
        }
    }
}

/// One bounded step; whether there may be more at once.
fn advance(folder: &Path, source: &mut Option<Source>, spool: &Spool) -> Result<bool, SpoolError> {
    let Some(current) = source else {
        let first = files(folder).into_iter().next();
        *source = first.and_then(|(path, _)| open(&path).ok());
        return Ok(source.is_some());
    };
    if read(current, spool)? {
        return Ok(true);
    }
    let all = files(folder);
    let next = match all.iter().position(|(_, inode)| *inode == current.inode) {
        Some(at) => all.get(at + 1),
        // The file was deleted; those that are left are newer.
        None => all.first(),
    };
    let Some((path, _)) = next else { return Ok(false) };
    // The runtime may have written between the last read and the rotation: the old file first.
    if read(current, spool)? {
        return Ok(true);
    }
    match open(path) {
        Ok(opened) => {
            *source = Some(opened);
            Ok(true)
        }
        Err(_) => Ok(false),
    }
}

/// Reads once; whether something was there.
fn read(source: &mut Source, spool: &Spool) -> Result<bool, SpoolError> {
    let mut buffer = vec![0; READ_BYTES];
    let count = source.file.read_at(&mut buffer, source.offset)?;
    if count == 0 {
        let length = source.file.metadata()?.len();
        if length < source.offset {
            // Truncated in place: what was between is lost, reading starts over.
            spool.skip(1);
            source.offset = 0;
            source.decoder = Decoder::default();
            return Ok(length > 0);
        }
        return Ok(false);
    }
    let start = spool.extent().end;
    let mut decoded = Vec::with_capacity(count);
    let (whole_input, whole_output) = source.decoder.decode(&buffer[..count], &mut decoded);
    if let Err(error) = spool.append(&decoded) {
        tracing::warn!(%error, bytes = decoded.len(), "log bytes could not be stored and are lost");
    }
    if whole_input > 0 {
        let position = Position {
            inode: source.inode,
            offset: source.offset + whole_input as u64,
            decoded: start + whole_output as u64,
        };
        let text = serde_json::to_string(&position).map_err(SpoolError::Serialise)?;
        spool.save_position(&text)?;
    }
    source.offset += count as u64;
    Ok(true)
}

/// The folder's log files with their inodes, oldest first: `0.log.<time>` before `0.log`, a restart's
/// `1.log` after both. Compressed ones were read before they were compressed.
fn files(folder: &Path) -> Vec<(PathBuf, u64)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some((number, rest)) = name.to_str().and_then(|name| name.split_once(".log")) else {
            continue;
        };
        let Ok(number) = number.parse::<u32>() else { continue };
        if [".gz", ".tmp"].iter().any(|suffix| rest.ends_with(suffix)) {
            continue;
        }
        if let Ok(data) = entry.metadata() {
            // The live file has no suffix and sorts behind all rotated ones.
            let order = (number, rest.is_empty(), rest.to_owned());
            found.push((order, entry.path(), data.ino()));
        }
    }
    found.sort();
    found.into_iter().map(|(_, path, inode)| (path, inode)).collect()
}

/// Opens a regular file without following a link or waiting for a pipe's writer.
fn open(path: &Path) -> io::Result<Source> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let data = file.metadata()?;
    if !data.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(Source { file, inode: data.ino(), offset: 0, decoder: Decoder::default() })
}

#[cfg(test)]
mod tests {
    use agent_operator::domain::{Attempt, RunRef, RunUid};

    use super::*;
    use crate::streams::{Streams, spool::Piece};

    const TIME: &str = "2027-01-15T10:00:00.123456789Z";

    struct Rig {
        dir: tempfile::TempDir,
        streams: Arc<AttemptStreams>,
    }

    impl Rig {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("agent")).unwrap();
            let streams = Self::streams(dir.path());
            Self { dir, streams }
        }

        fn streams(dir: &Path) -> Arc<AttemptStreams> {
            let run = RunRef { namespace: "n".into(), name: "r".into(), uid: RunUid::from("uid") };
            Streams::open(&dir.join("streams")).unwrap().attempt(&run, Attempt(1)).unwrap()
        }

        fn folder(&self) -> PathBuf {
            self.dir.path().join("agent")
        }

        fn write(&self, name: &str, text: &str) {
            use io::Write as _;
            let path = self.folder().join(name);
            let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
            for line in text.lines() {
                writeln!(file, "{TIME} stdout F {line}").unwrap();
            }
        }

        fn start(&self, drain: &CancellationToken) -> tokio::task::JoinHandle<()> {
            let waker = Arc::new(Waker::new());
            let (folder, streams) = (self.folder(), Arc::clone(&self.streams));
            let drain = drain.clone();
            tokio::spawn(async move { tail(folder, streams, waker, drain).await.unwrap() })
        }

        async fn expect(&self, text: &str) {
            let wait = async {
                while self.streams.log.extent().end < text.len() as u64 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), wait).await.expect("log in time");
            match self.streams.log.read(0, 1 << 20).unwrap() {
                Piece::Data(bytes) => assert_eq!(String::from_utf8_lossy(&bytes), text),
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn lines_arrive_while_they_are_written_and_rotation_loses_and_doubles_none() {
        let rig = Rig::new();
        rig.write("0.log", "one\n");
        let drain = CancellationToken::new();
        let task = rig.start(&drain);
        rig.expect("one\n").await;
        let live = rig.folder().join("0.log");
        rig.write("0.log", "two\n");
        std::fs::rename(&live, rig.folder().join("0.log.20270115-100000")).unwrap();
        rig.write("0.log", "three\n");
        rig.expect("one\ntwo\nthree\n").await;
        std::fs::rename(&live, rig.folder().join("0.log.20270115-100001")).unwrap();
        std::fs::remove_file(rig.folder().join("0.log.20270115-100000")).unwrap();
        rig.write("0.log", "four\n");
        drain.cancel();
        task.await.unwrap();
        rig.expect("one\ntwo\nthree\nfour\n").await;
        let extent = rig.streams.log.extent();
        assert!(extent.complete && extent.gaps == 0, "{extent:?}");
    }

    #[tokio::test]
    async fn a_restarted_reader_goes_on_without_hole_or_double() {
        let mut rig = Rig::new();
        rig.write("0.log", "one\n");
        let task = rig.start(&CancellationToken::new());
        rig.expect("one\n").await;
        task.abort();
        let _ = task.await;
        // As if the process had died between spooling bytes and keeping the position.
        rig.streams.log.append(b"half a rec").unwrap();
        rig.write("0.log", "two\n");
        rig.streams = Rig::streams(rig.dir.path());
        let drain = CancellationToken::new();
        drain.cancel();
        rig.start(&drain).await.unwrap();
        rig.expect("one\ntwo\n").await;
    }

    #[tokio::test]
    async fn what_was_rotated_away_unread_shows_as_a_gap() {
        let mut rig = Rig::new();
        rig.write("0.log", "one\n");
        let task = rig.start(&CancellationToken::new());
        rig.expect("one\n").await;
        task.abort();
        let _ = task.await;
        // Kept open, so that its inode cannot be given to the next file.
        let old = File::open(rig.folder().join("0.log")).unwrap();
        std::fs::remove_file(rig.folder().join("0.log")).unwrap();
        rig.write("0.log", "two\n");
        rig.streams = Rig::streams(rig.dir.path());
        let drain = CancellationToken::new();
        drain.cancel();
        rig.start(&drain).await.unwrap();
        drop(old);
        assert_eq!(rig.streams.log.read(4, 10).unwrap(), Piece::Gap { to: 5 });
        assert_eq!(rig.streams.log.extent().gaps, 1);
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let rig = Rig::new();
        std::os::unix::fs::symlink("/etc/hostname", rig.folder().join("0.log")).unwrap();
        assert!(open(&rig.folder().join("0.log")).is_err());
    }
}
