//! The container runtime of each node, by `ctr events`.

use std::{collections::BTreeMap, path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use agent_operator::attempt::CONTAINER_NAME;
use agent_operator_doubles::history::{Fact, History};
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
            let Some(event) = Event::parse(&line) else { continue };
            if event.topic == "/containers/create" {
                if let Some(container) = look(&node, event.container(), &shared.prefix).await {
                    known.insert(event.container().to_owned(), container);
                }
            } else if let Some(container) = known.get(event.container())
                && let Some(seen) = event.seen(&node, container)
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

/// One line: time (date, time, zone, zone name), namespace, topic, body.
struct Event {
    at: Timestamp,
    topic: String,
    body: Value,
}

impl Event {
    fn parse(line: &str) -> Option<Self> {
        let (head, body) = line.split_once(" {")?;
        let body = serde_json::from_str(&format!("{{{body}")).ok()?;
        let mut words = head.split_whitespace();
        let (date, time) = (words.next()?, words.next()?);
        let topic = words.last()?.to_owned();
        let at = format!("{date}T{time}Z").parse().unwrap_or_else(|_| clock::now().wall);
        Some(Self { at, topic, body })
    }

    fn container(&self) -> &str {
        let id = self.body["container_id"].as_str().or_else(|| self.body["id"].as_str());
        id.unwrap_or_default()
    }

    fn seen(&self, node: &str, container: &Container) -> Option<Seen> {
        let (at, exit) = match self.topic.as_str() {
            "/tasks/start" => (self.at, None),
            // Commands that are run in the container end with an id of their own.
            "/tasks/exit" if self.body["id"] == self.body["container_id"] => {
                // Zero is left out.
                let code = self.body["exit_status"].as_i64().unwrap_or_default();
                let code = i32::try_from(code).expect("an exit status");
                (self.exited_at().unwrap_or(self.at), Some(code))
            }
            _ => return None,
        };
        let Container { pod, pod_uid } = container.clone();
        Some(Seen { at, node: node.to_owned(), pod, pod_uid, exit })
    }

    fn exited_at(&self) -> Option<Timestamp> {
        let time = &self.body["exited_at"];
        let nanos = time["nanos"].as_i64().unwrap_or_default();
        Timestamp::new(time["seconds"].as_i64()?, i32::try_from(nanos).ok()?).ok()
    }
}

#[test]
fn a_line_of_ctr_is_understood() {
    let container = Container { pod: "p".to_owned(), pod_uid: "u".to_owned() };
    let start =
        "2026-11-28 10:11:18.5 +0000 UTC k8s.io /tasks/start {\"container_id\":\"c\",\"pid\":7}";
    let start = Event::parse(start).expect("an event");
    assert_eq!(start.container(), "c");
    let seen = start.seen("node-a", &container).expect("a start");
    assert_eq!((seen.at.to_string().as_str(), seen.exit), ("2026-11-28T10:11:18.5Z", None));
    let exit = "2026-11-28 10:11:19 +0000 UTC k8s.io /tasks/exit {\"container_id\":\"c\",\"id\":\"c\",\"pid\":7,\
                \"exit_status\":137,\"exited_at\":{\"seconds\":1800000000,\"nanos\":5}}";
    let seen = Event::parse(exit).and_then(|event| event.seen("node-a", &container));
    let seen = seen.expect("an end");
    assert_eq!((seen.at.as_second(), seen.exit), (1_800_000_000, Some(137)));
    let of_a_command = exit.replace("\"id\":\"c\"", "\"id\":\"d\"");
    assert!(Event::parse(&of_a_command).expect("an event").seen("node-a", &container).is_none());
}
