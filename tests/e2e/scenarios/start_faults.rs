//! What keeps a pod from starting: the task says so in the server's own words with the remedy, charges
//! nobody, leaves no dead pods, and goes on by itself once it is mended.

use std::time::Duration;

use agent_operator::crd::{CodingTask, shared::Condition};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};

use crate::support::{
    cluster::{Cluster, NAMESPACE, phase},
    env, eventually,
    images::{self, crane},
    registry::{LimitedRegistry, PrivateRegistry, StalledRegistry},
    task::{command_agent, merge, task, unique},
};

/// Namespace whose quotas and limit ranges hurt nobody else.
const LIMITS: &str = "agent-limits";
/// The fault shows within a few seconds; a busy machine may need longer.
const SEEN_LIMIT: Duration = Duration::from_mins(1);
/// The pauses before the next tries are 2, 4, 8, ... seconds.
const MENDED_LIMIT: Duration = Duration::from_mins(2);

/// Starts a task whose only interesting step is the first one.
async fn start(cluster: &Cluster, namespace: &str, prefix: &str, overrides: Value) -> String {
    let name = unique(prefix);
    let mut spec = command_agent("echo step $AGENT_STEP");
    merge(&mut spec, &overrides);
    cluster.create(namespace, &task(&name, "Say something.", &spec)).await;
    name
}

fn scheduled(task: &CodingTask) -> Option<Condition> {
    let status = task.status.clone()?;
    status.conditions.into_iter().find(|condition| condition.type_ == "Scheduled")
}

/// Waits for the condition with this reason, and returns its message.
pub(crate) async fn held_up(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    reason: &str,
) -> String {
    eventually(&format!("{name} is held up by {reason}"), SEEN_LIMIT, || async {
        let task = cluster.tasks(namespace).get(name).await.map_err(|e| e.to_string())?;
        match scheduled(&task) {
            Some(found) if found.status == "False" && found.reason == reason => Ok(found.message),
            found => Err(format!("{found:?}\n{}", cluster.describe(namespace, name).await)),
        }
    })
    .await
}

/// A message that helps: the server's words, what to do, and what happens meanwhile.
pub(crate) fn assert_helps(message: &str, words: &[&str]) {
    for wanted in words.iter().chain(&["doubles up to 5m", "without using up a retry", "timeout"]) {
        assert!(message.contains(wanted), "{wanted:?} is missing in: {message}");
    }
}

/// Nothing was charged, and the pods of attempts that never started are gone.
pub(crate) async fn assert_no_harm(cluster: &Cluster, namespace: &str, name: &str) {
    let task = cluster.tasks(namespace).get(name).await.expect("the task");
    let retries = task.status.and_then(|status| status.retries).expect("counts");
    assert_eq!((retries.application, retries.infrastructure, retries.provider), (0, 0, 0));
    for run in cluster.runs(namespace, name).await {
        let status = run.status.unwrap_or_default();
        let reason = status.reason.unwrap_or_default();
        assert!(reason.is_empty() || reason == "Unstarted" || reason == "Completed", "{reason}");
    }
}

