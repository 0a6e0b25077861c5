//! Bounded disk store of the byte streams of runs: what nodes send, and what `Follow` reads.
//!
//! A cache, not a record: what it has lost is asked of the nodes again (resume offset 0), and what
//! they no longer have becomes a gap. One folder a run, three files a stream: `<channel>.zst` and
//! `<channel>.data` hold the bytes without the lost ones ([`packed`]), `<channel>.index` the gaps and
//! the end, one JSON object a line. An offset of a stream counts lost bytes too, so the resume offset
//! is the length of the bytes plus the size of the gaps. Only the index is synced, before there are bytes
//! behind a gap: after a loss of power the files are shorter, and the node sends the rest again.

mod demand;
mod file;
mod packed;
mod store;
#[cfg(test)]
mod tests;

pub use self::{
    demand::Demand,
    store::{Limits, StreamStore},
};

use std::{io, path::Path};

use agent_operator::domain::{
    RunUid,
    stream::{Channel, Gap},
};
use bytes::Bytes;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The uid cannot be the name of a folder.
    #[error("run uid {0:?} is not a uid")]
    BadUid(RunUid),
    /// Bytes that do not connect to what is there; the node must open the stream again.
    #[error("chunk at offset {got} does not follow offset {expected}")]
    OutOfOrder {
        /// Where the stream stands.
        expected: u64,
        /// Where the chunk starts.
        got: u64,
    },
    /// A gap that ends before it begins.
    #[error("gap from {from} to {to} is empty")]
    EmptyGap {
        /// First lost byte.
        from: u64,
        /// First byte behind.
        to: u64,
    },
    /// A stream of nothing but holes.
    #[error("stream has too many gaps")]
    TooManyGaps,
    /// A file could not be read or written.
    #[error("{action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    /// Whether the stream alone cannot be stored, now or for good; else the node broke the rules.
    pub fn is_the_streams(&self) -> bool {
        match self {
            Self::TooManyGaps | Self::Io { .. } => true,
            Self::BadUid(_) | Self::OutOfOrder { .. } | Self::EmptyGap { .. } => false,
        }
    }

    /// An I/O error with what was tried.
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.display().to_string(), source }
    }
}

/// Names one stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamKey {
    /// The run.
    pub run: RunUid,
    /// Which of its streams.
    pub channel: Channel,
}

/// Where a stream stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Everything before this offset is here or known as lost.
    pub offset: u64,
    /// The end of the stream is here as well.
    pub complete: bool,
}

/// What there is to read at an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes from the asked offset on.
    Data(Bytes),
    /// Nothing up to `gap.to`: read on there.
    Gap(Gap),
    /// Nothing yet.
    Waiting,
    /// The stream ends here.
    End,
    /// The store has nothing of this stream.
    Absent,
}
