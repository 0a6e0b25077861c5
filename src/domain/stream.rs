//! Byte streams of a run: append-only, addressed by offset, with holes where bytes are lost for good.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One of the streams of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Channel {
    /// The container's output, decoded from the runtime's format.
    Log,
    /// Agent events, one JSON object a line.
    Events,
}

impl Channel {
    /// All channels.
    pub const ALL: [Self; 2] = [Self::Log, Self::Events];

    /// The name in file names, metrics and messages for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Events => "events",
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Bytes `from..to` of a stream are lost for good.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gap {
    /// Offset of the first lost byte.
    pub from: u64,
    /// Offset behind the last lost byte; greater than `from`.
    pub to: u64,
    /// Why, for people.
    pub reason: String,
}
