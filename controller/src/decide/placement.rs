//! Which node runs the next step. Deterministic; room is counted from runs, never from reports.

use agent_operator::{
    crd::{conditions::scheduled, shared::TolerationSpec},
    domain::{NodeName, names::short_hash},
};
use std::collections::BTreeSet;

use super::{Amounts, NodeFacts, Observed, Taint, progress::Start, resolve};
use crate::settings::quantity_milli;

/// No node can take the step now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unplaced {
    /// Reason of the condition `Scheduled`.
    pub reason: &'static str,
    /// One sentence. Carries no counts, so that it changes only when the situation does.
    pub message: String,
}

/// Chooses a node for `start`; `previous` is where the step before ran and is preferred, because its
/// mirror and image are there.
pub fn place(
    observed: &Observed,
    start: &Start,
    previous: Option<&NodeName>,
) -> Result<NodeName, Unplaced> {
    let connected: Vec<_> = observed.nodes.iter().filter(|node| node.session.is_some()).collect();
    if connected.is_empty() {
        return Err(Unplaced {
            reason: scheduled::NO_NODES,
            message: "no supervisor is connected; see the DaemonSet of the supervisors".to_owned(),
        });
    }
    let wanted = requests(observed);
    let mut obstacles = BTreeSet::new();
    let mut best: Option<(Rank, &NodeFacts)> = None;
    for node in connected {
        if let Some(obstacle) = obstacle(observed, node, wanted) {
            obstacles.insert(obstacle);
            continue;
        }
        let rank = rank(observed, start, previous, node);
        if best.as_ref().is_none_or(|(least, _)| rank < *least) {
            best = Some((rank, node));
        }
    }
    best.map(|(_, node)| node.name.clone()).ok_or_else(|| Unplaced {
        reason: scheduled::NO_CAPACITY,
        message: format!(
            "no connected node fits: {}",
            obstacles.into_iter().collect::<Vec<_>>().join("; ")
        ),
    })
}

/// Lower is better: not tried in vain, not discouraged by a taint, the node of the step before, the
/// least loaded, and then an order of the task's own, so that idle nodes share the first steps.
type Rank = (bool, bool, bool, u64, String);

/// Resolution at which loads are compared; a share of the slots in thousandths is fine enough.
const LOAD_SCALE: u64 = 1000;

fn rank(observed: &Observed, start: &Start, previous: Option<&NodeName>, node: &NodeFacts) -> Rank {
    let slots = node.session.as_ref().map_or(1, |session| u64::from(session.slots.max(1)));
    let discouraged = node.taints.iter().any(|taint| {
        taint.effect == "PreferNoSchedule" && !tolerated(taint, resolve::tolerations(observed))
    });
    (
        start.avoid.contains(&node.name),
        discouraged,
        previous != Some(&node.name),
        u64::from(node.used.slots) * LOAD_SCALE / slots,
        short_hash(&[observed.task.uid.as_str(), node.name.as_str()]),
    )
}

/// What a run of the task requests.
fn requests(observed: &Observed) -> Amounts {
    let requests = &observed.settings.agent.requests;
    Amounts {
        cpu_milli: quantity_milli(&requests.cpu).unwrap_or_default(),
        memory_milli: quantity_milli(&requests.memory).unwrap_or_default(),
    }
}

/// Whether `node` can take a step of the task now.
pub fn has_room(observed: &Observed, node: &NodeFacts) -> bool {
    node.session.is_some() && obstacle(observed, node, requests(observed)).is_none()
}

/// Why `node` cannot take the step now; none: it can.
fn obstacle(observed: &Observed, node: &NodeFacts, wanted: Amounts) -> Option<&'static str> {
    let session = node.session.as_ref()?;
    if !node.exists {
        return Some("a node's object is missing");
    }
    if node.fenced.is_some() {
        return Some("a node is fenced");
    }
    if node.unschedulable {
        return Some("a node is cordoned");
    }
    let selector = resolve::node_selector(observed);
    if !selector.iter().all(|(key, value)| node.labels.get(key) == Some(value)) {
        return Some("a node does not match the nodeSelector");
    }
    let blocks = |taint: &&Taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute";
    let tolerations = resolve::tolerations(observed);
    if node.taints.iter().filter(blocks).any(|taint| !tolerated(taint, tolerations)) {
        return Some("a node has a taint that is not tolerated");
    }
    if node.used.slots >= session.slots {
        return Some("a node has no free slot");
    }
    let used = node.used.amounts;
    let room = node.allocatable.is_none_or(|allocatable| {
        used.cpu_milli.saturating_add(wanted.cpu_milli) <= allocatable.cpu_milli
            && used.memory_milli.saturating_add(wanted.memory_milli) <= allocatable.memory_milli
    });
    (!room).then_some("a node has too little CPU or memory left")
}

/// Whether one of `tolerations` tolerates `taint`, by the rules of the core API.
fn tolerated(taint: &Taint, tolerations: &[TolerationSpec]) -> bool {
    tolerations.iter().any(|toleration| {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let effect = text(&toleration.effect);
        let key = text(&toleration.key);
        let exists = toleration.operator.as_deref() == Some("Exists");
        (effect.is_empty() || effect == taint.effect)
            && ((key.is_empty() && exists) || key == taint.key)
            && (exists || text(&toleration.value) == taint.value)
    })
}
