//! What the enforcer has dropped of a pod stands among the refusals of its attempt, once, and without what was sent
//! before the gate opened.

use std::collections::VecDeque;

use agent_operator::domain::report::Outcome;

use super::*;
use crate::{
    enforcer::{
        client::ClientError,
        contract::{Answer, CloseOrder},
    },
    steps::egress::DROPPED,
};

/// Closes every pod, and counts as it is told.
struct Counting(Mutex<VecDeque<u64>>);

#[async_trait]
impl Enforcer for Counting {
    async fn close(&self, _: &CloseOrder) -> Result<Answer, ClientError> {
        Ok(Answer::Closed { device: "veth7".to_owned(), index: Some(7), anew: true })
    }

    async fn dropped_of(&self, pod_uid: &str) -> Result<u64, ClientError> {
        assert_eq!(pod_uid, "pod-uid");
        self.0.lock().unwrap().pop_front().ok_or(ClientError::CountsNothing)
    }
}

/// The outcome of a step whose pod's packets were counted so: at the gate, and at the end.
async fn outcome_of(counts: &[u64]) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let pods = Arc::new(FakePods::default());
    let counting = Counting(Mutex::new(counts.iter().copied().collect()));
    *pods.enforcer.lock().unwrap() = Some(Arc::new(counting));
    let cgroup = container_cgroup(dir.path());
    let mut life = Life::start(dir.path(), &pods).await;
    life.assign(assignment()).await;
    life.open_probed_gate(&pods).await;
    life.durable(4, result_event()).await;
    std::fs::write(cgroup.join("pids.current"), "0\n").unwrap();
    let outcome = life.outcome().await;
    life.kill().await;
    outcome
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_that_an_agent_sent_past_its_gateway_are_told_with_its_outcome() {
    for (counts, told) in [
        (&[3, 20][..], Some(17)),
        // The probe's own are none of the agent's.
        (&[3, 3], None),
        // An enforcer that answers no more keeps nobody waiting.
        (&[3], None),
        (&[], None),
    ] {
        let refusals = outcome_of(counts).await.refusals;
        let found: Vec<_> = refusals.iter().map(|one| (one.kind.as_str(), one.count)).collect();
        let wanted: Vec<_> = told.map(|count| (DROPPED, count)).into_iter().collect();
        assert_eq!(found, wanted, "{counts:?}");
    }
}
