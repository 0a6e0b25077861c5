//! What users may write, against the running controller: objects made of the schema, and one that it
//! cannot read.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use agent_operator::{
    crd::CodingTask,
    domain::{Reason, names::short_hash},
};
use kube::{ResourceExt as _, api::ListParams};
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::{Value, json};

use super::{
    schema::{Manner, names, specs},
    support::{Controller, Fleet, Ground, Script, all_well, ground, outcome},
};

/// Tasks that the API server has to accept.
const TASKS: usize = 150;
/// Objects that are tried for that.
const TRIES_MAX: usize = 600;
/// Longest name of an object.
const NAME_CHARS_MAX: usize = 253;
/// Time without any write after which the controller counts as idle.
const QUIET: Duration = Duration::from_secs(4);
/// Longest wait for that, on a busy machine.
const SETTLE: Duration = Duration::from_mins(3);

/// Creates what the schema's generator makes until enough is accepted; gives the refusals.
async fn create_many(ground: &Ground) -> Vec<String> {
    // The same objects each time: a failure is not a matter of luck.
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let strategy = (specs(Manner::Plausible), names());
    let (mut accepted, mut refusals) = (0, Vec::new());
    for number in 0..TRIES_MAX {
        if accepted == TASKS {
            break;
        }
        let (spec, name) = strategy.new_tree(&mut runner).unwrap().current();
        let object = json!({
            "apiVersion": "agents.wearn.dev/v1alpha1",
            "kind": "CodingTask",
            "metadata": {"name": unique(&name, number)},
            "spec": spec,
        });
        let path = format!(
            "/apis/agents.wearn.dev/v1alpha1/namespaces/{}/codingtasks?fieldValidation=Strict",
            ground.namespace
        );
        let request = http::Request::post(path).header("content-type", "application/json");
        let body = serde_json::to_vec(&object).unwrap();
        match ground.client.request::<Value>(request.body(body).unwrap()).await {
            Ok(_) => accepted += 1,
            Err(kube::Error::Api(status)) => refusals.push(status.message.clone()),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(accepted, TASKS, "refused: {refusals:#?}");
    refusals
}

/// `name` with a number in front, and as long as before where that is the limit.
fn unique(name: &str, number: usize) -> String {
    let unique = format!("{number}{name}");
    unique.chars().take(NAME_CHARS_MAX).collect()
}

/// Version of every task and run.
async fn versions(ground: &Ground) -> BTreeMap<String, Option<String>> {
    let tasks = ground.tasks().list(&ListParams::default()).await.unwrap().items;
    let runs = ground.all_runs().await;
    let tasks = tasks.iter().map(|task| (task.name_any(), task.resource_version()));
    tasks.chain(runs.iter().map(|run| (run.name_any(), run.resource_version()))).collect()
}

/// Waits until nothing is written any more.
async fn quiet(ground: &Ground) {
    let settle = async {
        let mut before = versions(ground).await;
        loop {
            tokio::time::sleep(QUIET).await;
            let now = versions(ground).await;
            if now == before {
                return;
            }
            before = now;
        }
    };
    tokio::time::timeout(SETTLE, settle).await.expect("the controller goes on writing");
}

fn condition<'a>(task: &'a CodingTask, type_: &str) -> Option<&'a str> {
    let conditions = &task.status.as_ref()?.conditions;
    Some(&conditions.iter().find(|condition| condition.type_ == type_)?.status)
}

/// A third of the steps ends badly, the same ones each time.
fn mixed() -> Script {
    Box::new(|assignment| {
        let hash = short_hash(&[&assignment.task.name, &assignment.run.name]);
        let reason = match hash.as_bytes()[0] {
            b'0'..=b'2' => Reason::VerifyFailed,
            b'3'..=b'5' => Reason::AgentFailed,
            _ => Reason::Completed,
        };
        Some(outcome(assignment, reason))
    })
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn whatever_the_schema_accepts_is_looked_at_and_left_in_peace() {
    let Some(ground) = ground().await else { return };
    ground.node("node-a").await;
    ground.node("node-b").await;
    ground.secret().await;
    let controller = Controller::start(&ground, Fleet::new(&["node-a", "node-b"], mixed())).await;
    create_many(&ground).await;
    eventually_all(&ground).await;
    quiet(&ground).await;
    let tasks = ground.tasks().list(&ListParams::default()).await.unwrap().items;
    let finished = tasks.iter().filter(|task| condition(task, "Finished") == Some("True")).count();
    assert!(finished > TASKS / 4, "only {finished} came to an end");
    for task in &tasks {
        // A taskTimeout of a moment passes before anything is accepted.
        let told = condition(task, "Accepted").or_else(|| condition(task, "Finished"));
        assert!(told.is_some(), "{}: {:?}", task.name_any(), task.status);
    }
    // Every task of its loops is joined, so a panic of any of them fails here.
    controller.stop().await;
}

/// Waits until every task has been looked at.
async fn eventually_all(ground: &Ground) {
    let seen = async {
        loop {
            let tasks = ground.tasks().list(&ListParams::default()).await.unwrap().items;
            if tasks.iter().all(|task| task.status.is_some()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(SETTLE, seen).await.expect("some task was never looked at");
}

/// A merge patch of a task whose answer is not read by our types.
async fn merge(ground: &Ground, place: &str, change: Value) {
    let path = format!(
        "/apis/agents.wearn.dev/v1alpha1/namespaces/{}/codingtasks/{place}",
        ground.namespace
    );
    let request = http::Request::patch(path).header("content-type", "application/merge-patch+json");
    let body = serde_json::to_vec(&change).unwrap();
    ground.client.request::<Value>(request.body(body).unwrap()).await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn an_object_that_cannot_be_read_does_not_stop_the_others() {
    let Some(ground) = ground().await else { return };
    ground.node("node-a").await;
    ground.secret().await;
    let fleet: Arc<Fleet> = Fleet::new(&["node-a"], all_well());
    // More digits than a timestamp of ours can hold; the API server takes any number.
    ground.task("odd", json!({"suspend": true})).await;
    merge(
        &ground,
        "odd/status",
        json!({"status": {"startTime": "2024-01-01T00:00:00.1234567890123Z"}}),
    )
    .await;
    ground.tasks().get("odd").await.expect_err("the object must be unreadable for this test");

    // It is in the first list of one controller, and comes by the watch of the next.
    let controller = Controller::start(&ground, Arc::clone(&fleet)).await;
    ground.task("first", json!({})).await;
    ground.phase("first", "Complete").await;
    merge(&ground, "odd", json!({"metadata": {"labels": {"x": "y"}}})).await;
    ground.task("second", json!({})).await;
    ground.phase("second", "Complete").await;

    // Mended, it goes on by itself.
    merge(&ground, "odd/status", json!({"status": {"startTime": null}})).await;
    merge(&ground, "odd", json!({"spec": {"suspend": false}})).await;
    ground.phase("odd", "Complete").await;
    controller.stop().await;
}
