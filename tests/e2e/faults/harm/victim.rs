//! Processes that are killed and frozen. They are found on the machine itself, by cgroup and pid file,
//! for the API server may be the one that is away.

use std::{fmt, fs, path::Path};

use nix::sys::signal::Signal;

use super::mend;
use crate::support::{env, processes::signal};

/// A node of the local cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    A,
    B,
}

impl Node {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::A => "node-a",
            Self::B => "node-b",
        }
    }

    fn letter(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

/// A process of ours or of Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    Controller,
    Supervisor(Node),
    Gateway(Node),
    Kubelet(Node),
    Containerd(Node),
    ApiServer,
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Controller => f.write_str("controller"),
            Self::Supervisor(node) => write!(f, "supervisor of {}", node.name()),
            Self::Gateway(node) => write!(f, "gateway of {}", node.name()),
            Self::Kubelet(node) => write!(f, "kubelet of {}", node.name()),
            Self::Containerd(node) => write!(f, "containerd of {}", node.name()),
            Self::ApiServer => f.write_str("kube-apiserver"),
        }
    }
}

impl Victim {
    /// Name of the part that `deploy/local` starts; none for what a kubelet starts again by itself.
    fn part(self) -> Option<String> {
        match self {
            Self::Kubelet(node) => Some(format!("kubelet-{}", node.letter())),
            Self::Containerd(node) => Some(format!("containerd-{}", node.letter())),
            Self::ApiServer => Some("kube-apiserver".to_owned()),
            Self::Controller | Self::Supervisor(_) | Self::Gateway(_) => None,
        }
    }

    /// Its process, if it runs. Of several controllers the first.
    pub(crate) fn pid(self) -> Option<i32> {
        if let Some(part) = self.part() {
            let file = Path::new(&env("AO_STATE")).join("run").join(format!("{part}.pid"));
            let text = fs::read_to_string(file).ok()?;
            let pid = text.split_whitespace().next()?.parse().ok()?;
            return Path::new("/proc").join(format!("{pid}")).exists().then_some(pid);
        }
        self.pids().into_iter().next()
    }

    /// All processes of that kind in pods; while pods are replaced there are more than one.
    pub(crate) fn pids(self) -> Vec<i32> {
        let (node, program) = match self {
            Self::Supervisor(node) => (Some(node), ["supervisor", "run"]),
            Self::Gateway(node) => (Some(node), ["supervisor", "gateway"]),
            _ => (None, ["controller", ""]),
        };
        pids_in_pods(node).into_iter().filter(|pid| runs(*pid, program)).collect()
    }

    /// Ends it as a crash would. What nobody else starts again is started when the guard goes.
    pub(crate) fn kill(self) -> Killed {
        if let Some(pid) = self.pid() {
            signal(pid, Signal::SIGKILL);
        }
        Killed(self)
    }

    /// Freezes it until the guard goes; none if it does not run.
    pub(crate) fn freeze(self) -> Option<Frozen> {
        let pid = self.pid()?;
        signal(pid, Signal::SIGSTOP).then_some(Frozen(pid))
    }
}

/// All processes in pods of a node, or of both.
fn pids_in_pods(node: Option<Node>) -> Vec<i32> {
    let folder = match node {
        Some(node) => format!("/ao-node-{}/", node.letter()),
        None => "/ao-node-".to_owned(),
    };
    let entries = fs::read_dir("/proc").expect("Linux");
    let pids =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(&folder))
    })
    .collect()
}

/// Every process of a node's pods, their sandboxes included.
pub(crate) fn pods_of(node: Node) -> Vec<i32> {
    pids_in_pods(Some(node))
}

/// The shims of a node's runtime. They belong to no pod, and remember the ends of its containers.
pub(crate) fn shims_of(node: Node) -> Vec<i32> {
    let socket = Path::new(&env("AO_STATE")).join(node.name()).join("containerd.sock");
    let socket = socket.to_string_lossy().into_owned();
    let entries = fs::read_dir("/proc").expect("Linux");
    let pids =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let shim =
            line.split('\0').next().is_some_and(|name| name.ends_with("/containerd-shim-runc-v2"));
        shim && line.split('\0').any(|word| word == socket)
    })
    .collect()
}

/// Whether the command line is this program with this first argument (empty: any).
fn runs(pid: i32, [program, first]: [&str; 2]) -> bool {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = line.split('\0');
    let name = words.next().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
    name == program && (first.is_empty() || words.next() == Some(first))
}

/// A killed process.
pub(crate) struct Killed(Victim);

impl Drop for Killed {
    fn drop(&mut self) {
        if let Some(part) = self.0.part() {
            let program = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/local/part");
            mend(program, &["start", &part]);
        }
    }
}

/// A frozen process.
pub(crate) struct Frozen(i32);

impl Drop for Frozen {
    fn drop(&mut self) {
        signal(self.0, Signal::SIGCONT);
    }
}
