//! The enforcer's socket, and the sweep of rules whose device is gone.

use std::{io, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration};

use agent_operator::domain::text::error_chain;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::Mutex,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    contract::{
        Answer, CloseOrder, CountQuestion, Counted, DropCount, DropQuestion, GATEWAYS_MAX,
        LINE_BYTES_MAX, VERSION,
    },
    ruleset::{self, Before, Chains},
    tally::Tally,
    tools::{Dropped, Network, ToolError},
    view::{Device, NoDevice},
};

/// How often rules whose device is gone are removed. They do no harm: names of devices are random,
/// or those of pods that never come again.
const SWEEP: Duration = Duration::from_secs(10);
/// Time for an order's line, and for its answer to be taken.
const LINE_LIMIT: Duration = Duration::from_secs(5);
/// How often the kernel is looked at for a pod that it does not know yet.
const LOOKS: u32 = 10;
/// Pause between two looks: a neighbour answers in less than a millisecond.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// The socket's mode: the peer's uid is what is checked.
const SOCKET_MODE: u32 = 0o666;

/// Listens on `path`; a socket of an earlier life is removed.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    Ok(listener)
}

/// Serves orders from peers with one of `uids`, and sweeps, until `shutdown`.
pub async fn serve(
    network: Arc<dyn Network>,
    listener: UnixListener,
    uids: &[u32],
    shutdown: &CancellationToken,
) {
    // One order at a time: what one looks at, the next must not change.
    let node = Arc::new(Mutex::new(network));
    let tally = Arc::new(Tally::default());
    let tasks = TaskTracker::new();
    let mut sweeps = tokio::time::interval(SWEEP);
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            _ = sweeps.tick() => {
                sweep_or_say(&**node.lock().await, &tally).await;
                continue;
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(LOOK_PAUSE).await;
                    continue;
                }
            },
        };
        match stream.peer_cred().map(|peer| peer.uid()) {
            Ok(uid) if uids.contains(&uid) => {
                let (node, tally) = (Arc::clone(&node), Arc::clone(&tally));
                tasks.spawn(async move {
                    if let Err(error) = converse(&node, &tally, stream).await {
                        tracing::warn!(%error, "an order was not answered");
                    }
                });
            }
            uid => {
                tally.foreign();
                tracing::warn!(?uid, "connection refused: not the supervisor");
            }
        }
    }
    tasks.close();
    let _ = timeout(LINE_LIMIT, tasks.wait()).await;
    leave(&**node.lock().await, &tally).await;
}

/// Takes the table away where no rules are in it, so that nothing is left of a release that goes. Rules of steps
/// that run stay, and the next enforcer finds them.
async fn leave(network: &dyn Network, tally: &Tally) {
    sweep_or_say(network, tally).await;
    let left = match network.chains().await {
        Ok(chains) if chains.is_empty() => network.apply(&ruleset::remove_table()).await,
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = left {
        tracing::warn!(error = %error_chain(&error), "the table could not be removed");
    }
}

async fn converse(
    node: &Mutex<Arc<dyn Network>>,
    tally: &Tally,
    stream: UnixStream,
) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader.take(LINE_BYTES_MAX));
    timeout(LINE_LIMIT, reader.read_until(b'\n', &mut line)).await??;
    let mut line = if serde_json::from_slice::<CountQuestion>(&line).is_ok() {
        serde_json::to_vec(&Counted { counts: tally.counts() })?
    } else if let Ok(question) = serde_json::from_slice::<DropQuestion>(&line) {
        match dropped_of(&**node.lock().await, &question.dropped_of).await {
            Ok(dropped) => serde_json::to_vec(&DropCount { dropped })?,
            Err(error) => serde_json::to_vec(&refusal(error_chain(&error)))?,
        }
    } else {
        let answer = match serde_json::from_slice::<CloseOrder>(&line) {
            Ok(order) => obey(&**node.lock().await, &order).await,
            Err(error) => refusal(format!("the order cannot be read: {error}")),
        };
        tally.answered(&answer);
        serde_json::to_vec(&answer)?
    };
    line.push(b'\n');
    timeout(LINE_LIMIT, writer.write_all(&line)).await?
}

/// What was dropped of all that the pod has sent, on whatever device.
async fn dropped_of(network: &dyn Network, pod_uid: &str) -> Result<u64, ToolError> {
    let of_pod = |dropped: &Dropped| {
        let whose = ruleset::parse(&dropped.chain).map(|(_, uid)| uid);
        dropped.chain.starts_with(ruleset::FROM) && whose == Some(pod_uid)
    };
    let dropped = network.dropped().await?;
    Ok(dropped.iter().filter(|dropped| of_pod(dropped)).map(|dropped| dropped.packets).sum())
}

fn refusal(message: String) -> Answer {
    Answer::NotClosed { message, retryable: false }
}

