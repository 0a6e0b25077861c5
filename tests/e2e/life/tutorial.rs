//! The tutorial, from a cluster without the release to the pull request and the clean-up: every command
//! that stands there, in order, in one shell. It takes the release away from everybody, so it runs alone.

use tokio::time::Instant;

use crate::support::{
    cluster::{Cluster, NAMESPACE, SYSTEM},
    env,
    pages::{Page, bash},
    release::{self, RELEASE, must},
};

const PAGE: &str = "docs/tutorial.md";
/// Stands before the output of each block.
const MARK: &str = "@@ block";

/// What the page says, and what stands for it here. Everything else is run as it is written.
const STANDS_FOR: [(&str, &str); 8] = [
    // A registry on this machine, which speaks plain http; no image registry of the internet for the base; and the
    // programs as they were compiled for the cluster already.
    ("registry.example.com/agents", "$AO_REGISTRY"),
    (
        "deploy/images/build --push",
        "deploy/images/build --insecure --base debootstrap --profile dev --push",
    ),
    // Files go into a folder that is removed afterwards.
    ("--out images.env", "--out \"$FOLDER/images.env\""),
    (". ./images.env", ". \"$FOLDER/images.env\""),
    ("first-task.yaml", "\"$FOLDER/first-task.yaml\""),
    // Where this cluster's github.com and model are.
    ("--create-namespace \\\n", "--create-namespace --values \"$VALUES\" \\\n"),
    ("https://github.com/YOUR-NAME/", "https://github.com/jcwearn/"),
    // Nobody's keys.
    (
        "ANTHROPIC_API_KEY=sk-ant-...\nexport GITHUB_TOKEN=github_pat_...",
        "ANTHROPIC_API_KEY=$MODEL_KEY\nexport GITHUB_TOKEN=$FORGE_TOKEN",
    ),
];

#[tokio::test]
#[ignore = "needs the local cluster: tests/run life"]
async fn every_command_of_the_tutorial_leads_from_an_empty_cluster_to_a_pull_request() {
    release::restored(follow, async {}).await;
}

async fn follow(values: String) {
    let cluster = Cluster::connect().await;
    let (key, token) = cluster.agent_secrets().await;
    cluster.forget(NAMESPACE, "first-task").await;
    let secret = ["-n", NAMESPACE, "delete", "secret", "first-task-secrets", "--ignore-not-found"];
    must("kubectl", &secret).await;
    must("helm", &["uninstall", RELEASE, "-n", SYSTEM, "--wait", "--timeout", "5m"]).await;

    let mut page = Page::read(PAGE);
    let blocks = page.scripts(&STANDS_FOR);
    let marked: Vec<String> =
        blocks.iter().map(|block| format!("echo '{MARK}'\n{block}\n")).collect();
    let script = marked.concat();
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().to_str().expect("UTF-8");
    let environment = [
        ("AO_REGISTRY", env("AO_REGISTRY")),
        ("FOLDER", folder.to_owned()),
        ("VALUES", values),
        ("MODEL_KEY", key),
        ("FORGE_TOKEN", token),
    ];
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let started = Instant::now();
    let said = bash(&script, &environment).await.unwrap_or_else(|error| panic!("{error}"));
    eprintln!("the tutorial took {} s", started.elapsed().as_secs());

    let printed: Vec<&str> = said.split(&format!("{MARK}\n")).skip(1).collect();
    assert_eq!(printed.len(), page.blocks.len(), "not every block was run:\n{said}");
    for (index, printed) in printed.iter().enumerate() {
        page.hold(index, printed).unwrap_or_else(|error| panic!("{error}"));
    }
    assert!(said.contains("Complete http"), "no pull request:\n{said}");
    let left = cluster.tasks(NAMESPACE).get_opt("first-task").await.expect("a look at tasks");
    assert!(left.is_none(), "the clean-up of the tutorial leaves the task");
}
