//! The holes of one stream, with their reasons, in a file that is laid out in full when the stream is
//! made: a hole can be recorded when the disk has no byte left, which is when most of them come.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use crate::room::allocate;

/// Why bytes of a stream are lost for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    /// Log files went before they were read, and nothing is known of their size; counts one byte.
    RotatedUnseen,
    /// A log file went before it was read to the end. Counts what was seen of it and not read: bytes
    /// of the runtime's file, so record headers included, and no more than was seen.
    RotatedUnread,
    /// A log file was cut or written over in place. Counts what was seen of it and not read.
    Truncated,
    /// A compressed log file cannot be unpacked; its rest counts one byte.
    Damaged,
    /// The node's disk did not take the bytes; exact.
    DiskFailed,
    /// No room within the bound of this stream or of all; exact.
    SpoolFull,
    /// The machine crashed before the bytes were on disk; exact.
    MachineCrashed,
    /// A file of the stream is missing, nobody knows why; exact.
    Missing,
    /// The runtime wrote to a log file after it had been left for the next one; exact, and told where
    /// the bytes were found instead of where they belong.
    WrittenLate,
    /// agent-runner dropped output, for nobody took it from the container; exact.
    OutputDropped,
    /// The container ended before its runtime had copied all of its output; exact where the runner said how much
    /// it had printed. Else one byte, where nobody told within a limit that all was copied.
    NotCopied,
}

impl GapReason {
    /// All of them, in the order of their codes on disk.
    pub const ALL: [Self; 11] = [
        Self::RotatedUnseen,
        Self::RotatedUnread,
        Self::Truncated,
        Self::Damaged,
        Self::DiskFailed,
        Self::SpoolFull,
        Self::MachineCrashed,
        Self::Missing,
        Self::WrittenLate,
        Self::OutputDropped,
        Self::NotCopied,
    ];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RotatedUnseen => "RotatedUnseen",
            Self::RotatedUnread => "RotatedUnread",
            Self::Truncated => "Truncated",
            Self::Damaged => "Damaged",
            Self::DiskFailed => "DiskFailed",
            Self::SpoolFull => "SpoolFull",
            Self::MachineCrashed => "MachineCrashed",
            Self::Missing => "Missing",
            Self::WrittenLate => "WrittenLate",
            Self::OutputDropped => "OutputDropped",
            Self::NotCopied => "NotCopied",
        }
    }

    fn code(self) -> u64 {
        // Zero is what a slot that was never written holds.
        1 + Self::ALL.iter().position(|reason| *reason == self).unwrap_or_default() as u64
    }

    fn of_code(code: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(code).ok()?.checked_sub(1)?).copied()
    }
}

/// Bytes `from..to` are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    /// First lost byte.
    pub from: u64,
    /// Behind the last lost byte.
    pub to: u64,
    /// Why.
    pub reason: GapReason,
}

/// Holes of one stream; with the last slot taken, everything that still comes is one hole.
const HOLES_MAX: usize = 256;
/// Three numbers and their check.
const SLOT_BYTES: usize = 32;

/// The table, in memory and on disk.
#[derive(Debug)]
pub(super) struct Gaps {
    holes: Vec<Hole>,
    file: File,
}

impl Gaps {
    /// Opens or lays out the table at `path`. A slot that does not add up ends it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = open_preallocated(path, HOLES_MAX * SLOT_BYTES)?;
        let mut bytes = Vec::with_capacity(HOLES_MAX * SLOT_BYTES);
        (&file).take((HOLES_MAX * SLOT_BYTES) as u64).read_to_end(&mut bytes)?;
        let holes = bytes.chunks_exact(SLOT_BYTES).map_while(decode).collect();
        Ok(Self { holes, file })
    }

    /// Whether one more hole has no slot.
    pub(super) fn is_full(&self) -> bool {
        self.holes.len() >= HOLES_MAX
    }

    /// Behind the last hole.
    pub(super) fn end(&self) -> u64 {
        self.holes.last().map_or(0, |hole| hole.to)
    }

    /// Where the first hole behind `offset` begins.
    pub(super) fn first_behind(&self, offset: u64) -> Option<u64> {
        self.holes.iter().map(|hole| hole.from).find(|from| *from > offset)
    }

    /// The hole at `offset`.
    pub(super) fn at(&self, offset: u64) -> Option<Hole> {
        self.holes.iter().copied().find(|hole| (hole.from..hole.to).contains(&offset))
    }

    /// Adds a hole behind all others; one that touches the last for the same reason (or for want of
    /// a slot) makes it longer. It counts in memory even where the disk refuses it.
    pub(super) fn push(&mut self, hole: Hole) -> io::Result<()> {
        let full = self.is_full();
        match self.holes.last_mut() {
            Some(last) if last.to == hole.from && (full || last.reason == hole.reason) => {
                last.to = hole.to;
            }
            _ => self.holes.push(hole),
        }
        self.store(self.holes.len() - 1)
    }

    /// Forgets what lies at or behind `offset`.
    pub(super) fn rewind(&mut self, offset: u64) -> io::Result<()> {
        while let Some(last) = self.holes.last_mut().filter(|hole| hole.to > offset) {
            let at = if last.from < offset {
                last.to = offset;
                self.holes.len() - 1
            } else {
                self.holes.pop();
                self.holes.len()
            };
            self.store(at)?;
        }
        Ok(())
    }

    fn store(&self, at: usize) -> io::Result<()> {
        let slot = self.holes.get(at).map_or([0; SLOT_BYTES], encode);
        self.file.write_all_at(&slot, (at * SLOT_BYTES) as u64)
    }

    /// Puts the table on disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn encode(hole: &Hole) -> [u8; SLOT_BYTES] {
    let code = hole.reason.code();
    let numbers = [hole.from, hole.to, code, check(hole.from, hole.to, code)];
    let mut slot = [0; SLOT_BYTES];
    for (into, number) in slot.chunks_exact_mut(8).zip(numbers) {
        into.copy_from_slice(&number.to_le_bytes());
    }
    slot
}

