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

/// Connections that are open, per address and in all.
#[derive(Clone, Debug)]
pub struct Connections {
    all: Arc<Semaphore>,
    per_pod: Arc<Mutex<HashMap<IpAddr, usize>>>,
    per_pod_max: usize,
}

/// One open connection; counts until dropped.
#[derive(Debug)]
pub struct ConnectionSlot {
    _all: OwnedSemaphorePermit,
    per_pod: Arc<Mutex<HashMap<IpAddr, usize>>>,
    address: IpAddr,
}

impl Connections {
    /// With the configured limits.
    pub fn new(limits: &Limits) -> Self {
        Self {
            all: Arc::new(Semaphore::new(limits.connections)),
            per_pod: Arc::default(),
            per_pod_max: limits.connections_per_pod,
        }
    }

    /// Takes a slot for `address`; none when a limit is reached.
    pub fn take(&self, address: IpAddr) -> Option<ConnectionSlot> {
        let all = Arc::clone(&self.all).try_acquire_owned().ok()?;
        let mut per_pod = self.per_pod.lock().unwrap_or_else(PoisonError::into_inner);
        let open = per_pod.entry(address).or_insert(0);
        if *open >= self.per_pod_max {
            return None;
        }
        *open += 1;
        Some(ConnectionSlot { _all: all, per_pod: Arc::clone(&self.per_pod), address })
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut per_pod = self.per_pod.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = per_pod.get_mut(&self.address) {
            *open -= 1;
            if *open == 0 {
                per_pod.remove(&self.address);
            }
        }
    }
}

/// Limits of one attempt.
#[derive(Debug)]
pub struct AttemptLimits {
    requests: Bucket,
    model_calls: Arc<Semaphore>,
    model_calls_max: u32,
    tunnels: Arc<Semaphore>,
    upload_left: AtomicU64,
}

impl AttemptLimits {
    /// With the configured limits, full at `now`.
    pub fn new(limits: &Limits, now: Instant) -> Self {
        Self {
            requests: Bucket::new(limits.requests_per_second, now),
            model_calls: Arc::new(Semaphore::new(limits.model_calls)),
            model_calls_max: u32::try_from(limits.model_calls).unwrap_or(u32::MAX),
            tunnels: Arc::new(Semaphore::new(limits.tunnels)),
            upload_left: AtomicU64::new(limits.tunnel_upload_bytes),
        }
    }

    /// Whether one more request fits the rate.
    pub fn take_request(&self, now: Instant) -> bool {
        self.requests.take(now)
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

    #[test]
    fn one_pod_cannot_take_the_connections_of_another() {
        let limits = Limits { connections: 10, connections_per_pod: 2, ..Limits::default() };
        let connections = Connections::new(&limits);
        let a = IpAddr::from([10, 0, 0, 1]);
        let first = connections.take(a).unwrap();
        let _second = connections.take(a).unwrap();
        assert!(connections.take(a).is_none());
        assert!(connections.take(IpAddr::from([10, 0, 0, 2])).is_some());
        drop(first);
        assert!(connections.take(a).is_some());
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
