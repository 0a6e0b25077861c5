//! What people read: lines on PID 1's standard output, and the bounded capture of a command's
//! output. Nothing here blocks the agent for long, and nothing grows without a limit. Lines that
//! nobody takes are dropped, with a mark in their place that the supervisor turns into a gap.

use std::{
    collections::VecDeque,
    io::Write,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use agent_operator::domain::{omitted::Omitted, text::printable};

use crate::process::Sink;

/// Lines waiting for a slow log reader: enough for a burst of a test run, small beside any limit
/// of a pod.
const QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What a waiting line takes beside its text, so that empty lines fill the queue too.
const LINE_BYTES: usize = 64;
/// Lines are written together up to this size: half of the pipe to the container runtime.
const WRITE_BYTES: usize = 32 * 1024;
/// How long a writer waits for room before its line is dropped and counted: as long as a busy disk may
/// take, and less than the grace of a stop, which must not wait for the log. Once a wait was in vain,
/// no line waits until half of the queue is free.
const FULL_WAIT: Duration = Duration::from_secs(5);
/// A line is shown in pieces of this size; the container runtime cuts at 16 KiB as well.
const PIECE_BYTES_MAX: usize = 16 * 1024;

/// Prints lines in order, from a thread of its own.
#[derive(Clone)]
pub(crate) struct Printer {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    full_wait: Duration,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<String>,
    bytes: usize,
    /// What came behind these lines and had no room.
    omitted: Omitted,
    /// Bytes of all lines so far, with those that had no room.
    printed: u64,
    /// Whether a line has waited for room in vain.
    stalled: bool,
    writing: bool,
    closed: bool,
}

impl Printer {
    /// A printer to `target`, and its thread, which ends after [`Printer::close`].
    pub(crate) fn start(target: impl Write + Send + 'static) -> (Self, JoinHandle<()>) {
        Self::with_wait(target, FULL_WAIT)
    }

    fn with_wait(
        target: impl Write + Send + 'static,
        full_wait: Duration,
    ) -> (Self, JoinHandle<()>) {
        let (queue, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { queue, changed, full_wait });
        let thread_shared = Arc::clone(&shared);
        (Self { shared }, thread::spawn(move || write_lines(&thread_shared, target)))
    }

    /// Prints `text`, which may be several lines, without control characters.
    pub(crate) fn print(&self, text: &str) {
        for line in text.lines() {
            self.push(printable(line));
        }
    }

    /// Waits until everything is written, at most for `limit`.
    pub(crate) fn flush(&self, limit: Duration) {
        let pending = |queue: &mut Queue| !queue.is_empty() || queue.writing;
        drop(self.shared.changed.wait_timeout_while(self.lock(), limit, pending));
    }

    /// Bytes of all lines so far, written or not, with those that had no room: what a log has that lacks nothing,
    /// gaps counted.
    pub(crate) fn printed(&self) -> u64 {
        self.lock().printed
    }

    /// Ends the thread once everything is written.
    #[cfg(test)]
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.shared.changed.notify_all();
    }

    fn push(&self, line: String) {
        let size = line.len() + LINE_BYTES;
        let full = |queue: &mut Queue| queue.bytes + size > QUEUE_BYTES_MAX && !queue.closed;
        let mut queue = self.lock();
        if queue.stalled {
            queue.stalled = queue.bytes + size > QUEUE_BYTES_MAX / 2;
        } else {
            let waited = self.shared.changed.wait_timeout_while(queue, self.shared.full_wait, full);
            let (after, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            queue = after;
            queue.stalled = timeout.timed_out();
        }
        let bytes = line.len() as u64 + 1;
        queue.printed += bytes;
        if queue.stalled {
            queue.omitted.lines += 1;
            queue.omitted.bytes += bytes;
            return;
        }
        queue.add_mark();
        queue.add(line);
        drop(queue);
        self.shared.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Each change leaves the queue whole.
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.omitted.lines == 0
    }

    /// Puts a mark in the place of what had no room.
    fn add_mark(&mut self) {
        if self.omitted.lines > 0 {
            let mark = std::mem::take(&mut self.omitted).to_string();
            self.add(mark);
        }
    }

    fn add(&mut self, line: String) {
        self.bytes += line.len() + LINE_BYTES;
        self.lines.push_back(line);
    }

    /// Takes the next lines out, as they are written: at least one if there is any.
    fn take(&mut self) -> String {
        let mut text = String::new();
        while let Some(line) = self.lines.front() {
            if !text.is_empty() && text.len() + line.len() >= WRITE_BYTES {
                break;
            }
            self.bytes -= line.len() + LINE_BYTES;
            text.push_str(line);
            text.push('\n');
            self.lines.pop_front();
        }
        text
    }
}

fn write_lines(shared: &Shared, mut target: impl Write) {
    loop {
        let idle = |queue: &mut Queue| queue.is_empty() && !queue.closed;
        let queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let mut queue =
            shared.changed.wait_while(queue, idle).unwrap_or_else(PoisonError::into_inner);
        if queue.lines.is_empty() {
            // Perhaps nothing more comes that could bring the mark with it.
            queue.add_mark();
        }
        let text = queue.take();
        if text.is_empty() {
            return;
        }
        queue.writing = true;
        drop(queue);
        // A log that nobody can write to is no reason to fail the step.
        let _ = target.write_all(text.as_bytes()).and_then(|()| target.flush());
        shared.queue.lock().unwrap_or_else(PoisonError::into_inner).writing = false;
        shared.changed.notify_all();
    }
}

/// Cuts bytes into lines for display: `\r` ends a line as `\n` does, escape sequences vanish, and a
/// line without an end comes in pieces.
#[derive(Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
    escape: Escape,
    returned: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    Started,
    Control,
    Text,
}

