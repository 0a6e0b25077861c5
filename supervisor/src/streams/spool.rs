//! One append-only byte stream on disk. Segments are files named by the offset of their first byte;
//! holes stand in a table of their own ([`super::gaps`]), with their reasons.
//!
//! What is on disk when: [`Spool::append`] hands bytes to the kernel, so they survive the death of
//! this process; each segment is synced when it is full and when the stream is complete, so a crash
//! of the machine costs at most [`SEGMENT_BYTES`], which then is a hole of exact size.
//! [`Spool::append_durable`] comes back when the bytes are on disk.

mod read;

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::{
    budget::Budget,
    gaps::{GapReason, Gaps, Hole},
    slots::Slots,
};

/// Size at which a new segment begins.
const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;
/// Marks a stream that will not grow any more.
const COMPLETE_FILE: &str = "complete";
/// Where the reader of the stream's source stands.
const POSITION_FILE: &str = "position";
/// The holes.
const GAPS_FILE: &str = "gaps";

/// A spool could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// A file could not be read or written.
    #[error("could not use a stream's files")]
    Io(#[from] io::Error),
    /// A record did not serialise.
    #[error("could not serialise a stream's record")]
    Serialise(#[source] serde_json::Error),
    /// The bytes are a hole now, for there is no room within the bound.
    #[error("no room for a stream's bytes")]
    Full,
}

/// What stands at an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes.
    Data(Bytes),
    /// Nothing up to this offset: lost for good.
    Gap {
        /// Offset of the next byte that exists, or of a hole with another reason.
        to: u64,
        /// Why.
        reason: GapReason,
    },
    /// Nothing yet.
    Pending,
    /// Nothing, and there will be nothing.
    End,
}

/// The bounds of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Offset of the first byte still here.
    pub base: u64,
    /// Offset behind the last byte.
    pub end: u64,
    /// Number of holes.
    pub gaps: usize,
    /// Whether it will not grow any more.
    pub complete: bool,
}

/// A stream on disk; shared by one writer and any number of readers.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    inner: Mutex<Inner>,
    position: Slots,
    budget: Arc<Budget>,
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct Inner {
    /// Start and length, in order.
    segments: Vec<(u64, u64)>,
    gaps: Gaps,
    /// The last segment, open for writing.
    file: Option<File>,
    /// Offset behind the last byte, lost ones included.
    end: u64,
    complete: bool,
}

impl Inner {
    fn stored(&self) -> u64 {
        self.segments.iter().map(|(_, length)| length).sum()
    }
}

impl Spool {
    /// Opens (or makes) the stream in `dir`; `changed` is notified of every change.
    pub fn open(dir: &Path, budget: Arc<Budget>, changed: Arc<Notify>) -> Result<Self, SpoolError> {
        std::fs::create_dir_all(dir)?;
        let gaps = Gaps::open(&dir.join(GAPS_FILE))?;
        let position = Slots::open(&dir.join(POSITION_FILE))?;
        let mut segments = Vec::new();
        for entry in std::fs::read_dir(dir)?.flatten() {
            if let Some(start) = entry.file_name().to_str().and_then(segment_start) {
                segments.push((start, entry.metadata()?.len()));
            }
        }
        segments.sort_unstable();
        for (start, length) in &mut segments {
            *length =
                gaps.first_behind(*start).map_or(*length, |hole| (hole - *start).min(*length));
        }
        let end = segments.last().map_or(0, |(start, length)| start + length).max(gaps.end());
        let complete = dir.join(COMPLETE_FILE).exists();
        let inner = Inner { segments, gaps, file: None, end, complete };
        budget.take(inner.stored());
        Ok(Self { dir: dir.to_owned(), inner: Mutex::new(inner), position, budget, changed })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, start: u64) -> PathBuf {
        // 20 digits hold every u64, so names sort like offsets.
        self.dir.join(format!("{start:020}"))
    }

