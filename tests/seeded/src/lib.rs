//! Makes the randomness of a test process a function of a seed, so that a simulation replays exactly:
//! the order of hash maps, the branches of `tokio::select!`, tokens and jitter all come from
//! `getrandom`. Linked into a test binary, this crate takes the place of the C library's.
//!
//! Until [`seed`] is called the kernel's randomness is passed on.

use std::{
    io::Read as _,
    sync::atomic::{AtomicU64, Ordering},
};

/// State of the generator; 0 means that there is no seed.
static STATE: AtomicU64 = AtomicU64::new(0);

/// From here on all randomness of the process follows from `seed`. What a thread drew before stays
/// with it (the keys of its hash maps), so a simulation belongs on a thread that starts afterwards.
pub fn seed(seed: u64) {
    STATE.store(mixed(seed) | 1, Ordering::SeqCst);
}

/// `SplitMix64`.
fn mixed(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn fill(bytes: &mut [u8]) -> bool {
    if STATE.load(Ordering::SeqCst) == 0 {
        let source = std::fs::File::open("/dev/urandom");
        return source.and_then(|mut source| source.read_exact(bytes)).is_ok();
    }
    for chunk in bytes.chunks_mut(8) {
        let state = STATE.fetch_add(0x9e37_79b9_7f4a_7c16, Ordering::SeqCst);
        chunk.copy_from_slice(&mixed(state).to_le_bytes()[..chunk.len()]);
    }
    true
}

/// The C library's function, for everything in this process that asks for randomness.
#[allow(unsafe_code, reason = "a symbol of the C library is replaced")]
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    if buffer.is_null() || length == 0 {
        return 0;
    }
    // SAFETY: callers of getrandom(2) pass a buffer of this length that they own.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer, length) };
    if fill(bytes) { isize::try_from(length).unwrap_or(isize::MAX) } else { -1 }
}
