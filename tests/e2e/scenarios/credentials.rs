//! Scenario 8: the agent pod holds no credential.

use agent_operator::domain::names::LABEL_TASK;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt as _};
use serde_json::json;

use crate::{
    hostile::haystacks::{self, Needles},
    support::{
        cluster::{Cluster, NAMESPACE, SYSTEM},
        task::{command_agent, merge, task, unique},
    },
};

/// Searches everything an agent can read for the canaries, whose halves come as arguments so that
/// the script itself (part of the AgentRun) does not contain them.
const SCRIPT: &str = r#"
key="$1$2"; found=0
look() { if grep -aqF "$key" "$2" 2>/dev/null; then echo "HIT $1 $2"; found=1; fi; }
env > /tmp/env.txt; look env /tmp/env.txt; rm -f /tmp/env.txt
for f in /proc/[0-9]*/environ /proc/[0-9]*/cmdline; do look proc "$f"; done
for d in /workspace /home /tmp /opt /etc /run /var; do
  find "$d" -xdev -type f -size -1024k 2>/dev/null | while read -r f; do look file "$f"; done
done
git config --list --show-origin > /tmp/config.txt 2>/dev/null; look git /tmp/config.txt
ls /var/run/secrets/kubernetes.io 2>/dev/null && echo "HIT service-account-token"
[ "$AGENT_STEP" = implement ] && echo searched > searched.txt
echo "search-complete $AGENT_STEP"; exit 0
"#;

#[tokio::test]
#[ignore = "needs the local cluster: tests/run e2e"]
async fn a_searching_agent_finds_no_credential_and_none_is_in_any_object_or_log() {
    let cluster = Cluster::connect().await;
    let name = unique("canary");
    let model_key = format!("canary{}", unique("model").replace('-', ""));
    canary_secret(&cluster, &name, &model_key).await;
    let git_token = cluster_git_token(&cluster).await;

    let mut tasks = Vec::new();
    for (canary, which) in [(&model_key, "model"), (&git_token, "git")] {
        let task_name = format!("{name}-{which}");
        let (head, tail) = canary.split_at(canary.len() / 2);
        let mut spec = command_agent(SCRIPT);
        merge(
            &mut spec,
            &json!({
                "agent": {"command": ["bash", "-c", SCRIPT, "search", head, tail]},
                "anthropicApiKeyRef": {"name": name, "key": "anthropic-api-key"},
                "gitCredentialsRef": {"name": name, "key": "github-token"},
                "test": {"command": ["true"]},
            }),
        );
        cluster.create(NAMESPACE, &task(&task_name, "Search.", &spec)).await;
        cluster.complete(NAMESPACE, &task_name).await;
        assert_found_nothing(&cluster, &task_name).await;
        tasks.push(task_name);
    }
    assert_no_trace(&cluster, &tasks, &[&model_key, &git_token]).await;
}

/// Searches outside of the sandbox as the search for canaries of the stage hostile does, in every object and log.
async fn assert_no_trace(cluster: &Cluster, tasks: &[String], canaries: &[&str]) {
    let needles = Needles::of(canaries);
    let mut hits = haystacks::objects(&needles).await;
    let release = haystacks::pods(cluster, SYSTEM).await;
    hits.extend(haystacks::logs(cluster, SYSTEM, &release, &needles).await);
    for task in tasks {
        let pods = cluster.task_pods(NAMESPACE, task).await;
        assert!(!pods.is_empty(), "pods with label {LABEL_TASK} stay readable");
        hits.extend(haystacks::logs(cluster, NAMESPACE, &pods, &needles).await);
    }
    assert!(hits.is_empty(), "{hits:#?}");
}

/// What the agent itself found, from its logs.
async fn assert_found_nothing(cluster: &Cluster, task: &str) {
    let mut searched = 0;
    for pod in cluster.task_pods(NAMESPACE, task).await {
        let log = cluster.log(NAMESPACE, &pod.name_any()).await;
        // At the start of a line: the script itself, which the runner shows, has them elsewhere.
        let hits: Vec<&str> = log.lines().filter(|line| line.starts_with("HIT ")).collect();
        assert!(hits.is_empty(), "the agent found a credential: {hits:?}");
        searched += log.lines().filter(|line| line.starts_with("search-complete")).count();
    }
    assert!(searched >= 3, "the search ran in plan, implement and pull-request, not {searched}");
}

/// A Secret of this test's own: a made-up model key beside the forge's real token.
async fn canary_secret(cluster: &Cluster, name: &str, model_key: &str) {
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let original = secrets.get("agent-secrets").await.expect("the tasks' Secret");
    let git = original.data.expect("data").remove("github-token").expect("the git token");
    let secret: Secret = serde_json::from_value(json!({
        "metadata": {"name": name},
        "data": {
            "anthropic-api-key": STANDARD.encode(model_key),
            "github-token": STANDARD.encode(git.0),
        },
    }))
    .expect("a Secret");
    cluster.put_secret(NAMESPACE, &secret).await;
}

async fn cluster_git_token(cluster: &Cluster) -> String {
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let mut data = secrets.get("agent-secrets").await.expect("the Secret").data.expect("data");
    let token = data.remove("github-token").expect("the git token").0;
    String::from_utf8(token).expect("text").trim().to_owned()
}
