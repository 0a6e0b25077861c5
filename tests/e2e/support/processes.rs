//! Processes of pods on this machine: all nodes of the local cluster run here, so a container's
//! process can be found by its cgroup and ended as a crash would end it.

use std::{fs, path::Path};

use kube::{ResourceExt, api::ListParams};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::cluster::{Cluster, SYSTEM};

/// Processes whose cgroup belongs to the pod with this uid, with their command names.
pub(crate) fn of_pod(uid: &str) -> Vec<(i32, String)> {
    let systemd_form = uid.replace('-', "_");
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("cgroup"))
                .is_ok_and(|text| text.contains(uid) || text.contains(&systemd_form))
        })
        .map(|pid| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            (pid, comm.trim().to_owned())
        })
        .collect()
}

/// Sends SIGKILL to what [`find_program`] finds; returns how many there were.
pub(crate) async fn kill_program(
    cluster: &Cluster,
    label: &str,
    node: Option<&str>,
    argument: &str,
) -> usize {
    signal_program(cluster, label, node, argument, Signal::SIGKILL).await
}

/// Sends `with` to what [`find_program`] finds; returns how many there were.
pub(crate) async fn signal_program(
    cluster: &Cluster,
    label: &str,
    node: Option<&str>,
    argument: &str,
    with: Signal,
) -> usize {
    let found = find_program(cluster, label, node, argument).await;
    found.into_iter().filter(|pid| signal(*pid, with)).count()
}

/// Sends a signal to one process of ours; whether it was there.
pub(crate) fn signal(pid: i32, with: Signal) -> bool {
    kill(Pid::from_raw(pid), with).is_ok()
}

/// The process that runs a program (of several containers with the same program, the one whose
/// command line contains `argument`) in each pod of the release with this label.
pub(crate) async fn find_program(
    cluster: &Cluster,
    label: &str,
    node: Option<&str>,
    argument: &str,
) -> Vec<i32> {
    let pods = cluster
        .pods(SYSTEM)
        .list(&ListParams::default().labels(label))
        .await
        .expect("list of the release's pods")
        .items;
    let mut found = Vec::new();
    for pod in pods {
        let on = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        if node.is_some() && on != node {
            continue;
        }
        // One that is on its way out has a successor already.
        if pod.metadata.deletion_timestamp.is_none() {
            found.extend(program_of(&pod.uid().expect("a uid"), argument));
        }
    }
    found
}

/// The processes of the pod with this uid whose command line contains `argument`.
pub(crate) fn program_of(uid: &str, argument: &str) -> Vec<i32> {
    let matches = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").contains(argument)
    };
    of_pod(uid).into_iter().map(|(pid, _)| pid).filter(matches).collect()
}

/// A process that stands still until this is dropped, also when the test fails.
pub(crate) struct Stopped(i32);

impl Stopped {
    /// Sends SIGSTOP.
    pub(crate) fn new(pid: i32) -> Self {
        assert!(signal(pid, Signal::SIGSTOP), "process {pid} is there");
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal(self.0, Signal::SIGCONT);
    }
}
