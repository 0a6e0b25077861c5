//! What a follower waits for.

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tonic::Status;

use super::{Follower, Stop};
use crate::{
    grpc::status::from_store,
    streams::{StoreError, StreamStore},
};

impl Follower {
    /// Waits for a change of the run's streams, which stays marked, or of any object.
    pub(super) async fn wait_either(
        &self,
        changes: &mut watch::Receiver<u64>,
        arrivals: &mut watch::Receiver<u64>,
        until: Option<Instant>,
    ) -> Result<(), Stop> {
        tokio::select! {
            waited = self.wait(changes, until) => waited,
            _ = arrivals.changed() => {
                arrivals.mark_changed();
                Ok(())
            }
        }
    }

    /// Waits for a change of any object, until a time, or for the follower's departure.
    pub(super) async fn wait(
        &self,
        changes: &mut watch::Receiver<u64>,
        until: Option<Instant>,
    ) -> Result<(), Stop> {
        let change = async {
            match until {
                // Elapsed is as good a reason to look as a change.
                Some(until) => timeout_at(until, changes.changed()).await.unwrap_or(Ok(())),
                None => changes.changed().await,
            }
        };
        tokio::select! {
            () = self.out.closed() => Err(Stop::Gone),
            seen = change => {
                seen.map_err(|_| Stop::Status(Status::unavailable("shutting down")))
            }
        }
    }

    /// Reads files off the async workers.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&StreamStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Status> {
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || read(&store))
            .await
            .map_err(|_| Status::internal("the stream store failed"))?
            .map_err(|error| from_store(&error))
    }
}
