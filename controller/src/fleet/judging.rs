//! The place in a session's queue behind which permits to write upstream may go out.
//!
//! A permit is for a node and not for an attempt. A node that comes back may hold attempts that were
//! given up meanwhile, whose pushes wait in its quarantine for nothing but a permit. So the first one
//! of a session goes out behind the orders to end them, through the same queue: when each attempt that
//! the Hello named has been judged.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::mpsc::OwnedPermit;

use super::Command;

/// What goes through a session's queue.
#[derive(Debug)]
pub enum Queued {
    /// For the node.
    Command(Command),
    /// All that the node named in its Hello is judged; orders to end stand before this.
    Judged,
}

/// Counts the verdicts on what one Hello named, for one session. One that is never told of all of
/// them lets no permit out: the supervisor then opens another session, which starts over. Cheap to
/// clone; the default is of a session that waits for nobody.
#[derive(Clone, Debug, Default)]
pub struct Judging(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    left: AtomicUsize,
    /// Kept free from the start, so that a queue full of commands cannot keep it out.
    place: Mutex<Option<OwnedPermit<Queued>>>,
}

impl Judging {
    /// Waits for verdicts on `attempts` attempts, and for the opening itself.
    pub(super) fn new(attempts: usize, place: Option<OwnedPermit<Queued>>) -> Self {
        let left = AtomicUsize::new(attempts.saturating_add(1));
        Self(Arc::new(Inner { left, place: Mutex::new(place) }))
    }

    /// One of them is judged: if it has to end, the order stands in the queue by now.
    pub fn one_judged(&self) {
        if self.0.left.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let mut place = self.0.place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = place.take() {
            place.send(Queued::Judged);
        }
    }
}