impl Lines {
    /// Hands each complete line of `bytes` to `line`.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut line: impl FnMut(&str)) {
        for &byte in bytes {
            if !self.visible(byte) {
                continue;
            }
            let returned = std::mem::take(&mut self.returned);
            match byte {
                b'\n' if returned && self.partial.is_empty() => {}
                b'\n' => self.emit(&mut line),
                // Alone it only redraws, so an empty line is none.
                b'\r' if self.partial.is_empty() => {}
                b'\r' => {
                    self.returned = true;
                    self.emit(&mut line);
                }
                byte => self.partial.push(byte),
            }
            if self.partial.len() >= PIECE_BYTES_MAX && is_boundary(&self.partial) {
                self.emit(&mut line);
            }
        }
    }

    /// Hands over what has no line end.
    pub(crate) fn finish(&mut self, mut line: impl FnMut(&str)) {
        if !self.partial.is_empty() {
            self.emit(&mut line);
        }
    }

    fn emit(&mut self, line: &mut impl FnMut(&str)) {
        line(&String::from_utf8_lossy(&self.partial));
        self.partial.clear();
    }

    /// Whether `byte` is no part of a terminal's escape sequence (ECMA-48: CSI and OSC).
    fn visible(&mut self, byte: u8) -> bool {
        let (next, visible) = match (self.escape, byte) {
            // A line end always ends a sequence, so that a forged one cannot hide what follows.
            (_, b'\n') => (Escape::None, true),
            (_, 0x1b) => (Escape::Started, false),
            (state @ Escape::None, _) => (state, true),
            (Escape::Started, b'[') => (Escape::Control, false),
            (Escape::Started, b']') => (Escape::Text, false),
            (state @ Escape::Control, 0x20..=0x3f) => (state, false),
            (state @ Escape::Text, byte) if byte != 0x07 => (state, false),
            (Escape::Started | Escape::Control | Escape::Text, _) => (Escape::None, false),
        };
        self.escape = next;
        visible
    }
}

/// Whether the bytes end with a whole UTF-8 character (or with something that is none).
fn is_boundary(bytes: &[u8]) -> bool {
    !matches!(std::str::from_utf8(bytes), Err(error) if error.error_len().is_none())
}

/// Keeps head and tail of an output of any length in bounded memory, by the rule of
/// `text::head_and_tail`: the first quarter and the last three quarters.
pub(crate) struct Capture {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    max: usize,
    total: usize,
}

impl Capture {
    /// Keeps at most `max` bytes.
    pub(crate) fn new(max: usize) -> Self {
        Self { head: Vec::new(), tail: VecDeque::new(), max, total: 0 }
    }

    /// The next bytes.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        self.total += bytes.len();
        let to_head = bytes.len().min(self.max - self.head.len());
        let (first, rest) = bytes.split_at(to_head);
        self.head.extend_from_slice(first);
        let rest = &rest[rest.len().saturating_sub(self.max)..];
        let over = (self.tail.len() + rest.len()).saturating_sub(self.max);
        self.tail.drain(..over);
        self.tail.extend(rest);
    }

    /// The text, at most `max` bytes, with a mark where bytes are missing.
    pub(crate) fn finish(mut self) -> String {
        // Room for the mark: "\n[... 18446744073709551615 bytes left out ...]\n".
        const MARK_BYTES: usize = 48;
        if self.total <= self.max {
            return clean(&self.head, self.max);
        }
        let room = self.max.saturating_sub(MARK_BYTES);
        let (head_bytes, tail_bytes) = (room / 4, room - room / 4);
        // Where the tail began within the head's bytes, those complete it.
        let kept: Vec<u8> = self.head.iter().copied().chain(self.tail.drain(..)).collect();
        let head = clean(&kept[..head_bytes], head_bytes);
        let tail = clean(&kept[kept.len() - tail_bytes..], tail_bytes);
        let left_out = self.total - head_bytes - tail_bytes;
        format!("{head}\n[... {left_out} bytes left out ...]\n{tail}")
    }
}

/// Text without escape sequences and control characters, at most `max` bytes (a replaced byte
/// takes three).
fn clean(bytes: &[u8], max: usize) -> String {
    let mut text = String::with_capacity(bytes.len());
    let mut lines = Lines::default();
    let mut add = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    lines.feed(bytes, &mut add);
    let partial = lines.partial.len();
    lines.finish(&mut add);
    if partial > 0 {
        text.pop();
    }
    agent_operator::domain::text::head_and_tail(&printable(&text), max)
}

/// Shows a child's output and keeps head and tail of it.
pub(crate) struct Shown<'a> {
    printer: &'a Printer,
    lines: Lines,
    capture: Capture,
}

impl<'a> Shown<'a> {
    /// Keeps at most `max` bytes.
    pub(crate) fn new(printer: &'a Printer, max: usize) -> Self {
        Self { printer, lines: Lines::default(), capture: Capture::new(max) }
    }

    /// What was kept.
    pub(crate) fn finish(self) -> String {
        self.capture.finish()
    }
}

impl Sink for Shown<'_> {
    fn take(&mut self, bytes: &[u8]) {
        self.capture.take(bytes);
        self.lines.feed(bytes, |line| self.printer.print_line(line));
    }

    fn end(&mut self) {
        self.lines.finish(|line| self.printer.print_line(line));
    }
}

impl Printer {
    /// Prints one line as it is, empty ones too.
    pub(crate) fn print_line(&self, line: &str) {
        self.push(printable(line));
    }
}

impl Sink for Capture {
    fn take(&mut self, bytes: &[u8]) {
        Capture::take(self, bytes);
    }
}

#[cfg(test)]
mod tests;
