//! Objects that are wrong: each is refused by the API server with a sentence that names the field and
//! the remedy. All sentences stand in one golden file, for readers and for the documentation.

use std::fmt::Write as _;

use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    refused_runs::runs,
    refused_tasks::{Row, tasks},
    server::{client, from_json, namespace, refusal, sample, set, untyped},
};

/// Longest run of one character that a golden sentence shows.
const RUN_CHARS_MAX: usize = 6;

/// Sends an object as `kubectl apply` and `kubectl create` do: unknown fields are errors.
pub(crate) async fn create(
    client: &Client,
    plural: &str,
    namespace: &str,
    body: Vec<u8>,
) -> Result<Value, kube::Error> {
    let path = format!(
        "/apis/agents.wearn.dev/v1alpha1/namespaces/{namespace}/{plural}?fieldValidation=Strict"
    );
    let request = http::Request::post(path).header("content-type", "application/json");
    client.request(request.body(body).unwrap()).await
}

/// Cuts long runs of one character, as tests at a length limit make them.
fn short(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let mut count = 1;
        while chars.peek() == Some(&c) {
            chars.next();
            count += 1;
        }
        if count <= RUN_CHARS_MAX {
            out.extend(std::iter::repeat_n(c, count));
        } else {
            write!(out, "{c}{c}..({count})").unwrap();
        }
    }
    out
}

/// The one error that holds `words`, of a refusal that lists several in any order.
fn sentence(message: &str, words: &str) -> String {
    let list = message.split_once(" is invalid: ").map_or(message, |(_, list)| list);
    let list = list.strip_prefix('[').and_then(|list| list.strip_suffix(']')).unwrap_or(list);
    let mut errors = vec![String::new()];
    for part in list.split(", ") {
        let begins =
            ["spec", "metadata", "status", "<nil>"].iter().any(|word| part.starts_with(word));
        if begins && part.contains(": ") && !errors[0].is_empty() {
            errors.push(part.to_owned());
        } else {
            let error = errors.last_mut().unwrap();
            *error = if error.is_empty() { part.to_owned() } else { format!("{error}, {part}") };
        }
    }
    errors.into_iter().find(|error| error.contains(words)).unwrap_or_else(|| list.to_owned())
}

/// A row as the golden file shows it.
fn shown(row: &Row, sentence: &str) -> String {
    let changes: Vec<_> =
        row.changes.iter().map(|(pointer, value)| format!("{pointer} = {value}")).collect();
    format!("{}\n    {}\n", short(&changes.join(", ")), short(sentence))
}

/// Tries all rows on a sample; gives the golden text.
async fn refused(file: &str, plural: &str, rows: &[Row]) -> Option<String> {
    let client = client().await?;
    let namespace = namespace(&client).await;
    let (mut golden, mut problems) = (String::new(), Vec::new());
    for row in rows {
        let mut object = sample(file, &namespace);
        for (pointer, value) in &row.changes {
            set(&mut object, pointer, value.clone());
        }
        // Really created, not a dry run: what is accepted by mistake shows as an existing object.
        let result =
            create(&client, plural, &namespace, serde_json::to_vec(&object).unwrap()).await;
        if let Ok(created) = &result {
            let api = untyped(&client, created["kind"].as_str().unwrap(), &namespace);
            let name = created["metadata"]["name"].as_str().unwrap();
            api.delete(name, &DeleteParams::default()).await.unwrap();
            problems.push(shown(row, "is accepted"));
            continue;
        }
        let message = refusal(result);
        let sentence = sentence(&message, row.words);
        if !(sentence.contains(row.field) && sentence.contains(row.words)) {
            problems.push(shown(
                row,
                &format!("{sentence}\n    lacks {:?} {:?}", row.field, row.words),
            ));
        }
        golden.push_str(&shown(row, &sentence));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    Some(golden)
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn every_wrong_task_is_refused_with_a_sentence_that_names_the_field() {
    let rows = tasks();
    assert!(rows.len() >= 60);
    let Some(golden) = refused("codingtask", "codingtasks", &rows).await else { return };
    insta::assert_snapshot!("refused_tasks", golden);
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn every_wrong_run_is_refused_with_a_sentence_that_names_the_field() {
    let Some(golden) = refused("agentrun", "agentruns", &runs()).await else { return };
    insta::assert_snapshot!("refused_runs", golden);
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn a_lone_surrogate_becomes_the_replacement_character() {
    let Some(client) = client().await else { return };
    let namespace = namespace(&client).await;
    let body = serde_json::to_string(&sample("codingtask", &namespace)).unwrap();
    let body = body.replace("Add a", r"Add \ud800 a").into_bytes();
    let created = create(&client, "codingtasks", &namespace, body).await.unwrap();
    let prompt = created["spec"]["prompt"].as_str().unwrap();
    assert!(prompt.starts_with("Add \u{fffd} a"), "{prompt}");
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn a_number_that_json_cannot_hold_is_refused() {
    let Some(client) = client().await else { return };
    let namespace = namespace(&client).await;
    for (number, words) in [("1e400", ""), ("1e30", "spec.maxRetries")] {
        let mut object = sample("codingtask", &namespace);
        set(&mut object, "/spec/maxRetries", json!(424_242));
        let body = object.to_string().replace("424242", number).into_bytes();
        let message = refusal(create(&client, "codingtasks", &namespace, body).await);
        assert!(message.contains(words), "{number}: {message}");
    }
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn a_status_that_a_user_sends_along_is_dropped() {
    let Some(client) = client().await else { return };
    let namespace = namespace(&client).await;
    for (file, plural) in [("codingtask", "codingtasks"), ("agentrun", "agentruns")] {
        let mut object = sample(file, &namespace);
        object["status"] = json!({"phase": "Complete"});
        let body = serde_json::to_vec(&object).unwrap();
        let created = create(&client, plural, &namespace, body).await.unwrap();
        assert!(created["status"].is_null(), "{created}");
        let name = created["metadata"]["name"].as_str().unwrap();
        let api = untyped(&client, created["kind"].as_str().unwrap(), &namespace);
        let patch = Patch::Merge(json!({"status": {"phase": "Complete"}}));
        let patched = api.patch(name, &PatchParams::default(), &patch).await.unwrap();
        assert!(patched.data["status"].is_null(), "{patched:?}");
    }
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn every_legal_name_is_accepted_and_one_more_character_is_not() {
    let Some(client) = client().await else { return };
    let namespace = namespace(&client).await;
    let api: Api<agent_operator::crd::CodingTask> = Api::namespaced(client.clone(), &namespace);
    let of = |name: &str| {
        let mut object = sample("codingtask", &namespace);
        set(&mut object, "/metadata/name", json!(name));
        from_json(object)
    };
    for length in [1, 2, 39, 40, 47, 48, 62, 63, 64, 65, 235, 236, 252, 253] {
        let name = "a".repeat(length);
        let created = api.create(&PostParams::default(), &of(&name)).await.unwrap();
        // What the controller derives from the name fits the status.
        let branch = agent_operator::domain::names::default_work_branch(&name);
        let status = json!({"status": {"repositories": [{"name": "main", "url": "https://x.example/o/r", "workBranch": branch}]}});
        let name = created.metadata.name.unwrap();
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }
    let message = refusal(api.create(&PostParams::default(), &of(&"a".repeat(254))).await);
    assert!(message.contains("metadata.name"), "{message}");
}
