//! What changes while a task is under way: Secrets that are rotated or deleted, keys that expire,
//! providers that fail, and a work branch that somebody deletes.

use agent_operator::crd::AgentRun;
use serde_json::{Value, json};

use crate::support::{
    cluster::{Cluster, NAMESPACE, phase, run_phase},
    secrets::{GIT_KEY, MODEL_KEY},
    task::{command_agent, merge, task, unique},
};

/// Asks the model once in the plan step, as agents of other makes do, and fails when that fails.
const ASKING_AGENT: &str = r#"
if [ "$AGENT_STEP" = plan ]; then
  node -e '
    const body = JSON.stringify({model: "m", max_tokens: 9, messages: [{role: "user", content: "plan"}]});
    const headers = {"x-api-key": process.env.ANTHROPIC_API_KEY, "content-type": "application/json",
      "anthropic-version": "2023-06-01"};
    fetch(process.env.ANTHROPIC_BASE_URL + "/v1/messages", {method: "POST", headers, body})
      .then((answer) => { console.log(answer.status); process.exit(answer.ok ? 0 : 1); });
  ' || exit 1
fi
[ "$AGENT_STEP" = implement ] && date +%N > done.txt
echo "did $AGENT_STEP"
"#;

fn with_secret(mut spec: Value, secret: &str) -> Value {
    merge(
        &mut spec,
        &json!({
            "test": {"command": ["true"]},
            "anthropicApiKeyRef": {"name": secret, "key": MODEL_KEY},
            "gitCredentialsRef": {"name": secret, "key": GIT_KEY},
        }),
    );
    spec
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn f36_a_provider_that_fails_in_mid_step_is_waited_out_and_opens_one_pull_request() {
    let cluster = Cluster::connect().await;
    let cases = [("expired-key", "401"), ("limited-key", "429"), ("broken-key", "500")];
    let names = cases.map(|(key, _)| unique(key));
    for ((key, _), name) in cases.iter().zip(&names) {
        cluster.secret_with_model_key(NAMESPACE, name, key).await;
        let spec = with_secret(command_agent(ASKING_AGENT), name);
        cluster.create(NAMESPACE, &task(name, "Ask.", &spec)).await;
    }
    for ((_, code), name) in cases.iter().zip(&names) {
        let run: AgentRun = cluster.run_in_phase(NAMESPACE, name, "plan", "Failed").await;
        let status = run.status.expect("a status");
        assert_eq!(status.reason.as_deref(), Some("ProviderUnavailable"), "{:?}", status.message);
        let message = status.message.unwrap_or_default();
        assert!(message.contains(code), "{code} in {message}");
        cluster.secret_with_model_key(NAMESPACE, name, "good-key").await;
    }
    for name in &names {
        let done = cluster.complete(NAMESPACE, name).await.status.expect("a status");
        assert_eq!(done.retry_count, Some(0), "the task's own retries are untouched");
        assert_eq!(done.retries.map(|retries| retries.provider), Some(1));
        let branch = done.repositories[0].work_branch.clone().expect("a work branch");
        assert_eq!(cluster.forge.pull_requests(&branch).await.len(), 1);
        cluster.delete_secret(NAMESPACE, name).await;
    }
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn f25_a_deleted_secret_holds_the_next_step_up_and_a_rotated_key_is_used_from_it_on() {
    let cluster = Cluster::connect().await;
    let name = unique("rotated");
    cluster.secret_with_model_key(NAMESPACE, &name, "first-key").await;
    // Long enough to suspend the task while it plans.
    let slow = format!(r#"[ "$AGENT_STEP" = plan ] && sleep 4; {ASKING_AGENT}"#);
    let asks = slow.replace(r#"if [ "$AGENT_STEP" = plan ]"#, r#"if [ "$AGENT_STEP" != test ]"#);
    let asks = asks.replace("content: \"plan\"", &format!("content: \"{name}\""));
    let spec = with_secret(command_agent(&asks), &name);
    cluster.create(NAMESPACE, &task(&name, "Ask in each step.", &spec)).await;
    cluster.run_in_phase(NAMESPACE, &name, "plan", "Running").await;
    cluster.suspend(NAMESPACE, &name, true).await;
    cluster.condition(NAMESPACE, &name, ("Suspended", "True", "Suspended")).await;
    cluster.delete_secret(NAMESPACE, &name).await;
    cluster.suspend(NAMESPACE, &name, false).await;
    let waits = ("Accepted", "False", "SecretMissing");
    let (held, message) = cluster.condition(NAMESPACE, &name, waits).await;
    assert_eq!(phase(&held), "Implementing");
    assert!(message.contains(&name) && message.contains("create it"), "{message}");
    assert_eq!(cluster.runs(NAMESPACE, &name).await.len(), 1, "only the plan has run");

    cluster.secret_with_model_key(NAMESPACE, &name, "second-key").await;
    cluster.complete(NAMESPACE, &name).await;
    let asked = cluster.model.requests_with(&name).await;
    let keys: Vec<&str> =
        asked.iter().filter_map(|request| request["headers"]["x-api-key"].as_str()).collect();
    assert_eq!(keys, ["first-key", "second-key", "second-key"]);
    cluster.delete_secret(NAMESPACE, &name).await;
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn a_work_branch_deleted_between_steps_ends_the_task_with_these_words() {
    let cluster = Cluster::connect().await;
    let name = unique("no-work");
    let script =
        r#"[ "$AGENT_STEP" = implement ] && sleep 4 && date +%N > done.txt; echo "did it""#;
    let mut spec = command_agent(script);
    merge(&mut spec, &json!({"test": {"command": ["true"]}}));
    cluster.create(NAMESPACE, &task(&name, "Change something.", &spec)).await;
    cluster.run_in_phase(NAMESPACE, &name, "implement", "Running").await;
    cluster.suspend(NAMESPACE, &name, true).await;
    cluster.condition(NAMESPACE, &name, ("Suspended", "True", "Suspended")).await;
    cluster.forge.delete_branch("example-repo", &format!("ai/{name}")).await;
    cluster.suspend(NAMESPACE, &name, false).await;

    let ended = cluster.finished(NAMESPACE, &name).await;
    assert_eq!(phase(&ended), "Failed");
    let message = ended.status.and_then(|status| status.message).unwrap_or_default();
    for word in ["test", "InvalidTask", &format!("ai/{name}"), "was deleted upstream"] {
        assert!(message.contains(word), "{word} in {message}");
    }
    let runs = cluster.runs(NAMESPACE, &name).await;
    let last = runs.last().map(|run| (run.spec.step.clone(), run_phase(run)));
    assert_eq!(last, Some(("test".to_owned(), "Failed".to_owned())), "no test is run in vain");
}
