//! One log file that is being read, plain or compressed. It stays open until it has been read to its
//! end, so that its removal costs nothing.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
};

use flate2::read::MultiGzDecoder;

use super::{cri::Decoder, folder::Order};

/// Bytes at a file's beginning that tell it from every other: a record starts with a time in
/// nanoseconds.
const HEAD_BYTES: usize = 48;

/// A file with the place where reading stands.
pub(super) struct Source {
    body: Body,
    pub(super) inode: u64,
    /// The file's first bytes, as far as they were read.
    pub(super) head: Vec<u8>,
    /// Uncompressed bytes before this were read.
    pub(super) offset: u64,
    /// Longest that the file has been seen.
    pub(super) seen: u64,
    /// The file before it, where there was one.
    pub(super) behind: Option<Order>,
    pub(super) decoder: Decoder,
}

enum Body {
    Plain(File),
    Gzip(Box<MultiGzDecoder<File>>),
}

/// What one read gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Got {
    /// This many bytes.
    Bytes(usize),
    /// Nothing now.
    End,
    /// The file was cut or written over. At least this many bytes were there unread; reading starts
    /// over.
    Restarted {
        /// Bytes seen and not read.
        lost: u64,
    },
    /// The rest cannot be unpacked.
    Damaged,
}

impl Source {
    /// Reads `file` from its beginning.
    pub(super) fn new(file: File, gzip: bool) -> io::Result<Self> {
        let data = file.metadata()?;
        let (inode, seen) = (data.ino(), if gzip { 0 } else { data.len() });
        let body =
            if gzip { Body::Gzip(Box::new(MultiGzDecoder::new(file))) } else { Body::Plain(file) };
        let decoder = Decoder::default();
        Ok(Self { body, inode, head: Vec::new(), offset: 0, seen, behind: None, decoder })
    }

    /// The same with the file before it.
    pub(super) fn following(self, behind: Option<Order>) -> Self {
        Self { behind, ..self }
    }

    /// Goes to `offset` if the file begins with `head` and is long enough.
    pub(super) fn go_on(mut self, head: &[u8], offset: u64) -> io::Result<Option<Self>> {
        let mut first = vec![0; head.len()];
        match &mut self.body {
            Body::Plain(file) => {
                let long_enough = file.metadata()?.len() >= offset.max(head.len() as u64);
                if !long_enough {
                    return Ok(None);
                }
                file.read_exact_at(&mut first, 0)?;
            }
            Body::Gzip(unpacked) => {
                if unpacked.read_exact(&mut first).is_err() || first != head {
                    return Ok(None);
                }
                let rest = offset.saturating_sub(head.len() as u64);
                let skipped = io::copy(&mut unpacked.by_ref().take(rest), &mut io::sink());
                if !skipped.is_ok_and(|skipped| skipped == rest) {
                    return Ok(None);
                }
            }
        }
        (self.head, self.offset) = (head.to_owned(), offset);
        Ok((first == head).then_some(self))
    }

    /// Whether the file still has a name.
    pub(super) fn is_linked(&self) -> bool {
        match &self.body {
            Body::Plain(file) => file.metadata().is_ok_and(|data| data.nlink() > 0),
            Body::Gzip(unpacked) => {
                unpacked.get_ref().metadata().is_ok_and(|data| data.nlink() > 0)
            }
        }
    }

    /// Whether `other`, read from its beginning, is the same log in another form.
    pub(super) fn is_same_log(&mut self, other: Self) -> bool {
        if self.head.is_empty() && self.fill_head().is_err() {
            return false;
        }
        !self.head.is_empty() && matches!(other.go_on(&self.head, 0), Ok(Some(_)))
    }

    /// Reads the head of a plain file that nobody has read yet.
    fn fill_head(&mut self) -> io::Result<()> {
        if let Body::Plain(file) = &self.body {
            let mut first = [0; HEAD_BYTES];
            let count = file.read_at(&mut first, 0)?;
            self.head = first[..count].to_owned();
        }
        Ok(())
    }

    /// Reads once.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Got> {
        let count = match &mut self.body {
            Body::Plain(file) => {
                let count = file.read_at(buffer, self.offset)?;
                // Looked at after the read: what was read is of the file as it was known.
                if self.was_replaced(count)? {
                    return self.restart();
                }
                count
            }
            Body::Gzip(unpacked) => match unpacked.read(buffer) {
                Ok(count) => count,
                Err(_) => return Ok(Got::Damaged),
            },
        };
        if count == 0 {
            return Ok(Got::End);
        }
        let missing = HEAD_BYTES.saturating_sub(self.head.len()).min(count);
        // The head is complete before anything behind it is read.
        if self.offset == self.head.len() as u64 {
            self.head.extend_from_slice(&buffer[..missing]);
        }
        self.offset += count as u64;
        self.seen = self.seen.max(self.offset);
        Ok(Got::Bytes(count))
    }

    fn was_replaced(&mut self, count: usize) -> io::Result<bool> {
        let Body::Plain(file) = &self.body else { return Ok(false) };
        let length = file.metadata()?.len();
        if length < self.offset + count as u64 {
            return Ok(true);
        }
        let mut first = [0; HEAD_BYTES];
        let first = &mut first[..self.head.len()];
        file.read_exact_at(first, 0)?;
        let same = first == self.head.as_slice();
        if same {
            self.seen = self.seen.max(length);
        }
        Ok(!same)
    }

    fn restart(&mut self) -> io::Result<Got> {
        let lost = self.seen.saturating_sub(self.offset);
        self.offset = 0;
        self.head.clear();
        self.decoder = Decoder::default();
        if let Body::Plain(file) = &self.body {
            self.seen = file.metadata()?.len();
        }
        Ok(Got::Restarted { lost })
    }
}
