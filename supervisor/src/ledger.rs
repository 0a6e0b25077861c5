//! The supervisor's journal: what this node accepted and what has not yet reached the runs' status.
//! Append-only, one checksummed line a record, on disk before anything is acknowledged, rebuilt by
//! replay as a pure fold. Never contains a token or a credential.
//!
//! What is read back is always a *prefix* of what was written, so that no fact ever stands without
//! those before it:
//!
//! | found | outcome |
//! |---|---|
//! | no file, empty file, torn header | an empty ledger; what runs on the node is adopted |
//! | torn tail (a crash in mid-write) | cut off and counted; it was never acknowledged |
//! | a damaged line with good ones behind it | the prefix counts; the file is set aside and what it knew beyond is adopted |
//! | a header of another version, or none | set aside as a whole; everything is adopted |
//! | a record that this version does not know | left out and counted; what it knew is adopted |
//! | another boot id | moments are placed by the wall clock, see [`crate::steps::moment::Moment::rebase`] |
//!
//! "Adopted" means: from the API server, the gateway's memory and the controller, see
//! `steps::stranger`; never a second pod. The highest epoch is taken from every line that
//! verifies, also behind damage: it may only rise.
//!
//! A disk that takes no more: a preallocated reserve is given back to the file system, so that
//! exits and outcomes can still be written, and new assignments are refused meanwhile. Facts that
//! cannot be written at all wait in memory and are tried again with each later one; nothing is
//! acknowledged before it is on disk, and beyond [`BACKLOG_BYTES_MAX`] the process ends with the
//! error. Acknowledged log offsets are not in here: each stream keeps its own beside its bytes.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use agent_operator::domain::{Epoch, RunKey};
use serde::{Deserialize, Serialize};

use crate::{
    steps::record::{Facts, Record},
    streams::spool::SpoolError,
};

pub mod disk;
pub(crate) mod format;

use disk::{Disk, RealDisk, open_file, sync_dir};

use crate::room::INODES_MIN;

/// File name within the data directory.
const FILE: &str = "ledger.jsonl";
/// Where a compacted ledger is written before it takes the place of the old one.
const FILE_NEXT: &str = "ledger.jsonl.next";
/// A ledger that could not be read to its end, kept for people. The latest one only.
const FILE_SET_ASIDE: &str = "ledger.jsonl.set-aside";
/// Space that is given back when the disk is full.
const FILE_RESERVE: &str = "ledger.reserve";
/// Size of the reserve: results of a hundred attempts with the longest outputs (about 40 KiB each),
/// twice, since a compaction writes them anew.
const RESERVE_BYTES: u64 = 8 * 1024 * 1024;
/// Compaction starts at this size: below, replay takes milliseconds anyway.
const COMPACT_BYTES_MIN: u64 = 4 * 1024 * 1024;
/// A compacted ledger of this size takes no further assignment: a thousand unacknowledged attempts
/// with the longest prompts.
const BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Most bytes of facts that wait in memory for a disk that takes none: hours of a node's facts but
/// for the longest results.
pub const BACKLOG_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The ledger could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file could not be opened or made.
    #[error("could not open the ledger {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file could not be read.
    #[error("could not read the ledger")]
    Read(#[source] std::io::Error),
    /// Records could not be put on disk, and too many wait already.
    #[error("could not write the ledger")]
    Write(#[source] std::io::Error),
    /// A record did not serialise.
    #[error("could not serialise a ledger record")]
    Serialise(#[source] serde_json::Error),
}

/// How the runner gets into pods on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Delivery {
    /// By a read-only OCI image volume.
    ImageVolume,
    /// By an init container that copies it into an emptyDir.
    InitContainer,
}

impl Delivery {
    /// The name on the wire and in arguments.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ImageVolume => "imageVolume",
            Self::InitContainer => "initContainer",
        }
    }
}

