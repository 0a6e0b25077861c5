//! The supervisor's journal: what this node accepted and what has not yet reached the runs' status.
//! Append-only, one checksummed line a record, on disk before anything is acknowledged, rebuilt by
//! replay as a pure fold.
//!
//! A torn tail (crash in mid-write) is normal input and cut off. A damaged line further up is left
//! out and counted; so is a record of a later version. Never contains a token or a credential.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use agent_operator::domain::{Epoch, RunKey, names};
use serde::{Deserialize, Serialize};

use crate::steps::record::{Facts, Record};

/// File name within the data directory.
const FILE: &str = "ledger.jsonl";
/// Where a compacted ledger is written before it takes the place of the old one.
const FILE_NEXT: &str = "ledger.jsonl.next";
/// First line: name and version of the format.
const HEADER: &str = "agent-operator-ledger 1";
/// What every version of the header starts with.
const HEADER_NAME: &str = "agent-operator-ledger ";
/// Hex digits of the checksum before each line: 64 bits find every torn or flipped line.
const CHECKSUM_DIGITS: usize = 16;
/// Compaction starts at this size: below, replay takes milliseconds anyway.
const COMPACT_BYTES_MIN: u64 = 4 * 1024 * 1024;

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
    /// A record could not be put on disk.
    #[error("could not write the ledger")]
    Write(#[source] std::io::Error),
    /// A record did not serialise.
    #[error("could not serialise a ledger record")]
    Serialise(#[source] serde_json::Error),
    /// The file is of another version; it is left alone.
    #[error("the ledger {path} has the format {found:?}; this version reads {HEADER:?}")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its first line.
        found: String,
    },
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
    /// Lines left out because their checksum is wrong.
    pub damaged_lines: u64,
    /// Lines left out because this version does not know them.
    pub unknown_lines: u64,
}

/// The open journal.
#[derive(Debug)]
pub struct Ledger {
    dir: PathBuf,
    file: File,
    /// Bytes of whole lines.
    bytes: u64,
    /// Size after the last compaction (or at opening).
    compacted_bytes: u64,
}

impl Ledger {
    /// Opens (or makes) the ledger in `dir` and replays it.
    pub fn open(dir: &Path) -> Result<(Self, Memory, Oddities), LedgerError> {
        std::fs::create_dir_all(dir)
            .map_err(|source| LedgerError::Open { path: dir.to_owned(), source })?;
        let path = dir.join(FILE);
        // A crash in mid-compaction leaves the next file behind; the old one is still whole.
        let _ = std::fs::remove_file(dir.join(FILE_NEXT));
        let mut file = open_file(&path)?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(LedgerError::Read)?;
        let (memory, oddities, bytes) = replay(&content, &path)?;
        file.set_len(bytes).map_err(LedgerError::Write)?;
        file.seek(SeekFrom::End(0)).map_err(LedgerError::Write)?;
        let mut ledger = Self { dir: dir.to_owned(), file, bytes, compacted_bytes: bytes };
        if bytes == 0 {
            ledger.write(format!("{HEADER}\n").as_bytes(), true)?;
            sync_dir(dir)?;
        }
        Ok((ledger, memory, oddities))
    }

    /// Appends entries; with `sync` they are on disk when this returns.
    pub fn append(&mut self, entries: &[Entry], sync: bool) -> Result<(), LedgerError> {
        let mut bytes = Vec::new();
        for entry in entries {
            bytes.extend_from_slice(&line(entry)?);
        }
        self.write(&bytes, sync)
    }

    /// Whether enough has become obsolete for a compaction to be worth it.
    pub fn wants_compaction(&self) -> bool {
        self.bytes >= COMPACT_BYTES_MIN && self.bytes >= self.compacted_bytes.saturating_mul(2)
    }

    /// Puts `entries` in the place of everything written so far, atomically.
    pub fn compact(&mut self, entries: &[Entry]) -> Result<(), LedgerError> {
        let next = self.dir.join(FILE_NEXT);
        let _ = std::fs::remove_file(&next);
        let file = open_file(&next)?;
        let mut fresh = Self { dir: self.dir.clone(), file, bytes: 0, compacted_bytes: 0 };
        fresh.write(format!("{HEADER}\n").as_bytes(), false)?;
        fresh.append(entries, true)?;
        std::fs::rename(&next, self.dir.join(FILE)).map_err(LedgerError::Write)?;
        sync_dir(&self.dir)?;
        fresh.compacted_bytes = fresh.bytes;
        *self = fresh;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8], sync: bool) -> Result<(), LedgerError> {
        let mut write = || {
            self.file.write_all(bytes)?;
            if sync { self.file.sync_data() } else { Ok(()) }
        };
        if let Err(error) = write() {
            // Half a line must not swallow the next one.
            let _ = self.file.set_len(self.bytes);
            let _ = self.file.seek(SeekFrom::End(0));
            return Err(LedgerError::Write(error));
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

fn open_file(path: &Path) -> Result<File, LedgerError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|source| LedgerError::Open { path: path.to_owned(), source })
}

/// Makes a new or renamed file survive a power cut.
fn sync_dir(dir: &Path) -> Result<(), LedgerError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(LedgerError::Write)
}

fn checksum(json: &str) -> String {
    let mut digits = names::sha256_hex(json.as_bytes());
    digits.truncate(CHECKSUM_DIGITS);
    digits
}

fn line(entry: &Entry) -> Result<Vec<u8>, LedgerError> {
    let json = serde_json::to_string(entry).map_err(LedgerError::Serialise)?;
    Ok(format!("{} {json}\n", checksum(&json)).into_bytes())
}

/// Folds the file's content; also says how many bytes of it are whole lines.
fn replay(content: &[u8], path: &Path) -> Result<(Memory, Oddities, u64), LedgerError> {
    let mut memory = Memory::default();
    let whole = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let mut oddities =
        Oddities { torn_bytes: (content.len() - whole) as u64, ..Oddities::default() };
    let mut lines = content[..whole].split(|byte| *byte == b'\n');
    let Some(header) = lines.next().filter(|header| !header.is_empty()) else {
        return Ok((memory, oddities, 0));
    };
    if header != HEADER.as_bytes() {
        let found = String::from_utf8_lossy(header).into_owned();
        if found.starts_with(HEADER_NAME) {
            return Err(LedgerError::Version { path: path.to_owned(), found });
        }
        // Not a header at all: a damaged line, read on.
        oddities.damaged_lines += 1;
    }
    for line in lines.filter(|line| !line.is_empty()) {
        let text = std::str::from_utf8(line).ok();
        let json = text
            .and_then(|text| text.split_once(' '))
            .and_then(|(sum, json)| (checksum(json) == sum).then_some(json));
        match json.map(serde_json::from_str::<Entry>) {
            Some(Ok(entry)) => memory.apply(&entry),
            Some(Err(_)) => oddities.unknown_lines += 1,
            None => oddities.damaged_lines += 1,
        }
    }
    Ok((memory, oddities, whole as u64))
}

#[cfg(test)]
mod tests;
