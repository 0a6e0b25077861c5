//! What the enforcer counts, in memory: its supervisor asks for it over the socket and shows it among its
//! own metrics, so that this process needs no port on the host's network.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    contract::{Answer, Counts},
    ruleset::{FROM, TO},
    tools::Dropped,
};
use crate::clock;

/// The counts.
#[derive(Debug, Default)]
pub struct Tally {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    counts: Counts,
    /// What the kernel's counter of each chain said last.
    last: HashMap<String, u64>,
}

impl Tally {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As they are now.
    pub fn counts(&self) -> Counts {
        self.inner().counts
    }

    /// An order was answered so.
    pub(super) fn answered(&self, answer: &Answer) {
        let counts = &mut self.inner().counts;
        match answer {
            Answer::Closed { .. } => {
                counts.closed += 1;
                counts.last_closed_seconds = clock::now().wall.as_second();
            }
            Answer::NotClosed { retryable: true, .. } => counts.delayed += 1,
            Answer::NotClosed { retryable: false, .. } => counts.refused += 1,
        }
    }

    /// Somebody else than the supervisor has connected.
    pub(super) fn foreign(&self) {
        self.inner().counts.foreign += 1;
    }

    /// A sweep was made, or failed.
    pub(super) fn swept(&self, well: bool) {
        self.inner().counts.failed_sweeps += u64::from(!well);
    }

    /// What the kernel has dropped so far, in every chain that is there. A counter that is smaller than it
    /// was began anew, with the rules of its pod.
    pub(super) fn dropped(&self, chains: &[Dropped]) {
        let mut inner = self.inner();
        let mut last = HashMap::with_capacity(chains.len());
        inner.counts.pods = 0;
        for Dropped { chain, packets } in chains {
            let before = inner.last.get(chain).copied().filter(|before| before <= packets);
            let news = packets - before.unwrap_or_default();
            if chain.starts_with(FROM) {
                inner.counts.pods += 1;
                inner.counts.dropped_from += news;
            } else if chain.starts_with(TO) {
                inner.counts.dropped_to += news;
            }
            last.insert(chain.clone(), *packets);
        }
        inner.last = last;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropped(of: &[(&str, u64)]) -> Vec<Dropped> {
        of.iter()
            .map(|(chain, packets)| Dropped { chain: (*chain).to_owned(), packets: *packets })
            .collect()
    }

    #[test]
    fn drops_add_up_over_rules_that_are_made_anew_and_pods_that_are_gone() {
        let tally = Tally::default();
        tally.dropped(&dropped(&[("from-7-a", 5), ("to-7-a", 1), ("from-8-b", 2), ("to-8-b", 0)]));
        tally.dropped(&dropped(&[("from-7-a", 8), ("to-7-a", 1), ("other", 9)]));
        tally.dropped(&dropped(&[("from-7-a", 1), ("to-7-a", 3)]));
        let counts = tally.counts();
        assert_eq!((counts.dropped_from, counts.dropped_to), (5 + 2 + 3 + 1, 1 + 2));
        assert_eq!(counts.pods, 1);
        tally.dropped(&[]);
        assert_eq!(tally.counts().pods, 0);
    }

    #[test]
    fn orders_are_counted_by_their_answer() {
        let tally = Tally::default();
        let not = |retryable| Answer::NotClosed { message: String::new(), retryable };
        let closed = Answer::Closed { device: "veth7".to_owned(), index: Some(7), anew: true };
        for answer in [closed, not(true), not(false)] {
            tally.answered(&answer);
        }
        tally.foreign();
        tally.swept(true);
        tally.swept(false);
        let counts = tally.counts();
        assert_eq!((counts.closed, counts.delayed, counts.refused), (1, 1, 1));
        assert_eq!((counts.foreign, counts.failed_sweeps), (1, 1));
        assert!(counts.last_closed_seconds > 0);
    }
}
