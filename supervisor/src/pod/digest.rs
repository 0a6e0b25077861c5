//! A pod's status, reduced to what decides. Everything in it was written by scheduler and kubelet,
//! whose words are kept for people.

use agent_operator::{
    attempt::CONTAINER_NAME,
    domain::{RunRef, RunUid, ids::PodUid, names},
};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodStatus};

use crate::steps::{
    event::PodDigest,
    hindrance::{self, Hindrance},
    record::Exit,
};

/// Waiting reasons of a container that the runtime could not set up.
const SETUP_ERRORS: [&str; 3] =
    ["CreateContainerError", "RunContainerError", "CreateContainerConfigError"];
/// A full disk hinders a runtime that can mount images: no reason to give them up for good.
const DISK_FULL: &str = "no space left on device";

/// Reduces `pod`.
pub fn digest(pod: &Pod) -> PodDigest {
    let status = pod.status.clone().unwrap_or_default();
    let statuses = || {
        let init = status.init_container_statuses.iter().flatten();
        init.chain(status.container_statuses.iter().flatten())
    };
    let agent = status.container_statuses.iter().flatten().find(|c| c.name == CONTAINER_NAME);
    let disruption = condition(&status, "DisruptionTarget", "True").map(|(reason, _)| reason);
    let mut exit = agent.and_then(terminated).map(|end| exit(end, &status));
    if exit.is_none() && matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
        exit = Some(never_ran(&status));
    }
    if let Some(exit) = &mut exit {
        exit.disruption.clone_from(&disruption);
    }
    PodDigest {
        run: owner_run(pod),
        uid: PodUid::new(pod.metadata.uid.clone().unwrap_or_default()),
        scheduled: pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()),
        unschedulable: condition(&status, "PodScheduled", "False").map(|(_, message)| message),
        ip: status.pod_ip.as_deref().and_then(|ip| ip.parse().ok()),
        container_id: agent.and_then(container_id),
        waiting: statuses().find_map(waiting),
        image_volume_broken: agent.and_then(image_volume_broken),
        deleting: pod.metadata.deletion_timestamp.is_some(),
        held: pod.metadata.finalizers.iter().flatten().any(|name| name == names::POD_FINALIZER),
        disruption,
        exit,
    }
}

/// The run that controls the pod.
fn owner_run(pod: &Pod) -> Option<RunRef> {
    let mut owners = pod.metadata.owner_references.iter().flatten();
    let owner = owners.find(|owner| owner.controller == Some(true))?;
    Some(RunRef {
        namespace: pod.metadata.namespace.clone()?,
        name: owner.name.clone(),
        uid: RunUid::new(owner.uid.clone()),
    })
}

/// Reason and message of a condition with this status.
fn condition(status: &PodStatus, kind: &str, value: &str) -> Option<(String, String)> {
    let found =
        status.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == value)?;
    Some((found.reason.clone().unwrap_or_default(), found.message.clone().unwrap_or_default()))
}

fn terminated(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref()?.terminated.as_ref()
}

fn exit(end: &ContainerStateTerminated, status: &PodStatus) -> Exit {
    let own = end.message.clone().unwrap_or_default();
    let message = if own.is_empty() { status.message.clone().unwrap_or_default() } else { own };
    Exit {
        exit_code: Some(end.exit_code),
        reason: end.reason.clone().unwrap_or_default(),
        message,
        pod_reason: status.reason.clone().unwrap_or_default(),
        finished_at: end.finished_at.as_ref().map(|time| time.0),
        ..Exit::default()
    }
}

/// The end of a pod that the kubelet refused or ended before its container ran (or whose init
/// container failed).
fn never_ran(status: &PodStatus) -> Exit {
    let init = status.init_container_statuses.iter().flatten().find_map(terminated);
    let mut message = status.message.clone().unwrap_or_default();
    if let Some(end) = init.filter(|end| end.exit_code != 0) {
        message = format!("the runner could not be installed: exit code {}", end.exit_code);
    }
    Exit { message, pod_reason: status.reason.clone().unwrap_or_default(), ..Exit::default() }
}

/// The id without the runtime's prefix (`containerd://`).
fn container_id(status: &ContainerStatus) -> Option<String> {
    let (_, id) = status.container_id.as_deref()?.split_once("://")?;
    (!id.is_empty()).then(|| id.to_owned())
}

fn waiting(status: &ContainerStatus) -> Option<Hindrance> {
    let state = status.state.as_ref()?.waiting.as_ref()?;
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    hindrance::waiting(&text(&state.reason), &text(&state.message))
}

