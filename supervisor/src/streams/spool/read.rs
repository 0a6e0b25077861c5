//! Reading a stream, beside whoever writes it.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::FileExt as _,
};

use super::{GapReason, Piece, Spool, SpoolError};

/// Bytes read at once where lines are counted.
const COUNT_BYTES: usize = 64 * 1024;

impl Spool {
    /// What stands at `offset`, at most `max` bytes of it.
    pub fn read(&self, offset: u64, max: usize) -> Result<Piece, SpoolError> {
        let inner = self.lock();
        let (end, complete) = (inner.end, inner.complete);
        let behind = inner.segments.iter().find(|(start, length)| start + length > offset);
        match behind.copied() {
            Some((start, length)) if start <= offset => {
                drop(inner);
                self.read_segment((start, length), offset, max)
            }
            _ if offset < end => {
                let next = behind.map_or(end, |(start, _)| *start);
                let base = inner.segments.first().map_or(end, |(start, _)| *start);
                Ok(match inner.gaps.at(offset) {
                    Some(hole) => Piece::Gap { to: hole.to.min(next), reason: hole.reason },
                    None if offset < base => Piece::Gap { to: next, reason: GapReason::SpoolFull },
                    None => Piece::Gap { to: next, reason: GapReason::Missing },
                })
            }
            _ if complete => Ok(Piece::End),
            _ => Ok(Piece::Pending),
        }
    }

    fn read_segment(
        &self,
        (start, length): (u64, u64),
        offset: u64,
        max: usize,
    ) -> Result<Piece, SpoolError> {
        let left = start + length - offset;
        let mut buffer = vec![0; usize::try_from(left).unwrap_or(max).min(max)];
        match File::open(self.path(start)) {
            Ok(file) => file.read_exact_at(&mut buffer, offset - start)?,
            // Dropped between the look and the read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Piece::Gap { to: start + length, reason: GapReason::SpoolFull });
            }
            Err(error) => return Err(error.into()),
        }
        Ok(Piece::Data(buffer.into()))
    }

    /// Number of newlines in what is stored from `offset` on.
    pub fn count_lines(&self, offset: u64) -> Result<u64, SpoolError> {
        let segments = self.lock().segments.clone();
        let mut lines = 0;
        let mut buffer = vec![0; COUNT_BYTES];
        for (start, _) in segments.into_iter().filter(|(start, length)| start + length > offset) {
            let mut file = File::open(self.path(start))?;
            file.seek(SeekFrom::Start(offset.saturating_sub(start)))?;
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
}
