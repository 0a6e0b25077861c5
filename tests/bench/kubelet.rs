//! What Kubernetes and the sandbox do beside our processes: scheduling at once, a kubelet that needs no time, and an
//! agent-runner that ends its step at once. The gateway is the double of the simulation, behind a real socket.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use agent_operator::{
    attempt::{ENV_TOKEN, StepResult},
    domain::{
        Reason, RunKey, StepName, Usage,
        limits::GATEWAY_RETRY,
        report::{PullRequest, StepFacts},
    },
};
use agent_operator_supervisor::link::{
    contract::{DurableEvent, FromGateway, LINK_VERSION, ToGateway},
    frame::framed,
};
use futures::{SinkExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::{Binding, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value, json};
use tokio::net::UnixListener;

use crate::{
    gateway::{Denied, Gateway},
    site::from_json,
};

/// Word in a prompt whose steps go on for ever.
pub const HANG: &str = "hang";
/// Pause between two questions to the gateway.
const PACE: Duration = Duration::from_millis(1);
/// How late the kubelet tells what has ended; by the node's own record it is known before.
const LATE: Duration = Duration::from_millis(300);

/// Serves the gateway's socket.
pub async fn serve_link(gateway: Arc<Gateway>, socket: PathBuf) {
    let listener = UnixListener::bind(socket).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        let gateway = Arc::clone(&gateway);
        tokio::spawn(async move {
            let (mut sink, mut source) = framed::<ToGateway>(stream).split();
            match source.next().await {
                Some(Ok(ToGateway::Hello { .. })) => {}
                // A deadline's own connection carries this one order.
                Some(Ok(order)) => return gateway.hear(order),
                _ => return,
            }
            let Some((live, mut said)) = gateway.connect() else { return };
            let hello =
                FromGateway::Hello { version: LINK_VERSION, instance: "bench".to_owned(), live };
            if sink.send(hello).await.is_err() {
                return;
            }
            loop {
                tokio::select! {
                    order = source.next() => match order {
                        Some(Ok(order)) => gateway.hear(order),
                        _ => return,
                    },
                    message = said.recv() => match message {
                        Some(message) => if sink.send(message).await.is_err() { return },
                        None => return,
                    },
                }
            }
        });
    }
}

/// All nodes' kubelets and the scheduler.
pub struct Kubelet {
    pods: Api<Pod>,
    gateway: Arc<Gateway>,
    cgroups: PathBuf,
    node: String,
    late: Duration,
    ended: Arc<AtomicU64>,
}

impl Kubelet {
    pub fn new(
        client: Client,
        namespace: &str,
        node: &str,
        gateway: Arc<Gateway>,
        cgroups: &Path,
    ) -> Self {
        let cgroups = cgroups.join("pids/kubepods");
        fs::create_dir_all(&cgroups).unwrap();
        let (pods, node) = (Api::namespaced(client, namespace), node.to_owned());
        Self { pods, gateway, cgroups, node, late: LATE, ended: Arc::default() }
    }

    /// One that tells at once what has ended.
    pub fn prompt(self) -> Self {
        Self { late: Duration::ZERO, ..self }
    }

