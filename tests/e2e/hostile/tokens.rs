//! Credentials that nobody has put into a Secret of tasks: those of the release's own accounts, its TLS keys, and the
//! tokens of a run. They are random, so they are taken from where they are: mounts and memory of processes that run.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{Api, ResourceExt, api::ListParams};
use regex::bytes::Regex;

use super::{haystacks, trial};
use crate::support::{
    cluster::{Cluster, NAMESPACE, SYSTEM},
    eventually, processes,
};

/// Folders of `/var/run/secrets` into which the kubelet projects tokens: for the API server, and for the controller.
const MOUNTS: [&str; 2] = ["kubernetes.io/serviceaccount", "agent-operator"];
/// The same folder in an image with a link and in one without.
const RUN_FOLDERS: [&str; 2] = ["run", "var/run"];
/// Tokens that running parts of the release have at least: the controller's, and two of each of two supervisors.
const ACCOUNT_TOKENS_LEAST: usize = 5;
/// Names of the private keys in the release's Secret (`controller/src/tls.rs`).
const KEYS: [&str; 2] = ["ca.key", "tls.key"];
/// Lines of a key in PEM that are private; what follows is the public half, which the certificate has too.
const PRIVATE_LINES: usize = 2;
/// Whole lines of PEM: shorter ones would be found anywhere.
const PEM_LINE_CHARACTERS: usize = 64;
/// How the gateway's tokens look (`supervisor/src/gateway/grants/tokens.rs`).
const RUNNERS: &str = r"aor_[A-Za-z0-9_-]{43}";
const AGENTS: &str = r"aoa_[A-Za-z0-9_-]{43}";
/// A runner that holds its token, on a busy machine.
const SOON: Duration = Duration::from_secs(15);
/// Largest area of memory that is read: agent-runner has none that is nearly as large.
const AREA_BYTES_MAX: u64 = 64 << 20;

/// The release's own: signatures of the tokens of its accounts, and lines of its TLS keys.
pub(crate) async fn of_release(cluster: &Cluster) -> Vec<String> {
    let accounts = of_accounts(cluster).await;
    assert!(accounts.len() >= ACCOUNT_TOKENS_LEAST, "{} tokens of accounts", accounts.len());
    let keys = tls_keys(cluster).await;
    // Authority and server, each with its private lines.
    assert!(keys.len() >= 2 * PRIVATE_LINES, "{} lines of keys", keys.len());
    accounts.into_iter().chain(keys).collect()
}

async fn of_accounts(cluster: &Cluster) -> BTreeSet<String> {
    let pods = haystacks::pods(cluster, SYSTEM).await;
    let uids = pods.iter().filter_map(ResourceExt::uid);
    let processes = uids.flat_map(|uid| processes::of_pod(&uid)).map(|(pid, _)| pid);
    let folders =
        processes.flat_map(|pid| RUN_FOLDERS.map(|run| format!("/proc/{pid}/root/{run}")));
    // A link would be followed out of the container, to what this machine has there.
    let folders = folders.filter(|folder| fs::symlink_metadata(folder).is_ok_and(|it| it.is_dir()));
    let files = folders.flat_map(|run| MOUNTS.map(|mount| format!("{run}/secrets/{mount}/token")));
    let tokens = files.filter_map(|file| fs::read_to_string(file).ok());
    // Head and claims of a token say who it is for, and many have the same; the signature is what makes it one.
    tokens.filter_map(|token| Some(token.trim().rsplit_once('.')?.1.to_owned())).collect()
}

async fn tls_keys(cluster: &Cluster) -> Vec<String> {
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), SYSTEM);
    let secrets = secrets.list(&ListParams::default()).await.expect("the release's Secrets").items;
    let values = secrets.into_iter().flat_map(|secret| secret.data.unwrap_or_default());
    let keys = values
        .filter(|(name, _)| KEYS.contains(&name.as_str()))
        .map(|(_, value)| String::from_utf8(value.0).expect("PEM"));
    keys.flat_map(|key| private_lines(&key)).collect()
}

