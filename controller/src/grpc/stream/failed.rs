//! Streams of an upload that could not be stored. Each waits by itself: what comes of it is dropped, and
//! after a pause the node is asked for it once more, from where it stands.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::streams::StreamKey;

/// Pause before a stream is asked for again: a full disk stays full for a while, and each try costs up
/// to a window (1 MiB) of the node's connection.
const PAUSE: Duration = Duration::from_secs(30);

/// How a stream stands that could not be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It is left alone until then.
    Pausing { until: Instant },
    /// The node was asked to go on from here. It may have sent more before it heard of it.
    Asked { offset: u64 },
}

/// The streams that could not be stored; at most as many as are open.
#[derive(Debug, Default)]
pub(super) struct Failed(HashMap<StreamKey, State>);

impl Failed {
    /// Whether every stream can be stored.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A stream could not be stored.
    pub(super) fn insert(&mut self, key: StreamKey, now: Instant) {
        self.0.insert(key, State::Pausing { until: now + PAUSE });
    }

    /// The streams whose pause is over.
    pub(super) fn due(&self, now: Instant) -> Vec<StreamKey> {
        let due = |state: &State| matches!(state, State::Pausing { until } if *until <= now);
        self.0.iter().filter(|(_, state)| due(state)).map(|(key, _)| key.clone()).collect()
    }

    /// The node is asked to go on from `offset`.
    pub(super) fn asked(&mut self, key: &StreamKey, offset: u64) {
        if let Some(state) = self.0.get_mut(key) {
            *state = State::Asked { offset };
        }
    }

    /// The node opens the stream anew.
    pub(super) fn opened(&mut self, key: &StreamKey) {
        self.0.remove(key);
    }

    /// Whether what starts at `offset` is dropped: all, until the node goes on from where it was asked to.
    pub(super) fn drops(&mut self, key: &StreamKey, offset: u64) -> bool {
        let state = self.0.get(key).copied();
        if matches!(state, Some(State::Asked { offset: asked }) if offset <= asked) {
            self.0.remove(key);
            return false;
        }
        state.is_some()
    }
}

#[cfg(test)]
mod tests {
    use agent_operator::domain::stream::Channel;

    use super::*;
    use crate::clock;

    fn key(run: &str) -> StreamKey {
        StreamKey { run: run.into(), channel: Channel::Log }
    }

    #[test]
    fn a_stream_that_failed_is_dropped_alone_until_the_node_goes_on_from_where_it_was_asked_to() {
        let (mut failed, now) = (Failed::default(), clock::instant());
        failed.insert(key("a"), now);
        assert!(failed.drops(&key("a"), 5) && !failed.drops(&key("b"), 5));
        failed.asked(&key("a"), 5);
        assert!(failed.drops(&key("a"), 9), "sent before the node heard of it");
        assert!(!failed.drops(&key("a"), 5) && !failed.drops(&key("a"), 9));
        assert!(failed.is_empty());
    }

    #[test]
    fn a_stream_that_failed_is_asked_for_once_after_a_pause() {
        let (mut failed, now) = (Failed::default(), clock::instant());
        failed.insert(key("a"), now);
        assert_eq!(failed.due(now + PAUSE - Duration::from_millis(1)), []);
        assert_eq!(failed.due(now + PAUSE), [key("a")]);
        failed.asked(&key("a"), 0);
        assert_eq!(failed.due(now + 2 * PAUSE), []);
        failed.asked(&key("b"), 0);
        assert!(!failed.drops(&key("b"), 7), "it never failed");
    }
}
