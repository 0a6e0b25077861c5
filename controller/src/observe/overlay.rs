//! Own writes, visible before the watch brings them back: without this, every pass right after a
//! write would decide on the state before it and write again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use kube::ResourceExt;
use std::sync::{Mutex, PoisonError};
use tokio::time::Instant;

use crate::clock;

/// Longest time that an own write outranks the watch: a watch is noticed to be dead within 15 s, and
/// after a relist the store is newer anyway.
pub(super) const KEEP: Duration = Duration::from_mins(1);

/// The newest versions that this process wrote itself.
pub struct Overlay<K>(Mutex<HashMap<String, (Instant, Arc<K>)>>);

impl<K> Default for Overlay<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: ResourceExt> Overlay<K> {
    /// Takes note of the answer to an own write.
    pub fn put(&self, object: Arc<K>) {
        let now = clock::instant();
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        written.retain(|_, (at, _)| now.duration_since(*at) < KEEP);
        if let Some(uid) = object.uid() {
            written.insert(uid, (now, object));
        }
    }

    /// Drops what is known of an object that is gone.
    pub fn remove(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// The watch has brought `stored`: an own write that is no newer has done its duty.
    pub fn seen(&self, stored: &K) {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(uid) = stored.meta().uid.as_deref() else { return };
        if written.get(uid).is_some_and(|(_, own)| version(own.as_ref()) <= version(stored)) {
            written.remove(uid);
        }
    }

    /// The newer of `stored` and an own write of the same object.
    pub fn newest(&self, stored: Arc<K>) -> Arc<K> {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(uid) = stored.meta().uid.as_deref() else { return stored };
        match written.get(uid) {
            Some((_, own)) if version(own.as_ref()) > version(stored.as_ref()) => {
                return Arc::clone(own);
            }
            Some(_) => drop(written.remove(uid)),
            None => {}
        }
        stored
    }
}

/// Resource versions of one kind are ordered numbers (KEP-5504); others count as oldest.
pub(super) fn version<K: ResourceExt>(object: &K) -> u64 {
    object.resource_version().and_then(|version| version.parse().ok()).unwrap_or(0)
}
