//! Bytes of one stream on disk, compressed: whole blocks behind one another in `<channel>.zst`, and the
//! tail that is not a block yet in `<channel>.data`, as it came.
//!
//! A block is packed once the tail is long enough, appended, and then the tail is emptied. The tail
//! begins with its own offset, so a crash at any point leaves either the one or the other, never both
//! and never bytes at a wrong place.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use agent_operator::domain::{limits::CHUNK_BYTES_MAX, stream::Channel};

use super::StoreError;

/// Length from which on the tail becomes a block: long enough to compress well, short enough to
/// unpack for a single line.
const BLOCK_BYTES: u64 = 128 * 1024;
/// Longest block: a tail just too short and one chunk.
const BLOCK_BYTES_MAX: usize = 128 * 1024 + CHUNK_BYTES_MAX;
/// Length of a block unpacked and packed, before each block.
const BLOCK_HEADER_BYTES: u64 = 8;
/// The tail's own offset, before it.
const TAIL_HEADER_BYTES: u64 = 8;
/// Fast, and close to the best for text.
const LEVEL: i32 = 3;

/// One stream's bytes. Holds no open file: there may be many thousands of streams, and an open costs
/// little beside a chunk.
#[derive(Debug)]
pub(super) struct Packed {
    blocks_path: PathBuf,
    tail_path: PathBuf,
    /// End of each block: unpacked, and in the file.
    blocks: Vec<(u64, u64)>,
    /// Length of the tail.
    tail: u64,
}

/// What stands at a place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Bytes {
    /// These bytes.
    Here(Vec<u8>),
    /// The block up to here does not unpack.
    Damaged {
        /// Its end.
        until: u64,
    },
}

impl Packed {
    /// Opens or creates the files of `channel` in `folder`; cuts off what a crash left.
    pub(super) fn open(folder: &Path, channel: Channel) -> Result<Self, StoreError> {
        let blocks_path = folder.join(format!("{channel}.zst"));
        let tail_path = folder.join(format!("{channel}.data"));
        let mut packed = Self { blocks_path, tail_path, blocks: Vec::new(), tail: 0 };
        packed
            .load_blocks()
            .map_err(|source| StoreError::io("read", &packed.blocks_path, source))?;
        packed.load_tail().map_err(|source| StoreError::io("read", &packed.tail_path, source))?;
        Ok(packed)
    }

