use super::*;
use crate::{decide::Used, fleet::NodeView};

const LEASE: Duration = Duration::from_secs(15);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn node(fenced: bool) -> NodeFacts {
    NodeFacts {
        name: NodeName::from("node-b"),
        session: None,
        absent_since: Some(at(0)),
        exists: true,
        labels: std::collections::BTreeMap::new(),
        taints: Vec::new(),
        unschedulable: false,
        allocatable: None,
        used: Used::default(),
        fenced: fenced.then(|| "it is annotated".to_owned()),
    }
}

fn pod(run: RunFate) -> HeldPod {
    HeldPod {
        namespace: "agent-system".to_owned(),
        name: "pod".to_owned(),
        uid: "uid".to_owned(),
        resource_version: "7".to_owned(),
        finalizers: vec!["example.com/hold".to_owned(), names::POD_FINALIZER.to_owned()],
        node: NodeName::from("node-b"),
        run,
    }
}

fn decided(run: RunFate, node: &NodeFacts, now: i64) -> Releases {
    releases(&[pod(run)], std::slice::from_ref(node), LEASE, at(now))
}

#[test]
fn a_fenced_nodes_pod_is_released_once_its_outcome_stands_or_its_run_is_gone() {
    for run in [RunFate::Ended, RunFate::Absent] {
        let released = decided(run, &node(true), 15);
        assert_eq!(released.pods.len(), 1);
        assert_eq!(released.pods[0].finalizers, ["example.com/hold"], "only ours goes");
    }
    let waits = decided(RunFate::Live, &node(true), 15);
    assert!(waits.pods.is_empty() && waits.look_again_after == Some(OUTCOME_WAIT));
}

#[test]
fn neither_silence_nor_a_fence_on_a_node_that_still_talks_releases_anything() {
    for run in [RunFate::Live, RunFate::Ended, RunFate::Absent] {
        assert_eq!(decided(run, &node(false), 3600), Releases::default(), "silent only");
        let mut talks = node(true);
        talks.session = Some(NodeView {
            name: NodeName::from("node-b"),
            instance: "instance".into(),
            boot: "boot".into(),
            slots: 1,
            running: 0,
            highest_epoch: agent_operator::domain::Epoch(1),
            runner_delivery: "imageVolume".to_owned(),
            asks_preflights: true,
            holds: true,
        });
        assert_eq!(decided(run, &talks, 3600), Releases::default(), "its supervisor does it");
        let early = decided(run, &node(true), 5);
        assert!(early.pods.is_empty(), "the node's permission to write may not have lapsed");
        assert_eq!(early.look_again_after, Some(Duration::from_secs(10)));
    }
}

#[test]
fn a_node_that_could_not_be_read_releases_nothing() {
    assert_eq!(releases(&[pod(RunFate::Absent)], &[], LEASE, at(3600)), Releases::default());
}
