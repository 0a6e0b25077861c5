//! Deadlines that hold whatever hangs: a full queue, a disk that does not answer, a runtime whose
//! workers are all blocked. A thread of its own waits for the kernel's boot-time timer and needs
//! neither the runner nor any runtime of the process; what it orders is carried out by [`hand`] on a
//! second thread with a small runtime, a connection to the gateway and an API client of its own.
//!
//! It repeats what the runner does at a deadline, so it is harmless beside it: an order to stop at
//! the deadline, the deletion of the pod when the grace is over. The order needs no API server: it
//! reaches agent-runner through the gateway, and when PID 1 exits the kernel ends the sandbox. What
//! remains without an API server *and* with a frozen agent-runner is the kubelet's
//! `activeDeadlineSeconds`; this process has no right to signal processes of other pods.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use agent_operator::{
    attempt::StopOrder,
    domain::{RunKey, ids::PodUid},
};
use nix::sys::{
    time::{TimeSpec, TimeValLike as _},
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{deadline::DeadlineError, moment::BootTime};
use crate::clock;

pub mod hand;

/// What has to end, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guarded {
    /// The step's deadline.
    pub at: BootTime,
    /// The order for the runner; its grace is the time until the pod is deleted.
    pub order: StopOrder,
    /// Namespace of the pod.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// Its uid, the precondition of the deletion.
    pub uid: PodUid,
}

/// One act at a deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Order the runner to stop.
    Stop,
    /// Delete the pod.
    Delete,
}

/// Carries acts out. Must return at once: the thread of the deadlines calls it.
pub trait Hand: Send + Sync {
    /// Begins `act`; repeats it until it is done or `over`.
    fn begin(&self, run: &RunKey, act: Act, guarded: &Guarded, over: CancellationToken);
}

#[derive(Debug)]
struct Held {
    guarded: Guarded,
    next: Option<Act>,
    over: CancellationToken,
    /// Context of the log lines about it.
    within: tracing::Span,
}

impl Held {
    fn due_at(&self) -> Option<BootTime> {
        match self.next.as_ref()? {
            Act::Stop => Some(self.guarded.at),
            Act::Delete => {
                let grace = Duration::from_millis(self.guarded.order.grace_millis);
                Some(self.guarded.at.plus(grace))
            }
        }
    }
}

struct Shared {
    /// None in a simulation, where tokio's time takes the kernel's place.
    timer: Option<TimerFd>,
    /// Tells a simulation that another act may be the next.
    changed: Notify,
    held: Mutex<HashMap<RunKey, Held>>,
    closed: AtomicBool,
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, HashMap<RunKey, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the kernel's timer to the earliest act.
    fn arm(&self, held: &HashMap<RunKey, Held>) -> Result<(), DeadlineError> {
        let Some(timer) = &self.timer else {
            self.changed.notify_one();
            return Ok(());
        };
        match next(held) {
            // A time of zero would disarm: a moment before this boot is due at once.
            Some(at) => timer.set(
                Expiration::OneShot(TimeSpec::nanoseconds(at.0.max(1))),
                TimerSetTimeFlags::TFD_TIMER_ABSTIME,
            )?,
            None => timer.unset()?,
        }
        Ok(())
    }

    /// Begins everything that is due at `now`.
    fn act(&self, now: BootTime, hand: &dyn Hand) -> Result<(), DeadlineError> {
        let mut held = self.held();
        for (run, entry) in held.iter_mut() {
            while let Some(act) = due(entry, now) {
                entry.next = (act == Act::Stop).then_some(Act::Delete);
                let within = entry.within.clone();
                within.in_scope(|| hand.begin(run, act, &entry.guarded, entry.over.clone()));
            }
        }
        self.arm(&held)
    }
}

fn next(held: &HashMap<RunKey, Held>) -> Option<BootTime> {
    held.values().filter_map(Held::due_at).min()
}

fn due(entry: &Held, now: BootTime) -> Option<Act> {
    entry.due_at().filter(|at| *at <= now).and_then(|_| entry.next.clone())
}

/// The guarded deadlines of all attempts.
pub struct Guards {
    shared: Arc<Shared>,
}

impl Drop for Guards {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.changed.notify_one();
        if let Some(timer) = &self.shared.timer {
            let at_once = Expiration::OneShot(TimeSpec::nanoseconds(1));
            let _ = timer.set(at_once, TimerSetTimeFlags::TFD_TIMER_ABSTIME);
        }
    }
}

impl Guards {
    /// No deadline yet; starts the thread.
    pub fn new(hand: Arc<dyn Hand>) -> Result<Self, DeadlineError> {
        let simulated = clock::is_simulated();
        let timer = || TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC);
        let shared = Arc::new(Shared {
            timer: if simulated { None } else { Some(timer()?) },
            changed: Notify::new(),
            held: Mutex::default(),
            closed: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        if simulated {
            tokio::spawn(async move { watch_simulated(&of_thread, hand.as_ref()).await });
            return Ok(Self { shared });
        }
        std::thread::Builder::new()
            .name("guards".to_owned())
            .spawn(move || watch(&of_thread, hand.as_ref()))
            .map_err(DeadlineError::Start)?;
        Ok(Self { shared })
    }

    /// Guards an attempt's deadline; replaces what was held for it. Log lines about it get the
    /// caller's context.
    pub fn hold(&self, run: RunKey, guarded: Guarded) -> Result<(), DeadlineError> {
        let mut held = self.shared.held();
        let (over, within) = (CancellationToken::new(), tracing::Span::current());
        let entry = Held { guarded, next: Some(Act::Stop), over, within };
        if let Some(before) = held.insert(run, entry) {
            before.over.cancel();
        }
        self.shared.arm(&held)
    }

    /// The runner has given its result: an order to stop would only spoil its exit code.
    pub fn spare_the_order(&self, run: &RunKey) {
        if let Some(entry) = self.shared.held().get_mut(run)
            && entry.next == Some(Act::Stop)
        {
            // The kernel's timer may fire once for nothing.
            entry.next = Some(Act::Delete);
        }
    }

    /// Nothing of the attempt runs any more.
    pub fn release(&self, run: &RunKey) {
        if let Some(entry) = self.shared.held().remove(run) {
            entry.over.cancel();
        }
    }
}

/// Waits for the kernel until the owner is gone.
fn watch(shared: &Shared, hand: &dyn Hand) {
    while !shared.closed.load(Ordering::Acquire) {
        let Some(timer) = &shared.timer else { return };
        let acted = timer.wait().map_err(DeadlineError::from);
        if shared.closed.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = acted.and_then(|()| shared.act(clock::boot(), hand)) {
            // The runner's own timers and agent-runner's deadline remain.
            tracing::error!(error = %agent_operator::domain::text::error_chain(&error), "deadlines are no longer guarded");
            return;
        }
    }
}

/// The same by tokio's time.
async fn watch_simulated(shared: &Shared, hand: &dyn Hand) {
    while !shared.closed.load(Ordering::Acquire) {
        let at = next(&shared.held());
        let due = async {
            match at {
                Some(at) => tokio::time::sleep(at.since(clock::boot())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = shared.changed.notified() => continue,
            () = due => {}
        }
        // Without a kernel's timer nothing can fail.
        let _ = shared.act(clock::boot(), hand);
    }
}

#[cfg(test)]
mod tests;
