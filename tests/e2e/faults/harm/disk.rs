//! A small disk under the folders of a supervisor and its gateway.

use std::path::PathBuf;

use super::{
    mend, must,
    victim::{Node, Victim},
};
use crate::support::env;

/// Where the chart puts the folders of ledger, streams and git on each node.
const FOLDER: &str = "/var/lib/agent-operator";
/// File, or folder of empty files, that fills the disk.
const FILLER: &str = "filler";
/// Files and folders that fit: many more than ledger, streams and mirrors of a test need.
const INODES: u32 = 20_000;

/// A disk of this many MiB in place of a node's, until this goes.
pub(crate) struct SmallDisk {
    node: Node,
    /// The node's own folder, which the small disk hides from the node.
    hidden: PathBuf,
}

impl SmallDisk {
    /// Puts it there. Both processes start anew, since they hold the folders; what they have on disk
    /// comes along, but for finished streams and mirrors.
    pub(crate) fn mount(node: Node, mebibytes: u32) -> Self {
        let state = PathBuf::from(env("AO_STATE"));
        let hidden = state.join(node.name()).join("host").join(&FOLDER[1..]);
        let disk = Self { node, hidden };
        let frozen = disk.freeze();
        // The node's own folder is read from outside: within the node the small disk covers it too. But
        // the enforcer's socket is no matter of the disk, and it listens in the node's own folder: that
        // is held open and shown in its place.
        let script = format!(
            "set -e
             nsenter {mounts} sh -ec '
               exec 9<{FOLDER}/enforcer
               mount -t tmpfs -o size={mebibytes}m,nr_inodes={INODES},mode=755 ao-fault {FOLDER}
               mkdir {FOLDER}/enforcer
               mount --no-canonicalize --bind /proc/self/fd/9 {FOLDER}/enforcer'
             cd {hidden}
             tar --no-recursion -cf - supervisor git supervisor/ledger* |
               nsenter {mounts} tar -C {FOLDER} -xpf -",
            mounts = disk.mounts(),
            hidden = disk.hidden.display(),
        );
        must("sh", &["-c", &script], "");
        disk.start_anew();
        drop(frozen);
        disk
    }

    fn mounts(&self) -> String {
        let name = self.node.name().replace("node-", "mntns/");
        format!("--mount={}", PathBuf::from(env("AO_STATE")).join(name).display())
    }

    fn freeze(&self) -> [Option<super::victim::Frozen>; 2] {
        [Victim::Supervisor(self.node).freeze(), Victim::Gateway(self.node).freeze()]
    }

    /// A frozen process dies too.
    fn start_anew(&self) {
        drop(Victim::Supervisor(self.node).kill());
        drop(Victim::Gateway(self.node).kill());
    }

    /// Takes the last byte.
    pub(crate) fn fill(&self) {
        let script =
            format!("cat /dev/zero >{FOLDER}/{FILLER} 2>/dev/null; df {FOLDER} | grep -q 100%");
        must("nsenter", &[&self.mounts(), "sh", "-c", &script], "");
    }

    /// Takes the last inode: files that are there can grow, new ones cannot be made.
    pub(crate) fn fill_inodes(&self) {
        let script = format!(
            "mkdir {FOLDER}/{FILLER}; cd {FOLDER}/{FILLER}; seq {INODES} | xargs touch 2>/dev/null;
             df -i {FOLDER} | grep -q 100%"
        );
        must("nsenter", &[&self.mounts(), "sh", "-c", &script], "");
    }

    /// Gives the space back.
    pub(crate) fn empty(&self) {
        must("nsenter", &[&self.mounts(), "rm", "-rf", &format!("{FOLDER}/{FILLER}")], "");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let frozen = self.freeze();
        // Back to the large disk with everything that was written meanwhile.
        let script = format!(
            "nsenter {mounts} rm -rf {FOLDER}/{FILLER}
             nsenter {mounts} tar -C {FOLDER} -cf - supervisor | tar -C {hidden} -xpf -
             nsenter {mounts} umount -l {FOLDER}",
            mounts = self.mounts(),
            hidden = self.hidden.display(),
        );
        mend("sh", &["-c", &script]);
        self.start_anew();
        drop(frozen);
    }
}
