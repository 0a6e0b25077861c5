//! From the one-time token to the open start gate.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use agent_operator::{
    attempt::{GateAnswer, GateRequest, POLL_SECONDS_MAX, RedeemRequest, Redeemed, StepSpec},
    domain::{Reason, limits::GATEWAY_RETRY, report::SandboxStatus},
};

use crate::{
    attempt::{Client, until_stopped},
    clock,
    confine::probe::Reached,
    result::Failure,
    stop::Stop,
};

mod reach;

/// Longest wait for an ordinary answer.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Longest wait for a long poll: what the gateway holds it, and some slack.
pub(crate) const POLL_LIMIT: Duration = Duration::from_secs(POLL_SECONDS_MAX + 10);
/// The step's specification may wait for the upstream's answer about the base commit.
const STEP_LIMIT: Duration = Duration::from_mins(1);
/// Random bytes of the nonce: 128 bits cannot be guessed.
const NONCE_BYTES: usize = 16;

/// Trades the one-time token for the attempt's two. A gateway that does not know the token yet, or does not answer, is
/// waited for.
pub(crate) fn redeem(client: &Client, stop: &Arc<Stop>) -> Result<Redeemed, Failure> {
    let mut bytes = [0; NONCE_BYTES];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::new(Reason::Unstarted, format!("no random bytes: {error}")))?;
    let nonce = bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    let (client, calls) = (client.clone(), AtomicU32::new(0));
    until_stopped(stop, clock::boot_now() + GATEWAY_RETRY, move || {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        let request = RedeemRequest { nonce: nonce.clone(), call };
        client.post("/v1/redeem", &request, ANSWER_LIMIT)
    })
    .map_err(|error| error.into_failure(Reason::Unstarted))
}

/// Fetches what to do.
pub(crate) fn fetch_step(client: &Client, stop: &Arc<Stop>) -> Result<StepSpec, Failure> {
    let client = client.clone();
    until_stopped(stop, clock::boot_now() + GATEWAY_RETRY, move || {
        client.get("/v1/step", STEP_LIMIT)
    })
    .map_err(|error| error.into_failure(Reason::Unstarted))
}

/// Stands at the gate until it opens; returns the time left for the step.
pub(crate) fn pass(
    client: &Client,
    reached: Reached,
    canary: Option<SocketAddr>,
    stop: &Arc<Stop>,
) -> Result<Duration, Failure> {
    let before = canary.map(reach::before);
    let mut request = GateRequest {
        sandbox: sandbox_status(Path::new("/"), reached),
        iflink: iflink(Path::new("/sys/class/net")),
        canary_before: before.map(|before| before.reached),
        listening: None,
        dropped_before: None,
        probe: None,
    };
    loop {
        let (client, asked) = (client.clone(), request.clone());
        let answer = until_stopped(stop, clock::boot_now() + GATEWAY_RETRY, move || {
            client.post("/v1/gate", &asked, POLL_LIMIT)
        })
        .map_err(|error| error.into_failure(Reason::Unstarted))?;
        match answer {
            // The poll was held by the gateway, so this does not spin.
            GateAnswer::Closed => {}
            GateAnswer::Probe(order) => {
                request.probe = before.map(|before| reach::probe(&order, before, stop));
            }
            GateAnswer::Open { remaining_millis } => {
                return Ok(Duration::from_millis(remaining_millis));
            }
            GateAnswer::Stop(order) => return Err(Failure::new(order.reason, order.message)),
        }
        if let Some(stopping) = stop.order() {
            return Err(stopping.into());
        }
    }
}

/// Isolation as seen from inside; what only the node can know stays empty.
fn sandbox_status(root: &Path, reached: Reached) -> SandboxStatus {
    let read = |path: &str| fs::read_to_string(root.join(path)).ok();
    let pids = read("sys/fs/cgroup/pids.max").or_else(|| read("sys/fs/cgroup/pids/pids.max"));
    SandboxStatus {
        // `max` is no number, and no limit.
        pids_limit: pids.and_then(|text| text.trim().parse().ok()),
        user_namespace: read("proc/self/uid_map").map(|map| !maps_every_uid(&map)),
        landlock: reached.landlock,
        seccomp_filter: Some(reached.seccomp),
        ..SandboxStatus::default()
    }
}

/// Whether a uid map is the initial namespace's: everything onto itself.
fn maps_every_uid(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// Bit of an interface's flags that says that it is up (`IFF_UP`).
const UP: u32 = 1;
/// Bit that says that it is the loopback (`IFF_LOOPBACK`).
const LOOPBACK: u32 = 8;

/// Index on the host of this pod's one interface; none where there is another number of them, for then
/// no single device of the host carries all that the pod sends. Interfaces that are down do not count:
/// kernels put some into each namespace.
fn iflink(interfaces: &Path) -> Option<u32> {
    let number = |folder: &Path, file: &str| {
        let text = fs::read_to_string(folder.join(file)).ok()?;
        let text = text.trim();
        match text.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        }
    };
    let folders = fs::read_dir(interfaces).ok()?.filter_map(Result::ok).map(|entry| entry.path());
    let carries = |folder: &std::path::PathBuf| {
        number(folder, "flags").is_some_and(|flags| flags & UP != 0 && flags & LOOPBACK == 0)
    };
    let mut up = folders.filter(carries);
    let (only, another) = (up.next()?, up.next());
    if another.is_some() { None } else { number(&only, "iflink") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_interface_that_is_up_is_named_and_two_are_not() {
        let root = tempfile::tempdir().unwrap();
        let interface = |name: &str, flags: &str, iflink: &str| {
            let folder = root.path().join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("flags"), flags).unwrap();
            fs::write(folder.join("iflink"), iflink).unwrap();
        };
        interface("lo", "0x9\n", "1\n");
        interface("tunl0", "0x80\n", "3\n");
        assert_eq!(iflink(root.path()), None);
        interface("eth0", "0x1003\n", "17\n");
        assert_eq!(iflink(root.path()), Some(17));
        interface("net1", "0x1003\n", "18\n");
        assert_eq!(iflink(root.path()), None);
    }

    #[test]
    fn the_sandbox_is_described_from_proc_and_sys() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let sandbox_status =
            |root| super::sandbox_status(root, Reached { landlock: Some(6), seccomp: true });
        let reached = sandbox_status(root.path());
        assert_eq!((reached.landlock, reached.seccomp_filter), (Some(6), Some(true)));
        assert_eq!((reached.pids_limit, reached.user_namespace), (None, None));
        write("sys/fs/cgroup/pids.max", "max\n");
        write("proc/self/uid_map", "         0          0 4294967295\n");
        let status = sandbox_status(root.path());
        assert_eq!((status.pids_limit, status.user_namespace), (None, Some(false)));
        write("sys/fs/cgroup/pids.max", "1024\n");
        write("proc/self/uid_map", "0 100000 65536\n");
        let status = sandbox_status(root.path());
        assert_eq!((status.pids_limit, status.user_namespace), (Some(1024), Some(true)));
    }
}
