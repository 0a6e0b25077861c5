//! All streams of all runs.

use std::{
    collections::{HashMap, hash_map},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use agent_operator::domain::{
    RunUid,
    stream::{Channel, Gap},
};
use tokio::{sync::watch, time::Instant};

use super::{
    Demand, Piece, Position, StoreError, StreamKey,
    file::{StreamFile, remove},
};
use crate::clock;

/// Reason of a gap where the node no longer had the bytes that this store lacks.
const NOT_RETAINED: &str = "NotRetained";
/// Reason of a gap where this store had no room.
const STORE_FULL: &str = "StoreFull";

/// How much longer than its share on disk a stream may be unpacked: text packs to an eighth or so, and
/// what packs better is a flood of the same line.
const UNPACKED_FACTOR: u64 = 8;

/// How much the store keeps, as it is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all streams; beyond it the oldest finished runs go first.
    pub total_bytes: u64,
    /// Bytes of one stream; what comes after is a gap, so that one flood cannot push out the rest.
    pub stream_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        // 2 GiB hold the logs of some thousand ordinary tasks; an eighth for one stream.
        Self { total_bytes: 2 << 30, stream_bytes: 256 << 20 }
    }
}

/// The streams of one run. `changes` wakes its followers.
#[derive(Debug)]
struct Run {
    folder: PathBuf,
    streams: Mutex<HashMap<Channel, StreamFile>>,
    changes: watch::Sender<u64>,
}

/// A run in the table, with what retention needs.
#[derive(Debug)]
struct Entry {
    run: Arc<Run>,
    /// Order of the last write; lower is older.
    serial: u64,
    /// When it was last written by this process; none since the start.
    touched: Option<Instant>,
    size: Size,
}

/// What a run's streams amount to.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    /// Bytes on disk.
    bytes: u64,
    /// Whether there is any stream.
    present: bool,
    /// Whether every stream has ended.
    finished: bool,
}

#[derive(Debug, Default)]
struct Table {
    runs: HashMap<RunUid, Entry>,
    serial: u64,
    bytes: u64,
}

/// The store. Its methods block on the file system (page cache); call them off the async workers.
#[derive(Debug)]
pub struct StreamStore {
    root: PathBuf,
    limits: Limits,
    table: Mutex<Table>,
    demand: Arc<Demand>,
    opened: Instant,
}

impl StreamStore {
    /// Opens the store in `root` and takes over what an earlier process left.
    pub fn open(root: &Path, limits: Limits) -> Result<Self, StoreError> {
        fs::create_dir_all(root).map_err(|source| StoreError::io("create", root, source))?;
        let store = Self {
            root: root.to_owned(),
            limits,
            table: Mutex::new(Table::default()),
            demand: Arc::default(),
            opened: clock::instant(),
        };
        let listing = fs::read_dir(root).map_err(|source| StoreError::io("list", root, source))?;
        let mut found = Vec::new();
        for entry in listing {
            let entry = entry.map_err(|source| StoreError::io("list", root, source))?;
            let age = entry.metadata().and_then(|meta| meta.modified());
            let uid = RunUid::from(entry.file_name().to_string_lossy().into_owned());
            if is_uid(&uid) {
                found.push((age.ok(), uid));
            }
        }
        found.sort();
        for (_, uid) in found {
            // A folder that cannot be opened is given up: the node sends its streams again.
            if let Err(error) = store.adopt(&uid) {
                tracing::warn!(run_uid = %uid, %error, "dropped unreadable streams");
                let _ = remove(&store.root.join(uid.as_str()));
            }
        }
        Ok(store)
    }

    fn adopt(&self, uid: &RunUid) -> Result<(), StoreError> {
        let folder = self.root.join(uid.as_str());
        let mut streams = HashMap::new();
        for channel in Channel::ALL {
            if folder.join(format!("{channel}.data")).exists() {
                streams.insert(channel, StreamFile::open(&folder, channel)?);
            }
        }
        let size = measure(&streams);
        let run =
            Arc::new(Run { folder, streams: Mutex::new(streams), changes: watch::channel(0).0 });
        let mut table = lock(&self.table);
        table.serial += 1;
        table.bytes += size.bytes;
        let serial = table.serial;
        table.runs.insert(uid.clone(), Entry { run, serial, touched: None, size });
        Ok(())
    }

