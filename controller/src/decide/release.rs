//! Which pods lose our finalizer by the controller's hand. Usually the supervisor releases it; on a
//! fenced node nobody is left who could, and the pod would hold up its namespace for ever.

use std::time::Duration;

use agent_operator::domain::{NodeName, names};
use jiff::Timestamp;

use super::{
    NodeFacts, deadline,
    run::{Contact, contact_with},
};
use crate::plan::{PodRelease, Releases};

/// Wait for the outcome of a run on a fenced node, which the task's own pass writes.
const OUTCOME_WAIT: Duration = Duration::from_secs(5);

/// A pod of ours that has our finalizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The version that was read.
    pub resource_version: String,
    /// All its finalizers.
    pub finalizers: Vec<String>,
    /// The node that it runs on or is pinned to.
    pub node: NodeName,
    /// What became of its run.
    pub run: RunFate,
}

/// What became of a pod's run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunFate {
    /// It has no outcome yet.
    Live,
    /// Its outcome is recorded.
    Ended,
    /// No run with the uid of the pod's owner exists; a live read says so.
    Absent,
}

/// Decides which of `pods` are released at `now`: those on a fenced node whose run has its outcome,
/// or is gone.
pub fn releases(
    pods: &[HeldPod],
    nodes: &[NodeFacts],
    node_lease: Duration,
    now: Timestamp,
) -> Releases {
    let mut releases = Releases::default();
    for pod in pods {
        let node = nodes.iter().find(|node| node.name == pod.node);
        match (contact_with(node, node_lease, now), pod.run) {
            (Contact::Connected | Contact::Silent, _) => {}
            (Contact::Brief(lost_at), _) => again(&mut releases, deadline::until(now, lost_at)),
            (Contact::Fenced, RunFate::Live) => again(&mut releases, OUTCOME_WAIT),
            (Contact::Fenced, RunFate::Ended | RunFate::Absent) => {
                let kept = pod.finalizers.iter().filter(|name| *name != names::POD_FINALIZER);
                releases.pods.push(PodRelease {
                    namespace: pod.namespace.clone(),
                    name: pod.name.clone(),
                    uid: pod.uid.clone(),
                    resource_version: pod.resource_version.clone(),
                    finalizers: kept.cloned().collect(),
                });
            }
        }
    }
    releases
}

fn again(releases: &mut Releases, after: Duration) {
    releases.look_again_after =
        Some(releases.look_again_after.map_or(after, |before| before.min(after)));
}

#[cfg(test)]
mod tests;
