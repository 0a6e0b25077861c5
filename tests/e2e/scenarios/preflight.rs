//! What only the cluster, the forge and the provider can know: each is a condition in the server's
//! own words with the remedy, costs no pod and no model request, and the task goes on by itself.

use serde_json::{Value, json};

use crate::support::{
    cluster::{Cluster, NAMESPACE},
    secrets::{GIT_KEY, MODEL_KEY},
    task::{command_agent, merge, task, unique},
};

/// An agent that does nothing but what each step has to.
const AGENT: &str =
    r#"[ "$AGENT_STEP" = implement ] && date +%N > done.txt; echo "did $AGENT_STEP""#;

fn spec(overrides: &Value) -> Value {
    let mut spec = command_agent(AGENT);
    merge(&mut spec, &json!({"test": {"command": ["true"]}}));
    merge(&mut spec, overrides);
    spec
}

fn secret_refs(name: &str) -> Value {
    json!({
        "anthropicApiKeyRef": {"name": name, "key": MODEL_KEY},
        "gitCredentialsRef": {"name": name, "key": GIT_KEY},
    })
}

fn repository(name: &str) -> Value {
    json!({"repository": {"url": format!("https://github.com/jcwearn/{name}.git")}})
}

/// Waits for the refusal, and checks what holds for each of them.
async fn held(cluster: &Cluster, name: &str, (type_, reason): (&str, &str), words: &[&str]) {
    let (task, message) = cluster.condition(NAMESPACE, name, (type_, "False", reason)).await;
    for word in words {
        assert!(message.contains(word), "{word:?} in {message:?}");
    }
    let status = task.status.expect("a status");
    let condition = status.conditions.iter().find(|known| known.type_ == type_);
    assert_eq!(condition.and_then(|known| known.observed_generation), task.metadata.generation);
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert!(cluster.runs(NAMESPACE, name).await.is_empty(), "no run is created");
    assert!(cluster.task_pods(NAMESPACE, name).await.is_empty(), "no pod is created");
    let asked = cluster.model.requests_with(name).await;
    assert!(asked.is_empty(), "{} model requests", asked.len());
}

async fn start(cluster: &Cluster, name: &str, overrides: &Value) {
    cluster.create(NAMESPACE, &task(name, &format!("Marker {name}."), &spec(overrides))).await;
}

