//! Finds known secret values in text that leaves a sandbox, without holding them: a second line, for
//! the first is that no sandbox ever gets one.
//!
//! A [`Watchlist`] keeps of each form of a secret (see `forms`) its length, 16 bits of a rolling hash
//! as a filter, and a salted SHA-256 to be sure. So a process that only passes credentials on, as the
//! supervisor does, can watch for them without keeping them. What is found is masked byte for byte:
//! lengths and offsets of streams stay what they were.
//!
//! A stream comes in pieces, and a piece may end within a secret: [`Watchlist::mask_decided`] says how
//! much of it is decided. Not found is what was changed otherwise: split, reversed, encrypted,
//! compressed, encoded twice, or cut over two lines of a log.

mod forms;

use std::{collections::HashMap, ops::Range, sync::Arc};

use agent_operator::domain::Credential;
use sha2::{Digest as _, Sha256};

/// Length that the filter looks at; shorter forms are not watched for, since they would be found
/// everywhere.
const WINDOW_BYTES: usize = 8;
/// Odd, with its bits spread: the high bits of a product depend on all lower ones.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
/// What stands in a secret's place.
const MASK: u8 = b'*';
/// Longest form that the beginning of is waited for: keys have a few hundred bytes, and what waits is
/// kept in memory.
const AWAITED_BYTES_MAX: usize = 64 * 1024;

/// One form of one secret.
#[derive(Debug)]
struct Form {
    /// The credential's id.
    name: Arc<str>,
    bytes: usize,
    digest: [u8; 32],
}

/// Where a secret was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Id of the credential.
    pub credential: Arc<str>,
    /// First byte.
    pub start: usize,
    /// Byte after the last.
    pub end: usize,
}

/// How far a piece of a stream is decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    /// Bytes that are part of no secret that goes on behind the piece.
    pub bytes: usize,
    /// Where secrets stood in them.
    pub masked: Vec<Range<usize>>,
}

/// What comes next in a piece of a stream.
enum Next {
    /// A secret.
    Found(Found),
    /// What may become one, from this byte on.
    Open(usize),
}

/// What is watched for. The default watches for nothing.
#[derive(Debug, Default)]
pub struct Watchlist {
    salt: [u8; 16],
    forms: HashMap<u16, Vec<Form>>,
    longest: usize,
    /// Whether a form goes over the end of a line.
    has_lines: bool,
}

impl Watchlist {
    /// Watches for the values of `credentials` in every form of `forms`.
    pub fn of(credentials: &[Credential]) -> Self {
        let mut list = Self::default();
        // Without randomness the digests are still digests; they can only be compared between runs.
        let _ = getrandom::fill(&mut list.salt);
        for credential in credentials {
            let name: Arc<str> = credential.id.as_str().into();
            for form in forms::of(credential) {
                list.add(&name, &form);
            }
        }
        list
    }

    fn add(&mut self, name: &Arc<str>, form: &[u8]) {
        if form.len() < WINDOW_BYTES {
            return;
        }
        let (digest, has_lines) = (self.digest(form), form.contains(&b'\n'));
        let same_start = self.forms.entry(bucket(hash(&form[..WINDOW_BYTES]))).or_default();
        if same_start.iter().all(|known| known.digest != digest) {
            let form = Form { name: Arc::clone(name), bytes: form.len(), digest };
            self.longest = self.longest.max(form.bytes);
            self.has_lines |= has_lines;
            same_start.push(form);
            // Of two that begin alike, the longer one is to be masked.
            same_start.sort_by_key(|form| std::cmp::Reverse(form.bytes));
        }
    }

    fn digest(&self, bytes: &[u8]) -> [u8; 32] {
        Sha256::new().chain_update(self.salt).chain_update(bytes).finalize().into()
    }

    /// Whether there is nothing to watch for.
    pub fn is_empty(&self) -> bool {
        self.forms.is_empty()
    }

    /// Length of the longest form: pieces of a stream must overlap by one byte less.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The first secret in `bytes` at or after `from`.
    pub fn find(&self, bytes: &[u8], from: usize) -> Option<Found> {
        self.scan(bytes, from, |start, form| self.is_at(bytes, start, form))
    }