/// One line of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "entry")]
pub enum Entry {
    /// A fact about an attempt.
    Attempt {
        /// The attempt.
        run: RunKey,
        /// The fact.
        fact: Box<Record>,
    },
    /// The attempt has left the ledger.
    Dropped {
        /// The attempt.
        run: RunKey,
    },
    /// Highest epoch that this node has obeyed.
    HighestEpoch {
        /// The epoch.
        epoch: Epoch,
    },
    /// How the runner gets into pods, as found out by trial.
    Delivery {
        /// The way that works.
        delivery: Delivery,
    },
}

/// Everything the ledger knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Attempts, finished ones included until they are dropped.
    pub attempts: BTreeMap<RunKey, Facts>,
    /// Highest epoch obeyed.
    pub highest_epoch: Epoch,
    /// Delivery found out by trial.
    pub delivery: Option<Delivery>,
}

impl Memory {
    /// Adds one entry. A fact about an attempt that was never accepted is left out.
    pub fn apply(&mut self, entry: &Entry) {
        match entry {
            Entry::Attempt { run, fact } => {
                if let Some(facts) = self.attempts.get_mut(run) {
                    facts.apply(fact);
                } else if let Record::Accepted { assignment, one_time_hash, at } = fact.as_ref() {
                    let facts = Facts::accepted(
                        assignment.as_ref().clone(),
                        one_time_hash.clone(),
                        at.clone(),
                    );
                    self.attempts.insert(run.clone(), facts);
                }
            }
            Entry::Dropped { run } => {
                self.attempts.remove(run);
            }
            Entry::HighestEpoch { epoch } => self.highest_epoch = self.highest_epoch.max(*epoch),
            Entry::Delivery { delivery } => self.delivery = Some(*delivery),
        }
    }
}

/// The entries that rebuild a memory of these parts; what compaction writes.
pub fn snapshot<'a>(
    attempts: impl Iterator<Item = (&'a RunKey, &'a Facts)>,
    highest_epoch: Epoch,
    delivery: Option<Delivery>,
) -> Vec<Entry> {
    let mut entries = vec![Entry::HighestEpoch { epoch: highest_epoch }];
    entries.extend(delivery.map(|delivery| Entry::Delivery { delivery }));
    for (run, facts) in attempts {
        let records = facts.to_records().into_iter();
        entries
            .extend(records.map(|fact| Entry::Attempt { run: run.clone(), fact: Box::new(fact) }));
    }
    entries
}

/// What was odd about the file when it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Oddities {
    /// Bytes of a torn tail that were cut off.
    pub torn_bytes: u64,
    /// Lines from the first damaged one on.
    pub damaged_lines: u64,
    /// Lines left out because this version does not know them.
    pub unknown_lines: u64,
    /// The file is of another version, or no ledger at all.
    pub foreign: bool,
    /// There was no ledger, or an empty one.
    pub fresh: bool,
}

impl Oddities {
    /// Whether facts of an earlier life may be missing: what runs on the node is then looked at
    /// before anything is made. A torn tail is not such a loss, for it was never acknowledged.
    pub fn facts_may_be_missing(&self) -> bool {
        self.fresh || self.foreign || self.damaged_lines > 0 || self.unknown_lines > 0
    }
}

/// Where appended records are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// In the file, and on disk where that was asked for.
    OnDisk,
    /// In memory: the disk takes nothing at present.
    Waiting,
}

/// Why no assignment is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// The disk is full; the reserve is for what runs already.
    #[error("the node's disk is full: free space, or inodes, on the volume of supervisor.hostPath")]
    DiskFull,
    /// The disk does not take writes.
    #[error("the node's ledger cannot be written: look at the supervisor's log and its disk")]
    Unwritable,
    /// Too much is unacknowledged.
    #[error("the node's ledger is full of outcomes that the controller has not acknowledged")]
    LedgerFull,
}

impl NoRoom {
    /// Every [`Self::kind`].
    pub const KINDS: [&str; 3] = ["DiskFull", "LedgerUnwritable", "LedgerFull"];

    /// Where the streams of an attempt could not be made: whether a full disk is to blame. Any other fault
    /// costs the attempt its log and nothing else.
    pub fn of_streams(error: &SpoolError) -> Option<Self> {
        match error {
            SpoolError::Io(error) if disk::is_full(error) => Some(Self::DiskFull),
            _ => None,
        }
    }