    /// Opens a stream for writing: says where the node has to go on. `first` is the first byte that
    /// the node still has; what lies between is lost for good.
    pub fn begin(&self, key: &StreamKey, first: u64, now: Instant) -> Result<Position, StoreError> {
        self.write(key, now, |stream| {
            if first > stream.position().offset && !stream.position().complete {
                stream.skip(first, NOT_RETAINED)?;
            }
            Ok(())
        })
    }

    /// Appends `data` that starts at `offset`. What is here already is passed over, so repeating is
    /// harmless.
    pub fn append(
        &self,
        key: &StreamKey,
        offset: u64,
        data: &[u8],
        now: Instant,
    ) -> Result<Position, StoreError> {
        let room = self.make_room(data.len() as u64);
        let limit = self.limits.stream_bytes;
        self.write(key, now, |stream| {
            let Position { offset: expected, complete } = stream.position();
            if offset > expected {
                return Err(StoreError::OutOfOrder { expected, got: offset });
            }
            let known = usize::try_from(expected - offset).unwrap_or(usize::MAX);
            if complete || known >= data.len() {
                return Ok(());
            }
            let fresh = &data[known..];
            let size = fresh.len() as u64;
            let fits = stream.on_disk() + size <= limit
                && stream.here() + size <= limit.saturating_mul(UNPACKED_FACTOR);
            if room && fits {
                stream.append(fresh)
            } else {
                stream.skip(expected + size, STORE_FULL)
            }
        })
    }

    /// Records bytes that the node has lost; what is here already is passed over.
    pub fn gap(&self, key: &StreamKey, gap: &Gap, now: Instant) -> Result<Position, StoreError> {
        if gap.to <= gap.from {
            return Err(StoreError::EmptyGap { from: gap.from, to: gap.to });
        }
        self.write(key, now, |stream| {
            let Position { offset: expected, complete } = stream.position();
            if gap.from > expected {
                return Err(StoreError::OutOfOrder { expected, got: gap.from });
            }
            if complete || gap.to <= expected {
                return Ok(());
            }
            stream.skip(gap.to, &gap.reason)
        })
    }

    /// Records that the stream is complete at `offset`. A node that remembers less than is here (its
    /// disk lost the tail) cannot take back what it sent.
    pub fn end(&self, key: &StreamKey, offset: u64, now: Instant) -> Result<Position, StoreError> {
        self.write(key, now, |stream| {
            let Position { offset: expected, complete } = stream.position();
            if offset > expected {
                return Err(StoreError::OutOfOrder { expected, got: offset });
            }
            if complete { Ok(()) } else { stream.finish() }
        })
    }

    /// Where a stream stands; none when the store has nothing of it.
    pub fn position(&self, key: &StreamKey) -> Option<Position> {
        let run = self.find(&key.run)?;
        let streams = lock(&run.streams);
        streams.get(&key.channel).map(StreamFile::position)
    }

    /// What there is to read at `offset`, at most `max` bytes.
    pub fn read(&self, key: &StreamKey, offset: u64, max: usize) -> Result<Piece, StoreError> {
        let Some(run) = self.find(&key.run) else { return Ok(Piece::Absent) };
        let streams = lock(&run.streams);
        streams.get(&key.channel).map_or(Ok(Piece::Absent), |stream| stream.read(offset, max))
    }

    /// Wakes at each change of a run's streams. A run that nothing has come for yet gets its entry
    /// here, so that a follower can wait for the first byte.
    pub fn subscribe(&self, uid: &RunUid) -> Result<watch::Receiver<u64>, StoreError> {
        Ok(self.find_or_insert(uid)?.changes.subscribe())
    }

    /// Drops the runs that are not `wanted` and were not written for `idle`, and entries that never
    /// got a byte and nobody follows.
    pub fn sweep(&self, wanted: &dyn Fn(&RunUid) -> bool, idle: Duration, now: Instant) {
        let mut gone = Vec::new();
        let mut table = lock(&self.table);
        table.runs.retain(|uid, entry| {
            let quiet = entry.touched.is_none_or(|at| now.duration_since(at) >= idle);
            let followed = entry.run.changes.receiver_count() > 0;
            let keep = followed || !quiet || (entry.size.present && wanted(uid));
            if !keep {
                gone.push((entry.run.clone(), entry.size.bytes));
            }
            keep
        });
        for (run, bytes) in gone {
            table.bytes = table.bytes.saturating_sub(bytes);
            if let Err(error) = remove(&run.folder) {
                tracing::warn!(%error, "streams of a forgotten run stay on disk");
            }
        }
    }

