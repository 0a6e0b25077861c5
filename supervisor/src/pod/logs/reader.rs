//! Reads a container's log across rotations: the files wait in a queue, all of them open, and are
//! read to their ends one after the other.

use std::{collections::VecDeque, io, sync::Arc, time::Instant};

use serde::{Deserialize, Serialize};

use super::{
    QUIET, READ_BYTES,
    folder::{Entry, Folder},
    source::{Got, Source},
};
use crate::streams::{
    AttemptStreams,
    gaps::GapReason,
    spool::{Spool, SpoolError},
};

/// Bytes of one burst, between two looks at the folder: far below the size at which a kubelet rotates,
/// so that every file is seen and opened while it is there.
const BURST_BYTES: usize = 1024 * 1024;
/// Files that wait open: three times what a kubelet keeps, and a bound for what their removal frees
/// late.
const QUEUE_MAX: usize = 16;
/// How often a file must be missing before it counts as gone: a listing beside a rename may lack it.
const MISSES_MAX: u32 = 3;

/// Where reading stands: always the end of a whole record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Position {
    /// The file; 0 stands for the oldest that is there.
    inode: u64,
    /// First bytes of the file in hex, as far as they were read.
    head: String,
    /// Offset in it.
    offset: u64,
    /// How long it was.
    seen: u64,
    /// Offset in the decoded stream.
    decoded: u64,
}

/// What waits to be read.
enum Next {
    File(Box<Source>),
    /// Files that are gone unread.
    Lost {
        bytes: u64,
        reason: GapReason,
    },
}

/// What a burst came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Burst {
    /// There may be more at once.
    More,
    /// Nothing to read now.
    Idle,
}

/// The reader of one container's log.
pub(super) struct Reader {
    folder: Folder,
    streams: Arc<AttemptStreams>,
    queue: VecDeque<Next>,
    /// Since when the first file gives nothing while another waits behind it.
    settling: Option<Instant>,
    misses: u32,
    buffer: Vec<u8>,
    decoded: Vec<u8>,
    /// Whether the last append was lost; said once.
    losing: bool,
}

impl Reader {
    /// Takes reading up where the spool's position says; what was spooled behind it is read again.
    pub(super) fn resume(folder: Folder, streams: Arc<AttemptStreams>) -> Result<Self, SpoolError> {
        let spool = &streams.log;
        let saved = spool.position().and_then(|text| serde_json::from_str::<Position>(&text).ok());
        let position = saved.unwrap_or_default();
        spool.rewind(position.decoded)?;
        let mut reader = Self {
            folder,
            streams,
            queue: VecDeque::new(),
            settling: None,
            misses: 0,
            buffer: vec![0; READ_BYTES],
            decoded: Vec::with_capacity(READ_BYTES),
            losing: false,
        };
        if position.inode != 0 {
            let first = reader.find(&position)?;
            reader.queue.push_back(first);
        }
        Ok(reader)
    }

    /// The file of a position, by inode and content, in whatever form it is now.
    fn find(&self, position: &Position) -> Result<Next, SpoolError> {
        let head = from_hex(&position.head);
        let unread = position.seen.saturating_sub(position.offset);
        let mut reason = None;
        for _ in 0..MISSES_MAX {
            let entries = self.folder.list()?;
            let by_inode = |entry: &&Entry| entry.inode == position.inode;
            // An inode is given again once its file was compressed, so the content decides.
            let packed = entries.iter().filter(|entry| entry.gzip && !head.is_empty());
            for entry in entries.iter().filter(by_inode).chain(packed) {
                if let Ok(Some(source)) = self.open(entry)
                    && let Some(source) = source.go_on(&head, position.offset)?
                {
                    return Ok(Next::File(Box::new(source)));
                }
            }
            // The live file with something else in it was cut while nobody read, as far as can be told.
            let cut = entries.last().is_some_and(|live| live.inode == position.inode);
            reason = cut.then_some(GapReason::Truncated);
        }
        Ok(reason.map_or_else(|| lost(unread), |reason| Next::Lost { bytes: unread, reason }))
    }

    /// Opens a listed file; none when it is not there any more. What is not a log file is passed over.
    fn open(&self, entry: &Entry) -> io::Result<Option<Source>> {
        match self.folder.open_file(entry)? {
            Some(file) => Source::new(file, entry.gzip).map(Some),
            None => Ok(None),
        }
    }

    /// Reads at most [`BURST_BYTES`].
    pub(super) fn burst(&mut self, now: Instant) -> Result<Burst, SpoolError> {
        self.look()?;
        let mut left = BURST_BYTES;
        while left > 0 {
            let behind = self.queue.len().saturating_sub(1);
            let Some(first) = self.queue.front_mut() else { return Ok(Burst::Idle) };
            let source = match first {
                Next::File(source) => source,
                Next::Lost { bytes, reason } => {
                    let (bytes, reason) = (*bytes, *reason);
                    self.lose(bytes, reason);
                    self.leave_first()?;
                    continue;
                }
            };
            match source.read(&mut self.buffer)? {
                Got::Bytes(count) => {
                    self.settling = None;
                    self.take(count)?;
                    left = left.saturating_sub(count);
                }
                Got::Restarted { lost } => {
                    self.lose(lost, GapReason::Truncated);
                    self.save()?;
                }
                Got::Damaged => {
                    self.lose(1, GapReason::Damaged);
                    self.leave_first()?;
                }
                Got::End if behind == 0 => return Ok(Burst::Idle),
                Got::End => {
                    // The runtime may write to a file for a moment after it has opened the next. A
                    // file with two behind it was left long ago.
                    let since = *self.settling.get_or_insert(now);
                    if behind < 2 && now.saturating_duration_since(since) < QUIET {
                        return Ok(Burst::Idle);
                    }
                    self.leave_first()?;
                }
            }
        }
        Ok(Burst::More)
    }

