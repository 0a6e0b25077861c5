//! What a hostile child cannot do to the runner, and that it could without the walls.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::Value;

const RUNNER: &str = env!("CARGO_BIN_EXE_agent-runner");
/// Landlock ABIs that brought ports and the scope of signals.
const PORTS: i64 = 4;
const SIGNALS: i64 = 6;

/// Each attack on process `$1`, the folder `$2` and the ports `$3` (allowed) and `$4`; a line each.
const ATTACKS: &str = r#"
try() { name=$1; shift; if "$@" >/dev/null 2>&1; then echo "$name reached"; else echo "$name held"; fi; }
try signal kill -0 "$1"
try limit prlimit --pid "$1" --nofile=512:1024
try nice renice -n 3 -p "$1"
try nice-of-user renice -n 0 -u "$(id -u)"
try affinity taskset -p 1 "$1"
try scheduler chrt --batch -p 0 "$1"
try io-priority ionice -c 3 -p "$1"
try write sh -c "echo x > $2/file"
try allowed-port bash -c "exec 3<>/dev/tcp/127.0.0.1/$3"
try other-port bash -c "exec 3<>/dev/tcp/127.0.0.1/$4"
"#;

/// A process of the same user, and outside the walls.
struct Victim(Child);

impl Victim {
    fn new() -> Self {
        Self(Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn attack(walls: &[&str], folder: &Path, ports: [u16; 2]) -> BTreeMap<String, String> {
    let victim = Victim::new();
    let mut line: Vec<String> = walls.iter().map(|&word| word.to_owned()).collect();
    line.extend(["sh", "-c", ATTACKS, "attacks"].map(str::to_owned));
    line.extend([victim.0.id().to_string(), folder.to_string_lossy().into_owned()]);
    line.extend(ports.map(|port| port.to_string()));
    let output = Command::new(&line[0]).args(&line[1..]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let results: BTreeMap<_, _> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, end)| (name.to_owned(), end.to_owned()))
        .collect();
    // One that was not tried is no success of ours.
    assert_eq!(results.len(), 10, "{text}{}", String::from_utf8_lossy(&output.stderr));
    results
}

fn reached() -> Value {
    let output = Command::new(RUNNER).args(["probe", "--writable", "/tmp"]).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_child_can_neither_signal_nor_limit_nor_slow_down_its_runner() {
    let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let listeners = [0, 0].map(|port| TcpListener::bind(("127.0.0.1", port)).unwrap());
    let ports = listeners.each_ref().map(|listener| listener.local_addr().unwrap().port());

    let control = attack(&["env"], outside.path(), ports);
    let reached_all = control.values().all(|end| end == "reached");
    assert!(reached_all, "without the walls each attack succeeds: {control:?}");

    let (folder, port) = (inside.path().to_str().unwrap(), format!("--only-port={}", ports[0]));
    let walls = [RUNNER, "exec", "--writable", folder, &port, "--"];
    let results = attack(&walls, outside.path(), ports);
    let landlock = reached()["landlock"].as_i64().unwrap_or_default();
    for (name, end) in &results {
        let held = match name.as_str() {
            "allowed-port" => false,
            "signal" => landlock >= SIGNALS,
            "other-port" => landlock >= PORTS,
            "write" => landlock > 0,
            _ => true,
        };
        assert_eq!(end == "held", held, "{name} with Landlock ABI {landlock}: {results:?}");
    }
    let written = attack(&walls, inside.path(), ports);
    assert_eq!(written["write"], "reached", "the step's own folders stay writable");
}

/// What a shell says of its hard limits, behind `walls`.
fn hard_limit(walls: &[&str], flag: &str) -> String {
    let limit = format!("ulimit -H{flag}");
    let line = [walls, &["bash", "-c", &limit]].concat();
    let output = Command::new(line[0]).args(&line[1..]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_child_opens_so_many_files_and_leaves_no_core_of_its_memory() {
    let (control, walls) = (["env"], [RUNNER, "exec", "--"]);
    let number = |text: String| text.parse().unwrap_or(u64::MAX);
    let (outside, inside) = (number(hard_limit(&control, "n")), number(hard_limit(&walls, "n")));
    assert!(inside <= outside.min(16 * 1024), "{outside} outside, {inside} inside");
    // In KiB, and a byte is none; where there was no limit, there is one now.
    assert_eq!(hard_limit(&walls, "c"), "0", "{} outside", hard_limit(&control, "c"));
}

#[test]
fn the_probe_says_what_holds() {
    let reached = reached();
    assert_eq!(reached["seccomp"], true);
    let enabled = std::fs::read_to_string("/sys/kernel/security/lsm")
        .map_or_else(|_| reached["landlock"].is_i64(), |names| names.contains("landlock"));
    assert_eq!(reached["landlock"].as_i64().is_some_and(|abi| abi > 0), enabled, "{reached}");
}