fn private_lines(pem: &str) -> Vec<String> {
    let lines = pem.lines().filter(|line| line.len() == PEM_LINE_CHARACTERS);
    lines.take(PRIVATE_LINES).map(str::to_owned).collect()
}

/// The tokens of one run.
pub(super) struct OfRun {
    /// From the pod's specification.
    pub(super) one_time: String,
    runner: String,
    agent: String,
}

impl OfRun {
    /// Those that stand nowhere.
    pub(super) fn secrets(&self) -> [String; 2] {
        [self.runner.clone(), self.agent.clone()]
    }
}

/// Takes the tokens of a step while it runs.
pub(super) async fn of_run(cluster: &Cluster, task: &str, step: &str) -> OfRun {
    let (pod, agent) = trial::agent_token(cluster, task, step).await;
    let what = format!("the runner of {NAMESPACE}/{} has its token in memory", pod.name_any());
    let runner = eventually(&what, SOON, || async { of_runner(&pod) }).await;
    OfRun { one_time: trial::one_time(&pod), runner, agent }
}

fn of_runner(pod: &Pod) -> Result<String, String> {
    let uid = pod.uid().expect("a uid");
    let looks_so = Regex::new(RUNNERS).expect("a pattern");
    let runners = processes::of_pod(&uid).into_iter().filter(|(_, name)| name == "agent-runner");
    let areas = runners.flat_map(|(pid, _)| memory(pid));
    let found: BTreeSet<String> = areas
        .flat_map(|area| {
            let all = looks_so.find_iter(&area);
            all.map(|token| String::from_utf8_lossy(token.as_bytes()).into_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    match found.len() {
        1 => Ok(found.into_iter().next().unwrap_or_default()),
        number => Err(format!("{number} tokens")),
    }
}

/// What a process can write to of its memory.
fn memory(pid: i32) -> Vec<Vec<u8>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let Ok(mut memory) = File::open(format!("/proc/{pid}/mem")) else { return Vec::new() };
    let mut area = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let [start, end] = [start, end].map(|at| u64::from_str_radix(at, 16));
        let (start, end) = (start.ok()?, end.ok()?);
        if !rest.starts_with("rw") || end - start > AREA_BYTES_MAX {
            return None;
        }
        memory.seek(SeekFrom::Start(start)).ok()?;
        let mut bytes = Vec::new();
        // What is gone meanwhile ends the area early.
        let _ = memory.by_ref().take(end - start).read_to_end(&mut bytes);
        Some(bytes)
    };
    maps.lines().filter_map(&mut area).collect()
}

/// The agent's token that an agent has printed with its environment.
pub(super) fn printed(log: &str) -> String {
    let looks_so = Regex::new(AGENTS).expect("a pattern");
    let found = looks_so.find(log.as_bytes()).expect("the agent prints its own token");
    String::from_utf8_lossy(found.as_bytes()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_key_the_lines_are_taken_that_the_certificate_does_not_have() {
        let line = |letter: &str| letter.repeat(PEM_LINE_CHARACTERS);
        let pem = format!(
            "-----BEGIN PRIVATE KEY-----\r\n{}\r\n{}\r\n{}\r\nabc=\r\n-----END PRIVATE KEY-----\r\n",
            line("a"),
            line("b"),
            line("c")
        );
        assert_eq!(private_lines(&pem), [line("a"), line("b")]);
    }

    #[test]
    fn a_token_is_found_in_the_memory_of_a_process() {
        let token = format!("aor_{}", "x".repeat(43));
        let looks_so = Regex::new(RUNNERS).expect("a pattern");
        let own = i32::try_from(std::process::id()).expect("a pid");
        assert!(memory(own).iter().any(|area| looks_so.is_match(area)), "{token} is here");
    }

    #[test]
    fn the_token_of_an_agent_is_read_from_its_environment() {
        let token = format!("aoa_{}", "y".repeat(43));
        assert_eq!(printed(&format!("PATH=/bin\nANTHROPIC_API_KEY={token}\n")), token);
    }
}
