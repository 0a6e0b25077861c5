//! Limits that keep one hostile attempt from starving its neighbours or the node.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::args::Limits;

/// Connections of the whole gateway: 100 pods of one node with 64 each would be 6,400; a node runs
/// far fewer, and each connection costs a descriptor.
pub const CONNECTIONS_MAX: usize = 4096;
/// Connections of one pod: package managers open up to 50 at once.
pub const CONNECTIONS_PER_POD_MAX: usize = 128;
/// Average request rate of one attempt; a busy agent makes a few a second.
pub const REQUESTS_PER_SECOND: u32 = 100;
/// Concurrent model calls of one attempt: sub-agents run in parallel; more would outrun the budget.
pub const MODEL_CALLS_MAX: usize = 8;
/// Largest model request: the provider's own limit is 32 MB.
pub const MODEL_BODY_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes of model requests of one attempt in memory at once: the largest one and usual ones beside it.
/// With 16 attempts a node that is the gateway's memory limit, which nobody reaches by honest means.
pub const MODEL_BUFFER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Unit in which buffered bytes are counted.
const BUFFER_UNIT_BYTES: usize = 1024;
/// Concurrent tunnels of one attempt.
pub const TUNNELS_MAX: usize = 64;
/// Bytes that an attempt may send out through tunnels: requests of package managers are small.
pub const TUNNEL_UPLOAD_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Time for the whole header of a request, idle time of a kept-alive connection included.
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest header block; the CLI's is below 4 KiB.
pub const HEADER_BYTES_MAX: usize = 32 * 1024;
/// Most header lines.
pub const HEADERS_MAX: usize = 64;
/// Time for the whole body of an API request.
pub const BODY_READ_TIMEOUT: Duration = Duration::from_mins(2);

/// Source addresses that are remembered: beyond it, those without a connection are forgotten.
const SOURCES_MAX: usize = 4096;

/// Connections that are open and requests that are made, per address and in all. Whoever asks is known
/// by address before anything of a request is believed, so a flood of one pod, whatever tokens it
/// shows, is cut off before it costs others anything.
#[derive(Clone, Debug)]
pub struct Connections {
    all: Arc<Semaphore>,
    sources: Sources,
    per_pod_max: usize,
    rate: u32,
}

type Sources = Arc<Mutex<HashMap<IpAddr, Source>>>;

#[derive(Debug)]
struct Source {
    open: usize,
    requests: Bucket,
}

/// One open connection; counts until dropped.
#[derive(Debug)]
pub struct ConnectionSlot {
    _all: OwnedSemaphorePermit,
    sources: Sources,
    address: IpAddr,
}

impl Connections {
    /// With the configured limits.
    pub fn new(limits: &Limits) -> Self {
        Self {
            all: Arc::new(Semaphore::new(limits.connections)),
            sources: Arc::default(),
            per_pod_max: limits.connections_per_pod,
            rate: limits.requests_per_second,
        }
    }

    /// Takes a slot for `address`; none when a limit is reached.
    pub fn take(&self, address: IpAddr, now: Instant) -> Option<ConnectionSlot> {
        let mut sources = lock(&self.sources);
        if sources.len() >= SOURCES_MAX {
            sources.retain(|_, source| source.open > 0);
        }
        let fresh = || Source { open: 0, requests: Bucket::new(self.rate, now) };
        let source = sources.entry(address).or_insert_with(fresh);
        // The pod's own limit first: a pod that has too many open never takes from what is for all.
        if source.open >= self.per_pod_max {
            return None;
        }
        let all = Arc::clone(&self.all).try_acquire_owned().ok()?;
        source.open += 1;
        Some(ConnectionSlot { _all: all, sources: Arc::clone(&self.sources), address })
    }

    /// Whether one more request of `address` fits its rate. One without a connection has none.
    pub fn take_request(&self, address: IpAddr, now: Instant) -> bool {
        let sources = lock(&self.sources);
        sources.get(&address).is_none_or(|source| source.requests.take(now))
    }
}

fn lock(sources: &Sources) -> std::sync::MutexGuard<'_, HashMap<IpAddr, Source>> {
    sources.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        // The source stays with its rate: a new connection must not be a new allowance.
        if let Some(source) = lock(&self.sources).get_mut(&self.address) {
            source.open -= 1;
        }
    }
}

/// Limits of one attempt.
#[derive(Debug)]
pub struct AttemptLimits {
    runner_requests: Bucket,
    model_calls: Arc<Semaphore>,
    model_calls_max: u32,
    model_buffer: Arc<Semaphore>,
    tunnels: Arc<Semaphore>,
    upload_left: AtomicU64,
}

