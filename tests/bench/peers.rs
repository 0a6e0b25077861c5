//! Kubernetes' own controller of Jobs, beside ours.

use std::process::{Child, Command, Stdio};

use crate::site::{JOBS, Site, free_port};

/// Namespace of the Jobs.
pub const PEERS: &str = "peers";

/// How fast it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// 20 requests a second, as it is installed everywhere.
    Default,
    /// What somebody gives it who wants many Jobs.
    Tuned,
}

/// Kubernetes' controller manager with nothing but its controller of Jobs. Ended when it is dropped.
pub struct JobController(Child);

impl JobController {
    pub fn start(site: &Site, pace: Pace) -> Self {
        let mut log = std::fs::OpenOptions::new();
        let log = log.create(true).append(true).open(site.path("jobs.log")).unwrap();
        let mut command = Command::new("kube-controller-manager");
        command
            .arg(format!("--kubeconfig={}", site.kubeconfig(JOBS).display()))
            .args(["--leader-elect=false", "--controllers=job-controller"])
            .arg("--bind-address=127.0.0.1")
            .arg(format!("--secure-port={}", free_port()));
        if pace == Pace::Tuned {
            command.args([
                "--kube-api-qps=5000",
                "--kube-api-burst=5000",
                "--concurrent-job-syncs=50",
            ]);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("kube-controller-manager is on PATH; tests/bench/run builds it");
        Self(child)
    }
}

impl Drop for JobController {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
