//! Real nodes: bare pods and Jobs beside ours, what the container runtimes say, and one clock for all of it. All nodes of
//! the local cluster are on this machine, so its monotonic clock is that of every pod.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use agent_operator::crd::CodingTask;
use agent_operator_doubles::runtime_events::{Moment, RuntimeEvent};
use agent_operator_supervisor::clock;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, LogParams, PostParams},
};
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    task::JoinSet,
};

use crate::{
    on_cluster::{cluster::Cluster, env, eventually, task},
    site::from_json,
};

/// Namespace of what is not ours.
const PEERS: &str = "agent-bench";
/// Limit of one wait.
pub const LIMIT: Duration = Duration::from_mins(2);

/// The number of `clock_gettime` on this processor: what is asked of the kernel starts no other program.
const CLOCK_GETTIME: u32 = if cfg!(target_arch = "aarch64") { 113 } else { 228 };

/// A program for perl with two subs: `now` gives the seconds of the monotonic clock, `stamp` prints its argument and
/// all nine digits of them. The language because every Debian image has it, and it starts within milliseconds.
pub fn program(body: &str) -> Vec<String> {
    let text = format!(
        "$| = 1; sub ticks {{ my $t = pack('q2', 0, 0); syscall({CLOCK_GETTIME}, 1, $t); unpack('q2', $t) }} \
         sub now {{ my @t = ticks(); $t[0] + $t[1] / 1e9 }} \
         sub stamp {{ printf(\"%s %d.%09d\\n\", $_[0], ticks()) }} {body}"
    );
    vec!["perl".to_owned(), "-e".to_owned(), text]
}

/// The monotonic clock, as pods see it.
pub fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap().into()
}

/// A moment of the wall clock on the monotonic one.
pub fn on_monotonic(at: Timestamp) -> Duration {
    let (wall, monotonic) = (clock::now().wall, monotonic());
    let ago = Duration::try_from(wall.duration_since(at)).unwrap_or_default();
    monotonic.saturating_sub(ago)
}

/// The time behind `WORD ` in a log, by the first line that has it.
pub fn stamp(log: &str, word: &str) -> Option<Duration> {
    let rest = log.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '))?;
    parse_stamp(rest)
}

/// Seconds, a point, nine digits.
pub fn parse_stamp(text: &str) -> Option<Duration> {
    let (seconds, nanos) = text.trim().split_once('.')?;
    Some(Duration::new(seconds.parse().ok()?, nanos.parse().ok()?))
}

/// When a container's first process was started and ended, by its runtime, on the monotonic clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Span {
    pub started: Option<Duration>,
    pub ended: Option<Duration>,
}

/// The cluster, and what its runtimes have told since.
pub struct Nodes {
    pub cluster: Cluster,
    pub image: String,
    spans: Arc<Mutex<BTreeMap<String, Span>>>,
    _runtimes: JoinSet<()>,
}

/// A task, with the label by which `tests/bench/run` finds those that an ended bench has left.
pub fn task(name: &str, prompt: &str, overrides: &Value) -> CodingTask {
    let mut task = task::task(name, prompt, overrides);
    let label = ("app.kubernetes.io/created-by".to_owned(), "agent-operator-bench".to_owned());
    task.metadata.labels = Some([label].into());
    task
}

impl Nodes {
    /// The cluster of `deploy/local/env`, with a namespace for what is not ours.
    pub async fn connect() -> Self {
        let cluster = Cluster::connect().await;
        let state = PathBuf::from(env("AO_STATE"));
        let images = std::fs::read_to_string(state.join("images.env")).unwrap();
        let image = images.lines().find_map(|line| line.strip_prefix("agent=")).unwrap().to_owned();
        let (spans, mut runtimes) = (Arc::default(), JoinSet::new());
        for node in env("AO_NODES").split_whitespace() {
            runtimes.spawn(follow(state.join(node).join("containerd.sock"), Arc::clone(&spans)));
        }
        let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
        if namespaces.get_opt(PEERS).await.unwrap().is_none() {
            let namespace = from_json(json!({"metadata": {"name": PEERS}}));
            namespaces.create(&PostParams::default(), &namespace).await.unwrap();
        }
        let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), PEERS);
        eventually("the namespace's account", LIMIT, || async {
            accounts.get("default").await.map_err(|error| error.to_string())
        })
        .await;
        Self { cluster, image, spans, _runtimes: runtimes }
    }

    /// Objects of a kind that are not ours.
    pub fn peers<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.cluster.client.clone(), PEERS)
    }

    /// A pod that does nothing but this, from the image that our steps have.
    pub fn pod_spec(&self, program: &[String]) -> Value {
        json!({
            "restartPolicy": "Never", "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 2,
            "containers": [{
                "name": "agent", "image": self.image, "imagePullPolicy": "IfNotPresent", "command": program,
                "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
            }],
        })
    }

    pub async fn create_pod(&self, name: &str, spec: &Value) {
        let pod: Pod = from_json(json!({"metadata": {"name": name}, "spec": spec}));
        self.peers::<Pod>().create(&PostParams::default(), &pod).await.unwrap();
    }

    pub async fn delete_pod(&self, name: &str) {
        let now = DeleteParams::default().grace_period(0);
        self.peers::<Pod>().delete(name, &now).await.unwrap();
    }

    /// Waits until a pod has ended, and returns it.
    pub async fn ended(&self, name: &str) -> Pod {
        let pods = self.peers::<Pod>();
        eventually(&format!("pod {name} has ended"), LIMIT, || async {
            let pod = pods.get(name).await.map_err(|error| error.to_string())?;
            let phase = pod.status.as_ref().and_then(|status| status.phase.clone());
            match phase.as_deref() {
                Some("Succeeded" | "Failed") => Ok(pod),
                other => Err(format!("{other:?}")),
            }
        })
        .await
    }

    /// What a pod has printed.
    pub async fn log(&self, pods: &Api<Pod>, name: &str) -> String {
        eventually(&format!("the log of {name}"), LIMIT, || async {
            pods.logs(name, &LogParams::default()).await.map_err(|error| error.to_string())
        })
        .await
    }

    /// Start and end of the pod's first container, once the runtime has told both.
    pub async fn span(&self, pod: &Pod) -> Span {
        let status = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref()?.first());
        let id = status.and_then(|status| status.container_id.clone()).unwrap_or_default();
        let id = id.rsplit('/').next().unwrap_or_default().to_owned();
        eventually(&format!("the runtime's word on {}", pod.name_any()), LIMIT, || async {
            let span = self.spans.lock().unwrap().get(&id).copied().unwrap_or_default();
            if span.started.is_some() && span.ended.is_some() {
                Ok(span)
            } else {
                Err(format!("{id}: {span:?}"))
            }
        })
        .await
    }
}

/// Writes down what one node's runtime tells, for ever.
async fn follow(socket: PathBuf, spans: Arc<Mutex<BTreeMap<String, Span>>>) {
    let mut command = Command::new("ctr");
    command.arg("--address").arg(socket).args(["--namespace", "k8s.io", "events"]);
    command.stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("ctr runs: deploy/local/env sets its path");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Some(event) = RuntimeEvent::parse(&line) else { continue };
        let Some(moment) = event.moment() else { continue };
        let told = event.at.map(on_monotonic);
        let mut spans = spans.lock().unwrap();
        let span = spans.entry(event.container().to_owned()).or_default();
        match moment {
            Moment::Started => span.started = told,
            Moment::Ended(at, _) => span.ended = at.map(on_monotonic).or(told),
        }
    }
}
