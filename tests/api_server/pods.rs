//! The supervisor's calls on pods against a real server, with a supervisor's own token and the pod
//! that it really makes: under the chart's policies and rights, in a namespace held to `restricted`.

use agent_operator::domain::{Assignment, Secret, StartFault, ids::PodUid};
use agent_operator_doubles::assignment;
use agent_operator_supervisor::{
    ledger::Delivery,
    pod::{
        build::{self, NodeSettings},
        client::{Adoption, KubePods, PodApi as _, PodError, judge, run_key},
        digest::digest,
        watch,
    },
    steps::{hindrance, runner::Input},
};
use k8s_openapi::api::core::v1::{LimitRange, Namespace, Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    policies::Installed,
    server::{eventually, from_json},
};

pub(crate) fn assignment(namespace: &str, node: &str) -> Assignment {
    let here = json!({"run": {"namespace": namespace}, "node": node});
    from_json(assignment::assignment(&here))
}

pub(crate) fn pod(assignment: &Assignment) -> Pod {
    pod_by(assignment, Delivery::ImageVolume)
}

pub(crate) fn pod_by(assignment: &Assignment, delivery: Delivery) -> Pod {
    let settings = NodeSettings {
        gateway: "10.96.0.10:8080".parse().unwrap(),
        runner_image: "registry.example/runner:1".into(),
        delivery,
        priority_class: None,
    };
    build::pod(assignment, &settings, &Secret::new("one-time"))
}

