//! Tasks that are wrong: each is refused by the API server with a sentence that names the field.

use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};

use super::server::{client, from_json, namespace, refusal, sample, set, untyped};

/// Changes of the sample (pointer and value; null removes), and what the refusal must say.
type Case = (Vec<(&'static str, Value)>, &'static str);

macro_rules! case {
    ($($pointer:literal = $value:tt),+ => $words:literal) => {
        (vec![$(($pointer, json!($value))),+], $words)
    };
}

fn required_fields() -> Vec<Case> {
    vec![
        case!("/spec/prompt" = null => "spec.prompt: Required"),
        case!("/spec/prompt" = "" => "spec.prompt"),
        case!("/spec/repository" = null => "spec.repository: Required"),
        case!("/spec/source" = null => "spec.source: Required"),
        case!("/spec/source" = {"type": "mail"} => "spec.source.type"),
        case!("/spec/source" = {"type": "github-issue"} => "spec.source.type github-issue needs spec.source.github"),
        case!("/spec/source" = {"type": "chat"} => "spec.source.type chat needs spec.source.chat"),
        case!("/spec/source" = {"type": "github-issue", "github": {"owner": "o", "repo": "r", "issueNumber": 0}} => "spec.source.github.issueNumber"),
        case!("/spec/source" = {"type": "github-issue", "github": {"owner": "o", "repo": "r"}} => "spec.source.github.issueNumber: Required"),
        case!("/spec/anthropicApiKeyRef" = null => "spec.anthropicApiKeyRef: Required"),
        case!("/spec/anthropicApiKeyRef/key" = "" => "spec.anthropicApiKeyRef.key"),
        case!("/spec/anthropicApiKeyRef/name" = "Upper_Case" => "spec.anthropicApiKeyRef.name"),
        case!("/spec/gitCredentialsRef" = null => "spec.gitCredentialsRef: Required"),
        case!("/spec/gitCredentialsRef/key" = "a/b" => "spec.gitCredentialsRef.key"),
        case!("/metadata/name" = "release.lock" => "set spec.repository.workBranch"),
    ]
}

fn repositories() -> Vec<Case> {
    const URL: &str = "spec.repository.url must be an http or https clone URL";
    vec![
        (vec![("/spec/repository/url", json!("git@github.com:o/r.git"))], URL),
        (vec![("/spec/repository/url", json!("ssh://git@github.com/o/r.git"))], URL),
        (vec![("/spec/repository/url", json!("https://user:pass@github.com/o/r.git"))], URL),
        (vec![("/spec/repository/url", json!("https://github.com/only-owner"))], URL),
        (vec![("/spec/repository/url", json!("https://github.com/o/r?x=1"))], URL),
        (vec![("/spec/repository/url", json!("file:///etc/passwd"))], URL),
        (vec![("/spec/repository/url", json!("https://github.com/o/r\nx"))], URL),
        case!("/spec/repository/url" = "https://github.com/o/../../r" => "spec.repository.url must not contain"),
        (
            vec![("/spec/repository/url", json!(format!("https://h/{}/r", "x".repeat(3000))))],
            "spec.repository.url",
        ),
        case!("/spec/repository/branch" = "-x" => "spec.repository.branch must be a git branch name"),
        case!("/spec/repository/branch" = "a..b" => "spec.repository.branch must be a git branch name"),
        case!("/spec/repository/branch" = "a b" => "spec.repository.branch must be a git branch name"),
        case!("/spec/repository/workBranch" = "x.lock" => "spec.repository.workBranch must be a git branch name"),
        case!("/spec/repository/workBranch" = "main" => "spec.repository.workBranch must differ from"),
        case!("/spec/repository/workBranch" = "main", "/spec/repository/branch" = null => "spec.repository.workBranch must differ from"),
    ]
}

fn numbers() -> Vec<Case> {
    vec![
        (vec![("/spec/prompt", json!("x".repeat(65_537)))], "spec.prompt"),
        case!("/spec/maxRetries" = (-1) => "spec.maxRetries"),
        case!("/spec/maxRetries" = 21 => "spec.maxRetries"),
        case!("/spec/maxRetries" = "three" => "spec.maxRetries"),
        case!("/spec/maxRetries" = 1.5 => "spec.maxRetries"),
        case!("/spec/stepTimeout" = "1y" => "spec.stepTimeout must be a duration"),
        case!("/spec/stepTimeout" = "0s" => "spec.stepTimeout must be a duration"),
        case!("/spec/stepTimeout" = "" => "spec.stepTimeout must be a duration"),
        case!("/spec/stepTimeout" = "-5m" => "spec.stepTimeout must be a duration"),
        case!("/spec/stepTimeout" = "200h" => "spec.stepTimeout must be a duration"),
        case!("/spec/stepTimeout" = 30 => "spec.stepTimeout"),
        case!("/spec/taskTimeout" = "1d" => "spec.taskTimeout must be a duration"),
        case!("/spec/resources" = {"cpu": "abc"} => "spec.resources.cpu"),
        case!("/spec/resources" = {"cpu": 0} => "spec.resources.cpu"),
        case!("/spec/resources" = {"cpu": "-1"} => "spec.resources.cpu"),
        case!("/spec/resources" = {"memory": "1000000000000E"} => "spec.resources.memory"),
        case!("/spec/resources" = {"memory": "Gi"} => "spec.resources.memory"),
        case!("/spec/resources" = {"storage": 1.5} => "spec.resources.storage"),
        case!("/spec/model" = {"maxTurns": 0} => "spec.model.maxTurns"),
        case!("/spec/model" = {"plan": ""} => "spec.model.plan"),
        case!("/spec/budget" = {"maxTokens": 0} => "spec.budget.maxTokens"),
        case!("/spec/budget" = {"maxCostUSD": "nan"} => "spec.budget.maxCostUSD"),
        case!("/spec/budget" = {"maxCostUSD": "1e30"} => "spec.budget.maxCostUSD"),
        case!("/spec/budget" = {"onExceeded": "Shrug"} => "spec.budget.onExceeded"),
        case!("/spec/suspend" = "yes" => "spec.suspend"),
    ]
}

fn choices() -> Vec<Case> {
    let labels: serde_json::Map<String, Value> =
        (0..40).map(|n| (format!("k{n}"), json!("v"))).collect();
    vec![
        case!("/spec/agent" = {"type": "Robot"} => "spec.agent.type"),
        case!("/spec/agent" = {"type": "Command"} => "spec.agent.type Command needs spec.agent.command"),
        case!("/spec/agent" = {"type": "ClaudeCode", "command": ["x"]} => "spec.agent.command is only for"),
        case!("/spec/agent" = {"type": "Command", "command": []} => "spec.agent.command"),
        case!("/spec/test" = {"onUnverifiable": "Maybe"} => "spec.test.onUnverifiable"),
        case!("/spec/test" = {"command": []} => "spec.test.command"),
        case!("/spec/agentImage" = "" => "spec.agentImage"),
        case!("/spec/imagePullSecrets" = [{"name": "a"}, {"name": "a"}] => "spec.imagePullSecrets[1]"),
        (vec![("/spec/nodeSelector", Value::Object(labels))], "spec.nodeSelector"),
        case!("/spec/tolerations" = [{"operator": "Perhaps"}] => "spec.tolerations[0].operator"),
        case!("/spec/sandbox" = {"egressPolicy": "None"} => "spec.sandbox.egressPolicy"),
        case!("/spec/sandbox" = {"allowedHosts": ["10.0.0.1"]} => "spec.sandbox.allowedHosts takes host names"),
        case!("/spec/sandbox" = {"allowedHosts": ["https://x.example"]} => "spec.sandbox.allowedHosts[0]"),
        case!("/spec/sandbox" = {"allowedHosts": ["a.example", "a.example"]} => "spec.sandbox.allowedHosts[1]"),
        case!("/spec/sandbox" = {"allowedHosts": ["github.com"]} => "spec.sandbox.allowedHosts must not name"),
        case!("/spec/sandbox" = {"allowedHosts": ["github.com:443"]} => "spec.sandbox.allowedHosts must not name"),
        case!("/spec/sandbox" = {"allowedHosts": ["api.anthropic.com"]} => "spec.sandbox.allowedHosts must not name"),
    ]
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: tests/run api"]
async fn every_wrong_task_is_refused_with_a_sentence_that_names_the_field() {
    let Some(client) = client().await else { return };
    let namespace = namespace(&client).await;
    let api = untyped(&client, "CodingTask", &namespace);
    let cases = [required_fields(), repositories(), numbers(), choices()].concat();
    assert!(cases.len() >= 25);
    let mut problems = Vec::new();
    for (changes, words) in cases {
        let mut object = sample("codingtask", &namespace);
        for (pointer, value) in &changes {
            set(&mut object, pointer, value.clone());
        }
        // Really created, not a dry run: what is accepted by mistake shows as an existing object.
        let result = api.create(&PostParams::default(), &from_json(object)).await;
        let short: String = format!("{changes:?}").chars().take(120).collect();
        if let Ok(created) = &result {
            let name = created.metadata.name.as_deref().unwrap();
            api.delete(name, &DeleteParams::default()).await.unwrap();
            problems.push(format!("{short}: accepted"));
            continue;
        }
        let message = refusal(result);
        if !message.contains(words) {
            problems.push(format!("{short}: {message:.300}"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
