//! Files that were read to their ends and left, watched a while longer. The runtime writes what it
//! holds to the old file after it has opened the new one, and nothing says when it has closed it. What
//! comes after the file was left cannot be put in its place any more: it is counted, to the byte.

use std::{
    collections::VecDeque,
    io,
    time::{Duration, Instant},
};

use super::source::{Got, Source};

/// How long a file is watched: a machine that holds a write up for longer has lost more than that.
const WATCHED: Duration = Duration::from_mins(1);
/// Files that are watched at once; a bound for what their removal frees late.
const FILES_MAX: usize = 8;

/// The files, oldest first.
#[derive(Default)]
pub(super) struct Left {
    files: VecDeque<(Box<Source>, Instant)>,
    decoded: Vec<u8>,
}

impl Left {
    /// Watches a file that was read to its end.
    pub(super) fn add(&mut self, source: Box<Source>, now: Instant) {
        if self.files.len() >= FILES_MAX {
            self.files.pop_front();
        }
        self.files.push_back((source, now));
    }

    /// Bytes of the container that have come into these files since the last look.
    pub(super) fn late(&mut self, buffer: &mut [u8], now: Instant) -> io::Result<u64> {
        let mut late = 0;
        for (source, _) in &mut self.files {
            while let Got::Bytes(count) = source.read(buffer)? {
                let mut rest = &buffer[..count];
                while !rest.is_empty() {
                    self.decoded.clear();
                    let done = source.decoder.decode(rest, &mut self.decoded);
                    late += self.decoded.len() as u64 + done.omitted.map_or(0, |gap| gap.bytes);
                    rest = &rest[done.taken..];
                }
            }
        }
        self.files.retain(|(_, since)| now.saturating_duration_since(*since) < WATCHED);
        Ok(late)
    }
}
