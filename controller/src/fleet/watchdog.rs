//! The node lease: a session that says nothing for too long is ended, so that the deciding side
//! learns of a dead link at a known time and not when TCP gives up.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::sessions::Sessions;
use crate::{clock, metrics::Metrics};

/// How often the sessions are looked at: adds at most this much to the lease.
const PERIOD: Duration = Duration::from_secs(1);

/// Ends silent sessions until `stop`, and keeps the gauges of room.
pub async fn run(sessions: Sessions, lease: Duration, metrics: Metrics, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        for node in sessions.end_silent(lease, clock::instant()) {
            tracing::warn!(%node, lease_seconds = lease.as_secs(), "node is silent, ending its session");
        }
        let (all, used) = sessions.slots();
        metrics.set_slots(all, used);
    }
}
