//! What our processes rely on in an API server. Every case runs against a real kube-apiserver
//! (`tests/api_server.rs`) and against the one in memory (`tests/simulation.rs`): where they differ,
//! the double is wrong.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use kube::{
    Api, Client, ResourceExt as _,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
        Preconditions, WatchEvent, WatchParams,
    },
    core::GroupVersionKind,
};
use serde_json::{Value, json};

/// Invokes a macro with the name of each case.
macro_rules! for_each_case {
    ($case:ident) => {
        $case!(a_creation_gives_identity_and_a_second_one_conflicts);
        $case!(nothing_is_created_in_a_namespace_that_is_missing_or_on_its_way_out);
        $case!(status_and_the_rest_are_written_apart_and_generations_count_specs);
        $case!(a_write_that_changes_nothing_makes_no_version);
        $case!(a_write_from_an_old_version_conflicts);
        $case!(a_write_meant_for_another_uid_is_refused);
        $case!(a_deletion_meant_for_another_uid_conflicts);
        $case!(a_finalizer_holds_an_object_until_it_is_taken_off);
        $case!(one_finalizer_of_a_pod_is_taken_off_without_a_look_at_the_others);
        $case!(a_bound_pod_goes_after_its_grace_and_its_finalizers);
        $case!(an_unbound_pod_goes_at_once);
        $case!(an_applied_status_takes_back_what_it_no_longer_names);
        $case!(the_end_of_a_run_never_changes);
        $case!(lists_are_narrowed_by_labels_and_fields_and_come_in_pages);
        $case!(a_watch_tells_every_change_once_and_ends_with_a_bookmark);
        $case!(a_watch_shows_what_leaves_its_selection_as_deleted);
        $case!(a_watch_from_too_long_ago_is_told_so);
    };
}

/// Longest wait for something that the server does by itself.
const LIMIT: Duration = Duration::from_secs(30);

fn resource(group: &str, version: &str, kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

fn runs(client: &Client, namespace: &str) -> Api<DynamicObject> {
    let resource = resource("agents.wearn.dev", "v1alpha1", "AgentRun");
    Api::namespaced_with(client.clone(), namespace, &resource)
}

fn tasks(client: &Client, namespace: &str) -> Api<DynamicObject> {
    let resource = resource("agents.wearn.dev", "v1alpha1", "CodingTask");
    Api::namespaced_with(client.clone(), namespace, &resource)
}

fn core(client: &Client, namespace: &str, kind: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &resource("", "v1", kind))
}

fn from_json(value: Value) -> DynamicObject {
    serde_json::from_value(value).unwrap()
}

