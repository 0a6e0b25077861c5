use agent_operator::domain::{Attempt, RunUid, StepName};
use proptest::prelude::*;

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

/// Puts the template's values into every field that an assignment may set.
fn without_listed_fields(mut pod: Pod) -> Pod {
    let template = build(&assignment());
    let (meta, of_template) = (&mut pod.metadata, &template.metadata);
    meta.name.clone_from(&of_template.name);
    meta.namespace.clone_from(&of_template.namespace);
    meta.labels.clone_from(&of_template.labels);
    meta.annotations.clone_from(&of_template.annotations);
    let owner = &mut meta.owner_references.as_mut().unwrap()[0];
    let template_owner = &of_template.owner_references.as_ref().unwrap()[0];
    owner.name.clone_from(&template_owner.name);
    owner.uid.clone_from(&template_owner.uid);
    let (spec, of_template) = (pod.spec.as_mut().unwrap(), template.spec.as_ref().unwrap());
    spec.active_deadline_seconds = of_template.active_deadline_seconds;
    spec.termination_grace_period_seconds = of_template.termination_grace_period_seconds;
    spec.affinity.clone_from(&of_template.affinity);
    spec.node_selector.clone_from(&of_template.node_selector);
    spec.tolerations.clone_from(&of_template.tolerations);
    spec.image_pull_secrets.clone_from(&of_template.image_pull_secrets);
    spec.runtime_class_name.clone_from(&of_template.runtime_class_name);
    spec.containers[0].image.clone_from(&of_template.containers[0].image);
    spec.containers[0].resources.clone_from(&of_template.containers[0].resources);
    let workspace = &mut spec.volumes.as_mut().unwrap()[0];
    workspace.clone_from(&of_template.volumes.as_ref().unwrap()[0]);
    pod
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
        let pod = build(&assignment);
        prop_assert_eq!(without_listed_fields(pod), build(&crate::testing::assignment()));
    }
}
