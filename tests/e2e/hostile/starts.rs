//! Pods whose first instruction tries to reach out. Rules that come a moment late would be seen here.

use std::{collections::BTreeSet, time::Duration};

use kube::ResourceExt as _;
use serde_json::json;
use tokio::time::Instant;

use super::{
    place::{self, Place, address_of},
    say,
    sink::Sink,
};
use crate::support::{
    cluster::{Cluster, NAMESPACE, run_phase},
    eventually,
    task::{command_agent, merge, task, unique},
};

/// Starts that end the test; a few a second is what a machine with two cores does.
const STARTS: &str = "AO_HOSTILE_STARTS";
const STARTS_DEFAULT: usize = 150;
/// Seconds after which it ends with what it has, if that is not too little.
const SECONDS: &str = "AO_HOSTILE_SECONDS";
const SECONDS_DEFAULT: usize = 120;
/// Fewer starts would say little: a busy machine gets the time for them.
const STARTS_LEAST: usize = 40;
/// A machine that has not started so few by then does not start pods.
const TIME_MAX: Duration = Duration::from_mins(15);
/// Tasks that start pods side by side, on both nodes.
const TASKS: usize = 6;
/// Rounds of implement and test that a task may have: far more than it gets to.
const ROUNDS: u32 = 10;

/// Connects before it does anything else, and says what came of it.
const FIRST: &str = r#"exec python3 -c '
import socket, sys
try:
    socket.create_connection(sys.argv[1].rsplit(":", 1), 0.7).close()
    print("first instruction reached")
except OSError:
    print("first instruction held")
' "$0""#;

/// A number of the environment.
fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[tokio::test]
#[ignore = "needs the local cluster: tests/run hostile"]
async fn no_pod_gets_out_with_its_first_instruction() {
    let cluster = Cluster::connect().await;
    let sink = Sink::start().await;
    let image = place::image().await;
    let place = Place::make(&cluster).await;
    control(&cluster, &place, &image, &sink).await;
    place.remove(&cluster).await;

    let before = sink.visits(|_| true);
    let tasks = begin(&cluster, &sink).await;
    let (wanted, seconds) = (number(STARTS, STARTS_DEFAULT), number(SECONDS, SECONDS_DEFAULT));
    let least = STARTS_LEAST.min(wanted);
    let began = Instant::now();
    let enough = |count: usize| {
        let longest = if count < least { TIME_MAX } else { Duration::from_secs(seconds as u64) };
        count >= wanted || began.elapsed() >= longest
    };
    let (mut counted, mut held, mut reached) = (BTreeSet::new(), 0, 0);
    while !enough(held) {
        tokio::time::sleep(Duration::from_secs(2)).await;
        for name in &tasks {
            for (pod, log) in new_logs(&cluster, name, &counted).await {
                held += log.lines().filter(|line| *line == "first instruction held").count();
                reached += log.lines().filter(|line| *line == "first instruction reached").count();
                counted.insert(pod);
            }
        }
    }
    for name in &tasks {
        cluster.delete(NAMESPACE, name).await;
    }
    let visits = sink.visits(|_| true) - before;
    say(&format!(
        "{} pods started, {held} tried with their first instruction and were held, {reached} got out, the stranger saw {visits}",
        counted.len()
    ));
    assert_eq!((reached, visits), (0, 0), "pods that got out, and visits that the stranger had");
    assert!(held >= least, "only {held} starts were seen");
}

/// A pod that nobody holds gets out, and the stranger sees it.
async fn control(cluster: &Cluster, place: &Place, image: &str, sink: &Sink) {
    let pod = json!({
        "metadata": {"name": "first"},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "agent", "image": image, "command": ["sh", "-c", FIRST, sink.address()]}],
        },
    });
    let pod = place.start(cluster, &pod).await;
    let name = pod.name_any();
    eventually("the control's first instruction", Duration::from_mins(1), || async {
        let log = cluster.log(&place.name, &name).await;
        if log.contains("first instruction reached") { Ok(()) } else { Err(log) }
    })
    .await;
    let address = address_of(&pod);
    assert_eq!(sink.visits(|from| from.to_string() == address), 1, "the stranger saw the control");
}

/// Tasks that start a pod after the other: their tests never pass.
async fn begin(cluster: &Cluster, sink: &Sink) -> Vec<String> {
    let address = sink.address();
    let agent = format!("[ \"$AGENT_STEP\" != implement ] || date +%N > change.txt; {FIRST}");
    let failing = format!("({FIRST}); exit 1");
    let mut spec = command_agent("");
    merge(
        &mut spec,
        &json!({
            "agent": {"command": ["sh", "-c", agent, address]},
            "test": {"command": ["sh", "-c", failing, address]},
            "maxRetries": ROUNDS,
        }),
    );
    let mut names = Vec::new();
    for _ in 0..TASKS {
        let name = unique("starts");
        cluster.create(NAMESPACE, &task(&name, "Reach out.", &spec)).await;
        names.push(name);
    }
    names
}

/// Logs of the task's runs that have ended and were not looked at yet, by pod.
async fn new_logs(
    cluster: &Cluster,
    task: &str,
    known: &BTreeSet<String>,
) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for run in cluster.runs(NAMESPACE, task).await {
        let over = matches!(run_phase(&run).as_str(), "Succeeded" | "Failed");
        let pod = run.status.and_then(|status| status.pod_name).unwrap_or_default();
        if over && !pod.is_empty() && !known.contains(&pod) {
            let log = cluster.log(NAMESPACE, &pod).await;
            found.push((pod, log));
        }
    }
    found
}