/// Carries an order out.
pub async fn obey(network: &dyn Network, order: &CloseOrder) -> Answer {
    if let Err(message) = check(order) {
        return refusal(message);
    }
    match close(network, order).await {
        Ok((device, anew)) => {
            let Device { name: device, index } = device;
            // The same order comes again and again while the step runs.
            if anew {
                tracing::info!(pod = order.pod_uid, ip = %order.pod_ip, device, "egress closed");
            }
            Answer::Closed { device, index: Some(index), anew }
        }
        Err(error) => {
            let message = error_chain(&error);
            tracing::warn!(pod = order.pod_uid, ip = %order.pod_ip, message, "egress not closed");
            Answer::NotClosed { message, retryable: error.may_pass() }
        }
    }
}

/// What an order must look like. The uid becomes part of a chain's name.
fn check(order: &CloseOrder) -> Result<(), String> {
    let is_uid = (1..=64).contains(&order.pod_uid.len())
        && order.pod_uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let gateways = order.gateways.iter();
    let usable = gateways.filter(|at| at.is_ipv4() == order.pod_ip.is_ipv4()).count();
    match () {
        () if order.version != VERSION => {
            Err(format!("the order has version {}, this enforcer {VERSION}", order.version))
        }
        () if !is_uid => Err("podUid is no uid".to_owned()),
        () if usable == 0 || order.gateways.len() > GATEWAYS_MAX => {
            Err(format!("gateways: 1 to {GATEWAYS_MAX} are wanted, in the pod's address family"))
        }
        () if order.pod_ip.is_loopback() || order.pod_ip.is_unspecified() => {
            Err("podIp is no pod's".to_owned())
        }
        () => Ok(()),
    }
}

#[derive(Debug, thiserror::Error)]
enum CloseError {
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    NoDevice(#[from] NoDevice),
    #[error("device {device} belongs to the pod {owner} already")]
    Taken { device: String, owner: String },
}

impl CloseError {
    fn may_pass(&self) -> bool {
        match self {
            Self::Tool(_) => true,
            Self::NoDevice(error) => error.may_pass(),
            Self::Taken { .. } => false,
        }
    }
}

/// Closes the pod's device; whether it had no rules before.
async fn close(network: &dyn Network, order: &CloseOrder) -> Result<(Device, bool), CloseError> {
    let (device, present) = tokio::join!(find(network, order), network.chains());
    let (device, present) = (device?, present?);
    let of_device = present.iter().filter_map(|chain| ruleset::parse(chain));
    let taken = of_device.filter(|(index, _)| *index == device.index);
    if let Some((_, owner)) = taken.into_iter().find(|(_, owner)| *owner != order.pod_uid) {
        let owner = owner.to_owned();
        return Err(CloseError::Taken { device: device.name, owner });
    }
    let own = Chains::of(device.index, &order.pod_uid);
    let has = |chain: &String| present.contains(chain);
    let before = if has(&own.from) || has(&own.to) {
        counted(&network.dropped().await?, &own)
    } else {
        Before::default()
    };
    let script = ruleset::close(&device, &order.pod_uid, order.pod_ip, &order.gateways, before);
    network.apply(&script).await?;
    let anew = !(has(&own.from) && has(&own.to));
    Ok((device, anew))
}

/// What the chains of a pod have counted, so that rules that replace theirs count on.
fn counted(dropped: &[Dropped], own: &Chains) -> Before {
    let of = |chain: &String| {
        let counted = dropped.iter().find(|dropped| dropped.chain == *chain);
        counted.map_or(0, |dropped| dropped.packets)
    };
    Before { from: of(&own.from), to: of(&own.to) }
}

/// Finds the pod's device, and gives the kernel a moment to learn about it.
async fn find(network: &dyn Network, order: &CloseOrder) -> Result<Device, CloseError> {
    let mut looks = 0;
    loop {
        let view = network.view(order.pod_ip).await?;
        match view.device(order.pod_ip, order.iflink) {
            Ok(device) => return Ok(device),
            Err(error) if error.may_pass() && looks < LOOKS => {
                looks += 1;
                network.stir(order.pod_ip).await;
                tokio::time::sleep(LOOK_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn sweep_or_say(network: &dyn Network, tally: &Tally) {
    let swept = sweep(network, tally).await;
    tally.swept(swept.is_ok());
    match swept {
        Ok(0) => {}
        Ok(chains) => tracing::debug!(chains, "rules of gone devices removed"),
        Err(error) => tracing::warn!(error = %error_chain(&error), "rules could not be swept"),
    }
}

/// Counts what was dropped, and removes the chains whose device is gone; how many there were.
pub async fn sweep(network: &dyn Network, tally: &Tally) -> Result<usize, ToolError> {
    // Chains first: a device that comes in between is in the later list.
    let chains = network.chains().await?;
    if chains.is_empty() {
        tally.dropped(&[]);
        return Ok(0);
    }
    // Before chains go: what they have counted goes with them.
    match network.dropped().await {
        Ok(dropped) => tally.dropped(&dropped),
        Err(error) => {
            tracing::warn!(error = %error_chain(&error), "counters cannot be read");
        }
    }
    let links = network.links().await?;
    let gone = |chain: &String| {
        ruleset::parse(chain).is_some_and(|(index, _)| links.iter().all(|link| link.index != index))
    };
    let gone: Vec<_> = chains.into_iter().filter(gone).collect();
    if !gone.is_empty() {
        network.apply(&ruleset::remove(&gone)).await?;
    }
    Ok(gone.len())
}

#[cfg(test)]
mod tests;