fn decode(slot: &[u8]) -> Option<Hole> {
    let mut numbers = slot.chunks_exact(8).filter_map(|bytes| bytes.try_into().ok());
    let mut next = || numbers.next().map(u64::from_le_bytes);
    let (from, to, code, sum) = (next()?, next()?, next()?, next()?);
    let reason = GapReason::of_code(code)?;
    (from < to && sum == check(from, to, code)).then_some(Hole { from, to, reason })
}

/// Tells a whole slot from a torn one.
fn check(from: u64, to: u64, code: u64) -> u64 {
    from.rotate_left(17) ^ to.rotate_left(31) ^ !code
}

/// Opens the file at `path`, made with all its `bytes` allocated if it is not there, so that writing
/// over it needs no space. Nothing is waited for where the file system can allocate: a step's pod is
/// made behind this. A crash of the machine may undo it; then it is laid out again.
pub(super) fn open_preallocated(path: &Path, bytes: usize) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).read(true).write(true).truncate(false).mode(0o600);
    let mut file = options.open(path)?;
    if file.metadata()?.len() < bytes as u64 {
        allocate(&mut file, bytes as u64)?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hole(from: u64, to: u64, reason: GapReason) -> Hole {
        Hole { from, to, reason }
    }

    #[test]
    fn holes_survive_reopening_and_touching_ones_are_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gaps");
        let mut gaps = Gaps::open(&path).unwrap();
        gaps.push(hole(5, 7, GapReason::DiskFailed)).unwrap();
        gaps.push(hole(7, 9, GapReason::DiskFailed)).unwrap();
        gaps.push(hole(9, 10, GapReason::SpoolFull)).unwrap();
        gaps.push(hole(20, 30, GapReason::Truncated)).unwrap();
        gaps.rewind(25).unwrap();
        let again = Gaps::open(&path).unwrap();
        let expected = [
            hole(5, 9, GapReason::DiskFailed),
            hole(9, 10, GapReason::SpoolFull),
            hole(20, 25, GapReason::Truncated),
        ];
        assert_eq!(again.holes, expected);
        assert_eq!(again.holes, gaps.holes);
    }

    #[test]
    fn a_torn_slot_ends_the_table() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gaps");
        let mut gaps = Gaps::open(&path).unwrap();
        gaps.push(hole(5, 7, GapReason::DiskFailed)).unwrap();
        gaps.push(hole(8, 9, GapReason::DiskFailed)).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[9], SLOT_BYTES as u64 + 3).unwrap();
        assert_eq!(Gaps::open(&path).unwrap().holes, [hole(5, 7, GapReason::DiskFailed)]);
    }

    #[test]
    fn the_table_never_grows_and_the_last_hole_takes_what_has_no_slot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gaps");
        let mut gaps = Gaps::open(&path).unwrap();
        let size = std::fs::metadata(&path).unwrap().len();
        for at in 0..HOLES_MAX as u64 {
            gaps.push(hole(at * 2, at * 2 + 1, GapReason::DiskFailed)).unwrap();
        }
        assert!(gaps.is_full());
        let end = gaps.end();
        gaps.push(hole(end, end + 5, GapReason::SpoolFull)).unwrap();
        let again = Gaps::open(&path).unwrap();
        assert_eq!((again.holes.len(), again.end()), (HOLES_MAX, end + 5));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), size);
    }
}