    /// The reason of a refused assignment.
    pub fn kind(self) -> &'static str {
        match self {
            Self::DiskFull => "DiskFull",
            Self::Unwritable => "LedgerUnwritable",
            Self::LedgerFull => "LedgerFull",
        }
    }
}

/// The open journal.
#[derive(Debug)]
pub struct Ledger {
    dir: PathBuf,
    disk: Box<dyn Disk>,
    file: File,
    /// Bytes of whole lines.
    bytes: u64,
    /// Size after the last compaction (or at opening).
    compacted_bytes: u64,
    /// Lines that are not in the file yet.
    backlog: Vec<u8>,
    /// Whether the reserve is held, not spent.
    reserve: bool,
}

impl Ledger {
    /// Opens (or makes) the ledger in `dir` and replays it.
    pub fn open(dir: &Path) -> Result<(Self, Memory, Oddities), LedgerError> {
        Self::open_on(Box::new(RealDisk), dir)
    }

    /// As [`Self::open`], on a disk that may fail.
    pub fn open_on(
        disk: Box<dyn Disk>,
        dir: &Path,
    ) -> Result<(Self, Memory, Oddities), LedgerError> {
        let open_error = |path: &Path| {
            let path = path.to_owned();
            move |source| LedgerError::Open { path, source }
        };
        std::fs::create_dir_all(dir).map_err(open_error(dir))?;
        let path = dir.join(FILE);
        // A crash in mid-compaction leaves the next file behind; the old one is still whole.
        let _ = std::fs::remove_file(dir.join(FILE_NEXT));
        let mut file = open_file(&path).map_err(open_error(&path))?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(LedgerError::Read)?;
        let replayed = format::replay(&content);
        let oddities = replayed.oddities;
        let mut ledger = Self {
            dir: dir.to_owned(),
            disk,
            file,
            bytes: replayed.whole_bytes,
            compacted_bytes: replayed.whole_bytes,
            backlog: Vec::new(),
            reserve: false,
        };
        if oddities.foreign || oddities.damaged_lines > 0 {
            let aside = dir.join(FILE_SET_ASIDE);
            std::fs::rename(&path, &aside).map_err(open_error(&aside))?;
            ledger.file = open_file(&path).map_err(open_error(&path))?;
            ledger.begin(&replayed.memory)?;
        } else if ledger.bytes == 0 {
            ledger.begin(&replayed.memory)?;
        } else {
            ledger.cut();
        }
        ledger.reserve = ledger.take_reserve();
        Ok((ledger, replayed.memory, oddities))
    }

    /// Starts an empty file over with what is known.
    fn begin(&mut self, memory: &Memory) -> Result<(), LedgerError> {
        self.bytes = 0;
        self.cut();
        self.backlog = format::header();
        let known = snapshot(memory.attempts.iter(), memory.highest_epoch, memory.delivery);
        self.append(&known, true)?;
        // Without it a crash may leave no file at all, which is as good as an empty one.
        let _ = sync_dir(&self.dir);
        self.compacted_bytes = self.bytes;
        Ok(())
    }

    /// Appends entries; with `sync` they are on disk when this returns, unless it says otherwise. What waited
    /// before them always is: somebody may have been promised to hear once it is there.
    pub fn append(&mut self, entries: &[Entry], sync: bool) -> Result<Stored, LedgerError> {
        let sync = sync || self.is_behind();
        for entry in entries {
            self.backlog.extend_from_slice(&format::line(entry)?);
        }
        match self.flush(sync) {
            Ok(()) => Ok(Stored::OnDisk),
            Err(error) if self.backlog.len() > BACKLOG_BYTES_MAX => Err(LedgerError::Write(error)),
            Err(error) => {
                let waiting_bytes = self.backlog.len();
                tracing::error!(%error, waiting_bytes, "the ledger cannot be written; facts wait");
                Ok(Stored::Waiting)
            }
        }
    }

