//! The real controller and the real supervisor, each a process, on a real API server, and Kubernetes' own controller of
//! Jobs beside them. What is scripted: kubelet, sandbox and gateway (`kubelet`).

use std::{path::PathBuf, sync::Arc, time::Duration};

use agent_operator::crd::AgentRun;
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use crate::{
    gateway::Gateway,
    kubelet::{HANG, Kubelet, serve_link},
    measure::{eventually, now},
    peers::{JobController, PEERS, Pace},
    processes::Process,
    site::{Controller, SUPERVISOR, SYSTEM, Site, TASKS, free_port},
};

/// Attempts at once on the node.
const SLOTS: u32 = 128;
/// Creations of tasks at once.
const AT_ONCE: usize = 16;
/// The one node.
const NODE: &str = "node-a";
/// Steps of a task, and pods of a Job.
pub const STEPS: u32 = 4;
/// After this time nothing of a round is still to be written.
const SETTLE: Duration = Duration::from_secs(2);
/// Kubernetes waits at most so long for one Job.
const LIMIT: Duration = Duration::from_mins(2);

/// Everything that runs for this bench. Dropping it ends all of it.
pub struct Plant {
    pub site: Site,
    _controller: Process,
    supervisor: Option<Process>,
    supervisor_line: Vec<String>,
    /// Where the supervisor tells its metrics.
    metrics: String,
    _jobs: JobController,
    _around: JoinSet<()>,
}

impl Plant {
    pub async fn start() -> Self {
        let site = Site::start().await;
        site.namespace(PEERS).await;
        let token = site.node(NODE).await;
        let (gateway, cgroups, mut around) = (Gateway::new(), site.path("cgroup"), JoinSet::new());
        let socket = site.path("gateway.sock");
        around.spawn(serve_link(Arc::clone(&gateway), socket.clone()));
        for namespace in [TASKS, PEERS] {
            let gateway = Arc::clone(&gateway);
            around
                .spawn(Kubelet::new(site.client.clone(), namespace, NODE, gateway, &cgroups).run());
        }
        let controller = Controller::new(&site);
        let process = controller.start();
        let metrics = format!("127.0.0.1:{}", free_port());
        let supervisor_line =
            supervisor_line(&site, &controller.address, &metrics, [&token, &socket, &cgroups]);
        let jobs = JobController::start(&site, Pace::Default);
        let mut plant = Self {
            site,
            _controller: process,
            supervisor: None,
            supervisor_line,
            metrics,
            _jobs: jobs,
            _around: around,
        };
        plant.start_supervisor();
        plant
    }

    fn start_supervisor(&mut self) {
        let kubeconfig = self.site.kubeconfig(SUPERVISOR);
        let environment = [("KUBECONFIG", kubeconfig.to_str().unwrap())];
        let log = self.site.path("supervisor.log");
        self.supervisor = Some(Process::start(&self.supervisor_line, &environment, log));
    }

    /// SIGKILL of the supervisor and a new one; the time until that one has taken over `attempts`.
    pub async fn restart_supervisor(&mut self, attempts: usize) -> Duration {
        let began = now();
        self.supervisor.take().unwrap().kill();
        self.start_supervisor();
        let line = format!("live_attempts {attempts}\n");
        eventually("the attempts are adopted", LIMIT, async || {
            self.scraped().await.filter(|text| text.contains(&line))
        })
        .await;
        began.elapsed()
    }