/// A runtime without image volumes mounts an empty host path (`failed to mkdir ""`) or names the
/// feature; a runner image that cannot be pulled is another matter (`ErrImagePull`).
fn image_volume_broken(status: &ContainerStatus) -> Option<String> {
    let state = status.state.as_ref()?.waiting.as_ref()?;
    let reason = state.reason.as_deref()?;
    let message = state.message.as_deref()?;
    let about_volume = message.contains("image volume")
        || message.contains("image_volume")
        || message.contains("failed to mkdir \"\"")
        || message.contains("ImageVolume");
    let broken = about_volume && !message.contains(DISK_FULL);
    (SETUP_ERRORS.contains(&reason) && broken).then(|| format!("{reason}: {message}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_running_pod_shows_address_and_container() {
        let digest = digest(&pod(json!({
            "metadata": {"name": "p", "uid": "u"},
            "spec": {"nodeName": "node-a", "containers": []},
            "status": {"phase": "Running", "podIP": "10.244.0.7", "containerStatuses": [
                {"name": "agent", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                 "containerID": "containerd://abc", "state": {"running": {}}}]},
        })));
        assert_eq!(digest.ip, Some("10.244.0.7".parse().unwrap()));
        assert_eq!(digest.container_id.as_deref(), Some("abc"));
        assert!(digest.scheduled && digest.exit.is_none() && digest.waiting.is_none());
    }

    #[test]
    fn the_container_state_counts_before_the_phase_follows() {
        let digest = digest(&pod(json!({
            "metadata": {"uid": "u"},
            "status": {"phase": "Running", "containerStatuses": [
                {"name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                 "state": {"terminated": {"exitCode": 7, "reason": "Error"}}}]},
        })));
        let exit = digest.exit.unwrap();
        assert_eq!((exit.exit_code, exit.reason.as_str()), (Some(7), "Error"));
    }

    #[test]
    fn a_refused_pod_ends_without_an_exit_code() {
        let digest = digest(&pod(json!({
            "metadata": {"uid": "u"},
            "status": {"phase": "Failed", "reason": "OutOfcpu", "message": "Node didn't have enough"},
        })));
        let exit = digest.exit.unwrap();
        assert_eq!((exit.exit_code, exit.pod_reason.as_str()), (None, "OutOfcpu"));
    }

    #[test]
    fn an_image_error_keeps_the_kubelets_words() {
        let digest = digest(&pod(json!({
            "metadata": {"uid": "u"},
            "status": {"phase": "Pending", "containerStatuses": [
                {"name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                 "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}]},
        })));
        let waiting = digest.waiting.unwrap();
        assert_eq!((waiting.words.as_str(), waiting.lasting), ("ErrImagePull: not found", true));
        assert_eq!(digest.image_volume_broken, None);
    }

    #[test]
    fn a_runtime_without_image_volumes_is_told_from_one_with_a_full_disk() {
        let broken = |message: &str| {
            let waiting = json!({"reason": "CreateContainerError", "message": message});
            let digest = digest(&pod(json!({
                "metadata": {"uid": "u"},
                "status": {"phase": "Pending", "containerStatuses": [
                    {"name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                     "state": {"waiting": waiting}}]},
            })));
            digest.image_volume_broken.is_some()
        };
        assert!(broken("failed to generate container: failed to mkdir \"\": mkdir : no such file"));
        assert!(broken("ImageVolumeMountFailed: failed to mount image volume component \"/x\""));
        let full = "ImageVolumeMountFailed: failed to unpack image volume: no space left on device";
        assert!(!broken(full));
        assert!(!broken("failed to reserve container name"));
    }

    #[test]
    fn a_drained_pod_shows_its_disruption() {
        let digest = digest(&pod(json!({
            "metadata": {"uid": "u", "deletionTimestamp": "2027-01-01T00:00:00Z"},
            "status": {"phase": "Running", "conditions": [
                {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]},
        })));
        assert!(digest.deleting && !digest.held);
        assert_eq!(digest.disruption.as_deref(), Some("EvictionByEvictionAPI"));
    }

    #[test]
    fn only_our_own_finalizer_holds_a_pod() {
        let held = |finalizers| {
            digest(&pod(json!({"metadata": {"uid": "u", "finalizers": finalizers}}))).held
        };
        assert!(held(json!(["example.com/other", names::POD_FINALIZER])));
        assert!(!held(json!(["example.com/other"])));
    }
}
