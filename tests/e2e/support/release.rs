//! The release as a person handles it: `helm`, `kubectl` and the parts of the local cluster.

use std::{fs, path::PathBuf, time::Duration};

use tokio::process::Command;

use super::{cluster::SYSTEM, env, eventually};

/// Name of the release.
pub(crate) const RELEASE: &str = "agent-operator";
/// Longest time of one command; a rollout on a busy machine takes the most.
const COMMAND_LIMIT: Duration = Duration::from_mins(6);

/// The chart of this tree.
pub(crate) fn chart() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy/helm/agent-operator")
}

/// What a command printed (standard output, then standard error), and whether it went well.
pub(crate) async fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let running = Command::new(program).args(arguments).kill_on_drop(true).output();
    let output = tokio::time::timeout(COMMAND_LIMIT, running)
        .await
        .unwrap_or_else(|_| panic!("{program} {arguments:?} does not end"))
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    if output.status.success() { Ok(text) } else { Err(text) }
}

/// The same, for a command that has to go well.
pub(crate) async fn must(program: &str, arguments: &[&str]) -> String {
    run(program, arguments)
        .await
        .unwrap_or_else(|text| panic!("{program} {}: {text}", arguments.join(" ")))
}

/// `deploy/local/part ACTION NAME`.
pub(crate) async fn part(action: &str, name: &str) {
    let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy/local/part");
    must(&program.to_string_lossy(), &[action, name]).await;
}

/// The process of a part that runs.
pub(crate) async fn part_pid(name: &str) -> i32 {
    let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy/local/part");
    let printed = must(&program.to_string_lossy(), &["pid", name]).await;
    printed.trim().parse().unwrap_or_else(|_| panic!("{name} does not run: {printed}"))
}

/// A file with the values that the present release was installed with.
pub(crate) async fn values() -> tempfile::NamedTempFile {
    let text = must("helm", &["get", "values", RELEASE, "-n", SYSTEM, "-o", "yaml"]).await;
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), text).expect("the values are written");
    file
}

/// `helm upgrade --install` of `chart` and the end of the rollout. The kept definitions of an earlier
/// release are taken over.
pub(crate) async fn install(chart: &str, namespace: &str, values: &str, more: &[&str]) {
    let mut line = vec!["upgrade", "--install", RELEASE, chart, "-n", namespace];
    line.extend(["--create-namespace", "--take-ownership", "--values", values]);
    line.extend(more);
    must("helm", &line).await;
    rolled_out(namespace).await;
}

/// Does `work` with a file of the release's present values. Whatever becomes of it, `undo` is done and the release is as
/// it was before, where it was, for the next test.
pub(crate) async fn restored<W: Future<Output = ()> + Send + 'static>(
    work: impl FnOnce(String) -> W,
    undo: impl Future<Output = ()>,
) {
    let values = values().await;
    let values = values.path().to_str().expect("UTF-8").to_owned();
    // A task of its own, so that its panic does not keep the rest from happening.
    let ended = tokio::spawn(work(values.clone())).await;
    undo.await;
    install(&chart().to_string_lossy(), SYSTEM, &values, &[]).await;
    refresh_ca().await;
    ended.expect("the test itself");
}

/// Waits until all pods of the release are of its present revision and ready.
pub(crate) async fn rolled_out(namespace: &str) {
    let objects =
        must("kubectl", &["-n", namespace, "get", "deployment,daemonset", "-o", "name"]).await;
    for object in objects.lines() {
        must("kubectl", &["-n", namespace, "rollout", "status", object, "--timeout=240s"]).await;
    }
}

/// Puts the CA of the controller where everybody looks for it; a new installation has a new one.
pub(crate) async fn refresh_ca() {
    let get =
        ["-n", SYSTEM, "get", "configmap", "agent-operator-ca", "-o", "jsonpath={.data.ca\\.crt}"];
    let ca = eventually("the CA is published", Duration::from_mins(1), || async {
        run("kubectl", &get).await.and_then(|ca| if ca.is_empty() { Err(ca) } else { Ok(ca) })
    })
    .await;
    fs::write(env("AO_GRPC_CA"), ca).expect("the CA is written");
}