    /// Decodes and keeps the first `count` bytes of the buffer.
    fn take(&mut self, count: usize) -> Result<(), SpoolError> {
        let spool = &self.streams.log;
        let Some(Next::File(source)) = self.queue.front_mut() else { return Ok(()) };
        self.decoded.clear();
        let before = source.offset - count as u64;
        let start = spool.extent().end;
        let (whole_input, whole_output) =
            source.decoder.decode(&self.buffer[..count], &mut self.decoded);
        let kept = spool.append(&self.decoded);
        if let Err(error) = &kept
            && !self.losing
        {
            tracing::warn!(%error, run = self.streams.run.name, "log bytes become gaps");
        }
        self.losing = kept.is_err();
        if whole_input > 0 {
            let offset = before + whole_input as u64;
            save(spool, source, offset, start + whole_output as u64)?;
        }
        Ok(())
    }

    fn lose(&self, bytes: u64, reason: GapReason) {
        tracing::warn!(
            run = self.streams.run.name,
            bytes,
            reason = reason.as_str(),
            "log bytes are lost"
        );
        self.streams.log.skip(bytes, reason);
    }

    /// Goes on with what waits behind the first.
    fn leave_first(&mut self) -> Result<(), SpoolError> {
        self.queue.pop_front();
        self.settling = None;
        self.save()
    }

    /// Keeps the position at the beginning of the first file.
    fn save(&self) -> Result<(), SpoolError> {
        let spool = &self.streams.log;
        let end = spool.extent().end;
        match self.queue.front() {
            Some(Next::File(source)) => save(spool, source, source.offset, end),
            // Nothing is known of what comes, so the oldest is next.
            _ => put(spool, &Position { decoded: end, ..Position::default() }),
        }
    }

    /// Opens the files that have come since the last look.
    fn look(&mut self) -> Result<(), SpoolError> {
        if self.queue.len() >= QUEUE_MAX {
            return Ok(());
        }
        let entries = self.folder.list()?;
        let Some(start) = self.start_of_news(&entries)? else { return Ok(()) };
        for entry in entries.get(start..).unwrap_or_default() {
            if self.queue.len() >= QUEUE_MAX {
                break;
            }
            match self.open(entry) {
                Ok(Some(source)) => self.queue.push_back(Next::File(Box::new(source))),
                // Renamed in this moment; the next look finds it.
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, run = self.streams.run.name, "a log file is passed over");
                }
            }
        }
        Ok(())
    }

    /// Index of the first entry behind those in the queue; none when that cannot be told yet.
    fn start_of_news(&mut self, entries: &[Entry]) -> Result<Option<usize>, SpoolError> {
        let newest = match self.queue.back_mut() {
            Some(Next::File(newest)) => newest,
            Some(Next::Lost { .. }) | None => return Ok(Some(0)),
        };
        let known = entries.iter().position(|entry| entry.inode == newest.inode);
        if let Some(at) = known {
            self.misses = 0;
            return Ok(Some(at + 1));
        }
        if entries.is_empty() || newest.is_linked() {
            return Ok(None);
        }
        for (at, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.gzip) {
            let opened = self.folder.open_file(entry);
            if let Ok(Some(file)) = opened
                && newest.is_same_log(Source::new(file, true)?)
            {
                self.misses = 0;
                return Ok(Some(at + 1));
            }
        }
        self.misses += 1;
        if self.misses < MISSES_MAX {
            return Ok(None);
        }
        // All that was read is whole, for the file is still open; but what came behind it is gone, if
        // there was anything.
        self.misses = 0;
        self.queue.push_back(lost(0));
        Ok(Some(0))
    }
}

fn lost(seen_unread: u64) -> Next {
    let reason = if seen_unread > 0 { GapReason::RotatedUnread } else { GapReason::RotatedUnseen };
    Next::Lost { bytes: seen_unread, reason }
}

fn save(spool: &Spool, source: &Source, offset: u64, decoded: u64) -> Result<(), SpoolError> {
    // A head is no longer than what was read of whole records, or it may still change.
    let known = usize::try_from(offset).unwrap_or(usize::MAX).min(source.head.len());
    let head = to_hex(&source.head[..known]);
    put(spool, &Position { inode: source.inode, head, offset, seen: source.seen, decoded })
}

fn put(spool: &Spool, position: &Position) -> Result<(), SpoolError> {
    spool.save_position(&serde_json::to_string(position).map_err(SpoolError::Serialise)?)
}

fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits.map_while(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
