//! What the documentation shows of `kubectl` is what it prints. The tasks have fixed names in the usual
//! namespace, so this runs alone.

use serde_json::{Value, json};

use crate::support::{
    cluster::{Cluster, NAMESPACE, phase},
    env,
    pages::run_each,
    task::{merge, task},
};

const PAGE: &str = "docs/how-to/watch-and-debug.md";

/// The tasks of the page: one that ended well, one whose tests fail, one that waits.
async fn tasks(cluster: &Cluster) {
    let tests_fail = "echo 'expected a redirect to /login, got 500'; exit 1";
    for (name, prompt, overrides, end) in [
        ("add-healthcheck", "Add a /healthz endpoint that returns 200 OK", json!({}), "Complete"),
        (
            "fix-login",
            "Send people who are not logged in to /login",
            json!({"maxRetries": 0, "test": {"command": ["sh", "-c", tests_fail]}}),
            "Failed",
        ),
        (
            "add-search",
            "Add a search page",
            json!({"gitCredentialsRef": {"name": "search-team-secrets"}}),
            "Pending",
        ),
    ] {
        cluster.forget(NAMESPACE, name).await;
        let mut spec: Value = json!({"source": {"chat": {"sessionId": "docs", "userId": "docs"}}});
        merge(&mut spec, &overrides);
        cluster.create(NAMESPACE, &task(name, prompt, &spec)).await;
        if end == "Pending" {
            cluster.condition(NAMESPACE, name, ("Accepted", "False", "SecretMissing")).await;
        } else {
            let done = cluster.finished(NAMESPACE, name).await;
            assert_eq!(phase(&done), end, "{}", cluster.describe(NAMESPACE, name).await);
        }
    }
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run life"]
async fn commands_of_the_page_about_watching_print_what_it_shows() {
    let cluster = Cluster::connect().await;
    tasks(&cluster).await;
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().to_str().expect("UTF-8");
    let forge = format!("{}/", env("AO_FORGE_URL"));
    // The forge here, as github.com writes the same address.
    let as_github = format!("| sed -E 's#{forge}([^ ]*)/pulls/#https://github.com/\\1/pull/#g'");
    let wide = format!("-o wide {as_github}\n");
    let stands_for = [
        ("-o wide\n", wide.as_str()),
        ("ca.crt", "\"$FOLDER/ca.crt\""),
        ("port-forward.log", "\"$FOLDER/port-forward.log\""),
    ];
    run_each(PAGE, &stands_for, &[("FOLDER", folder)]).await;
    for name in ["add-healthcheck", "fix-login", "add-search"] {
        cluster.forget(NAMESPACE, name).await;
    }
}
