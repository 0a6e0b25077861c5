//! Reads a container's log files as the runtime writes them, into the attempt's spool.
//!
//! - `folder`: which files there are, and opening nothing else.
//! - `source`: one file, plain or compressed.
//! - `reader`: the files one after the other: at a rotation the old one is read to its end before
//!   the new one begins. Files are told apart by inode and by their first bytes.
//! - `held`: bytes that may be the beginning of a secret, until that is known.
//! - `left`: files that were read to their ends, in case something still comes.
//! - `cri`: from the runtime's records to the container's bytes.
//! - `waker`: inotify.
//!
//! Memory is bounded by fixed buffers, whatever the container writes.

mod cri;
mod folder;
mod held;
mod left;
mod reader;
mod source;
#[cfg(test)]
mod tests;
mod waker;

pub use self::{folder::Folder, waker::Waker};

use std::{io, sync::Arc, time::Duration};

use tokio::sync::{Notify, watch};

use self::reader::{Burst, Reader};
use crate::{
    clock,
    streams::{AttemptStreams, LogEnd, spool::SpoolError},
};

/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;
/// Pause between two looks where no notification came (they can be lost).
const POLL: Duration = Duration::from_millis(250);
/// How many times as long as a burst took its reader rests, so that the reader of a busy log leaves most of the machine to
/// the pods that write, and takes several lines at once when the machine is slow.
const REST_FACTOR: u32 = 4;
/// Longest rest: a line is not to wait for long because the one before it was slow.
const REST_MAX: Duration = Duration::from_millis(5);
/// Shorter rests are left out: they are below what the runtime's timer can tell apart, and a machine whose bursts
/// are so short has no need of them.
const REST_MIN: Duration = Duration::from_millis(1);
/// How long a file with a successor must be quiet before it is left: the runtime writes what it holds
/// to the old file after it has opened the new one, within milliseconds, or as late as a busy machine
/// lets it. What comes later still is a gap.
const QUIET: Duration = Duration::from_secs(1);
/// How long files must be quiet after the container's end before the log counts as whole: the
/// runtime copies the last output within milliseconds of the exit.
const DRAIN_QUIET: Duration = Duration::from_millis(750);

/// Longest wait after the container's end for files that are known and do not come.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Longest wait for output that the runtime has not copied when the container has ended, or for the word
/// that there is none: a runtime that is late copies it, one that is back says what has ended. As long as
/// Kubernetes waits before it gives up the pods of a node that does not answer (`tolerationSeconds` of 300).
const COPY_MAX: Duration = Duration::from_mins(5);

/// Reads the log in `folder` into the attempt's log spool until its `end` is known and the files are
/// quiet. Ends with a complete spool; what the runtime never copied is a gap.
pub async fn tail(
    folder: Folder,
    streams: Arc<AttemptStreams>,
    waker: Arc<Waker>,
    mut end: watch::Receiver<Option<LogEnd>>,
) -> Result<(), SpoolError> {
    if streams.log.extent().complete {
        return Ok(());
    }
    let path = folder.path();
    let of_reader = Arc::clone(&streams);
    let mut reader = blocking(move || Reader::resume(folder, of_reader)).await?;
    let mut notify: Option<Arc<Notify>> = None;
    let (mut quiet, mut drained, mut awaited) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let mut last;
    loop {
        if notify.is_none() && path.is_dir() {
            notify = Some(waker.watch(&path));
        }
        let burst;
        let began = clock::instant();
        // Files are read off the async workers: a flood or a slow disk must not stop anything else.
        (reader, burst) = blocking(move || {
            let burst = reader.burst(clock::instant())?;
            Ok((reader, burst))
        })
        .await?;
        if burst != Burst::Idle {
            quiet = Duration::ZERO;
        }
        if burst == Burst::More {
            continue;
        }
        last = known(&mut end);
        if let Some(end) = last {
            let whole = end.recorded || end.printed.is_some_and(|bytes| reader.reached() >= bytes);
            if whole && (quiet >= DRAIN_QUIET || drained >= DRAIN_MAX) || awaited >= COPY_MAX {
                break;
            }
            *(if whole { &mut drained } else { &mut awaited }) += POLL;
            if burst == Burst::Idle {
                quiet += POLL;
            }
            tokio::time::sleep(POLL).await;
            continue;
        }
        if let Some(rest) = rest(began.elapsed()) {
            tokio::time::sleep(rest).await;
        }
        let woken = async {
            match &notify {
                Some(notify) => notify.notified().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = woken => {}
            () = tokio::time::sleep(POLL) => {}
            _ = end.changed() => {}
        }
    }
    blocking(move || reader.give_up(clock::instant(), last.unwrap_or_default())).await?;
    waker.forget(&path);
    streams.log.complete()
}

/// The pause after a burst that took so long; what comes meanwhile is read at once after it.
fn rest(burst: Duration) -> Option<Duration> {
    Some((burst * REST_FACTOR).min(REST_MAX)).filter(|rest| *rest >= REST_MIN)
}

/// What is known of the log's end; whoever has forgotten the attempt has no more to say.
fn known(end: &mut watch::Receiver<Option<LogEnd>>) -> Option<LogEnd> {
    let known = *end.borrow_and_update();
    match end.has_changed() {
        Ok(_) => known,
        Err(_) => Some(LogEnd { recorded: true, ..known.unwrap_or_default() }),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SpoolError> + Send + 'static,
) -> Result<T, SpoolError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(io::Error::other("the reader of a log died").into()))
}