    /// Tries again what waits, and takes the reserve back when there is space again. Returns
    /// whether everything is on disk.
    pub fn tend(&mut self) -> bool {
        let flushed = self.backlog.is_empty() || self.flush(true).is_ok();
        if flushed && !self.reserve {
            self.reserve = self.take_reserve();
        }
        flushed
    }

    /// Whether facts wait in memory for a disk that takes none.
    pub fn is_behind(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Whether a new assignment may be taken on.
    pub fn check_room(&self) -> Result<(), NoRoom> {
        if self.is_behind() {
            return Err(NoRoom::Unwritable);
        }
        // The journal grows without a new file, but a step cannot do without: streams, repository. A disk
        // that cannot be asked shows by its writes what it has.
        let inodes = self.disk.free_inodes(&self.dir).unwrap_or(u64::MAX);
        if !self.reserve || inodes < INODES_MIN {
            return Err(NoRoom::DiskFull);
        }
        if self.compacted_bytes >= BYTES_MAX { Err(NoRoom::LedgerFull) } else { Ok(()) }
    }

    /// Whether enough has become obsolete for a compaction to be worth it.
    pub fn wants_compaction(&self) -> bool {
        self.bytes >= COMPACT_BYTES_MIN && self.bytes >= self.compacted_bytes.saturating_mul(2)
    }

    /// Puts `entries`, which must be everything that is known, in the place of everything written so
    /// far, atomically. When that fails the old file stays, and the next try waits until it has
    /// doubled again.
    pub fn compact(&mut self, entries: &[Entry]) -> Result<(), LedgerError> {
        self.compacted_bytes = self.bytes;
        let mut content = format::header();
        for entry in entries {
            content.extend_from_slice(&format::line(entry)?);
        }
        let next = self.dir.join(FILE_NEXT);
        let _ = std::fs::remove_file(&next);
        let renamed = self.replace(&next, &content);
        if renamed.is_err() {
            let _ = std::fs::remove_file(&next);
        }
        self.file = renamed.map_err(LedgerError::Write)?;
        self.bytes = content.len() as u64;
        self.compacted_bytes = self.bytes;
        self.backlog.clear();
        Ok(())
    }

    fn replace(&self, next: &Path, content: &[u8]) -> std::io::Result<File> {
        let mut file = open_file(next)?;
        self.disk.write(&mut file, content)?;
        self.disk.sync(&file)?;
        std::fs::rename(next, self.dir.join(FILE))?;
        // The rename is done: the new file is the ledger whatever becomes of this.
        let _ = sync_dir(&self.dir);
        Ok(file)
    }

    /// Writes what waits; gives the reserve up for it if that is what it takes.
    fn flush(&mut self, sync: bool) -> std::io::Result<()> {
        match self.write_backlog(sync) {
            Err(error) if disk::is_full(&error) && self.reserve => {
                tracing::error!("the disk is full: the ledger's reserve is in use");
                self.reserve = false;
                self.disk.release(&self.dir.join(FILE_RESERVE))?;
                self.write_backlog(sync)
            }
            done => done,
        }
    }

    fn write_backlog(&mut self, sync: bool) -> std::io::Result<()> {
        if let Err(error) = self.disk.write(&mut self.file, &self.backlog) {
            // Half a line must not swallow the next one.
            self.cut();
            return Err(error);
        }
        if sync && let Err(error) = self.disk.sync(&self.file) {
            // The kernel may have dropped the pages: they are written again from memory.
            self.cut();
            return Err(error);
        }
        self.bytes += self.backlog.len() as u64;
        self.backlog.clear();
        Ok(())
    }

    /// Takes the file back to its last whole line.
    fn cut(&mut self) {
        let _ = self.file.set_len(self.bytes);
        let _ = self.file.seek(SeekFrom::Start(self.bytes));
    }

    fn take_reserve(&self) -> bool {
        let taken = self.disk.reserve(&self.dir.join(FILE_RESERVE), RESERVE_BYTES);
        if let Err(error) = &taken {
            tracing::error!(%error, "no space for the ledger's reserve: no assignment is taken");
        }
        taken.is_ok()
    }
}

#[cfg(test)]
pub(crate) mod tests;
