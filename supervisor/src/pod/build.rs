//! The agent pod's template. Everything that a user may set comes in by `PodRequest`; the rest is
//! fixed here, so a task cannot widen its own sandbox. Prompt, plan and credentials never appear.

use std::{collections::BTreeMap, net::SocketAddr};

use agent_operator::{
    attempt::{CONTAINER_NAME, ENV_GATEWAY, ENV_TOKEN, HOME_DIR, RUNNER_DIR, WORKSPACE_DIR},
    crd::AgentRun,
    domain::{
        Assignment, Secret,
        assignment::{PodRequest, Toleration},
        limits::DEADLINE_MARGIN,
        names,
    },
};
use k8s_openapi::{
    api::core::v1::{
        Affinity, Capabilities, Container, EmptyDirVolumeSource, EnvVar, ImageVolumeSource,
        LocalObjectReference, NodeAffinity, NodeSelector, NodeSelectorRequirement,
        NodeSelectorTerm, Pod, PodDNSConfig, PodSecurityContext, PodSpec, ResourceRequirements,
        SeccompProfile, SecurityContext, Toleration as PodToleration, Volume, VolumeMount,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
    },
};
use kube::Resource as _;

use crate::ledger::Delivery;

/// Annotation with the attempt's number; part of the check before a pod is adopted.
pub const ANNOTATION_ATTEMPT: &str = "agents.wearn.dev/attempt";
/// User and group of everything in the pod.
const AGENT_ID: i64 = 1000;
/// Size limit of HOME: caches of package managers live there.
const HOME_SIZE: &str = "4Gi";
/// Size limit of /tmp.
const TMP_SIZE: &str = "4Gi";
/// Size limit of the copied runner (init container only): agent-runner plus a CLI of ~250 MB.
const RUNNER_SIZE: &str = "1Gi";
/// Name of the volume with agent-runner and the CLI.
pub(super) const VOLUME_RUNNER: &str = "runner";

/// What the node adds to every pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSettings {
    /// Address of the gateway's Service.
    pub gateway: SocketAddr,
    /// Image with agent-runner and the CLI.
    pub runner_image: String,
    /// How that image gets into the pod.
    pub delivery: Delivery,
    /// Priority class of agent pods; none means the cluster's default.
    pub priority_class: Option<String>,
}

/// The pod of an assignment, with its one-time token.
pub fn pod(assignment: &Assignment, settings: &NodeSettings, token: &Secret) -> Pod {
    let mut spec = spec(assignment, settings);
    let hash = spec_hash(&spec);
    let env = spec.containers[0].env.get_or_insert_default();
    env.push(variable(ENV_TOKEN, token.expose().to_owned()));
    Pod { metadata: metadata(assignment, &hash), spec: Some(spec), status: None }
}

/// SHA-256 over the pod's spec without the token, so that a pod made before a restart is recognised.
fn spec_hash(spec: &PodSpec) -> String {
    let json = serde_json::to_vec(spec).expect("a pod spec has string keys only");
    names::sha256_hex(&json)
}

fn metadata(assignment: &Assignment, hash: &str) -> ObjectMeta {
    let run = &assignment.run;
    let labels = [
        (names::LABEL_TASK, names::label_value(&assignment.task.name)),
        (names::LABEL_RUN, names::label_value(&run.name)),
        (names::LABEL_STEP, assignment.step.as_str().to_owned()),
        (names::LABEL_MANAGED_BY, names::MANAGED_BY.to_owned()),
    ];
    let annotations = [
        (names::ANNOTATION_SPEC_HASH, hash.to_owned()),
        (names::ANNOTATION_EPOCH, assignment.epoch.to_string()),
        (ANNOTATION_ATTEMPT, assignment.attempt.to_string()),
    ];
    let owned = |(key, value): (&str, String)| (key.to_owned(), value);
    ObjectMeta {
        name: Some(names::pod_name(&run.name, &run.uid, assignment.attempt)),
        namespace: Some(run.namespace.clone()),
        labels: Some(labels.into_iter().map(owned).collect()),
        annotations: Some(annotations.into_iter().map(owned).collect()),
        finalizers: Some(vec![names::POD_FINALIZER.to_owned()]),
        owner_references: Some(vec![OwnerReference {
            api_version: AgentRun::api_version(&()).into_owned(),
            kind: AgentRun::kind(&()).into_owned(),
            name: run.name.clone(),
            uid: run.uid.as_str().to_owned(),
            // Drain and eviction look for a controller; garbage collection waits for the pod.
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}

fn spec(assignment: &Assignment, settings: &NodeSettings) -> PodSpec {
    let request = &assignment.pod;
    let lifetime =
        assignment.start_deadline() + assignment.timeout() + assignment.grace() + DEADLINE_MARGIN;
    PodSpec {
        active_deadline_seconds: Some(saturating(lifetime.as_secs())),
        affinity: Some(affinity(assignment.node.as_str())),
        automount_service_account_token: Some(false),
        containers: vec![container(request, settings)],
        // No resolver at all: names are resolved by the gateway. Kubernetes demands at least one
        // server with policy `None`, so it gets the pod's own loopback, where nothing listens.
        dns_policy: Some("None".to_owned()),
        dns_config: Some(PodDNSConfig {
            nameservers: Some(vec!["127.0.0.1".to_owned()]),
            ..PodDNSConfig::default()
        }),
        enable_service_links: Some(false),
        image_pull_secrets: pull_secrets(request),
        init_containers: (settings.delivery == Delivery::InitContainer)
            .then(|| vec![installer(request, settings)]),
        node_selector: (!request.node_selector.is_empty()).then(|| request.node_selector.clone()),
        priority_class_name: settings.priority_class.clone(),
        restart_policy: Some("Never".to_owned()),
        runtime_class_name: request.runtime_class_name.clone(),
        security_context: Some(PodSecurityContext {
            fs_group: Some(AGENT_ID),
            run_as_group: Some(AGENT_ID),
            run_as_non_root: Some(true),
            run_as_user: Some(AGENT_ID),
            seccomp_profile: Some(runtime_default()),
            ..PodSecurityContext::default()
        }),
        termination_grace_period_seconds: Some(saturating(assignment.grace_seconds)),
        tolerations: Some(tolerations(&request.tolerations)),
        volumes: Some(volumes(request, settings)),
        ..PodSpec::default()
    }
}

fn saturating(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// Pins the pod to the node through the scheduler, as a `DaemonSet` does: unlike a preset `nodeName`,
/// this keeps the scheduler's check of free resources.
fn affinity(node: &str) -> Affinity {
    let term = NodeSelectorTerm {
        match_fields: Some(vec![NodeSelectorRequirement {
            key: "metadata.name".to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![node.to_owned()]),
        }]),
        ..NodeSelectorTerm::default()
    };
    Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                node_selector_terms: vec![term],
            }),
            ..NodeAffinity::default()
        }),
        ..Affinity::default()
    }
}

