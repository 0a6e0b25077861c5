//! One stream: its bytes ([`Packed`]) and the index of its gaps and its end.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
};

use agent_operator::domain::stream::{Channel, Gap};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Piece, Position, StoreError,
    packed::{self, Packed},
};

/// Reason of a gap for bytes that are here but not readable any more.
const CACHE_DAMAGED: &str = "CacheDamaged";

/// Longest index that is read back: a stream with more gaps than fit in here is not worth keeping.
const INDEX_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Gaps of one stream: far above any real loss, and what still fits in [`INDEX_BYTES_MAX`].
const GAPS_MAX: usize = 32 * 1024;

/// One line of an index.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum IndexLine {
    Gap(Gap),
    End { offset: u64 },
}

/// A stream: where it stands and its holes, in memory; its bytes on disk.
#[derive(Debug)]
pub(super) struct StreamFile {
    data: Packed,
    index_path: PathBuf,
    lost: u64,
    gaps: Vec<Gap>,
    complete: bool,
    /// Whether a loss of power may take lines of the index.
    unsynced: bool,
}

impl StreamFile {
    /// Opens or creates the files of `channel` in `folder` and cuts off what a crash left half
    /// written.
    pub(super) fn open(folder: &Path, channel: Channel) -> Result<Self, StoreError> {
        let data = Packed::open(folder, channel)?;
        let index_path = folder.join(format!("{channel}.index"));
        let gaps = Vec::new();
        let (lost, complete, unsynced) = Default::default();
        let mut stream = Self { data, index_path, lost, gaps, complete, unsynced };
        stream.load_index()?;
        Ok(stream)
    }

    /// Reads the index as far as it agrees with the data. A line that does not is from before a
    /// crash that shortened the data: it and all behind it are dropped, and the node sends again.
    fn load_index(&mut self) -> Result<(), StoreError> {
        let file = match File::open(&self.index_path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(StoreError::io("open", &self.index_path, source)),
        };
        // An earlier process may have ended before it synced, and what is cut here must not come back.
        self.unsynced = true;
        let mut valid_bytes = 0_u64;
        let mut reader = BufReader::new(file.take(INDEX_BYTES_MAX));
        let mut line = String::new();
        loop {
            line.clear();
            let read = reader.read_line(&mut line);
            let Ok(length @ 1..) = read else { break };
            if !line.ends_with('\n') || !self.take_line(&line) {
                break;
            }
            valid_bytes += length as u64;
        }
        let shorten =
            || OpenOptions::new().write(true).open(&self.index_path)?.set_len(valid_bytes);
        shorten().map_err(|source| StoreError::io("shorten", &self.index_path, source))
    }

    /// Applies one index line; false when it does not fit.
    fn take_line(&mut self, line: &str) -> bool {
        match serde_json::from_str(line) {
            Ok(IndexLine::Gap(gap)) => {
                let fits = gap.to > gap.from
                    && self.gaps.last().is_none_or(|last| gap.from >= last.to)
                    && gap.from <= self.data.length() + self.lost;
                if fits {
                    self.push_gap(gap);
                }
                fits
            }
            Ok(IndexLine::End { offset }) => {
                self.complete = offset == self.position().offset;
                self.complete
            }
            Err(_) => false,
        }
    }

    /// Adds a gap, joined to its neighbour where they touch for the same reason.
    fn push_gap(&mut self, gap: Gap) {
        self.lost += gap.to - gap.from;
        match self.gaps.last_mut() {
            Some(last) if last.to == gap.from && last.reason == gap.reason => last.to = gap.to,
            _ => self.gaps.push(gap),
        }
    }

    /// Where the stream stands.
    pub(super) fn position(&self) -> Position {
        Position { offset: self.data.length() + self.lost, complete: self.complete }
    }

    /// Bytes on disk.
    pub(super) fn on_disk(&self) -> u64 {
        self.data.on_disk()
    }

    /// Bytes that are here, unpacked.
    pub(super) fn here(&self) -> u64 {
        self.data.length()
    }

    /// Appends bytes at the resume offset.
    pub(super) fn append(&mut self, data: &[u8]) -> Result<(), StoreError> {
        self.sync_index()?;
        self.data.append(data)
    }

    /// Makes the gaps outlast a loss of power, before there is data behind them: without its line, what
    /// stands behind a gap would count as what the gap stands for, and the node would send it again.
    fn sync_index(&mut self) -> Result<(), StoreError> {
        if self.unsynced {
            sync(&self.index_path)
                .map_err(|source| StoreError::io("sync", &self.index_path, source))?;
            self.unsynced = false;
        }
        Ok(())
    }

    /// Records that the bytes from the resume offset up to `to` are lost.
    pub(super) fn skip(&mut self, to: u64, reason: &str) -> Result<(), StoreError> {
        if self.gaps.len() >= GAPS_MAX {
            return Err(StoreError::TooManyGaps);
        }
        let gap = Gap { from: self.position().offset, to, reason: reason.to_owned() };
        self.write_line(&IndexLine::Gap(gap.clone()))?;
        self.push_gap(gap);
        Ok(())
    }

    /// Records the end.
    pub(super) fn finish(&mut self) -> Result<(), StoreError> {
        self.write_line(&IndexLine::End { offset: self.position().offset })?;
        self.complete = true;
        Ok(())
    }

    fn write_line(&mut self, line: &IndexLine) -> Result<(), StoreError> {
        let mut text = serde_json::to_vec(line)
            .map_err(io::Error::from)
            .map_err(|source| StoreError::io("encode a line of", &self.index_path, source))?;
        text.push(b'\n');
        append_to(&self.index_path, &text)
            .map_err(|source| StoreError::io("append to", &self.index_path, source))?;
        self.unsynced = true;
        Ok(())
    }

    /// What there is at `offset`, at most `max` bytes of it.
    pub(super) fn read(&self, offset: u64, max: usize) -> Result<Piece, StoreError> {
        let end = self.position().offset;
        if offset >= end {
            return Ok(if self.complete { Piece::End } else { Piece::Waiting });
        }
        let mut lost_before = 0;
        let mut until = end;
        for gap in &self.gaps {
            if offset >= gap.to {
                lost_before += gap.to - gap.from;
            } else if offset >= gap.from {
                return Ok(Piece::Gap(Gap { from: offset, ..gap.clone() }));
            } else {
                until = gap.from;
                break;
            }
        }
        let length = usize::try_from(until - offset).unwrap_or(max).min(max);
        match self.data.read(offset - lost_before, length)? {
            packed::Bytes::Here(bytes) => Ok(Piece::Data(Bytes::from(bytes))),
            packed::Bytes::Damaged { until: end } => {
                let to = (end + lost_before).min(until);
                Ok(Piece::Gap(Gap { from: offset, to, reason: CACHE_DAMAGED.to_owned() }))
            }
        }
    }
}

fn append_to(path: &Path, line: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let length = file.metadata()?.len();
    let written = file.write_all(line);
    if written.is_err() {
        // A full disk takes half a line, and nothing behind that would be read.
        let _ = file.set_len(length);
    }
    written
}

/// Syncs a file and its name.
fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_data()?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Removes the folder of a run.
pub(super) fn remove(folder: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", folder, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