async fn mended(cluster: &Cluster, name: &str) {
    let done = cluster.complete(NAMESPACE, name).await;
    let conditions = done.status.expect("a status").conditions;
    for type_ in ["Accepted", "Preflighted"] {
        let holds = conditions.iter().any(|known| known.type_ == type_ && known.status == "True");
        assert!(holds, "{type_} in {conditions:#?}");
    }
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn a_missing_secret_then_a_missing_key_hold_only_their_own_task_up() {
    let cluster = Cluster::connect().await;
    let name = unique("no-secret");
    let other = unique("beside");
    start(&cluster, &name, &secret_refs(&name)).await;
    held(&cluster, &name, ("Accepted", "SecretMissing"), &[&name, "create it"]).await;
    start(&cluster, &other, &json!({})).await;
    mended(&cluster, &other).await;

    cluster.secret(NAMESPACE, &name, &[(GIT_KEY, cluster.forge.token())]).await;
    cluster.condition(NAMESPACE, &name, ("Accepted", "False", "SecretMissing")).await;
    crate::support::eventually(
        "the missing key is named",
        crate::support::cluster::TASK_LIMIT,
        || async {
            let said = cluster.describe(NAMESPACE, &name).await;
            if said.contains(MODEL_KEY) { Ok(()) } else { Err(said) }
        },
    )
    .await;
    assert!(cluster.task_pods(NAMESPACE, &name).await.is_empty());
    cluster.secret_with_model_key(NAMESPACE, &name, "any").await;
    mended(&cluster, &name).await;
    cluster.delete_secret(NAMESPACE, &name).await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn a_secret_goes_to_another_host_only_when_its_owner_says_so() {
    let cluster = Cluster::connect().await;
    let name = unique("host");
    cluster.secret_with_model_key(NAMESPACE, &name, "any").await;
    // The forge under its own address, which neither the chart nor the Secret allows.
    let url = format!("{}/jcwearn/example-repo.git", crate::support::env("AO_FORGE_URL"));
    let host = url.trim_start_matches("http://").split('/').next().unwrap_or_default().to_owned();
    let mut overrides = secret_refs(&name);
    merge(&mut overrides, &json!({"repository": {"url": url}}));
    start(&cluster, &name, &overrides).await;
    // And it speaks plain http, which the owner has to spell out.
    let spelt = format!("agents.wearn.dev/allowed-hosts: http://{host}");
    let words = ["spec.repository.url", "in the clear", &spelt];
    held(&cluster, &name, ("Accepted", "HostNotAllowed"), &words).await;
    let allowed = format!("http://{host},api.anthropic.com");
    cluster.annotate_secret(NAMESPACE, &name, ("agents.wearn.dev/allowed-hosts", &allowed)).await;
    // Nothing says which forge this address is, so no pull request can come of it: it is enough
    // that the work goes on.
    cluster.run_in_phase(NAMESPACE, &name, "plan", "Succeeded").await;
    cluster.condition(NAMESPACE, &name, ("Preflighted", "True", "Passed")).await;
    cluster.delete(NAMESPACE, &name).await;
    cluster.delete_secret(NAMESPACE, &name).await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn a_missing_repository_is_waited_for() {
    let cluster = Cluster::connect().await;
    let name = unique("no-repo");
    start(&cluster, &name, &repository(&name)).await;
    let words = [&name, "create the repository", "Tried again in", "by itself"];
    held(&cluster, &name, ("Preflighted", "RepositoryMissing"), &words).await;
    cluster.forge.create_repository(&name).await;
    mended(&cluster, &name).await;
    cluster.forge.delete_repository(&name).await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn a_missing_base_branch_is_waited_for() {
    let cluster = Cluster::connect().await;
    let name = unique("no-base");
    start(&cluster, &name, &json!({"repository": {"branch": name}})).await;
    let words = [&name, "does not exist", "create the branch"];
    held(&cluster, &name, ("Preflighted", "BaseBranchMissing"), &words).await;
    cluster.forge.create_branch("example-repo", &name).await;
    mended(&cluster, &name).await;
    cluster.forge.delete_branch("example-repo", &name).await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn wrong_git_credentials_are_waited_out() {
    let cluster = Cluster::connect().await;
    let name = unique("wrong-git");
    cluster.secret(NAMESPACE, &name, &[(GIT_KEY, "wrong"), (MODEL_KEY, "any")]).await;
    start(&cluster, &name, &secret_refs(&name)).await;
    let words = ["Authentication failed", "gitCredentialsRef"];
    held(&cluster, &name, ("Preflighted", "GitCredentialsRejected"), &words).await;
    cluster.secret_with_model_key(NAMESPACE, &name, "any").await;
    mended(&cluster, &name).await;
    cluster.delete_secret(NAMESPACE, &name).await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn credentials_that_may_only_read_are_found_before_any_work() {
    let cluster = Cluster::connect().await;
    let name = unique("reader");
    let password = format!("pass-{name}");
    cluster.forge.create_reader(&name, &password).await;
    let login = format!("{name}:{password}");
    cluster.secret(NAMESPACE, &name, &[(GIT_KEY, &login), (MODEL_KEY, "any")]).await;
    start(&cluster, &name, &secret_refs(&name)).await;
    // Gitea takes the offer of a push from a reader; its API tells.
    let words = ["may not write to", "no push permission", "the right to write"];
    held(&cluster, &name, ("Preflighted", "PushNotAllowed"), &words).await;
    cluster.secret_with_model_key(NAMESPACE, &name, "any").await;
    mended(&cluster, &name).await;
    cluster.delete_secret(NAMESPACE, &name).await;
    cluster.forge.delete_user(&name).await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn a_rejected_model_key_costs_no_model_request() {
    let cluster = Cluster::connect().await;
    let name = unique("model-key");
    cluster.secret_with_model_key(NAMESPACE, &name, "rejected-key").await;
    let prompt = format!("Add a /healthz endpoint. Marker {name}.");
    cluster.create(NAMESPACE, &task(&name, &prompt, &secret_refs(&name))).await;
    let words = ["401", "invalid x-api-key", "anthropicApiKeyRef"];
    held(&cluster, &name, ("Preflighted", "ModelKeyRejected"), &words).await;
    cluster.secret_with_model_key(NAMESPACE, &name, "accepted-key").await;
    mended(&cluster, &name).await;
    assert!(!cluster.model.requests_with(&name).await.is_empty());
    cluster.delete_secret(NAMESPACE, &name).await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn a_repository_without_tests_is_named_and_gets_some_or_ends_by_the_tasks_timeout() {
    let cluster = Cluster::connect().await;
    let name = unique("no-tests");
    cluster.forge.create_repository(&name).await;
    let mut overrides = repository(&name);
    // An empty list of tests to run is what a null makes of the sample's spec.
    merge(&mut overrides, &json!({"test": {"command": null}}));
    start(&cluster, &name, &overrides).await;
    let late = format!("{name}-late");
    merge(&mut overrides, &json!({"taskTimeout": "12s"}));
    start(&cluster, &late, &overrides).await;
    let words = ["how it is tested", "spec.test.command"];
    held(&cluster, &name, ("Preflighted", "TestCommandMissing"), &words).await;

    let ended = cluster.finished(NAMESPACE, &late).await.status.expect("a status");
    assert_eq!(ended.phase.as_deref(), Some("Failed"));
    let message = ended.message.unwrap_or_default();
    assert!(message.contains("taskTimeout") && message.contains("how it is tested"), "{message}");
    assert!(cluster.runs(NAMESPACE, &late).await.is_empty());
    assert!(cluster.model.requests_with(&late).await.is_empty());

    let package = r#"{"name": "x", "version": "1.0.0", "scripts": {"test": "true"}}"#;
    cluster.forge.add_file(&name, "package.json", package).await;
    mended(&cluster, &name).await;
    cluster.forge.delete_repository(&name).await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn a_task_that_may_go_on_without_tests_opens_a_request_that_says_that_nothing_was_verified() {
    let cluster = Cluster::connect().await;
    let name = unique("unverified");
    cluster.forge.create_repository(&name).await;
    let mut overrides = repository(&name);
    merge(&mut overrides, &json!({"test": {"command": null, "onUnverifiable": "Proceed"}}));
    start(&cluster, &name, &overrides).await;
    let done = cluster.complete(NAMESPACE, &name).await.status.expect("a status");

    let runs = cluster.runs(NAMESPACE, &name).await;
    let reasons = runs.iter().map(|run| (run.spec.step.as_str(), run.status.as_ref()));
    let test = reasons.filter(|(step, _)| *step == "test").filter_map(|(_, status)| status);
    let reasons: Vec<_> = test.map(|status| status.reason.as_deref()).collect();
    assert_eq!(reasons, [Some("Unverifiable")]);
    let branch = done.repositories[0].work_branch.clone().expect("a work branch");
    let requests = cluster.forge.pull_requests_of(&name, &branch).await;
    assert_eq!(requests.len(), 1);
    let body = requests[0]["body"].as_str().expect("a body");
    assert!(body.contains("**Not verified:**"), "{body}");
    assert!(!body.contains("tests pass"), "{body}");
    cluster.forge.delete_repository(&name).await;
}