/// Waits until the plan step has run, then ends the task.
pub(crate) async fn goes_on(cluster: &Cluster, namespace: &str, name: &str) {
    eventually(&format!("{name} goes on by itself"), MENDED_LIMIT, || async {
        let runs = cluster.runs(namespace, name).await;
        let well = |run: &agent_operator::crd::AgentRun| {
            let status = run.status.clone().unwrap_or_default();
            matches!(status.phase.as_deref(), Some("Running" | "Succeeded"))
        };
        if runs.iter().any(well) { Ok(()) } else { Err(cluster.describe(namespace, name).await) }
    })
    .await;
    assert_no_harm(cluster, namespace, name).await;
    eventually("pods of attempts that never started are gone", SEEN_LIMIT, || async {
        let runs = cluster.runs(namespace, name).await;
        let unstarted = |pod: &&Pod| {
            let name = pod.meta().name.clone().unwrap_or_default();
            runs.iter().any(|run| {
                let status = run.status.clone().unwrap_or_default();
                status.reason.as_deref() == Some("Unstarted")
                    && status.pod_name == Some(name.clone())
            })
        };
        let pods = cluster.task_pods(namespace, name).await;
        match pods.iter().filter(unstarted).count() {
            0 => Ok(()),
            dead => Err(format!("{dead} dead pods")),
        }
    })
    .await;
    eventually("the condition is lifted", SEEN_LIMIT, || async {
        let task = cluster.tasks(namespace).get(name).await.map_err(|e| e.to_string())?;
        match scheduled(&task) {
            Some(found) if found.status == "True" => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await;
    cluster.delete(namespace, name).await;
}

pub(crate) fn untyped(
    cluster: &Cluster,
    group: &str,
    kind: &str,
    namespace: Option<&str>,
) -> Api<DynamicObject> {
    let version = GroupVersionKind::gvk(group, "v1", kind);
    let resource = ApiResource::from_gvk(&version);
    match namespace {
        Some(namespace) => Api::namespaced_with(cluster.client.clone(), namespace, &resource),
        None => Api::all_with(cluster.client.clone(), &resource),
    }
}

pub(crate) async fn put(api: &Api<DynamicObject>, object: Value) {
    let object: DynamicObject = serde_json::from_value(object).expect("an object");
    api.create(&PostParams::default(), &object).await.expect("the obstacle");
}

pub(crate) async fn remove(api: &Api<DynamicObject>, name: &str) {
    api.delete(name, &DeleteParams::default()).await.expect("the obstacle's end");
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn f21_a_missing_image_is_named_and_the_task_goes_on_once_it_is_pushed() {
    let cluster = Cluster::connect().await;
    let image = format!("{}/{}:1", env("AO_REGISTRY"), unique("late-image"));
    let name = start(&cluster, NAMESPACE, "no-image", json!({"agentImage": image})).await;
    let message = held_up(&cluster, NAMESPACE, &name, "ImageNotPullable").await;
    assert_helps(&message, &["not found", &image, "spec.agentImage"]);

    let run = cluster.runs(NAMESPACE, &name).await.remove(0);
    let status = run.status.expect("a status");
    assert_eq!(status.reason.as_deref(), Some("Unstarted"));
    assert!(status.message.expect("a message").contains("spec.imagePullSecrets"));

    crane(&["copy", &images::of_release("agent"), &image]).await;
    goes_on(&cluster, NAMESPACE, &name).await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn f21_a_task_whose_image_never_comes_ends_by_its_timeout_with_that_reason_kept() {
    let cluster = Cluster::connect().await;
    let image = format!("{}/{}:1", env("AO_REGISTRY"), unique("never-image"));
    let overrides = json!({"agentImage": image, "taskTimeout": "20s"});
    let name = start(&cluster, NAMESPACE, "never-image", overrides).await;
    let done = cluster.finished(NAMESPACE, &name).await;
    assert_eq!(phase(&done), "Failed");
    let condition = scheduled(&done).expect("a condition");
    assert_eq!(
        (condition.status.as_str(), condition.reason.as_str()),
        ("False", "ImageNotPullable")
    );
    let message = done.status.and_then(|status| status.message).expect("a message");
    for words in ["taskTimeout", "not found", &image] {
        assert!(message.contains(words), "{message}");
    }
    assert_no_harm_but_cancelled(&cluster, &name).await;
}

/// As [`assert_no_harm`], for a task that was ended in the middle of an attempt.
async fn assert_no_harm_but_cancelled(cluster: &Cluster, name: &str) {
    for run in cluster.runs(NAMESPACE, name).await {
        let reason = run.status.and_then(|status| status.reason).unwrap_or_default();
        assert!(["", "Unstarted", "Cancelled"].contains(&reason.as_str()), "{reason}");
    }
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn f21_a_registry_that_wants_credentials_is_named_and_the_task_goes_on_once_it_has_them() {
    let cluster = Cluster::connect().await;
    let registry = PrivateRegistry::start().await;
    let image = registry.image("agent");
    let pull = unique("pull");
    let overrides = json!({"agentImage": image, "imagePullSecrets": [{"name": pull}]});
    let name = start(&cluster, NAMESPACE, "private-registry", overrides).await;
    let message = held_up(&cluster, NAMESPACE, &name, "ImageNotPullable").await;
    assert_helps(&message, &["authorization failed", "spec.imagePullSecrets"]);
    registry.pull_secret(NAMESPACE, &pull).await;
    goes_on(&cluster, NAMESPACE, &name).await;
    cluster.delete_secret(NAMESPACE, &pull).await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn f21_a_registry_whose_rate_limit_is_reached_is_waited_for_within_the_attempt() {
    let cluster = Cluster::connect().await;
    let registry = LimitedRegistry::start().await;
    let overrides = json!({"agentImage": registry.image("agent")});
    let name = start(&cluster, NAMESPACE, "rate-limit", overrides).await;
    let message = held_up(&cluster, NAMESPACE, &name, "ImageNotPullable").await;
    assert!(message.contains("429 Too Many Requests"), "the registry's own words: {message}");
    registry.relent();
    goes_on(&cluster, NAMESPACE, &name).await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn f21_a_registry_that_does_not_answer_for_a_while_costs_no_attempt() {
    let cluster = Cluster::connect().await;
    let registry = StalledRegistry::start().await;
    let overrides = json!({"agentImage": registry.image("agent")});
    let name = start(&cluster, NAMESPACE, "stalled-registry", overrides).await;
    registry.asked().await;
    let waiting = cluster.runs(NAMESPACE, &name).await.remove(0);
    registry.wake();
    let done = cluster.run_in_phase(NAMESPACE, &name, "plan", "Succeeded").await;
    assert_eq!(done.name_any(), waiting.name_any(), "the attempt that waited is the one that ran");
    goes_on(&cluster, NAMESPACE, &name).await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn f21_an_image_for_another_architecture_is_named_as_such() {
    let cluster = Cluster::connect().await;
    let image = format!("{}/{}", env("AO_REGISTRY"), unique("foreign"));
    let (single, image) = (format!("{image}:single"), format!("{image}:index"));
    crane(&[
        "mutate",
        &images::of_release("agent"),
        "--set-platform",
        "linux/s390x",
        "--tag",
        &single,
    ])
    .await;
    // As images for several architectures are published, without ours among them.
    crane(&["index", "append", "--manifest", &single, "--tag", &image]).await;
    let name = start(&cluster, NAMESPACE, "foreign", json!({"agentImage": image})).await;
    let message = held_up(&cluster, NAMESPACE, &name, "ImageNotRunnable").await;
    assert_helps(&message, &["no match for platform", "architecture"]);
    assert_no_harm(&cluster, NAMESPACE, &name).await;
    cluster.delete(NAMESPACE, &name).await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn a_task_that_no_node_fits_waits_visibly_and_starts_when_one_does() {
    let cluster = Cluster::connect().await;
    let label = unique("e2e-pool");
    let selector = json!({"nodeSelector": {label.as_str(): "yes"}});
    let name = start(&cluster, NAMESPACE, "no-node", selector).await;
    let message = held_up(&cluster, NAMESPACE, &name, "NoCapacity").await;
    assert!(
        message.contains("nodeSelector") && message.contains("until the task's timeout"),
        "{message}"
    );
    assert!(cluster.runs(NAMESPACE, &name).await.is_empty(), "no attempt was made");

    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let node = nodes.list(&ListParams::default()).await.expect("nodes").items.remove(0);
    let node = node.metadata.name.expect("a name");
    let set = |value: Value| json!({"metadata": {"labels": {label.as_str(): value}}});
    let params = PatchParams::default();
    nodes.patch_metadata(&node, &params, &Patch::Merge(set(json!("yes")))).await.expect("a label");
    goes_on(&cluster, NAMESPACE, &name).await;
    nodes.patch_metadata(&node, &params, &Patch::Merge(set(Value::Null))).await.expect("no label");
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn f32_a_used_up_quota_is_named_and_the_task_goes_on_once_it_is_raised() {
    let cluster = Cluster::connect().await;
    cluster.copy_secret("agent-secrets", LIMITS).await;
    let quotas = untyped(&cluster, "", "ResourceQuota", Some(LIMITS));
    let quota = unique("quota");
    // Far above what the neighbouring test uses; only this task is larger.
    put(
        &quotas,
        json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": quota},
        "spec": {"hard": {"limits.memory": "20Gi"}}}),
    )
    .await;
    eventually("the quota is counted", SEEN_LIMIT, || async {
        let found = quotas.get(&quota).await.map_err(|e| e.to_string())?;
        let hard = found.data.pointer("/status/hard").is_some();
        if hard { Ok(()) } else { Err(found.data.to_string()) }
    })
    .await;
    let large = json!({"resources": {"cpu": "500m", "memory": "30Gi"}});
    let name = start(&cluster, LIMITS, "quota", large).await;
    let message = held_up(&cluster, LIMITS, &name, "QuotaExceeded").await;
    assert_helps(&message, &["exceeded quota: ", &quota, "raise the namespace's ResourceQuota"]);
    assert!(cluster.task_pods(LIMITS, &name).await.is_empty(), "no pod");

    remove(&quotas, &quota).await;
    goes_on(&cluster, LIMITS, &name).await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn f32_a_limit_range_is_named_and_the_task_goes_on_once_it_is_lifted() {
    let cluster = Cluster::connect().await;
    cluster.copy_secret("agent-secrets", LIMITS).await;
    let ranges = untyped(&cluster, "", "LimitRange", Some(LIMITS));
    let range = unique("range");
    put(
        &ranges,
        json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": range},
        "spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}}]}}),
    )
    .await;
    let large = json!({"resources": {"cpu": "3", "memory": "512Mi"}});
    let name = start(&cluster, LIMITS, "range", large).await;
    let message = held_up(&cluster, LIMITS, &name, "LimitRangeExceeded").await;
    assert_helps(&message, &["maximum cpu usage per Container is 2", "spec.resources"]);

    remove(&ranges, &range).await;
    goes_on(&cluster, LIMITS, &name).await;
}

/// A condition on the pods of one task, in CEL.
fn only_pods_of(task: &str) -> Value {
    json!([{"name": "one-task", "expression":
        format!("object.metadata.?labels['agents.wearn.dev/task'].orValue('') == '{task}'")}])
}

const ADMISSION: &str = "admissionregistration.k8s.io";

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn f32_an_admission_policy_is_quoted_and_the_task_goes_on_once_it_is_gone() {
    let cluster = Cluster::connect().await;
    let (policy, name) = (unique("no-agents"), unique("policy"));
    let policies = untyped(&cluster, ADMISSION, "ValidatingAdmissionPolicy", None);
    let bindings = untyped(&cluster, ADMISSION, "ValidatingAdmissionPolicyBinding", None);
    let version = format!("{ADMISSION}/v1");
    put(&policies, json!({"apiVersion": version, "kind": "ValidatingAdmissionPolicy", "metadata": {"name": policy},
        "spec": {"failurePolicy": "Fail", "matchConditions": only_pods_of(&name),
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]},
            "validations": [{"expression": "false", "message": "no agents on Sundays"}]}}))
    .await;
    put(&bindings, json!({"apiVersion": version, "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": policy},
        "spec": {"policyName": policy, "validationActions": ["Deny"]}}))
    .await;
    policy_is_seen(&cluster, &name).await;
    cluster.create(NAMESPACE, &task(&name, "Say something.", &command_agent("echo hello"))).await;
    let message = held_up(&cluster, NAMESPACE, &name, "PodRefused").await;
    assert_helps(&message, &["no agents on Sundays", &policy]);

    remove(&bindings, &policy).await;
    remove(&policies, &policy).await;
    goes_on(&cluster, NAMESPACE, &name).await;
}

/// Policies act a moment after they were made: waits until a pod with this task's label is refused.
async fn policy_is_seen(cluster: &Cluster, task: &str) {
    eventually("the policy is in force", SEEN_LIMIT, || async {
        match dry_run(cluster, task).await {
            Err(_) => Ok(()),
            Ok(_) => Err("a pod is admitted".to_owned()),
        }
    })
    .await;
}

/// What would become of a pod with this task's label where no profile is enforced.
async fn dry_run(cluster: &Cluster, task: &str) -> kube::Result<Pod> {
    let probe = serde_json::from_value(json!({
        "metadata": {"name": format!("probe-{task}"), "labels": {"agents.wearn.dev/task": task}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }));
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    cluster.pods("default").create(&dry, &probe.expect("a pod")).await
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn f32_pod_security_is_quoted_and_the_task_goes_on_once_nothing_breaks_its_profile() {
    let cluster = Cluster::connect().await;
    let (policy, name) = (unique("meddles"), unique("pod-security"));
    let policies = untyped(&cluster, ADMISSION, "MutatingAdmissionPolicy", None);
    let bindings = untyped(&cluster, ADMISSION, "MutatingAdmissionPolicyBinding", None);
    let version = format!("{ADMISSION}/v1");
    // Agent pods fit the profile, so somebody has to change them on their way, as injectors of
    // sidecars do.
    put(&policies, json!({"apiVersion": version, "kind": "MutatingAdmissionPolicy", "metadata": {"name": policy},
        "spec": {"failurePolicy": "Fail", "reinvocationPolicy": "Never", "matchConditions": only_pods_of(&name),
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]},
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{spec: Object.spec{hostIPC: true}}"}}]}}))
    .await;
    put(&bindings, json!({"apiVersion": version, "kind": "MutatingAdmissionPolicyBinding", "metadata": {"name": policy},
        "spec": {"policyName": policy}}))
    .await;
    eventually("the policy is in force", SEEN_LIMIT, || async {
        let made = dry_run(&cluster, &name).await.map_err(|error| error.to_string())?;
        let meddled = made.spec.and_then(|spec| spec.host_ipc) == Some(true);
        if meddled { Ok(()) } else { Err("a pod is as it was sent".to_owned()) }
    })
    .await;
    cluster.create(NAMESPACE, &task(&name, "Say something.", &command_agent("echo hello"))).await;
    let message = held_up(&cluster, NAMESPACE, &name, "PodSecurityRefused").await;
    let words =
        ["violates PodSecurity \"restricted", "hostIPC=true", "a mutating policy or webhook"];
    assert_helps(&message, &words);
    assert!(cluster.task_pods(NAMESPACE, &name).await.is_empty(), "no pod");

    remove(&bindings, &policy).await;
    remove(&policies, &policy).await;
    goes_on(&cluster, NAMESPACE, &name).await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn f32_a_webhook_that_is_down_is_quoted_and_the_task_goes_on_once_it_is_gone() {
    let cluster = Cluster::connect().await;
    let (hook, name) = (unique("hook"), unique("webhook"));
    let hooks = untyped(&cluster, ADMISSION, "ValidatingWebhookConfiguration", None);
    put(&hooks, json!({"apiVersion": format!("{ADMISSION}/v1"), "kind": "ValidatingWebhookConfiguration", "metadata": {"name": hook},
        "webhooks": [{"name": "pods.e2e.example", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "failurePolicy": "Fail", "timeoutSeconds": 2,
            // Nothing listens on the discard port of the API server's own loopback.
            "clientConfig": {"url": "https://127.0.0.1:9/"},
            "objectSelector": {"matchLabels": {"agents.wearn.dev/task": name}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]}]}))
    .await;
    policy_is_seen(&cluster, &name).await;
    cluster.create(NAMESPACE, &task(&name, "Say something.", &command_agent("echo hello"))).await;
    let message = held_up(&cluster, NAMESPACE, &name, "PodRefused").await;
    assert_helps(&message, &["failed calling webhook", "pods.e2e.example"]);

    remove(&hooks, &hook).await;
    goes_on(&cluster, NAMESPACE, &name).await;
}
