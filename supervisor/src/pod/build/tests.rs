use std::collections::BTreeSet;

use agent_operator::domain::{Attempt, Epoch, RunRef, RunUid, StepName};
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::{
    pod::client::{Adoption, judge, run_key},
    testing::assignment,
};

fn settings(delivery: Delivery) -> NodeSettings {
    NodeSettings {
        gateway: "10.96.0.10:8080".parse().unwrap(),
        runner_image: "registry.example/runner:1".into(),
        delivery,
        priority_class: None,
    }
}

fn build(assignment: &Assignment) -> Pod {
    pod(assignment, &settings(Delivery::ImageVolume), &Secret::new("one-time"))
}

#[test]
fn the_pod_of_an_ordinary_step() {
    insta::assert_yaml_snapshot!(build(&assignment()));
}

#[test]
fn the_pod_of_a_node_without_image_volumes() {
    let pod = pod(&assignment(), &settings(Delivery::InitContainer), &Secret::new("one-time"));
    let spec = pod.spec.unwrap();
    insta::assert_yaml_snapshot!((spec.init_containers, spec.volumes));
}

#[test]
fn neither_prompt_nor_plan_nor_repository_is_in_the_pod() {
    let text = serde_json::to_string(&build(&assignment())).unwrap();
    for canary in ["PROMPT-CANARY", "PLAN-CANARY", "github.com"] {
        assert!(!text.contains(canary), "{canary}");
    }
}

#[test]
fn the_hash_is_of_the_spec_and_not_of_the_token() {
    let hash =
        |pod: &Pod| pod.metadata.annotations.as_ref().unwrap()[names::ANNOTATION_SPEC_HASH].clone();
    let one = build(&assignment());
    let settings = settings(Delivery::ImageVolume);
    let other_token = pod(&assignment(), &settings, &Secret::new("another"));
    assert_eq!(hash(&one), hash(&other_token));
    let mut changed = assignment();
    changed.pod.image = "other".into();
    assert_ne!(hash(&one), hash(&build(&changed)));
}

#[test]
fn only_a_pod_of_the_same_owner_attempt_and_spec_is_adopted() {
    let wanted = build(&assignment());
    let mut existing = wanted.clone();
    existing.metadata.uid = Some("pod-uid".into());
    let one_time_hash = names::sha256_hex(b"one-time");
    let uid = "pod-uid".into();
    assert_eq!(judge(&existing, &wanted), Adoption::Ours { uid, one_time_hash });
    assert_eq!(run_key(&existing), Some(assignment().key()));

    let mut other_owner = existing.clone();
    other_owner.metadata.owner_references.as_mut().unwrap()[0].uid = "somebody".into();
    let mut no_owner = existing.clone();
    no_owner.metadata.owner_references = None;
    let mut other_spec = existing.clone();
    let annotations = other_spec.metadata.annotations.as_mut().unwrap();
    annotations.insert(names::ANNOTATION_SPEC_HASH.into(), "x".into());
    let mut other_attempt = existing;
    let annotations = other_attempt.metadata.annotations.as_mut().unwrap();
    annotations.insert(ANNOTATION_ATTEMPT.into(), "2".into());
    for foreign in [other_owner, no_owner, other_spec, other_attempt] {
        assert!(matches!(judge(&foreign, &wanted), Adoption::Foreign(_)));
    }
}

/// All that an assignment may change of the pod, as JSON pointers; what is below them as well.
const SETTABLE: [&str; 22] = [
    "/metadata/name",
    "/metadata/namespace",
    "/metadata/labels/agents.wearn.dev~1task",
    "/metadata/labels/agents.wearn.dev~1run",
    "/metadata/labels/agents.wearn.dev~1step",
    "/metadata/annotations/agents.wearn.dev~1spec-hash",
    "/metadata/annotations/agents.wearn.dev~1epoch",
    "/metadata/annotations/agents.wearn.dev~1attempt",
    "/metadata/ownerReferences/0/name",
    "/metadata/ownerReferences/0/uid",
    "/spec/activeDeadlineSeconds",
    "/spec/terminationGracePeriodSeconds",
    "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchFields/0/values/0",
    "/spec/nodeSelector",
    "/spec/tolerations",
    "/spec/imagePullSecrets",
    "/spec/runtimeClassName",
    "/spec/containers/0/image",
    "/spec/containers/0/resources/limits",
    "/spec/containers/0/resources/requests",
    "/spec/initContainers/0/resources",
    "/spec/volumes/0/emptyDir/sizeLimit",
];

/// Pointers to all leaves.
fn leaves(value: &Value, at: &str, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, field)| {
            let name = name.replace('~', "~0").replace('/', "~1");
            leaves(field, &format!("{at}/{name}"), into);
        }),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .for_each(|(index, item)| leaves(item, &format!("{at}/{index}"), into)),
        leaf => drop(into.insert(at.to_owned(), leaf.clone())),
    }
}

/// Pointers to what differs.
fn differing(one: &Pod, other: &Pod) -> BTreeSet<String> {
    let [one, other] = [one, other].map(|pod| {
        let mut found = BTreeMap::new();
        leaves(&serde_json::to_value(pod).unwrap(), "", &mut found);
        found
    });
    let paths = one.keys().chain(other.keys());
    paths.filter(|path| one.get(*path) != other.get(*path)).cloned().collect()
}