    /// How many pods have ended.
    pub fn ended(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.ended)
    }

    pub async fn run(self) {
        let kubelet = Arc::new(self);
        let (mut begun, mut deleted) = (BTreeSet::new(), BTreeSet::new());
        let mut events = Box::pin(
            watcher(kubelet.pods.clone(), watcher::Config::default())
                .default_backoff()
                .touched_objects(),
        );
        let mut number = 1_u32;
        while let Some(event) = events.next().await {
            let Ok(pod) = event else { continue };
            let uid = pod.uid().unwrap();
            if pod.metadata.deletion_timestamp.is_some() {
                if deleted.insert(uid) {
                    let now = DeleteParams::default().grace_period(0);
                    let _ = kubelet.pods.delete(&pod.name_any(), &now).await;
                }
            } else if begun.insert(uid) {
                number += 1;
                let ip = format!("10.244.{}.{}", number / 200 % 250, number % 200 + 2);
                tokio::spawn(Arc::clone(&kubelet).life(pod, ip));
            }
        }
    }

    async fn status(&self, name: &str, status: &Value) {
        let patch = Patch::Merge(json!({"status": status}));
        let _ = self.pods.patch_status(name, &PatchParams::default(), &patch).await;
    }

    /// From its scheduling to its end.
    async fn life(self: Arc<Self>, pod: Pod, ip: String) {
        let (name, uid) = (pod.name_any(), pod.uid().unwrap());
        let binding: Binding = from_json(json!({
            "metadata": {"name": name}, "target": {"apiVersion": "v1", "kind": "Node", "name": self.node},
        }));
        let bound: Result<Value, _> =
            self.pods.create_subresource("binding", &name, &PostParams::default(), &binding).await;
        // Deleted before it was scheduled.
        if bound.is_err() {
            return;
        }
        let count = self.cgroups.join(format!("pod{uid}/c-{uid}"));
        fs::create_dir_all(&count).unwrap();
        fs::write(count.join("pids.current"), "1\n").unwrap();
        let container = pod.spec.as_ref().unwrap().containers[0].name.clone();
        let state = |state: Value| {
            json!([{"name": container, "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "containerID": format!("containerd://c-{uid}"), "state": state}])
        };
        let running = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "containerStatuses": state(json!({"running": {}}))});
        self.status(&name, &running).await;
        let code = self.sandbox(&pod, &ip).await;
        fs::write(count.join("pids.current"), "0\n").unwrap();
        tokio::time::sleep(self.late).await;
        let ended = json!({"terminated": {"exitCode": code, "reason": if code == 0 { "Completed" } else { "Error" }}});
        let phase = if code == 0 { "Succeeded" } else { "Failed" };
        self.status(&name, &json!({"phase": phase, "containerStatuses": state(ended)})).await;
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// The exit code of what runs in the pod. One that is not ours ends well at once.
    async fn sandbox(&self, pod: &Pod, ip: &str) -> i32 {
        let env = pod.spec.as_ref().unwrap().containers[0].env.as_deref().unwrap_or_default();
        let Some(token) = env.iter().find(|env| env.name == ENV_TOKEN) else { return 0 };
        let (token, nonce) = (token.value.clone().unwrap(), pod.uid().unwrap());
        let ip: IpAddr = ip.parse().unwrap();
        // As agent-runner does: a pod that starts in no time may be ahead of its token's registration.
        let redeeming = async {
            loop {
                match self.gateway.redeem(&token, &nonce, ip) {
                    Ok(run) => return run,
                    Err(_) => tokio::time::sleep(PACE).await,
                }
            }
        };
        let Ok(run) = tokio::time::timeout(GATEWAY_RETRY, redeeming).await else { return 1 };
        while ask(|| self.gateway.gate(&run, ip)).await.is_some_and(|opened| opened.is_none()) {
            tokio::time::sleep(PACE).await;
        }
        let Some(grant) = ask(|| self.gateway.writer(&run)).await else { return 1 };
        if grant.assignment.work.prompt.contains(HANG) {
            while self.gateway.stop(&run).is_none() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            return 143;
        }
        let facts =
            self.facts(&run, grant.assignment.step, &grant.assignment.repository.work_branch).await;
        let result = StepResult {
            reason: Reason::Completed,
            message: "done".to_owned(),
            start_fault: None,
            exit_code: 0,
            facts,
            reported_usage: Usage::default(),
            events: 0,
            printed: None,
        };
        self.kept(|| self.gateway.result(&run, result.clone())).await;
        0
    }

    /// What a step brings about upstream, and says of it.
    async fn facts(&self, run: &RunKey, step: StepName, branch: &str) -> StepFacts {
        let mut facts = StepFacts {
            output: Some(format!("output of {step}")),
            base_commit: Some("b".repeat(40)),
            command: (step == StepName::Test).then(|| vec!["make".to_owned()]),
            ..StepFacts::default()
        };
        match step {
            StepName::Implement => {
                let (work_branch, head_commit) = (branch.to_owned(), "c".repeat(40));
                facts.work_branch = Some(work_branch.clone());
                facts.head_commit = Some(head_commit.clone());
                let event = DurableEvent::Published { work_branch, head_commit };
                self.kept(|| self.gateway.tell(run, event.clone())).await;
            }
            StepName::PullRequest => {
                let url = "https://github.com/jcwearn/example-repo/pull/7".to_owned();
                let request = PullRequest { url, number: 7 };
                facts.pull_request = Some(request.clone());
                let event = DurableEvent::PullRequestOpened(request);
                self.kept(|| self.gateway.tell(run, event.clone())).await;
            }
            _ => {}
        }
        facts
    }

    /// Says something and waits until it is on the supervisor's disk.
    async fn kept(&self, say: impl FnMut() -> Result<u64, Denied>) {
        let Some(id) = ask(say).await else { return };
        while self.gateway.is_present(id) && !self.gateway.is_kept(id) {
            tokio::time::sleep(PACE).await;
        }
    }
}

/// Asks a gateway until it knows; none when it refuses for good.
async fn ask<T>(mut question: impl FnMut() -> Result<T, Denied>) -> Option<T> {
    loop {
        match question() {
            Ok(answer) => return Some(answer),
            Err(Denied::Refused) => return None,
            Err(Denied::Again) => tokio::time::sleep(PACE).await,
        }
    }
}
