//! Reading a stream by lines: one event a line, whole where it can be.

use agent_operator::domain::{limits, stream::Gap};

use crate::streams::{Piece, Position, StoreError, StreamKey, StreamStore};

/// Bytes read at once, and the longest line that stays whole: twice the longest event record, so
/// that a record is never cut.
const READ_BYTES: usize = 2 * limits::EVENT_BYTES_MAX;

/// How far back `tail` looks: enough for thousands of ordinary lines, little enough to read at once.
const TAIL_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Most lines that `tail` gives.
const TAIL_LINES_MAX: usize = 10_000;

/// A line, and where the stream goes on behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) text: String,
    pub(super) partial: bool,
    pub(super) next: u64,
}

/// What a stream has at an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Batch {
    /// Lines, at least one.
    Lines(Vec<Line>),
    /// A hole.
    Gap(Gap),
    /// The beginning of a line, or nothing: wait.
    Waiting,
    /// The end of the stream.
    End,
    /// The store has nothing of this stream.
    Absent,
}

/// Reads on from `offset`. `flush` gives the beginning of a line as well, as partial.
pub(super) fn read(
    store: &StreamStore,
    key: &StreamKey,
    offset: u64,
    flush: bool,
) -> Result<Batch, StoreError> {
    let mut data = match store.read(key, offset, READ_BYTES)? {
        Piece::Data(data) => Vec::from(data),
        Piece::Gap(gap) => return Ok(Batch::Gap(gap)),
        Piece::Waiting => return Ok(Batch::Waiting),
        Piece::End => return Ok(Batch::End),
        Piece::Absent => return Ok(Batch::Absent),
    };
    loop {
        let lines = whole_lines(&data, offset);
        if !lines.is_empty() {
            return Ok(Batch::Lines(lines));
        }
        let next = offset + data.len() as u64;
        if data.len() >= READ_BYTES {
            let cut = whole_characters(&data);
            return Ok(Batch::Lines(vec![line(&data[..cut], true, offset + cut as u64)]));
        }
        match store.read(key, next, READ_BYTES - data.len())? {
            // The store gives no more than a block at once, and a block ends anywhere in a line.
            Piece::Data(more) => data.extend_from_slice(&more),
            // Nothing more belongs to this line.
            Piece::End | Piece::Gap(_) => {
                return Ok(Batch::Lines(vec![line(&data, false, next)]));
            }
            _ if flush => return Ok(Batch::Lines(vec![line(&data, true, next)])),
            _ => return Ok(Batch::Waiting),
        }
    }
}

fn whole_lines(data: &[u8], offset: u64) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut start = 0;
    for (at, _) in data.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
        lines.push(line(&data[start..at], false, offset + at as u64 + 1));
        start = at + 1;
    }
    lines
}

fn line(bytes: &[u8], partial: bool, next: u64) -> Line {
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    Line { text: String::from_utf8_lossy(bytes).into_owned(), partial, next }
}

/// Length of `bytes` without a character that is cut at their end.
fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => error.valid_up_to(),
        _ => bytes.len(),
    }
}

