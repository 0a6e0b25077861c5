//! Wakes tails when something happens to their files.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

/// Wakes tails when their folder changes; one inotify instance for the whole node.
pub struct Waker {
    watcher: Mutex<Option<RecommendedWatcher>>,
    folders: Arc<Mutex<HashMap<PathBuf, Arc<Notify>>>>,
}

impl Waker {
    /// A waker; without inotify the tails still poll.
    pub fn new() -> Self {
        let folders: Arc<Mutex<HashMap<PathBuf, Arc<Notify>>>> = Arc::default();
        let of_watcher = Arc::clone(&folders);
        let wake = move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else { return };
            let folders = of_watcher.lock().unwrap_or_else(PoisonError::into_inner);
            for folder in event.paths.iter().filter_map(|path| path.parent()) {
                if let Some(notify) = folders.get(folder) {
                    notify.notify_one();
                }
            }
        };
        let watcher = notify::recommended_watcher(wake)
            .inspect_err(|error| tracing::warn!(%error, "no inotify; logs are polled"))
            .ok();
        Self { watcher: Mutex::new(watcher), folders }
    }

    pub(super) fn watch(&self, folder: &Path) -> Arc<Notify> {
        let notify = Arc::new(Notify::new());
        let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
        folders.insert(folder.to_owned(), Arc::clone(&notify));
        drop(folders);
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watcher) = watcher.as_mut() {
            let _ = watcher.watch(folder, RecursiveMode::NonRecursive);
        }
        notify
    }

    pub(super) fn forget(&self, folder: &Path) {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner).remove(folder);
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watcher) = watcher.as_mut() {
            let _ = watcher.unwatch(folder);
        }
    }
}

impl Default for Waker {
    fn default() -> Self {
        Self::new()
    }
}
