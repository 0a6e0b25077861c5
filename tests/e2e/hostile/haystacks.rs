//! Where a credential could have got to, and how each of these places is searched.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::{StreamExt as _, future, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    api::{ListParams, LogParams},
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use regex::Regex;
use serde_json::json;

use crate::support::{
    cluster::{Cluster, NAMESPACE, SYSTEM},
    env, grpcurl,
    logs::FOLLOW,
    release::{must, run},
};

/// Gigabytes of images on a busy machine.
const SEARCH_LIMIT: Duration = Duration::from_mins(3);
/// Logs that are read at the same time.
const READERS: usize = 4;
/// Ports on which parts of the release show their metrics.
const METRICS_PORTS: [u16; 3] = [8080, 8081, 8082];

/// What is searched for: credentials in all forms in which they are usually written down.
pub(crate) struct Needles {
    pattern: Regex,
    /// The same for `grep`, which is faster with gigabytes; no file of a node.
    file: tempfile::NamedTempFile,
}

impl Needles {
    pub(crate) fn of(canaries: &[&str]) -> Self {
        let mut needles = Vec::new();
        for canary in canaries {
            needles.push((*canary).to_owned());
            needles.push(utf8_percent_encode(canary, NON_ALPHANUMERIC).to_string());
            let hex = hex(canary.as_bytes());
            needles.extend([hex.to_uppercase(), hex]);
            needles.extend((0..3).map(|shift| shifted(canary, shift)));
        }
        let escaped: Vec<String> = needles.iter().map(|needle| regex::escape(needle)).collect();
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), needles.join("\n")).expect("the needles");
        Self { pattern: Regex::new(&escaped.join("|")).expect("a pattern"), file }
    }

    /// Whether one of them is in `text`.
    pub(crate) fn are_in(&self, text: &str) -> bool {
        self.pattern.is_match(text)
    }

    /// Runs a script that has `$NEEDLES`, a file for `grep -F`; the lines that it prints.
    async fn grep(&self, script: &str, arguments: &[String]) -> Vec<String> {
        let path = self.file.path().to_owned();
        let mut command = tokio::process::Command::new("bash");
        command.args(["-uc", script, "search"]).args(arguments).kill_on_drop(true);
        // Bytes are bytes, whatever the machine's language.
        command.env("NEEDLES", path).env("LC_ALL", "C");
        let searching = tokio::time::timeout(SEARCH_LIMIT, command.output());
        let output = searching.await.expect("the search ends").expect("bash runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().map(str::to_owned).collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Base64 of the canary where it begins `shift` bytes behind the border of a group, without the characters
/// that depend on its neighbours.
fn shifted(canary: &str, shift: usize) -> String {
    let text = STANDARD.encode(format!("{}{canary}", "x".repeat(shift)));
    let head = if shift == 0 { 0 } else { 4 };
    text[head..text.len() - 4].to_owned()
}

/// Every object of the API server but Secrets.
pub(crate) async fn objects(needles: &Needles) -> Vec<String> {
    let names = must("kubectl", &["api-resources", "--verbs=list", "-o", "name"]).await;
    let mut hits = Vec::new();
    for kind in names.lines().filter(|name| *name != "secrets") {
        // Some lists are only answered to some people.
        let Ok(text) = run("kubectl", &["get", kind, "-A", "-o", "json"]).await else { continue };
        if needles.are_in(&text) {
            hits.push(format!("an object of kind {kind}"));
        }
    }
    hits
}

/// All pods of a namespace.
pub(crate) async fn pods(cluster: &Cluster, namespace: &str) -> Vec<Pod> {
    cluster.pods(namespace).list(&ListParams::default()).await.expect("pods").items
}

/// Logs of all containers of these pods of a namespace, those of their earlier lives too.
pub(crate) async fn logs(
    cluster: &Cluster,
    namespace: &str,
    pods: &[Pod],
    needles: &Needles,
) -> Vec<String> {
    let api = &cluster.pods(namespace);
    let read = |(pod, container, previous): (String, String, bool)| async move {
        let of = LogParams { container: Some(container), previous, ..LogParams::default() };
        // One that never started has none.
        let text = api.logs(&pod, &of).await.unwrap_or_default();
        needles.are_in(&text).then(|| format!("the log of {namespace}/{pod}"))
    };
    let lives = stream::iter(pods.iter().flat_map(lives_of));
    lives.map(read).buffer_unordered(READERS).filter_map(future::ready).collect().await
}

/// Pod, container, and whether an earlier life of it is meant.
fn lives_of(pod: &Pod) -> Vec<(String, String, bool)> {
    let statuses = pod.status.iter().flat_map(|status| {
        [&status.init_container_statuses, &status.container_statuses]
            .into_iter()
            .flatten()
            .flatten()
    });
    let lives = statuses.flat_map(|status| {
        let had = |earlier: &bool| !earlier || status.restart_count > 0;
        let lives = [false, true].into_iter().filter(had);
        lives.map(|earlier| (pod.name_any(), status.name.clone(), earlier)).collect::<Vec<_>>()
    });
    lives.collect()
}

/// What `Follow` tells of these tasks.
pub(crate) async fn streams(token: &str, tasks: &[String], needles: &Needles) -> Vec<String> {
    let mut hits = Vec::new();
    for task in tasks {
        let request = json!({"namespace": NAMESPACE, "task": task, "follow": true});
        let events = grpcurl::call(Some(token), FOLLOW, &request).await.expect("a stream");
        assert!(!events.is_empty(), "{task} has a stream");
        if needles.are_in(&json!(events).to_string()) {
            hits.push(format!("the stream of {task}"));
        }
    }
    hits
}

/// Where the parts of the release show their metrics.
pub(crate) async fn metrics_of_release(cluster: &Cluster) -> Vec<String> {
    let addresses = pods(cluster, SYSTEM).await.into_iter().filter_map(|pod| pod.status?.pod_ip);
    let urls = |ip: String| METRICS_PORTS.map(|port| format!("http://{ip}:{port}/metrics"));
    addresses.flat_map(urls).collect()
}

/// Metrics pages; each that answers is searched, and how many did is told too.
pub(crate) async fn metrics(urls: Vec<String>, needles: &Needles) -> (Vec<String>, usize) {
    let read = move || {
        let page = |url: &String| {
            let answer = ureq::get(url).call().ok()?.body_mut().read_to_string().ok()?;
            Some((url.clone(), answer))
        };
        urls.iter().filter_map(page).collect::<Vec<_>>()
    };
    let pages = tokio::task::spawn_blocking(read).await.expect("the requests' thread");
    let hits = pages.iter().filter(|(_, text)| needles.are_in(text));
    (hits.map(|(url, _)| url.clone()).collect(), pages.len())
}

/// The state folders of the nodes: what their disks would be. Each node has ledger, mirrors, logs, container
/// runtime and volumes below it; memory volumes are other file systems and so not among them.
pub(crate) fn node_folders() -> Vec<PathBuf> {
    let state = PathBuf::from(env("AO_STATE"));
    env("AO_NODES").split(' ').map(|node| state.join(node)).collect()
}

/// Files below the folders, or files themselves, that changed since `since`: what is older cannot hold a canary that is
/// younger. Files come and go meanwhile.
pub(crate) async fn disks(folders: &[PathBuf], since: u64, needles: &Needles) -> Vec<String> {
    let script = r#"since=$1; shift
find "$@" -xdev -type f -newerct "@$since" -print0 2>/dev/null | xargs -0 -r grep -laFf "$NEEDLES" -- 2>/dev/null"#;
    let folders = folders.iter().map(|folder| folder.to_string_lossy().into_owned());
    let arguments: Vec<String> = [since.to_string()].into_iter().chain(folders).collect();
    needles.grep(script, &arguments).await
}

/// The API server's own record of requests since `since`: addresses with their queries, and what was written of our own
/// objects.
pub(crate) async fn requests(since: u64, needles: &Needles) -> Vec<String> {
    let logs =
        fs::read_dir(PathBuf::from(env("AO_STATE")).join("logs")).expect("the logs").flatten();
    let is_record = |file: &PathBuf| {
        file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("audit"))
    };
    let records: Vec<_> = logs.map(|file| file.path()).filter(is_record).collect();
    disks(&records, since, needles).await
}

/// All objects of the bare repositories below these folders, unpacked; reachable or not.
pub(crate) async fn git_objects(folders: &[PathBuf], needles: &Needles) -> Vec<String> {
    let script = r#"find "$@" -xdev -type d -name objects -print 2>/dev/null | while read -r objects; do
  repository=${objects%/objects}
  [[ -f $repository/HEAD ]] || continue
  git -c 'safe.directory=*' --git-dir "$repository" cat-file --batch-all-objects --unordered --batch </dev/null 2>/dev/null |
    grep -qaFf "$NEEDLES" && echo "git objects of $repository"
done"#;
    let folders = folders.iter().map(|folder| folder.to_string_lossy().into_owned());
    needles.grep(script, &folders.collect::<Vec<_>>()).await
}

/// File systems and configurations of these images.
pub(crate) async fn images(images: &[String], needles: &Needles) -> Vec<String> {
    let script = r#"for image in "$@"; do
  { crane config "$image" --insecure; crane export "$image" - --insecure; } 2>/dev/null |
    grep -qaFf "$NEEDLES" && echo "the image $image"
done"#;
    needles.grep(script, images).await
}

/// A repository that holds `text` in its objects and in no file.
pub(crate) fn plant_git_object(folder: &Path, text: &str) {
    let git = |arguments: &[&str], input: &str| {
        let mut command = Command::new("git");
        command.args(["-c", "safe.directory=*"]).args(arguments).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::null()).spawn().expect("git runs");
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("git reads");
        assert!(child.wait().expect("git ends").success());
    };
    let path = folder.to_str().expect("UTF-8");
    git(&["init", "--quiet", "--bare", path], "");
    git(&["--git-dir", path, "hash-object", "-w", "--stdin"], text);
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANARY: &str = "canary-7fe1/with+odd characters";

    #[tokio::test]
    async fn a_canary_is_found_in_each_form_wherever_it_begins() {
        let needles = Needles::of(&[CANARY]);
        let hex = hex(CANARY.as_bytes());
        let mut written = vec![CANARY.to_owned(), hex.to_uppercase(), hex];
        written.push(utf8_percent_encode(CANARY, NON_ALPHANUMERIC).to_string());
        let longer = |shift| STANDARD.encode(format!("{}{CANARY} and more", "k".repeat(shift)));
        written.extend((0..5).map(longer));
        let folder = tempfile::tempdir().expect("a folder");
        for text in written {
            let text = format!("before {text} behind");
            assert!(needles.are_in(&text), "{text}");
            fs::write(folder.path().join("file"), &text).expect("a file");
            let found = disks(&[folder.path().to_owned()], 0, &needles).await;
            assert_eq!(found.len(), 1, "{text}");
        }
        assert!(!needles.are_in("canary-7fe1 and nothing else"));
        fs::write(folder.path().join("file"), "canary-7fe1").expect("a file");
        assert_eq!(disks(&[folder.path().to_owned()], 0, &needles).await, [""; 0]);
    }

    #[tokio::test]
    async fn a_canary_is_found_in_an_object_that_nothing_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mirror.git");
        plant_git_object(&path, &format!("x{CANARY}"));
        let (needles, folders) = (Needles::of(&[CANARY]), [folder.path().to_owned()]);
        assert_eq!(git_objects(&folders, &needles).await.len(), 1);
        assert_eq!(disks(&folders, 0, &needles).await, [""; 0], "objects are packed");
        assert_eq!(git_objects(&folders, &Needles::of(&["another-canary"])).await, [""; 0]);
    }
}
