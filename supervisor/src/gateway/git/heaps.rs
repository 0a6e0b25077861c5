//! How much memory git takes of the gateway's container: every git that reads what a sandbox made has
//! bounded heaps, and few of them are there at a time.
//!
//! A pack of a few kilobytes can unfold to gigabytes, and would take the gateway with it.

use std::{io, path::Path, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{error::GitError, space};

/// One heap in KiB: the pack of a large push, or a clone of half a million objects.
pub(super) const HEAP_KIB_MAX: u32 = 256 * 1024;
/// Heaps of a node: with [`HEAP_KIB_MAX`] 768 MiB of the 1 GiB that the chart gives the gateway.
const HEAPS_MAX: usize = 3;
/// Heaps of them that serve sandboxes, which may be slow. The others are for what is published.
const STREAM_HEAPS_MAX: usize = 2;
/// Indexes of a mirror above which a clone takes two heaps: 500,000 objects of 28 bytes each, for which
/// git needs about 240 bytes of heap.
const INDEX_BYTES_ONE_HEAP: u64 = 16 * 1024 * 1024;

/// Configuration that keeps the memory of git apart from what it reads, beside the bound on large files.
/// One thread: each has caches and a window of deltas of its own.
pub(super) const CONFIG: &[&str] = &[
    "pack.threads=1",
    "pack.windowMemory=32m",
    "pack.deltaCacheSize=16m",
    "core.deltaBaseCacheLimit=32m",
];

/// The heaps of a node. Whoever waits for some holds none, and whoever has some ends in its own time.
#[derive(Debug)]
pub(super) struct Heaps {
    all: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

impl Default for Heaps {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(HEAPS_MAX)),
            streams: Arc::new(Semaphore::new(STREAM_HEAPS_MAX)),
        }
    }
}

/// The right to some heaps; given back when dropped.
#[derive(Debug)]
pub(super) struct HeapPermit {
    _all: Option<OwnedSemaphorePermit>,
    _stream: Option<OwnedSemaphorePermit>,
}

impl Heaps {
    /// Waits for `count` heaps for an operation of the gateway itself; none are there at once.
    pub(super) async fn take(&self, count: u32) -> HeapPermit {
        HeapPermit { _all: some_of(&self.all, count).await, _stream: None }
    }

    /// Waits for `count` heaps to serve a sandbox. Streams never have all of them.
    pub(super) async fn take_for_stream(&self, count: u32) -> HeapPermit {
        let stream = some_of(&self.streams, count).await;
        HeapPermit { _all: some_of(&self.all, count).await, _stream: stream }
    }
}

/// Permits of a semaphore that is never closed, so that an error cannot come.
async fn some_of(heaps: &Arc<Semaphore>, count: u32) -> Option<OwnedSemaphorePermit> {
    Arc::clone(heaps).acquire_many_owned(count).await.ok()
}

/// Heaps that a clone from `mirror` takes: a large history has two, if it fits into them or not. What a
/// sandbox has added does not count.
pub(super) async fn of_clone(mirror: &Path) -> Result<u32, GitError> {
    let packs = mirror.join("objects/pack");
    let bytes = space::blocking("measure a mirror", move || index_bytes(&packs)).await?;
    Ok(if bytes > INDEX_BYTES_ONE_HEAP { 2 } else { 1 })
}

/// Bytes of all indexes of packs; what goes while it is read counts nothing.
fn index_bytes(packs: &Path) -> io::Result<u64> {
    let entries = match std::fs::read_dir(packs) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut bytes = 0_u64;
    for entry in entries {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "idx") {
            bytes = bytes.saturating_add(entry.metadata().map_or(0, |data| data.len()));
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn all_heaps_together_leave_the_gateway_a_fourth_of_what_the_chart_gives_it() {
        let values =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/agent-operator/values.yaml");
        let values = std::fs::read_to_string(values).unwrap();
        let gateway = values.split_once("\ngateway:").unwrap().1;
        let resources = gateway.split("  resources: ").nth(1).unwrap().lines().next().unwrap();
        assert!(resources.ends_with("limits: {memory: 1Gi}}"), "{resources}");
        let heaps = u64::try_from(HEAPS_MAX).unwrap() * u64::from(HEAP_KIB_MAX);
        assert!(heaps <= 1024 * 1024 * 3 / 4, "{heaps} KiB");
    }

    #[tokio::test(start_paused = true)]
    async fn sandboxes_never_have_all_heaps_and_each_that_waits_has_its_turn() {
        let heaps = Heaps::default();
        let first = heaps.take_for_stream(1).await;
        let large = heaps.take_for_stream(2);
        let late = heaps.take_for_stream(1);
        tokio::pin!(large, late);
        assert!(large.as_mut().now_or_never().is_none());
        assert!(late.as_mut().now_or_never().is_none(), "behind the one that waits for two");
        // What is published goes on beside them.
        for _ in 0..10 {
            let second = Duration::from_secs(1);
            tokio::time::timeout(second, heaps.take(1)).await.unwrap();
        }
        drop(first);
        let large = large.await;
        assert!(late.as_mut().now_or_never().is_none());
        drop(large);
        late.await;
    }

    #[tokio::test]
    async fn a_mirror_of_a_large_history_takes_two_heaps_for_a_clone() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(of_clone(directory.path()).await.unwrap(), 1, "nothing is there yet");
        let packs = directory.path().join("objects/pack");
        std::fs::create_dir_all(&packs).unwrap();
        for (name, bytes, expected) in
            [("a.idx", INDEX_BYTES_ONE_HEAP, 1), ("a.pack", 1 << 30, 1), ("b.idx", 1, 2)]
        {
            let file = std::fs::File::create(packs.join(name)).unwrap();
            file.set_len(bytes).unwrap();
            assert_eq!(of_clone(directory.path()).await.unwrap(), expected, "{name}");
        }
    }
}
