//! The wall clock of single processes. It cannot be stepped for a pod (namespaces of Linux have clocks of their own only for
//! monotonic and boot time) and must not be for the machine; but supervisor and controller ask the C library for it, and
//! a small library comes before that.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::victim::Victim;
use crate::support::eventually;

/// A pod of before has its grace of thirty seconds, and a busy node some more.
const ROLLED_OUT: Duration = Duration::from_mins(2);

/// Name of the library in a folder that the process may write.
const LIBRARY: &str = "wall-clock.so";
/// Name of the file with the seconds.
const OFFSET: &str = "wall-clock-offset";

/// The chart's `extraEnv` for a process with this folder. Where there is no library the loader says so and goes on.
pub(crate) fn environment(folder: &str) -> String {
    format!(
        r#"[{{"name":"LD_PRELOAD","value":"{folder}/{LIBRARY}"}},{{"name":"AO_WALL_CLOCK_OFFSET","value":"{folder}/{OFFSET}"}}]"#
    )
}

/// Where the folder of a process is seen from outside of its container.
fn outside(pid: i32, folder: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root{folder}"))
}

/// Puts the library where the next life of `victim` finds it, and ends this one. The pod of before a roll-out has to be
/// gone: its folder is another.
pub(crate) async fn plant(victim: Victim, folder: &str) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/faults/harm/wall_clock.c");
    let built = tempfile::tempdir().expect("a folder");
    let library = built.path().join(LIBRARY);
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .args([&library, &source])
        .status();
    assert!(status.expect("a C compiler").success(), "the library is built");
    let pid = eventually(&format!("{victim} runs, and none of before"), ROLLED_OUT, || async {
        let pids = victim.pids();
        if let [pid] = pids[..] { Ok(pid) } else { Err(format!("processes {pids:?}")) }
    })
    .await;
    let folder = outside(pid, folder);
    fs::copy(&library, folder.join(LIBRARY)).expect("the process's own folder");
    fs::write(folder.join(OFFSET), 0_i64.to_ne_bytes()).expect("the process's own folder");
    drop(victim.kill());
}

/// The process, if it has a wall clock of its own.
pub(crate) fn planted(victim: Victim) -> Result<i32, String> {
    let pid = victim.pid().ok_or("it does not run")?;
    let maps =
        fs::read_to_string(format!("/proc/{pid}/maps")).map_err(|error| error.to_string())?;
    // The library, and the page of the file that it reads.
    let there = [LIBRARY, OFFSET].iter().all(|name| maps.contains(name));
    if there { Ok(pid) } else { Err("without the library".to_owned()) }
}

/// Sets the wall clock of a process with the library to the machine's and so many seconds.
pub(crate) fn set(victim: Victim, folder: &str, seconds: i64) {
    use std::os::unix::fs::FileExt as _;
    let pid = planted(victim).expect("it has a clock of its own");
    let path = outside(pid, folder).join(OFFSET);
    let file = fs::File::options().write(true).open(path).expect("the file with the seconds");
    file.write_all_at(&seconds.to_ne_bytes(), 0).expect("eight bytes");
}
