//! One small value that is written over and over, on disk that is there already: two slots that take
//! turns, so that a torn write leaves the value before.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{Mutex, PoisonError},
};

use super::gaps::open_preallocated;

/// Size of a slot: the longest value has half of it.
const SLOT_BYTES: usize = 512;
/// Hex digits of the serial number and of the length before a value, each with a space behind.
const HEADER_BYTES: usize = 16 + 1 + 4 + 1;

/// The value's file.
#[derive(Debug)]
pub(super) struct Slots {
    file: File,
    state: Mutex<(u64, Option<String>)>,
}

impl Slots {
    /// Opens or lays out the file at `path`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = open_preallocated(path, 2 * SLOT_BYTES)?;
        let mut latest = (0, None);
        for slot in 0..2_u64 {
            let mut bytes = [0; SLOT_BYTES];
            file.read_exact_at(&mut bytes, slot * SLOT_BYTES as u64)?;
            if let Some((serial, value)) = decode(&bytes).filter(|(serial, _)| *serial > latest.0) {
                latest = (serial, Some(value));
            }
        }
        Ok(Self { file, state: Mutex::new(latest) })
    }

    /// The value; none before the first.
    pub(super) fn get(&self) -> Option<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// Writes over the older of the two.
    pub(super) fn set(&self, value: &str) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let serial = state.0 + 1;
        let slot = encode(serial, value).ok_or_else(|| io::Error::other("value is too long"))?;
        self.file.write_all_at(&slot, serial % 2 * SLOT_BYTES as u64)?;
        *state = (serial, Some(value.to_owned()));
        Ok(())
    }
}

fn encode(serial: u64, value: &str) -> Option<[u8; SLOT_BYTES]> {
    let text = format!("{serial:016x} {:04x} {value}\n", value.len());
    let mut slot = [0; SLOT_BYTES];
    slot.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    Some(slot)
}

fn decode(slot: &[u8]) -> Option<(u64, String)> {
    let text = |range| std::str::from_utf8(slot.get(range)?).ok();
    let serial = u64::from_str_radix(text(0..16)?, 16).ok()?;
    let length = usize::from_str_radix(text(17..21)?, 16).ok()?;
    // The newline comes last, so a value that has it is whole.
    let ends = slot.get(HEADER_BYTES + length) == Some(&b'\n');
    ends.then(|| text(HEADER_BYTES..HEADER_BYTES + length).map(|value| (serial, value.to_owned())))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_value_is_read_back_and_a_torn_one_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("position");
        let slots = Slots::open(&path).unwrap();
        assert_eq!(slots.get(), None);
        for value in ["one", "two", "three"] {
            slots.set(value).unwrap();
            assert_eq!(Slots::open(&path).unwrap().get().as_deref(), Some(value));
        }
        // The third went to slot 1; cut it behind its header.
        let at = (SLOT_BYTES + HEADER_BYTES + 2) as u64;
        slots.file.write_all_at(&[0; 8], at).unwrap();
        assert_eq!(Slots::open(&path).unwrap().get().as_deref(), Some("two"));
        assert!(slots.set(&"x".repeat(SLOT_BYTES)).is_err());
    }
}