    /// What followers miss here.
    pub fn demand(&self) -> &Arc<Demand> {
        &self.demand
    }

    /// When this process opened the store: nodes need a moment to find it and to fill it again.
    pub fn opened(&self) -> Instant {
        self.opened
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        lock(&self.table).bytes
    }

    /// Whether so much is here that old streams are better not asked for again: they would only push
    /// out one another.
    pub fn is_crowded(&self) -> bool {
        self.bytes() > self.limits.total_bytes / 4 * 3
    }

    fn find(&self, uid: &RunUid) -> Option<Arc<Run>> {
        lock(&self.table).runs.get(uid).map(|entry| entry.run.clone())
    }

    fn find_or_insert(&self, uid: &RunUid) -> Result<Arc<Run>, StoreError> {
        if !is_uid(uid) {
            return Err(StoreError::BadUid(uid.clone()));
        }
        let mut table = lock(&self.table);
        if let Some(entry) = table.runs.get(uid) {
            return Ok(entry.run.clone());
        }
        let run = Arc::new(Run {
            folder: self.root.join(uid.as_str()),
            streams: Mutex::default(),
            changes: watch::channel(0).0,
        });
        table.serial += 1;
        let serial = table.serial;
        let entry = Entry { run: run.clone(), serial, touched: None, size: Size::default() };
        table.runs.insert(uid.clone(), entry);
        Ok(run)
    }

    /// Runs `change` on a stream, then brings the table up to date and wakes the followers.
    fn write(
        &self,
        key: &StreamKey,
        now: Instant,
        change: impl FnOnce(&mut StreamFile) -> Result<(), StoreError>,
    ) -> Result<Position, StoreError> {
        let run = self.find_or_insert(&key.run)?;
        let mut streams = lock(&run.streams);
        let stream = match streams.entry(key.channel) {
            hash_map::Entry::Occupied(known) => known.into_mut(),
            hash_map::Entry::Vacant(free) => {
                fs::create_dir_all(&run.folder)
                    .map_err(|source| StoreError::io("create", &run.folder, source))?;
                free.insert(StreamFile::open(&run.folder, key.channel)?)
            }
        };
        let before = stream.position();
        let result = change(stream);
        let position = stream.position();
        let size = measure(&streams);
        drop(streams);
        self.account(&key.run, size, now);
        if position != before {
            run.changes.send_modify(|version| *version += 1);
        }
        result.map(|()| position)
    }

    fn account(&self, uid: &RunUid, size: Size, now: Instant) {
        let mut table = lock(&self.table);
        table.serial += 1;
        let serial = table.serial;
        let Some(entry) = table.runs.get_mut(uid) else { return };
        let before = std::mem::replace(&mut entry.size, size);
        entry.serial = serial;
        entry.touched = Some(now);
        table.bytes = (table.bytes + size.bytes).saturating_sub(before.bytes);
    }

    /// Drops the oldest finished runs until `wanted` bytes fit; false when they still do not.
    fn make_room(&self, wanted: u64) -> bool {
        let mut table = lock(&self.table);
        while table.bytes + wanted > self.limits.total_bytes {
            let oldest = table
                .runs
                .iter()
                .filter(|(_, entry)| entry.size.finished && entry.size.bytes > 0)
                .min_by_key(|(_, entry)| entry.serial)
                .map(|(uid, _)| uid.clone());
            let Some(entry) = oldest.and_then(|uid| table.runs.remove(&uid)) else {
                return false;
            };
            table.bytes = table.bytes.saturating_sub(entry.size.bytes);
            if let Err(error) = remove(&entry.run.folder) {
                tracing::warn!(%error, "streams of a finished run stay on disk");
            }
            // Its followers look again, find nothing, and say so.
            entry.run.changes.send_modify(|version| *version += 1);
        }
        true
    }
}

fn measure(streams: &HashMap<Channel, StreamFile>) -> Size {
    Size {
        bytes: streams.values().map(StreamFile::on_disk).sum(),
        present: !streams.is_empty(),
        finished: !streams.is_empty() && streams.values().all(|s| s.position().complete),
    }
}

/// A uid becomes the name of a folder, so it must be one: letters, digits and dashes.
fn is_uid(uid: &RunUid) -> bool {
    // Kubernetes' uids have 36 characters.
    const UID_CHARS_MAX: usize = 64;
    let text = uid.as_str();
    (1..=UID_CHARS_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Locks; a panic elsewhere cannot leave these maps half changed, so the poison is ignored.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
