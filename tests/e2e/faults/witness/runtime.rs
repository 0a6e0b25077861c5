//! The container runtime of each node, by `ctr events`.

use std::{collections::BTreeMap, path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use agent_operator::attempt::CONTAINER_NAME;
use agent_operator_doubles::{
    history::{Fact, History},
    runtime_events::{Moment, RuntimeEvent},
};
use agent_operator_supervisor::clock;
use jiff::Timestamp;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

use super::Shared;
use crate::support::env;

/// Pause before a runtime that is away is asked again.
const RETRY: Duration = Duration::from_millis(200);
/// Limit of one look at a container.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// A start or an end of an agent container.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    at: Timestamp,
    node: String,
    pub(super) pod: String,
    pub(super) pod_uid: String,
    /// None: a start.
    pub(super) exit: Option<i32>,
}

impl Seen {
    pub(super) fn tell(&self, run: &str, history: &mut History) {
        let (run, pod) = (run.to_owned(), self.pod_uid.clone());
        let fact = match self.exit {
            None => Fact::Started { run, pod, node: self.node.clone() },
            exit_code => Fact::Ended { run, pod, exit_code },
        };
        history.push(self.at, fact);
    }
}

/// An agent container of the test.
#[derive(Clone)]
struct Container {
    pod: String,
    pod_uid: String,
}

fn ctr(node: &str) -> Command {
    let socket = PathBuf::from(env("AO_STATE")).join(node).join("containerd.sock");
    let mut command = Command::new("ctr");
    command.arg("--address").arg(socket).args(["--namespace", "k8s.io"]).kill_on_drop(true);
    command.stdin(Stdio::null()).stderr(Stdio::null());
    command
}

/// Writes down starts and ends, for ever; a runtime that goes away is waited for.
pub(super) async fn follow(node: String, shared: Arc<Shared>) {
    let mut known: BTreeMap<String, Container> = BTreeMap::new();
    loop {
        let child = ctr(&node).arg("events").stdout(Stdio::piped()).spawn();
        let mut child = child.expect("ctr runs: deploy/local/env sets its path");
        let stdout = child.stdout.take().expect("a pipe was asked for");
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let Some(event) = RuntimeEvent::parse(&line) else { continue };
            if event.topic == "/containers/create" {
                if let Some(container) = look(&node, event.container(), &shared.prefix).await {
                    known.insert(event.container().to_owned(), container);
                }
            } else if let Some(container) = known.get(event.container())
                && let Some(seen) = seen(&event, &node, container)
            {
                shared.seen().containers.push(seen);
            }
        }
        let _ = child.wait().await;
        tokio::time::sleep(RETRY).await;
    }
}

/// The pod of a container; none for what is not an agent container of the test.
async fn look(node: &str, id: &str, prefix: &str) -> Option<Container> {
    let asking = ctr(node).args(["containers", "info", id]).output();
    let output = tokio::time::timeout(LOOK_LIMIT, asking).await.ok()?.ok()?;
    let info: Value = serde_json::from_slice(&output.stdout).ok()?;
    let label = |name: &str| info["Labels"][name].as_str().map(str::to_owned);
    let pod = label("io.kubernetes.pod.name").filter(|pod| pod.starts_with(prefix))?;
    let name = label("io.kubernetes.container.name")?;
    let pod_uid = label("io.kubernetes.pod.uid")?;
    (name == CONTAINER_NAME).then_some(Container { pod, pod_uid })
}

/// What an event of the container says; none for what is neither its start nor its end.
fn seen(event: &RuntimeEvent, node: &str, container: &Container) -> Option<Seen> {
    let told = event.at.unwrap_or_else(|| clock::now().wall);
    let (at, exit) = match event.moment()? {
        Moment::Started => (told, None),
        Moment::Ended(at, status) => (at.unwrap_or(told), Some(status)),
    };
    let Container { pod, pod_uid } = container.clone();
    Some(Seen { at, node: node.to_owned(), pod, pod_uid, exit })
}
