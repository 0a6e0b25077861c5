//! A process that cannot open anything more.

use std::process::Command;

use super::{mend, victim::Victim};

/// The first number that no standard stream has: below it every number is taken, so nothing more can be
/// opened. What is open stays so.
const NO_MORE: u32 = 3;

/// A process without a free file descriptor, until this goes. Its successor has its own limit.
pub(crate) struct Want {
    pid: String,
    before: String,
}

impl Want {
    /// Takes the descriptors away; none if the process does not run.
    pub(crate) fn of(victim: Victim) -> Option<Self> {
        let pid = victim.pid()?.to_string();
        let told = Command::new("prlimit")
            .args(["--pid", &pid, "--nofile", "--noheadings", "--raw", "--output=SOFT"])
            .output()
            .expect("prlimit runs");
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        let before = String::from_utf8_lossy(&told.stdout).trim().to_owned();
        super::must("prlimit", &["--pid", &pid, &format!("--nofile={NO_MORE}:")], "");
        Some(Self { pid, before })
    }
}

impl Drop for Want {
    fn drop(&mut self) {
        // A kubelet whose probes are not answered may have ended it.
        if std::path::Path::new("/proc").join(&self.pid).exists() {
            mend("prlimit", &["--pid", &self.pid, &format!("--nofile={}:", self.before)]);
        }
    }
}
