//! Secrets that are read while the outcome before them is still being written: the pass that hands out
//! the next step needs them right after, and would wait for them alone. Each reading is for one task,
//! is taken once, and is dropped unread after a moment.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use agent_operator::domain::TaskUid;
use k8s_openapi::api::core::v1::Secret;
use tokio::sync::oneshot;

use super::CredentialError;

/// How long a reading is kept for the pass that follows: some writes of an API server. A Secret that
/// somebody changes in this time is used as it was.
const KEEP: Duration = Duration::from_millis(500);

/// A task and the name of a Secret in its namespace.
type Key = (TaskUid, String);

#[derive(Default)]
struct Readings {
    serial: u64,
    by_key: HashMap<Key, (u64, oneshot::Receiver<Secret>)>,
}

/// The readings under way and those that nobody has taken yet.
#[derive(Clone, Default)]
pub(super) struct Ahead(Arc<Mutex<Readings>>);

impl Ahead {
    fn lock(&self) -> MutexGuard<'_, Readings> {
        // A panic elsewhere leaves at worst a reading that nobody takes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a reading. One that fails is not told: whoever needs it reads again, and sees why.
    pub(super) fn begin(
        &self,
        task: &TaskUid,
        name: &str,
        reading: impl Future<Output = Result<Secret, CredentialError>> + Send + 'static,
    ) {
        let key = (task.clone(), name.to_owned());
        let (done, result) = oneshot::channel();
        let serial = {
            let mut readings = self.lock();
            readings.serial += 1;
            let serial = readings.serial;
            readings.by_key.insert(key.clone(), (serial, result));
            serial
        };
        let ahead = self.clone();
        tokio::spawn(async move {
            if let Ok(secret) = reading.await
                // Taken and given up already.
                && done.send(secret).is_err()
            {
                return;
            }
            tokio::time::sleep(KEEP).await;
            let mut readings = ahead.lock();
            if readings.by_key.get(&key).is_some_and(|(known, _)| *known == serial) {
                readings.by_key.remove(&key);
            }
        });
    }

    /// The result of a reading that was begun for this task; none if there was none or it failed.
    pub(super) async fn take(&self, task: &TaskUid, name: &str) -> Option<Secret> {
        let taken = self.lock().by_key.remove(&(task.clone(), name.to_owned()));
        taken?.1.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Secret {
        let mut secret = Secret::default();
        secret.metadata.name = Some(name.to_owned());
        secret
    }

    #[tokio::test(start_paused = true)]
    async fn a_reading_is_taken_once_by_the_task_that_it_was_begun_for() {
        let (ahead, task) = (Ahead::default(), TaskUid::from("t"));
        ahead.begin(&task, "s", async { Ok(named("s")) });
        assert_eq!(ahead.take(&"other".into(), "s").await, None);
        assert_eq!(ahead.take(&task, "other").await, None);
        assert_eq!(ahead.take(&task, "s").await, Some(named("s")));
        assert_eq!(ahead.take(&task, "s").await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reading_that_is_under_way_is_waited_for_and_one_that_failed_counts_as_none() {
        let (ahead, task) = (Ahead::default(), TaskUid::from("t"));
        ahead.begin(&task, "slow", async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(named("slow"))
        });
        ahead.begin(&task, "away", async { Err(CredentialError::Wait("away".to_owned())) });
        assert_eq!(ahead.take(&task, "slow").await, Some(named("slow")));
        assert_eq!(ahead.take(&task, "away").await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_takes_is_dropped_after_a_moment_and_not_with_what_came_after_it() {
        let (ahead, task) = (Ahead::default(), TaskUid::from("t"));
        ahead.begin(&task, "s", async { Ok(named("old")) });
        tokio::time::sleep(KEEP / 2).await;
        ahead.begin(&task, "s", async { Ok(named("new")) });
        tokio::time::sleep(KEEP * 3 / 4).await;
        assert_eq!(ahead.take(&task, "s").await, Some(named("new")));
        ahead.begin(&task, "s", async { Ok(named("s")) });
        tokio::time::sleep(KEEP * 2).await;
        assert!(ahead.lock().by_key.is_empty());
    }
}
