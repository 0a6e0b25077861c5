//! How much all streams of a node may hold on its disk.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Share of the bound, in eighths, above which finished streams are dropped ahead of their time:
/// what is left is seconds of the fastest flood, enough for the drop.
const PRESSURE_EIGHTHS: u64 = 7;
/// A stream may hold this part of the bound, so that one flood cannot push out all others.
const STREAM_PART: u64 = 4;

/// The bound and what is used of it.
#[derive(Debug)]
pub struct Budget {
    max: u64,
    used: AtomicU64,
    /// Wakes the retention when little is left.
    pub pressed: Notify,
}

impl Budget {
    /// Nothing used of `max` bytes.
    pub fn new(max: u64) -> Self {
        Self { max, used: AtomicU64::new(0), pressed: Notify::new() }
    }

    /// Bytes on disk now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes above which finished streams go.
    pub fn pressure_mark(&self) -> u64 {
        self.max / 8 * PRESSURE_EIGHTHS
    }

    /// Most bytes of one stream.
    pub fn of_one_stream(&self) -> u64 {
        self.max / STREAM_PART
    }

    /// Whether `bytes` more would be too many.
    pub fn refuses(&self, bytes: u64) -> bool {
        self.used() + bytes > self.max
    }

    /// Takes `bytes`.
    pub fn take(&self, bytes: u64) {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > self.pressure_mark() {
            self.pressed.notify_one();
        }
    }

    /// Gives `bytes` back.
    pub fn give(&self, bytes: u64) {
        // Every byte that is given was taken, so this cannot go below zero.
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}
