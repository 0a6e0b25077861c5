//! The mark that agent-runner prints in place of output that it had to drop, and that the supervisor
//! turns into a gap of the log.
//!
//! It begins with a control character. Everything else that agent-runner prints has been through
//! [`super::text::printable`], which replaces those, so nobody in the sandbox can forge one.

use std::fmt;

/// First byte of a mark: CANCEL.
pub const MARK: u8 = 0x18;
/// Longest mark: the words and two numbers of 20 digits.
pub const MARK_BYTES_MAX: usize = 128;
/// Most bytes that one mark may stand for: a pebibyte, which no attempt can write.
const BYTES_MAX: u64 = 1 << 50;

/// Output that was dropped because nobody took it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Omitted {
    /// Lines.
    pub lines: u64,
    /// Bytes, line ends included.
    pub bytes: u64,
}

impl Omitted {
    /// Reads a mark, without its line end; none for any other text.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(line.strip_prefix(&[MARK])?).ok()?;
        let numbers = text.strip_prefix("[... ")?.strip_suffix(" bytes left out ...]")?;
        let (lines, bytes) = numbers.split_once(" lines, ")?;
        let omitted = Self { lines: lines.parse().ok()?, bytes: bytes.parse().ok()? };
        (1..=BYTES_MAX).contains(&omitted.bytes).then_some(omitted)
    }
}

impl fmt::Display for Omitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = char::from(MARK);
        write!(f, "{mark}[... {} lines, {} bytes left out ...]", self.lines, self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::text::printable;

    #[test]
    fn a_mark_is_read_back() {
        for omitted in [Omitted { lines: 1, bytes: 1 }, Omitted { lines: u64::MAX, bytes: 1 << 50 }]
        {
            let text = omitted.to_string();
            assert_eq!(Omitted::parse(text.as_bytes()), Some(omitted));
            assert!(text.len() <= MARK_BYTES_MAX);
        }
    }

    #[test]
    fn what_comes_from_a_sandbox_is_never_a_mark() {
        let forged = Omitted { lines: 1, bytes: 1 }.to_string();
        assert_eq!(Omitted::parse(printable(&forged).as_bytes()), None);
        assert_eq!(Omitted::parse(&forged.as_bytes()[1..]), None);
        for other in ["", "\u{18}", "\u{18}[... 1 lines, 0 bytes left out ...]"] {
            assert_eq!(Omitted::parse(other.as_bytes()), None, "{other:?}");
        }
    }
}