    /// The stream's bounds.
    pub fn extent(&self) -> Extent {
        let inner = self.lock();
        let base = inner.segments.first().map_or(inner.end, |(start, _)| *start);
        let inside =
            inner.segments.windows(2).filter(|pair| pair[0].0 + pair[0].1 < pair[1].0).count();
        let last = inner.segments.last().map_or(0, |(start, length)| start + length);
        let gaps = inside + usize::from(base > 0) + usize::from(last < inner.end && base < last);
        Extent { base, end: inner.end, gaps, complete: inner.complete }
    }

    /// Bytes on disk.
    pub fn stored(&self) -> u64 {
        self.lock().stored()
    }

    /// When it was last written; none if that cannot be found out.
    pub fn modified(&self) -> Option<SystemTime> {
        let last = self.lock().segments.last().map(|(start, _)| self.path(*start));
        let path = last.unwrap_or_else(|| self.dir.clone());
        std::fs::metadata(path).and_then(|data| data.modified()).ok()
    }

    /// Appends bytes. With an error they have become a hole of their size: offsets stay true, and
    /// offering them again would double them.
    pub fn append(&self, bytes: &[u8]) -> Result<(), SpoolError> {
        self.write(bytes, false)
    }

    /// The same; without an error the bytes are on disk, with one their hole is.
    pub fn append_durable(&self, bytes: &[u8]) -> Result<(), SpoolError> {
        self.write(bytes, true)
    }

