//! A gateway that stands still while a step starts: shorter, and longer, than its clients wait for one
//! answer. The step is waited for and starts once (class 4, against the gateway).

use std::time::Duration;

use super::{
    harm::victim::{Node, Victim},
    trial::{SOON, Trial, assert_untouched, on},
    witness::Point,
};

const NODE: Node = Node::B;
/// How long it stands still in each of two starts after the pod runs: the second time a runner has given up two calls,
/// which a gateway that goes on finds beside the third.
const STILL: [Duration; 2] = [Duration::from_secs(4), Duration::from_secs(22)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the local cluster: tests/run faults"]
async fn f4_a_step_that_starts_beside_a_frozen_gateway_waits_for_it_and_starts_once() {
    let trial = Trial::begin("frozen-gateway").await;
    let ticking = trial.ticking(4, &on(NODE)).await;
    for still in STILL {
        // What a step has to tell is told by the end of its container, so the gateway stands still before the next one
        // is registered with it.
        assert!(trial.witnesses.next(Point::ContainerEnded, SOON).await, "a step ends");
        let frozen = Victim::Gateway(NODE).freeze();
        assert!(frozen.is_some(), "a gateway runs");
        assert!(
            trial.witnesses.next(Point::ContainerStarted, SOON).await,
            "the next one's pod starts"
        );
        // Not a wait for something to happen: the time itself is the fault.
        tokio::time::sleep(still).await;
        drop(frozen);
    }
    let ended = trial.judge(false).await;
    assert_untouched(&ended[&ticking]);
}
