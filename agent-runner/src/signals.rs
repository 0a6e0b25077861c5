//! Signals of PID 1, taken from a descriptor so that their sender is known.

use std::{sync::Arc, thread, time::Duration};

use agent_operator::domain::Reason;
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};

use crate::{
    clock, deadline,
    process::Processes,
    stop::{Stop, Stopping},
};

/// Signals that could end the process by default. Blocked for good, in every thread.
const ENDING: [Signal; 8] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
];

/// Blocks the signals and opens their descriptor. Must run before any thread is started, since
/// threads inherit the mask.
pub(crate) fn open() -> nix::Result<SignalFd> {
    let mut mask = SigSet::empty();
    for signal in ENDING {
        mask.add(signal);
    }
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC)
}

/// Reaps orphans, and turns SIGTERM or SIGINT from outside the pod into a stop order.
pub(crate) fn start(
    descriptor: SignalFd,
    processes: Arc<Processes>,
    stop: Arc<Stop>,
    grace: Duration,
) {
    thread::spawn(move || {
        while let Ok(Some(info)) = descriptor.read_signal() {
            let Ok(number) = i32::try_from(info.ssi_signo) else { continue };
            if number == Signal::SIGCHLD as i32 {
                processes.reap_orphans();
            } else if is_order(number, info.ssi_pid) {
                let message = "the pod is being stopped from outside".to_owned();
                let kill_at = clock::boot_now() + grace;
                // Eviction, drain and deletion look alike from here; the node knows which it was.
                deadline::order(&stop, Stopping { reason: Reason::Disrupted, message, kill_at });
            }
        }
    });
}

/// Whether a signal is an order: SIGTERM or SIGINT from a process that this PID namespace does not
/// see (the kubelet's side). The agent's own signals have its pid and are ignored.
fn is_order(number: i32, sender: u32) -> bool {
    sender == 0 && (number == Signal::SIGTERM as i32 || number == Signal::SIGINT as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_from_inside_the_pod_are_no_orders() {
        assert!(is_order(Signal::SIGTERM as i32, 0));
        assert!(is_order(Signal::SIGINT as i32, 0));
        assert!(!is_order(Signal::SIGTERM as i32, 17));
        assert!(!is_order(Signal::SIGUSR1 as i32, 0));
    }
}