impl AttemptLimits {
    /// With the configured limits, full at `now`.
    pub fn new(limits: &Limits, now: Instant) -> Self {
        Self {
            runner_requests: Bucket::new(limits.requests_per_second, now),
            model_buffer: Arc::new(Semaphore::new(limits.model_buffer_bytes / BUFFER_UNIT_BYTES)),
            model_calls: Arc::new(Semaphore::new(limits.model_calls)),
            model_calls_max: u32::try_from(limits.model_calls).unwrap_or(u32::MAX),
            tunnels: Arc::new(Semaphore::new(limits.tunnels)),
            upload_left: AtomicU64::new(limits.tunnel_upload_bytes),
        }
    }

    /// Whether one more request of the runner fits the rate. It has one of its own, so that its agent
    /// cannot keep it from reporting.
    pub fn take_runner_request(&self, now: Instant) -> bool {
        self.runner_requests.take(now)
    }

    /// Room for `bytes` more of a model request, until dropped; none when there is none.
    pub fn take_model_buffer(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(BUFFER_UNIT_BYTES)).ok()?;
        Arc::clone(&self.model_buffer).try_acquire_many_owned(units).ok()
    }

    /// A slot for a model call; none when all are taken.
    pub fn take_model_call(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.model_calls).try_acquire_owned().ok()
    }

    /// Waits until no model call is running.
    pub async fn model_calls_done(&self) {
        // The semaphore is never closed, so an error cannot come.
        let _ = self.model_calls.acquire_many(self.model_calls_max).await;
    }

    /// A slot for a tunnel; none when all are taken.
    pub fn take_tunnel(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.tunnels).try_acquire_owned().ok()
    }

    /// Takes `bytes` from the upload allowance; false when it is used up.
    pub fn take_upload(&self, bytes: u64) -> bool {
        self.upload_left
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(bytes))
            .is_ok()
    }
}

/// A token bucket: `rate` a second, twice that at once.
#[derive(Debug)]
struct Bucket {
    rate: f64,
    state: Mutex<(f64, Instant)>,
}

impl Bucket {
    fn new(rate: u32, now: Instant) -> Self {
        let rate = f64::from(rate.max(1));
        Self { rate, state: Mutex::new((rate * 2.0, now)) }
    }

    fn take(&self, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, since) = *state;
        let refilled = now.saturating_duration_since(since).as_secs_f64() * self.rate;
        let left = (left + refilled).min(self.rate * 2.0);
        let taken = left >= 1.0;
        *state = (if taken { left - 1.0 } else { left }, now);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_pod_cannot_take_the_connections_of_another() {
        let limits = Limits { connections: 10, connections_per_pod: 2, ..Limits::default() };
        let connections = Connections::new(&limits);
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let now = Instant::now();
        let first = connections.take(a, now).unwrap();
        let _second = connections.take(a, now).unwrap();
        for _ in 0..1000 {
            assert!(connections.take(a, now).is_none());
        }
        let others: Vec<_> = (0..2).filter_map(|_| connections.take(b, now)).collect();
        assert_eq!(others.len(), 2);
        drop(first);
        assert!(connections.take(a, now).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_from_one_address_costs_another_no_request() {
        let limits = Limits { requests_per_second: 10, ..Limits::default() };
        let connections = Connections::new(&limits);
        let (flood, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let now = Instant::now();
        let _slots = [connections.take(flood, now).unwrap(), connections.take(other, now).unwrap()];
        let passed = (0..10_000).filter(|_| connections.take_request(flood, now)).count();
        assert_eq!(passed, 20, "twice the rate at once");
        let passed = (0..20).filter(|_| connections.take_request(other, now)).count();
        assert_eq!(passed, 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_is_no_new_allowance() {
        let limits = Limits { requests_per_second: 1, ..Limits::default() };
        let connections = Connections::new(&limits);
        let address = IpAddr::from([10, 0, 0, 1]);
        let mut passed = 0;
        for _ in 0..100 {
            let _slot = connections.take(address, Instant::now()).unwrap();
            passed += u32::from(connections.take_request(address, Instant::now()));
        }
        assert_eq!(passed, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn model_requests_of_one_attempt_are_bounded_together() {
        let limits = Limits { model_buffer_bytes: 4096, ..Limits::default() };
        let limits = AttemptLimits::new(&limits, Instant::now());
        let held = limits.take_model_buffer(3000).unwrap();
        assert!(limits.take_model_buffer(2000).is_none());
        drop(held);
        assert!(limits.take_model_buffer(4096).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_recovers_with_time() {
        let bucket = Bucket::new(1, Instant::now());
        assert!(bucket.take(Instant::now()) && bucket.take(Instant::now()));
        assert!(!bucket.take(Instant::now()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(bucket.take(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_upload_allowance_is_spent_once() {
        let limits = Limits { tunnel_upload_bytes: 10, ..Limits::default() };
        let limits = AttemptLimits::new(&limits, Instant::now());
        assert!(limits.take_upload(6));
        assert!(!limits.take_upload(6));
        assert!(limits.take_upload(4));
    }
}