fn sample(file: &str, name: &str, namespace: &str) -> DynamicObject {
    let path = format!("{}/deploy/samples/{file}.yaml", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let mut object: Value = serde_saphyr::from_str(&text).unwrap();
    object["metadata"]["name"] = name.into();
    object["metadata"]["namespace"] = namespace.into();
    from_json(object)
}

async fn create(api: &Api<DynamicObject>, object: &DynamicObject) -> DynamicObject {
    api.create(&PostParams::default(), object).await.unwrap()
}

async fn run(client: &Client, namespace: &str, name: &str) -> DynamicObject {
    create(&runs(client, namespace), &sample("agentrun", name, namespace)).await
}

async fn merge(
    api: &Api<DynamicObject>,
    name: &str,
    patch: Value,
) -> Result<DynamicObject, kube::Error> {
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await
}

async fn merge_status(
    api: &Api<DynamicObject>,
    name: &str,
    status: Value,
) -> Result<DynamicObject, kube::Error> {
    let patch = Patch::Merge(json!({"status": status}));
    api.patch_status(name, &PatchParams::default(), &patch).await
}

async fn apply_status(
    api: &Api<DynamicObject>,
    before: &DynamicObject,
    status: Value,
) -> Result<DynamicObject, kube::Error> {
    let types = before.types.clone().unwrap();
    let patch = json!({
        "apiVersion": types.api_version, "kind": types.kind,
        "metadata": {"name": before.name_any(), "namespace": before.namespace(),
            "uid": before.uid(), "resourceVersion": before.resource_version()},
        "status": status,
    });
    let params = PatchParams::apply("conformance").force();
    api.patch_status(&before.name_any(), &params, &Patch::Apply(patch)).await
}

/// Code and word of a refusal.
fn refused<T: std::fmt::Debug>(result: Result<T, kube::Error>) -> (u16, String) {
    match result.expect_err("the server must refuse this") {
        kube::Error::Api(status) => (status.code, status.reason.clone()),
        other => panic!("not a refusal: {other:?}"),
    }
}

fn word(code: u16, reason: &str) -> (u16, String) {
    (code, reason.to_owned())
}

fn version(object: &DynamicObject) -> u64 {
    object.resource_version().unwrap().parse().unwrap()
}

pub(crate) async fn a_creation_gives_identity_and_a_second_one_conflicts(c: &Client, n: &str) {
    let api = runs(c, n);
    let made = run(c, n, "one").await;
    assert!(made.uid().is_some() && made.creation_timestamp().is_some() && version(&made) > 0);
    assert_eq!(made.metadata.generation, Some(1));
    let again = sample("agentrun", "one", n);
    let second = api.create(&PostParams::default(), &again).await;
    assert_eq!(refused(second), word(409, "AlreadyExists"));
    let other = run(c, n, "two").await;
    assert!(other.uid() != made.uid() && version(&other) > version(&made));
    assert!(api.create(&PostParams::default(), &DynamicObject { metadata: other.metadata, ..again }).await.is_err());
    assert_eq!(refused(api.get("none").await), word(404, "NotFound"));
    assert!(api.get_opt("none").await.unwrap().is_none());
}

pub(crate) async fn nothing_is_created_in_a_namespace_that_is_missing_or_on_its_way_out(
    c: &Client,
    n: &str,
) {
    let gone = format!("{n}-gone");
    let (api, object) = (runs(c, &gone), sample("agentrun", "x", &gone));
    let missing = api.create(&PostParams::default(), &object).await;
    assert_eq!(refused(missing), word(404, "NotFound"));
    let namespaces: Api<DynamicObject> = Api::all_with(c.clone(), &resource("", "v1", "Namespace"));
    create(&namespaces, &from_json(json!({"metadata": {"name": gone}}))).await;
    namespaces.delete(&gone, &DeleteParams::default()).await.unwrap();
    let late = api.create(&PostParams::default(), &object).await;
    assert_eq!(refused(late), word(403, "Forbidden"));
}

pub(crate) async fn status_and_the_rest_are_written_apart_and_generations_count_specs(
    c: &Client,
    n: &str,
) {
    let api = tasks(c, n);
    let mut object = sample("codingtask", "task", n);
    object.data["status"] = json!({"phase": "Complete"});
    let made = create(&api, &object).await;
    assert!(made.data.get("status").is_none(), "a creation gives no status");

    let both = json!({"spec": {"suspend": true}, "status": {"phase": "Complete"}});
    let written = merge(&api, "task", both).await.unwrap();
    assert_eq!(written.data["spec"]["suspend"], true);
    assert!(written.data.get("status").is_none());
    assert_eq!(written.metadata.generation, Some(2));

    let both = Patch::Merge(json!({"spec": {"suspend": false}, "status": {"phase": "Planning"}}));
    let written = api.patch_status("task", &PatchParams::default(), &both).await.unwrap();
    assert_eq!(written.data["spec"]["suspend"], true);
    assert_eq!(written.data["status"]["phase"], "Planning");
    assert_eq!(written.metadata.generation, Some(2));

    let labelled = merge(&api, "task", json!({"metadata": {"labels": {"a": "b"}}})).await.unwrap();
    assert_eq!(labelled.metadata.generation, Some(2));
    assert!(version(&labelled) > version(&written));
    assert_eq!(labelled.data["status"]["phase"], "Planning");
}

pub(crate) async fn a_write_that_changes_nothing_makes_no_version(c: &Client, n: &str) {
    let api = runs(c, n);
    run(c, n, "same").await;
    let status = || json!({"phase": "Running", "podName": "p"});
    let first = merge_status(&api, "same", status()).await.unwrap();
    let again = merge_status(&api, "same", status()).await.unwrap();
    assert_eq!(version(&first), version(&again));
    let labels = || json!({"metadata": {"labels": {"a": "b"}}});
    let first = merge(&api, "same", labels()).await.unwrap();
    let again = merge(&api, "same", labels()).await.unwrap();
    assert_eq!(version(&first), version(&again));
}

pub(crate) async fn a_write_from_an_old_version_conflicts(c: &Client, n: &str) {
    let api = runs(c, n);
    let old = run(c, n, "old").await;
    let applied = apply_status(&api, &old, json!({"phase": "Pending"})).await.unwrap();
    let late = apply_status(&api, &old, json!({"phase": "Running"})).await;
    assert_eq!(refused(late), word(409, "Conflict"));
    apply_status(&api, &applied, json!({"phase": "Running"})).await.unwrap();
    let patch = json!({"metadata": {"resourceVersion": old.resource_version(), "labels": {"a": "b"}}});
    assert_eq!(refused(merge(&api, "old", patch).await), word(409, "Conflict"));
    assert_eq!(api.get("old").await.unwrap().data["status"]["phase"], "Running");
}

pub(crate) async fn a_write_meant_for_another_uid_is_refused(c: &Client, n: &str) {
    let other = "00000000-0000-0000-0000-00000000dead";
    let api = runs(c, n);
    let mut object = run(c, n, "mine").await;
    let patch = json!({"metadata": {"uid": other, "labels": {"a": "b"}}});
    assert_eq!(refused(merge(&api, "mine", patch).await), word(422, "Invalid"));
    // The version comes first: whoever names both learns that the object has changed.
    let patch = json!({"metadata": {"uid": other, "resourceVersion": "1", "labels": {"a": "b"}}});
    assert_eq!(refused(merge(&api, "mine", patch).await), word(409, "Conflict"));
    let pods = core(c, n, "Pod");
    pod(c, n, "mine", None, &["example.com/hold"]).await;
    let patch = json!({"metadata": {"uid": other, "finalizers": []}});
    assert_eq!(refused(merge(&pods, "mine", patch).await), word(422, "Invalid"));
    // Of a status the server looks at the version alone, which no other object ever has.
    object.metadata.uid = Some(other.to_owned());
    let written = apply_status(&api, &object, json!({"phase": "Running"})).await.unwrap();
    assert_ne!(written.uid(), object.uid());
    object.metadata.name = Some("nobody".to_owned());
    object.metadata.resource_version = None;
    let late = apply_status(&api, &object, json!({"phase": "Running"})).await;
    assert_eq!(refused(late).0, 404);
}

pub(crate) async fn a_deletion_meant_for_another_uid_conflicts(c: &Client, n: &str) {
    let api = runs(c, n);
    let object = run(c, n, "mine").await;
    let with = |uid: &str| DeleteParams {
        preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
        ..DeleteParams::default()
    };
    let wrong = with("00000000-0000-0000-0000-00000000dead");
    assert_eq!(refused(api.delete("mine", &wrong).await), word(409, "Conflict"));
    api.delete("mine", &with(&object.uid().unwrap())).await.unwrap();
    assert!(api.get_opt("mine").await.unwrap().is_none());
    assert_eq!(refused(api.delete("mine", &DeleteParams::default()).await), word(404, "NotFound"));
}

pub(crate) async fn a_finalizer_holds_an_object_until_it_is_taken_off(c: &Client, n: &str) {
    let api = runs(c, n);
    let mut object = sample("agentrun", "held", n);
    object.metadata.finalizers = Some(vec!["example.com/a".to_owned(), "example.com/b".to_owned()]);
    create(&api, &object).await;
    api.delete("held", &DeleteParams::default()).await.unwrap();
    let held = api.get("held").await.unwrap();
    assert!(held.metadata.deletion_timestamp.is_some());
    let took = |finalizers: Value, version: Option<String>| {
        json!({"metadata": {"finalizers": finalizers, "resourceVersion": version}})
    };
    let one = took(json!(["example.com/b"]), held.resource_version());
    let one = merge(&api, "held", one).await.unwrap();
    assert!(api.get_opt("held").await.unwrap().is_some());
    let none = merge(&api, "held", took(json!([]), one.resource_version())).await.unwrap();
    assert_eq!(none.uid(), held.uid());
    assert!(api.get_opt("held").await.unwrap().is_none());
}

/// A pod that the server takes without controllers and nodes.
async fn pod(c: &Client, n: &str, name: &str, node: Option<&str>, finalizers: &[&str]) -> DynamicObject {
    // Where no controller makes it, admission wants it all the same.
    let account = from_json(json!({"metadata": {"name": "default"}}));
    if let Err(kube::Error::Api(status)) =
        core(c, n, "ServiceAccount").create(&PostParams::default(), &account).await
    {
        assert_eq!(status.code, 409, "{status:?}");
    }
    let object = json!({
        "metadata": {"name": name, "finalizers": finalizers, "labels": {"app": name}},
        "spec": {"nodeName": node, "automountServiceAccountToken": false,
            "containers": [{"name": "agent", "image": "registry.test/agent:1"}]},
    });
    create(&core(c, n, "Pod"), &from_json(object)).await
}

pub(crate) async fn one_finalizer_of_a_pod_is_taken_off_without_a_look_at_the_others(c: &Client, n: &str) {
    let api = core(c, n, "Pod");
    let made = pod(c, n, "held", None, &["example.com/a", "example.com/b"]).await;
    let without = |uid: Option<String>, name: &str| {
        let list = "$deleteFromPrimitiveList/finalizers";
        Patch::Strategic(json!({"metadata": {"uid": uid, list: [name]}}))
    };
    let params = PatchParams::default();
    let other = Some("00000000-0000-0000-0000-00000000dead".to_owned());
    let meant_for_another = without(other, "example.com/a");
    assert_eq!(refused(api.patch("held", &params, &meant_for_another).await), word(422, "Invalid"));
    let release = without(made.uid(), "example.com/a");
    let one = api.patch("held", &params, &release).await.unwrap();
    assert_eq!(one.finalizers(), ["example.com/b"]);
    let again = api.patch("held", &params, &release).await.unwrap();
    assert_eq!(again.resource_version(), one.resource_version(), "nothing was left to change");
    api.delete("held", &DeleteParams::default()).await.unwrap();
    assert_eq!(api.get("held").await.unwrap().finalizers(), ["example.com/b"]);
    api.patch("held", &params, &without(made.uid(), "example.com/b")).await.unwrap();
    assert!(api.get_opt("held").await.unwrap().is_none());
    assert_eq!(refused(api.patch("held", &params, &release).await).0, 404);
    // Nobody told the server how the lists of a defined resource are merged.
    run(c, n, "defined").await;
    let refusal = runs(c, n).patch("defined", &params, &release).await;
    assert_eq!(refused(refusal).0, 415);
}

fn grace(seconds: u32) -> DeleteParams {
    DeleteParams { grace_period_seconds: Some(seconds), ..DeleteParams::default() }
}

pub(crate) async fn a_bound_pod_goes_after_its_grace_and_its_finalizers(c: &Client, n: &str) {
    let api = core(c, n, "Pod");
    let made = pod(c, n, "bound", Some("node-a"), &["example.com/hold"]).await;
    assert_eq!(made.data["status"]["phase"], "Pending");
    let same_name = from_json(json!({"metadata": {"name": "bound"},
        "spec": {"containers": [{"name": "agent", "image": "registry.test/agent:1"}]}}));
    let second = api.create(&PostParams::default(), &same_name).await;
    assert_eq!(refused(second), word(409, "AlreadyExists"));
    api.delete("bound", &grace(5)).await.unwrap();
    let going = api.get("bound").await.unwrap();
    assert_eq!(going.metadata.deletion_grace_period_seconds, Some(5));
    // As the kubelet does at the end.
    api.delete("bound", &grace(0)).await.unwrap();
    let held = api.get("bound").await.unwrap();
    assert_eq!(held.metadata.deletion_grace_period_seconds, Some(0));
    let patch = json!({"metadata": {"uid": held.uid(), "resourceVersion": held.resource_version(), "finalizers": []}});
    merge(&api, "bound", patch).await.unwrap();
    assert!(api.get_opt("bound").await.unwrap().is_none());

    // The other way round: released first, it stays until the kubelet is done.
    pod(c, n, "released", Some("node-a"), &["example.com/hold"]).await;
    api.delete("released", &grace(5)).await.unwrap();
    merge(&api, "released", json!({"metadata": {"finalizers": null}})).await.unwrap();
    assert!(api.get_opt("released").await.unwrap().is_some());
    api.delete("released", &grace(0)).await.unwrap();
    assert!(api.get_opt("released").await.unwrap().is_none());
}

pub(crate) async fn an_unbound_pod_goes_at_once(c: &Client, n: &str) {
    let api = core(c, n, "Pod");
    pod(c, n, "unbound", None, &[]).await;
    api.delete("unbound", &grace(5)).await.unwrap();
    assert!(api.get_opt("unbound").await.unwrap().is_none());
}

pub(crate) async fn an_applied_status_takes_back_what_it_no_longer_names(c: &Client, n: &str) {
    let api = tasks(c, n);
    let made = create(&api, &sample("codingtask", "task", n)).await;
    let entry = |name: &str, phase: &str| json!({"name": name, "step": "plan", "attempt": 1, "phase": phase});
    let first = json!({"phase": "Planning", "message": "m", "usage": {"turns": 1},
        "agentRuns": [entry("a", "Pending"), entry("b", "Pending")]});
    let first = apply_status(&api, &made, first).await.unwrap();
    let other = merge_status(&api, "task", json!({"totalSteps": 4})).await.unwrap();
    assert!(version(&other) > version(&first));
    let second = json!({"phase": "Implementing", "agentRuns": [entry("b", "Succeeded"), entry("c", "Pending")]});
    let second = apply_status(&api, &other, second).await.unwrap();
    let status = &second.data["status"];
    assert_eq!(status["phase"], "Implementing");
    assert!(status.get("message").is_none() && status.get("usage").is_none(), "{status}");
    assert_eq!(status["totalSteps"], 4, "what another manager wrote stays");
    let runs: Vec<_> = status["agentRuns"].as_array().unwrap().iter().map(|run| run["name"].clone()).collect();
    assert_eq!(runs, ["b", "c"]);
    assert_eq!(status["agentRuns"][0]["phase"], "Succeeded");
}

pub(crate) async fn the_end_of_a_run_never_changes(c: &Client, n: &str) {
    let api = runs(c, n);
    run(c, n, "over").await;
    let end = json!({"phase": "Failed", "reason": "AgentFailed", "exitCode": 7});
    merge_status(&api, "over", end).await.unwrap();
    for change in [json!({"phase": "Running"}), json!({"exitCode": 0}), json!({"reason": "TimedOut"})] {
        assert_eq!(refused(merge_status(&api, "over", change).await), word(422, "Invalid"));
    }
    merge_status(&api, "over", json!({"message": "more"})).await.unwrap();
    let spec = merge(&api, "over", json!({"spec": {"attempt": 9}})).await;
    assert_eq!(refused(spec), word(422, "Invalid"));
}

pub(crate) async fn lists_are_narrowed_by_labels_and_fields_and_come_in_pages(c: &Client, n: &str) {
    for (name, node) in [("a", Some("node-a")), ("b", Some("node-b")), ("c", Some("node-a"))] {
        pod(c, n, name, node, &[]).await;
    }
    let api = core(c, n, "Pod");
    let names = |list: kube::core::ObjectList<DynamicObject>| -> Vec<_> {
        list.items.iter().map(kube::ResourceExt::name_any).collect()
    };
    let params = ListParams::default().fields("spec.nodeName=node-a");
    assert_eq!(names(api.list(&params).await.unwrap()), ["a", "c"]);
    let params = ListParams::default().labels("app=b");
    assert_eq!(names(api.list(&params).await.unwrap()), ["b"]);
    let params = ListParams::default().limit(2);
    let first = api.list(&params).await.unwrap();
    let more = first.metadata.continue_.clone().unwrap();
    assert_eq!(names(first), ["a", "b"]);
    let last = api.list(&params.continue_token(&more)).await.unwrap();
    assert!(last.metadata.continue_.as_ref().is_none_or(String::is_empty));
    assert!(last.metadata.resource_version.is_some());
    assert_eq!(names(last), ["c"]);
}

/// What a watch with these parameters says until it ends: a word, a name and a version each.
async fn watched(api: &Api<DynamicObject>, params: &WatchParams, from: &str) -> Vec<(&'static str, String, u64)> {
    let stream = api.watch(params, from).await.unwrap();
    let collect = stream.boxed().map_ok(|event| match event {
        WatchEvent::Added(object) => ("added", object.name_any(), version(&object)),
        WatchEvent::Modified(object) => ("modified", object.name_any(), version(&object)),
        WatchEvent::Deleted(object) => ("deleted", object.name_any(), version(&object)),
        WatchEvent::Bookmark(mark) => {
            ("bookmark", String::new(), mark.metadata.resource_version.parse().unwrap())
        }
        WatchEvent::Error(status) => ("error", status.reason.clone(), u64::from(status.code)),
    });
    let limit = tokio::time::timeout(LIMIT, collect.try_collect::<Vec<_>>());
    limit.await.expect("the watch ends by its own limit").unwrap()
}

fn said(events: &[(&'static str, String, u64)]) -> Vec<(&'static str, String)> {
    let told = events.iter().filter(|(word, _, _)| *word != "bookmark");
    told.map(|(word, name, _)| (*word, name.clone())).collect()
}

fn told(events: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    events.iter().map(|(word, name)| (*word, (*name).to_owned())).collect()
}

pub(crate) async fn a_watch_tells_every_change_once_and_ends_with_a_bookmark(c: &Client, n: &str) {
    let api = runs(c, n);
    let first = run(c, n, "first").await;
    let start = first.resource_version().unwrap();
    run(c, n, "second").await;
    merge_status(&api, "first", json!({"phase": "Running"})).await.unwrap();
    api.delete("second", &DeleteParams::default()).await.unwrap();
    let last = merge_status(&api, "first", json!({"phase": "Unknown"})).await.unwrap();
    let events = watched(&api, &WatchParams::default().timeout(2), &start).await;
    let expected = [("added", "second"), ("modified", "first"), ("deleted", "second"), ("modified", "first")];
    assert_eq!(said(&events), told(&expected));
    let versions: Vec<_> = events.iter().map(|(_, _, version)| *version).collect();
    assert!(versions.is_sorted(), "{versions:?}");
    assert!(versions.contains(&version(&last)));
    // From the end on there is nothing new.
    let events = watched(&api, &WatchParams::default().timeout(1), &last.resource_version().unwrap()).await;
    assert_eq!(said(&events), []);
}

pub(crate) async fn a_watch_shows_what_leaves_its_selection_as_deleted(c: &Client, n: &str) {
    let api = core(c, n, "Pod");
    let made = pod(c, n, "wanderer", Some("node-a"), &[]).await;
    let start = made.resource_version().unwrap();
    merge(&api, "wanderer", json!({"metadata": {"labels": {"app": "else"}}})).await.unwrap();
    merge(&api, "wanderer", json!({"metadata": {"labels": {"app": "wanderer"}}})).await.unwrap();
    merge(&api, "wanderer", json!({"metadata": {"labels": {"more": "1"}}})).await.unwrap();
    let params = WatchParams::default().labels("app=wanderer").fields("spec.nodeName=node-a").timeout(2);
    let events = watched(&api, &params, &start).await;
    let expected = [("deleted", "wanderer"), ("added", "wanderer"), ("modified", "wanderer")];
    assert_eq!(said(&events), told(&expected));
}

pub(crate) async fn a_watch_from_too_long_ago_is_told_so(c: &Client, n: &str) {
    run(c, n, "first").await;
    let events = watched(&runs(c, n), &WatchParams::default().timeout(2), "1").await;
    assert_eq!(events, [("error", "Expired".to_owned(), 410)]);
}
