//! A process that cannot open anything more.

use std::{fs, path::Path};

use agent_operator_doubles::process::{NO_MORE, limits_of};

use super::{mend, victim::Victim};

/// A process without a free file descriptor, until this goes. Its successor has its own limit.
pub(crate) struct Want {
    pid: String,
    /// Its user and group.
    user: [String; 2],
    before: String,
}

impl Want {
    /// Takes the descriptors away; none if the process does not run.
    pub(crate) fn of(victim: Victim) -> Option<Self> {
        let pid = victim.pid()?.to_string();
        let before = soft_limit(&pid);
        let want = Self { user: user(&pid), pid, before };
        let (program, arguments) = want.order(&NO_MORE.to_string());
        super::must(program, &arguments.each_ref().map(String::as_str), "");
        Some(want)
    }

    /// Sets the soft limit alone, which may be raised again. As the user that the process runs as: to limit that of
    /// another, root needs `CAP_SYS_RESOURCE`, which a virtual machine's root may lack.
    fn order(&self, soft: &str) -> (&'static str, [String; 7]) {
        let Self { pid, user: [uid, gid], .. } = self;
        let (user, group) = (format!("--reuid={uid}"), format!("--regid={gid}"));
        let (alone, limit) = ("--clear-groups".to_owned(), format!("--nofile={soft}:"));
        ("setpriv", [user, group, alone, "prlimit".into(), "--pid".into(), pid.clone(), limit])
    }
}

/// User and group of a process, as numbers.
fn user(pid: &str) -> [String; 2] {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let of = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("Linux");
        line.split_whitespace().next().expect("a number").to_owned()
    };
    [of("Uid:"), of("Gid:")]
}

fn soft_limit(pid: &str) -> String {
    let row = limits_of(pid, "Max open files").expect("it runs");
    row.split_whitespace().next().expect("Linux").to_owned()
}

impl Drop for Want {
    fn drop(&mut self) {
        // A kubelet whose probes are not answered may have ended it.
        if Path::new("/proc").join(&self.pid).exists() {
            let (program, arguments) = self.order(&self.before);
            mend(program, &arguments.each_ref().map(String::as_str));
        }
    }
}