    fn write(&self, bytes: &[u8], durable: bool) -> Result<(), SpoolError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut inner = self.lock();
        if inner.complete {
            return Ok(());
        }
        let before = inner.segments.last().copied();
        let mut stored = self.store(&mut inner, bytes);
        if let (Ok(()), true, Some(file)) = (&stored, durable, &inner.file) {
            stored = file.sync_data().map_err(SpoolError::Io);
        }
        if let Err(error) = &stored {
            self.take_back(&mut inner, before);
            let full = matches!(error, SpoolError::Full);
            let reason = if full { GapReason::SpoolFull } else { GapReason::DiskFailed };
            self.lose(&mut inner, bytes.len() as u64, reason, durable);
        } else {
            inner.end += bytes.len() as u64;
        }
        drop(inner);
        self.changed.notify_one();
        stored
    }

    fn store(&self, inner: &mut Inner, bytes: &[u8]) -> Result<(), SpoolError> {
        let (end, length) = (inner.end, bytes.len() as u64);
        if inner.gaps.is_full() {
            return Err(SpoolError::Full);
        }
        self.make_room(inner, length)?;
        let fits = inner
            .segments
            .last()
            .is_some_and(|(start, length)| start + length == end && *length < SEGMENT_BYTES);
        let start = match inner.segments.last() {
            Some((start, _)) if fits => *start,
            _ => {
                if let Some(full) = inner.file.take() {
                    full.sync_data()?;
                }
                inner.segments.push((end, 0));
                end
            }
        };
        if inner.file.is_none() {
            let mut options = OpenOptions::new();
            options.create(true).write(true).truncate(false).mode(0o600);
            inner.file = Some(options.open(self.path(start))?);
        }
        if let Some(file) = &inner.file {
            file.write_all_at(bytes, end - start)?;
        }
        if let Some((_, stored)) = inner.segments.last_mut() {
            *stored += length;
        }
        self.budget.take(length);
        Ok(())
    }

    /// Drops the oldest segments of this stream until `wanted` bytes fit.
    fn make_room(&self, inner: &mut Inner, wanted: u64) -> Result<(), SpoolError> {
        let too_much = |inner: &Inner| {
            self.budget.refuses(wanted) || inner.stored() + wanted > self.budget.of_one_stream()
        };
        while too_much(inner) {
            // The last one is being written.
            if inner.segments.len() < 2 {
                return Err(SpoolError::Full);
            }
            self.drop_oldest(inner)?;
        }
        Ok(())
    }

    fn drop_oldest(&self, inner: &mut Inner) -> Result<(), SpoolError> {
        let (start, length) = inner.segments[0];
        std::fs::remove_file(self.path(start))?;
        inner.segments.remove(0);
        self.budget.give(length);
        Ok(())
    }

    /// Undoes an append: the last segment is as `before`, in the table and on disk.
    fn take_back(&self, inner: &mut Inner, before: Option<(u64, u64)>) {
        inner.file = None;
        let Some((start, length)) = inner.segments.last().copied() else { return };
        if before.is_some_and(|(known, _)| known == start) {
            let kept = before.map_or(0, |(_, length)| length);
            self.budget.give(length - kept);
            let file = OpenOptions::new().write(true).open(self.path(start));
            // What cannot be cut off is written over, or found too long and cut at the next opening.
            let _ = file.and_then(|file| file.set_len(kept));
            if let Some((_, length)) = inner.segments.last_mut() {
                *length = kept;
            }
        } else {
            self.budget.give(length);
            inner.segments.pop();
            let _ = std::fs::remove_file(self.path(start));
        }
    }

    fn lose(&self, inner: &mut Inner, bytes: u64, reason: GapReason, durable: bool) {
        let from = inner.end;
        inner.end += bytes.max(1);
        let hole = Hole { from, to: inner.end, reason };
        let mut kept = inner.gaps.push(hole);
        if durable && kept.is_ok() {
            kept = inner.gaps.sync();
        }
        if let Err(error) = kept {
            tracing::error!(dir = %self.dir.display(), %error, "a gap is not on disk");
        }
    }

    /// Records that `bytes` bytes of the source are lost (at least one: a hole must be visible).
    pub fn skip(&self, bytes: u64, reason: GapReason) {
        let mut inner = self.lock();
        if !inner.complete {
            self.lose(&mut inner, bytes, reason, false);
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// Takes the stream to `offset`, from where its source will be read again. What should be before
    /// it and is not was lost with the machine's memory.
    pub fn rewind(&self, offset: u64) -> Result<(), SpoolError> {
        let mut inner = self.lock();
        if inner.complete {
            return Ok(());
        }
        inner.file = None;
        if offset > inner.end {
            let lost = offset - inner.end;
            self.lose(&mut inner, lost, GapReason::MachineCrashed, false);
            return Ok(());
        }
        while let Some((start, length)) = inner.segments.last().copied() {
            if start >= offset {
                std::fs::remove_file(self.path(start))?;
                inner.segments.pop();
                self.budget.give(length);
                continue;
            }
            if start + length > offset {
                let file = OpenOptions::new().write(true).open(self.path(start))?;
                file.set_len(offset - start)?;
                inner.segments.pop();
                inner.segments.push((start, offset - start));
                self.budget.give(start + length - offset);
            }
            break;
        }
        inner.gaps.rewind(offset)?;
        inner.end = offset;
        Ok(())
    }

    /// Marks the stream as complete, with all of it on disk.
    pub fn complete(&self) -> Result<(), SpoolError> {
        let mut inner = self.lock();
        if !inner.complete {
            if let Some(file) = inner.file.take() {
                file.sync_data()?;
            }
            inner.gaps.sync()?;
            File::create(self.dir.join(COMPLETE_FILE))?;
            inner.complete = true;
        }
        drop(inner);
        self.changed.notify_one();
        Ok(())
    }

    /// Keeps where the reader of the source stands. Never half written, and needs no space.
    pub fn save_position(&self, position: &str) -> Result<(), SpoolError> {
        Ok(self.position.set(position)?)
    }

    /// What [`Self::save_position`] kept.
    pub fn position(&self) -> Option<String> {
        self.position.get()
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.budget.give(self.stored());
    }
}

fn segment_start(name: &str) -> Option<u64> {
    (name.len() == 20).then(|| name.parse().ok()).flatten()
}
