//! Pods of ours that the ledger does not know: what they and their run on the API server say, and
//! whether they are what an assignment would make.

use std::time::Duration;

use agent_operator::{
    attempt::{CONTAINER_NAME, ENV_GATEWAY},
    crd::AgentRun,
    domain::{Assignment, Attempt, Epoch, GoDuration, NodeName, RunPhase, RunUid, Secret},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};

use super::{
    build::{self, NodeSettings, VOLUME_RUNNER},
    client::{Adoption, judge},
};
use crate::ledger::Delivery;

/// A run as the API server has it, reduced to what adoption asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOnServer {
    /// Its uid.
    pub uid: RunUid,
    /// The attempt that it stands for.
    pub attempt: Attempt,
    /// The node that it was given to.
    pub node: NodeName,
    /// Term of the controller that made it.
    pub epoch: Epoch,
    /// Step timeout; none when it does not parse.
    pub timeout: Option<Duration>,
    /// Its phase; `Pending` before the first status.
    pub phase: RunPhase,
    /// When its start gate opened, by the controller's wall clock.
    pub started_at: Option<Timestamp>,
}

impl RunOnServer {
    /// Reduces `run`; none when a field says what this version does not know.
    pub fn read(run: &AgentRun) -> Option<Self> {
        let status = run.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref());
        Some(Self {
            uid: RunUid::new(run.metadata.uid.clone()?),
            attempt: Attempt(u32::try_from(run.spec.attempt).ok()?),
            node: NodeName::new(run.spec.node_name.clone()),
            epoch: Epoch(u64::try_from(run.spec.epoch).ok()?),
            timeout: run.spec.timeout.parse::<GoDuration>().ok().map(GoDuration::get),
            phase: phase.map_or(Some(RunPhase::Pending), |phase| phase.parse().ok())?,
            started_at: status.and_then(|status| status.start_time),
        })
    }
}

/// Compares a pod with what this assignment makes, but for what belongs to the supervisor that made
/// it: its runner image, its way into the pod and the gateway's address may all be of another
/// version, and come from the pod itself.
pub fn judge_for(existing: &Pod, assignment: &Assignment) -> Adoption {
    let Some(settings) = settings_of(existing) else {
        return Adoption::Foreign("it is not of our template".to_owned());
    };
    let with_class = |priority_class: Option<String>| {
        let settings = NodeSettings { priority_class, ..settings.clone() };
        judge(existing, &build::pod(assignment, &settings, &Secret::new("")))
    };
    match with_class(settings.priority_class.clone()) {
        // A class that stands in the pod may be the cluster's default, filled in at admission.
        Adoption::Foreign(_) if settings.priority_class.is_some() => with_class(None),
        found => found,
    }
}

fn agent(pod: &Pod) -> Option<&Container> {
    pod.spec.as_ref()?.containers.iter().find(|container| container.name == CONTAINER_NAME)
}

fn settings_of(pod: &Pod) -> Option<NodeSettings> {
    let spec = pod.spec.as_ref()?;
    let address = agent(pod)?.env.iter().flatten().find(|env| env.name == ENV_GATEWAY)?;
    let gateway = address.value.as_deref()?.strip_prefix("http://")?.parse().ok()?;
    let volume = spec.volumes.iter().flatten().find(|volume| volume.name == VOLUME_RUNNER)?;
    let (runner_image, delivery) = match &volume.image {
        Some(image) => (image.reference.clone()?, Delivery::ImageVolume),
        None => (spec.init_containers.as_ref()?.first()?.image.clone()?, Delivery::InitContainer),
    };
    let priority_class = spec.priority_class_name.clone();
    Some(NodeSettings { gateway, runner_image, delivery, priority_class })
}

/// When the kubelet started the agent container; a step's gate opens within moments of it.
pub fn container_started_at(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let state = statuses.iter().find(|status| status.name == CONTAINER_NAME)?.state.as_ref()?;
    let running = state.running.as_ref().and_then(|running| running.started_at.as_ref());
    let ended = state.terminated.as_ref().and_then(|ended| ended.started_at.as_ref());
    running.or(ended).map(|time| time.0)
}

/// Within this time of its container's start a gate opens, once an image is there.
const GATE_WAIT: SignedDuration = SignedDuration::from_secs(15);

/// When a gate opened that only the API server remembers. What the run's status says is by the
/// controller's clock, the start of the container by this node's. Where the two agree, the first is
/// exact. Where they do not, the second counts: a step may then end early by what it waited at its
/// gate, but never late.
pub fn opened_at(recorded: Option<Timestamp>, container: Option<Timestamp>) -> Option<Timestamp> {
    let Some(container) = container else { return recorded };
    let agrees =
        |at: &Timestamp| (SignedDuration::ZERO..=GATE_WAIT).contains(&at.duration_since(container));
    recorded.filter(agrees).or(Some(container))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assignment;

    fn made(delivery: Delivery) -> Pod {
        let gateway = "10.96.0.9:8080".parse().unwrap();
        let (runner_image, priority_class) = ("runner:old".to_owned(), None);
        let settings = NodeSettings { gateway, runner_image, delivery, priority_class };
        let mut pod = build::pod(&assignment(), &settings, &Secret::new("token"));
        pod.metadata.uid = Some("pod-uid".into());
        pod
    }

    #[test]
    fn the_controllers_clock_is_believed_only_where_it_agrees_with_the_nodes() {
        let at = |second: i64| Timestamp::from_second(1000 + second).ok();
        assert_eq!(opened_at(at(3), at(0)), at(3));
        assert_eq!(opened_at(at(0), at(0)), at(0));
        // Another clock, ahead or behind, moves no deadline.
        for other in [-600, -1, 16, 600] {
            assert_eq!(opened_at(at(other), at(0)), at(0), "{other}");
        }
        assert_eq!(opened_at(None, at(0)), at(0));
        assert_eq!(opened_at(at(5), None), at(5));
        assert_eq!(opened_at(None, None), None);
    }

    #[test]
    fn a_pod_of_an_earlier_version_of_the_supervisor_is_ours_whatever_its_delivery() {
        for delivery in [Delivery::ImageVolume, Delivery::InitContainer] {
            let found = judge_for(&made(delivery), &assignment());
            assert!(matches!(found, Adoption::Ours { .. }), "{found:?}");
        }
    }

    #[test]
    fn a_pod_that_the_assignment_would_not_make_is_foreign() {
        let other = Assignment { timeout_seconds: 61, ..assignment() };
        assert!(matches!(judge_for(&made(Delivery::ImageVolume), &other), Adoption::Foreign(_)));
        let mut run = assignment();
        run.run.uid = "another".into();
        assert!(matches!(judge_for(&made(Delivery::ImageVolume), &run), Adoption::Foreign(_)));
        assert!(matches!(judge_for(&Pod::default(), &assignment()), Adoption::Foreign(_)));
    }
}