    /// The first answer of `judge` to a form that may begin at a byte at or after `from`; of forms that
    /// begin alike the longer one is first.
    fn scan<T>(
        &self,
        bytes: &[u8],
        from: usize,
        judge: impl Fn(usize, &Form) -> Option<T>,
    ) -> Option<T> {
        let first = bytes.get(from..from + WINDOW_BYTES).filter(|_| !self.is_empty())?;
        let mut rolling = hash(first);
        let leaving = power(WINDOW_BYTES);
        for start in from.. {
            let mut forms = self.forms.get(&bucket(rolling)).into_iter().flatten();
            if let Some(answer) = forms.find_map(|form| judge(start, form)) {
                return Some(answer);
            }
            let entering = *bytes.get(start + WINDOW_BYTES)?;
            rolling = rolling
                .wrapping_mul(MULTIPLIER)
                .wrapping_add(u64::from(entering) + 1)
                .wrapping_sub((u64::from(bytes[start]) + 1).wrapping_mul(leaving));
        }
        None
    }

    fn is_at(&self, bytes: &[u8], start: usize, form: &Form) -> Option<Found> {
        let end = start + form.bytes;
        let same = self.digest(bytes.get(start..end)?) == form.digest;
        same.then(|| Found { credential: Arc::clone(&form.name), start, end })
    }

    /// Masks the secrets in a piece of a stream that goes on. All pieces one after the other, each with
    /// what was not decided of the one before it, are masked as the whole would be.
    pub fn mask_decided(&self, bytes: &mut [u8]) -> Decided {
        let mut decided = Decided { bytes: bytes.len(), masked: Vec::new() };
        if self.is_empty() {
            return decided;
        }
        let line = bytes.iter().rposition(|byte| *byte == b'\n').filter(|_| !self.has_lines);
        let line = line.map_or(0, |end| end + 1);
        let mut from = 0;
        loop {
            match self.next(bytes, from, line) {
                Some(Next::Found(found)) => {
                    bytes[found.start..found.end].fill(MASK);
                    decided.masked.push(found.start..found.end);
                    from = found.end;
                }
                Some(Next::Open(start)) => {
                    decided.bytes = start;
                    return decided;
                }
                None => return decided,
            }
        }
    }

    /// The first secret at or after `from`, or what may be the beginning of one; that begins at or after
    /// `line`.
    fn next(&self, bytes: &[u8], from: usize, line: usize) -> Option<Next> {
        let judged = self.scan(bytes, from, |start, form| {
            let open = start + form.bytes > bytes.len() && form.bytes <= AWAITED_BYTES_MAX;
            if open && start >= line {
                return Some(Next::Open(start));
            }
            self.is_at(bytes, start, form).map(Next::Found)
        });
        judged.or_else(|| {
            // Too few bytes to tell anything by.
            let start = (bytes.len() + 1).saturating_sub(WINDOW_BYTES).max(from).max(line);
            (start < bytes.len()).then_some(Next::Open(start))
        })
    }

    /// Masks every secret in `bytes`; how many there were.
    pub fn mask(&self, bytes: &mut [u8]) -> usize {
        let (mut from, mut count) = (0, 0);
        while let Some(found) = self.find(bytes, from) {
            bytes[found.start..found.end].fill(MASK);
            (from, count) = (found.end, count + 1);
        }
        count
    }

    /// `text` with every secret masked.
    pub fn scrub(&self, text: String) -> String {
        if self.find(text.as_bytes(), 0).is_none() {
            return text;
        }
        let mut bytes = text.into_bytes();
        self.mask(&mut bytes);
        // A form is whole characters, so what is left is too.
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// `MULTIPLIER` to the power of `exponent`.
fn power(exponent: usize) -> u64 {
    (0..exponent).fold(1_u64, |product, _| product.wrapping_mul(MULTIPLIER))
}

/// The hash of one window.
fn hash(window: &[u8]) -> u64 {
    window
        .iter()
        .fold(0_u64, |hash, byte| hash.wrapping_mul(MULTIPLIER).wrapping_add(u64::from(*byte) + 1))
}

/// The bits of a hash that are kept.
fn bucket(hash: u64) -> u16 {
    u16::try_from(hash >> 48).unwrap_or_default()
}

#[cfg(test)]
mod tests;