/// Offset from which the last `count` lines of a stream follow, and how many there are.
pub(super) fn tail(
    store: &StreamStore,
    key: &StreamKey,
    count: usize,
) -> Result<(u64, usize), StoreError> {
    let Some(Position { offset: end, .. }) = store.position(key) else { return Ok((0, 0)) };
    let count = count.min(TAIL_LINES_MAX);
    let mut offset = end.saturating_sub(TAIL_BYTES_MAX);
    // Starts of lines, a line that is cut by the window left out.
    let mut starts = std::collections::VecDeque::with_capacity(count + 1);
    let mut at_start = offset == 0;
    while offset < end {
        match store.read(key, offset, READ_BYTES)? {
            Piece::Data(data) => {
                for (at, byte) in data.iter().enumerate() {
                    if at_start {
                        starts.push_back(offset + at as u64);
                        if starts.len() > count {
                            starts.pop_front();
                        }
                    }
                    at_start = *byte == b'\n';
                }
                offset += data.len() as u64;
            }
            Piece::Gap(gap) => {
                offset = gap.to;
                at_start = true;
            }
            Piece::Waiting | Piece::End | Piece::Absent => break,
        }
    }
    let found = starts.len();
    Ok((starts.front().copied().unwrap_or(end), found))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use agent_operator::domain::stream::Channel;

    use super::*;
    use crate::{clock, streams::Limits};

    fn store(data: &[u8]) -> (tempfile::TempDir, StreamStore, StreamKey) {
        store_in_pieces(data, limits::CHUNK_BYTES_MAX)
    }

    fn store_in_pieces(data: &[u8], size: usize) -> (tempfile::TempDir, StreamStore, StreamKey) {
        let root = tempfile::tempdir().unwrap();
        let store = StreamStore::open(root.path(), Limits::default()).unwrap();
        let key = StreamKey { run: "r".into(), channel: Channel::Log };
        for (at, chunk) in data.chunks(size).enumerate() {
            store.append(&key, (at * size) as u64, chunk, clock::instant()).unwrap();
        }
        (root, store, key)
    }

    fn whole(text: &str, next: u64) -> Line {
        Line { text: text.into(), partial: false, next }
    }

    #[test]
    fn whole_lines_come_at_once_and_the_rest_waits_for_its_end() {
        let (_root, store, key) = store(b"a\r\nb\nc");
        let lines = vec![whole("a", 3), whole("b", 5)];
        assert_eq!(read(&store, &key, 0, false).unwrap(), Batch::Lines(lines));
        assert_eq!(read(&store, &key, 5, false).unwrap(), Batch::Waiting);
        let cut = Line { text: "c".into(), partial: true, next: 6 };
        assert_eq!(read(&store, &key, 5, true).unwrap(), Batch::Lines(vec![cut]));
        store.end(&key, 6, clock::instant()).unwrap();
        assert_eq!(read(&store, &key, 5, false).unwrap(), Batch::Lines(vec![whole("c", 6)]));
        assert_eq!(read(&store, &key, 6, false).unwrap(), Batch::End);
    }

    /// The store packs what it has into blocks that end anywhere in a line.
    #[test]
    fn a_line_over_the_end_of_a_block_is_whole_and_never_waited_for_in_vain() {
        let mut text = String::new();
        for row in 0..4000 {
            writeln!(text, "row {row} {:1000}", "x").unwrap();
        }
        // Chunks of a length that no line has: each block ends somewhere else in a line.
        let (_root, store, key) = store_in_pieces(text.as_bytes(), 200_001);
        let (mut offset, mut told) = (0, 0);
        while let Batch::Lines(lines) = read(&store, &key, offset, false).unwrap() {
            for line in lines {
                assert!(!line.partial, "row {told} is cut at {}", line.next);
                assert!(
                    line.text.starts_with(&format!("row {told} ")),
                    "row {told}: {}",
                    line.text
                );
                (offset, told) = (line.next, told + 1);
            }
        }
        assert_eq!((offset, told), (text.len() as u64, 4000));
    }

    #[test]
    fn an_endless_line_is_cut_between_characters() {
        let text = format!("x{}", "ä".repeat(READ_BYTES));
        let (_root, store, key) = store(text.as_bytes());
        let Batch::Lines(lines) = read(&store, &key, 0, false).unwrap() else { panic!() };
        assert!(lines[0].partial && !lines[0].text.contains('\u{fffd}'));
        assert_eq!(lines[0].next, READ_BYTES as u64 - 1);
    }

    #[test]
    fn the_tail_counts_from_the_end() {
        let (_root, store, key) = store(b"one\ntwo\nthree\n");
        for (count, expected) in [(0, (14, 0)), (1, (8, 1)), (2, (4, 2)), (9, (0, 3))] {
            assert_eq!(tail(&store, &key, count).unwrap(), expected, "{count}");
        }
    }
}