/// A chart, and a client with the token of node-a's supervisor.
async fn rig() -> Option<(Installed, Client)> {
    let installed = Installed::new().await?;
    let client = installed.supervisor(Some("node-a")).await;
    let namespaces: Api<Namespace> = Api::all(installed.admin.clone());
    let level = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    let patch = Patch::Merge(json!({"metadata": {"labels": level}}));
    namespaces.patch(&installed.namespace, &PatchParams::default(), &patch).await.unwrap();
    // The API server's own cache of namespaces follows a moment later.
    let mut open = pod(&assignment(&installed.namespace, "node-a"));
    open.spec.as_mut().unwrap().host_network = Some(true);
    let pods: Api<Pod> = Api::namespaced(installed.admin.clone(), &installed.namespace);
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    eventually("the profile is enforced", async || pods.create(&dry, &open).await.err()).await;
    Some((installed, client))
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn supervisor_pod_is_made_adopted_deleted_and_released() {
    let Some((installed, client)) = rig().await else { return };
    let pods = KubePods::new(client);
    let space = &installed.namespace;
    let wanted = pod(&assignment(space, "node-a"));
    let name = wanted.metadata.name.clone().unwrap();
    let created = pods.create(&wanted).await.unwrap();
    let uid = PodUid::new(created.metadata.uid.unwrap());
    assert!(matches!(pods.create(&wanted).await, Err(PodError::Exists)));
    let existing = pods.get(space, &name).await.unwrap().unwrap();
    assert!(matches!(judge(&existing, &wanted), Adoption::Ours { uid: found, .. } if found == uid));

    let other = PodUid::from("00000000-0000-0000-0000-000000000000");
    pods.delete(space, &name, &other).await.unwrap();
    pods.remove_finalizer(space, &name, &other).await.unwrap();
    let same = pods.get(space, &name).await.unwrap().unwrap();
    assert_eq!(same.metadata.resource_version, existing.metadata.resource_version);

    pods.delete(space, &name, &uid).await.unwrap();
    let ending = digest(&pods.get(space, &name).await.unwrap().unwrap());
    assert!(ending.deleting && !ending.scheduled, "held by the finalizer alone: {ending:?}");
    pods.remove_finalizer(space, &name, &uid).await.unwrap();
    assert_eq!(pods.get(space, &name).await.unwrap(), None);
    pods.remove_finalizer(space, &name, &uid).await.unwrap();
    pods.delete(space, &name, &uid).await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn supervisor_tells_a_wrong_pod_from_a_refused_one() {
    let Some((installed, client)) = rig().await else { return };
    let pods = KubePods::new(client);
    let space = &installed.namespace;
    let mut wrong = assignment(space, "node-a");
    wrong.pod.cpu_limit = "much".into();
    assert!(matches!(pods.create(&pod(&wrong)).await, Err(PodError::Invalid(_))));
    let elsewhere = pods.create(&pod(&assignment(space, "node-b"))).await;
    assert!(matches!(&elsewhere, Err(PodError::Refused(words)) if words.contains("own node")));
    let no_namespace = pods.create(&pod(&assignment("no-such-namespace", "node-a"))).await;
    assert!(matches!(no_namespace, Err(PodError::Refused(_))));
}

/// The server's own words about a pod that it refuses, and what they are taken for.
async fn refusal(pods: &KubePods, wanted: &Pod) -> (StartFault, String) {
    match pods.create(wanted).await {
        Err(PodError::Refused(words)) => (hindrance::refusal(&words), words),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn f32_refusals_of_the_real_server_are_told_apart() {
    let Some((installed, _)) = rig().await else { return };
    // The administrator's: the chart's own policy would refuse some of these pods first.
    let pods = KubePods::new(installed.admin.clone());
    let space = &installed.namespace;
    let wanted = pod(&assignment(space, "node-a"));

    let mut open = wanted.clone();
    open.spec.as_mut().unwrap().host_network = Some(true);
    let (fault, words) = refusal(&pods, &open).await;
    assert_eq!(fault, StartFault::PodSecurityRefused, "{words}");

    let mut classed = assignment(space, "node-a");
    classed.pod.runtime_class_name = Some("no-such-class".into());
    let (fault, words) = refusal(&pods, &pod(&classed)).await;
    assert_eq!(fault, StartFault::RuntimeClassMissing, "{words}");
    assert!(fault.remedy().contains("spec.sandbox.runtimeClassName"));
    let made = pods.get(space, wanted.metadata.name.as_deref().unwrap()).await.unwrap();
    assert_eq!(made, None, "nothing runs without the class that was asked for");

    let ranges: Api<LimitRange> = Api::namespaced(installed.admin.clone(), space);
    for (bounds, what) in [
        (json!({"max": {"cpu": "1"}}), "max"),
        (json!({"min": {"cpu": "1"}, "max": {"cpu": "8"}}), "min"),
        (json!({"maxLimitRequestRatio": {"cpu": "2"}}), "ratio"),
    ] {
        let mut limit = bounds;
        limit["type"] = json!("Container");
        let range: LimitRange =
            from_json(json!({"metadata": {"name": what}, "spec": {"limits": [limit]}}));
        ranges.create(&PostParams::default(), &range).await.unwrap();
        let (fault, words) = eventually("the range is in force", async || {
            let made = pods.create(&wanted).await;
            let Err(PodError::Refused(words)) = made else {
                let name = wanted.metadata.name.clone().unwrap();
                let uid = PodUid::new(made.ok()?.metadata.uid?);
                pods.delete(space, &name, &uid).await.unwrap();
                pods.remove_finalizer(space, &name, &uid).await.unwrap();
                return None;
            };
            Some((hindrance::refusal(&words), words))
        })
        .await;
        assert_eq!(fault, StartFault::LimitRangeExceeded, "{what}: {words}");
        ranges.delete(what, &DeleteParams::default()).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn supervisor_watch_shows_the_pods_of_its_node_and_their_end() {
    let Some((installed, client)) = rig().await else { return };
    let pods = KubePods::new(client.clone());
    let space = installed.namespace.clone();
    let (inputs, mut received) = mpsc::channel(64);
    let watch = tokio::spawn(watch::run(client, space.clone(), "node-a".into(), inputs));
    let wanted = pod(&assignment(&space, "node-a"));
    let name = wanted.metadata.name.clone().unwrap();
    let created = pods.create(&wanted).await.unwrap();
    let key = run_key(&created).unwrap();
    let uid = PodUid::new(created.metadata.uid.clone().unwrap());

    let api: Api<Pod> = Api::namespaced(installed.admin.clone(), &space);
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "node-a"},
    });
    let bound: Result<serde_json::Value, _> =
        api.create_subresource("binding", &name, &PostParams::default(), &binding).await;
    bound.unwrap();
    eventually("the watch shows the bound pod", async || match received.recv().await {
        Some(Input::PodSeen { run, digest }) => {
            (run == key && digest.uid == uid && digest.scheduled).then_some(())
        }
        Some(_) => None,
        None => panic!("the watch ended"),
    })
    .await;
    pods.remove_finalizer(&space, &name, &uid).await.unwrap();
    let now = kube::api::DeleteParams::default().grace_period(0);
    api.delete(&name, &now).await.unwrap();
    eventually("the watch shows the pod's end", async || match received.recv().await {
        Some(Input::PodMissing(run)) => (run == key).then_some(()),
        Some(_) => None,
        None => panic!("the watch ended"),
    })
    .await;
    watch.abort();
}
