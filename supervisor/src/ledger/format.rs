//! The ledger's file format: a header line, then one line a record: checksum, space, JSON.

use agent_operator::domain::names;

use super::{Entry, LedgerError, Memory, Oddities};

/// First line: name and version of the format.
pub(super) const HEADER: &str = "agent-operator-ledger 1";
/// Hex digits of the checksum before each line: 64 bits find every torn or flipped line.
const CHECKSUM_DIGITS: usize = 16;

/// What a file holds.
pub(super) struct Replayed {
    /// The facts of the readable prefix; the highest epoch of every line that verifies.
    pub(super) memory: Memory,
    /// What was odd.
    pub(super) oddities: Oddities,
    /// Bytes of the readable prefix.
    pub(super) whole_bytes: u64,
}

/// The first line of every ledger.
pub(super) fn header() -> Vec<u8> {
    format!("{HEADER}\n").into_bytes()
}

/// The line of `entry`.
pub(super) fn line(entry: &Entry) -> Result<Vec<u8>, LedgerError> {
    let json = serde_json::to_string(entry).map_err(LedgerError::Serialise)?;
    Ok(sealed(&json).into_bytes())
}

/// A line of this JSON, with its checksum.
pub(crate) fn sealed(json: &str) -> String {
    format!("{} {json}\n", checksum(json))
}

fn checksum(json: &str) -> String {
    let mut digits = names::sha256_hex(json.as_bytes());
    digits.truncate(CHECKSUM_DIGITS);
    digits
}

/// The JSON of a line that verifies.
fn verified(line: &[u8]) -> Option<&str> {
    let (sum, json) = std::str::from_utf8(line).ok()?.strip_suffix('\n')?.split_once(' ')?;
    (checksum(json) == sum).then_some(json)
}

/// Folds a file's content. Pure, and total: any bytes give a state.
pub(super) fn replay(content: &[u8]) -> Replayed {
    let mut lines = content.split_inclusive(|byte| *byte == b'\n');
    let mut replayed =
        Replayed { memory: Memory::default(), oddities: Oddities::default(), whole_bytes: 0 };
    let first = lines.next().unwrap_or_default();
    if header().starts_with(first) && first.len() <= HEADER.len() {
        // Also a header of which a crash left a part: nothing was ever behind it.
        replayed.oddities.fresh = true;
        replayed.oddities.torn_bytes = first.len() as u64;
        return replayed;
    }
    if first != header() {
        replayed.oddities.foreign = true;
        replayed.salvage_epoch(lines);
        return replayed;
    }
    replayed.whole_bytes = first.len() as u64;
    while let Some(line) = lines.next() {
        let Some(json) = verified(line) else {
            let left = content.len() as u64 - replayed.whole_bytes;
            let behind: Vec<_> = lines.collect();
            if behind.is_empty() && !line.ends_with(b"\n") {
                // A write that never ended, and so was never acknowledged.
                replayed.oddities.torn_bytes = left;
            } else {
                replayed.oddities.damaged_lines = 1 + behind.len() as u64;
                replayed.salvage_epoch(behind.into_iter());
            }
            break;
        };
        match serde_json::from_str::<Entry>(json) {
            Ok(entry) => replayed.memory.apply(&entry),
            Err(_) => replayed.oddities.unknown_lines += 1,
        }
        replayed.whole_bytes += line.len() as u64;
    }
    replayed
}

impl Replayed {
    /// Takes the epochs out of lines behind the prefix: obeying one that is too high costs a delay,
    /// obeying one that is too low a fence.
    fn salvage_epoch<'a>(&mut self, lines: impl Iterator<Item = &'a [u8]>) {
        for json in lines.filter_map(verified) {
            if let Ok(entry @ Entry::HighestEpoch { .. }) = serde_json::from_str(json) {
                self.memory.apply(&entry);
            }
        }
    }
}
