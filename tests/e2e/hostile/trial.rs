//! The attacks from inside the steps of a task, and what a real attacker might have got by other ways:
//! tokens of this run's past and of other runs.

use std::{fmt, fs, net::IpAddr, path::PathBuf, time::Duration};

use agent_operator::{attempt::ENV_TOKEN, crd::CodingTask};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::{Value, json};
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};

use super::{parameters::NODE, place::PROGRAM, promises::quarantines};
use crate::support::{
    cluster::{Cluster, NAMESPACE, phase, run_phase},
    env, eventually, processes,
    task::{merge, task},
};

/// A task whose implement step tries everything.
const LIMIT: Duration = Duration::from_mins(6);
/// A step that begins, on a busy machine.
const SOON: Duration = Duration::from_mins(1);
/// Where the program looks for what it is given; also the file's name in the pod's `/tmp` volume.
const GIFTS: &str = "hostile-gifts.json";
/// Where the program listens for who comes from outside.
const INBOUND_PORT: u16 = 7777;
/// Longest wait for a connection into a sandbox.
const INBOUND_LIMIT: Duration = Duration::from_millis(500);

/// Which groups each step tries: where it may do most, everything.
const AGENT: &str = r#"p=$1
case $AGENT_STEP in
  plan) exec python3 "$0" "$p" credentials git k8s ;;
  implement) date > change.txt; exec python3 "$0" "$p" credentials gateway network k8s git process runner ;;
  *) exec python3 "$0" "$p" credentials k8s ;;
esac"#;

/// A task of the hostile image, on the attacks' node.
pub(super) fn hostile_task(name: &str, image: &str, repository: &str, spec: &Value) -> CodingTask {
    let mut whole = json!({
        "agentImage": image,
        "nodeSelector": {"kubernetes.io/hostname": NODE},
        "repository": {"url": format!("https://github.com/jcwearn/{repository}.git")},
        "test": {"command": ["true"]},
        "maxRetries": 0,
    });
    merge(&mut whole, spec);
    task(name, &format!("Attack {name}."), &whole)
}

/// The task that attacks.
pub(super) fn attacking(
    name: &str,
    image: &str,
    repository: &str,
    parameters: &Value,
    overrides: &Value,
) -> CodingTask {
    let parameters = parameters.to_string();
    let tests = ["python3", PROGRAM, &parameters, "credentials", "network", "k8s", "process"];
    let mut spec = json!({
        "agent": {"type": "Command", "command": ["sh", "-c", AGENT, PROGRAM, parameters]},
        "test": {"command": tests},
    });
    merge(&mut spec, overrides);
    hostile_task(name, image, repository, &spec)
}

/// What a neighbour does: it works, and says how that goes.
const WORK: &str = r#"rows() { for row in 0 1 2 3; do echo "row $row"; done; }
case $AGENT_STEP in
  plan) rows; sleep 15 ;;
  implement) date > change.txt; exec python3 /hostile/beat.py "$0" ;;
  *) rows ;;
esac"#;
/// Name of the file whose appearance lets a neighbour's step end.
const LEAVE: &str = "hostile-leave";

/// Another run of the same node, which works all the while; its tokens are what thieves would take.
pub(super) struct Neighbour {
    name: String,
    dead: String,
    live: String,
    pod: Pod,
}

/// What a neighbour tells when it has ended.
pub(super) struct Left {
    pub(super) name: String,
    /// Rows that its implement step has printed.
    pub(super) rows: u64,
    /// Beats that went well, and how long the slowest took.
    well: usize,
    slowest: f64,
    /// Beats that did not go well.
    pub(super) failed: Vec<String>,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (well, failed) = (self.well, self.failed.len());
        write!(
            f,
            "a neighbour's {well} beats went well (slowest {:.3} s), {failed} did not",
            self.slowest
        )
    }
}

impl Left {
    fn of(name: String, log: &str) -> Self {
        let seconds = |line: &str| {
            let text = line.strip_prefix("beat well in ")?.strip_suffix(" seconds")?;
            text.parse::<f64>().ok()
        };
        let well: Vec<f64> = log.lines().filter_map(seconds).collect();
        let failed = log.lines().filter(|line| line.starts_with("beat failed"));
        let rows = log.lines().filter(|line| line.starts_with("row ")).count() as u64;
        assert!(well.len() > 5, "a neighbour that hardly worked shows nothing: {log}");
        Self {
            name,
            rows,
            well: well.len(),
            slowest: well.into_iter().fold(0.0, f64::max),
            failed: failed.map(str::to_owned).collect(),
        }
    }
}

impl Neighbour {
    /// Takes the token of its plan step, which ends, and of its implement step, which goes on.
    pub(super) async fn settle(
        cluster: &Cluster,
        name: &str,
        image: &str,
        repository: &str,
    ) -> Self {
        let leave = format!("/tmp/{LEAVE}");
        let spec = json!({"agent": {"type": "Command", "command": ["sh", "-c", WORK, leave]}});
        cluster.create(NAMESPACE, &hostile_task(name, image, repository, &spec)).await;
        let (_, dead) = agent_token(cluster, name, "plan").await;
        let (pod, live) = agent_token(cluster, name, "implement").await;
        Self { name: name.to_owned(), dead, live, pod }
    }

    /// The tokens, for the run whose pod this is.
    fn gifts(&self, pod: &Pod) -> Value {
        json!({
            "oneTime": one_time(pod),
            "otherOneTime": one_time(&self.pod),
            "other": self.live,
            "dead": self.dead,
        })
    }