/// The user's tolerations, and two of ours: a step goes on while its node is cut off from the
/// control plane, so no taint of that kind may evict it. Whether it is replaced is decided by fencing.
fn tolerations(requested: &[Toleration]) -> Vec<PodToleration> {
    let unset = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let from_request = requested.iter().map(|toleration| PodToleration {
        key: unset(&toleration.key),
        operator: unset(&toleration.operator),
        value: unset(&toleration.value),
        effect: unset(&toleration.effect),
        toleration_seconds: toleration.toleration_seconds,
    });
    let own = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"].map(|key| {
        PodToleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some("NoExecute".to_owned()),
            ..PodToleration::default()
        }
    });
    from_request.chain(own).collect()
}

fn pull_secrets(request: &PodRequest) -> Option<Vec<LocalObjectReference>> {
    let names = request.image_pull_secrets.iter();
    let references: Vec<_> =
        names.map(|name| LocalObjectReference { name: name.clone() }).collect();
    (!references.is_empty()).then_some(references)
}

fn container(request: &PodRequest, settings: &NodeSettings) -> Container {
    Container {
        name: CONTAINER_NAME.to_owned(),
        image: Some(request.image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        command: Some(vec![format!("{RUNNER_DIR}/agent-runner")]),
        env: Some(vec![variable(ENV_GATEWAY, format!("http://{}", settings.gateway))]),
        resources: Some(ResourceRequirements {
            limits: Some(quantities(&request.cpu_limit, &request.memory_limit)),
            requests: Some(quantities(&request.cpu_request, &request.memory_request)),
            ..ResourceRequirements::default()
        }),
        security_context: Some(restricted()),
        volume_mounts: Some(vec![
            mount("workspace", WORKSPACE_DIR, false),
            mount("home", HOME_DIR, false),
            mount("tmp", "/tmp", false),
            mount(VOLUME_RUNNER, RUNNER_DIR, true),
        ]),
        working_dir: Some(WORKSPACE_DIR.to_owned()),
        ..Container::default()
    }
}

/// Copies agent-runner and the CLI into the pod where the node cannot mount images. It counts with
/// the agent's own requests, so it never makes the pod larger for the scheduler.
fn installer(request: &PodRequest, settings: &NodeSettings) -> Container {
    Container {
        name: "runner".to_owned(),
        image: Some(settings.runner_image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        command: Some(["/agent-runner", "install", RUNNER_DIR].map(str::to_owned).to_vec()),
        resources: Some(ResourceRequirements {
            limits: Some(quantities(&request.cpu_limit, &request.memory_limit)),
            requests: Some(quantities(&request.cpu_request, &request.memory_request)),
            ..ResourceRequirements::default()
        }),
        security_context: Some(restricted()),
        volume_mounts: Some(vec![mount(VOLUME_RUNNER, RUNNER_DIR, false)]),
        ..Container::default()
    }
}

fn quantities(cpu: &str, memory: &str) -> BTreeMap<String, Quantity> {
    let set = |(name, value): (&str, &str)| {
        (!value.is_empty()).then(|| (name.to_owned(), Quantity(value.to_owned())))
    };
    [("cpu", cpu), ("memory", memory)].into_iter().filter_map(set).collect()
}

fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        privileged: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_group: Some(AGENT_ID),
        run_as_non_root: Some(true),
        run_as_user: Some(AGENT_ID),
        seccomp_profile: Some(runtime_default()),
        ..SecurityContext::default()
    }
}

fn runtime_default() -> SeccompProfile {
    SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }
}

fn variable(name: &str, value: String) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value), value_from: None }
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

fn volumes(request: &PodRequest, settings: &NodeSettings) -> Vec<Volume> {
    let empty = |name: &str, size: &str| Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            size_limit: (!size.is_empty()).then(|| Quantity(size.to_owned())),
            medium: None,
        }),
        ..Volume::default()
    };
    let runner = match settings.delivery {
        Delivery::InitContainer => empty(VOLUME_RUNNER, RUNNER_SIZE),
        Delivery::ImageVolume => Volume {
            name: VOLUME_RUNNER.to_owned(),
            image: Some(ImageVolumeSource {
                reference: Some(settings.runner_image.clone()),
                pull_policy: Some("IfNotPresent".to_owned()),
            }),
            ..Volume::default()
        },
    };
    let storage = &request.storage_limit;
    vec![empty("workspace", storage), empty("home", HOME_SIZE), empty("tmp", TMP_SIZE), runner]
}

#[cfg(test)]
mod tests;
