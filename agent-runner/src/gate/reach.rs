//! Tries what a sandbox must not reach, before anything hostile runs in it.
//!
//! Only an accepted connection counts: the addresses are known to listen, so a refusal is the answer
//! of a wall. The canary is tried before the wall as well; how fast it answered then says how long
//! silence is waited for afterwards.

use std::{net::SocketAddr, thread, time::Duration};

use agent_operator::attempt::{ProbeOrder, ProbeReport};

use crate::{clock, stop::Stop};

/// Longest wait for one answer. The canary is on this node, and the kernel answers for it, so silence
/// of this length is no load.
const ANSWER_MAX: Duration = Duration::from_millis(250);
/// Shortest wait, however fast the canary was.
const ANSWER_MIN: Duration = Duration::from_millis(100);
/// How many times longer than the canary's answer silence is waited for.
const MARGIN: u32 = 50;
/// Pause between two tries at an open network.
const PAUSE: Duration = Duration::from_millis(500);
/// Most addresses of one order; more than the supervisor has.
const TARGETS_MAX: usize = 16;

/// What is known of the canary before the wall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Before {
    /// Whether it accepted a connection.
    pub(super) reached: bool,
    /// How long silence is waited for afterwards.
    patience: Duration,
}

/// Tries the canary.
pub(super) fn before(canary: SocketAddr) -> Before {
    let began = clock::boot_now();
    let reached = accepts(canary, ANSWER_MAX);
    let took = clock::boot_now().saturating_sub(began);
    let patience = if reached { (took * MARGIN).clamp(ANSWER_MIN, ANSWER_MAX) } else { ANSWER_MAX };
    Before { reached, patience }
}

/// Tries the addresses of `order`, all at once; again while one is reached, its patience lasts and no
/// order to stop has come.
pub(super) fn probe(order: &ProbeOrder, before: Before, stop: &Stop) -> ProbeReport {
    let until = clock::boot_now() + Duration::from_millis(order.patience_millis);
    let tried: Vec<_> = order.targets.iter().copied().take(TARGETS_MAX).collect();
    loop {
        let reached = reached(&tried, before.patience);
        let now = clock::boot_now();
        if reached.is_empty() || now >= until || stop.order().is_some() {
            return ProbeReport { tried, reached };
        }
        stop.wait(Some(now + PAUSE), || false);
    }
}

fn reached(targets: &[SocketAddr], limit: Duration) -> Vec<SocketAddr> {
    thread::scope(|scope| {
        let tries: Vec<_> = targets
            .iter()
            .map(|target| (*target, scope.spawn(move || accepts(*target, limit))))
            .collect();
        // A thread that died has proven nothing, so its address counts as reached.
        tries
            .into_iter()
            .filter_map(|(target, tried)| tried.join().unwrap_or(true).then_some(target))
            .collect()
    })
}

fn accepts(target: SocketAddr, limit: Duration) -> bool {
    std::net::TcpStream::connect_timeout(&target, limit).is_ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn order(targets: Vec<SocketAddr>, patience_millis: u64) -> ProbeOrder {
        ProbeOrder { targets, patience_millis }
    }

    /// Two ports: one listens, the other does not.
    fn ports() -> (TcpListener, SocketAddr, SocketAddr) {
        let open = TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let address = open.local_addr().unwrap();
        (open, address, closed)
    }

    #[test]
    fn what_listens_is_reached_and_what_does_not_is_not() {
        let (_listener, open, closed) = ports();
        assert!(before(open).reached);
        assert!(!before(closed).reached);
        let report = probe(&order(vec![closed, open], 0), before(open), &Stop::default());
        assert_eq!(report, ProbeReport { tried: vec![closed, open], reached: vec![open] });
    }

    #[test]
    fn an_open_network_has_the_orders_patience_to_close() {
        let (listener, open, _) = ports();
        let closes = thread::spawn(move || {
            // The first try's connection; the port closes after it.
            drop(listener.accept().unwrap());
            drop(listener);
        });
        let before = Before { reached: true, patience: ANSWER_MIN };
        let report = probe(&order(vec![open], 20_000), before, &Stop::default());
        closes.join().unwrap();
        assert_eq!(report, ProbeReport { tried: vec![open], reached: vec![] });
    }

    #[test]
    fn silence_is_waited_for_as_long_as_the_canary_asks_and_no_longer_than_the_limit() {
        let (_listener, open, _) = ports();
        let before = before(open);
        assert!((ANSWER_MIN..=ANSWER_MAX).contains(&before.patience), "{before:?}");
    }
}