fn is_within(path: &str, field: &str) -> bool {
    path.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The pod of both ways in which the runner comes into it.
fn both(assignment: &Assignment) -> [Pod; 2] {
    [Delivery::ImageVolume, Delivery::InitContainer]
        .map(|delivery| pod(assignment, &settings(delivery), &Secret::new("one-time")))
}

#[test]
fn every_listed_field_can_be_set_so_the_list_is_not_too_long() {
    let mut other = assignment();
    other.run = RunRef {
        namespace: "other".into(),
        name: "other".into(),
        uid: RunUid::new("other".to_owned()),
    };
    other.task.name = "other".into();
    (other.attempt, other.epoch, other.step) = (Attempt(77), Epoch(77), StepName::Test);
    (other.timeout_seconds, other.grace_seconds, other.node) = (7777, 77, "other".into());
    other.pod = PodRequest {
        image: "other".into(),
        image_pull_secrets: vec!["other".into()],
        cpu_limit: "77".into(),
        memory_limit: "77Gi".into(),
        storage_limit: "77Gi".into(),
        cpu_request: "7".into(),
        memory_request: "7Gi".into(),
        node_selector: BTreeMap::from([("other".into(), "x".into())]),
        tolerations: vec![Toleration { key: "other".into(), ..Toleration::default() }],
        runtime_class_name: Some("other".into()),
    };
    let [template, other] = [both(&assignment()), both(&other)];
    let found: BTreeSet<_> =
        template.iter().zip(&other).flat_map(|(one, other)| differing(one, other)).collect();
    for field in SETTABLE {
        assert!(found.iter().any(|path| is_within(path, field)), "{field} cannot be set");
    }
}

/// The restricted profile in full, and what this template has beyond it.
#[test]
fn every_container_is_restricted_and_the_pod_shares_nothing_with_its_node() {
    for pod in both(&assignment()) {
        let pod = serde_json::to_value(pod).unwrap();
        let spec = &pod["spec"];
        let containers = ["containers", "initContainers"]
            .iter()
            .flat_map(|kind| spec[kind].as_array().into_iter().flatten());
        for container in containers {
            let wanted = serde_json::json!({
                "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                "privileged": false, "readOnlyRootFilesystem": true,
                "runAsGroup": 1000, "runAsNonRoot": true, "runAsUser": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            });
            assert_eq!(container["securityContext"], wanted);
            for field in ["ports", "envFrom", "lifecycle", "volumeDevices"] {
                assert!(container[field].is_null(), "{field}");
            }
            assert!(container["resources"]["limits"]["cpu"].is_string());
            assert!(container["resources"]["limits"]["memory"].is_string());
        }
        for field in [
            "hostNetwork",
            "hostPID",
            "hostIPC",
            "hostUsers",
            "hostAliases",
            "shareProcessNamespace",
            "serviceAccountName",
            "serviceAccount",
            "nodeName",
            "schedulerName",
            "ephemeralContainers",
            "resourceClaims",
        ] {
            assert!(spec[field].is_null(), "{field}");
        }
        for (field, value) in
            [("automountServiceAccountToken", false), ("enableServiceLinks", false)]
        {
            assert_eq!(spec[field], value, "{field}");
        }
        assert_eq!(spec["dnsPolicy"], "None");
        assert!(spec["securityContext"]["sysctls"].is_null());
        for volume in spec["volumes"].as_array().unwrap() {
            let bounded = volume["emptyDir"]["sizeLimit"].is_string();
            assert!(bounded || volume["image"].is_object(), "{volume}");
        }
        for path in ["/workspace", "/home/agent", "/tmp"] {
            let mounts = spec["containers"][0]["volumeMounts"].as_array().unwrap();
            assert!(mounts.iter().any(|mount| mount["mountPath"] == path), "{path}");
        }
    }
}

prop_compose! {
    fn any_assignment()(
        texts in prop::collection::vec("[a-zA-Z0-9:/.{}\"' -]{0,60}", 13),
        uid in "[a-f0-9-]{1,36}",
        attempt in 1_u32..1000,
        seconds in (1_u64..1_000_000, 1_u64..10_000, 0_u64..1000),
        step in 0_usize..4,
        toleration_seconds in any::<Option<i64>>(),
    ) -> Assignment {
        let mut assignment = assignment();
        let mut texts = texts.into_iter();
        let mut next = || texts.next().unwrap();
        assignment.run.uid = RunUid::new(uid);
        assignment.attempt = Attempt(attempt);
        assignment.step = StepName::ALL[step];
        (assignment.timeout_seconds, assignment.start_deadline_seconds, assignment.grace_seconds) =
            seconds;
        assignment.node = next().into();
        assignment.pod = PodRequest {
            image: next(),
            image_pull_secrets: vec![next()],
            cpu_limit: next(),
            memory_limit: next(),
            storage_limit: next(),
            cpu_request: next(),
            memory_request: next(),
            node_selector: BTreeMap::from([(next(), next())]),
            tolerations: vec![Toleration { key: next(), toleration_seconds, ..Toleration::default() }],
            runtime_class_name: Some(next()),
        };
        assignment.work.prompt = next();
        assignment
    }
}

proptest! {
    #[test]
    fn whatever_a_task_asks_for_only_the_listed_fields_differ(assignment in any_assignment()) {
        let template = both(&crate::testing::assignment());
        for (pod, template) in both(&assignment).iter().zip(&template) {
            for path in differing(pod, template) {
                prop_assert!(SETTABLE.iter().any(|field| is_within(&path, field)), "{} differs", path);
            }
        }
    }
}