    /// Lets it end, and reads what it has seen.
    pub(super) async fn leave(self, cluster: &Cluster) -> Left {
        // The search for what is left of a run must be able to find something.
        assert!(
            !quarantines(cluster, &self.name).await.is_empty(),
            "its quarantine is on the node"
        );
        fs::write(tmp_of(&self.pod).join(LEAVE), "").expect("a file of the pod's volume");
        cluster.complete(NAMESPACE, &self.name).await;
        let log = cluster.log(NAMESPACE, &self.pod.name_any()).await;
        Left::of(self.name, &log)
    }
}

/// The pod of a step that runs, and its agent's token as it stands in that agent's environment.
pub(super) async fn agent_token(cluster: &Cluster, task: &str, step: &str) -> (Pod, String) {
    let pod = pod_of(cluster, task, step).await;
    let uid = pod.uid().expect("a uid");
    let token = eventually(&format!("the agent of {step} runs"), SOON, || async {
        let found = processes::of_pod(&uid).into_iter().find_map(|(pid, _)| {
            let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let text = String::from_utf8_lossy(&environment).into_owned();
            let line = text.split('\0').find_map(|line| line.strip_prefix("ANTHROPIC_API_KEY="))?;
            Some(line.to_owned())
        });
        found.ok_or_else(|| format!("no process of {uid} has one"))
    })
    .await;
    (pod, token)
}

/// The pod of the step's run, once it runs.
pub(super) async fn pod_of(cluster: &Cluster, task: &str, step: &str) -> Pod {
    eventually(&format!("a pod of {step} of {task} runs"), LIMIT, || async {
        let found = cluster.tasks(NAMESPACE).get(task).await.map_err(|error| error.to_string())?;
        if matches!(phase(&found).as_str(), "Failed" | "Complete") {
            panic!("too late: {}", cluster.describe(NAMESPACE, task).await);
        }
        let runs = cluster.runs(NAMESPACE, task).await;
        let run = runs.into_iter().find(|run| run.spec.step == step);
        let name = run.and_then(|run| run.status?.pod_name).ok_or("no pod yet")?;
        let pod = cluster.pods(NAMESPACE).get(&name).await.map_err(|error| error.to_string())?;
        let status = pod.status.clone().unwrap_or_default();
        let running = status.phase.as_deref() == Some("Running") && status.pod_ip.is_some();
        if running { Ok(pod) } else { Err(format!("{:?}", status.phase)) }
    })
    .await
}

/// The one-time token that stands in the pod's specification.
pub(super) fn one_time(pod: &Pod) -> String {
    let containers = &pod.spec.as_ref().expect("a spec").containers;
    let variables = containers.iter().flat_map(|container| container.env.iter().flatten());
    let mut tokens = variables.filter(|variable| variable.name == ENV_TOKEN);
    tokens.next().and_then(|variable| variable.value.clone()).expect("a one-time token")
}

/// The `/tmp` of a step, which is a folder of this machine.
fn tmp_of(pod: &Pod) -> PathBuf {
    PathBuf::from(env("AO_STATE"))
        .join(NODE)
        .join("kubelet/pods")
        .join(pod.uid().expect("a uid"))
        .join("volumes/kubernetes.io~empty-dir/tmp")
}

/// Lays the tokens into the `/tmp` of the step.
pub(super) async fn give(cluster: &Cluster, neighbour: &Neighbour, task: &str) -> Pod {
    let pod = pod_of(cluster, task, "implement").await;
    let folder = tmp_of(&pod);
    // Written elsewhere and moved: half a file is no gift.
    let (whole, part) = (folder.join(GIFTS), folder.join("hostile-gifts.part"));
    fs::write(&part, neighbour.gifts(&pod).to_string()).expect("a file of the pod's volume");
    fs::rename(&part, &whole).expect("its name");
    pod
}

/// Path of the gifts as the sandbox sees it.
pub(super) fn gifts_path() -> String {
    format!("/tmp/{GIFTS}")
}

/// Knocks at an address until it opens or nobody waits any more.
pub(super) struct Knocking(JoinHandle<String>);

impl Knocking {
    pub(super) fn at(address: &str) -> Self {
        let address: IpAddr = address.parse().expect("an address");
        Self(tokio::spawn(async move {
            loop {
                let tried = timeout(INBOUND_LIMIT, TcpStream::connect((address, INBOUND_PORT)));
                if let Ok(Ok(_)) = tried.await {
                    return format!("a connection into {address}");
                }
                tokio::time::sleep(INBOUND_LIMIT).await;
            }
        }))
    }

    /// What came of it so far.
    pub(super) async fn opened(self) -> Option<String> {
        let Self(task) = self;
        if task.is_finished() {
            return task.await.ok();
        }
        task.abort();
        None
    }
}

/// Waits until all these tasks have ended, however.
pub(super) async fn ended(cluster: &Cluster, tasks: &[String]) {
    for name in tasks {
        cluster.finished_within(NAMESPACE, name, LIMIT).await;
    }
}

/// The logs of all steps of a task, by step.
pub(super) async fn logs(cluster: &Cluster, task: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for run in cluster.runs(NAMESPACE, task).await {
        let pod = run.status.clone().and_then(|status| status.pod_name).unwrap_or_default();
        let log = cluster.log(NAMESPACE, &pod).await;
        found.push((format!("{} ({})", run.spec.step, run_phase(&run)), log));
    }
    found
}