    /// What the supervisor says of itself; none while it does not listen.
    async fn scraped(&self) -> Option<String> {
        let mut stream = TcpStream::connect(&self.metrics).await.ok()?;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")
            .await
            .ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text)
    }

    /// Makes tasks whose first step goes on, and waits until all of them run.
    pub async fn live_tasks(&self, count: usize) {
        let made = stream::iter(0..count)
            .map(|number| async move { self.site.task(&format!("live-{number}"), HANG).await })
            .buffer_unordered(AT_ONCE);
        made.count().await;
        let runs: Api<AgentRun> = Api::namespaced(self.site.client.clone(), TASKS);
        eventually("the steps run", LIMIT, async || {
            let all = runs.list(&ListParams::default()).await.unwrap();
            let running = |run: &&AgentRun| {
                run.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
            };
            (all.items.iter().filter(running).count() >= count).then_some(())
        })
        .await;
        tokio::time::sleep(SETTLE).await;
    }

    /// One task; the times of the server between which all of it was written.
    pub async fn task(&self, name: &str) -> (Timestamp, Timestamp) {
        let made = self.site.task(name, "Add a /healthz endpoint that returns 200 OK").await;
        let began = made.metadata.creation_timestamp.unwrap().0;
        let tasks = self.site.tasks();
        eventually("the task completes", LIMIT, async || {
            let status = tasks.get(name).await.unwrap().status?;
            let phase = status.phase?;
            assert_ne!(phase, "Failed", "{:?}", status.message);
            (phase == "Complete").then_some(())
        })
        .await;
        self.no_pods(TASKS).await;
        tokio::time::sleep(SETTLE).await;
        (began, self.clock().await)
    }

    /// One Job of as many pods.
    pub async fn job(&self, name: &str) -> (Timestamp, Timestamp) {
        let jobs: Api<Job> = Api::namespaced(self.site.client.clone(), PEERS);
        let made = self.site.create(&jobs, job(name)).await;
        let began = made.metadata.creation_timestamp.unwrap().0;
        eventually("the Job completes", LIMIT, async || {
            let status = jobs.get(name).await.unwrap().status?;
            let complete =
                status.conditions?.iter().any(|c| c.type_ == "Complete" && c.status == "True");
            complete.then_some(())
        })
        .await;
        tokio::time::sleep(SETTLE).await;
        let ended = self.clock().await;
        let pods: Api<Pod> = Api::namespaced(self.site.client.clone(), PEERS);
        pods.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
        (began, ended)
    }

    /// Two writes of which the second needs the first, by a client that does nothing else; where no kubelet of ours looks.
    pub async fn floor(&self, number: usize, of: &AgentRun) -> Duration {
        let runs: Api<AgentRun> = Api::namespaced(self.site.client.clone(), SYSTEM);
        let pods: Api<Pod> = Api::namespaced(self.site.client.clone(), SYSTEM);
        let name = format!("floor-{number}");
        let spec = serde_json::to_value(&of.spec).unwrap();
        let run = json!({"apiVersion": "agents.wearn.dev/v1alpha1", "kind": "AgentRun",
            "metadata": {"name": name}, "spec": spec});
        let pod = json!({"metadata": {"name": name}, "spec": {
                "restartPolicy": "Never", "automountServiceAccountToken": false,
            "containers": [{"name": "agent", "image": "registry.test/agent:1"}]}});
        let began = now();
        self.site.create(&runs, run).await;
        self.site.create(&pods, pod).await;
        let took = began.elapsed();
        pods.delete(&name, &DeleteParams::default().grace_period(0)).await.unwrap();
        runs.delete(&name, &DeleteParams::default()).await.unwrap();
        took
    }

    async fn no_pods(&self, namespace: &str) {
        let pods: Api<Pod> = Api::namespaced(self.site.client.clone(), namespace);
        eventually("the pods are deleted", LIMIT, async || {
            pods.list(&ListParams::default()).await.unwrap().items.is_empty().then_some(())
        })
        .await;
    }

    /// The server's clock is this machine's.
    pub async fn clock(&self) -> Timestamp {
        // Audit lines are written as they are answered; a moment for the last of them.
        tokio::time::sleep(Duration::from_millis(200)).await;
        agent_operator_supervisor::clock::now().wall
    }
}

/// A Job of as many pods as a task has steps.
pub fn job(name: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"completions": STEPS, "parallelism": 1, "template": {"spec": {
            "restartPolicy": "Never", "automountServiceAccountToken": false,
            "containers": [{"name": "agent", "image": "registry.test/agent:1"}],
        }}},
    })
}

fn supervisor_line(
    site: &Site,
    address: &str,
    metrics: &str,
    [token, socket, cgroups]: [&PathBuf; 3],
) -> Vec<String> {
    let argument = |name: &str, path: &PathBuf| format!("--{name}={}", path.display());
    vec![
        "supervisor".to_owned(),
        "run".to_owned(),
        format!("--node-name={NODE}"),
        format!("--pod-namespace={SYSTEM}"),
        format!("--controller-address={address}"),
        "--controller-ca-configmap=agent-operator-ca".to_owned(),
        argument("token-file", token),
        format!("--task-namespace={TASKS}"),
        argument("data-dir", &site.path("supervisor")),
        argument("gateway-socket", socket),
        "--gateway-service=10.96.0.7:8080".to_owned(),
        argument("pod-log-dir", &site.path("pods")),
        argument("cgroup-root", cgroups),
        "--runner-image=registry.test/runner:1".to_owned(),
        "--runner-delivery=imageVolume".to_owned(),
        "--pod-retention=1s".to_owned(),
        format!("--slots={SLOTS}"),
        format!("--http-address={metrics}"),
    ]
}
