//! Reads a container's log across rotations: the files wait in a queue, all of them open, and are
//! read to their ends one after the other.

use std::{collections::VecDeque, io, sync::Arc, time::Instant};

use serde::{Deserialize, Serialize};

use super::{
    QUIET, READ_BYTES,
    folder::{Entry, Folder, Order},
    held::{Held, Place},
    left::Left,
    source::{Got, Source},
};
use crate::streams::{
    AttemptStreams, LogEnd,
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
/// The same for a rotated file that cannot be opened.
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
    /// The file before it: all up to there has been read, whatever becomes of the inode.
    behind: Option<Order>,
}

/// What waits to be read.
enum Next {
    File(Box<Source>),
    /// Files that are gone unread.
    Lost {
        bytes: u64,
        reason: GapReason,
        /// What comes next is younger than this.
        behind: Option<Order>,
    },
}

/// What a burst came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Burst {
    /// There may be more at once.
    More,
    /// Nothing to read now.
    Idle,
    /// Nothing to read now, but it is known that more is to come: a file waits for the one before it
    /// to be quiet, or a listing has not told yet what follows.
    Settling,
}

/// The reader of one container's log.
pub(super) struct Reader {
    folder: Folder,
    streams: Arc<AttemptStreams>,
    queue: VecDeque<Next>,
    /// Since when the first file gives nothing while another waits behind it.
    settling: Option<Instant>,
    misses: u32,
    /// How often the next file could not be opened.
    failures: u32,
    /// Whether the last look could not tell what follows.
    unsure: bool,
    left: Left,
    buffer: Vec<u8>,
    held: Held,
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
            failures: 0,
            unsure: false,
            left: Left::default(),
            buffer: vec![0; READ_BYTES],
            held: Held::default(),
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
        let mut cut = false;
        for _ in 0..MISSES_MAX {
            let entries = self.folder.list()?;
            let by_inode = |entry: &&Entry| entry.inode == position.inode;
            // An inode is given again once its file was compressed, so the content decides.
            let packed = entries.iter().filter(|entry| entry.gzip && !head.is_empty());
            // Of a file that nothing was read of, only its place is known.
            let place =
                entries.iter().position(|entry| Some(&entry.order) == position.behind.as_ref());
            let next = place.filter(|_| head.is_empty()).and_then(|at| entries.get(at + 1));
            for entry in next.into_iter().chain(entries.iter().filter(by_inode)).chain(packed) {
                if let Ok(Some(source)) = self.open(entry)
                    && let Some(source) = source.go_on(&head, position.offset)?
                {
                    return Ok(Next::File(Box::new(source.following(position.behind.clone()))));
                }
            }
            // The live file with something else in it was cut while nobody read, as far as can be told.
            cut = entries.last().is_some_and(|live| live.inode == position.inode);
        }
        let bytes = position.seen.saturating_sub(position.offset);
        let reason = if cut { GapReason::Truncated } else { unread(bytes) };
        Ok(Next::Lost { bytes, reason, behind: position.behind.clone() })
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
        self.count_late(now)?;
        let idle = if self.unsure { Burst::Settling } else { Burst::Idle };
        let mut left = BURST_BYTES;
        while left > 0 {
            let behind = self.queue.len().saturating_sub(1);
            let Some(first) = self.queue.front_mut() else { return Ok(idle) };
            let source = match first {
                Next::File(source) => source,
                Next::Lost { bytes, reason, .. } => {
                    let (bytes, reason) = (*bytes, *reason);
                    self.lose(bytes, reason);
                    self.leave_first(now)?;
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
                    self.leave_first(now)?;
                }
                Got::End if behind == 0 => return Ok(idle),
                Got::End => {
                    // The runtime may write to a file for a moment after it has opened the next. A
                    // file with two behind it was left long ago.
                    let since = *self.settling.get_or_insert(now);
                    if behind < 2 && now.saturating_duration_since(since) < QUIET {
                        return Ok(Burst::Settling);
                    }
                    self.leave_first(now)?;
                }
            }
        }
        Ok(Burst::More)
    }

    /// Bytes that came into files that were left are a gap, kept where a record ends: the position is
    /// never within one.
    fn count_late(&mut self, now: Instant) -> Result<(), SpoolError> {
        let between_records = match self.queue.front() {
            Some(Next::File(source)) => source.decoder.at_record_start(),
            Some(Next::Lost { .. }) | None => true,
        };
        if !between_records {
            return Ok(());
        }
        let late = self.left.late(&mut self.buffer, now)?;
        if late > 0 {
            self.lose(late, GapReason::WrittenLate);
            self.save()?;
        }
        Ok(())
    }

    /// Where the container's output has been read to.
    pub(super) fn reached(&self) -> u64 {
        self.streams.log.extent().end + self.held.bytes.len() as u64
    }

    /// What cannot be told by listing any more is a gap, and so is what never came into a file: for the
    /// end, when nobody will look again.
    pub(super) fn give_up(&mut self, now: Instant, end: LogEnd) -> Result<(), SpoolError> {
        self.release();
        if self.unsure {
            self.lose(0, GapReason::RotatedUnseen);
        }
        while let Some(first) = self.queue.pop_front() {
            let (bytes, reason) = match first {
                Next::File(source) => {
                    (source.seen.saturating_sub(source.offset), GapReason::RotatedUnread)
                }
                Next::Lost { bytes, reason, .. } => (bytes.max(1), reason),
            };
            if bytes > 0 {
                self.lose(bytes, reason);
            }
        }
        self.count_late(now)?;
        let not_copied = match end.printed {
            Some(bytes) => bytes.saturating_sub(self.reached()),
            None => u64::from(!end.recorded),
        };
        if not_copied > 0 {
            self.lose(not_copied, GapReason::NotCopied);
        }
        Ok(())
    }

    /// Decodes and keeps the first `count` bytes of the buffer.
    fn take(&mut self, count: usize) -> Result<(), SpoolError> {
        let mut at = 0;
        while at < count {
            let Some(Next::File(source)) = self.queue.front_mut() else { return Ok(()) };
            let before = source.offset - (count - at) as u64;
            let start = self.streams.log.extent().end;
            let done = source.decoder.decode(&self.buffer[at..count], &mut self.held.bytes);
            at += done.taken;
            let place =
                Place { offset: before + done.whole as u64, decoded: start + done.output as u64 };
            let reached = match done.omitted {
                None => {
                    let place = (done.whole > 0).then_some(place);
                    let secrets = self.streams.secrets();
                    let (decided, reached) = self.held.settle(&secrets, start, place);
                    self.spool(decided);
                    reached
                }
                Some(omitted) => {
                    self.release();
                    self.streams.log.skip(omitted.bytes, GapReason::OutputDropped);
                    Some(Place { decoded: place.decoded + omitted.bytes, ..place })
                }
            };
            if let (Some(Next::File(source)), Some(place)) = (self.queue.front(), reached) {
                save(&self.streams.log, source, place)?;
            }
        }
        Ok(())
    }

    /// Puts the first `count` bytes that are held into the spool. They are masked byte for byte, so that
    /// offsets stay those of the container's output.
    fn spool(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        let kept = self.streams.log.append(&self.held.bytes[..count]);
        self.held.spooled(count);
        if let Err(error) = &kept
            && !self.losing
        {
            tracing::warn!(%error, run = self.streams.run.name, "log bytes become gaps");
        }
        self.losing = kept.is_err();
    }

    /// Puts all that is held into the spool: what comes next does not go on with it.
    fn release(&mut self) {
        self.held.settle_all(&self.streams.secrets());
        self.spool(self.held.bytes.len());
    }

    fn lose(&mut self, bytes: u64, reason: GapReason) {
        self.release();
        tracing::warn!(
            run = self.streams.run.name,
            bytes,
            reason = reason.as_str(),
            "log bytes are lost"
        );
        self.streams.log.skip(bytes, reason);
    }

    /// Goes on with what waits behind the first.
    fn leave_first(&mut self, now: Instant) -> Result<(), SpoolError> {
        if let Some(Next::File(source)) = self.queue.pop_front() {
            self.left.add(source, now);
        }
        self.settling = None;
        self.held.leave_file();
        if !self.held.bytes.is_empty() {
            // A line that goes on in the next file: its first place there will do.
            return Ok(());
        }
        self.save()
    }

    /// Keeps the position at the beginning of the first file.
    fn save(&self) -> Result<(), SpoolError> {
        let spool = &self.streams.log;
        let end = spool.extent().end;
        match self.queue.front() {
            Some(Next::File(source)) => {
                save(spool, source, Place { offset: source.offset, decoded: end })
            }
            // Nothing is known of what comes, so the oldest is next.
            Some(Next::Lost { .. }) | None => {
                put(spool, &Position { decoded: end, ..Position::default() })
            }
        }
    }

    /// Opens the files that have come since the last look.
    fn look(&mut self) -> Result<(), SpoolError> {
        self.unsure = false;
        if self.queue.len() >= QUEUE_MAX {
            return Ok(());
        }
        let entries = self.folder.list()?;
        let Some(start) = self.start_of_news(&entries)? else {
            self.unsure = !entries.is_empty();
            return Ok(());
        };
        let news = entries.get(start..).unwrap_or_default();
        // A listing beside two rotations may lack the file between them, and it would never be read.
        if !news.is_empty() && !self.folder.is_settled(&entries)? {
            self.unsure = true;
            return Ok(());
        }
        for (at, entry) in news.iter().enumerate() {
            if self.queue.len() >= QUEUE_MAX {
                break;
            }
            let behind = (start + at).checked_sub(1).map(|before| entries[before].order.clone());
            match self.open(entry) {
                Ok(Some(source)) => {
                    self.failures = 0;
                    self.queue.push_back(Next::File(Box::new(source.following(behind))));
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    tracing::warn!(%error, run = self.streams.run.name, "a file is passed over");
                }
                // Renamed in this moment, or no descriptor is free; the next look finds it.
                Ok(None) => {
                    self.unsure = true;
                    break;
                }
                Err(error) => {
                    self.could_not_open(entry, &error);
                    break;
                }
            }
        }
        Ok(())
    }

    /// A rotated file that stays closed to us is a gap; the live one is tried for as long as it is
    /// the live one.
    fn could_not_open(&mut self, entry: &Entry, error: &io::Error) {
        self.unsure = true;
        self.failures += 1;
        if self.failures >= MISSES_MAX && !entry.order.is_live() {
            tracing::warn!(%error, run = self.streams.run.name, "a log file cannot be opened");
            self.failures = 0;
            let behind = Some(entry.order.clone());
            self.queue.push_back(Next::Lost { bytes: 0, reason: GapReason::RotatedUnseen, behind });
        }
    }

    /// Index of the first entry behind those in the queue; none when that cannot be told yet.
    fn start_of_news(&mut self, entries: &[Entry]) -> Result<Option<usize>, SpoolError> {
        let newest = match self.queue.back_mut() {
            Some(Next::File(newest)) => newest,
            Some(Next::Lost { behind, .. }) => {
                let behind = behind.as_ref();
                return Ok(Some(entries.partition_point(|entry| Some(&entry.order) <= behind)));
            }
            None => return Ok(Some(0)),
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
        let (reason, behind) = (GapReason::RotatedUnseen, newest.behind.clone());
        let start = entries.partition_point(|entry| Some(&entry.order) <= behind.as_ref());
        self.queue.push_back(Next::Lost { bytes: 0, reason, behind });
        Ok(Some(start))
    }
}

fn unread(seen: u64) -> GapReason {
    if seen > 0 { GapReason::RotatedUnread } else { GapReason::RotatedUnseen }
}

fn save(spool: &Spool, source: &Source, place: Place) -> Result<(), SpoolError> {
    let Place { offset, decoded } = place;
    // A head is no longer than what was read of whole records, or it may still change.
    let known = usize::try_from(offset).unwrap_or(usize::MAX).min(source.head.len());
    let head = to_hex(&source.head[..known]);
    let (inode, seen, behind) = (source.inode, source.seen, source.behind.clone());
    put(spool, &Position { inode, head, offset, seen, decoded, behind })
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
