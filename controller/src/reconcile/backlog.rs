//! Tasks that are looked at because a term or a session began or room may be free, not because something happened to them.
//! There may be thousands of them, and what happens meanwhile must not wait behind them all: they are
//! handed out a few at a time.

use std::{
    collections::{HashSet, VecDeque},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::sync::Notify;

/// Namespace and name of a task.
pub(super) type Name = (String, String);

/// Passes of the backlog under way: enough that no pass that could run waits for the next one, twice
/// the number of passes at once.
const UNDER_WAY_MAX: u64 = 32;
/// How long nothing may come back before the next is handed out all the same: two requests for one task
/// are one pass, so the count alone may be wrong.
pub(super) const OVERDUE: Duration = Duration::from_millis(50);

/// Counts passes that have ended.
#[derive(Debug, Default)]
pub(super) struct Passes {
    ended: AtomicU64,
    changed: Notify,
}

impl Passes {
    /// A pass has ended, well or not.
    pub(super) fn note_end(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// How many have.
    pub(super) fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// Waits for the next end. For one waiter.
    pub(super) async fn next_end(&self) {
        self.changed.notified().await;
    }
}

/// The tasks, each once, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    names: VecDeque<Name>,
    known: HashSet<Name>,
    /// Passes that had ended or were handed out.
    counted: u64,
}

impl Backlog {
    /// Adds tasks that do not wait already.
    pub(super) fn extend(&mut self, names: impl IntoIterator<Item = Name>) {
        for name in names {
            if self.known.insert(name.clone()) {
                self.names.push_back(name);
            }
        }
    }

    /// Whether none waits.
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The next task, if few enough are under way after `ended` passes.
    pub(super) fn next(&mut self, ended: u64) -> Option<Name> {
        self.counted = self.counted.max(ended);
        if self.counted - ended >= UNDER_WAY_MAX { None } else { self.next_anyway() }
    }

    /// The next task, whatever is under way.
    pub(super) fn next_anyway(&mut self) -> Option<Name> {
        let name = self.names.pop_front()?;
        self.known.remove(&name);
        self.counted += 1;
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: u64) -> Name {
        ("ns".to_owned(), format!("task-{number}"))
    }

    #[test]
    fn a_few_are_under_way_and_each_end_lets_the_next_one_go() {
        let mut backlog = Backlog::default();
        backlog.extend((0..100).map(name));
        let first: Vec<_> = std::iter::from_fn(|| backlog.next(5)).collect();
        assert_eq!(first, (0..UNDER_WAY_MAX).map(name).collect::<Vec<_>>(), "in order");
        assert_eq!(backlog.next(6), Some(name(UNDER_WAY_MAX)));
        assert_eq!(backlog.next(6), None);
        // More ends than were handed out: passes over what changed count too.
        assert!(std::iter::from_fn(|| backlog.next(1000)).count() as u64 == UNDER_WAY_MAX);
        assert!(backlog.next_anyway().is_some(), "a count that is wrong does not stop it");
    }

    #[test]
    fn a_task_waits_once_and_may_come_again_after_its_turn() {
        let mut backlog = Backlog::default();
        backlog.extend([name(1), name(2), name(1)]);
        assert_eq!(backlog.next(0), Some(name(1)));
        backlog.extend([name(1), name(2)]);
        assert_eq!([backlog.next(0), backlog.next(0)], [Some(name(2)), Some(name(1))]);
        assert!(backlog.is_empty());
    }
}