    fn load_blocks(&mut self) -> io::Result<()> {
        let file = match OpenOptions::new().read(true).write(true).open(&self.blocks_path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let length = file.metadata()?.len();
        let (mut unpacked, mut at) = (0, 0);
        while at + BLOCK_HEADER_BYTES < length {
            let (mut raw, mut size) = ([0; 4], [0; 4]);
            file.read_exact_at(&mut raw, at)?;
            file.read_exact_at(&mut size, at + raw.len() as u64)?;
            let (raw, size) = (u32::from_le_bytes(raw), u32::from_le_bytes(size));
            let end = at + BLOCK_HEADER_BYTES + u64::from(size);
            let whole = (1..=BLOCK_BYTES_MAX as u64).contains(&u64::from(raw)) && end <= length;
            if !whole || size == 0 {
                break;
            }
            unpacked += u64::from(raw);
            self.blocks.push((unpacked, end));
            at = end;
        }
        if at < length { file.set_len(at) } else { Ok(()) }
    }

    fn load_tail(&mut self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file =
            options.create(true).read(true).write(true).truncate(false).open(&self.tail_path)?;
        let length = file.metadata()?.len();
        let mut start = [0; 8];
        let fits = length > TAIL_HEADER_BYTES
            && file.read_exact_at(&mut start, 0).is_ok()
            && u64::from_le_bytes(start) == self.packed();
        if fits {
            self.tail = length - TAIL_HEADER_BYTES;
            return Ok(());
        }
        // Before the blocks' end: packed already. Behind it: blocks are missing, it connects to
        // nothing.
        if length > 0 { file.set_len(0) } else { Ok(()) }
    }

    /// Bytes in blocks, unpacked.
    fn packed(&self) -> u64 {
        self.blocks.last().map_or(0, |(unpacked, _)| *unpacked)
    }

    /// Bytes in all.
    pub(super) fn length(&self) -> u64 {
        self.packed() + self.tail
    }

    /// Bytes on disk.
    pub(super) fn on_disk(&self) -> u64 {
        self.blocks.last().map_or(0, |(_, end)| *end) + self.tail
    }

    /// Appends bytes, at most a chunk.
    pub(super) fn append(&mut self, data: &[u8]) -> Result<(), StoreError> {
        // Where the last try failed, the tail is long already, and must not get longer than a block.
        if self.tail >= BLOCK_BYTES {
            self.pack().map_err(|source| StoreError::io("pack into", &self.blocks_path, source))?;
        }
        let written = self.append_tail(data);
        written.map_err(|source| StoreError::io("append to", &self.tail_path, source))?;
        if self.tail >= BLOCK_BYTES
            && let Err(error) = self.pack()
        {
            tracing::warn!(%error, path = %self.blocks_path.display(), "could not pack a block");
        }
        Ok(())
    }

    fn append_tail(&mut self, data: &[u8]) -> io::Result<()> {
        let file =
            OpenOptions::new().create(true).write(true).truncate(false).open(&self.tail_path)?;
        if self.tail == 0 {
            file.write_all_at(&self.packed().to_le_bytes(), 0)?;
        }
        let written = file.write_all_at(data, TAIL_HEADER_BYTES + self.tail);
        if written.is_err() {
            // After a short write nothing of it counts.
            let _ = file.set_len(TAIL_HEADER_BYTES + self.tail);
            return written;
        }
        self.tail += data.len() as u64;
        Ok(())
    }

    /// Makes a block of the tail.
    fn pack(&mut self) -> io::Result<()> {
        let raw = self.read_tail(0, usize::try_from(self.tail).unwrap_or(usize::MAX))?;
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        compressor.include_checksum(true)?;
        let block = compressor.compress(&raw)?;
        let at = self.blocks.last().map_or(0, |(_, end)| *end);
        let (Ok(raw_length), Ok(size)) = (u32::try_from(raw.len()), u32::try_from(block.len()))
        else {
            return Err(io::Error::other("a block is too long"));
        };
        let mut file = OpenOptions::new().create(true).append(true).open(&self.blocks_path)?;
        // What an earlier try left half written goes first.
        file.set_len(at)?;
        let header = u64::from(size) << 32 | u64::from(raw_length);
        file.write_all(&header.to_le_bytes())?;
        file.write_all(&block)?;
        self.blocks.push((self.length(), at + BLOCK_HEADER_BYTES + block.len() as u64));
        self.tail = 0;
        OpenOptions::new().write(true).open(&self.tail_path)?.set_len(0)
    }

    fn read_tail(&self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; length];
        File::open(&self.tail_path)?.read_exact_at(&mut buffer, TAIL_HEADER_BYTES + at)?;
        Ok(buffer)
    }

    /// At most `max` bytes at `at`, which is below the length; fewer at the end of a block.
    pub(super) fn read(&self, at: u64, max: usize) -> Result<Bytes, StoreError> {
        let packed = self.packed();
        if at >= packed {
            let left = usize::try_from(self.length() - at).unwrap_or(max).min(max);
            let read = self.read_tail(at - packed, left);
            return read
                .map(Bytes::Here)
                .map_err(|source| StoreError::io("read", &self.tail_path, source));
        }
        let index = self.blocks.partition_point(|(end, _)| *end <= at);
        let (start, from) = index.checked_sub(1).map_or((0, 0), |before| self.blocks[before]);
        let (end, to) = self.blocks[index];
        let from = from + BLOCK_HEADER_BYTES;
        let mut block = vec![0; usize::try_from(to - from).unwrap_or_default()];
        File::open(&self.blocks_path)
            .and_then(|file| file.read_exact_at(&mut block, from))
            .map_err(|source| StoreError::io("read", &self.blocks_path, source))?;
        let raw = zstd::bulk::decompress(&block, BLOCK_BYTES_MAX).unwrap_or_default();
        if raw.len() as u64 != end - start {
            return Ok(Bytes::Damaged { until: end });
        }
        let skip = usize::try_from(at - start).unwrap_or(raw.len());
        let mut rest = raw;
        rest.drain(..skip);
        rest.truncate(max);
        Ok(Bytes::Here(rest))
    }
}
