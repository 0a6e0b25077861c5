//! One append-only byte stream on disk. Segments are files named by the offset of their first byte,
//! so a hole between two segments *is* the record of lost bytes, and dropping the oldest segment is
//! all it takes to bound the whole.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use bytes::Bytes;
use tokio::sync::Notify;

/// Size at which a new segment begins.
const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;
/// Most bytes of one stream on the node; beyond, its oldest segments go.
const SPOOL_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Marks a stream that will not grow any more.
const COMPLETE_FILE: &str = "complete";
/// Where the reader of the stream's source stands.
const POSITION_FILE: &str = "position";

/// A spool could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// A file could not be read or written.
    #[error("could not use a stream's files")]
    Io(#[from] io::Error),
    /// A record did not serialise.
    #[error("could not serialise a stream's record")]
    Serialise(#[source] serde_json::Error),
}

/// What stands at an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes.
    Data(Bytes),
    /// Nothing up to this offset: lost for good.
    Gap {
        /// Offset of the next byte that exists.
        to: u64,
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
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Start and length, in order.
    segments: Vec<(u64, u64)>,
    /// The last segment, open for writing.
    file: Option<File>,
    /// Offset behind the last byte, lost ones included.
    end: u64,
    complete: bool,
}

impl Spool {
    /// Opens (or makes) the stream in `dir`; `changed` is notified of every change.
    pub fn open(dir: &Path, changed: Arc<Notify>) -> Result<Self, SpoolError> {
        std::fs::create_dir_all(dir)?;
        let mut segments = Vec::new();
        for entry in std::fs::read_dir(dir)?.flatten() {
            if let Some(start) = entry.file_name().to_str().and_then(segment_start) {
                segments.push((start, entry.metadata()?.len()));
            }
        }
        segments.sort_unstable();
        let end = segments.last().map_or(0, |(start, length)| start + length);
        let complete = dir.join(COMPLETE_FILE).exists();
        let inner = Inner { segments, file: None, end, complete };
        Ok(Self { dir: dir.to_owned(), inner: Mutex::new(inner), changed })
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
        self.lock().segments.iter().map(|(_, length)| length).sum()
    }

    /// When it was last written; none if that cannot be found out.
    pub fn modified(&self) -> Option<SystemTime> {
        let last = self.lock().segments.last().map(|(start, _)| self.path(*start));
        let path = last.unwrap_or_else(|| self.dir.clone());
        std::fs::metadata(path).and_then(|data| data.modified()).ok()
    }

    /// Appends bytes. When they cannot be stored they become a gap: offsets stay true.
    pub fn append(&self, bytes: &[u8]) -> Result<(), SpoolError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut inner = self.lock();
        if inner.complete {
            return Ok(());
        }
        let stored = self.store(&mut inner, bytes);
        if stored.is_err() {
            // Whatever part of it reached the file is not counted on.
            if let Some((start, length)) = inner.segments.last().copied() {
                let file = OpenOptions::new().write(true).open(self.path(start));
                let _ = file.and_then(|file| file.set_len(length));
            }
            inner.file = None;
        }
        inner.end += bytes.len() as u64;
        drop(inner);
        self.changed.notify_one();
        stored
    }

    fn store(&self, inner: &mut Inner, bytes: &[u8]) -> Result<(), SpoolError> {
        let end = inner.end;
        let fits = inner
            .segments
            .last()
            .is_some_and(|(start, length)| start + length == end && *length < SEGMENT_BYTES);
        let start = match inner.segments.last() {
            Some((start, _)) if fits => *start,
            _ => {
                inner.file = None;
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
        if let Some((_, length)) = inner.segments.last_mut() {
            *length += bytes.len() as u64;
        }
        self.bound(inner)
    }

    /// Drops the oldest segments of a stream that is too long.
    fn bound(&self, inner: &mut Inner) -> Result<(), SpoolError> {
        let mut stored: u64 = inner.segments.iter().map(|(_, length)| length).sum();
        while stored > SPOOL_BYTES_MAX && inner.segments.len() > 1 {
            let (start, length) = inner.segments.remove(0);
            std::fs::remove_file(self.path(start))?;
            stored -= length;
        }
        Ok(())
    }

    /// Records that `bytes` bytes of the source are lost (at least one: a hole must be visible).
    pub fn skip(&self, bytes: u64) {
        let mut inner = self.lock();
        if !inner.complete {
            inner.end += bytes.max(1);
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// Takes the stream back to `offset`, from where its source will be read again.
    pub fn rewind(&self, offset: u64) -> Result<(), SpoolError> {
        let mut inner = self.lock();
        if inner.complete || offset >= inner.end {
            return Ok(());
        }
        inner.file = None;
        while let Some((start, length)) = inner.segments.last().copied() {
            if start >= offset {
                std::fs::remove_file(self.path(start))?;
                inner.segments.pop();
                continue;
            }
            if start + length > offset {
                let file = OpenOptions::new().write(true).open(self.path(start))?;
                file.set_len(offset - start)?;
                inner.segments.pop();
                inner.segments.push((start, offset - start));
            }
            break;
        }
        inner.end = offset;
        Ok(())
    }

    /// Marks the stream as complete.
    pub fn complete(&self) -> Result<(), SpoolError> {
        let mut inner = self.lock();
        if !inner.complete {
            File::create(self.dir.join(COMPLETE_FILE))?;
            inner.complete = true;
            inner.file = None;
        }
        drop(inner);
        self.changed.notify_one();
        Ok(())
    }

    /// What stands at `offset`, at most `max` bytes of it.
    pub fn read(&self, offset: u64, max: usize) -> Result<Piece, SpoolError> {
        let (found, end, complete) = {
            let inner = self.lock();
            let behind = inner.segments.iter().find(|(start, length)| start + length > offset);
            (behind.copied(), inner.end, inner.complete)
        };
        match found {
            Some((start, _)) if start > offset => Ok(Piece::Gap { to: start }),
            Some((start, length)) => {
                let left = start + length - offset;
                let mut buffer = vec![0; usize::try_from(left).unwrap_or(max).min(max)];
                match File::open(self.path(start)) {
                    Ok(file) => file.read_exact_at(&mut buffer, offset - start)?,
                    // Dropped between the look and the read.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        return Ok(Piece::Gap { to: start + length });
                    }
                    Err(error) => return Err(error.into()),
                }
                Ok(Piece::Data(buffer.into()))
            }
            None if offset < end => Ok(Piece::Gap { to: end }),
            None if complete => Ok(Piece::End),
            None => Ok(Piece::Pending),
        }
    }

    /// Number of newlines in what is stored.
    pub fn count_lines(&self) -> Result<u64, SpoolError> {
        let segments = self.lock().segments.clone();
        let mut lines = 0;
        let mut buffer = vec![0; 64 * 1024];
        for (start, _) in segments {
            let mut file = File::open(self.path(start))?;
            loop {
                let read = file.read(&mut buffer)?;
                if read == 0 {
                    break;
                }
                lines += buffer[..read].split(|byte| *byte == b'\n').count() as u64 - 1;
            }
        }
        Ok(lines)
    }

    /// Keeps where the reader of the source stands. Replaced as a whole, so never half written.
    pub fn save_position(&self, position: &str) -> Result<(), SpoolError> {
        let next = self.dir.join("position.next");
        std::fs::write(&next, position)?;
        std::fs::rename(next, self.dir.join(POSITION_FILE))?;
        Ok(())
    }

    /// What [`Self::save_position`] kept.
    pub fn position(&self) -> Option<String> {
        std::fs::read_to_string(self.dir.join(POSITION_FILE)).ok()
    }
}

fn segment_start(name: &str) -> Option<u64> {
    (name.len() == 20).then(|| name.parse().ok()).flatten()
}
